"""Ctrl-C and SIGTERM: a training ends its step and saves it first; all else stops at once."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """The user, or whoever runs this machine, has asked the process to end; no error, and nothing catches it as one.

    Attributes:
        number: of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {SIGNALS[signal.Signals(number)]}")
        self.number = number


class _Request:
    """What this process was asked, and whether it may answer later."""

    number: int | None = None
    deferrals: int = 0


@contextmanager
def signals_handled() -> Iterator[None]:
    """While the context lasts, Ctrl-C and SIGTERM raise `Stopped` in this process; others it starts are left alone."""
    owner = os.getpid()

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _answer_in_child(number)
        elif _Request.deferrals and _Request.number is None:
            _Request.number = number
            # Not print: the signal may have come in the middle of one.
            os.write(sys.__stderr__.fileno(), _TOLD) if sys.__stderr__ is not None else None
        else:
            _Request.number = None
            raise Stopped(number)

    before = {number: signal.signal(number, answer) for number in SIGNALS}
    try:
        yield
    finally:
        _Request.number = None
        for number, handler in before.items():
            signal.signal(number, handler)


_TOLD = b"\nstopping: the step at hand ends and is saved first; again, and it stops at once\n"


def _answer_in_child(number: int) -> None:
    """What a process does that was forked, and that nobody has told of a signal."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def stops_deferred() -> Iterator[None]:
    """While the context lasts, the first signal is kept for `stop_if_asked`; another one stops at once."""
    _Request.deferrals += 1
    try:
        yield
    finally:
        _Request.deferrals -= 1


def is_stop_asked() -> bool:
    """Whether a signal waits for `stop_if_asked`."""
    return _Request.number is not None


def stop_if_asked() -> None:
    """Raises `Stopped` where a signal was kept."""
    if (number := _Request.number) is not None:
        _Request.number = None
        raise Stopped(number)
