"""The progress bar of a training run."""

from collections.abc import Sequence

from transformers import Trainer
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from .bars import can_draw, progress_bar


class PostfixProgressCallback(ProgressCallback):
    """One progress bar with the newest values of some logged quantities, instead of a line for each log."""

    def __init__(self, shown: Sequence[str]):
        """Takes the names of the logged values to show."""
        super().__init__()
        self._shown = shown
        self._newest: dict[str, float] = {}

    def on_train_begin(self, args, state, control, **kwargs):
        """Starts the bar of the training."""
        if state.is_world_process_zero:
            self.training_bar = progress_bar(total=state.max_steps, desc="steps", unit="step", dynamic_ncols=True)
        self.current_step = 0

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Counts the batches of an evaluation if a bar can be drawn."""
        if can_draw():
            super().on_prediction_step(args, state, control, eval_dataloader, **kwargs)

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Shows the newest values."""
        if state.is_world_process_zero and self.training_bar is not None:
            self._newest |= {name: logs[name] for name in self._shown if name in (logs or {})}
            self.training_bar.set_postfix(self._newest, refresh=False)


def show_progress(trainer: Trainer, shown: Sequence[str]) -> None:
    """Replaces the bar and the log lines of a trainer by the bar above, with some logged values.

    A trainer whose bar is off (`disable_tqdm`) stays without one.
    """
    trainer.pop_callback(PrinterCallback)
    had = [trainer.pop_callback(kind) for kind in (PostfixProgressCallback, ProgressCallback)]
    if any(had):
        trainer.add_callback(PostfixProgressCallback(shown))
