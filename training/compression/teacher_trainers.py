"""The two trainers of a compression: a super-net around the checkpoint, and one child distilled from it."""

import ctypes
import sys
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from typing import Any, cast

import torch
from datasets import Dataset
from torch import Tensor
from transformers import TrainerCallback

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..distillation.teacher import teacher_inputs
from ..losses import AccumulatedLossTrainer
from ..space.budgets import BudgetedSpace, WideBudgetError
from ..space.samplers import UniformSampler
from ..space.search_space import Architecture, SearchSpace
from ..supernet.trainer import MagicTrainer
from .sentences import LABEL
from .teacher_objectives import TARGET, Objective
from .teaching import COLUMNS, TrainOrder


# Tokens of a step per pass; with more, memory grows and a token takes as long.
_MOST_TOKENS = 4096
_TRIM_STEPS = 10
# With more tokens, eager attention takes too much memory for the time that it saves.
_LONGEST_WRITTEN_OUT = 64


def trained_attention(length: int, device: torch.device, in_bf16: bool) -> str:
    """Returns the attention function to train with: eager for short sequences in bf16 on a CPU, otherwise sdpa.

    For such sequences the backward pass of sdpa is several times slower.

    Args:
        length: number of tokens of the sequences, including padding.
        device: device of the training.
        in_bf16: whether the training is in bf16.
    """
    return "eager" if in_bf16 and device.type == "cpu" and length <= _LONGEST_WRITTEN_OUT else "sdpa"


def give_back_memory() -> None:
    """Returns freed memory to the system, if the C library supports it (glibc).

    Batches of many lengths fragment its heap, which would grow to several times what is in use.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


class _GivesBackMemory(TrainerCallback):
    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step % _TRIM_STEPS == 0:
            give_back_memory()


class _TeacherLoss(AccumulatedLossTrainer):
    """The loss of a step: that of the objective, a mean over the items of the whole accumulated batch."""

    objective: Objective
    labels_weight: float = 0.0
    input_columns = COLUMNS

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(_GivesBackMemory())

    def train_order(self) -> TrainOrder | None:
        """Returns batches of nearly equal lengths, for `max_steps` steps."""
        args = self.args
        if args.max_steps < 1:
            return None
        rows_of_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return TrainOrder(cast(Dataset, self.train_dataset), rows_of_step, args.max_steps, args.seed)

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the number of items of a micro-batch."""
        return torch.tensor(self.objective.num_items(batch))

    def training_step(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None) -> Tensor:
        """Returns the loss of a micro-batch; the gradients of a long one are summed up piece by piece."""
        pieces = [inputs]
        # Several processes would have to agree on the number of passes.
        if self.args.world_size == 1 and self.can_be_cut:
            pieces = cut_batch(inputs, self.objective.record_lengths(inputs), _MOST_TOKENS)
        losses = [super(_TeacherLoss, self).training_step(model, piece, num_items_in_batch) for piece in pieces]
        return torch.stack(losses).sum()

    @property
    def can_be_cut(self) -> bool:
        """Whether the losses of a micro-batch's pieces add up to its own."""
        return True

    def teacher_loss(self, model: Any, inputs: dict[str, Any], num_items: Tensor) -> tuple[Tensor, Any]:
        """Returns a micro-batch's share of the loss, and the outputs of the forward pass.

        Args:
            model: the model as the step runs it.
            inputs: the batch, and other arguments of the forward pass.
            num_items: number of items of the whole accumulated batch.
        """
        given = {name: value for name, value in inputs.items() if name not in (TARGET, LABEL)}
        length = inputs["input_ids"].shape[1]
        cast(MagicPreTrainedModel, self.model).set_attn_implementation(
            trained_attention(length, self.args.device, self.args.bf16)
        )
        outputs = model(**given, return_dict=True)
        own = self.objective.read(outputs, inputs)
        losses = self.objective.losses(own, inputs[TARGET], inputs)
        if self.labels_weight and LABEL in inputs:
            losses = losses + self.labels_weight * self.objective.label_losses(own, inputs[LABEL])
        return self.share(losses.sum(), num_items), outputs


def cut_batch(batch: dict[str, Any], record_lengths: Tensor, most_tokens: int) -> list[dict[str, Any]]:
    """Splits a batch into pieces of whole sequences, as few as possible with at most `most_tokens` tokens each.

    A piece has at least one sequence.

    Args:
        batch: a batch with the teacher's outputs.
        record_lengths: number of rows of these outputs for each sequence, (batch,).
        most_tokens: largest number of tokens of a piece, including padding.
    """
    num_rows, width = batch["input_ids"].shape
    num_pieces = -(-num_rows // max(1, most_tokens // width))
    if num_pieces == 1:
        return [batch]
    ends = [0, *record_lengths.cumsum(dim=0).tolist()]
    bounds = [num_rows * number // num_pieces for number in range(num_pieces + 1)]
    pieces = []
    for start, stop in pairwise(bounds):
        piece: dict[str, Any] = {name: value[start:stop] for name, value in batch.items() if name != TARGET}
        piece[TARGET] = {name: rows[ends[start] : ends[stop]] for name, rows in batch[TARGET].items()}
        pieces.append(piece)
    return pieces


@torch.no_grad()
def teacher_states(teacher: MagicPreTrainedModel, inputs: dict[str, Any], layers: Sequence[int]) -> list[Tensor]:
    """Returns H_n of the checkpoint, one (batch, seq_len, hidden) for each n in `layers`, without gradient.

    Args:
        teacher: the checkpoint as a chain, in evaluation mode.
        inputs: the batch.
        layers: numbers of layers, ascending.
    """
    read = teacher_inputs(teacher, inputs)
    states = teacher.base_model(**read, output_hidden_states=list(layers)).hidden_states
    return [states[layer] for layer in layers]


# ---- The super-net ----


class BudgetSampler(UniformSampler):
    """Children of the requested sizes, drawn uniformly among those within one of several budgets.

    Uniformly drawn children of a wide space nearly all have a medium size, so a super-net that is trained on them
    underrates small ones.

    Args:
        space: the children to draw from.
        seed: seed of the sampler's own generator.
        within: the children within each budget, of this space or of one around it; each step first draws a budget. If
            no budget has a child in the space, children are drawn from all of it.
    """

    kind = "budget"

    def __init__(self, space: SearchSpace, seed: int, within: Sequence[BudgetedSpace]) -> None:
        super().__init__(space, seed)
        self._within = _within(space, within)

    def next(self) -> Architecture:
        """The child of the next training step."""
        return self._rng.choice(self._within).sample(self._rng) if self._within else super().next()

    def restrict(self, space: SearchSpace) -> None:
        """Continues in what shrinking has left of the space."""
        super().restrict(space)
        self._within = _within(space, self._within)


def _within(space: SearchSpace, within: Sequence[BudgetedSpace]) -> list[BudgetedSpace]:
    """Restricts budgets to a space, without those that leave no children, or none that draws find."""
    inside = []
    for one in within:
        with suppress(WideBudgetError):
            inside.append(one if one.space == space else one.restricted(space))
    return [one for one in inside if one.size]


class CheckpointTrainer(_TeacherLoss, MagicTrainer):
    """`MagicTrainer` around a checkpoint: L_pred is the objective's loss, and the teacher may be the anchor.

    With a teacher as the anchor, whose weights stay fixed, Eq. (1) pulls the hidden states of every child towards the
    teacher's, from the first step on; no child is validated to find an anchor.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        within: Sequence[BudgetedSpace] = (),
        anchor_teacher: MagicPreTrainedModel | None = None,
        **kwargs: Any,
    ):
        """Takes what `MagicTrainer` takes.

        Args:
            *args: see `MagicTrainer`.
            objective: objective of the checkpoint.
            within: children of the requested sizes, drawn in place of the sampler's; if empty, the sampler draws the
                children.
            anchor_teacher: the checkpoint as a chain, in evaluation mode and on the device of the training, to whose
                states children are aligned; `None` means no alignment to it.
            **kwargs: see `MagicTrainer`.
        """
        self.objective, self._budgets, self._anchor_teacher = objective, within, anchor_teacher
        kwargs["judge"] = objective
        super().__init__(*args, **kwargs)

    def _set_space(self, space: SearchSpace) -> None:
        super()._set_space(space)
        if self._budgets:
            self.sampler = BudgetSampler(space, self.args.seed, self._budgets)

    @property
    def can_be_cut(self) -> bool:
        """Whether nothing is aligned, since L_align is a mean over a micro-batch whatever its size."""
        return not self._aligned_layers()

    def prediction_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Tensor, Any]:
        """Returns the objective's loss for the step's child."""
        loss, outputs = self.teacher_loss(model, inputs, num_items_in_batch)
        # The embeddings are frozen, so a child that has SKIP in every layer has nothing to learn.
        return loss if loss.requires_grad else loss.requires_grad_(), outputs

    def _aligned_layers(self) -> list[int]:
        if self._anchor_teacher is None:
            return super()._aligned_layers()
        every = self.args.alignment_every_n_layers
        return list(range(every, self.full_space.num_layers + 1, every))

    def num_shared_states(self) -> int:
        """Returns 0 if the teacher is the anchor, since its weights are not the super-net's."""
        return super().num_shared_states() if self._anchor_teacher is None else 0

    def alignment_targets(
        self, inputs: dict[str, Any], aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the teacher's states if it is the anchor."""
        if self._anchor_teacher is None:
            return super().alignment_targets(inputs, aligned, shared, bottom)
        return teacher_states(self._anchor_teacher, inputs, aligned)


# ---- A child ----


class ChildTrainer(_TeacherLoss):
    """Distils one child: the objective's loss and, if weighted, the distance of its last states to the teacher's.

    The states are H_N of child and teacher; their distance is the mean squared difference over the tokens of the whole
    accumulated batch.
    """

    logged_losses = ("loss_checkpoint", "loss_states")

    model: MagicPreTrainedModel

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        teacher: MagicPreTrainedModel | None = None,
        states_weight: float = 0.0,
        labels_weight: float = 0.0,
        **kwargs: Any,
    ):
        """Takes what `Trainer` takes.

        Args:
            *args: see `Trainer`.
            objective: objective of the checkpoint.
            teacher: the checkpoint as a chain, in evaluation mode and on the device of the training; needed only with
                a `states_weight`.
            states_weight: weight of the distance of the last states; with 0 the teacher does not run.
            labels_weight: weight of the loss of labelled rows against their labels, added to that against the teacher.
            **kwargs: see `Trainer`.
        """
        self.objective, self.teacher, self.states_weight = objective, teacher, states_weight
        self.labels_weight = labels_weight
        super().__init__(*args, **kwargs)

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the numbers of items and of tokens of a micro-batch, (2,)."""
        mask = batch.get("attention_mask")
        num_tokens = batch["input_ids"].numel() if mask is None else int(mask.sum())
        return torch.stack([super().count_items(batch), torch.tensor(num_tokens)])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns a micro-batch's share of the loss of the step."""
        if num_items_in_batch is None:
            num_items_in_batch = self.count_items(inputs)
        num_items, num_tokens = num_items_in_batch
        given = {**inputs, "output_hidden_states": [self._last_layer]} if self.states_weight else inputs
        loss, outputs = self.teacher_loss(model, given, num_items)
        self.add_to_log("loss_checkpoint", loss)
        if self.states_weight:
            loss_states = self.share(self._states_distance(inputs, outputs.hidden_states[-1]), num_tokens)
            self.add_to_log("loss_states", loss_states)
            loss = loss + self.states_weight * loss_states
        return (loss, outputs) if return_outputs else loss

    @property
    def _last_layer(self) -> int:
        return len(self.model.config.chain)

    def _states_distance(self, inputs: dict[str, Any], states: Tensor) -> Tensor:
        """Returns the squared distance of H_N to the teacher's, a mean over features, summed over tokens."""
        assert self.teacher is not None
        with self.accelerator.autocast():
            (target,) = teacher_states(self.teacher, inputs, [len(self.teacher.config.chain)])
        distances = (states.float() - target.float()).square().mean(dim=-1)
        mask = inputs.get("attention_mask")
        return distances.sum() if mask is None else distances[mask.bool()].sum()


def freeze_embeddings(model: MagicPreTrainedModel) -> None:
    """Freezes the embeddings: no gradient is computed for their tables."""
    model.base_model.embeddings.requires_grad_(False)
