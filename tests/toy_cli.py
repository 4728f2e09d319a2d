"""The command line, run in the test's own process, and a compression that takes seconds."""

import random
import sys
from pathlib import Path

import pytest
from toy_hub import SENTENCES
from toy_sources import save_sentence_checkpoint

from training.cli.main import main


# A few steps of everything, on a checkpoint and a text of `write_compression`.
SHORT = ["--steps", "4", "--supernet-steps", "4", "--batch-size", "16", "--set", "calibration_steps=2"]
SHORT += ["--set", "num_evaluations=12", "--set", "latency_length=8"]


def run_main(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    """Runs `magic-nas` with arguments; returns the exit status and what went to standard output and error."""
    monkeypatch.setattr(sys, "argv", ["magic-nas", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


def write_compression(folder: Path) -> None:
    """Fills a folder with what a compression begins with: `minilm`, `text` and the task `dev.tsv`."""
    save_sentence_checkpoint(folder / "minilm")
    words = sorted({word for text in SENTENCES for word in text.lower().replace(".", "").replace(",", "").split()})
    rng = random.Random(0)
    sentences = [" ".join(rng.choices(words, k=rng.randint(4, 9))) for _ in range(400)]
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n".join(sentences))
    pairs = [f"{sentences[row]}\t{sentences[row + 1]}\t{row % 5}" for row in range(20)]
    (folder / "dev.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *pairs]) + "\n")


def without_int8(monkeypatch) -> None:
    """Keeps a compression from exporting to ONNX, and from measuring latency for long."""

    def missing(int8: bool = False) -> None:
        raise ValueError("not in this test")

    monkeypatch.setattr("training.compression.judging.check_packages", missing)
    monkeypatch.setattr("training.compression.judging._NUM_ROUNDS", 2)
