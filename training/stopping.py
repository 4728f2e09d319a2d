"""Ctrl-C and SIGTERM: training finishes its step and saves it first; everything else stops immediately."""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}


class Stopped(BaseException):
    """The user or the system has asked the process to end; not an error, so error handlers do not catch it.

    Attributes:
        number: the number of the signal.
    """

    def __init__(self, number: int):
        super().__init__(f"stopped by {SIGNALS[signal.Signals(number)]}")
        self.number = number


class _Request:
    """The signal that this process received, and whether its handling may be deferred."""

    number: int | None = None
    deferrals: int = 0


@contextmanager
def signals_handled() -> Iterator[None]:
    """During the context, Ctrl-C and SIGTERM raise `Stopped` in this process, but not in its child processes."""
    owner = os.getpid()

    def answer(number: int, frame: FrameType | None) -> None:
        if os.getpid() != owner:
            _answer_in_child(number)
        elif _Request.deferrals and _Request.number is None:
            _Request.number = number
            # Not print: the signal may have arrived in the middle of one.
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


_TOLD = b"\nstopping after the current step is finished and saved; interrupt again to stop immediately\n"


def _answer_in_child(number: int) -> None:
    """The default handling of a signal, for a forked process."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


@contextmanager
def stops_deferred() -> Iterator[None]:
    """During the context, the first signal is kept for `stop_if_asked`; a second one stops immediately."""
    _Request.deferrals += 1
    try:
        yield
    finally:
        _Request.deferrals -= 1


def is_stop_asked() -> bool:
    """Whether a signal is waiting for `stop_if_asked`."""
    return _Request.number is not None


def stop_if_asked() -> None:
    """Raises `Stopped` if a signal was kept."""
    if (number := _Request.number) is not None:
        _Request.number = None
        raise Stopped(number)
