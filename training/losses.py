"""`Trainer` with a loss that is a mean over the whole accumulated batch of all processes, and logs of its parts."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .resuming import ResumableTrainer


class AccumulatedLossTrainer(ResumableTrainer):
    """A `Trainer` that counts the items of a step, weights micro-batches by their share, and logs losses by name.

    The loss of a step is a mean over the items (tokens, sequences, labels) of all its micro-batches on all processes,
    so it does not depend on how the batch is split. A subclass defines in `count_items` what an item is. Its
    `compute_loss` returns the micro-batch's part of that mean (see `share`) and passes values for the log to
    `add_to_log`.

    Attributes:
        logged_losses: the names of the losses that are logged in addition to `Trainer`'s "loss". Each is the mean over
            the steps since the last log and over the processes, or 0 if nothing was added.
        drops_nan: whether a NaN term counts as 0; otherwise it makes the mean NaN.
        divides_in_double: whether sums are divided by the number of steps in double precision, on the host; otherwise
            they are divided in their own precision, on the device.
        num_steps_since_log: the number of optimizer steps begun since the last log.
    """

    # compute_loss divides by the items of the whole accumulated batch.
    loss_is_scaled_for_ga = True

    logged_losses: Sequence[str] = ()
    drops_nan: bool = False
    divides_in_double: bool = False

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes the arguments of `Trainer`.

        Raises:
            ValueError: the process has several GPUs, among which `Trainer` would split each batch.
        """
        super().__init__(*args, **kwargs)
        if self.args.n_gpu > 1:
            raise ValueError(
                f"this process sees {self.args.n_gpu} GPUs, but can train on only one; start one process per GPU with "
                f"`torchrun --nproc-per-node {self.args.n_gpu} -m magic_nas ...`, or choose one with "
                f"CUDA_VISIBLE_DEVICES=0"
            )
        self.forget_logged()

    # ---- One step ----

    def count_items(self, batch: Any) -> Tensor | None:
        """Returns the number of items in a micro-batch, or several numbers for items of several kinds.

        `None` leaves the count to `Trainer`, which counts labels if the model accepts their number.
        """
        return None

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns the micro-batches of a step and the number of items in all of them, over all processes."""
        batches, number = super().get_batch_samples(epoch_iterator, num_batches, device)
        if batches:
            self.num_steps_since_log += 1
        counts = [count for batch in batches if (count := self.count_items(batch)) is not None]
        if counts:
            number = self.accelerator.reduce(torch.stack(counts).sum(dim=0).to(device), reduction="sum")
        return batches, number

    def over_processes(self, loss: Any) -> Any:
        """Returns the loss, or a part of it, scaled to train on the sum over the processes."""
        # The gradients of several processes are averaged, but their sum is needed.
        return loss * self.accelerator.num_processes

    def share(self, part: Tensor | int, num_items: Tensor) -> Tensor:
        """Returns a micro-batch's sum of losses, or its number of items, divided by the step's number of items."""
        return self.over_processes(part) / num_items.clamp(min=1)

    # ---- Logging ----

    def add_to_log(self, name: str, term: Tensor) -> None:
        """Adds a micro-batch's loss, or its counts, to the sums for the next log."""
        term = term.detach()
        if self.drops_nan:
            term = term.nan_to_num(nan=0.0)
        # Summed on the device that computed them, so a step never waits for the device in order to log.
        total = self._sums.get(name, torch.zeros((), dtype=term.dtype))
        self._sums[name] = total.to(term.device) + term

    def sum_since_log(self, name: str) -> Tensor:
        """Returns the sum of the values added under a name since the last log, over all processes."""
        return self.accelerator.reduce(self._sums[name].to(self.args.device), reduction="sum")

    def figures_since_log(self) -> dict[str, float]:
        """Returns the figures to log for the steps since the last log: the mean losses, and those of a subclass."""
        if not self.logged_losses:
            return {}
        sums = torch.stack([self._sums[name].to(self.args.device) for name in self.logged_losses])
        sums, steps = self.accelerator.reduce(sums, reduction="mean"), self.num_steps_since_log
        means = [total / steps for total in sums.tolist()] if self.divides_in_double else (sums / steps).tolist()
        return dict(zip(self.logged_losses, means, strict=True))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs like `Trainer.log`; with a training loss, it also logs the figures since the last log, each once."""
        if "loss" in logs and self.num_steps_since_log:
            logs |= self.figures_since_log()
            self.forget_logged()
        super().log(logs, start_time)

    def log_window(self) -> dict[str, Any]:
        """Returns the sums since the last log, as JSON."""
        sums = {name: [str(total.dtype).removeprefix("torch."), total.tolist()] for name, total in self._sums.items()}
        return {**super().log_window(), "sums": sums, "num_steps": self.num_steps_since_log}

    def load_log_window(self, window: dict[str, Any] | None) -> None:
        """Restores the result of `log_window`; `None` resets all sums."""
        super().load_log_window(window)
        self.forget_logged()
        if window is not None:
            self.num_steps_since_log = window["num_steps"]
            for name, (dtype, total) in window["sums"].items():
                self._sums[name] = torch.tensor(total, dtype=getattr(torch, dtype))

    def forget_logged(self) -> None:
        """Resets all sums."""
        self._sums = {name: torch.zeros(()) for name in self.logged_losses}
        self.num_steps_since_log = 0
