"""What the runs that train on `Trainer` have in common."""

import os
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from ..resuming import last_complete_checkpoint
from .checkpoints import load_finished


def training_arguments(kind: type, output_dir: str | Path, given: dict[str, Any]) -> Any:
    """Returns arguments of `kind` from those that a recipe gives and the defaults of runs.

    Raises:
        ValueError: a value is refused, or asks for what is not installed.
    """
    defaults = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 10,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    if given.get("ddp_backend") and "LOCAL_RANK" not in os.environ:
        raise ValueError(
            f"training_arguments: ddp_backend is {given['ddp_backend']!r}, but this is one process; start several "
            f"with `torchrun --nproc-per-node N -m magic_nas ...`, or leave ddp_backend out"
        )
    try:
        return kind(output_dir=str(output_dir), **{**defaults, **given})
    except (TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"training_arguments: {error}") from None


def finish_training(trainer: Trainer) -> float:
    """Trains from the start or from the last complete checkpoint to the end; returns the seconds that this took."""
    start = time.perf_counter()
    checkpoint = last_complete_checkpoint(str(trainer.args.output_dir), tells=True)
    if checkpoint is None or not load_finished(trainer, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    return time.perf_counter() - start


def tokens_per_step(args: TrainingArguments, block_size: int) -> int:
    """Returns the tokens of an optimizer step, over all micro-batches and devices."""
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size * block_size
