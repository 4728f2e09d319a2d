"""A loss over the whole accumulated batch: items counted, micro-batches weighed, losses logged by name, each once."""

import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from training.losses import AccumulatedLossTrainer


IGNORED = -100.0


class Line(nn.Module):
    """Predicts each number of a row from the number itself."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.5, -0.25]))

    def forward(self, x: Tensor, labels: Tensor | None = None) -> Tensor:
        return self.weight[0] * x + self.weight[1]


class TwoLosses(AccumulatedLossTrainer):
    """The squared and the absolute error, each a mean over the labelled numbers of a step."""

    logged_losses = ("loss_square", "loss_absolute")

    def count_items(self, batch):
        return (batch["labels"] != IGNORED).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labelled = inputs["labels"] != IGNORED
        errors = (model(inputs["x"]) - inputs["labels"])[labelled]
        square, absolute = self.share(torch.stack([errors.square().sum(), errors.abs().sum()]), num_items_in_batch)
        self.add_to_log("loss_square", square)
        self.add_to_log("loss_absolute", absolute)
        self.add_to_log("counts", torch.stack([labelled.sum(), torch.tensor(len(inputs["x"]))]))
        return square + 0.5 * absolute

    def figures_since_log(self):
        num_items, num_rows = self.sum_since_log("counts").tolist()
        steps = {"steps": self.num_steps_since_log}
        return {**super().figures_since_log(), "num_items": num_items, "num_rows": num_rows, **steps}


class MeanLosses(AccumulatedLossTrainer):
    """Logs a mean that is no number where a micro-batch has no label, and trains on a sum that is one."""

    logged_losses = ("loss_mean",)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        errors = (model(inputs["x"]) - inputs["labels"])[inputs["labels"] != IGNORED]
        self.add_to_log("loss_mean", errors.square().mean())
        return errors.square().sum()


class WithoutNaN(MeanLosses):
    drops_nan = True


class InDouble(TwoLosses):
    divides_in_double = True


def rows(number: int = 24) -> list[dict[str, Tensor]]:
    """Rows of four numbers, of which one to four are labelled."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for index in range(number):
        x = torch.randn(4, generator=generator)
        labelled = torch.arange(4) <= index % 4
        found.append({"x": x, "labels": torch.where(labelled, 2 * x + 1, IGNORED)})
    return found


def toy(folder, kind: Any = TwoLosses, data=None, callbacks=None, **arguments) -> Any:
    settings = {
        "max_steps": 6,
        "per_device_train_batch_size": 8,
        "logging_steps": 2,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": "sgd",
        "lr_scheduler_type": "constant",
        "learning_rate": 0.05,
        "train_sampling_strategy": "sequential",
        **arguments,
    }
    args = TrainingArguments(str(folder), **settings)
    return kind(Line(), args, train_dataset=rows() if data is None else data, callbacks=callbacks)


def logged(trainer: Trainer) -> list[dict[str, float]]:
    return [entry for entry in trainer.state.log_history if "loss" in entry]


def losses_by_hand(weight: Tensor, data: list[dict[str, Tensor]]) -> list[float]:
    errors = [
        float(weight[0].double() * x + weight[1].double() - label)
        for row in data
        for x, label in zip(row["x"].double(), row["labels"].double(), strict=True)
        if label != IGNORED
    ]
    return [math.fsum(error**2 for error in errors) / len(errors), math.fsum(map(abs, errors)) / len(errors)]


# ---- Accumulation ----


@pytest.mark.parametrize("size", [1, 2, 4])
def test_it_does_not_matter_how_a_batch_is_cut(tmp_path, size):
    """Labels are not spread evenly over the micro-batches, so a mean of means would differ."""
    whole = toy(tmp_path)
    parts = toy(tmp_path, per_device_train_batch_size=size, gradient_accumulation_steps=8 // size)
    for trainer in (whole, parts):
        trainer.train()
    torch.testing.assert_close(parts.model.weight, whole.model.weight, rtol=0, atol=1e-6)
    assert (whole.model.weight - Line().weight).abs().min() > 0.01
    for one, other in zip(logged(whole), logged(parts), strict=True):
        for name in ("loss", "loss_square", "loss_absolute", "grad_norm"):
            assert one[name] == pytest.approx(other[name], rel=1e-5)
        for name in ("num_items", "num_rows", "steps"):
            assert one[name] == other[name]


def test_a_step_is_the_mean_over_its_labels(tmp_path):
    before = Line().weight.detach()
    trainer = toy(tmp_path, max_steps=1, logging_steps=1, per_device_train_batch_size=3, gradient_accumulation_steps=2)
    trainer.train()
    entry = logged(trainer)[0]
    square, absolute = losses_by_hand(before, rows()[:6])
    assert [entry["loss_square"], entry["loss_absolute"]] == pytest.approx([square, absolute], rel=1e-6)
    assert entry["loss"] == pytest.approx(square + 0.5 * absolute, rel=1e-6)
    assert entry["num_items"] == 1 + 2 + 3 + 4 + 1 + 2


def test_a_step_without_a_label_has_no_loss(tmp_path):
    data = [{**row, "labels": torch.full((4,), IGNORED)} for row in rows()]
    trainer = toy(tmp_path, data=data)
    trainer.train()
    assert torch.equal(trainer.model.weight, Line().weight)
    assert [entry["loss_square"] for entry in logged(trainer)] == [0, 0, 0]


def test_a_trainer_that_counts_nothing_leaves_the_count_to_transformers(tmp_path):
    class Seen(MeanLosses):
        def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
            numbers.append(num_items_in_batch)
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)

    for accepts in (False, True):
        numbers: list[Any] = []
        trainer = toy(tmp_path, Seen, max_steps=1)
        trainer.model_accepts_loss_kwargs = accepts
        trainer.train()
        assert numbers == ([20] if accepts else [None])


# ---- What is logged ----


def test_logs_are_the_means_of_their_own_steps(tmp_path):
    """With weights that stand still, each log is known: of three steps, of three, and none of the last two."""
    trainer = toy(tmp_path, max_steps=8, logging_steps=3, learning_rate=0.0, per_device_train_batch_size=4)
    trainer.train()
    batches = [rows()[start : start + 4] for start in [0, 4, 8, 12, 16, 20, 0, 4]]
    means = [losses_by_hand(Line().weight.detach(), batch) for batch in batches]
    for entry, steps in zip(logged(trainer), (means[:3], means[3:6]), strict=True):
        expected = [sum(step[index] for step in steps) / 3 for index in range(2)]
        assert [entry["loss_square"], entry["loss_absolute"]] == pytest.approx(expected, rel=1e-5)
        assert (entry["steps"], entry["num_rows"], entry["num_items"]) == (3, 12, 30)


def test_the_last_step_of_an_epoch_is_one_step(tmp_path):
    # Five batches an epoch, accumulated by three: steps of three and of two.
    trainer = toy(tmp_path, data=rows(10), per_device_train_batch_size=2, gradient_accumulation_steps=3)
    trainer.train()
    assert [(entry["steps"], entry["num_rows"]) for entry in logged(trainer)] == [(2, 10)] * 3


def test_nothing_is_logged_twice_or_of_an_earlier_training(tmp_path):
    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == stop

    stop = 3
    trainer = toy(tmp_path, callbacks=[Stop()])
    trainer.train()
    assert [entry["steps"] for entry in logged(trainer)] == [2]
    assert trainer.num_steps_since_log == 1
    stop = 0
    trainer.train()
    assert [entry["steps"] for entry in logged(trainer)] == [2, 2, 2]
    assert sum(entry["num_rows"] for entry in logged(trainer)) == 6 * 8
    assert trainer.num_steps_since_log == 0


def test_other_logs_have_no_losses(tmp_path):
    trainer = toy(tmp_path)
    # Before the first step, and of an evaluation.
    for logs in ({"loss": 1.0}, {"eval_loss": 1.0}):
        trainer.log(logs)
        assert "loss_square" not in logs
    trainer.train()
    ends = [entry for entry in trainer.state.log_history if "train_runtime" in entry]
    assert ends
    assert not any("loss_square" in entry for entry in ends)


def test_a_loss_that_nothing_was_added_to_reads_0(tmp_path):
    class Unused(TwoLosses):
        logged_losses = ("loss_square", "loss_absolute", "loss_of_nothing")

    trainer = toy(tmp_path, Unused)
    trainer.train()
    assert [entry["loss_of_nothing"] for entry in logged(trainer)] == [0, 0, 0]
    assert list(logged(trainer)[0])[3:6] == ["loss_square", "loss_absolute", "loss_of_nothing"]


@pytest.mark.parametrize("kind", [MeanLosses, WithoutNaN])
def test_a_micro_batch_without_a_loss(tmp_path, kind):
    data = rows(8)
    data[2] = {**data[2], "labels": torch.full((4,), IGNORED)}
    arguments = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "learning_rate": 0.0}
    trainer = toy(tmp_path, kind, data, max_steps=4, **arguments)
    trainer.train()
    first, second = (entry["loss_mean"] for entry in logged(trainer))
    means = [losses_by_hand(Line().weight.detach(), [row])[0] for row in (*data[:2], *data[3:])]
    if kind is WithoutNaN:
        assert first == pytest.approx(sum(means[:3]) / 2, rel=1e-6)
    else:
        assert math.isnan(first)
    # What comes later is none the worse for it.
    assert second == pytest.approx(sum(means[3:]) / 2, rel=1e-6)
    assert torch.isfinite(trainer.model.weight).all()


@pytest.mark.parametrize("kind", [TwoLosses, InDouble])
def test_means_are_of_the_precision_that_is_asked_for(tmp_path, kind):
    trainer = toy(tmp_path, kind)
    for _ in range(3):
        trainer.num_steps_since_log += 1
        trainer.add_to_log("loss_square", torch.tensor(0.1, requires_grad=True))
        trainer.add_to_log("loss_absolute", torch.tensor(0.7))
        trainer.add_to_log("counts", torch.tensor([1, 1]))
    figures = trainer.figures_since_log()
    total = torch.tensor(0.1) + torch.tensor(0.1) + torch.tensor(0.1)
    expected = total.item() / 3 if kind is InDouble else (total / 3).item()
    assert figures["loss_square"] == expected
    assert total.item() / 3 != (total / 3).item()


# ---- Several processes ----


def test_a_process_with_several_devices_is_refused(tmp_path, monkeypatch):
    """`Trainer` would copy the model to each and take the mean of what are parts of a mean."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: 2))
    with pytest.raises(
        ValueError, match=r"sees 2 GPUs.*torchrun --nproc-per-node 2 -m magic_nas.*CUDA_VISIBLE_DEVICES=0"
    ):
        toy(tmp_path)


PLAIN: dict[str, Any] = {"gradient_accumulation_steps": 2, "logging_steps": 3}


def distributed(folder: Path) -> None:
    """One of the processes under torchrun."""
    trainer = toy(folder, per_device_train_batch_size=2, use_cpu=True, ddp_backend="gloo", **PLAIN)
    trainer.train()
    torch.save({"weight": trainer.model.weight.detach(), "log": logged(trainer)}, folder / f"{os.environ['RANK']}.pt")


@pytest.mark.slow
def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    alone = toy(tmp_path, per_device_train_batch_size=4, **PLAIN)
    alone.train()
    assert torch.equal(first["weight"], second["weight"])
    torch.testing.assert_close(first["weight"], alone.model.weight.detach(), rtol=0, atol=1e-6)
    names = ("loss", "loss_square", "loss_absolute", "grad_norm", "num_items", "num_rows", "steps")
    for entry, other in zip(logged(alone), first["log"], strict=True):
        assert {name: other[name] for name in names} == pytest.approx({name: entry[name] for name in names}, rel=1e-5)


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
