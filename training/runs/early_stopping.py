"""A training that ends when its metric no longer improves, also where it was stopped in between."""

from typing import Any, cast

from transformers import EarlyStoppingCallback
from transformers.trainer_callback import TrainerState


class EarlyStopping(EarlyStoppingCallback):
    """The early stopping of transformers, whose patience a training that was stopped goes on with.

    Of several evaluation sets, each of which is told by itself, the one of `metric_for_best_model` counts.
    """

    def on_train_begin(self, args, state, control, **kwargs):
        """Goes on with the patience of the checkpoint that training resumes from."""
        super().on_train_begin(args, state, control, **kwargs)
        saved = _saved(state) if state.global_step else None
        self.early_stopping_patience_counter = saved["attributes"]["early_stopping_patience_counter"] if saved else 0

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        """Counts an evaluation that has the metric."""
        if f"eval_{args.metric_for_best_model.removeprefix('eval_')}" in metrics:
            super().on_evaluate(args, state, control, metrics, **kwargs)


def has_stopped_early(state: TrainerState) -> bool:
    """Whether a checkpoint's state is that of a training which early stopping has ended."""
    saved = _saved(state)
    if saved is None:
        return False
    return saved["attributes"]["early_stopping_patience_counter"] >= saved["args"]["early_stopping_patience"]


def _saved(state: TrainerState) -> dict[str, Any] | None:
    # Trainer writes what a callback has to say under the name of its class.
    saved = cast(dict[str, Any], state.stateful_callbacks)
    return saved.get(EarlyStopping.__name__)
