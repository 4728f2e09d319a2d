"""Narrower operators from a checkpoint's own: the most important heads or neurons, and a fitted output map.

Attention and feed-forward operators end alike: an inner state z, the concatenated heads or the neurons, goes through
the output map W z + b. A narrower operator keeps some of the parts of z, that is heads or neurons. Its output map is
the one that comes nearest to the old output on text, by least squares. This needs only the mean and covariance of z on
the text, so one pass of the checkpoint serves all operators.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modeling_magic.modeling_magic import (
    MagicAttention,
    MagicConvolution,
    MagicFeedForward,
    MagicPreTrainedModel,
    MagicSkip,
)

from .settings import IMPORTANCES
from .teacher_objectives import Batch


Narrowable = MagicAttention | MagicFeedForward

# Ridge added to the variance of each component, relative to the mean variance of an inner state. It acts like noise in
# each component, so that components that never change do not break the solution.
_RIDGE = 1e-4
# Columns of an inner state to multiply at a time: of a symmetric product little more than a half is computed.
_STRIP = 256


# ---- Moments ----


class InnerMoments(NamedTuple):
    """Mean and covariance of an operator's inner state z over the tokens of a text.

    Attributes:
        mean: (inner,).
        covariance: (inner, inner).
    """

    mean: Tensor
    covariance: Tensor

    @property
    def power(self) -> Tensor:
        """The mean square of each component of z, (inner,)."""
        return self.covariance.diagonal() + self.mean.square()

    @property
    def ridge(self) -> float:
        """The ridge to add to each variance."""
        # Above 0 even for a state that never changes.
        return _RIDGE * float(self.covariance.diagonal().mean()) + torch.finfo(torch.float32).tiny


class _Sums:
    """Sums over tokens of z - c and of (z - c) (z - c)^T, the latter without strips below the diagonal.

    c is the mean of the first tokens. It is near the mean of all, so that the covariance is not a small difference of
    large numbers.
    """

    def __init__(self, width: int, device: torch.device):
        self._num_tokens = 0
        self._center: Tensor | None = None
        self._states = torch.zeros(width, dtype=torch.double, device=device)
        self._products = torch.zeros(width, width, device=device)

    def add(self, states: Tensor) -> None:
        """Adds the inner states of some tokens, (tokens, width)."""
        if self._center is None:
            self._center = states.double().mean(dim=0).float()
        states = states.float() - self._center
        self._num_tokens += len(states)
        self._states += states.sum(dim=0)
        for start in range(0, states.shape[1], _STRIP):
            strip = slice(start, start + _STRIP)
            self._products[strip, start:].addmm_(states[:, strip].T, states[:, start:])

    def moments(self) -> InnerMoments:
        deviation = (self._states / self._num_tokens).float()
        upper = self._products.triu().div_(self._num_tokens)
        covariance = (upper + upper.triu(1).T).addr_(deviation, deviation, alpha=-1)
        mean = deviation if self._center is None else deviation + self._center
        return InnerMoments(mean.cpu(), covariance.cpu())


@torch.no_grad()
def inner_moments(model: MagicPreTrainedModel, batches: Iterable[Batch]) -> list[InnerMoments]:
    """Returns the moments of the inner state of each layer of a chain, on the CPU, without padding.

    Args:
        model: the checkpoint as a chain, in evaluation mode; it runs in its own precision.
        batches: batches of text.
    """
    encoder: Any = model.base_model
    maps = [operator.dense for layer in encoder.encoder.layer for operator in layer.operators.values()]
    sums = [_Sums(dense.in_features, model.device) for dense in maps]
    tokens: Tensor | None = None
    with ExitStack() as hooks:
        for dense, own in zip(maps, sums, strict=True):
            hook = dense.register_forward_pre_hook(lambda _, args, own=own: own.add(_real_tokens(args[0], tokens)))
            hooks.callback(hook.remove)
        for batch in batches:
            names = ("input_ids", "token_type_ids", "attention_mask")
            inputs = {name: batch[name].to(model.device) for name in names if name in batch}
            mask = inputs.get("attention_mask")
            tokens = None if mask is None else mask.bool()
            encoder(**inputs)
    return [own.moments() for own in sums]


def _real_tokens(inner: Tensor, tokens: Tensor | None) -> Tensor:
    """Returns (number of real tokens, width) from a batch that is padded, or that the model has already packed."""
    is_padded = tokens is not None and inner.shape[:2] == tokens.shape
    return inner[tokens] if is_padded else inner.flatten(0, 1)


# ---- The choice of heads and neurons ----


def rank_parts(operator: Narrowable, moments: InnerMoments, importance: str = "output") -> list[int]:
    """Returns the parts of an operator's inner state, heads or neurons, the most important first.

    A narrower operator takes the first ones, so its parts are a subset of those of a wider one.

    Args:
        operator: an operator of the checkpoint.
        moments: moments of its inner state.
        importance: "output" ranks by what a part adds to the output on text. Heads are taken one by one, each time the
            one that brings the output nearest to the old one by least squares; neurons are ranked by their mean square
            times the squared norm of their column of the output map. "norm" ranks by the weights alone: the squared
            norms of the weights into and out of each component, multiplied and summed over a part.

    Raises:
        ValueError: `importance` is not one of these.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"importance is {importance!r}; choose one of: {', '.join(IMPORTANCES)}")
    weight, size = operator.dense.weight.detach().cpu().double(), _part_size(operator)
    if importance == "output" and size > 1:
        return _greedy_parts(weight, size, moments)
    if importance == "output":
        scores = moments.power.double()
    else:
        # Of the input maps, the one whose output is z or is mixed into z: values, not queries and keys.
        scores = _inputs(operator)[-1].weight.detach().cpu().double().square().sum(dim=1)
    scores = (scores * weight.square().sum(dim=0)).view(-1, size).sum(dim=1)
    return scores.argsort(descending=True, stable=True).tolist()


def _greedy_parts(weight: Tensor, size: int, moments: InnerMoments) -> list[int]:
    """Ranks parts of `size` components each, taken one by one: forward selection for least squares.

    The left part of `joint` is the covariance of what the chosen parts leave unexplained of z; the right part is the
    covariance of this with the output, W z + b. One step of a block Cholesky factorisation removes the contribution of
    a part from both, so no system is larger than a part.
    """
    inner = weight.shape[1]
    covariance = moments.covariance.to(torch.double, copy=True)
    covariance.diagonal().add_(moments.ridge)
    joint = torch.cat([covariance, covariance @ weight.T], dim=1)
    ranked: list[int] = []
    left = list(range(inner // size))
    while left:
        halves = {part: _half_step(joint, slice(part * size, (part + 1) * size)) for part in left}
        explained = {part: float(half[:, inner:].square().sum()) for part, half in halves.items()}
        best = max(left, key=explained.__getitem__)
        joint -= halves[best][:, :inner].T @ halves[best]
        ranked.append(best)
        left.remove(best)
    return ranked


def _half_step(joint: Tensor, rows: slice) -> Tensor:
    """Returns L^-1 times some rows, where L is the Cholesky factor of their own covariance."""
    factor = torch.linalg.cholesky(joint[rows, rows])
    return torch.linalg.solve_triangular(factor, joint[rows], upper=False)


def _part_size(operator: Narrowable) -> int:
    return operator.head_size if isinstance(operator, MagicAttention) else 1


def _inputs(operator: Narrowable) -> list[nn.Linear]:
    if isinstance(operator, MagicAttention):
        return [operator.query, operator.key, operator.value]
    return [operator.intermediate]


# ---- The output map ----


def fit_output(weight: Tensor, bias: Tensor, moments: InnerMoments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the output map of a part of z that comes nearest to W z + b in the mean square over the text.

    A slight ridge pulls towards the old map; with all of z, that map itself is returned.

    Args:
        weight: W, (hidden, inner).
        bias: b, (hidden,).
        moments: moments of z.
        kept: (kept,), the components of z to keep, in their new order.

    Returns:
        The weight, (hidden, kept), and the bias, (hidden,), in float64 on the CPU.
    """
    weight, bias, mean = weight.cpu().double(), bias.cpu().double(), moments.mean.double()
    rows = moments.covariance[kept].double()
    own, cross = rows[:, kept], rows @ weight.T
    own.diagonal().add_(moments.ridge)
    cross += moments.ridge * weight[:, kept].T
    fitted = torch.cholesky_solve(cross, torch.linalg.cholesky(own)).T
    return fitted, bias + weight @ mean - fitted @ mean[kept]


# ---- Operators ----


@torch.no_grad()
def narrow_operator(
    operator: Narrowable, target: Narrowable, ranked: Sequence[int], moments: InnerMoments | None
) -> None:
    """Copies the most important parts and the norm of an operator to a narrower one, and sets its output map.

    Args:
        operator: an operator of the checkpoint.
        target: a narrower operator of the same kind, changed in place; its inner size determines its number of parts.
        ranked: the parts of `operator`, the most important first, see `rank_parts`.
        moments: moments of its inner state, to fit the output map; `None` copies the old columns and bias.
    """
    size = _part_size(operator)
    # In their old order, since the order of the kept parts does not matter.
    parts = torch.tensor(sorted(ranked[: target.dense.in_features // size]))
    kept = (parts.unsqueeze(1) * size + torch.arange(size)).flatten()
    for old, new in zip(_inputs(operator), _inputs(target), strict=True):
        new.weight.copy_(old.weight[kept])
        new.bias.copy_(old.bias[kept])
    dense = operator.dense
    if moments is None:
        weight, bias = dense.weight[:, kept], dense.bias.detach()
    else:
        weight, bias = fit_output(dense.weight, dense.bias, moments, kept)
    target.dense.weight.copy_(weight)
    target.dense.bias.copy_(bias)
    target.LayerNorm.load_state_dict(operator.LayerNorm.state_dict())


@torch.no_grad()
def start_near_identity(operator: MagicConvolution, replaced: Narrowable) -> None:
    """Starts a convolution as the norm of the operator that it replaces, adding nothing to its input."""
    operator.dense.weight.zero_()
    operator.dense.bias.zero_()
    operator.LayerNorm.load_state_dict(replaced.LayerNorm.state_dict())


def start_operators(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    moments: Sequence[InnerMoments],
    importance: str = "output",
    fits_output: bool = True,
) -> list[tuple[int, str]]:
    """Initializes the new operators of a super-net around a checkpoint, and returns them by layer and name.

    The checkpoint's own operators, embeddings and head must have been copied (`initialize_from`).

    Args:
        supernet: the super-net, changed in place; the first operator of each layer is the checkpoint's own.
        teacher: the checkpoint as a chain.
        moments: moments of its layers, see `inner_moments`.
        importance: see `rank_parts`.
        fits_output: whether to fit output maps by least squares, or to copy them.
    """
    own_layers, layers = (_layers(model) for model in (teacher, supernet))
    places = []
    for index, name in enumerate(teacher.config.chain):
        own = own_layers[index].operators[name]
        new = {
            other: operator
            for other, operator in layers[index].operators.items()
            if other != name and not isinstance(operator, MagicSkip)
        }
        _start_layer(own, new, moments[index], importance, fits_output)
        places += [(index, other) for other in new]
    return places


def _layers(model: Any) -> Sequence[Any]:
    return model.base_model.encoder.layer


def _start_layer(
    own: Any, new: Mapping[str, nn.Module], moments: InnerMoments, importance: str, fits_output: bool
) -> None:
    narrow = [operator for operator in new.values() if isinstance(operator, MagicAttention | MagicFeedForward)]
    ranked = rank_parts(own, moments, importance) if narrow else []
    for operator in new.values():
        if isinstance(operator, MagicConvolution):
            start_near_identity(operator, own)
    for operator in narrow:
        narrow_operator(own, operator, ranked, moments if fits_output else None)
