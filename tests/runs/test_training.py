"""What trainings in run folders have in common: defaults, refusals in one line, going on, and tokens of a step."""

import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from training.runs.training import finish_training, tokens_per_step, training_arguments


class Line(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, labels):
        return {"loss": ((self.slope * x - labels) ** 2).mean()}


class Steps(TrainerCallback):
    def __init__(self, stop_at: int = 99) -> None:
        self.seen: list[int] = []
        self.stop_at = stop_at

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)
        if state.global_step == self.stop_at:
            raise KeyboardInterrupt


def trainer_of(folder, steps: Steps) -> Trainer:
    rows = [{"x": torch.tensor([float(number)]), "labels": torch.tensor([2.0 * number])} for number in range(4)]
    given = {"max_steps": 6, "save_steps": 2, "learning_rate": 0.1, "disable_tqdm": True, "use_cpu": True}
    args = training_arguments(TrainingArguments, folder, given)
    return Trainer(Line(), args, train_dataset=rows, callbacks=[steps])


def test_defaults_of_runs_give_way_to_what_is_given(tmp_path):
    args = training_arguments(TrainingArguments, tmp_path, {"logging_steps": 3, "max_steps": 5})
    assert (args.report_to, args.save_total_limit, args.logging_steps, args.max_steps) == ([], 2, 3, 5)
    assert args.output_dir == str(tmp_path)
    assert args.dataloader_pin_memory == torch.cuda.is_available()
    assert training_arguments(TrainingArguments, tmp_path, {"save_total_limit": None}).save_total_limit is None


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"learning_rat": 1.0}, "training_arguments: .*learning_rat"),
        ({"optim": "no such"}, "no such"),
        ({"save_strategy": "now and then"}, "now and then"),
    ],
)
def test_what_is_refused_is_a_value_error(tmp_path, given, message):
    with pytest.raises(ValueError, match=message):
        training_arguments(TrainingArguments, tmp_path, given)


def test_a_training_goes_on_from_its_last_whole_checkpoint_and_ends_once(tmp_path):
    whole = trainer_of(tmp_path / "whole", Steps())
    assert finish_training(whole) > 0
    stopped = Steps(stop_at=5)
    with pytest.raises(KeyboardInterrupt):
        finish_training(trainer_of(tmp_path / "stopped", stopped))
    steps = Steps()
    resumed = trainer_of(tmp_path / "stopped", steps)
    finish_training(resumed)
    assert steps.seen == [5, 6]
    assert torch.equal(resumed.model.slope, whole.model.slope)
    # `Trainer` by itself would train one step more.
    again = trainer_of(tmp_path / "stopped", never := Steps())
    finish_training(again)
    assert never.seen == []
    assert torch.equal(again.model.slope, whole.model.slope)


@pytest.mark.parametrize(("batch_size", "accumulation", "expected"), [(8, 1, 128), (4, 3, 192), (1, 1, 16)])
def test_tokens_of_a_step(tmp_path, batch_size, accumulation, expected):
    given = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation, "use_cpu": True}
    args = training_arguments(TrainingArguments, tmp_path, given)
    assert tokens_per_step(args, block_size=16) == expected
