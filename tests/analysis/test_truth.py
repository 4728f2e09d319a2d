"""What children are worth alone: journals, a user's own files, and what seeds add to all children."""

import csv
import json
import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau
from toy_scores import CHILDREN, OPERATORS

from training.analysis.ranking import truth_noise
from training.analysis.truth import (
    STANDALONE_NAME,
    StandaloneChild,
    Truth,
    has_standalone,
    holds_named,
    journal_path,
    load_truth,
    read_standalone,
    truth_of,
    without_seed_effects,
)
from training.supernet.journal import Journal


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
    with pytest.raises(ValueError, match=r"standalone-3.jsonl and standalone-2.jsonl differ in recipe"):
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


@st.composite
def repeated_children(draw):
    """Children of up to four seeds: which child has which seed, and what was measured of it."""
    seeds = draw(st.sampled_from([(7,), (3, 0), (0, 5, 9), (2, 11, 4, 8)]))
    rows = draw(st.lists(st.integers(1, 2 ** len(seeds) - 1), min_size=8, max_size=16))
    pairs = [(number, seed) for number, row in enumerate(rows) for bit, seed in enumerate(seeds) if row >> bit & 1]
    values = draw(st.lists(st.floats(-10, 10), min_size=len(pairs), max_size=len(pairs)))
    return [child(number, value, seed) for (number, seed), value in zip(pairs, values, strict=True)]


def fitted_seeds(children) -> set[int]:
    """By brute force: the largest set of seeds of which each has five children that have another seed of the set."""
    of_seed = {seed: {one.architecture for one in children if one.seed == seed} for seed in {c.seed for c in children}}

    def is_stable(kept):
        return all(
            sum(any(chain in of_seed[other] for other in kept if other != seed) for chain in of_seed[seed]) >= 5
            for seed in kept
        )

    sets = [set(kept) for size in range(len(of_seed) + 1) for kept in combinations(of_seed, size)]
    return max(filter(is_stable, sets), key=len)


@given(repeated_children(), st.randoms(use_true_random=False))
def test_seed_effects_are_those_of_least_squares(children, rng):
    values = [one.val_loss for one in children]
    found = without_seed_effects(children, values)
    fitted = fitted_seeds(children)
    taken = {one.seed: value - own for one, value, own in zip(children, values, found, strict=True)}
    for one, value, own in zip(children, values, found, strict=True):
        # The same is taken off all children of a seed, and of seeds that are not fitted nothing.
        assert value - own == pytest.approx(taken[one.seed], abs=1e-9)
        assert one.seed in fitted or value == own
    # The normal equations: what is left besides the child's mean adds up to nothing in each fitted seed.
    within: dict[tuple[str, ...], list[float]] = {}
    for one, own in zip(children, found, strict=True):
        if one.seed in fitted:
            within.setdefault(one.architecture, []).append(own)
    left = dict.fromkeys(fitted, 0.0)
    for one, own in zip(children, found, strict=True):
        if one.seed in fitted:
            left[one.seed] += own - sum(within[one.architecture]) / len(within[one.architecture])
    assert left == pytest.approx(dict.fromkeys(fitted, 0.0), abs=1e-6)
    assert sum(found) == pytest.approx(sum(values), abs=1e-6)
    # It does not depend on the order, and doing it again takes off nothing.
    order = rng.sample(range(len(children)), len(children))
    shuffled = without_seed_effects([children[i] for i in order], [values[i] for i in order])
    assert shuffled == pytest.approx([found[i] for i in order], abs=1e-6)
    assert without_seed_effects(children, found) == pytest.approx(found, abs=1e-6)


@given(st.lists(st.floats(-9, 9), min_size=3, max_size=3), st.integers(0, 99))
def test_what_is_added_to_a_seed_is_taken_off_again(shifts, draw):
    rng = np.random.default_rng(draw)
    children = [child(number, float(rng.normal()), seed) for number in range(8) for seed in range(3)]
    values = [one.val_loss for one in children]
    shifted = [value + shifts[one.seed] for one, value in zip(children, values, strict=True)]
    plain, found = without_seed_effects(children, values), without_seed_effects(children, shifted)
    assert found == pytest.approx([value + sum(shifts) / 3 for value in plain], abs=1e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_that_are_not_finite_leave_all_as_it_is(bad):
    children = [child(number, float(number + seed), seed) for number in range(6) for seed in range(2)]
    values = [bad, *(one.val_loss for one in children[1:])]
    assert without_seed_effects(children, values) == pytest.approx(values, nan_ok=True)
    alone = [one for one in children if one.seed == 0]
    assert without_seed_effects(alone, [one.val_loss for one in alone]) == [one.val_loss for one in alone]
    assert without_seed_effects([], []) == []


def test_a_part_of_a_truth_has_what_all_has(tmp_path):
    journal_of(tmp_path, 0, [child(number, float(number)) for number in range(4)])
    truth = load_truth(tmp_path)
    part = truth.subset([CHILDREN[2], CHILDREN[1]])
    assert part.values == {CHILDREN[2]: (-2.0,), CHILDREN[1]: (-1.0,)}
    assert (part.metric, part.is_loss, part.key) == (truth.metric, truth.is_loss, KEY)
    with pytest.raises(KeyError):
        truth.subset([CHILDREN[9]])


@pytest.mark.parametrize(
    ("metric", "is_loss"),
    [("val_loss", True), ("perplexity", True), ("error", True), ("mnli", False), ("loss_free", False)],
)
def test_lower_is_better_where_the_name_says_so(tmp_path, metric, is_loss):
    path = tmp_path / "truth.CSV"
    path.write_text(f"architecture,{metric}\nFFN,2\nMHA4,3\n")
    truth = load_truth(path, metric)
    assert truth.is_loss == is_loss
    assert max(truth.means, key=truth.means.__getitem__) == (("FFN",) if is_loss else ("MHA4",))
    assert [truth.show(value) for value in truth.means.values()] == [2, 3]
    other = load_truth(path, metric, lower_is_better=not is_loss)
    assert {chain: -value for chain, value in other.means.items()} == truth.means


def test_folders_of_stand_alone_children_are_known(tmp_path):
    assert not has_standalone(tmp_path / "nowhere")
    (tmp_path / "standalone-x.jsonl").write_text("")
    assert not has_standalone(tmp_path)
    assert not holds_named(tmp_path)
    journal_of(tmp_path, 7, [child(0, 3.0, 7)])
    assert has_standalone(tmp_path)
    for architectures, is_named in (([], False), (["FFN,FFN,FFN,FFN"], True)):
        (tmp_path / STANDALONE_NAME).write_text(json.dumps({"settings": {"architectures": architectures}}))
        assert holds_named(tmp_path) == is_named
    with pytest.raises(ValueError, match="were named, not drawn, so they are not a sample of their space"):
        load_truth(tmp_path)


def test_a_spreadsheets_file_is_read(tmp_path):
    path = tmp_path / "truth.csv"
    path.write_text("architecture,mnli\n" + "".join(f'"{",".join(CHILDREN[i])}",{i}\n' for i in range(6)), "utf-8-sig")
    assert load_truth(path, "mnli").means == {CHILDREN[i]: float(i) for i in range(6)}


def test_a_diverged_child_is_named():
    with pytest.raises(ValueError, match=r"val_loss of 1 of 2 children is not finite, the first of them CONV3,CONV3"):
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
        (
            "a.csv",
            'architecture,mnli,note\nFFN,0.5,"as\nMHA4,0.6,\n',
            "is not a CSV table .*; look for a quotation mark",
        ),
        ("a.csv", f"architecture,mnli,note\nFFN,0.5,{'x' * 140_000}\n", "is not a CSV table .*field larger"),
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
