"""A super-net cut into blocks that are evaluated alone (NAS-BERT): borders, sampling, and ranking by summed losses."""

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from ..space.budgets import Budget, BudgetedSpace
from ..space.samplers import UniformSampler
from ..space.search_space import Architecture, SearchSpace


def block_borders(num_layers: int, num_blocks: int) -> tuple[int, ...]:
    """Returns the borders of the blocks, as the n of the H_n there; block lengths differ by at most one.

    Block b holds the layers between borders b and b + 1; the first border is 0 and the last one `num_layers`.

    Raises:
        ValueError: `num_blocks` is below 1 or above the number of layers.
    """
    if not 1 <= num_blocks <= num_layers:
        raise ValueError(f"num_blocks is {num_blocks}; choose 1 to {num_layers}, the number of layers")
    return tuple(block * num_layers // num_blocks for block in range(num_blocks + 1))


def split_by_borders(layers: Sequence[Any], borders: Sequence[int]) -> list[Any]:
    """Returns the slices of `layers`, such as an architecture's, block by block."""
    return [layers[start:end] for start, end in pairwise(borders)]


def block_spaces(space: SearchSpace, borders: Sequence[int]) -> list[SearchSpace]:
    """Returns the search space of each block: its sub-paths."""
    return [SearchSpace(candidates) for candidates in split_by_borders(space.candidates, borders)]


def join_spaces(spaces: Sequence[SearchSpace]) -> SearchSpace:
    """Returns the space whose children join one child of each space, the first at the bottom."""
    return SearchSpace(tuple(layer for space in spaces for layer in space.candidates))


class BlockSampler(UniformSampler):
    """Joins the sub-paths of one independent sampler per block into a child.

    Args:
        samplers: a sampler of any kind for each block's space.
    """

    kind = "blocks"

    def __init__(self, samplers: Sequence[UniformSampler]) -> None:
        super().__init__(join_spaces([sampler.space for sampler in samplers]), 0)
        self._samplers = list(samplers)

    def next(self) -> Architecture:
        """Returns the child of the next training step."""
        return tuple(operator for sampler in self._samplers for operator in sampler.next())

    def restrict(self, space: SearchSpace) -> None:
        """Continues in the space that shrinking has left of every block."""
        super().restrict(space)
        start = 0
        for sampler in self._samplers:
            end = start + sampler.space.num_layers
            sampler.restrict(SearchSpace(space.candidates[start:end]))
            start = end

    def state_dict(self) -> dict[str, Any]:
        """Returns the states of all blocks' samplers."""
        return {"kind": self.kind, "blocks": [sampler.state_dict() for sampler in self._samplers]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the sequences from which `state_dict` was taken, with the same blocks over the same space."""
        blocks = state.get("blocks")
        if state.get("kind") != self.kind or not isinstance(blocks, list) or len(blocks) != len(self._samplers):
            raise ValueError(f"the state does not belong to a sampler with {len(self._samplers)} blocks")
        for sampler, own in zip(self._samplers, blocks, strict=True):
            sampler.load_state_dict(own)


# ---- Ranking ----


class BlockwiseChild(NamedTuple):
    """A child and its block-wise loss: the sum of `block_losses`, lower is better."""

    architecture: Architecture
    block_loss: float
    block_losses: tuple[float, ...]


@dataclass(frozen=True)
class BlockwiseRanking:
    """The losses of all sub-paths of all blocks; their sums rank all children.

    Attributes:
        space: the space of the children.
        borders: borders of the blocks, see `block_borders`.
        losses: for each block, the loss of every sub-path.
    """

    space: SearchSpace
    borders: tuple[int, ...]
    losses: tuple[Mapping[Architecture, float], ...]

    def child(self, architecture: Architecture) -> BlockwiseChild:
        """Returns a child with its losses.

        Raises:
            ValueError: the child is not in the space.
        """
        self.space.check(architecture)
        paths = split_by_borders(architecture, self.borders)
        losses = tuple(own[path] for own, path in zip(self.losses, paths, strict=True))
        # A plain sum from the bottom up, as in `best_children`.
        return BlockwiseChild(architecture, sum(losses, 0.0), losses)

    def best_children(self, budget: Budget = Budget(), num_children: int = 1) -> list[BlockwiseChild]:  # noqa: B008
        """Returns the best children of the whole space within a budget, best first; the result is exact.

        Block by block, the best few bottoms are kept for each cost that a bottom can have. Costs depend on which
        operators a child holds but not on their position, so there are few of them: at most 3,654 for 26 layers with
        4 operators each, whatever is limited.

        Args:
            budget: limits on the cost of a child.
            num_children: number of children to return; fewer if the space has fewer.

        Raises:
            InfeasibleBudgetError: no child is within the budget.
            ValueError: `num_children` is below 1, or no child within the budget has a finite loss.
        """
        if num_children < 1:
            raise ValueError(f"num_children is {num_children}; it must be at least 1")
        BudgetedSpace(self.space, budget).check()
        costs = [limit.cost for limit in budget.limits]
        bottoms: _ByCost = {tuple(cost.fixed for cost in costs): [(0.0, ())]}
        for losses in self.losses:
            bottoms = _join(bottoms, self._by_cost(losses, budget, num_children), num_children)
        windows = [limit.counts for limit in budget.limits]
        within = [
            pair
            for counts, pairs in bottoms.items()
            if all(low <= count <= high for count, (low, high) in zip(counts, windows, strict=True))
            for pair in pairs
            if math.isfinite(pair[0])
        ]
        if not within:
            raise ValueError(
                "every child within the budget has a block with a non-finite loss; train with a lower learning_rate"
            )
        return [self.child(architecture) for _, architecture in heapq.nsmallest(num_children, within)]

    def _by_cost(self, losses: Mapping[Architecture, float], budget: Budget, num_kept: int) -> "_ByCost":
        grouped: _ByCost = {}
        for path, loss in losses.items():
            counts = tuple(sum(limit.cost.operators[operator] for operator in path) for limit in budget.limits)
            # A diverged sub-path must be worse than all others; NaN compares as neither better nor worse.
            grouped.setdefault(counts, []).append((math.inf if math.isnan(loss) else loss, path))
        return {counts: heapq.nsmallest(num_kept, pairs) for counts, pairs in grouped.items()}


# For every cost, as the integer counts of the limited costs, the best losses and sub-paths, ascending.
_ByCost = dict[tuple[int, ...], list[tuple[float, Architecture]]]


def _join(bottoms: _ByCost, tops: _ByCost, num_kept: int) -> _ByCost:
    joined: _ByCost = {}
    for counts, lower in bottoms.items():
        for more, upper in tops.items():
            pairs = joined.setdefault(tuple(map(sum, zip(counts, more, strict=True))), [])
            for rank, (loss, bottom) in enumerate(lower):
                # With a worse top, `num_kept` other pairs are no worse.
                best = upper[: num_kept // (rank + 1)]
                pairs.extend((loss + own, bottom + top) for own, top in best)
            if len(pairs) > 8 * num_kept:
                pairs[:] = heapq.nsmallest(num_kept, pairs)
    return {counts: heapq.nsmallest(num_kept, pairs) for counts, pairs in joined.items()}
