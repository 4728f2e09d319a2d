"""All uses of the internals of transformers and torch, each in one place.

None of them is a documented interface, and any release may change them. Names and line numbers refer to transformers
5.23.0 and torch 2.13.0. tests/test_internals.py reports what has moved, and finds private names used anywhere else.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.utils.data import Sampler


if TYPE_CHECKING:
    from transformers import PreTrainedConfig, Trainer
else:
    # Most of this is for modules that do not need Trainer, whose import takes a second.
    Trainer = object


class TrainerHooks(Trainer):
    """Hooks into `Trainer` where it has no callback or argument; list this class before `Trainer` in the bases.

    Attributes:
        total_grad_norm: the norm of this step's gradients before clipping, for
            `TrainerCallback.on_pre_optimizer_step`.
        input_columns: the columns that the collator gets; `None` for the arguments of the model's `forward`.
    """

    total_grad_norm: Any = None
    input_columns: Sequence[str] | None = None

    def writing_checkpoint(self, output_dir: Path) -> AbstractContextManager[None]:
        """Returns the context in which all processes write a checkpoint under `output_dir`.

        The context ends before older checkpoints are deleted.
        """
        return nullcontext()

    def train_order(self) -> Sampler | None:
        """Returns a sampler with the order of the training rows, over all processes and steps.

        `None` means the order given by the arguments.
        """
        return None

    def _get_grad_norm(self, model, grad_norm=None):
        # Trainer._get_grad_norm, trainer.py:2781. Callbacks see clipped gradients; the norm before clipping is a local
        # variable of the loop and is only visible in the log.
        self.total_grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        return self.total_grad_norm

    def _save_checkpoint(self, model, trial):
        # Trainer._save_checkpoint and _get_output_dir, trainer.py:3355 and 3336. on_save is called after older
        # checkpoints are deleted, and save_model is called for other folders as well.
        from transformers.trainer_utils import rotate_checkpoints

        output_dir, limit = self._get_output_dir(trial), self.args.save_total_limit
        with self.writing_checkpoint(Path(output_dir)):
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
        if self.args.should_save:
            rotate_checkpoints(output_dir, limit, self.state.best_model_checkpoint, use_mtime=True)

    def _get_train_sampler(self, train_dataset=None):
        # Trainer._get_train_sampler, trainer.py:1071. The public get_train_dataloader would have to form the batches,
        # drop the columns and set up the workers as well.
        order = self.train_order()
        return super()._get_train_sampler(train_dataset) if order is None else order

    def _set_signature_columns_if_needed(self):
        # Trainer._set_signature_columns_if_needed and _signature_columns, trainer.py:1179. The public argument,
        # remove_unused_columns, keeps either all columns or those of forward. A collator that drops the others would
        # hide the tokenizer that Trainer saves with a checkpoint, and would leave a column of lengths to the sampler.
        if self.input_columns is None:
            super()._set_signature_columns_if_needed()
        else:
            self._signature_columns = list(self.input_columns)


def model_collator(trainer: Trainer) -> Any:
    """Returns a trainer's collator, limited to the columns that the trainer would pass to it.

    Trainer._get_collator_with_removed_columns, trainer.py:1230. The data loader of `get_eval_dataloader` has it too,
    but distributes the rows among the processes.
    """
    return trainer._get_collator_with_removed_columns(trainer.data_collator)


def load_weights(trainer: Trainer, checkpoint: str) -> None:
    """Loads a checkpoint's weights into the model of a trainer, in any format that the trainer saves.

    Trainer._load_from_checkpoint, trainer.py:3602. `train(resume_from_checkpoint=...)` trains for one more step.
    """
    trainer._load_from_checkpoint(checkpoint)


def loss_since_log(trainer: Trainer) -> tuple[float, int]:
    """Returns the sum of this process's losses since the last log, and the step of that log.

    Trainer._tr_loss and _globalstep_last_logged, trainer.py:1647, which are not saved in checkpoints.
    """
    return trainer._tr_loss.item(), trainer._globalstep_last_logged


def set_loss_since_log(trainer: Trainer, loss: float, step: int) -> None:
    """Restores the values of `loss_since_log` after training has begun.

    `train` returns the mean of Trainer._total_loss_scalar, trainer.py:1648, over the steps of this call.
    """
    trainer._tr_loss.fill_(loss)
    trainer._globalstep_last_logged = step
    trainer._total_loss_scalar = -loss


def num_micro_batches(trainer: Trainer) -> int:
    """Returns how many micro-batches the current step accumulates; the last step of an epoch may have fewer.

    Trainer.current_gradient_accumulation_steps, trainer.py:1877: a public name, but undocumented.
    """
    return trainer.current_gradient_accumulation_steps


def attention_implementation(config: "PreTrainedConfig") -> str | None:
    """Returns the attention function that a configuration names, such as "sdpa"; `None` if it names none.

    PreTrainedConfig._attn_implementation, configuration_utils.py:595. `attn_implementation=` and
    `set_attn_implementation` set it; no public interface reads it.
    """
    return config._attn_implementation


def forget_accelerator() -> None:
    """Allows the next `Accelerator` of this process to have another precision; the process group is kept.

    AcceleratorState._reset_state, accelerate 1.10, state.py. `TrainingArguments` calls it as well.
    """
    AcceleratorState._reset_state()


def l2_norms(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Returns the L2 norm of each tensor in float32, computed with few kernels.

    torch._foreach_norm. Public functions compute one norm of all tensors (`torch.nn.utils.get_total_norm`), or run a
    kernel for each tensor.
    """
    return torch._foreach_norm(list(tensors), 2.0, dtype=torch.float32) if tensors else ()


def num_writes(tensor: Tensor) -> int:
    """Returns how often a tensor was modified in place; 0 for inference tensors, which do not count.

    torch.Tensor._version, with which autograd detects changes of saved tensors; no public interface reads it.
    """
    return 0 if tensor.is_inference() else tensor._version
