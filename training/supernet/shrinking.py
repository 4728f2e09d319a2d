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
    """One round of the schedule: after optimizer step `step`, `num_deletions` operators go."""

    step: int
    num_deletions: int


def shrink_schedule(space: SearchSpace, num_steps: int, round_every: int, per_round: int = 5) -> list[ShrinkRound]:
    """Returns the rounds that a run of `num_steps` steps holds, until one child is left.

    The paper deletes five operators at the end of each epoch (5.1): for 26 layers of 4, 78 deletions in 16 rounds, the
    last one of three. The run ends in one child when the deletions sum to `space.num_operators - space.num_layers`.

    Args:
        space: the whole space.
        num_steps: optimizer steps of the run.
        round_every: steps from round to round, such as those of an epoch.
        per_round: operators deleted in a round, over all layers together.

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
    """Returns for each operator the mean validation loss of the given children that hold it; lower is better.

    Args:
        space: whose operators are scored.
        children: pairs of architecture and validation loss, all of the same weights and data.

    Raises:
        ValueError: an operator of the space is held by none of the children.
    """
    losses: dict[Operator, list[float]] = {
        (layer, operator): [] for layer, candidates in enumerate(space.candidates) for operator in candidates
    }
    for architecture, loss in children:
        for operator in enumerate(architecture):
            # A diverged child counts against its operators; NaN would compare as neither better nor worse.
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
    """Returns the space without its `num_deletions` least promising operators, and these, the worst first.

    Paper silent: the deletions are counted over all layers together, and the last operator of a layer never goes;
    where fewer can go, all of those do.

    With `allowed` for a budget, an operator that every child within the budget holds stays, and the next worst goes in
    its place. As many operators as without a budget can go, until one child within the budget is left: as long as
    there are several children, one of them is within the budget, and an operator that it does not hold can go.

    Args:
        space: what is left so far.
        scores: mean validation loss of each operator of the space, as `operator_scores` returns it.
        num_deletions: how many operators to delete.
        allowed: whether a space may be left, such as `partial(is_feasible, budget=budget)`; a space within one that
            may not be left may not be left either.

    Raises:
        ValueError: the space itself is not allowed.
    """
    if allowed is not None and not allowed(space):
        raise ValueError("the space that is left holds no child within the budget; shrink with a wider budget")
    deleted: list[Operator] = []
    # Ties are broken by layer and name, so that every rank and every resumed run deletes the same operators.
    for layer, operator in sorted(scores, key=lambda key: (-scores[key], key)):
        if len(deleted) == num_deletions:
            break
        if len(space.candidates[layer]) == 1:
            continue
        smaller = space.without(layer, operator)
        # What may not go now may not go later either, from a space that is smaller still: one pass is enough.
        if allowed is None or allowed(smaller):
            space = smaller
            deleted.append((layer, operator))
    return space, deleted


def deletions_short(space: SearchSpace, schedule: Sequence[ShrinkRound]) -> int:
    """Returns how many operators too few a schedule deletes for one child to be left; 0 when it ends in one."""
    return space.num_operators - space.num_layers - sum(round_.num_deletions for round_ in schedule)


def sample_children(space: SearchSpace, num_children: int, seed: int, scheme: str = "fair") -> list[Architecture]:
    """Returns children to score the operators of a space by (5.1), the same ones for the same seed.

    In every scheme each child is uniform over the space, and the operators of a layer are drawn independently of those
    of the others: the mean loss of the children that hold an operator is an unbiased score of it. The schemes differ
    in how many layers are to be run where shared bottoms run once, and in the variance of the scores, which
    benchmarks/operator_scores.py compares.

    - "fair": every child draws all of its layers, each operator of a layer equally often (strict fairness).
    - "nested": the lower layers are drawn for eight children in turn, those in the middle for two, the upper ones for
      each. About half the layers to run, for a variance that is little higher.
    - "chain": each child differs in one layer from the one before (MAGIC-T); layers take turns. About half the layers
      to run, but since a layer seldom changes, the variance is many times as high.

    Args:
        space: the children to draw from.
        num_children: how many to draw; more are drawn where an operator would be left out.
        seed: of the draw's own generator.
        scheme: "fair", "nested" or "chain".

    Raises:
        ValueError: there is no such scheme.
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
        raise ValueError(f"unknown scheme {scheme!r} to draw children by; choose one of: fair, nested, chain")
    turns = [_turns(candidates, rng) for candidates in space.candidates]
    child = [next(operators) for operators in turns]
    children = [tuple(child)]
    for layers in islice(changes, max(num_children, 1 + seldomest * (widest - 1)) - 1):
        for layer in layers:
            child[layer] = next(turns[layer])
        children.append(tuple(child))
    return children


# For how many children in turn an operator is drawn: in the lowest 30% of the layers, up to 70%, and above.
_NESTED_PERIODS = (8, 2, 1)


def _nested_changes(free_layers: Sequence[int]) -> Iterator[list[int]]:
    """The layers to draw anew for the second child, the third and so on."""
    lowest, middle, highest = _NESTED_PERIODS
    shares = {layer: (index + 1) / len(free_layers) for index, layer in enumerate(free_layers)}
    periods = {layer: lowest if s < 0.3 else middle if s < 0.7 else highest for layer, s in shares.items()}
    for number in count(1):
        yield [layer for layer, period in periods.items() if number % period == 0]


def _chain_changes(free_layers: Sequence[int], rng: random.Random) -> Iterator[list[int]]:
    """One layer for each child after the first, each layer once before one comes again."""
    while free_layers:
        for layer in rng.sample(free_layers, len(free_layers)):
            yield [layer]


def _turns(candidates: Sequence[str], rng: random.Random) -> Iterator[str]:
    """Random permutations of the operators without end; the last of one is never the first of the next."""
    order: list[str] = []
    while True:
        last, order = order[-1:], rng.sample(candidates, len(candidates))
        if order[:1] == last and len(order) > 1:
            other = rng.randrange(1, len(order))
            order[0], order[other] = order[other], order[0]
        yield from order
