"""Which checkpoint is the end of a run, and the search state that checkpoints hold."""

import json
import shutil

import pytest
import torch
from transformers import Trainer, TrainingArguments

from training.runs.checkpoints import NAS_STATE_NAME, load_finished, read_nas_state


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


def trainer_of(folder, **arguments) -> Trainer:
    rows = [{"x": torch.tensor([float(number)]), "labels": torch.tensor([2.0 * number])} for number in range(4)]
    given = {"max_steps": 6, "save_steps": 2, "learning_rate": 0.1, **arguments}
    args = TrainingArguments(str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **given)
    return Trainer(Line(), args, train_dataset=rows, eval_dataset=rows)


def test_the_end_is_loaded_and_what_comes_before_is_not(tmp_path):
    trained = trainer_of(tmp_path)
    trained.train()
    slope = trained.model.slope.item()
    assert slope != 0
    other = trainer_of(tmp_path)
    assert not load_finished(other, str(tmp_path / "checkpoint-4"))
    assert (other.model.slope.item(), other.state.global_step) == (0, 0)
    assert load_finished(other, str(tmp_path / "checkpoint-6"))
    assert (other.model.slope.item(), other.state.global_step) == (slope, 6)
    # A longer run goes on there.
    assert not load_finished(trainer_of(tmp_path, max_steps=7), str(tmp_path / "checkpoint-6"))


def test_the_end_of_a_run_by_epochs_is_that_of_its_own_record(tmp_path):
    trainer_of(tmp_path, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=2, save_steps=1).train()
    other = trainer_of(tmp_path, max_steps=-1, num_train_epochs=2, per_device_train_batch_size=2)
    assert not load_finished(other, str(tmp_path / "checkpoint-3"))
    assert load_finished(other, str(tmp_path / "checkpoint-4"))


def test_the_end_of_a_run_that_keeps_its_best_model_is_that_model(tmp_path):
    # So large a rate that every step makes it worse.
    given = {"learning_rate": 30.0, "eval_strategy": "steps", "eval_steps": 2, "load_best_model_at_end": True}
    given |= {"metric_for_best_model": "loss", "optim": "sgd", "lr_scheduler_type": "constant"}

    trained, other, late = (trainer_of(tmp_path, **given) for _ in range(3))
    trained.train()
    assert trained.state.best_global_step == 2
    assert load_finished(other, str(tmp_path / "checkpoint-6"))
    assert other.model.slope.item() == trained.model.slope.item()
    shutil.rmtree(tmp_path / "checkpoint-2")
    with pytest.raises(ValueError, match="checkpoint-2, which has the best weights, is missing; delete"):
        load_finished(late, str(tmp_path / "checkpoint-6"))


def test_the_search_state_is_read_back(tmp_path):
    (tmp_path / NAS_STATE_NAME).write_text(json.dumps({"anchor": ["FFN"]}))
    assert read_nas_state(tmp_path) == {"anchor": ["FFN"]}
    with pytest.raises(ValueError, match=r"other is not a super-net checkpoint: it has no nas_state\.json"):
        read_nas_state(tmp_path / "other")
