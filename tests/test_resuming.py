"""Checkpoints are whole or passed over, and a training goes on from them to the same bits and logs."""

import errno
import json
import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from training.resuming import (
    LISTING_NAME,
    ResumableTrainer,
    check_whole,
    checkpoint_fault,
    has_checkpoints,
    last_complete_checkpoint,
)
from training.stopping import Stopped, signals_handled


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        # Noise of the global generator, which a checkpoint holds too.
        return {"loss": ((self.slope * x + 0.1 * torch.rand(1) - labels) ** 2).mean()}


def trainer_of(folder, kind=ResumableTrainer, callbacks=None, **arguments) -> Trainer:
    rows = [{"x": torch.tensor([float(number)]), "labels": torch.tensor([2.0 * number])} for number in range(4)]
    given = {"max_steps": 9, "save_steps": 2, "logging_steps": 3, "learning_rate": 0.1, **arguments}
    args = TrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **given)
    return kind(Line(), args, train_dataset=rows, callbacks=callbacks)


def losses(trainer):
    return {entry["step"]: entry["loss"] for entry in trainer.state.log_history if "loss" in entry}


def cut(path):
    path.write_bytes(path.read_bytes()[:-20])


def spoil(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


FILES = ("model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json")
DAMAGE = {
    "cut": cut,
    "spoilt": spoil,
    "gone": lambda path: path.unlink(),
    "emptied": lambda path: path.write_text("{}"),
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Folders that a training has ended in: of ours, and of `Trainer` itself."""
    folder = tmp_path_factory.mktemp("trained")
    for kind in (ResumableTrainer, Trainer):
        trainer_of(folder / kind.__name__, kind).train()
    return folder


def copy_of(trained, kind, tmp_path):
    return Path(shutil.copytree(trained / kind.__name__, tmp_path / "run"))


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("name", [*FILES, LISTING_NAME])
def test_a_damaged_checkpoint_is_passed_over(trained, tmp_path, name, damage):
    run = copy_of(trained, ResumableTrainer, tmp_path)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-9")
    DAMAGE[damage](run / "checkpoint-9" / name)
    # Without its list it is like one that `Trainer` alone leaves.
    newest = 9 if (name, damage) == (LISTING_NAME, "gone") else 8
    assert last_complete_checkpoint(run) == str(run / f"checkpoint-{newest}")


@pytest.mark.parametrize("damage", ["cut", "gone", "emptied"])
@pytest.mark.parametrize("name", FILES)
def test_damage_is_found_without_a_list(trained, tmp_path, name, damage):
    run = copy_of(trained, Trainer, tmp_path)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-9")
    DAMAGE[damage](run / "checkpoint-9" / name)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-8")


def test_an_empty_state_of_a_search_is_found_without_a_list(trained, tmp_path):
    run = copy_of(trained, Trainer, tmp_path)
    state = run / "checkpoint-9" / "nas_state.json"
    state.write_text('{"space": []}')
    assert checkpoint_fault(run / "checkpoint-9") is None
    state.write_text("{}")
    assert checkpoint_fault(run / "checkpoint-9") == "nas_state.json is empty"


def test_the_code_of_a_model_does_not_pass_for_its_weights(trained, tmp_path):
    run = copy_of(trained, Trainer, tmp_path)
    (run / "checkpoint-9" / "modeling_own.py").touch()
    (run / "checkpoint-9" / "model.safetensors").unlink()
    assert checkpoint_fault(run / "checkpoint-9") == "it has no weights"


def test_training_goes_on_from_the_whole_one_and_says_so(trained, tmp_path, caplog):
    run = copy_of(trained, ResumableTrainer, tmp_path)
    (run / "checkpoint-9" / "optimizer.pt").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-9 is not complete \(optimizer.pt is missing\)"):
        trainer_of(run).train(resume_from_checkpoint=str(run / "checkpoint-9"))
    assert last_complete_checkpoint(run) == str(run / "checkpoint-8")
    assert not caplog.records
    whole, resumed = trainer_of(tmp_path / "whole"), trainer_of(run)
    whole.train()
    with caplog.at_level(logging.WARNING, "training"):
        resumed.train(resume_from_checkpoint=True)
    (message,) = (record.message for record in caplog.records if record.name == "training.resuming")
    assert message == (
        f"{run / 'checkpoint-9'} is not complete (optimizer.pt is missing): training resumes from checkpoint-8"
    )
    assert torch.equal(resumed.model.slope, whole.model.slope)
    assert last_complete_checkpoint(run) == str(run / "checkpoint-9")


def test_a_state_of_another_step_is_not_whole(trained, tmp_path):
    run = copy_of(trained, Trainer, tmp_path)
    (run / "checkpoint-9").rename(run / "checkpoint-7")
    assert checkpoint_fault(run / "checkpoint-7") == "trainer_state.json belongs to step 9"
    state = json.loads((run / "checkpoint-8" / "trainer_state.json").read_text())
    (run / "checkpoint-8" / "trainer_state.json").write_text(json.dumps({**state, "global_step": 600}))
    assert checkpoint_fault(run / "checkpoint-8") == "trainer_state.json belongs to step 600"


def test_a_model_alone_is_nothing_to_go_on_from(tmp_path, caplog):
    trainer_of(tmp_path, save_only_model=True).train()
    assert "has no state of the optimizer" in checkpoint_fault(tmp_path / "checkpoint-9")
    assert last_complete_checkpoint(tmp_path, tells=True) is None
    assert caplog.messages[-1].endswith("there is no other checkpoint, so training starts over")


def test_checkpoints_are_found_by_number(tmp_path):
    trainer_of(tmp_path, max_steps=12, save_total_limit=None).train()
    for name in ("checkpoint-best", "checkpoint-2-copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "trainer_state.json").write_text("{}")
    (tmp_path / "checkpoint-99").write_text("no folder")
    assert last_complete_checkpoint(str(tmp_path)) == str(tmp_path / "checkpoint-12")
    (tmp_path / "checkpoint-100").mkdir()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-12")
    assert has_checkpoints(tmp_path)
    assert last_complete_checkpoint(tmp_path / "nowhere") is None
    assert not has_checkpoints(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"there is no checkpoint .*nowhere; give an existing one"):
        check_whole(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*nowhere; train without resuming"):
        trainer_of(tmp_path / "nowhere").train(resume_from_checkpoint=True)


@pytest.mark.parametrize("step", [2, 4, 6, 8])
def test_the_losses_that_are_logged_are_those_of_a_run_never_stopped(tmp_path, step):
    """Checkpoints stand in the middle of what is logged as one."""
    whole = trainer_of(tmp_path)
    whole.train()
    resumed = trainer_of(tmp_path)
    output = resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert losses(resumed) == losses(whole)
    assert torch.equal(resumed.model.slope, whole.model.slope)
    # Of the steps of this call alone.
    alone = sum(3 * loss for at, loss in losses(whole).items() if at > step)
    assert 0 < output.training_loss * (9 - step) <= alone * (1 + 1e-6)


class FailsToSave(ResumableTrainer):
    def _save_scaler(self, output_dir):
        if output_dir.endswith("checkpoint-4"):
            raise RuntimeError(
                "[enforce fail at inline_container.cc] . PytorchStreamWriter failed writing file data/1"
            )


def test_a_full_disk_leaves_the_older_checkpoint_and_names_the_new_one(tmp_path):
    trainer = trainer_of(tmp_path, FailsToSave, save_total_limit=1)
    with pytest.raises(OSError, match="No space left on device") as caught:
        trainer.train()
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "checkpoint-4"))
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-2"]
    assert checkpoint_fault(tmp_path / "checkpoint-2") is None
    assert trainer.args.save_total_limit == 1


def test_older_checkpoints_go_after_the_new_one_is_whole(tmp_path, monkeypatch):
    seen = []

    class Watching(ResumableTrainer):
        def _save_scaler(self, output_dir):
            seen.append(last_complete_checkpoint(tmp_path))

    trainer_of(tmp_path, Watching, save_total_limit=1).train()
    assert seen == [None, *(str(tmp_path / f"checkpoint-{step}") for step in (2, 4, 6, 8))]
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-9"]


class SignalAt(TrainerCallback):
    def __init__(self, number, step, moment="on_step_begin", times=1):
        self.number, self.step, self.times = number, step, times
        setattr(self, moment, self.send)

    def send(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_step_and_saves_it(tmp_path, number, capfd):
    whole = trainer_of(tmp_path / "whole")
    whole.train()
    with signals_handled(), pytest.raises(Stopped) as stopped:
        trainer_of(tmp_path, callbacks=[SignalAt(number, 4)]).train()
    assert stopped.value.number == number
    assert "stopping after the current step is finished and saved" in capfd.readouterr().err
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-5")
    resumed = trainer_of(tmp_path)
    resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == losses(whole)
    assert torch.equal(resumed.model.slope, whole.model.slope)


def test_a_second_signal_stops_at_once(tmp_path):
    with signals_handled(), pytest.raises(Stopped):
        trainer_of(tmp_path, callbacks=[SignalAt(signal.SIGINT, 4, times=2)]).train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-4")


def test_a_signal_in_the_last_step_stops_after_it(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[SignalAt(signal.SIGINT, 8)])
    with signals_handled(), pytest.raises(Stopped):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-9")


def test_a_training_that_saves_nothing_stops_at_once(tmp_path):
    trainer = trainer_of(tmp_path, callbacks=[SignalAt(signal.SIGINT, 4)], save_strategy="no")
    with signals_handled(), pytest.raises(Stopped):
        trainer.train()
    assert trainer.state.global_step == 4
    assert not has_checkpoints(tmp_path)
