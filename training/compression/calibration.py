"""Calibration: each new operator alone learns what the checkpoint's layer does, block by block.

Operator o of layer n gets the teacher's H_(n-1) and learns its H_n. No gradient leaves an operator, so that one pass
of the teacher serves all operators of all layers, and their errors, which are comparable across layers, add up to a
cheap judgement of children (Puzzle, arXiv 2411.19146).
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


# ---- What operators are compared on ----


@dataclass(frozen=True)
class _TeacherPass:
    """The states of the teacher on one batch.

    Attributes:
        states: H_0 to H_N, (batch, seq_len, hidden) each.
        masks: what every layer takes beside them.
        tokens: (batch, seq_len), true where a real token is; `None` where all are real.
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
        """Returns what an operator makes of H_n for layer n, counted from 0: (number of real tokens, hidden)."""
        return self._real(operator(self.states[layer], *self.masks)[0])

    def target(self, layer: int) -> Tensor:
        """Returns what it is to be, the same shape."""
        return self._real(self.states[layer + 1])

    def _real(self, states: Tensor) -> Tensor:
        # Errors are small differences: in float32 whatever the precision of the pass.
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

    The loss of an operator is its mean squared error over the variance of what it learns, on the batch.

    Args:
        supernet: changed in place, at `places` alone.
        teacher: the checkpoint as a chain, in evaluation mode.
        places: the operators; none does nothing.
        batches: of text, as many as steps or more.
        num_steps: 0 does nothing.
        learning_rate: at the start; it falls to 0.
        autocast: precision of the forward passes.
        progress: shows a bar.
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
    """Adds to the gradients of operators those of their losses on one batch, see `calibrate`.

    The activations of one operator at a time are in memory.
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
    """Returns for each layer the error of each operator that it offers, SKIP's and the checkpoint's own included.

    The error is the mean squared distance of the operator's output to the teacher's H_n, over the mean squared
    distance of H_n to its mean, over all tokens of the text: 0 for the checkpoint's own operator, 1 for a constant
    that is that mean.

    Args:
        supernet: after `calibrate`.
        teacher: the checkpoint as a chain.
        batches: of held-out text.
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
    """The summed squared distance of vectors to their mean, of vectors that come in several parts."""

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
