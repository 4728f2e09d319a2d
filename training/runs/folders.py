"""Folders of runs: each belongs to one run, which one process at a time works on and a later call can resume."""

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers.utils import logging as hf_logging

from ..files import make_output_folder, read_json, remove_leftovers, write_json
from ..options import Settings
from ..resuming import has_checkpoints


RUN_NAME = "run.json"
RESULT_NAME = "result.json"
# The finished trainings of a run that consists of many.
RECORDS_NAME = "runs.json"
# Facts about the machine that a run determined at its start and keeps when it resumes elsewhere.
FACTS_NAME = "facts.json"
# Hashes of what a run reads, which a resumed run must read again.
INPUTS_NAME = "inputs.json"
LOCK_NAME = ".lock"
MODEL_FOLDER = "model"


# ---- One run ----


@dataclass
class Run:
    """A run's folder while this process and its ranks have it for themselves; created by `open_run`.

    Attributes:
        folder: folder with all files of the run.
        writes: whether this rank is the one that writes them.
        result: the result of an earlier call that finished the run; `None` if there is work left.
    """

    folder: Path
    writes: bool
    result: dict[str, Any] | None = field(default=None)

    def finish(
        self, result: dict[str, Any], export: Callable[[dict[str, Any]], object] | None = None
    ) -> dict[str, Any]:
        """Writes the result, after the files it refers to, and returns it as it reads back: lists, not tuples.

        Args:
            result: the result as JSON; the versions that it depends on are added.
            export: writes the files that the result refers to, given the result as it reads back.
        """
        result = json.loads(json.dumps({**result, "versions": versions()}))
        if self.writes:
            if export is not None:
                export(result)
            write_json(self.folder / RESULT_NAME, result)
        # Other processes may read these files next.
        PartialState().wait_for_everyone()
        return result


@contextmanager
def open_run(
    output_dir: str | Path, settings: Settings, writes: bool = True, inputs: Mapping[str, Any] | None = None
) -> Iterator[Run]:
    """Makes `output_dir` the folder of a run, reserved for this process and its ranks until the context ends.

    Whether the folder holds this run, and whether the run has finished, is checked again under the lock: another
    process may have taken the folder, or finished the run, while this one read its text.

    Args:
        output_dir: the folder.
        settings: settings of the run; their class names the command.
        writes: whether this rank is the one that writes the run's files.
        inputs: hashes of what the run reads, such as "the text", as JSON; a run that resumes must read the same.

    Raises:
        ValueError: another process is using the folder, it contains another run or something else, or an input has
            changed since the run began.
    """
    folder = Path(output_dir)
    make_output_folder(folder)
    with _locked(folder) if writes else nullcontext():
        result = None
        if writes:
            check_run_folder(folder, settings)
            _tidy(folder)
            result = read_result(folder)
            if result is None:
                _check_inputs(folder, inputs or {})
                write_json(folder / RUN_NAME, _describe(settings))
                if inputs:
                    write_json(folder / INPUTS_NAME, dict(inputs))
        yield Run(folder, writes, _same_for_all_ranks(result))


def _check_inputs(folder: Path, inputs: Mapping[str, Any]) -> None:
    """Compares inputs with those of the run's start: their names may refer to something else by now."""
    path = folder / INPUTS_NAME
    known = read_json(path) if path.is_file() and _has_begun(folder) else {}
    if changed := [name for name, value in inputs.items() if known.get(name, value) != value]:
        verb = "has" if len(changed) == 1 else "have"
        raise ValueError(
            f"{' and '.join(changed)} {verb} changed since the run in {folder} began; restore what it read then, or "
            f"use another --output-dir"
        )


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = FileLock(folder / LOCK_NAME)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ValueError(f"another process is using {folder}; wait for it, or use another --output-dir") from None
    try:
        yield
    finally:
        lock.release()


def _tidy(folder: Path) -> None:
    """Removes what killed processes left in a run's folder, except in the runs inside it, which have other owners."""
    remove_leftovers(folder)
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink() and not (path / RUN_NAME).is_file():
            _tidy(path)


def _same_for_all_ranks(result: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the result that the first rank has found, so that either all ranks continue or none."""
    return result if PartialState().num_processes == 1 else broadcast_object_list([result])[0]


# ---- Which run a folder belongs to ----


def check_run_folder(output_dir: str | Path, settings: Settings) -> None:
    """Raises a ValueError if `output_dir` contains another run or something else; the same run may resume there.

    The check is fast, so a run can make it before reading its text; `open_run` repeats it. If the other run has no
    checkpoint, result, records or facts, nothing would be lost, and its folder may be taken over. The runs inside a
    run count as part of it.
    """
    output_dir = Path(output_dir)
    path = output_dir / RUN_NAME
    if path.is_file():
        found, wanted = read_json(path), _describe(settings)
        if found != wanted and _has_begun(output_dir):
            raise ValueError(
                f"{output_dir} holds another run ({_difference(found, wanted)}); use another --output-dir"
            )
    elif output_dir.is_file():
        raise ValueError(f"{output_dir} is a file; give a folder with --output-dir")
    elif output_dir.exists():
        own = (LOCK_NAME, INPUTS_NAME, f"{RUN_NAME}.", f".{RUN_NAME}-")
        if any(not item.name.startswith(own) for item in output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty and does not hold a run; use another --output-dir")


def finished_result(output_dir: str | Path, settings: Settings) -> dict[str, Any] | None:
    """Returns the result of the run in `output_dir` if it has finished, `None` if there is work left.

    Raises:
        ValueError: as in `check_run_folder`.
    """
    check_run_folder(output_dir, settings)
    return read_result(output_dir)


def _has_begun(run: Path) -> bool:
    written = any((run / name).is_file() for name in (RESULT_NAME, RECORDS_NAME, FACTS_NAME))
    if written or has_checkpoints(run):
        return True
    return any(_has_begun(path.parent) for path in run.glob(f"*/*/{RUN_NAME}"))


def _describe(settings: Settings) -> dict[str, Any]:
    values = asdict(settings) | {name: () for name in settings.growing}  # type: ignore[call-overload]
    return json.loads(json.dumps({"command": settings.command, "settings": values}))


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if found["command"] != wanted["command"]:
        return f"of {found['command']}, not {wanted['command']}"
    for key, value in wanted["settings"].items():
        other = found["settings"].get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            for name in sorted(value.keys() | other.keys()):
                if value.get(name) != other.get(name):
                    return f"{key}.{name} is {other.get(name)!r} there, {value.get(name)!r} here"
        elif other != value:
            return f"{key} is {other!r} there, {value!r} here"
    return "of another version"


def check_one_process() -> None:
    """Raises a ValueError if this process is one of several ranks."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ValueError(
            "an analysis runs in a single process; distribute the training of children with `magic-nas analyze "
            "standalone`, or start several processes of a sweep on one folder"
        )


# ---- Contents of a folder ----


def read_result(output_dir: str | Path) -> dict[str, Any] | None:
    """Returns the result of a finished run, else `None`."""
    path = Path(output_dir) / RESULT_NAME
    return read_json(path) if path.is_file() else None


def read_settings(run: str | Path) -> dict[str, Any]:
    """Returns the settings that a run was started with."""
    return read_json(Path(run) / RUN_NAME)["settings"]


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    packages = ("magic-nas", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


@contextmanager
def bars_off() -> Iterator[None]:
    """Disables the progress bars of transformers for loading and saving, and restores them afterwards."""
    was_on = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if was_on:
            hf_logging.enable_progress_bar()
