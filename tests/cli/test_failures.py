"""What the command line says where the machine fails it, or somebody stops it."""

import errno
import os
import signal
from concurrent.futures.process import BrokenProcessPool

import pytest
from toy_cli import run_main

from training.cli.failures import failure, goes_on, remember_folder


@pytest.fixture
def run_folder(tmp_path):
    before = remember_folder(tmp_path / "run")
    yield before
    remember_folder(None)


FULL = "No space left on device"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            OSError(errno.ENOSPC, FULL, "run/checkpoint-8"),
            f"{FULL}: run/checkpoint-8; free some space; the same command",
        ),
        (OSError(errno.ENOSPC, FULL), FULL + ": {run}; free some space; the same command resumes in {run}"),
        (Exception(f"{FULL} (os error 28)"), f"{FULL} ({FULL} (os error 28)); free some space"),
        (MemoryError(), "out of memory (MemoryError); use a smaller batch"),
        (RuntimeError("CUDA out of memory. Tried\nto allocate"), "out of memory (CUDA out of memory. Tried); use"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out of memory (DefaultCPUAllocator: can't"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory ([Errno 12] Cannot allocate memory); use"),
        (RecursionError("maximum recursion depth exceeded"), "something in the input is nested too deeply (maximum"),
        (
            BrokenProcessPool("terminated abruptly"),
            "a process of this command was killed, usually for lack of memory",
        ),
    ],
)
def test_what_a_machine_lacks_is_one_line_and_exit_code_1(run_folder, monkeypatch, capsys, error, line):
    def fail(*_, **__):
        raise error

    assert failure(error).startswith(line.format(run=run_folder))
    monkeypatch.setattr("training.hub.presets.load_preset", fail)
    code, _, err = run_main(monkeypatch, capsys, "describe", "magic-tiny")
    assert code == 1
    assert err.startswith("magic-nas: error: " + line.format(run=run_folder))
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), KeyError("a"), OSError(errno.EACCES, "denied")])
def test_other_errors_are_no_failures_of_the_machine(error):
    assert failure(error) is None


@pytest.mark.parametrize(("number", "code", "by"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")])
def test_a_signal_ends_a_command_with_its_code_and_how_to_go_on(tmp_path, monkeypatch, capsys, number, code, by):
    monkeypatch.setattr("training.cli.demo.demo", lambda *_: os.kill(os.getpid(), number))
    found, _, err = run_main(monkeypatch, capsys, "demo", "-o", tmp_path / "run")
    assert found == code
    assert err == f"magic-nas: stopped by {by}; the same command resumes in {tmp_path / 'run'}\n"
    assert goes_on()
    remember_folder(None)
    monkeypatch.setattr("training.hub.presets.load_preset", lambda *_: os.kill(os.getpid(), number))
    found, _, err = run_main(monkeypatch, capsys, "describe", "magic-tiny")
    assert (found, err) == (code, f"magic-nas: stopped by {by}\n")
