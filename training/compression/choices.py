"""Which children are distilled for a budget: the found child, and the controls that it has to beat."""

import math
import random
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from heapq import nlargest
from typing import Any, Self

from ..search.searchers import EvolutionSearcher, rank_key
from ..space.budgets import Budget, BudgetedSpace
from ..space.search_space import Architecture, SearchSpace
from ..supernet.evaluation import operator_evaluations
from ..supernet.journal import RankedChild
from .spaces import (
    block_drops,
    drops_only,
    evenly_spaced_blocks,
    has_blocks,
    near_budget,
    uniform_children,
    without_blocks,
)


# Returns children with their losses, in the order given.
Evaluate = Callable[[Iterable[Architecture]], list[RankedChild]]
# Returns a key by which children are sorted, the best first; those whose value is NaN come last.
Order = Callable[[RankedChild], tuple[bool, float, Architecture]]

# With more ways than this to drop as many blocks as a budget asks for, they are dropped one after another.
_MAX_BLOCK_DROPS = 200
# Largest number of children of each control that the search begins with.
_MAX_FIRST = 20
# Smallest number of layer drops to judge. With twelve layers they include the best drop or the next; with 50, rarely.
_FEWEST_DROPS = 200
# The layers of the random control cost at least this share of what the budget leaves for them.
_RANDOM_SHARE = 0.9


@dataclass(frozen=True)
class Choices:
    """The children from which the models of a budget are made.

    Attributes:
        found: the winner of the search.
        controls: a child by role: block_drop (whole blocks, the best by zero-shot loss), sublayer_drop (single layers,
            the best by zero-shot loss), evenly_spaced_blocks (what a user would drop), one_width (the same operators
            in all blocks, the best by the super-net) and random (within the budget). A role for which there is no
            child is missing.
        passes: for each operator, how often it ran over all judged sentences while the children were chosen.
    """

    found: RankedChild
    controls: dict[str, Architecture]
    passes: dict[str, int]

    def to_json(self) -> dict[str, Any]:
        """Returns the choice as JSON."""
        controls = {role: list(child) for role, child in self.controls.items()}
        return {"found": asdict(self.found), "controls": controls, "passes": self.passes}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Restores the object from `to_json`, without the losses of single batches."""
        found = values["found"]
        child = RankedChild(tuple(found["architecture"]), found["val_loss"], found["val_accuracy"])
        return cls(child, {role: tuple(child) for role, child in values["controls"].items()}, values["passes"])


class _Counted:
    """Judges children, and counts the operators evaluated for it: those of children that it has not seen before."""

    def __init__(self, evaluate: Evaluate, passes: Counter[str]):
        self._evaluate, self._passes, self._seen = evaluate, passes, set[Architecture]()

    def __call__(self, children: Iterable[Architecture]) -> list[RankedChild]:
        children = list(children)
        self._passes += operator_evaluations(child for child in children if child not in self._seen)
        self._seen.update(children)
        return self._evaluate(children)


def best_first(weight: float) -> Order:
    """Returns the order of children, the best first, by the loss minus `weight` times the second score."""
    if not weight:
        return rank_key
    return lambda child: rank_key(replace(child, val_loss=child.val_loss - weight * child.val_accuracy))


# ---- Drops ----


def dropped_blocks(source: Architecture, budget: Budget, evaluate: Evaluate) -> list[RankedChild]:
    """Returns the drops of as few blocks as the budget allows, by the checkpoint's own weights, the best first.

    If there are at most 200 such drops, all of them are returned. Otherwise blocks are dropped one after another, each
    time the block whose removal gives the lowest loss, and the result holds the last drops that were compared, as far
    as they are within the budget. The result is empty for a chain that does not consist of blocks (see `has_blocks`),
    and for a budget that is below every single block.

    Args:
        source: the checkpoint's chain.
        budget: a budget with one limit.
        evaluate: evaluates children with the checkpoint's untrained weights.
    """
    num_dropped = _fewest_blocks(source, budget) if has_blocks(source) else None
    if num_dropped is None:
        return []
    if math.comb(len(source) // 2, num_dropped) > _MAX_BLOCK_DROPS:
        return _drop_one_by_one(source, budget, evaluate)
    drops = [child for child in block_drops(source, num_dropped) if budget.allows(child)]
    return sorted(evaluate(drops), key=rank_key)


def _fewest_blocks(source: Architecture, budget: Budget) -> int | None:
    """Returns the smallest number of blocks to drop, `None` if even a single remaining block is too expensive."""
    (limit,) = budget.limits
    num_blocks = len(source) // 2
    most_expensive = sorted(
        range(num_blocks), key=lambda block: limit.cost.count(source[2 * block :][:2]), reverse=True
    )
    return next((n for n in range(1, num_blocks) if budget.allows(without_blocks(source, most_expensive[:n]))), None)


def _drop_one_by_one(source: Architecture, budget: Budget, evaluate: Evaluate) -> list[RankedChild]:
    blocks = range(len(source) // 2)
    dropped: list[int] = []
    while len(dropped) < len(blocks) - 1:
        children = {without_blocks(source, [*dropped, block]): block for block in blocks if block not in dropped}
        ranked = sorted(evaluate(children), key=rank_key)
        if within := [child for child in ranked if budget.allows(child.architecture)]:
            return within
        dropped.append(children[ranked[0].architecture])
    return []


def dropped_layers(
    space: SearchSpace,
    source: Architecture,
    budget: Budget,
    evaluate: Evaluate,
    first: Sequence[Architecture],
    num_evaluations: int,
    seed: int,
) -> list[RankedChild]:
    """Returns drops of single layers, by the checkpoint's own weights, the best first; empty if none is allowed.

    Args:
        space: the children around the checkpoint.
        source: the checkpoint's chain.
        budget: the budget of the drops.
        evaluate: evaluates children with the checkpoint's untrained weights.
        first: drops to begin the search with, such as drops of blocks.
        num_evaluations: see `evolve`.
        seed: seed of the search.
    """
    within = BudgetedSpace(drops_only(space, source), budget)
    return evolve(within, evaluate, first, num_evaluations, seed) if within.size else []


# ---- Search ----


def evolve(
    within: BudgetedSpace,
    evaluate: Evaluate,
    first: Sequence[Architecture],
    num_evaluations: int,
    seed: int,
    order: Order = rank_key,
) -> list[RankedChild]:
    """Returns all children that evolution has evaluated, including the initial ones, the best first.

    The first parents are the best among the initial children and as many random ones as the population has.

    Args:
        within: the children within the budget, at least one.
        evaluate: returns the losses of children.
        first: initial children; those beyond the budget are ignored.
        num_evaluations: number of children to evaluate in addition to the initial ones.
        seed: seed of the searcher.
        order: sorts the best child first.
    """
    searcher = EvolutionSearcher(within, seed, population_size=max(10, min(50, num_evaluations // 4)))
    seen = {child.architecture: child for child in evaluate(dict.fromkeys(filter(within.__contains__, first)))}
    random_ones = [child for child in searcher.ask() if child not in seen][:num_evaluations]
    seen |= {child.architecture: child for child in evaluate(random_ones)}
    # The searcher forgets the oldest children, so it is told the best ones last.
    searcher.tell(_ranked_by(order, sorted(seen.values(), key=order, reverse=True)))
    num_left = num_evaluations - len(random_ones)
    while num_left > 0 and (children := searcher.ask()[:num_left]):
        ranked = evaluate(children)
        searcher.tell(_ranked_by(order, ranked))
        seen |= {child.architecture: child for child in ranked}
        num_left -= len(children)
    return sorted(seen.values(), key=order)


def _ranked_by(order: Order, children: Iterable[RankedChild]) -> list[RankedChild]:
    """Returns children whose loss is the value that the order sorts by, for a searcher that only knows losses."""
    values = ((child, *order(child)[:2]) for child in children)
    return [replace(child, val_loss=math.nan if is_last else value) for child, is_last, value in values]


def best_additive(space: SearchSpace, budget: Budget, errors: Sequence[dict[str, float]]) -> Architecture:
    """Returns the child within the budget with the smallest sum of operator errors, exactly (Puzzle's choice).

    Among equally good children the cheapest is returned. A walk over the layers keeps the partial children that no
    other one beats in both cost and error, which are few.

    Args:
        space: the children.
        budget: a budget with one limit.
        errors: for each layer the error of each operator, see `calibration.local_errors`; one that is not finite is
            worse than all others.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
    """
    BudgetedSpace(space, budget).check()
    (limit,) = budget.limits
    costs = limit.cost.operators
    smallest, largest = (count - limit.cost.fixed for count in limit.counts)
    front: list[_Partial] = [(0, 0.0, ())]
    for candidates, layer in zip(space.candidates, errors, strict=True):
        finite = {name: layer[name] if math.isfinite(layer[name]) else math.inf for name in candidates}
        longer = (
            (cost + costs[name], error + finite[name], (*child, name))
            for cost, error, child in front
            for name in candidates
            if cost + costs[name] <= largest
        )
        front = _unbeaten(longer, smallest)
    return min((error, cost, child) for cost, error, child in front if cost >= smallest)[2]


# A child's first layers: cost, error, operators.
_Partial = tuple[int, float, Architecture]


def _unbeaten(partials: Iterable[_Partial], smallest: float) -> list[_Partial]:
    """Returns the partial children that may still become the best one.

    A partial child that costs less than `smallest` may end up below the budget's window, so it only beats those of the
    same cost.
    """
    kept: list[_Partial] = []
    least = None
    for cost, error, child in sorted(partials):
        if kept and kept[-1][0] == cost:
            continue
        if cost >= smallest:
            if least is not None and error >= least:
                continue
            least = error
        kept.append((cost, error, child))
    return kept


# ---- All children of a budget ----


def choose(
    space: SearchSpace,
    source: Architecture,
    budget: Budget,
    *,
    zero_shot: Evaluate,
    shared: Evaluate,
    num_evaluations: int,
    seed: int,
    order: Order = rank_key,
    found: Architecture | None = None,
) -> Choices:
    """Returns the found child within a budget, and its controls.

    Args:
        space: the children around the checkpoint.
        source: the checkpoint's chain.
        budget: a budget with one limit that has a largest value.
        zero_shot: judges by the weights before the super-net's training; drops of layers are the checkpoint's own.
        shared: judges by the trained super-net's weights.
        num_evaluations: number of evaluations of each search in addition to the controls; the search for drops of
            layers makes at least 200.
        seed: seed of everything that is drawn.
        order: sorts the best child first.
        found: a child that was found in another way; it replaces the search.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
    """
    within = BudgetedSpace(space, budget)
    within.check()
    passes = Counter[str]()
    zero_shot, shared = _Counted(zero_shot, passes), _Counted(shared, passes)
    blocks = [child.architecture for child in dropped_blocks(source, budget, zero_shot)]
    ranked = dropped_layers(space, source, budget, zero_shot, blocks, max(num_evaluations, _FEWEST_DROPS), seed)
    layers = [child.architecture for child in ranked]
    widths = _uniform_within(within)
    if found is None:
        first = [*blocks[:_MAX_FIRST], *layers[:_MAX_FIRST], *widths]
        winner = evolve(within, shared, first, num_evaluations, seed, order)[0]
    else:
        (winner,) = shared([found])
    of_roles = {
        "block_drop": blocks[0] if blocks else None,
        "sublayer_drop": layers[0] if layers else None,
        "evenly_spaced_blocks": evenly_spaced_blocks(source, budget) if has_blocks(source) else None,
        "one_width": min(shared(widths), key=order).architecture if widths else None,
        "random": random_child(space, budget, seed),
    }
    controls = {role: child for role, child in of_roles.items() if child is not None}
    return Choices(winner, controls, dict(passes))


def _uniform_within(within: BudgetedSpace) -> list[Architecture]:
    """Returns the children of one width within the budget: only the most expensive ones if there are very many."""
    (limit,) = within.budget.limits
    children = filter(within.__contains__, uniform_children(within.space))
    return nlargest(_MAX_FIRST, children, key=limit.cost.count)


def random_child(space: SearchSpace, budget: Budget, seed: int) -> Architecture:
    """Returns a child drawn uniformly among those of nearly the budget's size, see `near_budget`."""
    return near_budget(space, budget, _RANDOM_SHARE).sample(random.Random(f"random-{seed}"))
