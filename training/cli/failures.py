"""One-line messages, with a remedy, for failures of the machine that Python reports with a long traceback."""

import errno
import os
import re
from concurrent.futures import BrokenExecutor

from ..extras import missing_extra
from ..files import is_full_disk
from ..tables import first_line


_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|not enough memory|Cannot allocate memory", re.I)


class _Command:
    """The command of this process.

    Attributes:
        folder: folder of its run, `None` if it has none.
    """

    folder: os.PathLike | None = None


def remember_folder(folder: os.PathLike) -> os.PathLike:
    """Stores the folder to which the command writes its run, and returns it."""
    _Command.folder = folder
    return folder


def goes_on() -> str:
    """Returns how to continue the command."""
    return "" if _Command.folder is None else f"; the same command resumes in {_Command.folder}"


def failure(error: BaseException) -> str | None:
    """Returns a line on what the machine lacks and how to continue, or `None` for any other error."""
    if is_full_disk(error):
        return f"{_full(error)}; free some space{goes_on()}"
    known = isinstance(error, RuntimeError | OSError) and _NO_MEMORY.search(str(error))
    if isinstance(error, MemoryError) or known:
        return (
            f"out of memory ({first_line(error)}); use a smaller batch with more gradient_accumulation_steps, "
            f"shorter sequences or a smaller model{goes_on()}"
        )
    if (missing := missing_extra(error)) is not None:
        return missing
    if isinstance(error, RecursionError):
        return f"something in the input is nested too deeply ({first_line(error)}); make it less nested{goes_on()}"
    if isinstance(error, BrokenExecutor):
        return f"a process of this command was killed, usually for lack of memory; free some{goes_on()}"
    return None


def _full(error: BaseException) -> str:
    if not isinstance(error, OSError) or error.errno is None:
        return f"{os.strerror(errno.ENOSPC)} ({first_line(error)})"
    # Errors from libraries that write files themselves have no path.
    path = error.filename or _Command.folder
    return f"{os.strerror(error.errno)}: {path}" if path is not None else os.strerror(error.errno)
