"""Common parts of runs that train with `Trainer`."""

import logging
import math
import os
import time
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple, cast

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments, get_scheduler
from transformers.integrations import get_reporting_integration_callbacks
from transformers.utils import is_liger_kernel_available

from ..data.text import PreparedData
from ..resuming import last_complete_checkpoint
from .checkpoints import load_finished
from .settings import EPOCHS, FEWEST_STEPS


logger = logging.getLogger(__name__)


# The paper's peak learning rate and model width, and the learning rate of the recipes for narrow models.
_RATE, _RATE_WIDTH, _LARGEST_RATE = 5e-4, 768, 2e-3


class _Tracker(NamedTuple):
    """The module that a tracker imports and the package that provides it."""

    module: str
    package: str


# Trackers that need one package. The callbacks of some raise errors in their destructors if it is missing.
_TRACKERS = {
    **{name: _Tracker(name, name) for name in ("clearml", "codecarbon", "dvclive", "mlflow", "neptune", "swanlab")},
    **{name: _Tracker(name, name) for name in ("trackio", "wandb")},
    "azure_ml": _Tracker("azureml", "azureml-sdk"),
    "comet_ml": _Tracker("comet_ml", "comet-ml"),
    "dagshub": _Tracker("dagshub", "dagshub mlflow"),
    "flyte": _Tracker("flytekit", "flytekit"),
}


def training_arguments(kind: type, output_dir: str | Path, given: dict[str, Any]) -> Any:
    """Returns arguments of `kind` from those in a recipe and the defaults of runs.

    Raises:
        ValueError: a value is invalid, or needs something that is not installed.
    """
    defaults = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 10,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if given.get("ddp_backend") and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"training_arguments: ddp_backend is {given['ddp_backend']!r}, but there is only one process; start "
            f"several with `torchrun --nproc-per-node N -m magic_nas ...`, or remove ddp_backend"
        )
    for name in given:
        if name == "push_to_hub" or name.startswith("hub_"):
            raise ValueError(
                f"training_arguments has {name}, but a run sends nothing to the Hub; remove it, and send the finished "
                f"model with `magic-nas push FOLDER NAME`"
            )
    if given.get("resume_from_checkpoint"):
        raise ValueError(
            "training_arguments has resume_from_checkpoint, but a run resumes on its own when its command is "
            "repeated; remove it"
        )
    if given.get("dataloader_drop_last"):
        raise ValueError(
            "training_arguments: dataloader_drop_last would drop rows of the validation data as well; remove it"
        )
    try:
        args = kind(output_dir=str(output_dir), **{**defaults, **given})
        args.get_process_log_level()
    except (KeyError, AttributeError) as error:
        raise ValueError(f"training_arguments cannot be used: {type(error).__name__}: {error}") from None
    except (TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"training_arguments: {error}") from None
    _check_trackers(args)
    _check_packages(args)
    _check_scheduler(args)
    return args


def _check_scheduler(args: TrainingArguments) -> None:
    """Raises a ValueError if the learning-rate scheduler lacks an argument or has one that it does not take."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    kind, given = args.lr_scheduler_type, cast(dict, args.lr_scheduler_kwargs)
    try:
        get_scheduler(kind, optimizer, num_warmup_steps=1, num_training_steps=10, scheduler_specific_kwargs=given)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"training_arguments: lr_scheduler_type {getattr(kind, 'value', kind)!r} cannot be used: {error}; correct "
            f"lr_scheduler_kwargs, or choose another"
        ) from None


def _check_packages(args: TrainingArguments) -> None:
    """Raises a ValueError if the optimizer or the kernels are from a package that is not installed."""
    try:
        # `Trainer` also does this, but only after all data is prepared.
        with suppress(ValueError):
            # Some optimizers need the model, if their package is there.
            Trainer.get_optimizer_cls_and_kwargs(args)
    except ImportError as error:
        raise ValueError(
            f"training_arguments: optim is {getattr(args.optim, 'value', args.optim)!r}. {error} Or remove optim"
        ) from None
    if args.use_liger_kernel and not is_liger_kernel_available():
        raise ValueError(
            "training_arguments: use_liger_kernel needs the package liger-kernel; install it, or remove "
            "use_liger_kernel"
        )


def _check_trackers(args: TrainingArguments) -> None:
    """Raises a ValueError if `report_to` names a tracker that is unknown, not installed or not set up."""
    for name in args.report_to or ():
        asked = f"training_arguments: report_to is {name!r}"
        if name in _TRACKERS and find_spec(_TRACKERS[name].module) is None:
            raise ValueError(
                f"{asked}, which is not installed; run `pip install {_TRACKERS[name].package}`, or remove report_to"
            )
        try:
            # `Trainer` also creates them, but only after all data is prepared. Nothing is sent before training begins.
            for callback in get_reporting_integration_callbacks([name]):
                callback()
        except (ValueError, ImportError, RuntimeError) as error:
            raise ValueError(f"{asked}, which cannot be used: {error} Or remove report_to") from None


def pretraining_arguments(kind: type, output_dir: str | Path, given: dict[str, Any], hidden_size: int) -> Any:
    """Returns arguments like `training_arguments`, for a masked LM of the given width.

    If no learning rate is given, the defaults are those of the recipes: transformers' own rate, 5e-5, is meant for
    fine-tuning and hardly changes random weights.

    Raises:
        ValueError: as in `training_arguments`.
    """
    if "learning_rate" not in given:
        # The paper's learning rate at its width; narrower models tolerate, and need, a larger one.
        rate = min(_LARGEST_RATE, _RATE * _RATE_WIDTH / hidden_size)
        defaults = {"learning_rate": rate, "warmup_steps": 0.1, "weight_decay": 0.01, "adam_beta2": 0.98}
        given = {**defaults, **given}
    return training_arguments(kind, output_dir, given)


def settle_length(args: TrainingArguments, given: dict[str, Any], data: PreparedData, epochs: int = EPOCHS) -> None:
    """Sets the length of a training if none is given: some epochs, or the fewest steps that pass the first plateau.

    A streamed text has no epochs, so its training length must be given.

    Args:
        args: arguments of the training, in which the length is set.
        given: arguments given by the user.
        data: the training data.
        epochs: number of epochs, if they have enough steps.
    """
    if given.get("max_steps", -1) > 0 or "num_train_epochs" in given or not isinstance(data.train, Dataset):
        return
    args.num_train_epochs = epochs
    if math.ceil(len(data.train) / tokens_per_step(args, block_size=1)) * epochs < FEWEST_STEPS:
        args.max_steps = FEWEST_STEPS


def tell_training(args: TrainingArguments, data: PreparedData) -> None:
    """Logs the length, batch size and learning rate of a training before it begins."""
    if args.process_index != 0:
        return
    length = f"{args.max_steps:,} steps" if args.max_steps > 0 else f"{args.num_train_epochs:g} epochs"
    logger.info(
        f"training: {length} of {tokens_per_step(args, block_size=1)} sequences of {data.block_size} tokens; learning "
        f"rate {args.learning_rate:g}"
    )


def finish_training(trainer: Trainer) -> float:
    """Trains to the end, from the start or the last complete checkpoint; returns the seconds that this took."""
    start = time.perf_counter()
    checkpoint = last_complete_checkpoint(str(trainer.args.output_dir), tells=True)
    if checkpoint is None or not load_finished(trainer, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    return time.perf_counter() - start


def tokens_per_step(args: TrainingArguments, block_size: int) -> int:
    """Returns the number of tokens per optimizer step, over all micro-batches and devices."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * block_size
