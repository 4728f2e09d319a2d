"""The space around a checkpoint: narrower forms of its own operators and SKIP, and the children to begin with."""

from collections.abc import Iterator, Sequence
from itertools import combinations

from modeling_magic.configuration_magic import SKIP, MagicConfig, OperatorSpec, operator_inner_size, parse_operator

from ..space.budgets import Budget
from ..space.search_space import Architecture, SearchSpace


# Shares of an attention operator's heads and of a feed-forward operator's width that narrower ones keep.
HEAD_SHARES = (2, 4)
WIDTH_SHARES = (2, 4, 8)


def checkpoint_space(config: MagicConfig, convolutions: Sequence[str] = ()) -> SearchSpace:
    """Returns the children around a checkpoint.

    An attention layer offers its own heads, half and a quarter of them, the convolutions that are asked for, and SKIP;
    a feed-forward layer its own width, a half, a quarter and an eighth, and SKIP; any other layer its own operator
    and SKIP. Shares that are no whole number of heads or neurons are left out.

    Args:
        config: the checkpoint's, one operator a layer.
        convolutions: operators such as CONV5, for attention layers.
    """
    return SearchSpace(tuple(tuple(_candidates(name, config, convolutions)) for name in config.chain))


def _candidates(name: str, config: MagicConfig, convolutions: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([name, *narrower(name, config), *_convolutions(name, convolutions), SKIP]))


def _convolutions(name: str, convolutions: Sequence[str]) -> Sequence[str]:
    return convolutions if parse_operator(name).kind == "MHA" else ()


def narrower(name: str, config: MagicConfig) -> list[str]:
    """Returns the names of an operator's narrower forms, the widest first: of MHA12 MHA6x192 and MHA3x96."""
    spec = parse_operator(name)
    inner = operator_inner_size(spec, config)
    if spec.kind == "FFN":
        return [f"FFN{_inner(inner // share)}" for share in WIDTH_SHARES if inner % share == 0]
    if spec.kind == "MHA":
        head_size = inner // spec.size
        heads = [spec.size // share for share in HEAD_SHARES if spec.size % share == 0]
        return [f"MHA{number}{_inner(number * head_size)}" for number in heads]
    return []


def _inner(size: int) -> str:
    return f"x{size}"


# ---- Children to begin with ----


def block_drops(source: Architecture, num_dropped: int) -> Iterator[Architecture]:
    """Yields the children that drop so many whole blocks, each an attention and the feed-forward layer after it.

    Args:
        source: the checkpoint's chain, whose layers alternate.
        num_dropped: how many blocks.
    """
    for dropped in combinations(range(len(source) // 2), num_dropped):
        yield tuple(SKIP if layer // 2 in dropped else name for layer, name in enumerate(source))


def every_second_block(source: Architecture, budget: Budget) -> Architecture | None:
    """Returns the drop of blocks that a user would make: evenly spaced ones stay, as many as the budget allows.

    `None` where not even one block is within the budget.
    """
    num_blocks = len(source) // 2
    for kept in range(num_blocks - 1, 0, -1):
        stays = {round(place * num_blocks / kept) for place in range(kept)}
        child = tuple(name if layer // 2 in stays else SKIP for layer, name in enumerate(source))
        if budget.allows(child):
            return child
    return None


def uniform_children(space: SearchSpace) -> Iterator[Architecture]:
    """Yields the children that take the same operator in all layers of a kind, SKIP left out."""
    kinds: dict[tuple[str, ...], list[int]] = {}
    for layer, names in enumerate(space.candidates):
        kinds.setdefault(tuple(name for name in names if name != SKIP), []).append(layer)
    yield from _fill(space.num_layers, list(kinds.items()), {})


def _fill(num_layers: int, kinds: list[tuple[tuple[str, ...], list[int]]], chosen: dict[int, str]) -> Iterator:
    if not kinds:
        yield tuple(chosen[layer] for layer in range(num_layers))
        return
    (names, layers), *rest = kinds
    for name in names:
        yield from _fill(num_layers, rest, {**chosen, **dict.fromkeys(layers, name)})


def drops_only(space: SearchSpace, source: Architecture) -> SearchSpace:
    """Returns the space of the children that keep or skip each layer of the checkpoint as it is."""
    return SearchSpace(
        tuple((name, SKIP) if SKIP in names else (name,) for name, names in zip(source, space.candidates, strict=True))
    )


def shape_of(name: str, config: MagicConfig) -> tuple[OperatorSpec, int]:
    """Returns what an operator's name says, and its inner size."""
    spec = parse_operator(name)
    return spec, operator_inner_size(spec, config)
