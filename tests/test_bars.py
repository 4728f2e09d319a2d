"""Bars are drawn where they can be, and are lines now and then elsewhere."""

import os
import re
import subprocess
import sys

import pytest

from training.bars import progress_bar, turn_bars_off


@pytest.fixture
def clock(monkeypatch):
    """Time as a bar sees it, in a list of one number."""
    now = [0.0]
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    return now


def test_without_a_terminal_a_line_comes_every_30_seconds(clock, capsys):
    with progress_bar(total=100, desc="children", leave=True) as bar:
        bar.set_postfix(best_loss="1.25", refresh=False)
        for _ in range(100):
            clock[0] += 1
            bar.update()
    lines = capsys.readouterr().err.split("\n")
    assert lines == [
        "children: 30 of 100, 00:30 so far, 01:10 to go, best_loss=1.25",
        "children: 60 of 100, 01:00 so far, 00:40 to go, best_loss=1.25",
        "children: 90 of 100, 01:30 so far, 00:10 to go, best_loss=1.25",
        "",
    ]


def test_without_a_terminal_short_work_says_nothing(clock, capsys):
    for _ in progress_bar(range(20), desc="files"):
        clock[0] += 1
    assert capsys.readouterr().err == ""


def test_on_a_terminal_a_bar_is_drawn(monkeypatch, capsys):
    monkeypatch.setattr("training.bars.can_draw", lambda: True)
    for _ in progress_bar(range(3), desc="files", mininterval=0):
        pass
    assert re.search(r"\rfiles: 100%.*3/3", capsys.readouterr().err)


@pytest.mark.parametrize("draws", [True, False])
def test_bars_that_are_off_show_nothing(draws, clock, monkeypatch, capsys):
    monkeypatch.setattr("training.bars.can_draw", lambda: draws)
    turn_bars_off()
    try:
        for _ in progress_bar(range(99), desc="files"):
            clock[0] += 9
    finally:
        turn_bars_off(False)
    for _ in progress_bar(range(99), desc="files", disable=True):
        clock[0] += 9
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_a_terminal_is_known():
    import pty

    code = "import sys; from training.bars import can_draw; print(can_draw())"
    parent, child = pty.openpty()
    run = [sys.executable, "-c", code]
    drawn = subprocess.run(run, stderr=child, stdout=subprocess.PIPE, text=True, check=True).stdout
    piped = subprocess.run(run, capture_output=True, text=True, check=True).stdout
    os.close(parent)
    os.close(child)
    assert (drawn, piped) == ("True\n", "False\n")
