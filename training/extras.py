"""Finds the extra of the package that installs a missing import."""

import re
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


PACKAGE = "magic-nas"
# The distribution of a module, if the names differ.
_DISTRIBUTIONS = {"sklearn": "scikit-learn", "PIL": "pillow"}
# The extra of each subpackage; the others need "search".
_OF_ROOM = {"analysis": "analysis", "cells": "images", "finetuning": "finetune", "hub": "figures"}


def missing_extra(error: BaseException) -> str | None:
    """Returns a line that names the missing package and the extra to install; `None` for any other error.

    If several extras have the package, the line names the one for the requested feature, which is determined by the
    outermost subpackage in the traceback.
    """
    if not isinstance(error, ModuleNotFoundError) or error.name is None:
        return None
    module = error.name.partition(".")[0]
    extras = _extras_with(_DISTRIBUTIONS.get(module, module))
    if not extras:
        return None
    wanted = _OF_ROOM.get(_room(error) or "", "search")
    extra = wanted if wanted in extras else extras[0]
    return f"{module} is not installed; install the requirements with: pip install '{PACKAGE}[{extra}]'"


def _extras_with(distribution: str) -> list[str]:
    """The extras that contain a distribution, in the order of setup.cfg."""
    try:
        declared = requires(PACKAGE) or []
    except PackageNotFoundError:
        return []
    wanted, found = _normalised(distribution), []
    for line in declared:
        name, extra = re.match(r"[\w.-]+", line), re.search(r"extra\s*==\s*[\"']([\w-]+)", line)
        if name and extra and _normalised(name[0]) == wanted:
            found.append(extra[1])
    return found


def _normalised(distribution: str) -> str:
    return re.sub(r"[-_.]+", "-", distribution).lower()


def _room(error: BaseException) -> str | None:
    """The outermost subpackage in the traceback of the error, except for the command line."""
    package, traceback = Path(__file__).parent, error.__traceback__
    while traceback is not None:
        path = Path(traceback.tb_frame.f_code.co_filename)
        if path.parent.parent == package and path.parent.name != "cli":
            return path.parent.name
        traceback = traceback.tb_next
    return None
