"""Work that several processes share through a folder: each piece is done by one process, and all wait for the end."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from ..options import Settings
from .folders import RUN_NAME, Run, open_run


T = TypeVar("T")

# Time between two checks for the pieces that other processes are working on.
_POLL_SECONDS = 1.0


@contextmanager
def open_in_turn(settings: Settings, output_dir: Path) -> Iterator[Run]:
    """Opens a run like `open_run`, but processes that share a folder wait for each other."""
    # The name of the lock is one of those allowed in a folder without a run.
    with FileLock(output_dir / f"{RUN_NAME}.lock"), open_run(output_dir, settings) as run:
        yield run


def share_work(pieces: Mapping[Path, Callable[[], T]]) -> list[T]:
    """Does every piece of work that no other process is working on, waits for the others, and returns all results.

    A finished piece must return its result at once when it is called again. A piece whose process was killed becomes
    free again.

    Args:
        pieces: the pieces of work by their folders; each lock file is next to its folder.
    """
    done: dict[Path, T] = {}
    while len(done) < len(pieces):
        num_done = len(done)
        for folder, work in pieces.items():
            if folder in done:
                continue
            try:
                with FileLock(f"{folder}.lock", timeout=0):
                    done[folder] = work()
            except Timeout:
                continue
        if len(done) == num_done:
            time.sleep(_POLL_SECONDS)
    return [done[folder] for folder in pieces]
