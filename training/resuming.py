"""Checkpoints from which training resumes with bit-identical results, and checks that they are complete.

The list of a checkpoint's files, with their sizes and hashes, is written last. A checkpoint that is incomplete or was
damaged later differs from its list.
"""

import json
import logging
import os
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import Trainer, TrainerCallback
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput

from .files import full_disk_named, listing_fault, read_json, write_json, write_listing
from .internals import TrainerHooks, loss_since_log, set_loss_since_log
from .stopping import is_stop_asked, stop_if_asked, stops_deferred


logger = logging.getLogger(__name__)

LISTING_NAME = "files.json"
_WINDOW_NAME = "log_window_{rank}.json"


# ---- Checks of checkpoints ----


def last_complete_checkpoint(output_dir: str | os.PathLike, tells: bool = False) -> str | None:
    """Returns the newest complete checkpoint under `output_dir`, or `None`.

    Args:
        output_dir: the folder of the checkpoints.
        tells: whether to log a warning about newer checkpoints that are incomplete or damaged, with their faults.
    """
    tells = tells and os.environ.get("RANK", "0") == "0"
    faults: list[str] = []
    for folder in sorted(_checkpoints(Path(output_dir)), key=_step_of, reverse=True):
        fault = checkpoint_fault(folder)
        if fault is None:
            if faults and tells:
                logger.warning(f"{'; '.join(faults)}: training resumes from {folder.name}")
            return str(folder)
        faults.append(f"{folder} is not complete ({fault})")
    if faults and tells:
        logger.warning(f"{'; '.join(faults)}: there is no other checkpoint, so training starts over")
    return None


def has_checkpoints(output_dir: str | os.PathLike) -> bool:
    """Whether a training has completely written a checkpoint under `output_dir`, even if it was damaged later."""
    written = (LISTING_NAME, TRAINER_STATE_NAME)
    return any((folder / name).is_file() for folder in _checkpoints(Path(output_dir)) for name in written)


def checkpoint_fault(folder: Path) -> str | None:
    """Returns the fault of a checkpoint; `None` if training can resume from it as if it had not stopped."""
    try:
        fault = listing_fault(folder, LISTING_NAME)
    except OSError:
        # `Trainer` itself writes no list, nor did earlier versions of this package.
        fault = _fault_without_list(folder)
    return fault or _unfit(folder)


def check_whole(checkpoint: str | os.PathLike) -> None:
    """Raises a ValueError if a checkpoint is not complete."""
    if not Path(checkpoint).is_dir():
        raise ValueError(f"there is no checkpoint {checkpoint}; give an existing one, or omit it to start over")
    if (fault := checkpoint_fault(Path(checkpoint))) is not None:
        raise ValueError(f"{checkpoint} is not complete ({fault}); resume from another checkpoint, or start over")


def _checkpoints(output_dir: Path) -> list[Path]:
    return [path for path in output_dir.glob(f"{PREFIX_CHECKPOINT_DIR}-*") if path.is_dir() and _is_numbered(path)]


def _is_numbered(folder: Path) -> bool:
    return folder.name.removeprefix(f"{PREFIX_CHECKPOINT_DIR}-").isdecimal()


def _step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def _fault_without_list(folder: Path) -> str | None:
    """Returns a message about the first file that is not readable to its end, or state that is empty."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        try:
            if path.suffix == ".json" and not json.loads(path.read_text(encoding="utf-8")):
                if path.stem.endswith("state"):
                    return f"{path.name} is empty"
            elif path.suffix == ".safetensors":
                with safe_open(path, framework="pt"):
                    pass
        except (ValueError, RecursionError, SafetensorError):
            return f"{path.name} is truncated or damaged"
        # The format of torch.save, whose index is at the end of the file.
        if path.suffix in (".pt", ".pth") and not zipfile.is_zipfile(path):
            return f"{path.name} is truncated or damaged"
    return None


def _unfit(folder: Path) -> str | None:
    """Returns what a checkpoint lacks, or that its state belongs to another step."""
    names = {path.name for path in folder.iterdir()}
    if TRAINER_STATE_NAME not in names:
        return f"{TRAINER_STATE_NAME} is missing"
    # FSDP and DeepSpeed use other names for these.
    for what, prefixes in _PARTS.items():
        if not any(name.startswith(prefixes) for name in names):
            return f"it has no {what}"
    state = json.loads((folder / TRAINER_STATE_NAME).read_text(encoding="utf-8"))
    step = state.get("global_step") if isinstance(state, dict) else None
    if not isinstance(step, int) or (_is_numbered(folder) and step != _step_of(folder)):
        return f"{TRAINER_STATE_NAME} belongs to step {step}"
    return None


_PARTS = {
    "weights": ("model.", "model-", "pytorch_model", "adapter_", "global_step"),
    "state of the optimizer": ("optimizer", "global_step"),
    "state of the learning rate": ("scheduler", "global_step"),
    "state of the random numbers": ("rng_state",),
}


# ---- The trainer ----


class ResumableTrainer(TrainerHooks, Trainer):
    """A `Trainer` with atomic checkpoints, from which it resumes with bit-identical results and logs.

    When asked to stop (`stopping.signals_handled`), it finishes its step, saves a checkpoint and raises `Stopped`.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        """Takes the arguments of `Trainer`."""
        super().__init__(*args, **kwargs)
        self._resumed_from: str | None = None
        self.add_callback(_RunCallback(self))

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains like `Trainer.train`; `True` resumes from the newest complete checkpoint.

        Raises:
            ValueError: there is no complete checkpoint to resume from, or the given one is not complete.
            Stopped: a signal requested it.
        """
        self._resumed_from = self.checkpoint_to_resume(resume_from_checkpoint)
        # Several processes would stop after different steps and wait for each other forever.
        saves = self.args.save_strategy != SaveStrategy.NO and self.args.world_size == 1
        with stops_deferred() if saves else nullcontext():
            output = super().train(self._resumed_from, trial, ignore_keys_for_eval)
            stop_if_asked()
        return output

    def checkpoint_to_resume(self, resume_from_checkpoint: str | bool | None) -> str | None:
        """Returns the folder that the argument of `train` refers to; `None` to train from the start.

        Raises:
            ValueError: see `train`.
        """
        if resume_from_checkpoint is True:
            found = last_complete_checkpoint(str(self.args.output_dir), tells=True)
            if found is None:
                raise ValueError(f"no complete checkpoint in {self.args.output_dir}; train without resuming")
            return found
        if not resume_from_checkpoint:
            return None
        check_whole(resume_from_checkpoint)
        return str(resume_from_checkpoint)

    # ---- Logging ----

    def log_window(self) -> dict[str, Any]:
        """Returns the sums since the last log, as JSON."""
        loss, step = loss_since_log(self)
        return {"loss": loss, "step": step}

    def load_log_window(self, window: dict[str, Any] | None) -> None:
        """Restores the result of `log_window`; `None` resets all sums."""
        if window is not None:
            set_loss_since_log(self, window["loss"], window["step"])

    # ---- Checkpoints ----

    def begin_checkpoint(self, folder: Path) -> None:
        """Writes a subclass's additions to a checkpoint, before `Trainer` writes everything else."""

    @contextmanager
    def writing_checkpoint(self, output_dir: Path) -> Iterator[None]:
        """Adds what `Trainer` omits to a checkpoint, and finally the list; removes a checkpoint if writing fails."""
        folder = output_dir / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        try:
            with full_disk_named(folder):
                if self.args.should_save:
                    # A checkpoint of an earlier run must not be mistaken for this one's.
                    shutil.rmtree(folder, ignore_errors=True)
                    folder.mkdir(parents=True)
                    self.begin_checkpoint(folder)
                self.accelerator.wait_for_everyone()
                yield
                write_json(folder / _WINDOW_NAME.format(rank=self.args.process_index), self.log_window())
                self.accelerator.wait_for_everyone()
                if self.args.should_save:
                    write_listing(folder, LISTING_NAME)
        except BaseException:
            if self.args.should_save:
                shutil.rmtree(folder, ignore_errors=True)
            raise

    def _begin(self) -> None:
        """Resets the sums of the log, or restores those of the checkpoint that training resumes from."""
        window = None
        if self._resumed_from is not None:
            path = Path(self._resumed_from) / _WINDOW_NAME.format(rank=self.args.process_index)
            # A plain `Trainer` writes none, and a run may resume with more processes.
            window = read_json(path) if path.is_file() else None
        self.load_log_window(window)


class _RunCallback(TrainerCallback):
    """Calls the trainer at certain points of the training loop."""

    def __init__(self, trainer: ResumableTrainer):
        self._trainer = trainer
        self._has_begun = self._is_last = False

    def on_train_begin(self, args, state, control, **kwargs):
        self._has_begun = self._is_last = False

    def on_epoch_begin(self, args, state, control, **kwargs):
        # By now, other callbacks have restored the objects that hold the sums.
        if not self._has_begun:
            self._has_begun = True
            self._trainer._begin()

    def on_step_end(self, args, state, control, **kwargs):
        if is_stop_asked():
            control.should_save = self._is_last = True

    def on_step_begin(self, args, state, control, **kwargs):
        # By now, the previous step has been saved and all other callbacks have run.
        if self._is_last:
            stop_if_asked()
