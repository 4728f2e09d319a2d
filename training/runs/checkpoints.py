"""Checkpoints of a run: the search state next to `Trainer`'s own files, and loading the final checkpoint."""

import os
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..files import read_json
from ..internals import load_weights
from .early_stopping import has_stopped_early


NAS_STATE_NAME = "nas_state.json"


def read_nas_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Returns the search state of a checkpoint.

    Raises:
        ValueError: the checkpoint has no search state.
    """
    path = Path(checkpoint) / NAS_STATE_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a super-net checkpoint: it has no {NAS_STATE_NAME}")
    return read_json(path)


def load_finished(trainer: Trainer, checkpoint: str) -> bool:
    """Loads a checkpoint into `trainer` if it is the end of the run, and returns whether it is.

    `Trainer` itself would train one more step, since it checks for the end only after a step. With
    `load_best_model_at_end` the best weights are loaded, as at the end of a training.

    Raises:
        ValueError: the checkpoint with the best weights is missing.
    """
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    last_step = trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps
    if state.global_step < last_step and not has_stopped_early(state):
        return False
    weights = Path(checkpoint)
    if trainer.args.load_best_model_at_end and state.best_model_checkpoint is not None:
        # The folder may have been moved.
        weights = weights.with_name(Path(state.best_model_checkpoint).name)
        if not weights.is_dir():
            raise ValueError(
                f"{weights}, which has the best weights, is missing; delete {weights.parent} to train again"
            )
    load_weights(trainer, str(weights))
    trainer.state = state
    return True
