"""Samplers: they stay in the space, laws by chi-square tests, exact resumption."""

import json
import random
from collections import Counter
from itertools import combinations, pairwise, product

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from toy_spaces import MIXED, OPERATORS, seeds, spaces

from training.space.samplers import FairSampler, GradualSampler, SandwichSampler, UniformSampler, make_sampler
from training.space.search_space import SearchSpace


COSTS = {"MHA12": 4.0, "FFN": 8.0, "CONV3": 2.0, "CONV5": 2.0}
SAMPLERS = ("uniform", "gradual", "fair", "sandwich")


def build(name, space, seed=0, num_substitutions=1):
    return make_sampler(name, space, seed, num_substitutions, cost=COSTS.__getitem__)


def take(sampler, count):
    return [sampler.next() for _ in range(count)]


@st.composite
def shrunk_spaces(draw):
    """A space and what is left of it after some deletions."""
    space = draw(spaces)
    return space, SearchSpace(
        tuple(tuple(draw(st.lists(st.sampled_from(c), min_size=1, unique=True))) for c in space.candidates)
    )


@pytest.mark.parametrize("name", SAMPLERS)
@given(shrunk=shrunk_spaces(), seed=seeds, steps=st.integers(0, 6))
@settings(max_examples=50)
def test_children_stay_in_the_space_before_and_after_shrinking(name, shrunk, seed, steps):
    space, narrower = shrunk
    sampler = build(name, space, seed)
    assert all(child in space for child in take(sampler, steps))
    sampler.restrict(narrower)
    assert sampler.space == narrower
    assert all(child in narrower for child in take(sampler, 6))


@given(spaces, seeds, st.data())
def test_gradual_substitutes_exactly_k_operators(space, seed, data):
    k = data.draw(st.integers(1, space.num_layers))
    num_free = sum(len(candidates) > 1 for candidates in space.candidates)
    children = take(GradualSampler(space, seed, k), 8)
    assert {space.distance(a, b) for a, b in pairwise(children)} == {min(k, num_free)}


@given(shrunk_spaces(), seeds)
def test_gradual_restriction_replaces_deleted_operators_only(shrunk, seed):
    space, narrower = shrunk
    assume(narrower.size < space.size)
    sampler = GradualSampler(space, seed)
    child = sampler.next()
    sampler.restrict(narrower)
    replaced = tuple(sampler.state_dict()["child"])
    assert replaced in narrower
    for before, after, survivors in zip(child, replaced, narrower.candidates, strict=True):
        assert after == before or before not in survivors


def test_gradual_restriction_draws_survivors_uniformly():
    """A uniform child stays uniform over what is left."""
    narrower = SearchSpace((("MHA12", "CONV3"), ("FFN", "CONV5", "CONV3"), ("FFN",)))
    visits = Counter()
    for seed in range(3000):
        sampler = GradualSampler(MIXED, seed)
        sampler.next()
        sampler.restrict(narrower)
        visits[tuple(sampler.state_dict()["child"])] += 1
    assert_uniform(visits, narrower)


def assert_uniform(visits, space):
    assert set(visits) <= set(space.children())
    assert chisquare([visits[child] for child in space.children()]).pvalue > 0.01
    for layer, candidates in enumerate(space.candidates):
        if len(candidates) == 1:
            continue
        marginal = Counter()
        for child, count in visits.items():
            marginal[child[layer]] += count
        assert chisquare([marginal[operator] for operator in candidates]).pvalue > 0.01


def test_uniform_law_of_spos():
    assert_uniform(Counter(take(UniformSampler(MIXED, seed=1), 3600)), MIXED)


@pytest.mark.parametrize("k", [1, 2])
def test_stationary_law_of_magic_t_is_uniform(k):
    """One long walk from a fixed child; every 30th child, so that the visits are as good as independent."""
    sampler = GradualSampler(MIXED, seed=1, num_substitutions=k)
    sampler.load_state_dict(sampler.state_dict() | {"child": ["MHA12", "FFN", "MHA12"]})
    visits = Counter(take(sampler, 30)[-1] for _ in range(3600))
    assert_uniform(visits, MIXED)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_every_step_of_magic_t_is_uniform(k):
    """The law of the fourth child over many walks, in a space that a single walk with k = 2 or 3 covers by half."""
    space = SearchSpace((("MHA12", "FFN"),) * 3)
    assert_uniform(Counter(take(GradualSampler(space, seed, k), 4)[-1] for seed in range(3000)), space)


def reachable(space, k):
    start = next(space.children())
    seen, frontier = {start}, [start]
    free_layers = [layer for layer, candidates in enumerate(space.candidates) if len(candidates) > 1]
    while frontier:
        child = frontier.pop()
        for layers in combinations(free_layers, k):
            for operators in product(*(set(space.candidates[layer]) - {child[layer]} for layer in layers)):
                operators = dict(zip(layers, operators, strict=True))
                neighbour = tuple(operators.get(layer, operator) for layer, operator in enumerate(child))
                if neighbour not in seen:
                    seen.add(neighbour)
                    frontier.append(neighbour)
    return seen


@pytest.mark.parametrize("widths", list(product((1, 2, 3), repeat=4)))
def test_where_one_walk_reaches_every_child(widths):
    """The exceptions are those that the docstring of GradualSampler lists."""
    space = SearchSpace(tuple(OPERATORS[:width] for width in widths))
    choices = [width for width in widths if width > 1]
    for k in range(1, len(choices) + 1):
        all_of_two_and_even = max(choices) == 2 and k % 2 == 0
        all_at_once = k == len(choices) and choices.count(2) > 1
        assert (len(reachable(space, k)) == space.size) == (not all_of_two_and_even and not all_at_once)


@pytest.mark.parametrize("k", [0, -1, 4])
def test_number_of_substitutions_is_limited(k):
    with pytest.raises(ValueError, match=f"num_substitutions is {k}; choose 1 to 3, the number of layers"):
        GradualSampler(MIXED, 0, k)


@given(st.integers(1, 4), st.integers(1, 5), seeds)
def test_fair_rounds_visit_each_operator_exactly_once(width, num_layers, seed):
    space = SearchSpace((OPERATORS[:width],) * num_layers)
    sampler = FairSampler(space, seed)
    for _ in range(3):
        for visited in zip(*take(sampler, width), strict=True):
            assert sorted(visited) == sorted(OPERATORS[:width])


@given(spaces, seeds, st.integers(1, 20))
def test_fair_visits_differ_by_one_at_most(space, seed, steps):
    visits = zip(*take(FairSampler(space, seed), steps), strict=True)
    for visited, candidates in zip(visits, space.candidates, strict=True):
        counts = [visited.count(operator) for operator in candidates]
        assert sum(counts) == steps
        assert max(counts) - min(counts) <= (steps % len(candidates) != 0)


def test_fair_layers_are_permuted_independently():
    space = SearchSpace((("MHA12", "FFN"),) * 2)
    first = Counter(FairSampler(space, seed).next() for seed in range(400))
    assert chisquare([first[child] for child in space.children()]).pvalue > 0.01


def test_fair_restriction_starts_a_new_round():
    sampler = FairSampler(SearchSpace((OPERATORS,) * 2), seed=3)
    take(sampler, 2)
    narrower = sampler.space.without(0, "FFN")
    sampler.restrict(narrower)
    for visited, candidates in zip(zip(*take(sampler, 12), strict=True), narrower.candidates, strict=True):
        assert len({visited.count(operator) for operator in candidates}) == 1


def test_sandwich_rounds():
    sampler = SandwichSampler(MIXED, seed=5, cost=COSTS.__getitem__)
    for _ in range(3):
        costliest, cheapest, *drawn = take(sampler, 4)
        assert costliest == ("FFN", "FFN", "FFN")
        assert cheapest == ("CONV3", "CONV5", "MHA12")
        assert all(child in MIXED for child in drawn)
    take(sampler, 1)
    sampler.restrict(MIXED.without(0, "FFN"))
    assert take(sampler, 2) == [("MHA12", "FFN", "FFN"), ("CONV3", "CONV5", "MHA12")]


def test_sandwich_middle_is_uniform():
    children = take(SandwichSampler(MIXED, seed=2, cost=COSTS.__getitem__), 7200)
    assert_uniform(Counter(child for step, child in enumerate(children) if step % 4 >= 2), MIXED)


@pytest.mark.parametrize("name", SAMPLERS)
@given(shrunk=shrunk_spaces(), seed=seeds, steps=st.integers(0, 6), data=st.data())
@settings(max_examples=50)
def test_state_continues_the_same_children(name, shrunk, seed, steps, data):
    space, narrower = shrunk
    k = data.draw(st.integers(1, space.num_layers))
    sampler = build(name, space, seed, k)
    take(sampler, steps)
    sampler.restrict(narrower)
    take(sampler, steps)
    resumed = build(name, narrower, seed + 1, k)
    resumed.load_state_dict(json.loads(json.dumps(sampler.state_dict())))
    assert take(resumed, 9) == take(sampler, 9)
    assert resumed.state_dict() == sampler.state_dict()


@pytest.mark.parametrize("name", SAMPLERS)
def test_state_is_a_snapshot(name):
    sampler = build(name, MIXED)
    take(sampler, 2)
    state = sampler.state_dict()
    text = json.dumps(state)
    resumed = build(name, MIXED)
    resumed.load_state_dict(state)
    take(sampler, 3)
    take(resumed, 3)
    assert json.dumps(state) == text


@pytest.mark.parametrize("name", SAMPLERS)
def test_seed_alone_decides(name):
    random.seed(7)
    global_state = random.getstate()
    children = take(build(name, MIXED, seed=11), 12)
    random.seed(8)
    assert take(build(name, MIXED, seed=11), 12) == children
    assert take(build(name, MIXED, seed=12), 12) != children
    random.seed(7)
    sampler = build(name, MIXED, seed=11)
    take(sampler, 3)
    sampler.restrict(MIXED.without(1, "FFN"))
    sampler.load_state_dict(sampler.state_dict())
    take(sampler, 3)
    assert random.getstate() == global_state


@pytest.mark.parametrize("name", SAMPLERS)
def test_foreign_states_are_refused(name):
    sampler = build(name, MIXED)
    other = SAMPLERS[SAMPLERS.index(name) - 1]
    with pytest.raises(ValueError, match=f"state belongs to the sampler '{other}'; this sampler is '{name}'"):
        sampler.load_state_dict(build(other, MIXED).state_dict())
    with pytest.raises(ValueError, match=rf"state of the sampler '{name}' has \['kind'\], not \["):
        sampler.load_state_dict({"kind": name})
    with pytest.raises(ValueError, match="generator's state cannot be read"):
        sampler.load_state_dict(sampler.state_dict() | {"rng": [3, [1, 2], None]})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("gradual", {"child": ["CONV5", "FFN", "FFN"]}, "layer 0 has no operator 'CONV5'; candidates: MHA12, FFN"),
        ("gradual", {"child": ["FFN"]}, "'FFN' has 1 layers, but the search space has 3"),
        ("gradual", {"num_substitutions": 2}, "num_substitutions 2, but this one has 1; continue with the same"),
        ("fair", {"waiting": [["FFN"], ["MHA12"], []]}, "layer 1 has no operator 'MHA12'; candidates: FFN, CONV5"),
        ("fair", {"waiting": [[]]}, "the state has 1 layers, but the space has 3"),
        ("sandwich", {"position": 4}, "position 4 of a round; it must be from 0 to 3"),
    ],
)
def test_states_that_do_not_fit_are_refused(name, change, message):
    sampler = build(name, MIXED)
    with pytest.raises(ValueError, match=message):
        sampler.load_state_dict(sampler.state_dict() | change)


@pytest.mark.parametrize("name", SAMPLERS)
def test_restriction_only_narrows(name):
    sampler = build(name, MIXED.without(0, "FFN"))
    with pytest.raises(ValueError, match="layer 0 has no operator 'FFN'; candidates: MHA12, CONV3"):
        sampler.restrict(MIXED)
    with pytest.raises(ValueError, match="cannot restrict a space of 3 layers to 1 layers"):
        sampler.restrict(SearchSpace((("FFN",),)))
    assert sampler.next() in MIXED.without(0, "FFN")


def test_make_sampler():
    kinds = [type(build(name, MIXED)) for name in SAMPLERS]
    assert kinds == [UniformSampler, GradualSampler, FairSampler, SandwichSampler]
    assert [build(name, MIXED).kind for name in SAMPLERS] == list(SAMPLERS)
    with pytest.raises(ValueError, match="unknown sampler 'spos'; choose one of: uniform, gradual, fair, sandwich"):
        make_sampler("spos", MIXED, 0)
    with pytest.raises(ValueError, match="'sandwich' needs the cost of the operators; pass cost"):
        make_sampler("sandwich", MIXED, 0)
    with pytest.raises(ValueError, match="num_substitutions is 9"):
        make_sampler("gradual", MIXED, 0, num_substitutions=9)
