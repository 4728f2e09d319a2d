"""Narrower operators from a checkpoint's own: the most important heads and neurons, and a fitted output projection.

Attention and feed-forward operators end alike: an inner state z, heads end to end or neurons, goes through a linear
map W z + b. A narrower operator keeps a part S of z; its map is the one that comes nearest to the old output on text,
by least squares. All that this needs of the text is the second moments of z, so that one pass of the checkpoint serves
all operators.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from modeling_magic import MagicConfig
from modeling_magic.modeling_magic import MagicPreTrainedModel

from .spaces import shape_of
from .teacher_objectives import Batch


# By what heads and neurons are chosen.
IMPORTANCES = ("output", "norm")
# Of the mean second moment of an inner state, added to each, so that what never fires does not break the solution.
_RIDGE = 1e-4


class InnerMoments(NamedTuple):
    """Second moments of an operator's inner state on text, a constant 1 at its end for the output's bias.

    Attributes:
        products: (inner + 1, inner + 1), float64, the sum of z z^T over tokens.
        num_tokens: how many.
    """

    products: Tensor
    num_tokens: int

    @property
    def power(self) -> Tensor:
        """The mean square of each component of z, (inner,)."""
        return self.products.diagonal()[:-1] / self.num_tokens


@torch.no_grad()
def inner_moments(model: MagicPreTrainedModel, batches: Iterable[Batch]) -> list[InnerMoments]:
    """Returns the moments of the inner state of each layer of a chain, padding left out.

    Args:
        model: the checkpoint as a chain, in evaluation mode.
        batches: of text.
    """
    encoder = model.base_model
    sums: list[Tensor | None] = [None] * len(encoder.encoder.layer)
    mask: Tensor | None = None
    num_tokens = 0

    def add(layer: int, inner: Tensor) -> None:
        states = inner.flatten(0, 1) if mask is None else inner[mask]
        states = torch.cat([states.float(), states.new_ones(len(states), 1, dtype=torch.float)], dim=1)
        products = (states.T @ states).double()
        total = sums[layer]
        sums[layer] = products if total is None else total + products

    hooks = []
    for index, layer in enumerate(encoder.encoder.layer):
        (operator,) = layer.operators.values()
        hooks.append(operator.dense.register_forward_pre_hook(lambda _, args, index=index: add(index, args[0])))
    try:
        for batch in batches:
            inputs = {name: batch[name].to(model.device) for name in ("input_ids", "token_type_ids") if name in batch}
            given = batch.get("attention_mask")
            mask = None if given is None else given.bool().to(model.device)
            num_tokens += batch["input_ids"].numel() if given is None else int(given.sum())
            encoder(**inputs, attention_mask=given)
    finally:
        for hook in hooks:
            hook.remove()
    return [InnerMoments(total, num_tokens) for total in sums if total is not None]


# ---- Which heads and neurons ----


def rank_parts(operator: nn.Module, num_parts: int, moments: InnerMoments, importance: str = "output") -> list[int]:
    """Returns the parts of an operator's inner state, heads or neurons, the most important first.

    The first ones of the order are a narrower operator's, so that those of a narrow one are among those of a wider.

    Args:
        operator: of the checkpoint.
        num_parts: heads of an attention operator; a feed-forward operator's neurons are parts of one component.
        moments: of its inner state.
        importance: "output", what a part adds to the output on text: heads are taken one by one, each the one with
            which the output comes nearest to the old one by least squares, and neurons by the size of their
            activation times the norm of their column in the output's map; or "norm", the norms of the weights alone.

    Raises:
        ValueError: there is no such importance.
    """
    if importance not in IMPORTANCES:
        raise ValueError(f"importance is {importance!r}; choose one of: {', '.join(IMPORTANCES)}")
    weight = operator.dense.weight.detach().double()
    size = weight.shape[1] // num_parts
    if importance == "norm":
        columns = weight.square().sum(dim=0) * _input_norms(operator)
        return columns.view(num_parts, size).sum(dim=1).argsort(descending=True, stable=True).tolist()
    if size == 1:
        return (weight.square().sum(dim=0) * moments.power).argsort(descending=True, stable=True).tolist()
    return _greedy_parts(weight, num_parts, moments)


def _input_norms(operator: nn.Module) -> Tensor:
    source = operator.value if hasattr(operator, "value") else operator.intermediate
    return source.weight.detach().double().square().sum(dim=1)


def _greedy_parts(weight: Tensor, num_parts: int, moments: InnerMoments) -> list[int]:
    size = weight.shape[1] // num_parts
    chosen: list[int] = []
    left = list(range(num_parts))
    while left:
        best = max(left, key=lambda part: _explained(weight, moments, _components([*chosen, part], size)))
        chosen.append(best)
        left.remove(best)
    return chosen


def _components(parts: Sequence[int], size: int) -> Tensor:
    return (torch.tensor(list(parts)).unsqueeze(1) * size + torch.arange(size)).flatten()


# ---- The output's map ----


def fit_output(weight: Tensor, bias: Tensor, moments: InnerMoments, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Returns weight (hidden, kept) and bias (hidden,) with which the kept part of z comes nearest to W z + b.

    The nearest is in the mean square over the tokens of the text, with a slight ridge.

    Args:
        weight: W, (hidden, inner).
        bias: b, (hidden,).
        moments: of z.
        kept: the components of z that are kept, in their new order.
    """
    own, cross = _normal_equations(weight, bias, moments, kept)
    solution = torch.linalg.solve(own, cross).T
    return solution[:, :-1], solution[:, -1]


def _normal_equations(weight: Tensor, bias: Tensor, moments: InnerMoments, kept: Tensor) -> tuple[Tensor, Tensor]:
    products, last = moments.products.cpu() / moments.num_tokens, torch.tensor([weight.shape[1]])
    rows = torch.cat([kept, last])
    whole = torch.cat([weight, bias.unsqueeze(1)], dim=1).double().cpu()
    own = products[rows][:, rows].clone()
    ridge = _RIDGE * own.diagonal()[:-1].mean()
    own.diagonal()[:-1].add_(ridge)
    # The old map is pulled towards on the kept components, not towards zero.
    cross = products[rows] @ whole.T
    cross[:-1] += ridge * whole[:, kept].T
    return own, cross


def _explained(weight: Tensor, moments: InnerMoments, kept: Tensor) -> float:
    """Returns how much of the output's power the kept components explain by least squares, up to a constant."""
    own, cross = _normal_equations(weight, weight.new_zeros(len(weight)), moments, kept)
    return float((cross * torch.linalg.solve(own, cross)).sum())


# ---- Operators ----


@torch.no_grad()
def narrow_operator(
    operator: nn.Module,
    target: nn.Module,
    name: str,
    narrow: str,
    config: MagicConfig,
    ranked: Sequence[int],
    moments: InnerMoments | None,
) -> None:
    """Gives a narrower operator the checkpoint's most important heads or neurons and an output map.

    Args:
        operator: of the checkpoint, called `name`.
        target: changed in place, called `narrow`; of the same kind.
        name: names say how many parts there are.
        narrow: see `name`.
        config: sizes.
        ranked: the parts of `operator`, the most important first, see `rank_parts`.
        moments: of its inner state, by which the output's map is fitted; `None` copies the columns.
    """
    (spec, inner), (_, narrow_inner) = shape_of(name, config), shape_of(narrow, config)
    size = inner // (spec.size or inner)
    # In their old order, as far as the order of parts is nothing to the function.
    kept = _components(sorted(ranked[: narrow_inner // size]), size)
    inputs = ("query", "key", "value") if spec.kind == "MHA" else ("intermediate",)
    for part in inputs:
        old, new = getattr(operator, part), getattr(target, part)
        new.weight.copy_(old.weight[kept])
        new.bias.copy_(old.bias[kept])
    if moments is None:
        weight, bias = operator.dense.weight[:, kept], operator.dense.bias
    else:
        weight, bias = fit_output(operator.dense.weight, operator.dense.bias, moments, kept)
    target.dense.weight.copy_(weight)
    target.dense.bias.copy_(bias)
    target.LayerNorm.load_state_dict(operator.LayerNorm.state_dict())


@torch.no_grad()
def start_near_identity(operator: nn.Module, replaced: nn.Module) -> None:
    """Lets a convolution begin as the norm of the operator that it stands in for, adding nothing to its input."""
    operator.dense.weight.zero_()
    operator.dense.bias.zero_()
    operator.LayerNorm.load_state_dict(replaced.LayerNorm.state_dict())


def num_parts_of(name: str, config: MagicConfig) -> int:
    """Returns how many parts an operator's inner state has: heads, or neurons."""
    spec, inner = shape_of(name, config)
    return spec.size or inner


def start_operators(
    supernet: MagicPreTrainedModel,
    teacher: MagicPreTrainedModel,
    moments: Sequence[InnerMoments],
    importance: str = "output",
    fits_output: bool = True,
) -> list[tuple[int, str]]:
    """Gives every operator of a super-net around a checkpoint its start, and returns the new ones by layer and name.

    The checkpoint's own operators, embeddings and head must have been copied (`initialize_from`).

    Args:
        supernet: changed in place.
        teacher: the checkpoint as a chain.
        moments: of its layers, see `inner_moments`.
        importance: see `rank_parts`.
        fits_output: whether output maps are fitted by least squares, or copied.
    """
    config, new = teacher.config, []
    for layer, (name, candidates) in enumerate(zip(config.chain, supernet.config.candidate_operators, strict=True)):
        own: Any = teacher.base_model.encoder.layer[layer].operators[name]
        operators = supernet.base_model.encoder.layer[layer].operators
        ranked: list[int] | None = None
        for candidate in candidates:
            if candidate == name or shape_of(candidate, config)[0].kind == "SKIP":
                continue
            new.append((layer, candidate))
            if shape_of(candidate, config)[0].kind != shape_of(name, config)[0].kind:
                start_near_identity(operators[candidate], own)
                continue
            if ranked is None:
                num_parts = num_parts_of(name, config)
                ranked = rank_parts(own, num_parts, moments[layer], importance)
            narrow_operator(
                own, operators[candidate], name, candidate, config, ranked, moments[layer] if fits_output else None
            )
    return new
