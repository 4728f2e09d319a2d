"""Statistics of a ranking held to scipy, to brute force, and to made-up children whose answer is known."""

import math
import random
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr, ttest_ind
from scipy.stats import t as student_t
from toy_scores import CHILDREN, measured, normal, scores_of

from training.analysis.ranking import (
    check_scores,
    compare_rankings,
    evaluate_ranking,
    method_tau,
    tau_among_equals,
    truth_noise,
)


small = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=5, max_size=9)


@given(small)
def test_tau_spearman_ties_and_tops_by_brute_force(pairs):
    truth, scores = (scores_of(values) for values in zip(*pairs, strict=True))
    if len(set(truth.values())) == 1 or len(set(scores.values())) == 1:
        with pytest.raises(ValueError, match="so there is no ranking"):
            evaluate_ranking(truth, scores, num_resamples=10)
        return
    found = evaluate_ranking(truth, scores, top_k=(1, 3), num_resamples=10)
    t, s = ([values[child] for child in sorted(truth)] for values in (truth, scores))
    both = list(combinations(range(len(t)), 2))
    signs = [np.sign((t[i] - t[j]) * (s[i] - s[j])) for i, j in both]
    tied_t, tied_s = (sum(values[i] == values[j] for i, j in both) for values in (t, s))
    tau = sum(signs) / math.sqrt((len(both) - tied_t) * (len(both) - tied_s))
    assert found.kendall_tau == pytest.approx(tau)
    assert (found.tied_truths, found.tied_scores, found.num_pairs) == (tied_t, tied_s, len(both))
    assert found.spearman == pytest.approx(spearmanr(t, s).statistic)
    for top in found.top:
        # The worst that a way to break ties of the score can give.
        orders = [order for order in combinations(range(len(t)), top.k) if is_top(s, order)]
        kth = sorted(t)[-top.k]
        assert top.regret == max(max(t) - max(t[i] for i in order) for order in orders)
        assert top.overlap == pytest.approx(min(sum(t[i] >= kth for i in order) for order in orders) / top.k)
        every = [max(t[i] for i in order) for order in combinations(range(len(t)), top.k)]
        assert top.random_regret == pytest.approx(max(t) - np.mean(every))


def is_top(scores, order):
    return min(scores[i] for i in order) >= max(
        (value for i, value in enumerate(scores) if i not in order), default=-math.inf
    )


@pytest.mark.parametrize("num_resamples", [1, 50])
def test_intervals_are_quantiles_of_scipys_statistics_on_resampled_lists(num_resamples):
    rng = np.random.default_rng(3)
    truth, score = rng.integers(0, 6, size=(2, 20)).astype(float)
    # With repetition, as many as there are, from the generator of the seed.
    counts = np.random.default_rng(1).multinomial(20, [1 / 20] * 20, size=num_resamples)
    drawn = [np.repeat(np.arange(20), row) for row in counts]
    # The children in the order in which architectures are sorted.
    found = evaluate_ranking(scores_of(truth), scores_of(score), num_resamples=num_resamples, confidence=0.8, seed=1)
    for statistic, interval in ((kendalltau, found.kendall_interval), (spearmanr, found.spearman_interval)):
        values = [statistic(truth[rows], score[rows]).statistic for rows in drawn]
        assert interval == pytest.approx(tuple(np.quantile(values, [0.1, 0.9])), abs=1e-6)


def test_the_interval_holds_the_true_tau_in_95_of_100_draws_or_so():
    rng = np.random.default_rng(5)
    known, inside = 2 / math.pi * math.asin(0.7), 0
    for number in range(100):
        truth, scores = map(scores_of, normal(rng, 60, 0.7))
        low, high = method_tau(truth, [scores], num_resamples=200, seed=number).interval
        inside += low <= known <= high
    assert 88 <= inside <= 99


def test_seeds_repeat_and_the_order_of_children_does_not_matter():
    truth, scores = map(scores_of, normal(np.random.default_rng(0), 30, 0.5))
    shuffled = random.Random(1).sample(list(scores.items()), len(scores))
    assert evaluate_ranking(truth, scores, seed=4) == evaluate_ranking(truth, dict(shuffled), seed=4)
    other = evaluate_ranking(truth, scores, seed=5)
    assert evaluate_ranking(truth, scores, seed=4).kendall_interval != other.kendall_interval
    assert "tau" in str(other)


# ---- Comparisons ----


def test_paired_comparison_is_narrower_than_both_intervals_say():
    rng = np.random.default_rng(7)
    truth, score = normal(rng, 200, 0.6)
    better = score + 0.15 * (truth - score)
    first, second = ([scores_of(values)] for values in (better, score))
    found = compare_rankings(scores_of(truth), first, second)
    taus = [evaluate_ranking(scores_of(truth), one[0]) for one in (first, second)]
    assert found.difference == pytest.approx(taus[0].kendall_tau - taus[1].kendall_tau)
    # The intervals of both overlap, that of the difference is above 0.
    assert taus[1].kendall_interval[1] > taus[0].kendall_interval[0]
    assert 0 < found.interval[0] < found.difference < found.interval[1]
    assert found.share_not_above < 0.01
    turned = compare_rankings(scores_of(truth), second, first)
    assert turned.difference == -found.difference
    assert turned.share_not_above > 0.99


def test_two_equal_methods_differ_by_chance_only():
    rng = np.random.default_rng(11)
    outside = 0
    for number in range(60):
        truth = rng.standard_normal(40)
        sides = [[scores_of(truth + rng.standard_normal(40)) for _ in range(4)] for _ in range(2)]
        low, high = compare_rankings(scores_of(truth), *sides, num_resamples=300, seed=number).interval
        outside += not low <= 0 <= high
    assert outside <= 9


def test_seeds_of_super_nets_widen_the_interval_of_a_method():
    rng = np.random.default_rng(2)
    truth = rng.standard_normal(250)
    # One super-net of three is bad.
    scores = [scores_of(truth + noise * rng.standard_normal(250)) for noise in (0.3, 0.3, 20)]
    found = method_tau(scores_of(truth), scores)
    assert found.taus == tuple(pytest.approx(kendalltau(truth, list(one.values())).statistic) for one in scores)
    assert found.mean == pytest.approx(np.mean(found.taus))
    assert found.spread == pytest.approx(np.std(found.taus, ddof=1))
    alone = method_tau(scores_of(truth), scores[:1])
    assert alone.spread is None
    assert found.interval[1] - found.interval[0] > 5 * (alone.interval[1] - alone.interval[0])
    with pytest.raises(ValueError, match="no super-net"):
        method_tau(scores_of(truth), [])
    with pytest.raises(ValueError, match="a side"):
        compare_rankings(scores_of(truth), scores, [])


@pytest.mark.parametrize(("num_right", "num_wrong"), [(1, 1), (2, 1), (2, 3)])
@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.9])
def test_few_super_nets_have_the_interval_of_student(num_right, num_wrong, confidence):
    """Scores that are all right or all wrong have the tau 1 or -1 in every resample: what is left are the seeds."""
    truth = scores_of(range(6))
    scores = [truth] * num_right + [scores_of(range(0, -6, -1))] * num_wrong
    taus = [1.0] * num_right + [-1.0] * num_wrong
    found = method_tau(truth, scores, num_resamples=20_000, confidence=confidence).interval
    half = student_t.ppf((1 + confidence) / 2, len(taus) - 1) * np.std(taus, ddof=1) / math.sqrt(len(taus))
    expected = np.clip((np.mean(taus) - half, np.mean(taus) + half), -1, 1)
    assert found == pytest.approx(tuple(expected), abs=0.06 * half)


def test_two_methods_have_the_interval_of_welch():
    truth, wrong = scores_of(range(6)), scores_of(range(0, -6, -1))
    first, second = [truth, truth, wrong], [truth, wrong, wrong, wrong, wrong]
    taus = [[1, 1, -1], [1, -1, -1, -1, -1]]
    found = compare_rankings(truth, first, second, num_resamples=20_000)
    expected = ttest_ind(*taus, equal_var=False).confidence_interval(0.95)
    assert expected.low > -2
    assert found.interval == pytest.approx((expected.low, min(2, expected.high)), rel=0.05)
    alone = compare_rankings(truth, [wrong], second, num_resamples=20_000)
    half = student_t.ppf(0.975, 4) * np.std(taus[1], ddof=1) / math.sqrt(5)
    assert alone.interval == pytest.approx((-1 + 0.6 - half, -1 + 0.6 + half), rel=0.05)


# ---- Noise of the truth ----


@pytest.mark.parametrize(("within_sd", "seeds"), [(0.4, (2,)), (1.0, (3,)), (0.5, (1, 1, 2)), (0.8, (2, 5))])
def test_noise_and_ceiling_where_they_are_known(within_sd, seeds):
    found, taus = [], []
    for number in range(8):
        true, values = measured(np.random.default_rng(number), within_sd, seeds)
        found.append(truth_noise(values, num_simulations=50, seed=number))
        taus.append(kendalltau(true, [np.mean(repeats) for repeats in values.values()]).statistic)
    mean = {name: np.mean([getattr(one, name) for one in found]) for name in ("within_sd", "between_sd", "ceiling")}
    assert mean["within_sd"] == pytest.approx(within_sd, rel=0.06)
    assert mean["between_sd"] == pytest.approx(1, rel=0.06)
    # What perfect scores did reach, which in a table of one seed nobody could know.
    assert mean["ceiling"] == pytest.approx(np.mean(taus), abs=0.025)
    assert np.mean([one.ceiling_of_agreement for one in found]) == pytest.approx(np.mean(taus), abs=0.03)
    icc = np.mean([one.intraclass_correlation for one in found])
    assert icc == pytest.approx(1 / (1 + within_sd**2), abs=0.03)
    agreement = np.mean([one.tau_between_seeds for one in found])
    assert agreement == pytest.approx(2 / math.pi * math.asin(icc), abs=0.03)
    inside = [one.ceiling_interval[0] < tau < one.ceiling_interval[1] for one, tau in zip(found, taus, strict=True)]
    assert sum(inside) > 4


def test_variances_by_hand():
    values = [[1, 3], [4, 6], [8, 8], [11, 13], [15, 15]]
    found = truth_noise({child: own for child, own in zip(CHILDREN, values, strict=False)}, num_simulations=1)
    # Means 2, 5, 8, 12 and 15, of two each: within ((1 + 1) + (1 + 1) + 0 + (1 + 1) + 0) / 5.
    assert found.within_sd**2 == pytest.approx(6 / 5)
    # Between: squares of the means from 8.4, of two each, over 4; less the noise of one, halved.
    assert found.between_sd**2 == pytest.approx((2 * 109.2 / 4 - 6 / 5) / 2)
    assert found.intraclass_correlation == pytest.approx(26.7 / 27.9)


def test_variances_of_unequal_numbers_of_seeds_by_hand():
    values = [[0, 2], [5], [4, 4, 4], [7, 9], [10, 12, 14], [1, 3]]
    groups = [np.array(own, dtype=float) for own in values if len(own) > 1]
    found = truth_noise({child: own for child, own in zip(CHILDREN, values, strict=False)}, num_simulations=1)
    within = (2 + 0 + 2 + 8 + 2) / (12 - 5)
    grand = np.concatenate(groups).mean()
    mean_square = sum(len(own) * (own.mean() - grand) ** 2 for own in groups) / 4
    # The size that groups of one size would have: (12 - (4 + 9 + 4 + 9 + 4) / 12) / 4.
    assert found.within_sd**2 == pytest.approx(within)
    assert found.between_sd**2 == pytest.approx((mean_square - within) / 2.375)


def test_pure_noise_has_no_ceiling_and_no_noise_has_one():
    noise = {child: np.random.default_rng(i).standard_normal(4).tolist() for i, child in enumerate(CHILDREN)}
    assert truth_noise(noise).ceiling < 0.25
    exact = {child: [float(i)] * 2 for i, child in enumerate(CHILDREN[:20])}
    found = truth_noise(exact)
    assert (found.ceiling, found.ceiling_of_agreement, found.within_sd) == (1, 1, 0)
    with pytest.raises(ValueError, match="4 children have two values"):
        truth_noise({child: values[: 1 + (i < 4)] for i, (child, values) in enumerate(exact.items())})
    same = {child: [1.0] * (2 - (i > 4)) if i < 5 else [float(i)] for i, child in enumerate(CHILDREN[:20])}
    with pytest.raises(ValueError, match="the 5 children with several values all have the same value"):
        truth_noise(same)
    # The first values are all the same, so tau between seeds is unknown.
    uneven = {child: [1.0, float(i)] for i, child in enumerate(CHILDREN[:20])}
    assert math.isnan(truth_noise(uneven).ceiling_of_agreement)


# ---- Bad input ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: dict(list(scores.items())[:4]), "score has 4 children; a ranking needs at least 5"),
        (lambda scores: dict.fromkeys(scores, 2.0), r"score is 2\.0 for all 8 children"),
        (lambda scores: {**scores, CHILDREN[3]: math.nan}, r"score of 1 of 8 children is not finite.*CONV3,CONV3"),
        (lambda scores: {**scores, CHILDREN[3]: math.inf}, "not finite"),
        (lambda scores: dict(list(scores.items())[1:]), "1 of 8 children are in truth but not in score"),
        (lambda scores: {**scores, CHILDREN[99]: 1.0}, "1 of 9 children are in score but not in truth"),
    ],
)
def test_what_cannot_be_ranked_is_named(change, message):
    truth = scores_of(range(8))
    with pytest.raises(ValueError, match=message):
        evaluate_ranking(truth, change(truth))
    if "truth" not in message:
        with pytest.raises(ValueError, match=message.replace("score", "truth")):
            check_scores(truth=change(truth), score=change(truth))


# ---- Children of equal size ----


def test_an_interval_stays_in_the_range_of_tau():
    """With two super-nets, Student's t has one degree of freedom and hardly any limit."""
    rng = np.random.default_rng(0)
    truth = scores_of(rng.normal(size=20))
    values = np.array(list(truth.values()))
    close, far = (scores_of(values + rng.normal(scale=scale, size=20)) for scale in (0.1, 5))
    assert method_tau(truth, [close, far]).interval == (-1.0, 1.0)
    turned = scores_of(-values)
    assert compare_rankings(truth, [close, far], [turned, far]).interval == (-2.0, 2.0)


def test_tau_among_equals_is_that_of_the_groups():
    children = [(name,) for name in "abcdefg"]
    truth = dict(zip(children, (1.0, 2.0, 3.0, 9.0, 8.0, 5.0, 7.0), strict=True))
    scores = dict(zip(children, (1.0, 3.0, 2.0, 5.0, 6.0, 4.0, 4.0), strict=True))
    size = {child: float(child[0] in "de") + 2 * float(child[0] in "fg") for child in children}
    # Three pairs of a, b and c with one swapped; d and e are swapped; f and g have the same score, which counts as 0.
    assert tau_among_equals(truth, scores, size.__getitem__) == pytest.approx((3 * (1 / 3) - 1 + 0) / 5)
    # Groups whose truth is the same cannot be ranked.
    assert tau_among_equals({**truth, ("g",): 5.0}, scores, size.__getitem__) == pytest.approx((3 * (1 / 3) - 1) / 4)
    assert math.isnan(tau_among_equals(truth, scores, hash))
