"""Statistics of a ranking held to scipy, to brute force, and to made-up children whose answer is known."""

import csv
import json
import math
import random
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr

from training.analysis import ranking
from training.analysis.ranking import check_scores, compare_rankings, evaluate_ranking, method_tau, truth_noise
from training.analysis.ranking_figures import SweepPoint, draw_methods, draw_ranking, draw_sweep
from training.analysis.truth import (
    StandaloneChild,
    Truth,
    journal_path,
    load_truth,
    read_standalone,
    truth_of,
    without_seed_effects,
)
from training.drawing import render
from training.supernet.journal import Journal


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
CHILDREN = sorted(product(OPERATORS, repeat=4))


def scores_of(values):
    return {child: float(value) for child, value in zip(CHILDREN, values, strict=False)}


def normal(rng, number, correlation):
    first, noise = rng.standard_normal((2, number))
    return first, correlation * first + math.sqrt(1 - correlation**2) * noise


small = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=5, max_size=9)


@given(small)
def test_tau_spearman_ties_and_tops_by_brute_force(pairs):
    truth, scores = (scores_of(values) for values in zip(*pairs, strict=True))
    if len(set(truth.values())) == 1 or len(set(scores.values())) == 1:
        with pytest.raises(ValueError, match="ranks none"):
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


def test_resampled_statistics_equal_scipys_on_the_resampled_lists():
    rng = np.random.default_rng(3)
    truth, score = rng.integers(0, 6, size=(2, 20)).astype(float)
    counts = ranking._resamples(20, 50, seed=1)
    assert (counts.sum(axis=1) == 20).all()
    taus, rhos = ranking._resampled_taus(truth, score, counts), ranking._resampled_spearman(truth, score, counts)
    for row, tau, rho in zip(counts.astype(int), taus, rhos, strict=True):
        drawn = np.repeat(np.arange(20), row)
        assert tau == pytest.approx(kendalltau(truth[drawn], score[drawn]).statistic)
        assert rho == pytest.approx(spearmanr(truth[drawn], score[drawn]).statistic)


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


def test_few_super_nets_spread_as_much_as_their_mean_does():
    rng = np.random.default_rng(0)
    for taus in ([0.2, 0.6], [0.1, 0.4, 0.7], [0.0, 0.3, 0.4, 0.5, 0.8]):
        means = ranking._mean_of_redrawn(np.tile(np.array(taus)[:, None], 100_000), rng)
        assert means.mean() == pytest.approx(np.mean(taus), abs=2e-3)
        assert means.var() == pytest.approx(np.var(taus, ddof=1) / len(taus), rel=0.03)


# ---- Noise of the truth ----


def measured(rng, within_sd, seeds, number=256):
    """Children whose true values have variance 1, each measured as often as `seeds` says."""
    true = rng.standard_normal(number)
    noise = within_sd * rng.standard_normal((number, max(seeds)))
    values = {
        child: [float(true[i] + noise[i, j]) for j in range(seeds[i % len(seeds)])]
        for i, child in enumerate(CHILDREN[:number])
    }
    return true, values


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
    # Means 2, 5 and 8 of two each: within ((1 + 1) + (1 + 1) + 0) / 3, between (18 * 2 / 2 - 4 / 3) / 2.
    within, between = ranking._variances([np.array(pair, float) for pair in ([1, 3], [4, 6], [8, 8])])
    assert within == pytest.approx(4 / 3)
    assert between == pytest.approx((18 - 4 / 3) / 2)


def test_pure_noise_has_no_ceiling_and_no_noise_has_one():
    noise = {child: np.random.default_rng(i).standard_normal(4).tolist() for i, child in enumerate(CHILDREN)}
    assert truth_noise(noise).ceiling < 0.25
    exact = {child: [float(i)] * 2 for i, child in enumerate(CHILDREN[:20])}
    found = truth_noise(exact)
    assert (found.ceiling, found.ceiling_of_agreement, found.within_sd) == (1, 1, 0)
    with pytest.raises(ValueError, match="4 children have two values"):
        truth_noise({child: values[: 1 + (i < 4)] for i, (child, values) in enumerate(exact.items())})


# ---- Bad input ----


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda scores: dict(list(scores.items())[:4]), "score has 4 children; a ranking needs at least 5"),
        (lambda scores: dict.fromkeys(scores, 2.0), r"score is 2\.0 for all 8 children"),
        (lambda scores: {**scores, CHILDREN[3]: math.nan}, r"score of 1 of 8 children is no finite .*CONV3,CONV3"),
        (lambda scores: {**scores, CHILDREN[3]: math.inf}, "no finite number"),
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


# ---- Truths ----


def child(number, loss, seed=0):
    return StandaloneChild(CHILDREN[number], loss, 0.5, (), seed, 10, 1.0, (9.0, 8.0, 7.0))


KEY = {"candidate_operators": [list(OPERATORS)] * 4, "data": {"train": "a"}, "sizes": {}, "recipe": {}}


def journal_of(folder, seed, children, **key):
    journal = Journal(journal_path(folder, seed), {**KEY, "seed": seed, **key}, StandaloneChild)
    for one in children:
        journal.append(one)


def test_truth_of_journals_has_the_seeds_of_each_child(tmp_path):
    journal_of(tmp_path, 10, [child(0, 4.0, 10)])
    journal_of(tmp_path, 2, [child(0, 3.0, 2), child(1, 5.0, 2)])
    key, children = read_standalone(tmp_path)
    assert key == KEY
    assert [one.seed for one in children] == [2, 2, 10]
    truth = load_truth(tmp_path)
    assert truth.values == {CHILDREN[0]: (-3.0, -4.0), CHILDREN[1]: (-5.0,)}
    assert truth.means[CHILDREN[0]] == -3.5
    assert (truth.is_loss, truth.num_repeated, truth.key, truth.show(-3.5)) == (True, 1, KEY, 3.5)
    assert not load_truth(tmp_path, "val_accuracy").is_loss
    with pytest.raises(ValueError, match="metric is 'flops'"):
        load_truth(tmp_path, "flops")
    journal_of(tmp_path, 3, [], recipe={"block_size": 8})
    with pytest.raises(ValueError, match=r"standalone-3.jsonl is of another recipe than standalone-2.jsonl"):
        load_truth(tmp_path)
    with pytest.raises(ValueError, match="holds no stand-alone children"):
        load_truth(tmp_path.parent)


def test_what_a_seed_does_to_all_children_is_no_noise(tmp_path):
    rng = np.random.default_rng(3)
    true, noise = rng.standard_normal(60), 0.1 * rng.standard_normal((60, 3))
    # Of the second seed's children only every second one; the third seed is 5 worse for all.
    shifts, counts = (0.0, -2.0, 5.0), (60, 30, 60)
    loss = {(i, seed): true[i] + noise[i, seed] + shifts[seed] for seed in range(3) for i in range(60)}
    children = [child(i, loss[i, seed], seed) for seed in range(3) for i in range(0, 60, 60 // counts[seed])]
    truth = truth_of(children, "val_loss")
    # By least squares over all numbers at once, one unknown for each child and for each seed but the first.
    design = np.zeros((150, 62))
    for row, one in enumerate(children):
        design[row, CHILDREN.index(one.architecture)] = 1
        if one.seed:
            design[row, 59 + one.seed] = 1
    measured = np.array([one.val_loss for one in children])
    fitted = np.linalg.lstsq(design, measured, rcond=None)[0]
    means = np.array([-truth.means[CHILDREN[i]] for i in range(60)])
    assert means - means.mean() == pytest.approx(fitted[:60] - fitted[:60].mean(), abs=1e-6)
    assert sum(map(sum, truth.values.values())) == pytest.approx(-measured.sum())
    assert kendalltau(means, true).statistic > 0.93
    found = truth_noise(truth.values)
    assert found.within_sd == pytest.approx(0.1, rel=0.15)
    assert found.ceiling > 0.9
    # With the same seeds for all, means are plain means.
    both = truth_of([one for one in children if one.seed != 1], "val_loss")
    assert both.means[CHILDREN[7]] == pytest.approx(-(loss[7, 0] + loss[7, 2]) / 2)
    # Seeds with no child in common tell nothing of one another.
    apart = [child(i, float(i), seed=i % 2) for i in range(10)]
    assert truth_of(apart, "val_loss").values == {CHILDREN[i]: (-float(i),) for i in range(10)}


def test_a_seed_of_few_children_changes_nothing(tmp_path):
    """As while a third seed is being trained, child by child."""
    first = [child(i, float(i % 7), seed=0) for i in range(60)] + [child(i, i % 7 + 0.5, seed=1) for i in range(30)]
    alone = truth_of(first, "val_loss").values
    third = truth_of([*first, *(child(i, i % 7 + 90.0, seed=2) for i in range(3, 6))], "val_loss").values
    for i in range(60):
        assert third[CHILDREN[i]][:2] == pytest.approx(alone[CHILDREN[i]][:2])
    assert third[CHILDREN[4]][2] == -94.0
    # Two seeds of five children each whose other seeds are these two alone are fitted; of four each none is.
    for number, expected in ((5, [0.5, 0.5]), (4, [0.0, 1.0])):
        pair = [child(i, float(seed), seed=seed) for seed in range(2) for i in range(number)]
        assert without_seed_effects(pair, [one.val_loss for one in pair])[::number] == pytest.approx(expected)


def test_a_spreadsheets_file_is_read(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("architecture,mnli\n" + "".join(f'"{",".join(CHILDREN[i])}",{i}\n' for i in range(6)), "utf-8-sig")
    assert load_truth(path, "mnli").means == {CHILDREN[i]: float(i) for i in range(6)}


def test_a_diverged_child_is_named():
    with pytest.raises(ValueError, match=r"val_loss of 1 of 2 children is no finite number, first of CONV3,CONV3"):
        truth_of([child(0, math.nan), child(1, 3.0)], "val_loss")


def test_truths_of_a_users_own(tmp_path):
    with open(tmp_path / "mnli.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["seed", "mnli", "architecture"])
        writer.writerows([[0, 0.8, "FFN,FFN"], [1, 0.7, "(FFN)*2"], [0, 0.6, "FFN,MHA4"]])
    expected = {("FFN", "FFN"): (0.8, 0.7), ("FFN", "MHA4"): (0.6,)}
    assert load_truth(tmp_path / "mnli.csv", "mnli") == Truth("mnli", False, expected)
    turned = load_truth(tmp_path / "mnli.csv", "mnli", lower_is_better=True)
    assert turned.values[("FFN", "MHA4")] == (-0.6,)
    (tmp_path / "a.json").write_text(json.dumps({"FFN,FFN": [0.8, 0.7], "FFN,MHA4": 0.6}))
    assert load_truth(tmp_path / "a.json", "mnli").values == expected
    rows = [{"architecture": "FFN,FFN", "mnli": 0.8}, {"architecture": "FFN,FFN", "mnli": 0.7, "x": 1}]
    (tmp_path / "b.json").write_text(json.dumps([*rows, {"architecture": ["FFN", "MHA4"], "mnli": 0.6}]))
    assert load_truth(tmp_path / "b.json", "mnli").values == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "child,mnli\nFFN,0.5\n", "no column 'architecture'; its first line names child, mnli"),
        ("a.csv", "architecture,loss\nFFN,0.5\n", "no column 'mnli'"),
        ("a.csv", "architecture,mnli\nFFN,0.5\nFFN,good\n", "a.csv, line 3: .*good"),
        ("a.csv", "architecture,mnli\nFFN,0.5\nMHA4\n", "a.csv, line 3"),
        ("a.csv", "architecture,mnli\nFFN,nan\n", "line 2: mnli is 'nan'"),
        ("a.csv", 'architecture,mnli\nFFN,0.5\n"FFN,FFN",0.5\n', "different numbers of layers"),
        ("a.json", "{", "is not JSON"),
        ("a.json", "3", "neither a JSON object nor a list"),
        ("a.json", '[{"architecture": "FFN"}]', "entry 1: it has no"),
        ("a.json", '{"FFN": null}', "'FFN'"),
        ("a.txt", "", "neither a .csv nor a .json file"),
    ],
)
def test_damaged_files_are_named_with_the_line(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_truth(tmp_path / name, "mnli")


def test_missing_and_latin_1_files(tmp_path):
    with pytest.raises(ValueError, match="no folder or file"):
        load_truth(tmp_path / "no.csv")
    (tmp_path / "a.csv").write_bytes("architecture,val_loss\nFFN,1 # caf\u00e9\n".encode("latin-1"))
    with pytest.raises(ValueError, match="not UTF-8"):
        load_truth(tmp_path / "a.csv")


# ---- Figures ----


def test_figures_show_what_they_are_given():
    rng = np.random.default_rng(0)
    truth, scores = map(scores_of, normal(rng, 40, 0.7))
    quality = evaluate_ranking(truth, scores)
    figure = draw_ranking(truth, scores, quality, "MAGIC-T")
    values, ranks = figure.axes
    assert sorted(map(tuple, values.collections[0].get_offsets().tolist())) == sorted(
        (scores[one], truth[one]) for one in truth
    )
    assert set(ranks.collections[0].get_offsets()[:, 0]) == set(range(1, 41))
    best = max(truth, key=truth.__getitem__)
    assert values.collections[2].get_offsets().tolist() == [[scores[best], truth[best]]]
    assert f"{quality.kendall_tau:.3f}" in figure.get_suptitle()
    others = [scores_of(normal(rng, 40, 0.7)[1]) for _ in range(2)]
    tau = method_tau(truth, [scores, *others])
    _, repeats = measured(rng, 0.5, (2,), 40)
    noise = truth_noise(repeats, num_simulations=20)
    (axes,) = draw_methods({"SPOS": tau, "MAGIC-T": method_tau(truth, [scores])}, noise).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SPOS", "MAGIC-T"]
    swept = draw_sweep("num_substitutions", [SweepPoint(1, tau), SweepPoint(4, tau)], {"SPOS": tau}, noise)
    assert [tick.get_text() for tick in swept.axes[0].get_xticklabels()] == ["1", "4"]
    means = next(line for line in swept.axes[0].lines if len(line.get_xdata()) == 2 and line.get_color() == "#0072b2")
    assert list(means.get_xdata()) == [1, 4]
    assert list(means.get_ydata()) == [tau.mean, tau.mean]
    many = draw_sweep("num_substitutions", [SweepPoint(1, tau)], {f"method {number}": tau for number in range(9)})
    lines = [line for line in many.axes[0].lines if line.get_label().startswith("method")]
    assert [line.get_label() for line in lines] == [f"method {number}" for number in range(9)]
    named = draw_sweep("sampler", [SweepPoint("uniform", tau), SweepPoint("fair", tau)])
    assert render(named, "png").startswith(b"\x89PNG")
