"""One bar with the newest values, in place of the bar and the lines that a trainer had."""

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from training.progress import PostfixProgressCallback, show_progress


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.slope = nn.Parameter(torch.ones(1))

    def forward(self, x, labels=None):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


def trainer(folder, **arguments) -> Trainer:
    rows = [{"x": torch.tensor([1.0]), "labels": torch.tensor([2.0])}] * 4
    args = TrainingArguments(
        str(folder), max_steps=2, logging_steps=1, report_to="none", use_cpu=True, save_strategy="no", **arguments
    )
    return Trainer(Line(), args, train_dataset=rows)


def callbacks(owner: Trainer) -> list[type]:
    kinds = (PrinterCallback, ProgressCallback, PostfixProgressCallback)
    return [type(callback) for callback in owner.callback_handler.callbacks if type(callback) in kinds]


def test_a_trainer_has_one_bar_however_often_it_is_asked(tmp_path):
    owner = trainer(tmp_path)
    assert callbacks(owner) == [ProgressCallback]
    show_progress(owner, ["loss"])
    show_progress(owner, ["learning_rate"])
    assert callbacks(owner) == [PostfixProgressCallback]


def test_a_trainer_without_a_bar_gets_none_and_prints_nothing(tmp_path, capsys):
    owner = trainer(tmp_path, disable_tqdm=True)
    assert callbacks(owner) == [PrinterCallback]
    show_progress(owner, ["loss"])
    assert callbacks(owner) == []
    owner.train()
    assert "loss" not in capsys.readouterr().out


@pytest.mark.parametrize("shown", ["loss", "learning_rate"])
def test_the_newest_value_stands_beside_the_bar(tmp_path, capsys, monkeypatch, shown):
    monkeypatch.setattr("training.bars.can_draw", lambda: True)
    owner = trainer(tmp_path)
    show_progress(owner, [shown, "nothing"])
    owner.train()
    output = capsys.readouterr()
    assert f"{shown}=" in output.err
    assert "nothing" not in output.err
    assert "{'loss'" not in output.out


def test_without_a_terminal_a_training_of_hours_is_told_in_lines(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("training.bars.SECONDS_BETWEEN_LINES", 0)
    owner = trainer(tmp_path, per_device_eval_batch_size=1)
    show_progress(owner, ["loss"])
    owner.train()
    owner.evaluate(owner.train_dataset)
    lines = [line for line in capsys.readouterr().err.split("\n") if line]
    # Batches of evaluations are not counted.
    assert [line.split(",")[0] for line in lines][-2:] == ["steps: 1 of 2", "steps: 2 of 2"]
    assert all(line.startswith("steps: ") for line in lines)
    assert "loss=" in lines[-1]
    assert "\r" not in "".join(lines)
