"""Progress bars: drawn on a terminal or in a notebook, written as occasional lines elsewhere, or off."""

import io
import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm as plain_tqdm
from tqdm.auto import tqdm


# The time between two lines about the same work if bars cannot be drawn.
SECONDS_BETWEEN_LINES = 30.0


class _Bars:
    """Whether bars are off in this process."""

    are_off = False


def turn_bars_off(off: bool = True) -> None:
    """Turns our bars off in this process, or on again."""
    _Bars.are_off = off


def can_draw() -> bool:
    """Returns whether standard error is a terminal, or this is a notebook."""
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    shell = sys.modules.get("IPython")
    return shell is not None and "IPKernelApp" in getattr(shell.get_ipython(), "config", {})


def progress_bar(iterable: Iterable | None = None, *, disable: bool = False, **given: Any) -> "tqdm[Any]":
    """Returns a tqdm bar, or one that writes lines if bars cannot be drawn.

    Args:
        iterable: the items to count, as in tqdm.
        disable: whether to show nothing; after `turn_bars_off`, no bar is shown.
        given: further arguments of tqdm.
    """
    kind = tqdm if can_draw() else _Lines
    return kind(iterable, disable=disable or _Bars.are_off, **given)


class _Lines(plain_tqdm):
    """A bar that writes a line every `SECONDS_BETWEEN_LINES`, and nothing about shorter work."""

    def __init__(self, iterable: Iterable | None = None, **given: Any):
        own = {"mininterval": SECONDS_BETWEEN_LINES, "delay": SECONDS_BETWEEN_LINES, "leave": False}
        text = "{desc}: {n_fmt} of {total_fmt}, {elapsed} so far, {remaining} to go{postfix}"
        super().__init__(iterable, **{**given, **own, "bar_format": text, "miniters": None})

    def display(self, msg: str | None = None, pos: int | None = None) -> None:
        """Writes the progress; an empty text clears a bar and is not written as a line."""
        if msg != "":
            self.fp.write(f"{self}\n")
            self.fp.flush()

    def close(self) -> None:
        """Ends without moving the cursor of a terminal."""
        self.fp = io.StringIO()
        super().close()
