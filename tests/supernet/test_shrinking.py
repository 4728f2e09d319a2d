"""When shrinking deletes, what it deletes, and what it never does."""

import random
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.space.budgets import AdditiveCost, Budget, Limit, is_feasible
from training.space.search_space import SearchSpace
from training.supernet.shrinking import ShrinkRound, deletions_short, operator_scores, shrink, shrink_schedule


BASE = SearchSpace((("MHA12", "FFN", "CONV3", "CONV5"),) * 26)

spaces = st.lists(st.integers(1, 5), min_size=1, max_size=8).map(
    lambda widths: SearchSpace(tuple(tuple(f"FFNx{number + 1}" for number in range(width)) for width in widths))
)


def test_schedule_of_the_paper():
    schedule = shrink_schedule(BASE, num_steps=250_000, round_every=10_000)
    assert len(schedule) == 16
    assert [entry.num_deletions for entry in schedule] == [5] * 15 + [3]
    assert schedule[0] == ShrinkRound(10_000, 5)
    assert schedule[-1].step == 160_000
    assert deletions_short(BASE, schedule) == 0


def test_schedule_that_does_not_end_in_one_child():
    schedule = shrink_schedule(BASE, num_steps=99_999, round_every=10_000)
    assert len(schedule) == 9
    assert deletions_short(BASE, schedule) == 78 - 45


@given(spaces, st.integers(1, 200), st.integers(1, 20), st.integers(1, 9))
def test_schedule_deletes_at_most_what_may_go(space, num_steps, round_every, per_round):
    schedule = shrink_schedule(space, num_steps, round_every, per_round)
    assert all(1 <= entry.num_deletions <= per_round for entry in schedule)
    assert [entry.step for entry in schedule] == [round_every * (index + 1) for index in range(len(schedule))]
    assert not schedule or schedule[-1].step <= num_steps
    short = deletions_short(space, schedule)
    assert short >= 0
    assert short == 0 or (len(schedule) + 1) * round_every > num_steps


def test_scores_are_the_means_over_children_that_hold_the_operator():
    space = SearchSpace((("FFN", "CONV3"), ("FFN", "CONV3")))
    children = [(("FFN", "FFN"), 1.0), (("FFN", "CONV3"), 2.0), (("CONV3", "CONV3"), 6.0)]
    assert operator_scores(space, children) == {
        (0, "FFN"): 1.5,
        (0, "CONV3"): 6.0,
        (1, "FFN"): 1.0,
        (1, "CONV3"): 4.0,
    }


def test_scores_need_every_operator():
    space = SearchSpace((("FFN", "CONV3"), ("FFN",)))
    with pytest.raises(ValueError, match="no sampled child holds CONV3 in layer 0; sample more"):
        operator_scores(space, [(("FFN", "FFN"), 1.0)])


def test_a_diverged_child_counts_against_its_operators():
    space = SearchSpace((("FFN", "CONV3"),))
    scores = operator_scores(space, [(("FFN",), float("nan")), (("CONV3",), 9.0)])
    assert shrink(space, scores, 1)[0] == SearchSpace((("CONV3",),))


def test_the_worst_go_and_the_last_of_a_layer_stays():
    space = SearchSpace((("FFN", "CONV3"), ("FFN", "CONV3"), ("FFN",)))
    scores = {(0, "FFN"): 9.0, (0, "CONV3"): 8.0, (1, "FFN"): 1.0, (1, "CONV3"): 2.0, (2, "FFN"): 10.0}
    smaller, deleted = shrink(space, scores, 2)
    assert deleted == [(0, "FFN"), (1, "CONV3")]
    assert smaller == SearchSpace((("CONV3",), ("FFN",), ("FFN",)))


@given(spaces, st.integers(1, 7), st.randoms(use_true_random=False))
def test_shrinking_never_empties_a_layer_and_ends_in_one_child(space, per_round, rng):
    whole = space
    schedule = shrink_schedule(space, num_steps=10_000, round_every=1, per_round=per_round)
    for entry in schedule:
        scores = {
            (layer, name): rng.random() for layer, candidates in enumerate(space.candidates) for name in candidates
        }
        before = space.num_operators
        space, deleted = shrink(space, scores, entry.num_deletions)
        assert len(deleted) == entry.num_deletions == before - space.num_operators
        assert all(set(left) <= set(all_) for left, all_ in zip(space.candidates, whole.candidates, strict=True))
    assert space.size == 1


@st.composite
def budgets(draw) -> Budget:
    """Limits that some child within five layers of `spaces` is on, or not far from."""
    limits = []
    for name in draw(st.sampled_from([("num_parameters",), ("num_parameters", "flops")])):
        operators = {f"FFNx{number}": draw(st.integers(0, 9)) for number in range(1, 6)}
        low, high = sorted((draw(st.integers(0, 25)), draw(st.integers(0, 25))))
        limits.append(Limit(AdditiveCost(name, 0, operators), low, high))
    return Budget(tuple(limits))


def some_child_is_within(space: SearchSpace, budget: Budget) -> bool:
    return any(budget.allows(child) for child in space.children())


small_spaces = st.lists(st.integers(1, 4), min_size=1, max_size=5).map(
    lambda widths: SearchSpace(tuple(tuple(f"FFNx{number + 1}" for number in range(width)) for width in widths))
)


@given(small_spaces, budgets(), st.integers(1, 7), st.randoms(use_true_random=False))
def test_shrinking_within_a_budget_ends_in_one_child_within_it(space, budget, per_round, rng):
    allowed = partial(is_feasible, budget=budget)
    if not some_child_is_within(space, budget):
        with pytest.raises(ValueError, match="the remaining space has no child within the budget"):
            shrink(space, dict.fromkeys(((0, name) for name in space.candidates[0]), 1.0), 1, allowed)
        return
    for entry in shrink_schedule(space, num_steps=10_000, round_every=1, per_round=per_round):
        scores = {
            (layer, name): rng.random() for layer, candidates in enumerate(space.candidates) for name in candidates
        }
        before = space
        space, deleted = shrink(space, scores, entry.num_deletions, allowed)
        assert len(deleted) == entry.num_deletions == before.num_operators - space.num_operators
        assert some_child_is_within(space, budget)
        assert deleted == worst_that_may_go(before, scores, entry.num_deletions, budget)
    assert space.size == 1
    assert budget.allows(next(space.children()))


def worst_that_may_go(space, scores, num_deletions, budget):
    """The same by trying again from the worst operator after every deletion."""
    deleted = []
    while len(deleted) < num_deletions:
        left = [(layer, name) for layer, names in enumerate(space.candidates) if len(names) > 1 for name in names]
        worst_first = sorted(left, key=lambda operator: (-scores[operator], operator))
        gone = next(operator for operator in worst_first if some_child_is_within(space.without(*operator), budget))
        space = space.without(*gone)
        deleted.append(gone)
    return deleted


def test_an_operator_that_the_budget_needs_stays():
    space = SearchSpace((("FFN", "CONV3"), ("FFN", "CONV3")))
    cost = AdditiveCost("num_parameters", 0, {"FFN": 4, "CONV3": 1})
    scores = {(0, "CONV3"): 9.0, (1, "CONV3"): 8.0, (0, "FFN"): 2.0, (1, "FFN"): 1.0}
    allowed = partial(is_feasible, budget=Budget((Limit(cost, maximum=5),)))
    assert shrink(space, scores, 2)[1] == [(0, "CONV3"), (1, "CONV3")]
    smaller, deleted = shrink(space, scores, 2, allowed)
    assert deleted == [(0, "CONV3"), (1, "FFN")]
    assert smaller == SearchSpace((("FFN",), ("CONV3",)))


def test_ties_are_broken_alike():
    space = SearchSpace((("FFN", "CONV3", "CONV5"),) * 3)
    scores = [((layer, name), 1.0) for layer in range(3) for name in space.candidates[layer]]
    expected = shrink(space, dict(scores), 4)
    random.Random(0).shuffle(scores)
    assert shrink(space, dict(scores), 4) == expected


@pytest.mark.parametrize("changes", [{"round_every": 0}, {"per_round": 0}])
def test_a_schedule_of_nothing_is_refused(changes):
    with pytest.raises(ValueError, match=f"{next(iter(changes))} is 0; it must be at least 1"):
        shrink_schedule(BASE, **{"num_steps": 10, "round_every": 1, **changes})
