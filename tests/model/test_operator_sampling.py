"""Children to score operators by: uniform in every scheme, with what shares bottoms cheaper to run."""

import itertools
import math
import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from training.space.samplers import FairSampler
from training.space.search_space import SearchSpace
from training.supernet.evaluation import count_layer_evaluations
from training.supernet.shrinking import operator_scores, sample_children


SCHEMES = ["fair", "nested", "chain"]
BASE = SearchSpace((("MHA12", "FFN", "CONV3", "CONV5"),) * 26)
UNEVEN = SearchSpace((("MHA4", "FFN", "CONV3"), ("FFN", "CONV3"), ("FFN",), ("MHA4", "FFN"), ("MHA4", "FFN", "CONV3")))

spaces = st.lists(st.integers(1, 5), min_size=1, max_size=8).map(
    lambda widths: SearchSpace(tuple(tuple(f"FFNx{number + 1}" for number in range(width)) for width in widths))
)


@given(spaces, st.integers(1, 40), st.integers(0, 2**32), st.sampled_from(SCHEMES))
def test_every_operator_can_be_scored(space, num_children, seed, scheme):
    children = sample_children(space, num_children, seed, scheme)
    assert all(child in space for child in children)
    assert len(children) >= num_children or space.size == 1
    assert operator_scores(space, ((child, 0.0) for child in children)).keys() == {
        (layer, operator) for layer, operators in enumerate(space.candidates) for operator in operators
    }
    assert children == sample_children(space, num_children, seed, scheme)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_child_of_a_draw_is_uniform_over_the_space(scheme):
    draws = [sample_children(UNEVEN, 20, seed, scheme) for seed in range(3000)]
    # Those in between are alike; 8 and 16 begin a bottom in the nested scheme.
    for position in (0, 1, 7, 8, 16, 19):
        counts = Counter(draw[position] for draw in draws)
        observed = [counts[child] for child in UNEVEN.children()]
        assert stats.chisquare(observed).pvalue > 1e-3


@pytest.mark.parametrize("scheme", SCHEMES)
def test_scores_are_unbiased_for_any_losses(scheme):
    rng = random.Random(0)
    losses = {child: rng.lognormvariate(0, 1) for child in UNEVEN.children()}
    exact = operator_scores(UNEVEN, losses.items())
    draws = [
        operator_scores(UNEVEN, ((child, losses[child]) for child in sample_children(UNEVEN, 24, seed, scheme)))
        for seed in range(2000)
    ]
    for operator, score in exact.items():
        values = [draw[operator] for draw in draws]
        mean = math.fsum(values) / len(values)
        # 11 operators and three schemes: one in a hundred such runs is beyond four standard errors by chance.
        assert abs(mean - score) < 4 * stats.sem(values)


@given(spaces, st.integers(1, 40), st.integers(0, 2**32))
def test_fair_is_strict_fairness(space, num_children, seed):
    sampler = FairSampler(space, seed)
    children = sample_children(space, num_children, seed)
    assert children == [sampler.next() for _ in children]
    assert len(children) == max(num_children, *map(len, space.candidates), 1)


def test_a_chain_changes_one_layer_at_a_time_and_all_in_turn():
    children = sample_children(BASE, 26 * 20 + 1, 0, "chain")
    changed = [
        [layer for layer in range(26) if first[layer] != second[layer]]
        for first, second in itertools.pairwise(children)
    ]
    assert all(len(layers) == 1 for layers in changed)
    for start in range(0, len(changed), 26):
        assert sorted(layer for (layer,) in changed[start : start + 26]) == list(range(26))


def test_nested_children_share_their_bottoms_and_balance_their_tops():
    children = sample_children(BASE, 160, 0, "nested")
    assert len({child[:7] for child in children}) == 20
    assert len({child[:18] for child in children}) == 80
    for start in range(0, 160, 8):
        assert len({child[:7] for child in children[start : start + 8]}) == 1
        # On one bottom each operator of an upper layer comes equally often.
        for layer in range(18, 26):
            assert set(Counter(child[layer] for child in children[start : start + 8]).values()) == {2}


@pytest.mark.parametrize("num_children", [100, 1000])
def test_nested_and_chain_run_about_half_the_layers(num_children):
    layers = {
        scheme: count_layer_evaluations(sample_children(BASE, num_children, 0, scheme)) / (26 * num_children)
        for scheme in SCHEMES
    }
    assert layers["fair"] > 0.8
    assert 0.45 < layers["chain"] < 0.6
    assert 0.45 < layers["nested"] < 0.6


def test_unknown_schemes_are_named():
    with pytest.raises(ValueError, match="unknown scheme 'tree' for drawing children; choose one of: fair, nested"):
        sample_children(BASE, 10, 0, "tree")
