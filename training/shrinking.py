"""Progressive shrinking of the search space (section 5.1): when operators are deleted, and which ones."""

import math
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from .search_space import Architecture, SearchSpace


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
    space: SearchSpace, scores: dict[Operator, float], num_deletions: int
) -> tuple[SearchSpace, list[Operator]]:
    """Returns the space without its `num_deletions` least promising operators, and these, the worst first.

    Paper silent: the deletions are counted over all layers together, and the last operator of a layer never goes;
    where fewer can go, all of those do.

    Args:
        space: what is left so far.
        scores: mean validation loss of each operator of the space, as `operator_scores` returns it.
        num_deletions: how many operators to delete.
    """
    deleted: list[Operator] = []
    # Ties are broken by layer and name, so that every rank and every resumed run deletes the same operators.
    for layer, operator in sorted(scores, key=lambda key: (-scores[key], key)):
        if len(deleted) == num_deletions:
            break
        if len(space.candidates[layer]) > 1:
            space = space.without(layer, operator)
            deleted.append((layer, operator))
    return space, deleted


def deletions_short(space: SearchSpace, schedule: Sequence[ShrinkRound]) -> int:
    """Returns how many operators too few a schedule deletes for one child to be left; 0 when it ends in one."""
    return space.num_operators - space.num_layers - sum(round_.num_deletions for round_ in schedule)
