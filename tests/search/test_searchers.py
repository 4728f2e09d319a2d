"""Searchers ask children within the budget, each once, until all are known, and the same ones for the same answers."""

import math
import random
import time
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from planted import budget_below, planted_cost, planted_space
from scipy.stats import chisquare

from training.search.searchers import EvolutionSearcher, ParetoSearcher, RandomSearcher, rank_key
from training.space.budgets import AdditiveCost, Budget, BudgetedSpace, InfeasibleBudgetError, Limit
from training.space.search_space import SearchSpace
from training.supernet.journal import RankedChild


COST = planted_cost()
SEARCHERS = {
    "random": lambda space, seed: RandomSearcher(space, seed, batch_size=7),
    "evolution": lambda space, seed: EvolutionSearcher(space, seed, population_size=12, generation_size=6),
    "spos": lambda space, seed: EvolutionSearcher(space, seed, 12, 12, num_parents=4, regularized=False),
    "pareto": lambda space, seed: ParetoSearcher(space, seed, [COST], population_size=12, generation_size=6),
}
each_searcher = pytest.mark.parametrize("make", SEARCHERS.values(), ids=SEARCHERS)


def child(architecture, val_loss=0.0):
    return RankedChild(tuple(architecture), val_loss, 0.5)


def loss_of(architecture):
    """A loss that a text decides, whatever the process."""
    return random.Random(",".join(architecture)).random()


def smooth_loss_of(architecture):
    """A loss to which each operator adds what it is worth in its layer."""
    return sum(random.Random(f"{layer}{name}").random() for layer, name in enumerate(architecture))


def run(searcher, num_children, loss=loss_of):
    asked = []
    while len(asked) < num_children and (batch := searcher.ask()):
        searcher.tell([child(architecture, loss(architecture)) for architecture in batch])
        asked += batch
    return asked


def within(space, budget):
    return {architecture for architecture in space.children() if budget.allows(architecture)}


windows = st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted)


@each_searcher
@settings(max_examples=50)
@given(seed=st.integers(0, 1000), window=windows, layers=st.integers(1, 4))
def test_all_children_within_the_budget_are_asked_once_and_then_none(make, seed, window, layers):
    space = planted_space(layers)
    costs = sorted(map(COST, space.children()))
    low, high = (costs[0] + share * (costs[-1] - costs[0]) for share in window)
    budget = Budget((Limit(COST, minimum=low, maximum=high),))
    allowed = within(space, budget)
    if not allowed:
        with pytest.raises(InfeasibleBudgetError):
            make(BudgetedSpace(space, budget), seed)
        return
    searcher = make(BudgetedSpace(space, budget), seed)
    asked = run(searcher, math.inf)
    assert len(asked) == len(allowed)
    assert set(asked) == allowed
    assert searcher.ask() == []


@each_searcher
def test_the_last_children_of_a_larger_space_are_found(make):
    space = planted_space(6)
    budget = budget_below(0.3, space)
    searcher = make(BudgetedSpace(space, budget), 0)
    assert Counter(run(searcher, math.inf)) == Counter(within(space, budget))


@each_searcher
def test_the_same_seed_and_answers_ask_the_same_children(make):
    space = BudgetedSpace(planted_space(8), budget_below(0.4, planted_space(8)))
    first = run(make(space, 3), 120)
    assert run(make(space, 3), 120) == first
    assert run(make(space, 4), 120) != first


@pytest.mark.parametrize("name", ["evolution", "spos", "pareto"])
def test_other_answers_ask_other_children(name):
    space = BudgetedSpace(planted_space(8), Budget())
    first = run(SEARCHERS[name](space, 3), 60)
    other = run(SEARCHERS[name](space, 3), 60, lambda architecture: -loss_of(architecture))
    assert first[:12] == other[:12]
    assert first != other


@each_searcher
def test_children_told_by_others_are_not_asked(make):
    space = BudgetedSpace(planted_space(4), budget_below(0.5, planted_space(4)))
    allowed = sorted(within(space.space, space.budget))
    known, outside = allowed[::2], ("MHA4",) * 5
    searcher = make(space, 0)
    searcher.tell([child(architecture, loss_of(architecture)) for architecture in (*known, outside)])
    assert Counter(run(searcher, math.inf)) == Counter(allowed[1::2])


@each_searcher
def test_first_children_are_uniform_within_the_budget(make):
    space = BudgetedSpace(planted_space(3), budget_below(0.5, planted_space(3)))
    counts = Counter(make(space, seed).ask()[index] for seed in range(400) for index in (0, 5))
    assert len(counts) == space.size
    assert chisquare(list(counts.values())).pvalue > 1e-3


@each_searcher
def test_a_huge_space_takes_no_longer(make):
    space = planted_space(26)
    budgeted = BudgetedSpace(space, budget_below(0.3, space))
    asked = run(make(budgeted, 0), 30)
    assert len(set(asked)) == len(asked) >= 30
    assert all(architecture in budgeted for architecture in asked)


@each_searcher
def test_a_space_with_too_many_sums_to_walk_over(make):
    names = ["MHA12", "MHA8", "FFN", "CONV3", "CONV5", "SKIP"]
    cost = AdditiveCost("num_parameters", 0, {name: random.Random(name).randrange(10**9) for name in names})
    limit = Limit(cost, maximum=40 * sum(cost.operators.values()) // 7)
    within = BudgetedSpace(SearchSpace((names,) * 40), Budget((limit,)), max_transitions=1_000)
    assert not within.is_exact
    if make is SEARCHERS["pareto"]:
        searcher = ParetoSearcher(within, 0, [cost], population_size=12, generation_size=6)
    else:
        searcher = make(within, 0)
    asked = run(searcher, 30)
    assert len(set(asked)) == len(asked)
    assert all(architecture in within for architecture in asked)


@pytest.mark.parametrize("name", ["evolution", "spos", "pareto"])
def test_children_whose_loss_is_not_finite_make_no_parents(name):
    # Whoever has CONV5 in the first layer diverges; only fresh draws and mutations still hold it there later on.
    def loss(architecture):
        return math.nan if architecture[0] == "CONV5" else smooth_loss_of(architecture)

    asked = run(SEARCHERS[name](BudgetedSpace(planted_space(8), Budget()), 0), 200, loss)
    late = sum(architecture[0] == "CONV5" for architecture in asked[100:])
    assert late < 0.15 * len(asked[100:])


@each_searcher
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_search_of_diverged_children_goes_on(make, value):
    assert len(run(make(BudgetedSpace(planted_space(4), Budget()), 0), 100, lambda _: value)) >= 100


def test_rank_key_orders_finite_losses_first_and_ties_by_architecture():
    children = [child("ab", math.nan), child("ba", 1.0), child("aa", 1.0), child("bb", -2.0), child("cc", -math.inf)]
    names = ["".join(ranked.architecture) for ranked in sorted(children, key=rank_key)]
    assert names[:3] == ["bb", "aa", "ba"]
    assert set(names[3:]) == {"ab", "cc"}


def generation_after(searcher, told):
    """The generation that follows when a searcher has been told of children by others."""
    searcher.tell([child(architecture, loss) for architecture, loss in told])
    return searcher.ask()


@pytest.mark.parametrize("regularized", [True, False])
def test_crossovers_take_each_layer_from_one_of_two_parents(regularized):
    space = BudgetedSpace(planted_space(10), Budget())
    first, second = ("MHA4",) * 10, ("FFN",) * 10
    searcher = EvolutionSearcher(space, 0, 50, 40, num_parents=2, regularized=regularized)
    others = [(space.sample(random.Random(seed)), 5.0 + seed) for seed in range(30)]
    generation = generation_after(searcher, [*others, (first, 1.0), (second, 2.0)])
    assert all(set(architecture) == {"MHA4", "FFN"} for architecture in generation[:20])
    # The other half is mutated: each is nearer to one of the parents than chance would have it.
    distances = [min(space.space.distance(parent, x) for parent in (first, second)) for x in generation[20:]]
    assert max(distances) <= 5
    assert min(distances) == 1


def test_crossovers_are_uniform_among_the_children_within_the_budget_between_two_parents():
    space = planted_space(6)
    budget = budget_below(0.5, space)
    first, second = ("MHA4",) * 6, ("CONV3", "FFN") * 3
    between = SearchSpace(tuple(zip(first, second, strict=True)))
    parents = {first, second}
    allowed = within(between, budget)
    assert parents <= allowed
    assert len(parents) < len(allowed) < between.size
    counts = Counter()
    budgeted = BudgetedSpace(space, budget)
    for seed in range(1500):
        searcher = EvolutionSearcher(budgeted, seed, 20, 2, num_parents=2)
        counts[generation_after(searcher, [(first, 1.0), (second, 2.0)])[0]] += 1
    bred = [counts[architecture] for architecture in allowed - parents]
    assert sum(bred) > 1400
    assert chisquare(bred).pvalue > 1e-3


def test_mutations_keep_layers_and_are_uniform_among_the_children_within_the_budget():
    space = planted_space(6)
    budget = budget_below(0.5, space)
    parent = ("CONV3",) * 6
    near = {x for x in within(space, budget) if space.distance(x, parent) == 1}
    counts = Counter()
    budgeted = BudgetedSpace(space, budget)
    for seed in range(1500):
        searcher = EvolutionSearcher(budgeted, seed, 20, 1, 1, mutation_probability=1e-9)
        counts[generation_after(searcher, [(parent, 1.0)])[0]] += 1
    by_layer = [sum(n for x, n in counts.items() if x in near and x[layer] != "CONV3") for layer in range(6)]
    assert sum(by_layer) > 1400
    assert chisquare(by_layer).pvalue > 1e-3
    assert chisquare([counts[x] for x in near if x[0] != "CONV3"]).pvalue > 1e-3


def test_the_oldest_die_only_where_evolution_is_regularized():
    space = BudgetedSpace(planted_space(10), Budget())
    old = ("MHA4",) * 10
    rng = random.Random(0)
    young = [(tuple(rng.choices(("FFN", "CONV3"), k=10)), 2.0) for _ in range(20)]
    for regularized in (True, False):
        searcher = EvolutionSearcher(space, 0, 20, 20, 3, 0.01, regularized=regularized)
        generation = generation_after(searcher, [(old, 1.0), *young])
        descends = [architecture.count("MHA4") > 5 for architecture in generation]
        assert any(descends) is not regularized


def hypervolume(children, loss, reference):
    """The area that the children dominate in cost and loss, up to a reference point."""
    area, lowest = 0.0, reference[1]
    for cost, value in sorted((COST(architecture), loss(architecture)) for architecture in children):
        if value < lowest and cost < reference[0]:
            area += (reference[0] - cost) * (lowest - value)
            lowest = value
    return area


def test_nsga2_comes_nearer_to_the_true_front_than_random_children():
    space = planted_space(6)
    # Dear operators are the better ones, so that loss and cost pull apart.
    losses = {x: smooth_loss_of(x) - COST(x) / 1e5 for x in space.children()}
    loss = losses.__getitem__

    reference = (max(map(COST, space.children())), max(map(loss, space.children())))
    best = hypervolume(space.children(), loss, reference)
    shares = {"random": [], "pareto": []}
    for seed in range(5):
        for name, found in shares.items():
            searcher = SEARCHERS[name](BudgetedSpace(space, Budget()), seed)
            found.append(hypervolume(run(searcher, 300, loss)[:300], loss, reference) / best)
    assert min(shares["pareto"]) > max(shares["random"])
    assert sum(shares["pareto"]) / 5 > 0.97


def test_nsga2_with_two_costs_stays_within_the_budget():
    space = planted_space(8)
    other = planted_cost("flops", MHA4=3, FFN=1, CONV3=2, CONV5=5)
    budgeted = BudgetedSpace(space, Budget((*budget_below(0.5, space).limits, Limit(other, maximum=1024))))
    asked = run(ParetoSearcher(budgeted, 0, [COST, other]), 200)
    assert all(architecture in budgeted for architecture in asked)
    assert len(set(asked)) == len(asked) >= 200


@pytest.mark.parametrize("name", ["evolution", "spos", "pareto"])
def test_searchers_take_little_time(name):
    space = planted_space(12)
    searcher = SEARCHERS[name](BudgetedSpace(space, budget_below(0.4, space)), 0)
    start = time.process_time()
    run(searcher, 300)
    assert (time.process_time() - start) / 300 < 5e-3


def test_bad_arguments_are_named():
    space = BudgetedSpace(planted_space(4), Budget())
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        RandomSearcher(space, 0, batch_size=0)
    with pytest.raises(ValueError, match="num_parents is 0"):
        EvolutionSearcher(space, 0, num_parents=0)
    with pytest.raises(ValueError, match="mutation_probability is 0"):
        EvolutionSearcher(space, 0, mutation_probability=0)
    with pytest.raises(ValueError, match="objectives is empty"):
        ParetoSearcher(space, 0, [])


@each_searcher
def test_reprs_name_the_children(make):
    space = BudgetedSpace(planted_space(2), Budget(()))
    assert repr(make(space, 0)).endswith("Searcher(BudgetedSpace(16 of 16 children, no limit))")


def test_pareto_search_ends_where_fewer_children_are_left_than_estimated(monkeypatch):
    """In wide spaces the number of children is an estimate, which may be too high."""
    space = planted_space(num_layers=4)
    within_budget = BudgetedSpace(space, budget_below(0.5, space))
    true_size = within_budget.size
    monkeypatch.setattr(within_budget, "size", true_size + 5)
    searcher = ParetoSearcher(within_budget, 0, [COST], population_size=12, generation_size=6)
    asked = run(searcher, 10 * true_size)
    assert len(set(asked)) == len(asked) == true_size
