"""Checkpoints of a run: the search state beside `Trainer`'s own files, and the one that is the end of the run."""

import os
from pathlib import Path
from typing import Any

from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from ..files import read_json
from ..internals import load_weights


NAS_STATE_NAME = "nas_state.json"


def read_nas_state(checkpoint: str | os.PathLike) -> dict[str, Any]:
    """Returns the search state of a checkpoint.

    Raises:
        ValueError: the checkpoint has none.
    """
    path = Path(checkpoint) / NAS_STATE_NAME
    if not path.is_file():
        raise ValueError(f"{checkpoint} is not a super-net checkpoint: it has no {NAS_STATE_NAME}")
    return read_json(path)


def load_finished(trainer: Trainer, checkpoint: str) -> bool:
    """Loads a checkpoint into `trainer` if it is the end of the run, and returns whether it is.

    `Trainer` itself would train one step more: it looks whether the end is reached after a step only.
    """
    state = TrainerState.load_from_json(os.path.join(checkpoint, TRAINER_STATE_NAME))
    if state.global_step < (trainer.args.max_steps if trainer.args.max_steps > 0 else state.max_steps):
        return False
    load_weights(trainer, checkpoint)
    trainer.state = state
    return True
