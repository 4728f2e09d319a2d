"""Interference in training: the cosine between the gradients of consecutive children on operators that they share.

Figure 3's cos(theta), as training sees it: the two children have different batches and the weights have moved by one
step between them, so that it is lower than what `training.analysis.interference` measures of the same children with
one batch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..space.search_space import Architecture


# Rounding changes an element by at most 0.2%, at random, which averages out over the many of an operator; the range is
# that of float32, whatever the scale of the gradients.
KEPT_DTYPE = torch.bfloat16


class GradientWatch:
    """Compares the gradients of each n-th step's child with those of the step before, operator by operator.

    Kept are the gradients of one child, in bfloat16, from a step before one that is due to that step: two bytes for
    each parameter of its operators. No step waits for the device but those that log. The first step of a run, and of a
    run that goes on after a stop, has none before it and is not compared.

    Gradients are those that the optimizer takes: accumulated over micro-batches and averaged over processes. Clipping
    and loss scaling multiply all of them by one number, which changes no cosine. An operator whose gradient is zero or
    not finite in one of the two steps has no cosine; such cases are counted and left out of the means.

    Args:
        every_n_steps: n; 0 switches it off, 1 compares every step with the one before.
        kind_of: the name that cosines of an operator are logged under, of its own by default.

    Raises:
        ValueError: n is negative.
    """

    def __init__(self, every_n_steps: int, kind_of: Callable[[str], str] = str):
        if every_n_steps < 0:
            raise ValueError(f"interference_every_n_steps is {every_n_steps}; it must be at least 1, or 0 for none")
        self._every, self._kind_of = every_n_steps, kind_of
        self._kept_step = 0
        self._kept: dict[tuple[int, str], list[Tensor]] = {}
        # Comparisons since the last log; and of those that found one the kind of each shared operator and their
        # (dot, norm, norm).
        self._num_compared = 0
        self._waiting: list[tuple[list[str], Tensor]] = []

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept gradients take."""
        return sum(tensor.numel() * tensor.element_size() for tensors in self._kept.values() for tensor in tensors)

    def begin_step(self, architecture: Architecture) -> None:
        """Frees the gradients of operators that the child of this step does not share with the one before."""
        path = set(enumerate(architecture))
        self._kept = {operator: tensors for operator, tensors in self._kept.items() if operator in path}

    def add_gradients(
        self, step: int, architecture: Architecture, parameters: Sequence[Sequence[nn.Parameter]]
    ) -> None:
        """Takes the gradients of a step, when all are there and before the optimizer steps.

        Args:
            step: the step's number, from 1; without gaps but where a run goes on.
            architecture: the child of the step.
            parameters: those of each layer's operator.
        """
        if not self._every:
            return
        if step % self._every == 0 and self._kept_step and self._kept_step == step - 1:
            self._compare(architecture, parameters)
        self._kept = {}
        if (step + 1) % self._every == 0:
            self._kept_step = step
            self._kept = {
                (layer, operator): [
                    weight.grad.detach().to(KEPT_DTYPE, copy=True) for weight in weights if weight.grad is not None
                ]
                for layer, (operator, weights) in enumerate(zip(architecture, parameters, strict=True))
            }

    def _compare(self, architecture: Architecture, parameters: Sequence[Sequence[nn.Parameter]]) -> None:
        self._num_compared += 1
        kinds, figures = [], []
        for layer, (operator, weights) in enumerate(zip(architecture, parameters, strict=True)):
            before = self._kept.get((layer, operator))
            now = [weight.grad.detach() for weight in weights if weight.grad is not None]
            # Frozen weights have no gradient; what was frozen or thawed between the steps has nothing in common.
            if not before or len(before) != len(now):
                continue
            kinds.append(self._kind_of(operator))
            figures.append(_dot_and_norms(before, now))
        if kinds:
            self._waiting.append((kinds, torch.stack(figures)))

    def scalars(self) -> dict[str, float]:
        """Returns means for a log over the shared operators of the comparisons since the last call; empty without any.

        `interference/cosine` is the mean over all of them, `interference/cosine_MHA` and the like over those of a
        kind, `interference/num_shared` how many operators two children shared in the mean, and
        `interference/num_undefined`, where there are any, how many cosines were left out since a gradient was zero or
        not finite.
        """
        if not self._num_compared:
            return {}
        rows = torch.cat([figures for _, figures in self._waiting]).tolist() if self._waiting else []
        kinds = [kind for own, _ in self._waiting for kind in own]
        cosines: dict[str, list[float]] = {}
        for kind, (dot, first, second) in zip(kinds, rows, strict=True):
            norm = first * second
            if norm > 0 and math.isfinite(norm) and math.isfinite(dot):
                cosines.setdefault(kind, []).append(dot / norm)
        defined = [cosine for own in cosines.values() for cosine in own]
        figures = {f"interference/cosine_{kind}": math.fsum(own) / len(own) for kind, own in sorted(cosines.items())}
        if defined:
            figures = {"interference/cosine": math.fsum(defined) / len(defined), **figures}
        figures["interference/num_shared"] = len(kinds) / self._num_compared
        if len(defined) < len(kinds):
            figures["interference/num_undefined"] = float(len(kinds) - len(defined))
        self._num_compared, self._waiting = 0, []
        return figures


def _dot_and_norms(before: Sequence[Tensor], now: Sequence[Tensor]) -> Tensor:
    """The dot product of two gradients and their norms, (3,), float32, on their device."""
    sums = torch.zeros(3, device=now[0].device)
    for first, second in zip(before, now, strict=True):
        first, second = first.flatten().float(), second.flatten().float()
        sums += torch.stack([first.dot(second), first.dot(first), second.dot(second)])
    return torch.cat([sums[:1], sums[1:].sqrt()])
