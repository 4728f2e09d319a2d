"""The answer of a search is the best child within the budget, and better than random only where it is."""

import json
import math
import random
import re
import time
from html import escape

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import NUM_TOKENS, OPERATORS, budget_below, planted_cost, planted_losses, planted_space
from scipy.stats import ttest_rel
from toy import collate, toy_data

from training.search.compare import (
    best_within,
    compare_with_child,
    compare_with_random,
    nearest_bert_child,
    search_children,
)
from training.search.searchers import EvolutionSearcher, ParetoSearcher, RandomSearcher, rank_key
from training.space.budgets import AdditiveCost, Budget, BudgetedSpace, InfeasibleBudgetError, Limit
from training.space.search_space import SearchSpace
from training.supernet.evaluation import Evaluator
from training.supernet.journal import RankedChild


COST = planted_cost()
SEARCHERS = {
    "random": lambda space, seed: RandomSearcher(space, seed, batch_size=10),
    "evolution": lambda space, seed: EvolutionSearcher(space, seed, population_size=20),
    "spos": lambda space, seed: EvolutionSearcher(space, seed, 20, 20, regularized=False),
    "pareto": lambda space, seed: ParetoSearcher(space, seed, [COST], population_size=20),
}
each_searcher = pytest.mark.parametrize("make", SEARCHERS.values(), ids=SEARCHERS)
fewer_examples = settings(max_examples=40)


class Table:
    """An evaluator with a memory, as a journal gives it, which can be stopped after some evaluations."""

    def __init__(self, evaluate):
        self.evaluate = evaluate
        self.known = {}
        self.stop_after = math.inf

    def __call__(self, architectures):
        for architecture in architectures:
            if architecture not in self.known:
                if len(self.known) >= self.stop_after:
                    raise KeyboardInterrupt
                self.known.update((child.architecture, child) for child in self.evaluate([architecture]))
        return [self.known[architecture] for architecture in architectures]


class HillClimber:
    """A searcher of a user's own: asks the neighbours of the best child so far that are within the budget."""

    def __init__(self, space, start):
        self.space, self.start = space, start
        self.known = {}

    def ask(self):
        if not self.known:
            return [self.start]
        best = min(self.known.values(), key=rank_key).architecture
        neighbours = (
            (*best[:layer], name, *best[layer + 1 :])
            for layer, names in enumerate(self.space.space.candidates)
            for name in names
        )
        return [child for child in neighbours if child in self.space and child not in self.known]

    def tell(self, ranked):
        self.known.update((child.architecture, child) for child in ranked)


class Script:
    """A searcher that asks what it was given, batch by batch."""

    def __init__(self, *batches):
        self.batches = list(batches)
        self.told = []

    def ask(self):
        return self.batches.pop(0) if self.batches else []

    def tell(self, ranked):
        self.told.append([child.architecture for child in ranked])


def run(make, evaluate, layers=4, share=0.5, num_evaluations=30, seed=0, **options):
    space = planted_space(layers)
    budget = budget_below(share, space)
    searcher = make(BudgetedSpace(space, budget), seed)
    return search_children(evaluate, space, budget, searcher, num_evaluations, seed=seed, **options)


def with_best(best, evaluate):
    """The same evaluator, but one child has a loss below all others."""
    child = RankedChild(best, 1.0, 0.5, tuple(map(float, NUM_TOKENS)))
    return lambda architectures: [
        child if ranked.architecture == best else ranked for ranked in evaluate(architectures)
    ]


def comparable(result):
    return json.dumps(result.to_json(), allow_nan=False)


# ---- An early end ----


def test_a_searcher_that_stops_early_is_said_to_have_done_so():
    space = planted_space(2)
    children = list(space.children())

    def found(batches, num_evaluations):
        return search_children(
            planted_losses(0, 2), space, Budget(), Script(*batches), num_evaluations, bert_pattern_cost=COST
        )

    whole = found([children[:3]], 3)
    assert whole.stopped == ""
    early = found([children[:3]], 4)
    assert early.stopped == (
        "The searcher stopped early: it asked for 3 of 4 children and found no more; another seed or "
        "searcher may find more."
    )
    assert early.summary.endswith(early.stopped)
    assert ", without a budget.\n" in early.summary
    assert early.to_json()["stopped"] == early.stopped
    all_of_them = found([children], len(children) + 1)
    number = len(children)
    assert all_of_them.stopped == (
        f"The searcher stopped early: it asked for {number} of {number + 1} children, the only ones within the budget."
    )


# ---- The budget's contract ----


def result_or_message(*arguments):
    try:
        return search_children(*arguments)
    except ValueError as error:
        return str(error)


@each_searcher
@fewer_examples
@given(
    seed=st.integers(0, 1000),
    window=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted),
    layers=st.integers(1, 4),
    num_evaluations=st.integers(1, 40),
    share_of_nan=st.sampled_from([0.0, 0.3]),
)
def test_the_answer_is_within_the_budget_exactly_where_a_child_is(
    make, seed, window, layers, num_evaluations, share_of_nan
):
    space = planted_space(layers)
    costs = sorted(map(COST, space.children()))
    low, high = (costs[0] + share * (costs[-1] - costs[0]) for share in window)
    budget = Budget((Limit(COST, minimum=low, maximum=high),))
    allowed = {child for child in space.children() if low <= COST(child) <= high}
    rng = random.Random(seed)
    losses = {child: math.nan if rng.random() < share_of_nan else rng.random() for child in space.children()}
    evaluated = []

    def evaluate(architectures):
        evaluated.extend(architectures)
        return [RankedChild(child, losses[child], 0.5) for child in reversed(architectures)]

    if not allowed:
        with pytest.raises(InfeasibleBudgetError):
            search_children(evaluate, space, budget, Script([space.sample(rng)]), num_evaluations)
        assert not evaluated
        return
    searcher = make(BudgetedSpace(space, budget), seed)
    result = result_or_message(evaluate, space, budget, searcher, num_evaluations)
    if isinstance(result, str):
        assert "finite validation loss" in result
        assert all(math.isnan(losses[child]) for child in evaluated)
        return
    counted = min(num_evaluations, len(allowed))
    for children in (result.searched, result.random):
        assert len({child.architecture for child in children}) == len(children) == counted
        assert {child.architecture for child in children} <= allowed
    finite = [child for child in evaluated if child in allowed and not math.isnan(losses[child])]
    assert result.winner.val_loss == min(losses[child] for child in finite)
    assert result.winner.architecture in finite
    assert budget.allows(result.winner.architecture)
    json.dumps(result.to_json(), allow_nan=False)


def test_an_infeasible_budget_names_the_nearest_value_before_anything_is_evaluated():
    def evaluate(architectures):
        raise AssertionError("nothing may be evaluated")

    space = planted_space(26)
    budget = Budget((Limit(COST, maximum=50_000),))
    with pytest.raises(InfeasibleBudgetError, match=f"{1000 + 26 * 3347:,}, above the limit"):
        search_children(evaluate, space, budget, Script(), 10)


def test_bad_arguments_are_named():
    space, evaluate = planted_space(4), planted_losses(0, 4, noise=1.0)
    with pytest.raises(ValueError, match="num_evaluations is 0; it must be at least 1"):
        search_children(evaluate, space, budget_below(0.5, space), Script(), 0)
    with pytest.raises(ValueError, match="bert_pattern_cost is missing"):
        search_children(evaluate, space, Budget(), Script(), 1)
    unknown = planted_cost(MHA4=1, FFN=1)
    with pytest.raises(ValueError, match="'CONV3'"):
        search_children(evaluate, space, Budget(), Script([("MHA4",) * 4]), 1, bert_pattern_cost=unknown)
    with pytest.raises(ValueError, match="the evaluator returned nothing for MHA4,MHA4,MHA4,MHA4"):
        search_children(lambda _: [], space, Budget(), Script([("MHA4",) * 4]), 1, bert_pattern_cost=COST)


@pytest.mark.parametrize(
    ("child", "message"),
    [
        (("FFN",) * 4, "asked for FFN,FFN,FFN,FFN with num_parameters 53,004, outside the budget num_parameters <= "),
        (("FFN", "CONV7", "FFN", "FFN"), "outside the search space: layer 1 has no operator 'CONV7'"),
        (("FFN",) * 3, "outside the search space: .* has 3 layers"),
    ],
)
def test_a_child_that_is_not_allowed_is_named_and_not_evaluated(child, message):
    table = Table(planted_losses(0, 4, noise=1.0))
    with pytest.raises(ValueError, match=message):
        run(lambda space, seed: Script([("CONV3",) * 4], [child]), table)
    assert list(table.known) == [("CONV3",) * 4]


# ---- Searchers of one's own ----


def test_a_searcher_of_ones_own_fits():
    evaluate = planted_losses(3, 6, structure=1.0)
    result = run(lambda space, seed: HillClimber(space, ("CONV3",) * 6), evaluate, 6, 0.6, 200)
    children = planted_space(6).children()
    assert result.winner == best_within(evaluate(list(children)), result.budget)
    assert result.better_than_random.better is False or result.found_by in ("search", "both")


def test_a_searcher_that_asks_nothing_ends_the_search_and_the_control_is_as_large():
    script = Script([("CONV3",) * 4, ("CONV5",) * 4], [["CONV3", "CONV3", "CONV5", "CONV5"]])
    result = run(lambda space, seed: script, planted_losses(0, 4, noise=1.0))
    assert [child.architecture[1:3] for child in result.searched] == [
        ("CONV3",) * 2,
        ("CONV5",) * 2,
        ("CONV3", "CONV5"),
    ]
    assert len(result.random) == 3
    assert [len(told) for told in script.told] == [2, 1]


def test_the_last_batch_is_cut_to_the_number_of_evaluations():
    script = Script([("CONV3",) * 4], [("CONV5",) * 4, ("MHA4",) * 4, ("CONV3", "CONV3", "CONV5", "CONV5")])
    result = run(lambda space, seed: script, planted_losses(0, 4, noise=1.0), num_evaluations=2)
    assert len(result.searched) == len(result.random) == 2
    assert script.told == [[("CONV3",) * 4], [("CONV5",) * 4]]


def test_answers_are_told_in_the_order_asked_whatever_their_own_order_is():
    asked = [("CONV3",) * 4, ("CONV5",) * 4, ("MHA4",) * 4, ("CONV3",) * 4]
    script, planted = Script(asked), planted_losses(0, 4, noise=1.0)
    result = run(lambda space, seed: script, lambda architectures: planted(architectures)[::-1])
    assert script.told == [asked[:3]]
    assert [child.architecture for child in result.searched] == asked[:3]


def test_a_searcher_that_always_asks_the_same_child_ends():
    script = Script(*[[("CONV3",) * 4]] * 1000)
    table = Table(planted_losses(0, 4, noise=1.0))
    result = run(lambda space, seed: script, table)
    assert len(result.searched) == len(result.random) == 1
    assert len(script.batches) == 970


# ---- Controls ----


@each_searcher
def test_every_child_is_computed_once_for_search_and_controls(make):
    calls = []
    planted = planted_losses(0, 4, noise=1.0)
    table = Table(lambda architectures: calls.append(tuple(architectures)) or planted(architectures))
    result = run(make, table, num_evaluations=100)
    both = {child.architecture for child in (*result.searched, *result.random)}
    assert len(result.searched) == len(result.random) == 100
    assert len(both) < 200
    assert len(calls) == len(set(calls)) == len(both | {result.bert_pattern.architecture})


def test_the_random_control_is_uniform_and_has_a_generator_of_its_own():
    evaluate = planted_losses(0, 8, noise=1.0)
    results = [run(SEARCHERS["random"], evaluate, 8, 0.9, seed=seed) for seed in range(20)]
    for result in results:
        searched, drawn = ({child.architecture for child in children} for children in (result.searched, result.random))
        assert len(searched & drawn) < 3
    drawn = [child.architecture for result in results for child in result.random]
    assert len(set(drawn)) > 590
    space = BudgetedSpace(planted_space(8), results[0].budget)
    uniform = [space.sample(random.Random(seed)) for seed in range(600)]
    for name in OPERATORS:
        shares = [np.mean([child.count(name) for child in children]) for children in (drawn, uniform)]
        assert abs(shares[0] - shares[1]) < 0.25


def test_the_winner_may_be_the_random_controls_and_this_is_said():
    evaluate = planted_losses(1, 4, structure=1.0)
    space = planted_space(4)
    budget = budget_below(0.5, space)
    worst = max(evaluate(list(filter(budget.allows, space.children()))), key=lambda child: child.val_loss)
    result = run(lambda space, seed: Script(*[[worst.architecture]] * 30), evaluate)
    assert result.found_by == "random"
    assert result.winner == result.random[0]
    assert "random control, not the search" in result.summary
    assert not result.better_than_random.better


def test_a_winner_in_both_lists_is_found_by_both():
    result = run(SEARCHERS["random"], planted_losses(0, 3, noise=1.0), 3, 0.5, 1000)
    assert set(result.searched) == set(result.random)
    assert result.found_by == "both"
    assert not result.better_than_random.better
    assert "no better than random" in result.better_than_random.text
    assert result.better_than_random.p_values["children"] == 1.0


def test_a_bert_pattern_that_is_the_best_wins():
    pattern = ("MHA4", "FFN") * 2
    script = Script([("CONV3",) * 4])
    result = run(lambda space, seed: script, with_best(pattern, planted_losses(0, 4, noise=1.0)), share=1.0)
    assert result.bert_pattern == result.winner
    assert result.winner.architecture == pattern
    assert result.found_by == "bert_pattern"
    assert not result.better_than_bert.better
    assert result.verdict.endswith("and the best child is no better than the nearest BERT pattern.")
    assert "outside the budget" not in result.better_than_bert.text


def test_a_bert_pattern_outside_the_budget_never_wins_and_this_is_said():
    pattern = ("MHA4", "FFN") * 2
    result = run(SEARCHERS["random"], with_best(pattern, planted_losses(0, 4, noise=1.0)), share=0.3)
    assert result.bert_pattern.architecture == pattern
    assert not result.budget.allows(pattern)
    assert result.winner.architecture != pattern
    assert "MHA4,FFN,MHA4,FFN, outside the budget" in result.better_than_bert.text
    assert result.to_json()["bert_pattern"]["within_budget"] is False


def test_a_winner_that_is_the_bert_pattern_is_not_compared_with_itself():
    pattern = ("MHA4", "FFN") * 2
    result = run(lambda space, seed: Script([pattern]), with_best(pattern, planted_losses(0, 4, noise=1.0)), share=1.0)
    assert result.found_by == "search"
    assert "is the nearest BERT pattern, MHA4,FFN,MHA4,FFN itself" in result.better_than_bert.text
    assert not result.better_than_bert.better


def test_a_space_without_a_bert_pattern_says_so():
    space = SearchSpace((OPERATORS, ("CONV3", "MHA4")))
    budget = Budget((Limit(COST, maximum=1e6),))
    result = search_children(
        planted_losses(0, 2, noise=1.0), space, budget, RandomSearcher(BudgetedSpace(space, budget), 0), 5
    )
    assert result.bert_pattern is None
    assert result.better_than_bert is None
    assert result.verdict == "The search is no better than random search."
    assert "no child with alternating attention and feed-forward layers" in result.summary


@given(
    st.lists(
        st.lists(st.sampled_from(("MHA4", "MHA8", "FFN", "FFNx64", "CONV3")), min_size=1, unique=True),
        min_size=1,
        max_size=5,
    ),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
    st.integers(0, 1000),
)
def test_the_bert_pattern_is_the_nearest_in_cost(candidates, counts, seed):
    space = SearchSpace(tuple(map(tuple, candidates)))
    cost = AdditiveCost("flops", 7, dict(zip(("MHA4", "MHA8", "FFN", "FFNx64", "CONV3"), counts, strict=True)))
    child = space.sample(random.Random(seed))
    patterns = [
        pattern
        for pattern in space.children()
        if all(name.startswith(("MHA", "FFN")[layer % 2]) for layer, name in enumerate(pattern))
    ]
    nearest = nearest_bert_child(space, cost, child)
    if not patterns:
        assert nearest is None
    else:
        assert nearest in patterns
        assert abs(cost(nearest) - cost(child)) == min(abs(cost(pattern) - cost(child)) for pattern in patterns)


def test_the_bert_pattern_of_26_layers_takes_no_time():
    space = SearchSpace((("MHA4", "MHA8", "FFN", "FFNx64"),) * 26)
    cost = AdditiveCost(
        "latency_ms", 5, {"MHA4": 1_000_003, "MHA8": 2_000_081, "FFN": 3_000_017, "FFNx64": 700_001}, 1e-6
    )
    child = space.sample(random.Random(0))
    pattern = nearest_bert_child(space, cost, child)
    assert abs(cost(pattern) - cost(child)) < 1


def test_the_bert_pattern_of_a_space_with_very_many_sums_is_as_near_as_a_grid_tells():
    names = ("MHA4", "MHA8", "MHA2", "FFN", "FFNx64", "FFNx32")
    space = SearchSpace((names,) * 40)
    cost = AdditiveCost("latency_ms", 5, {name: random.Random(name).randrange(10**6) for name in names}, 1e-6)
    child = space.sample(random.Random(0))
    start = time.process_time()
    pattern = nearest_bert_child(space, cost, child)
    assert time.process_time() - start < 5
    assert abs(cost(pattern) - cost(child)) < 40 * 1e-6 * 10**6 / 20_000


# ---- Replay, and later questions ----


@each_searcher
@fewer_examples
@given(seed=st.integers(0, 100), stops=st.lists(st.integers(0, 60), min_size=1, max_size=3))
def test_a_stopped_search_ends_with_the_same_answer_and_evaluates_nothing_again(make, seed, stops):
    planted = planted_losses(seed, 5, structure=1.0, noise=0.3)
    whole = Table(planted)
    never_stopped = run(make, whole, 5, num_evaluations=30, seed=seed)
    table = Table(planted)
    for stop in sorted(stops):
        table.stop_after = stop
        try:
            run(make, table, 5, num_evaluations=30, seed=seed)
        except KeyboardInterrupt:
            assert len(table.known) == stop
    table.stop_after = math.inf
    continued = run(make, table, 5, num_evaluations=30, seed=seed)
    assert comparable(continued) == comparable(never_stopped)
    assert list(table.known) == list(whole.known)


def test_a_supernets_search_goes_on_from_its_journal(supernet, tmp_path):
    batches = [collate(toy_data()[start : start + 8]) for start in (0, 8, 16)]

    def searched(journal, stop_after=math.inf):
        evaluator = Evaluator(supernet, batches, journal=journal)

        def evaluate(architectures):
            children = []
            for architecture in architectures:
                if evaluator.num_evaluated >= stop_after:
                    raise KeyboardInterrupt
                children += evaluator([architecture])
            return children

        return run(SEARCHERS["evolution"], evaluate, num_evaluations=30), evaluator.num_evaluated

    never_stopped, num_evaluated = searched(tmp_path / "whole.jsonl")
    with pytest.raises(KeyboardInterrupt):
        searched(tmp_path / "stopped.jsonl", stop_after=25)
    continued, num_more = searched(tmp_path / "stopped.jsonl")
    assert comparable(continued) == comparable(never_stopped)
    assert num_more == num_evaluated - 25
    assert continued.better_than_random.interval == never_stopped.better_than_random.interval is not None


def test_later_budgets_are_answered_from_what_was_evaluated():
    table = Table(planted_losses(0, 6, structure=1.0))
    run(SEARCHERS["evolution"], table, 6, 1.0, 100)
    for share in (0.1, 0.3, 0.5, 0.9):
        budget = budget_below(share, planted_space(6))
        allowed = [child.val_loss for child in table.known.values() if budget.allows(child.architecture)]
        best = best_within(table.known.values(), budget)
        assert best.val_loss == min(allowed)
        assert budget.allows(best.architecture)
    assert best_within(table.known.values(), Budget((Limit(COST, maximum=1),))) is None


def test_best_within_breaks_ties_by_architecture_and_passes_over_losses_that_are_not_finite():
    children = [
        RankedChild((name,), loss, 0) for name, loss in zip("dcba", (math.nan, 1.0, 1.0, -math.inf), strict=True)
    ]
    for order in (children, children[::-1]):
        assert best_within(order, Budget()).architecture == ("b",)
    assert best_within(children[:1], Budget()) is None


# ---- Comparisons ----


def child_of(sums, name="a"):
    return RankedChild((name,), sum(sums) / sum(NUM_TOKENS[: len(sums)]), 0.5, tuple(sums))


@pytest.mark.parametrize("level", [300.0, 0.0], ids=["losses", "numbers around zero"])
def test_the_interval_is_the_paired_t_interval_where_batches_are_equally_large(level):
    half_differences = np.random.default_rng(0).normal(-3, 5, 12)
    first, second = level + half_differences, level - half_differences
    children = [
        RankedChild((name,), sums.sum() / 1200, 0, tuple(sums)) for name, sums in (("a", first), ("b", second))
    ]
    comparison = compare_with_child(*children, 1, "the other")
    test = ttest_rel(first / 100, second / 100)
    assert comparison.interval == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert comparison.p_values["batches"] == pytest.approx(test.pvalue)
    assert comparison.difference == pytest.approx((first - second).mean() / 100)


@pytest.mark.parametrize("difference", [0.0, -0.07, -1.0])
def test_the_interval_covers_the_difference_of_children_whose_batches_are_not_equally_large(difference):
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(2000):
        tokens = rng.integers(60, 140, 16)
        tokens[-1] = 20
        common = rng.normal(4, 0.3, 16)
        # The scatter of a batch's mean loss is that of its tokens, so it falls with their number.
        first, second = (
            tokens * (common + shift + rng.normal(0, 1, 16) / np.sqrt(tokens)) for shift in (difference, 0.0)
        )
        children = [
            RankedChild((name,), sums.sum() / tokens.sum(), 0, tuple(sums))
            for name, sums in (("a", first), ("b", second))
        ]
        low, high = compare_with_child(*children, 1, "the other").interval
        covered += low <= difference <= high
    assert 0.935 < covered / 2000 < 0.985


def test_a_small_last_batch_does_not_hide_a_difference():
    tokens = np.array([100, 100, 100, 10])
    first, second = (tokens * (loss + np.array([0.1, -0.1, 0.05, 0.2])) for loss in (3.0, 4.0))
    children = [RankedChild((name,), sums.sum() / 310, 0, tuple(sums)) for name, sums in (("a", first), ("b", second))]
    low, high = compare_with_child(*children, 1000, "the other").interval
    assert low < -1.0 < high < 0


def test_a_chosen_child_has_to_be_better_by_more():
    rng = np.random.default_rng(2)
    control = child_of([100 * 4.0 for _ in NUM_TOKENS], "control")
    wrong = {1: 0, 50: 0}
    for _ in range(300):
        candidates = [child_of([400 + rng.normal(0, 10) for _ in NUM_TOKENS]) for _ in range(50)]
        best = min(candidates, key=rank_key)
        for number in wrong:
            wrong[number] += compare_with_child(best, control, number, "it").better
    assert wrong[1] > 150
    assert wrong[50] < 0.08 * 300


@pytest.mark.parametrize(
    ("first", "second"),
    [((), ()), ((300.0,), (400.0,)), ((math.nan, 300.0), (400.0, 400.0))],
    ids=["none", "one batch", "not finite"],
)
def test_without_a_spread_nothing_is_better_and_this_is_said(first, second):
    def child(name, sums):
        return RankedChild((name,), sum(sums) / 100 if sums else float(len(name)), 0.5, sums)

    searched = [child("a" * (index + 1), first) for index in range(40)]
    drawn = [child("b" * (index + 90), second) for index in range(40)]
    comparisons = [compare_with_random(searched, drawn), compare_with_child(searched[0], drawn[0], 40, "the control")]
    for comparison in comparisons:
        assert not comparison.better
        assert comparison.interval is None
        assert "the spread is unknown" in comparison.text
        assert "no better than" in comparison.text


def test_children_of_other_batches_are_not_compared():
    with pytest.raises(ValueError, match="validated on 3 batches and another on 4"):
        compare_with_child(child_of([1.0] * 3), child_of([1.0] * 4, "b"), 1, "it")


def test_equal_losses_are_no_better_than_random():
    searched, drawn = ([child_of([100.0] * 8, f"{name}{index}") for index in range(50)] for name in "sr")
    comparison = compare_with_random(searched, drawn)
    assert not comparison.better
    assert comparison.p_values["children"] > 0.5
    assert comparison.interval == (0.0, 0.0)


def children_of(losses, name):
    return [child_of([loss * tokens for tokens in NUM_TOKENS], f"{name}{index}") for index, loss in enumerate(losses)]


def test_most_children_being_better_is_seen():
    # The best tenth is shared out evenly, the rest of the search is better than the rest of the random children.
    searched = children_of([1 + 0.02 * index for index in range(10)] + [2 + index / 90 for index in range(90)], "s")
    drawn = children_of([1.01 + 0.02 * index for index in range(10)] + [2.4 + index / 90 for index in range(90)], "r")
    comparison = compare_with_random(searched, drawn)
    assert comparison.p_values["children"] < 1e-4
    assert comparison.better
    assert compare_with_random(drawn, searched).p_values["children"] > 0.5


def test_the_best_tenth_being_the_searchs_is_seen_though_other_children_are_bad():
    searched = children_of([1 + 0.02 * index for index in range(20)] + [5 + index for index in range(80)], "s")
    drawn = children_of([2 + 0.02 * index for index in range(100)], "r")
    comparison = compare_with_random(searched, drawn)
    by_chance = math.comb(100, 20) / math.comb(200, 20)
    assert comparison.p_values["children"] == pytest.approx(2 * by_chance)
    assert comparison.better


def test_a_difference_within_the_scatter_of_the_batches_is_no_better_than_random():
    rng = np.random.default_rng(3)

    def scattered(losses, name):
        return [child_of([100 * (loss + rng.normal(0, 0.5)) for _ in NUM_TOKENS], f"{name}{i}") for i, loss in losses]

    searched = scattered(enumerate(np.linspace(3.9, 4.0, 60)), "s")
    drawn = scattered(enumerate([3.9, *np.linspace(5.0, 5.1, 59)]), "r")
    comparison = compare_with_random(searched, drawn)
    assert comparison.p_values["children"] < 1e-6
    assert comparison.interval[0] < 0 < comparison.interval[1]
    assert not comparison.better


def test_children_that_both_hold_do_not_hide_that_the_others_are_better():
    both = children_of(np.linspace(2, 3, 100), "both")
    searched, drawn = children_of(np.linspace(2.0, 2.2, 12), "s"), children_of(np.linspace(2.8, 3.0, 12), "r")
    alone = compare_with_random(searched, drawn).p_values["children"]
    assert compare_with_random([*both, *searched], [*drawn, *both]).p_values["children"] == alone < 1e-3


def test_a_loss_of_zero_has_an_interval_too():
    zero, control = children_of([0.0], "zero")[0], children_of([0.5], "control")[0]
    for first, second in ((zero, control), (control, zero)):
        difference = first.val_loss - second.val_loss
        assert compare_with_child(first, second, 1, "it").interval == pytest.approx((difference, difference))


NOISE = {"of the child": {"noise": 1.0}, "of the batch": {"batch_noise": 1.0}}


@pytest.mark.parametrize("noise", NOISE.values(), ids=NOISE)
@pytest.mark.parametrize("name", ["random", "evolution", "pareto"])
def test_scores_without_structure_are_no_better_than_random(name, noise):
    results = [run(SEARCHERS[name], planted_losses(seed, 5, **noise), 5, 0.7, 50, seed) for seed in range(100)]
    better = sum(result.better_than_random.better for result in results)
    assert better <= 5
    assert sum("no better than random" in result.better_than_random.text for result in results) == 100 - better


ADDITIVE = {"structure": 1.0, "noise": 0.3, "batch_noise": 0.05}
INTERACTIONS = {"structure": 0.8, "interactions": 0.5, "noise": 0.2, "batch_noise": 0.05}


@pytest.mark.parametrize(
    ("name", "structure", "num_evaluations", "num_seeds"),
    [
        pytest.param("evolution", ADDITIVE, 200, 100, marks=pytest.mark.slow),
        pytest.param("evolution", INTERACTIONS, 200, 100, marks=pytest.mark.slow),
        ("pareto", ADDITIVE, 300, 20),
        pytest.param("spos", ADDITIVE, 200, 100, marks=pytest.mark.slow),
        pytest.param("spos", INTERACTIONS, 200, 100, marks=pytest.mark.slow),
        pytest.param("pareto", ADDITIVE, 300, 100, marks=pytest.mark.slow),
        pytest.param("pareto", INTERACTIONS, 300, 100, marks=pytest.mark.slow),
    ],
)
def test_planted_structure_is_better_than_random(name, structure, num_evaluations, num_seeds):
    results = [
        run(SEARCHERS[name], planted_losses(seed, 10, **structure), 10, 0.5, num_evaluations, seed)
        for seed in range(num_seeds)
    ]
    assert sum(result.better_than_random.better for result in results) >= 0.9 * num_seeds
    assert sum(result.winner in result.searched for result in results) >= 0.95 * num_seeds


def test_random_search_is_no_better_than_random_where_there_is_structure():
    results = [
        run(SEARCHERS["random"], planted_losses(seed, 5, structure=1.0), 5, 0.7, 50, seed) for seed in range(100)
    ]
    assert sum(result.better_than_random.better for result in results) <= 5


# ---- What is told ----


def test_the_bar_shows_the_lowest_loss_so_far(capsys):
    result = run(SEARCHERS["evolution"], planted_losses(0, 6, structure=1.0), 6, 0.5, 60, progress=True)
    shown = [float(loss) for loss in re.findall(r"best=([\d.]+)", capsys.readouterr().err)]
    assert shown
    lowest = min(child.val_loss for child in (*result.searched, *result.random))
    assert min(shown) == pytest.approx(lowest, abs=1e-4)
    run(SEARCHERS["evolution"], planted_losses(0, 6, structure=1.0), 6, 0.5, 60)
    assert capsys.readouterr().err == ""


def test_the_json_holds_what_a_report_needs():
    other = planted_cost("flops", MHA4=3, FFN=9, CONV3=2, CONV5=5)
    space = planted_space(6)
    budget = Budget((*budget_below(0.5, space).limits, Limit(other, minimum=1000)))
    searcher = EvolutionSearcher(BudgetedSpace(space, budget), 0)
    evaluate = planted_losses(0, 6, structure=1.0)
    result = search_children(evaluate, space, budget, searcher, 60)
    told = json.loads(json.dumps(result.to_json(), allow_nan=False))
    assert told["budget"]["limits"][1] == {"cost": "flops", "minimum": 1000, "maximum": None}
    assert told["winner"]["architecture"] == list(result.winner.architecture)
    assert told["winner"]["costs"] == {
        "num_parameters": COST(result.winner.architecture),
        "flops": other(result.winner.architecture),
    }
    assert [child["val_loss"] for child in told["searched"]] == [child.val_loss for child in result.searched]
    assert len(told["random"]) == 60
    assert told["better_than_random"]["better"] is result.better_than_random.better
    assert told["found_by"] == result.found_by
    assert result.better_than_random.text in told["summary"]


# ---- What a notebook shows ----


def test_a_result_is_shown_with_its_controls():
    result = run(EvolutionSearcher, planted_losses(0, 4))
    winner = ",".join(result.winner.architecture)
    assert repr(result) == (
        f"SearchResult(winner={winner!r}, val_loss={result.winner.val_loss:.4f}, found_by={result.found_by!r})"
    )
    shown = result._repr_html_()
    assert [shown.count(name) for name in ("<td>winner</td>", "<td>best of random search</td>")] == [1, 1]
    assert f"<td>{min(child.val_loss for child in result.random):.4f}</td>" in shown
    assert f"<p>{escape(result.better_than_random.text)}</p>" in shown


def test_names_in_a_shown_result_are_escaped():
    evil = ("<script>", "FFN")
    space = SearchSpace((("<script>",), ("FFN",)))
    cost = AdditiveCost("<script>", 1, {"<script>": 1, "FFN": 2})
    child = RankedChild(evil, 1.0, 0.5)
    result = search_children(lambda asked: [child], space, Budget(), Script([evil]), 1, bert_pattern_cost=cost)
    assert "<script" not in result._repr_html_()
    assert "&lt;script&gt;" in result._repr_html_()
