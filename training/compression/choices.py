"""Which children are distilled for a budget: the one that is found, and the controls that it has to beat."""

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from modeling_magic.configuration_magic import SKIP

from ..search.searchers import EvolutionSearcher, rank_key
from ..space.budgets import Budget, BudgetedSpace
from ..space.search_space import Architecture, SearchSpace
from ..supernet.journal import RankedChild
from .spaces import block_drops, drops_only, every_second_block, uniform_children


Evaluate = Callable[[Iterable[Architecture]], list[RankedChild]]
Order = Callable[[RankedChild], object]

# Of blocks: with more ways than this to drop as many as the budget asks for, they are dropped one after another.
_MAX_DROPS = 200
# The random control costs from this share of the budget up to it.
_RANDOM_SHARE = 0.9


@dataclass(frozen=True)
class Choices:
    """The children that a budget's models are made of.

    Attributes:
        found: the winner of the search.
        controls: by role: block_drop (whole blocks, the best by zero-shot score), sublayer_drop (single layers, the
            best by zero-shot score), every_second_block (what a user would drop), one_width (the same operators in
            all blocks, the best by the super-net's score) and random (within the budget). A role that no child fills
            is left out.
    """

    found: RankedChild
    controls: dict[str, Architecture]

    def to_json(self) -> dict[str, Any]:
        """Returns the choice as JSON."""
        return {"found": asdict(self.found), "controls": {role: list(child) for role, child in self.controls.items()}}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Self:
        """Returns what `to_json` was called on, but for the losses of single batches."""
        found = values["found"]
        child = RankedChild(tuple(found["architecture"]), found["val_loss"], found["val_accuracy"])
        return cls(child, {role: tuple(child) for role, child in values["controls"].items()})


def best_first(weight: float) -> Order:
    """Returns the order of children, the best first: by the loss less `weight` times the second score."""
    if not weight:
        return rank_key

    def key(child: RankedChild) -> object:
        value = child.val_loss - weight * child.val_accuracy
        return not math.isfinite(value), value if math.isfinite(value) else 0.0, child.architecture

    return key


# ---- Drops ----


def dropped_blocks(source: Architecture, budget: Budget, evaluate: Evaluate) -> list[RankedChild]:
    """Returns children that drop as few blocks as the budget allows, by the checkpoint's own weights, the best first.

    All of them where there are no more than 200, else those met on the way of dropping one block after another, each
    the one that costs the least.

    Args:
        source: the checkpoint's chain.
        budget: what they may cost.
        evaluate: with the checkpoint's weights, untrained.
    """
    if not _alternates(source):
        return []
    num_blocks = len(source) // 2
    for num_dropped in range(1, num_blocks):
        if math.comb(num_blocks, num_dropped) > _MAX_DROPS:
            return _greedy_blocks(source, budget, evaluate)
        children = [child for child in block_drops(source, num_dropped) if budget.allows(child)]
        if children:
            return sorted(evaluate(children), key=rank_key)
    return []


def _alternates(source: Architecture) -> bool:
    return len(source) >= 4 and len(source) % 2 == 0


def _greedy_blocks(source: Architecture, budget: Budget, evaluate: Evaluate) -> list[RankedChild]:
    child = source
    while True:
        left = [block for block in range(len(source) // 2) if child[2 * block] != SKIP]
        if len(left) < 2:
            return []
        ranked = sorted(evaluate(_without_block(child, block) for block in left), key=rank_key)
        if within := [one for one in ranked if budget.allows(one.architecture)]:
            return within
        child = ranked[0].architecture


def _without_block(child: Architecture, block: int) -> Architecture:
    return tuple(SKIP if layer // 2 == block else name for layer, name in enumerate(child))


def dropped_layers(
    space: SearchSpace, source: Architecture, budget: Budget, evaluate: Evaluate, num_evaluations: int, seed: int
) -> list[RankedChild]:
    """Returns children that drop single layers, by the checkpoint's own weights, the best first.

    Evolution among the children that keep or skip each layer, from the best drops of blocks on.
    """
    within = BudgetedSpace(drops_only(space, source), budget)
    if not within.size:
        return []
    first = [child.architecture for child in dropped_blocks(source, budget, evaluate)]
    return evolve(within, evaluate, first, num_evaluations, seed)


# ---- Search ----


def evolve(
    within: BudgetedSpace,
    evaluate: Evaluate,
    first: Sequence[Architecture],
    num_evaluations: int,
    seed: int,
    order: Order = rank_key,
) -> list[RankedChild]:
    """Returns the children that evolution has evaluated and those to begin with, the best first.

    Args:
        within: the children within the budget.
        evaluate: gives their losses.
        first: children to begin with; those beyond the budget are left out.
        num_evaluations: of children beside those.
        seed: of the searcher.
        order: puts the best child first.
    """
    searcher = EvolutionSearcher(within, seed, population_size=max(10, min(50, num_evaluations // 4)))
    known = evaluate(dict.fromkeys(child for child in first if child in within))
    children = searcher.ask()[:num_evaluations]
    ranked = evaluate(children)
    # As many of them as a population holds, the best last: it forgets the oldest.
    searcher.tell(_as_ranked_by(order, sorted(known, key=order, reverse=True)[-25:]))
    searcher.tell(_as_ranked_by(order, ranked))
    seen = {child.architecture: child for child in (*known, *ranked)}
    left = num_evaluations - len(ranked)
    while left > 0 and (children := searcher.ask()[:left]):
        ranked = evaluate(children)
        searcher.tell(_as_ranked_by(order, ranked))
        seen |= {child.architecture: child for child in ranked}
        left -= len(children)
    return sorted(seen.values(), key=order)


def _as_ranked_by(order: Order, children: Sequence[RankedChild]) -> list[RankedChild]:
    """Returns children whose loss is what the order goes by, for a searcher that knows losses alone."""
    if order is rank_key:
        return list(children)
    return [
        RankedChild(child.architecture, order(child)[1], child.val_accuracy)  # type: ignore[index]
        for child in children
    ]


def best_additive(space: SearchSpace, budget: Budget, errors: Sequence[dict[str, float]]) -> Architecture:
    """Returns the child within the budget whose operators' errors add up to the least, exact (Puzzle's choice).

    A walk over the layers keeps, of the partial children of one cost, the one with the smallest error; partial
    children that cost more and err more than another are dropped.

    Args:
        space: the children.
        budget: of one limit, a largest value, and a smallest that only the child of no layers is below.
        errors: for each layer the error of each operator, see `calibration.local_errors`.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
    """
    BudgetedSpace(space, budget).check()
    (limit,) = budget.limits
    costs = limit.cost.operators
    smallest, largest = (count - limit.cost.fixed for count in limit.counts)
    front: list[tuple[int, float, Architecture]] = [(0, 0.0, ())]
    for candidates, layer in zip(space.candidates, errors, strict=True):
        longer = sorted(
            (cost + costs[name], error + layer[name], (*child, name))
            for cost, error, child in front
            for name in candidates
            if cost + costs[name] <= largest
        )
        front = []
        for cost, error, child in longer:
            if not front or error < front[-1][1]:
                front.append((cost, error, child))
    return next(child for cost, _, child in reversed(front) if cost >= smallest)


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
    """Returns the child that is found within a budget and its controls.

    Args:
        space: the children around the checkpoint.
        source: the checkpoint's chain.
        budget: what a child may cost.
        zero_shot: judges by the weights before the super-net was trained: drops of layers are the checkpoint's own.
        shared: judges by the trained super-net's weights.
        num_evaluations: of each search.
        seed: of all that is drawn.
        order: puts the best child first.
        found: a child that was found otherwise, in place of a search.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
    """
    within = BudgetedSpace(space, budget)
    within.check()
    blocks = dropped_blocks(source, budget, zero_shot)
    layers = dropped_layers(space, source, budget, zero_shot, num_evaluations // 2, seed)
    widths = [child for child in uniform_children(space) if child in within]
    first = [*(child.architecture for child in (*blocks[:50], *layers[:25])), *widths]
    if found is None:
        winner = evolve(within, shared, first, num_evaluations, seed, order)[0]
    else:
        (winner,) = shared([found])
    controls: dict[str, Architecture] = {}
    if blocks:
        controls["block_drop"] = blocks[0].architecture
    if layers:
        controls["sublayer_drop"] = layers[0].architecture
    if _alternates(source) and (evenly := every_second_block(source, budget)) is not None:
        controls["every_second_block"] = evenly
    if widths:
        controls["one_width"] = sorted(shared(widths), key=order)[0].architecture
    controls["random"] = random_child(space, budget, seed)
    return Choices(winner, controls)


def random_child(space: SearchSpace, budget: Budget, seed: int) -> Architecture:
    """Returns a child drawn uniformly from those that cost from nine tenths of the budget up to it."""
    (limit,) = budget.limits
    assert limit.maximum is not None
    near = BudgetedSpace(space, Budget((type(limit)(limit.cost, _RANDOM_SHARE * limit.maximum, limit.maximum),)))
    return (near if near.size else BudgetedSpace(space, budget)).sample(random.Random(f"random-{seed}"))
