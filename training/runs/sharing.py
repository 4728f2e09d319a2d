"""Work that several processes share through a folder: one does each piece, and all wait for the whole."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from filelock import FileLock, Timeout

from ..options import Settings
from .folders import RUN_NAME, Run, open_run


T = TypeVar("T")

# Between two looks at the pieces that other processes are at.
_POLL_SECONDS = 1.0


@contextmanager
def open_in_turn(settings: Settings, output_dir: Path) -> Iterator[Run]:
    """As `open_run`, for processes that share a folder: they wait for each other."""
    # Its name is one that a folder without a run may hold.
    with FileLock(output_dir / f"{RUN_NAME}.lock"), open_run(output_dir, settings) as run:
        yield run


def share_work(pieces: Mapping[Path, Callable[[], T]]) -> list[T]:
    """Does every piece of work that no other process is at, waits for those of the others, and returns all results.

    A piece that is done returns its result at once when it is called again; one whose process was killed comes free.

    Args:
        pieces: by the folder of each, beside which its lock lies.
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
