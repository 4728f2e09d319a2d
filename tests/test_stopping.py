"""What Ctrl-C and SIGTERM do to this process, and to those that it starts."""

import multiprocessing
import os
import signal
import time

import pytest

from training.stopping import SIGNALS, Stopped, is_stop_asked, signals_handled, stop_if_asked, stops_deferred


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_at_once_unless_it_is_deferred(number):
    before = signal.getsignal(number)
    with signals_handled():
        with pytest.raises(Stopped, match=f"stopped by {SIGNALS[number]}") as stopped:
            os.kill(os.getpid(), number)
        assert stopped.value.number == number
        stop_if_asked()
        with stops_deferred():
            os.kill(os.getpid(), number)
            assert is_stop_asked()
            with pytest.raises(Stopped):
                stop_if_asked()
            assert not is_stop_asked()
        with pytest.raises(Stopped):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) == before


def test_no_error_handler_takes_it_for_an_error():
    assert not issubclass(Stopped, Exception | KeyboardInterrupt)


def _wait(started):
    started.set()
    time.sleep(60)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 1)])
def test_forked_processes_end_as_they_would(number, code):
    context = multiprocessing.get_context("fork")
    started = context.Event()
    with signals_handled(), stops_deferred():
        process = context.Process(target=_wait, args=(started,))
        process.start()
        assert started.wait(30)
        os.kill(process.pid, number)
        process.join(30)
    assert process.exitcode == code
