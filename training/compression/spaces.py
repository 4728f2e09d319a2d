"""The space around a checkpoint: narrower forms of its own operators and SKIP, and parts of that space.

A *drop* is a child that keeps some operators of the checkpoint as they are and skips all others.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import combinations, product

from modeling_magic.configuration_magic import SKIP, MagicConfig, operator_inner_size, parse_operator

from ..space.budgets import Budget, BudgetedSpace, Limit
from ..space.search_space import Architecture, SearchSpace


# Divisors of an attention operator's heads and of a feed-forward operator's width, for narrower operators.
HEAD_SHARES = (2, 4)
WIDTH_SHARES = (2, 4, 8)


def checkpoint_space(config: MagicConfig, convolutions: Sequence[str] = ()) -> SearchSpace:
    """Returns the children around a checkpoint.

    An attention layer offers its own heads, half and a quarter of them, the given convolutions, and SKIP; a
    feed-forward layer its own width, a half, a quarter and an eighth of it, and SKIP; any other layer its own operator
    and SKIP. Fractions that do not give whole numbers of heads or neurons are omitted. The checkpoint's own operator
    comes first in each layer.

    Args:
        config: the checkpoint's configuration, one operator per layer.
        convolutions: operators such as CONV5, for attention layers.

    Raises:
        ValueError: one of `convolutions` is not a convolution.
    """
    for name in convolutions:
        if parse_operator(name).kind != "CONV":
            raise ValueError(f"convolutions has {name}, which is not a convolution; give operators such as CONV5")
    return SearchSpace(tuple(tuple(_candidates(name, config, convolutions)) for name in config.chain))


def _candidates(name: str, config: MagicConfig, convolutions: Sequence[str]) -> list[str]:
    beside = convolutions if parse_operator(name).kind == "MHA" else ()
    return list(dict.fromkeys([name, *narrower(name, config), *beside, SKIP]))


def narrower(name: str, config: MagicConfig) -> list[str]:
    """Returns the names of an operator's narrower forms, the widest first: for MHA12, MHA6x192 and MHA3x96."""
    spec = parse_operator(name)
    inner = operator_inner_size(spec, config)
    if spec.kind == "FFN":
        return [f"FFNx{inner // share}" for share in WIDTH_SHARES if inner % share == 0]
    if spec.kind == "MHA":
        return [f"MHA{spec.size // share}x{inner // share}" for share in HEAD_SHARES if spec.size % share == 0]
    return []


# ---- Drops ----


def has_blocks(source: Architecture) -> bool:
    """Whether a chain consists of two or more blocks, each a non-feed-forward and a feed-forward layer."""
    is_ffn = [parse_operator(name).kind == "FFN" for name in source]
    num_blocks = len(source) // 2
    return num_blocks > 1 and is_ffn == [False, True] * num_blocks


def without_blocks(source: Architecture, blocks: Sequence[int]) -> Architecture:
    """Returns the child that skips both layers of some blocks; block i is layers 2i and 2i + 1."""
    return tuple(SKIP if layer // 2 in blocks else name for layer, name in enumerate(source))


def block_drops(source: Architecture, num_dropped: int) -> Iterator[Architecture]:
    """Yields the children that drop `num_dropped` whole blocks of a chain that has blocks, see `has_blocks`."""
    for dropped in combinations(range(len(source) // 2), num_dropped):
        yield without_blocks(source, dropped)


def evenly_spaced_blocks(source: Architecture, budget: Budget) -> Architecture | None:
    """Returns the drop that keeps evenly spaced blocks, including the first, as many as the budget allows.

    It is what a user would do without any measurement. `None` if no drop of blocks is within the budget.
    """
    num_blocks = len(source) // 2
    for num_kept in range(num_blocks - 1, 0, -1):
        kept = {round(place * num_blocks / num_kept) for place in range(num_kept)}
        child = without_blocks(source, [block for block in range(num_blocks) if block not in kept])
        if budget.allows(child):
            return child
    return None


def drops_only(space: SearchSpace, source: Architecture) -> SearchSpace:
    """Returns the drops in a space: each layer of the checkpoint is kept as it is, or skipped if SKIP is offered.

    Args:
        space: the children around the checkpoint.
        source: the checkpoint's chain, which is one of them.
    """
    return SearchSpace(
        tuple((name, SKIP) if SKIP in names else (name,) for name, names in zip(source, space.candidates, strict=True))
    )


# ---- Other parts of the space ----


def uniform_children(space: SearchSpace) -> Iterator[Architecture]:
    """Yields the children that take the same operator in all layers with the same candidates, never SKIP."""
    of_layers = [tuple(name for name in names if name != SKIP) for names in space.candidates]
    kinds = list(dict.fromkeys(of_layers))
    for names in product(*kinds):
        of_kind = dict(zip(kinds, names, strict=True))
        yield tuple(of_kind[kind] for kind in of_layers)


def near_budget(space: SearchSpace, budget: Budget, share: float) -> BudgetedSpace:
    """Returns the children within a budget whose layers cost at least a share of what it leaves for layers.

    All children have in common what lies outside the layers, such as the parameters of the embeddings. If no child
    costs that much, all children within the budget are returned.

    Args:
        space: the children.
        budget: a budget with one limit that has a largest value.
        share: 0 to 1.
    """
    (limit,) = budget.limits
    smallest, largest = limit.counts
    of_layers = largest - limit.cost.fixed
    least = max(smallest, math.ceil(limit.cost.fixed + share * of_layers))
    near = BudgetedSpace(space, Budget((Limit(limit.cost, limit.cost.value(int(least)), limit.maximum),)))
    return near if near.size else BudgetedSpace(space, budget)
