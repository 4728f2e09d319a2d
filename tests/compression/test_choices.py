"""The child that is found and its controls, against all children of small spaces; and where a control is missing."""

import json
import math
import random
from collections import Counter
from collections.abc import Iterable
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy import toy_config
from toy_compression import CHAIN, UNEVEN, Losses, at_most, children_within, toy_cost

from training.compression import choices
from training.compression.choices import (
    Choices,
    Evaluate,
    best_additive,
    best_first,
    choose,
    dropped_blocks,
    dropped_layers,
    evolve,
    random_child,
)
from training.compression.compression_report import ROLES
from training.compression.spaces import checkpoint_space, without_blocks
from training.search.searchers import EvolutionSearcher
from training.space.budgets import AdditiveCost, Budget, BudgetedSpace, InfeasibleBudgetError, Limit
from training.space.search_space import Architecture, SearchSpace
from training.supernet.journal import RankedChild


def space_of(chain: Architecture) -> SearchSpace:
    return checkpoint_space(toy_config(candidate_operators=[[name] for name in chain]))


SPACE = space_of(CHAIN)
COST = toy_cost(SPACE)


def planted(child: Architecture) -> float:
    """A loss with a share of each operator at its layer, and one of the child as a whole."""
    layers = [random.Random(f"{layer} {name}").random() for layer, name in enumerate(child)]
    return sum(layers) + 0.3 * random.Random(f"{child}").random()


def score(child: Architecture) -> float:
    return random.Random(f"score {child}").random()


# ---- Orders ----


@given(st.lists(st.tuples(st.floats(), st.floats()), min_size=1, max_size=6), st.sampled_from([0.0, 0.5]))
def test_the_best_child_has_the_least_loss_less_the_weighted_score(values, weight):
    children = [RankedChild((f"FFNx{index + 1}",), loss, score) for index, (loss, score) in enumerate(values)]
    ranked = sorted(children, key=best_first(weight))
    found = [child.val_loss - weight * child.val_accuracy if weight else child.val_loss for child in ranked]
    finite = [value for value in found if math.isfinite(value)]
    assert finite == sorted(finite)
    assert all(map(math.isfinite, found[: len(finite)]))


# ---- Drops of blocks ----

# Blocks whose costs differ: 50, 30 and 20.
BLOCKS = ("MHA4", "FFN", "MHA2x16", "FFNx24", "MHA1x8", "FFNx8")
BLOCK_COST = AdditiveCost(
    "num_parameters", 50, {"MHA4": 30, "FFN": 20, "MHA2x16": 20, "FFNx24": 10, "MHA1x8": 15, "FFNx8": 5, "SKIP": 0}
)


@pytest.mark.parametrize("largest", range(0, 100, 5))
def test_drops_are_all_of_the_fewest_blocks_within_the_budget(largest):
    budget = Budget((Limit(BLOCK_COST, 55, 55 + largest),))
    losses = Losses(planted)
    found = dropped_blocks(BLOCKS, budget, losses)
    by_number = [
        [child for blocks in combinations(range(3), number) if budget.allows(child := without_blocks(BLOCKS, blocks))]
        for number in (1, 2)
    ]
    expected = by_number[0] or by_number[1]
    assert [child.architecture for child in found] == sorted(expected, key=planted)
    assert sorted(losses.asked) == sorted(expected)


def test_few_of_many_blocks_may_stay():
    """Ten of twelve dropped are 66 ways, though three of twelve are 220."""
    chain = ("MHA4", "FFN") * 12
    losses = Losses(planted)
    found = dropped_blocks(chain, at_most(COST, COST(("MHA4", "FFN") * 2)), losses)
    assert len(losses.asked) == len(found) == 66
    assert found[0].architecture == min(losses.asked, key=planted)


def test_of_too_many_ways_blocks_are_dropped_one_after_another():
    chain = ("MHA4", "FFN") * 12
    losses = Losses(planted)
    found = dropped_blocks(chain, at_most(COST, COST(("MHA4", "FFN") * 6)), losses)
    dropped: list[int] = []
    for _ in range(5):
        left = [block for block in range(12) if block not in dropped]
        dropped.append(min(left, key=lambda block: planted(without_blocks(chain, [*dropped, block]))))
    last = [without_blocks(chain, [*dropped, block]) for block in range(12) if block not in dropped]
    assert [child.architecture for child in found] == sorted(last, key=planted)
    assert len(losses.asked) == 12 + 11 + 10 + 9 + 8 + 7


def test_dropping_one_by_one_goes_on_until_the_budget_is_met():
    """The dearest blocks are the ones that matter: the cheap ones before them do not bring the child below it."""
    chain = ("MHA4", "FFN") * 6 + ("MHA2x16", "FFNx24") * 6
    cost = AdditiveCost("num_parameters", 0, {"MHA4": 50, "FFN": 50, "MHA2x16": 1, "FFNx24": 1, "SKIP": 0})

    def loss(child: Architecture) -> float:
        return sum(1.0 for layer, name in enumerate(child) if layer < 12 and name == "SKIP") + planted(child) / 100

    budget = at_most(cost, 350)
    found = dropped_blocks(chain, budget, Losses(loss))
    # Three of six blocks of 100 have to go, and all six of 2 were dropped before them.
    assert found
    assert all(budget.allows(child.architecture) for child in found)
    assert all(set(child.architecture[12:]) == {"SKIP"} for child in found)
    assert {Counter(child.architecture)["MHA4"] for child in found} == {3}


def test_a_child_without_layers_is_never_judged():
    """One after another the blocks that matter least go, until the one that is left is beyond the budget alone."""
    chain = ("MHA4", "FFN") * 3 + ("MHA2x16", "FFNx24") * 9
    cost = AdditiveCost("num_parameters", 0, {"MHA4": 500, "FFN": 500, "MHA2x16": 1, "FFNx24": 1, "SKIP": 0})
    losses = Losses(lambda child: sum(1.0 for name in child[:6] if name == "SKIP"))
    assert dropped_blocks(chain, at_most(cost, 900), losses) == []
    assert len(losses.asked) == sum(range(2, 13))
    assert all(set(child) != {"SKIP"} for child in losses.asked)


def test_one_block_always_stays():
    cost = AdditiveCost("num_parameters", 0, {"MHA4": 50, "FFN": 50, "SKIP": 0})
    assert dropped_blocks(("MHA4", "FFN") * 12, Budget((Limit(cost, 50, 99),)), Losses(planted)) == []


@pytest.mark.parametrize("chain", [UNEVEN, ("MHA4", "FFN"), ("MHA4", "FFN", "FFN", "FFN"), ("FFN", "MHA4") * 2])
def test_a_chain_that_is_not_blocks_has_no_block_drops(chain):
    losses = Losses(planted)
    assert dropped_blocks(chain, at_most(toy_cost(SearchSpace((chain[:1],))), 10_000), losses) == []
    assert not losses.asked


# ---- Drops of layers ----


@pytest.mark.parametrize("chain", [CHAIN, UNEVEN])
def test_drops_of_layers_are_those_within_the_budget_the_best_first(chain):
    space = space_of(chain)
    cost = toy_cost(space)
    budget = at_most(cost, cost(chain) - 10)
    drops = SearchSpace(tuple((name, "SKIP") for name in chain))
    within = children_within(drops, budget)
    losses = Losses(planted)
    found = dropped_layers(space, chain, budget, losses, within[:2], len(within) - 2, seed=0)
    assert [child.architecture for child in found] == sorted(within, key=planted)
    assert sorted(losses.asked) == sorted(within)


def test_where_no_drop_is_within_the_budget_none_is_judged():
    cost = toy_cost(SPACE, MHA4=1000, FFN=1000)
    budget = at_most(cost, cost(("FFNx8",)) + 100)
    losses = Losses(planted)
    assert dropped_layers(SPACE, CHAIN, budget, losses, (), 20, seed=0) == []
    assert not losses.asked


# ---- Search ----


def test_evolution_evaluates_as_many_as_it_is_told_and_none_twice():
    within = BudgetedSpace(SPACE, at_most(COST, 250))
    first = [("MHA4", "SKIP", "SKIP", "SKIP"), ("SKIP", "FFN", "SKIP", "SKIP"), CHAIN]
    losses = Losses(planted)
    found = evolve(within, losses, first, 30, seed=3)
    assert losses.asked[:2] == first[:2]
    # The last one is beyond the budget.
    assert len(losses.asked) == len(set(losses.asked)) == 32
    assert all(child in within for child in losses.asked)
    assert [child.architecture for child in found] == sorted(losses.asked, key=planted)


def test_evolution_ends_when_all_children_are_known():
    within = BudgetedSpace(SPACE, at_most(COST, 250))
    found = evolve(within, Losses(planted), (), 10_000, seed=0)
    assert [child.architecture for child in found] == sorted(within.children(), key=planted)


LONG = SearchSpace((("MHA4", "MHA2x16", "FFN", "FFNx8", "CONV3", "SKIP"),) * 12)


def test_children_to_begin_with_are_the_first_parents_though_random_ones_are_told_as_well():
    cost = toy_cost(LONG)
    target = random.Random(1).choices(LONG.candidates[0], k=12)

    def distance(child: Architecture) -> float:
        return sum(a != b for a, b in zip(child, target, strict=True))

    near = [("MHA4", *target[1:]), (*target[:-1], "FFN"), (*target[:5], "CONV3", *target[6:])]
    losses = Losses(distance)
    found = evolve(BudgetedSpace(LONG, at_most(cost, 10_000)), losses, near, 80, seed=0)
    # 20 random ones, and children of the best from then on.
    assert min(map(distance, losses.asked[3:23])) > 5
    assert sum(distance(child) <= 3 for child in losses.asked[23:33]) >= 3
    assert distance(found[0].architecture) == 0


def test_a_child_whose_loss_is_no_number_is_no_parent_before_others(monkeypatch):
    told: list[RankedChild] = []

    class Recorded(EvolutionSearcher):
        def tell(self, ranked):
            told.extend(ranked)
            super().tell(ranked)

    monkeypatch.setattr(choices, "EvolutionSearcher", Recorded)
    within = BudgetedSpace(SPACE, at_most(COST, 250))
    losses = Losses(lambda child: math.nan if child[0] == "SKIP" else planted(child), score)
    found = evolve(within, losses, (), 40, seed=0, order=best_first(2.0))
    for child in told:
        expected = losses.loss(child.architecture) - 2.0 * score(child.architecture)
        assert child.val_loss == pytest.approx(expected, nan_ok=True)
    values = [child.val_loss - 2.0 * child.val_accuracy for child in found]
    finite = [value for value in values if math.isfinite(value)]
    assert 0 < len(finite) < len(values)
    assert values[: len(finite)] == sorted(finite)
    # What is returned are the children as they were evaluated.
    assert all(child.val_loss == losses.loss(child.architecture) for child in found[: len(finite)])


# ---- The best child by additive errors ----


def total(errors: list[dict[str, float]], child: Architecture) -> float:
    return sum(layer[name] for layer, name in zip(errors, child, strict=True))


@st.composite
def additive_problems(draw):
    operators = ("A", "B", "C", "SKIP")
    layers = draw(st.lists(st.lists(st.sampled_from(operators), min_size=1, unique=True), min_size=1, max_size=5))
    space = SearchSpace(tuple(map(tuple, layers)))
    costs = {name: draw(st.integers(1, 9)) for name in operators[:3]}
    cost = AdditiveCost("num_parameters", draw(st.sampled_from([0, 40])), {**costs, "SKIP": 0})
    error = st.sampled_from([0.0, 0.25, 0.5, 1.0, 4.0])
    errors = [{name: draw(error) for name in layer} for layer in layers]
    low = draw(st.integers(0, 12))
    return space, Budget((Limit(cost, cost.fixed + low, cost.fixed + low + draw(st.integers(0, 20))),)), errors


@given(additive_problems())
def test_the_least_sum_of_errors_is_found(problem):
    space, budget, errors = problem
    within = children_within(space, budget)
    if not within:
        with pytest.raises(InfeasibleBudgetError):
            best_additive(space, budget, errors)
        return
    found = best_additive(space, budget, errors)
    (limit,) = budget.limits
    # Sums of these errors are exact. Of equally good children the cheapest is found.
    keys = [(total(errors, child), limit.cost(child)) for child in within]
    assert found in within
    assert (total(errors, found), limit.cost(found)) == min(keys)


def test_a_child_of_no_layers_is_never_the_best():
    errors = [{name: 0.0 if name == "SKIP" else 1.0 + len(name) for name in names} for names in SPACE.candidates]
    found = best_additive(SPACE, at_most(COST, 250), errors)
    assert sorted(found) == ["FFN", "SKIP", "SKIP", "SKIP"]


def test_an_operator_that_has_diverged_is_taken_last():
    errors = [dict.fromkeys(names, math.nan) | {"SKIP": 1.0} for names in SPACE.candidates]
    errors[1]["FFNx8"] = 2.0
    assert best_additive(SPACE, at_most(COST, 250), errors) == ("SKIP", "FFNx8", "SKIP", "SKIP")
    every = [dict.fromkeys(names, math.nan) for names in SPACE.candidates]
    assert at_most(COST, 250).allows(best_additive(SPACE, at_most(COST, 250), every))


# ---- All of a budget ----


def chosen(space: SearchSpace, chain: Architecture, budget: Budget, **changes) -> tuple[Choices, Losses, Losses]:
    zero_shot, shared = Losses(planted), Losses(lambda child: planted(child[::-1]), score)
    values = {"zero_shot": zero_shot, "shared": shared, "num_evaluations": 40, "seed": 0, **changes}
    return choose(space, chain, budget, **values), zero_shot, shared


def test_winner_and_controls_are_the_best_of_their_kinds():
    # Of this space search sees every child.
    budget = at_most(COST, COST(CHAIN) - 60)
    found, zero_shot, shared = chosen(SPACE, CHAIN, budget, num_evaluations=10_000)
    within = children_within(SPACE, budget)
    best = min(within, key=shared.loss)
    assert found.found == RankedChild(best, shared.loss(best), score(best))
    blocks = [("SKIP", "SKIP", "MHA4", "FFN"), ("MHA4", "FFN", "SKIP", "SKIP")]
    layers = [child for child in within if set(child) <= {"MHA4", "FFN", "SKIP"}]
    widths = [child for child in within if child[:2] == child[2:] and "SKIP" not in child]
    assert len(widths) > 1
    assert found.controls == {
        "block_drop": min(blocks, key=planted),
        "sublayer_drop": min(layers, key=planted),
        "evenly_spaced_blocks": blocks[1],
        "one_width": min(widths, key=shared.loss),
        "random": random_child(SPACE, budget, 0),
    }
    assert set(zero_shot.asked) == set(layers)
    # All of them have a name in tables.
    assert set(found.controls) <= set(ROLES)


def test_the_order_is_that_of_the_winner_and_of_one_width():
    budget = at_most(COST, COST(CHAIN) - 60)
    found, _, shared = chosen(SPACE, CHAIN, budget, num_evaluations=10_000, order=best_first(-10.0))

    def value(child: Architecture) -> float:
        return shared.loss(child) + 10.0 * score(child)

    within = children_within(SPACE, budget)
    assert found.found.architecture == min(within, key=value)
    assert found.found.val_loss == shared.loss(found.found.architecture)
    widths = [child for child in within if child[:2] == child[2:] and "SKIP" not in child]
    assert found.controls["one_width"] == min(widths, key=value)
    assert found.controls["one_width"] != min(widths, key=shared.loss)


def test_search_begins_with_the_drops_and_the_children_of_one_width():
    budget = at_most(COST, COST(CHAIN) - 60)
    _, zero_shot, shared = chosen(SPACE, CHAIN, budget, num_evaluations=8)
    widths = {child for child in children_within(SPACE, budget) if child[:2] == child[2:] and "SKIP" not in child}
    drops = {child for child in children_within(SPACE, budget) if set(child) <= {*CHAIN, "SKIP"}}
    assert set(zero_shot.asked) == drops
    assert set(shared.asked[: len(widths | drops)]) == widths | drops
    # And those of one width once more, for the control.
    assert len(set(shared.asked)) == len(widths | drops) + 8


def test_a_short_search_does_not_leave_the_best_drop_unseen():
    chain = CHAIN * 3
    space = space_of(chain)
    cost = toy_cost(space)
    found, zero_shot, _ = chosen(space, chain, at_most(cost, cost(chain) * 0.4), num_evaluations=4)
    drops = {child for child in zero_shot.asked if set(child) <= {*chain, "SKIP"}}
    assert len(drops) >= 200
    assert found.controls["sublayer_drop"] == min(drops, key=zero_shot.loss)


def test_a_child_that_was_found_otherwise_is_taken_as_it_is():
    child = ("SKIP", "FFNx8", "SKIP", "SKIP")
    found, _, shared = chosen(SPACE, CHAIN, at_most(COST, COST(CHAIN) - 60), found=child)
    assert found.found == RankedChild(child, shared.loss(child), score(child))
    assert "block_drop" in found.controls


def test_a_chain_that_was_compressed_before_has_no_drops_of_blocks():
    space = space_of(UNEVEN)
    cost = toy_cost(space)
    found, _, _ = chosen(space, UNEVEN, at_most(cost, cost(UNEVEN) - 10))
    assert set(found.controls) == {"sublayer_drop", "one_width", "random"}


def test_a_budget_below_all_drops_and_widths_has_the_random_control_alone():
    cost = toy_cost(SPACE, MHA4=1000, FFN=1000)
    budget = at_most(cost, cost(("FFNx8",)) + 100)
    found, zero_shot, _ = chosen(SPACE, CHAIN, budget)
    assert set(found.controls) == {"one_width", "random"}
    assert not zero_shot.asked
    found, _, _ = chosen(SPACE, CHAIN, at_most(cost, cost(("FFNx8",))))
    assert set(found.controls) == {"random"}
    assert sorted(found.found.architecture) == ["FFNx8", "SKIP", "SKIP", "SKIP"]


def test_no_child_within_the_budget_is_refused():
    with pytest.raises(InfeasibleBudgetError):
        chosen(SPACE, CHAIN, Budget((Limit(COST, 51, 65),)))


def test_the_random_control_is_of_nearly_the_budgets_size():
    budget = at_most(COST, 50 + 200)
    near = [child for child in children_within(SPACE, budget) if COST(child) >= 50 + 0.9 * 200]
    drawn = {random_child(SPACE, budget, seed) for seed in range(20)}
    assert drawn <= set(near)
    assert len(drawn) > 5
    assert random_child(SPACE, budget, 3) == random_child(SPACE, budget, 3)


def test_passes_are_those_of_children_that_share_their_bottoms_within_a_call():
    calls: dict[str, list[list[Architecture]]] = {"zero_shot": [], "shared": []}

    def noted(name: str) -> Evaluate:
        losses = Losses(planted)

        def evaluate(children: Iterable[Architecture]) -> list[RankedChild]:
            calls[name].append(list(children))
            return losses(calls[name][-1])

        return evaluate

    found, _, _ = chosen(SPACE, CHAIN, at_most(COST, 250), zero_shot=noted("zero_shot"), shared=noted("shared"))
    expected = Counter[str]()
    for of_judge in calls.values():
        seen = set[Architecture]()
        for children in of_judge:
            prefixes = {child[:depth] for child in set(children) - seen for depth in range(1, len(child) + 1)}
            expected.update(prefix[-1] for prefix in prefixes)
            seen.update(children)
    assert len(calls["shared"]) > 2
    assert found.passes == expected


def test_choices_are_kept_as_json():
    found, _, _ = chosen(SPACE, CHAIN, at_most(COST, 250))
    assert Choices.from_json(json.loads(json.dumps(found.to_json()))) == found
