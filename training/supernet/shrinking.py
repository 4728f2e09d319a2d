"""Progressive shrinking of the search space (section 5.1): when operators are deleted, and which ones."""

import math
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice
from typing import NamedTuple

from ..space.samplers import FairSampler
from ..space.search_space import Architecture, SearchSpace


Operator = tuple[int, str]
"""A layer's index, from 0, and the name of one of its candidate operators."""


class ShrinkRound(NamedTuple):
    """One round of the schedule: after optimizer step `step`, `num_deletions` operators are deleted."""

    step: int
    num_deletions: int


def shrink_schedule(space: SearchSpace, num_steps: int, round_every: int, per_round: int = 5) -> list[ShrinkRound]:
    """Returns the rounds that fit into a run of `num_steps` steps, until one child is left.

    The paper deletes five operators at the end of each epoch (5.1): for 26 layers with 4 operators each, that is 78
    deletions in 16 rounds, the last one of three. The run ends with one child if the deletions sum to
    `space.num_operators - space.num_layers`.

    Args:
        space: the whole space.
        num_steps: optimizer steps of the run.
        round_every: steps between rounds, such as those of an epoch.
        per_round: operators deleted per round, over all layers together.

    Raises:
        ValueError: `round_every` or `per_round` is below 1.
    """
    for name, value in (("round_every", round_every), ("per_round", per_round)):
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    deletions = space.num_operators - space.num_layers
    rounds = min(math.ceil(deletions / per_round), num_steps // round_every)
    return [
        ShrinkRound(round_every * (index + 1), min(per_round, deletions - per_round * index))
        for index in range(rounds)
    ]


def operator_scores(space: SearchSpace, children: Iterable[tuple[Architecture, float]]) -> dict[Operator, float]:
    """Returns, for each operator, the mean validation loss of the given children that hold it; lower is better.

    Args:
        space: the space whose operators are scored.
        children: pairs of architecture and validation loss, all with the same weights and data.

    Raises:
        ValueError: none of the children holds some operator of the space.
    """
    losses: dict[Operator, list[float]] = {
        (layer, operator): [] for layer, candidates in enumerate(space.candidates) for operator in candidates
    }
    for architecture, loss in children:
        for operator in enumerate(architecture):
            # A diverged child must count against its operators; NaN compares as neither better nor worse.
            losses[operator].append(math.inf if math.isnan(loss) else loss)
    unseen = [f"{operator} in layer {layer}" for (layer, operator), values in losses.items() if not values]
    if unseen:
        raise ValueError(f"no sampled child holds {', '.join(unseen)}; sample more children")
    return {operator: math.fsum(values) / len(values) for operator, values in losses.items()}


def shrink(
    space: SearchSpace,
    scores: dict[Operator, float],
    num_deletions: int,
    allowed: Callable[[SearchSpace], bool] | None = None,
) -> tuple[SearchSpace, list[Operator]]:
    """Returns the space without its `num_deletions` least promising operators, and those operators, worst first.

    The paper does not say this: deletions are counted over all layers together, and the last operator of a layer is
    never deleted. If fewer operators than `num_deletions` can be deleted, all of those are.

    With `allowed` for a budget, an operator that every child within the budget holds is kept, and the next worst is
    deleted instead. As many operators can be deleted as without a budget, until one child within the budget is left:
    as long as there are several children, one of them is within the budget, and any operator that it does not hold can
    be deleted.

    Args:
        space: the space that is left so far.
        scores: mean validation loss of each operator of the space, as returned by `operator_scores`.
        num_deletions: number of operators to delete.
        allowed: returns whether a space may remain, such as `partial(is_feasible, budget=budget)`. A subspace of a
            space that is not allowed must not be allowed either.

    Raises:
        ValueError: the space itself is not allowed.
    """
    if allowed is not None and not allowed(space):
        raise ValueError("the remaining space has no child within the budget; shrink with a wider budget")
    deleted: list[Operator] = []
    # Ties are broken by layer and name, so that every rank and every resumed run deletes the same operators.
    for layer, operator in sorted(scores, key=lambda key: (-scores[key], key)):
        if len(deleted) == num_deletions:
            break
        if len(space.candidates[layer]) == 1:
            continue
        smaller = space.without(layer, operator)
        # An operator that cannot be deleted now cannot be deleted later from a smaller space: one pass is enough.
        if allowed is None or allowed(smaller):
            space = smaller
            deleted.append((layer, operator))
    return space, deleted


def deletions_short(space: SearchSpace, schedule: Sequence[ShrinkRound]) -> int:
    """Returns how many more deletions a schedule would need to end with one child; 0 if it does."""
    return space.num_operators - space.num_layers - sum(round_.num_deletions for round_ in schedule)


def sample_children(space: SearchSpace, num_children: int, seed: int, scheme: str = "fair") -> list[Architecture]:
    """Returns children for scoring the operators of a space (5.1), the same ones for the same seed.

    In every scheme each child is uniform over the space, and the operators of a layer are drawn independently of those
    of the other layers, so the mean loss of the children that hold an operator is an unbiased score. The schemes
    differ in the number of layers to run when shared bottoms are run once, and in the variance of the scores;
    benchmarks/operator_scores.py compares them.

    - "fair": every child draws all of its layers anew, each operator of a layer equally often (strict fairness).
    - "nested": the lower layers are drawn anew for every eighth child, the middle ones for every second, the upper
      ones for each. About half the layers to run, with slightly higher variance.
    - "chain": each child differs from the previous one in one layer (MAGIC-T), and the layers take turns. About half
      the layers to run, but since a layer rarely changes, the variance is many times higher.

    Args:
        space: the space to draw from.
        num_children: number of children to draw; more are drawn if an operator would not occur otherwise.
        seed: seed of the draw's own generator.
        scheme: "fair", "nested" or "chain".

    Raises:
        ValueError: the scheme is unknown.
    """
    widest = max(len(layer) for layer in space.candidates)
    if scheme == "fair":
        sampler = FairSampler(space, seed)
        return [sampler.next() for _ in range(max(num_children, widest))]
    rng = random.Random(seed)
    free_layers = [layer for layer, candidates in enumerate(space.candidates) if len(candidates) > 1]
    if scheme == "nested":
        changes, seldomest = _nested_changes(free_layers), _NESTED_PERIODS[0]
    elif scheme == "chain":
        changes, seldomest = _chain_changes(free_layers, rng), len(free_layers)
    else:
        raise ValueError(f"unknown scheme {scheme!r} for drawing children; choose one of: fair, nested, chain")
    turns = [_turns(candidates, rng) for candidates in space.candidates]
    child = [next(operators) for operators in turns]
    children = [tuple(child)]
    for layers in islice(changes, max(num_children, 1 + seldomest * (widest - 1)) - 1):
        for layer in layers:
            child[layer] = next(turns[layer])
        children.append(tuple(child))
    return children


# For how many consecutive children an operator is kept: in the lowest 30% of the layers, up to 70%, and above.
_NESTED_PERIODS = (8, 2, 1)


def _nested_changes(free_layers: Sequence[int]) -> Iterator[list[int]]:
    """Yields the layers to draw anew for the second child, the third and so on."""
    lowest, middle, highest = _NESTED_PERIODS
    shares = {layer: (index + 1) / len(free_layers) for index, layer in enumerate(free_layers)}
    periods = {layer: lowest if s < 0.3 else middle if s < 0.7 else highest for layer, s in shares.items()}
    for number in count(1):
        yield [layer for layer, period in periods.items() if number % period == 0]


def _chain_changes(free_layers: Sequence[int], rng: random.Random) -> Iterator[list[int]]:
    """Yields one layer for each child after the first; every layer comes once before any is repeated."""
    while free_layers:
        for layer in rng.sample(free_layers, len(free_layers)):
            yield [layer]


def _turns(candidates: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Yields endless random permutations of the operators; the last of one is never the first of the next."""
    order: list[str] = []
    while True:
        last, order = order[-1:], rng.sample(candidates, len(candidates))
        if order[:1] == last and len(order) > 1:
            other = rng.randrange(1, len(order))
            order[0], order[other] = order[other], order[0]
        yield from order
