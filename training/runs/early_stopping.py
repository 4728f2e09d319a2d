"""Early stopping, for trainings that may be stopped and resumed."""

from typing import Any, cast

from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerState


class EarlyStopping(EarlyStoppingCallback):
    """The early stopping of transformers, with a patience counter that is restored when a training resumes.

    With several evaluation sets, which are reported separately, the one of `metric_for_best_model` counts.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Restores the patience counter of the checkpoint that training resumes from."""
        super().on_train_begin(args, state, control, **kwargs)
        saved = _saved(state) if state.global_step else None
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"] if saved else 0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Counts an evaluation if it reports the metric."""
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def has_stopped_early(state: TrainerState) -> bool:
    """Returns whether a checkpoint's state is that of a training ended by early stopping."""
    saved = _saved(state)
    if saved is None:
        return False
    return saved["attributes"]["early_stopping_patience_counter"] >= saved["args"]["early_stopping_patience"]


def _saved(state: TrainerState) -> dict[str, Any] | None:
    # Trainer saves the state of a callback under the name of its class.
    saved = cast(dict[str, Any], state.stateful_callbacks)
    return saved.get(EarlyStopping.__name__)
