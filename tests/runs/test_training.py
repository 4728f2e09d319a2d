"""What the runs that train on `Trainer` have in common."""

import importlib.util
from types import SimpleNamespace

import pytest
from datasets import Dataset
from transformers import TrainingArguments

from training.data.text import PreparedData
from training.runs import training as training_module
from training.runs.settings import FEWEST_STEPS
from training.runs.training import (
    pretraining_arguments,
    settle_length,
    tell_training,
    tokens_per_step,
    training_arguments,
)
from training.supernet.arguments import MagicTrainingArguments


def test_what_is_given_wins_over_the_defaults_of_runs(tmp_path):
    args = training_arguments(TrainingArguments, tmp_path, {"logging_steps": 3})
    assert (args.logging_steps, args.save_total_limit, args.report_to) == (3, 2, [])
    assert args.output_dir == str(tmp_path)


@pytest.mark.parametrize(
    ("kind", "given", "message"),
    [
        (TrainingArguments, {"nonsense": 1}, "training_arguments: .*nonsense"),
        (TrainingArguments, {"optim": "sdg"}, "sdg"),
        (
            TrainingArguments,
            {"ddp_backend": "gloo"},
            "ddp_backend is 'gloo', but there is only one process; start several",
        ),
        (TrainingArguments, {"push_to_hub": True}, "has push_to_hub, but a run sends nothing .* `magic-nas push"),
        (TrainingArguments, {"hub_token": "secret"}, "has hub_token, but (?!.*secret)"),
        (TrainingArguments, {"resume_from_checkpoint": "x"}, "a run resumes on its own when its command is repeated"),
        (
            TrainingArguments,
            {"lr_scheduler_type": "warmup_stable_decay"},
            "'warmup_stable_decay' cannot be used: .*decay",
        ),
        (
            TrainingArguments,
            {"lr_scheduler_type": "cosine", "lr_scheduler_kwargs": {"x": 1}},
            "'cosine' cannot be used",
        ),
        (TrainingArguments, {"log_level": "zz"}, "cannot be used: KeyError: 'zz'"),
        (TrainingArguments, {"dataloader_drop_last": True}, "would drop rows of the validation data"),
        (TrainingArguments, {"optim": "galore_adamw"}, "optim is .*galore_adamw.*install `galore_torch`.* Or remove"),
        (TrainingArguments, {"use_liger_kernel": True}, "needs the package liger-kernel; install it, or remove"),
        (MagicTrainingArguments, {"alignment_weight": -1}, "alignment_weight is -1; it must be at least 0"),
    ],
)
def test_what_is_refused_is_a_value_error(tmp_path, kind, given, message):
    with pytest.raises(ValueError, match=message):
        training_arguments(kind, tmp_path, given)


@pytest.mark.parametrize(
    ("report_to", "message"),
    [
        ("wandb", "report_to is 'wandb', which is not installed; run `pip install wandb`"),
        (["tensorboard", "mlflow"], "report_to is 'mlflow', which is not installed; run `pip install mlflow`"),
        ("azure_ml", "pip install azureml-sdk"),
        ("none_such", "report_to is 'none_such', which cannot be used: .* only azure_ml, comet_ml"),
        ("kubeflow", "report_to is 'kubeflow', which cannot be used: .*KUBEFLOW_TRAINER_SERVER_URL"),
    ],
)
def test_a_tracker_that_cannot_be_used_is_refused_with_the_remedy(tmp_path, monkeypatch, report_to, message):
    known = importlib.util.find_spec
    missing = ("wandb", "mlflow", "azureml")
    monkeypatch.setattr(training_module, "find_spec", lambda name: None if name in missing else known(name))
    with pytest.raises(ValueError, match=message):
        training_arguments(TrainingArguments, tmp_path, {"report_to": report_to})


@pytest.mark.parametrize("name", ["linear", "cosine", "constant_with_warmup", "polynomial", "reduce_lr_on_plateau"])
def test_schedulers_of_transformers_are_taken(tmp_path, name):
    given = {"lr_scheduler_type": name, "eval_strategy": "steps"}
    assert training_arguments(TrainingArguments, tmp_path, given).lr_scheduler_type == name


def test_trackers_that_are_there_are_taken_as_transformers_takes_them(tmp_path, monkeypatch):
    integrations = "transformers.integrations.integration_utils"
    monkeypatch.setattr(f"{integrations}.is_tensorboard_available", lambda: True)
    for given, found in (("none", []), (["none"], []), ("tensorboard", ["tensorboard"])):
        assert training_arguments(TrainingArguments, tmp_path, {"report_to": given}).report_to == found
    everything = training_arguments(TrainingArguments, tmp_path, {"report_to": "all"}).report_to
    assert everything == TrainingArguments(str(tmp_path), report_to="all").report_to


def test_tokens_of_a_step_are_of_all_micro_batches_and_devices():
    args = SimpleNamespace(train_batch_size=8, gradient_accumulation_steps=3, world_size=2)
    assert tokens_per_step(args, 16) == 8 * 3 * 2 * 16


@pytest.mark.parametrize(("hidden_size", "rate"), [(64, 2e-3), (192, 2e-3), (384, 1e-3), (768, 5e-4), (1536, 2.5e-4)])
def test_without_a_rate_the_defaults_are_those_of_the_recipes(tmp_path, hidden_size, rate):
    args = pretraining_arguments(TrainingArguments, tmp_path, {}, hidden_size)
    assert args.learning_rate == pytest.approx(rate)
    assert (args.get_warmup_steps(300), args.weight_decay, args.adam_beta2) == (30, 0.01, 0.98)
    given = {"adam_beta2": 0.999, "warmup_steps": 7}
    args = pretraining_arguments(TrainingArguments, tmp_path, given, hidden_size)
    assert args.learning_rate == pytest.approx(rate)
    assert (args.get_warmup_steps(300), args.weight_decay, args.adam_beta2) == (7, 0.01, 0.999)


def test_a_rate_that_is_given_comes_with_the_defaults_of_transformers(tmp_path):
    args = pretraining_arguments(TrainingArguments, tmp_path, {"learning_rate": 1e-4}, 64)
    plain = TrainingArguments(str(tmp_path))
    assert (args.learning_rate, args.warmup_steps) == (1e-4, plain.warmup_steps)
    assert (args.weight_decay, args.adam_beta2) == (plain.weight_decay, plain.adam_beta2)


def settled(given, num_blocks, folder, epochs=3):
    args = training_arguments(TrainingArguments, folder, {"per_device_train_batch_size": 16, **given})
    train = Dataset.from_dict({"input_ids": [[0]] * num_blocks})
    settle_length(args, given, PreparedData(None, train, train, {"block_size": 64}), epochs)
    return args


def test_a_length_that_nobody_names_is_some_epochs_but_no_fewer_steps_than_leave_the_plateau(tmp_path):
    short, long = settled({}, 160, tmp_path), settled({}, 16_000, tmp_path, epochs=9)
    assert short.max_steps == FEWEST_STEPS
    assert (long.max_steps, long.num_train_epochs) == (-1, 9)


def test_a_length_that_is_named_stays(tmp_path):
    assert settled({"max_steps": 5}, 160, tmp_path).max_steps == 5
    epochs = settled({"num_train_epochs": 2}, 160, tmp_path)
    assert (epochs.max_steps, epochs.num_train_epochs) == (-1, 2)


def test_what_is_trained_is_told_before(tmp_path, caplog):
    args = settled({"learning_rate": 1e-3}, 160, tmp_path)
    with caplog.at_level("INFO", "training"):
        tell_training(args, PreparedData(None, None, None, {"block_size": 64}))
    assert caplog.messages == ["training: 1,000 steps of 16 sequences of 64 tokens; learning rate 0.001"]
