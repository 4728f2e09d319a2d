"""The command line, run in the test's own process."""

import sys

import pytest

from training.cli.main import main


def run_main(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs `magic-nas` with arguments; returns the exit status and what went to standard output and error."""
    monkeypatch.setattr(sys, "argv", ["magic-nas", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err
