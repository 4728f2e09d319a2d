"""Calibration: each new operator alone learns what the checkpoint's layer does, block by block.

Operator o of layer n gets the teacher's H_(n-1) and learns its H_n. No gradient leaves an operator, so one pass of the
teacher serves all operators of all layers. The errors of operators are comparable across layers, and their sum is a
cheap estimate of how good a child is (Puzzle, arXiv 2411.19146).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..bars import progress_bar
from .teacher_objectives import Batch
from .teaching import Autocast


# An operator of a super-net: its layer and its name.
Place = tuple[int, str]


# ---- The teacher's states ----


@dataclass(frozen=True)
class _TeacherPass:
    """The states of the teacher on one batch.

    Attributes:
        states: H_0 to H_N, (batch, seq_len, hidden) each.
        masks: the other inputs of every layer.
        tokens: (batch, seq_len), true for real tokens; `None` if all tokens are real.
    """

    states: Sequence[Tensor]
    masks: tuple[Any, ...]
    tokens: Tensor | None

    @classmethod
    @torch.no_grad()
    def of(cls, teacher: MagicPreTrainedModel, batch: Batch) -> Self:
        encoder: Any = teacher.base_model
        names = ("input_ids", "token_type_ids", "attention_mask")
        inputs = {name: batch[name].to(teacher.device) for name in names if name in batch}
        states = encoder(**inputs, output_hidden_states=True).hidden_states
        mask = inputs.get("attention_mask")
        masks = encoder.attention_masks(states[0], mask)
        return cls(states, masks, None if mask is None else mask.bool())

    def output(self, layer: int, operator: Any) -> Tensor:
        """Returns what an operator of layer n, counted from 0, computes from H_n: (number of real tokens, hidden)."""
        return self._real(operator(self.states[layer], *self.masks)[0])

    def target(self, layer: int) -> Tensor:
        """Returns the target of `output`, in the same shape."""
        return self._real(self.states[layer + 1])

    def _real(self, states: Tensor) -> Tensor:
        # Errors are small differences, so they are computed in float32 whatever the precision of the pass.
        return (states.flatten(0, 1) if self.tokens is None else states[self.tokens]).float()


def _operator(supernet: Any, place: Place) -> Any:
    layer, name = place
    return supernet.base_model.encoder.layer[layer].operators[name]


# ---- Training ----


def calibrate(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    places: Sequence[Place],
    batches: Iterable[Batch],
    num_steps: int,
    learning_rate: float,
    autocast: Autocast,
    progress: bool = False,
) -> None:
    """Trains operators on the teacher's states, each on its own, for `num_steps` steps of AdamW with a linear decay.

    The loss of an operator is its mean squared error divided by the variance of its target, on the batch.

    Args:
        supernet: the super-net, changed in place, but only at `places`.
        teacher: the checkpoint as a chain, in evaluation mode.
        places: the operators to train; with none of them, nothing is done.
        batches: batches of text, at least one per step.
        num_steps: number of steps; with 0, nothing is done.
        learning_rate: initial learning rate; it falls to 0.
        autocast: precision of the forward passes.
        progress: whether to show a bar.
    """
    if not num_steps or not places:
        return
    parameters = [weight for place in places for weight in _operator(supernet, place).parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.0, fused=True)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / num_steps)
    steps = iter(batches)
    for _ in progress_bar(range(num_steps), desc="calibration", unit="step", leave=False, disable=not progress):
        add_gradients(supernet, teacher, places, next(steps), autocast)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def add_gradients(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    places: Sequence[Place],
    batch: Batch,
    autocast: Autocast,
) -> None:
    """Adds the gradients of the operators' losses on one batch to the operators' gradients, see `calibrate`.

    Only the activations of one operator at a time are held in memory.
    """
    with autocast():
        teaching = _TeacherPass.of(teacher, batch)
    for layer, name in places:
        target = teaching.target(layer)
        variance = (target - target.mean(dim=0)).square().mean()
        with autocast():
            output = teaching.output(layer, _operator(supernet, (layer, name)))
        loss = (output - target).square().mean() / variance
        loss.backward()


# ---- Errors ----


@torch.no_grad()
def local_errors(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    batches: Iterable[Batch],
    autocast: Autocast,
) -> list[dict[str, float]]:
    """Returns for each layer the error of each operator that it offers, including SKIP's and the checkpoint's own.

    The error is the mean squared distance between the operator's output and the teacher's H_n, divided by the mean
    squared distance between H_n and its mean, over all tokens of the text. It is 0 for the checkpoint's own operator
    and 1 for an operator that always outputs that mean.

    Args:
        supernet: the super-net after `calibrate`.
        teacher: the checkpoint as a chain.
        batches: batches of held-out text.
        autocast: precision of the forward passes.
    """
    candidates = supernet.config.candidate_operators
    sums = [dict.fromkeys(names, 0.0) for names in candidates]
    spreads = [_Spread(supernet.config.hidden_size) for _ in candidates]
    for batch in batches:
        with autocast():
            teaching = _TeacherPass.of(teacher, batch)
            for layer, names in enumerate(candidates):
                target = teaching.target(layer)
                spreads[layer].add(target)
                for name in names:
                    output = teaching.output(layer, _operator(supernet, (layer, name)))
                    sums[layer][name] += float((output - target).square().sum(dtype=torch.double))
    return [
        {name: total / spread.value for name, total in layer.items()}
        for layer, spread in zip(sums, spreads, strict=True)
    ]


class _Spread:
    """The summed squared distance of vectors to their mean; the vectors come in several parts."""

    def __init__(self, width: int):
        self._number = 0
        self._sum = torch.zeros(width, dtype=torch.double)
        self._squares = 0.0

    def add(self, vectors: Tensor) -> None:
        vectors = vectors.double()
        self._number += len(vectors)
        self._sum += vectors.sum(dim=0).cpu()
        self._squares += float(vectors.square().sum())

    @property
    def value(self) -> float:
        return self._squares - float(self._sum.square().sum()) / self._number
