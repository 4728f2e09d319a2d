"""Interference in training: the cosine between the gradients of consecutive children on operators that they share.

This is Figure 3's cos(theta) as it occurs in training: the two children have different batches, and the weights have
moved by one step between them. It is therefore lower than the value that `training.analysis.interference` measures
for the same children on one batch.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ..space.search_space import Architecture


# Rounding changes an element by at most 0.2%, at random, which averages out over the many elements of an operator. The
# range is that of float32, so gradients may have any scale.
KEPT_DTYPE = torch.bfloat16


class GradientWatch:
    """Compares the gradients of every n-th step's child with those of the previous step, operator by operator.

    The gradients of one child are kept in bfloat16 from the step before a comparison until the comparison: two bytes
    per parameter of its operators. Only steps that log wait for the device. The first step of a run, or of a resumed
    run, has no predecessor and is not compared.

    The gradients are those that the optimizer sees: accumulated over micro-batches and averaged over processes.
    Clipping and loss scaling multiply all of them by one number, which changes no cosine. If the gradient of an
    operator is zero or not finite in one of the two steps, its cosine is undefined; such cases are counted and
    excluded from the means.

    Args:
        every_n_steps: n; 0 disables the comparison, 1 compares every step with the previous one.
        kind_of: returns the name under which the cosines of an operator are logged; its own name by default.

    Raises:
        ValueError: n is negative.
    """

    def __init__(self, every_n_steps: int, kind_of: Callable[[str], str] = str):
        if every_n_steps < 0:
            raise ValueError(f"interference_every_n_steps is {every_n_steps}; it must be at least 1, or 0 for none")
        self._every, self._kind_of = every_n_steps, kind_of
        self._kept_step = 0
        self._kept: dict[tuple[int, str], list[Tensor]] = {}
        # The number of comparisons since the last log; for those with shared operators, the kind of each shared
        # operator and its (dot, norm, norm).
        self._num_compared = 0
        self._waiting: list[tuple[list[str], Tensor]] = []

    @property
    def kept_bytes(self) -> int:
        """Memory that the kept gradients take."""
        return sum(tensor.numel() * tensor.element_size() for tensors in self._kept.values() for tensor in tensors)

    def begin_step(self, architecture: Architecture) -> None:
        """Frees the gradients of operators that this step's child does not share with the previous one."""
        path = set(enumerate(architecture))
        self._kept = {operator: tensors for operator, tensors in self._kept.items() if operator in path}

    def add_gradients(
        self, step: int, architecture: Architecture, parameters: Sequence[Sequence[nn.Parameter]]
    ) -> None:
        """Takes the gradients of a step, when all are computed and before the optimizer step.

        Args:
            step: number of the step, from 1; consecutive except when a run resumes.
            architecture: the child of the step.
            parameters: the parameters of each layer's operator.
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
            # Frozen weights have no gradient; an operator frozen or unfrozen between the steps cannot be compared.
            if not before or len(before) != len(now):
                continue
            kinds.append(self._kind_of(operator))
            figures.append(_dot_and_norms(before, now))
        if kinds:
            self._waiting.append((kinds, torch.stack(figures)))

    def scalars(self) -> dict[str, float]:
        """Returns means for the log over the operators shared in the comparisons since the last call, or nothing.

        `interference/cosine` is the mean over all shared operators, `interference/cosine_MHA` and the like over those
        of one kind, `interference/num_shared` the mean number of operators that two children shared, and
        `interference/num_undefined`, if there are any, the number of cosines excluded because a gradient was zero or
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
    """Returns the dot product of two gradients and their norms, (3,), float32, on their device."""
    sums = torch.zeros(3, device=now[0].device)
    for first, second in zip(before, now, strict=True):
        first, second = first.flatten().float(), second.flatten().float()
        sums += torch.stack([first.dot(second), first.dot(first), second.dot(second)])
    return torch.cat([sums[:1], sums[1:].sqrt()])
