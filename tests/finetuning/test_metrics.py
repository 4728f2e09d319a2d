"""The metrics of fine-tuning against scipy, scikit-learn and cases by hand; defined values where others give NaN."""

import warnings

import evaluate
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as sklearn_metrics

from training.finetuning.metrics import METRICS, TaskMetric, compute_metrics, entities, task_score


def pairs_of(values, min_size=1, max_size=40):
    """Two lists of equal length."""
    return st.lists(st.tuples(values, values), min_size=min_size, max_size=max_size).map(
        lambda rows: tuple(list(side) for side in zip(*rows, strict=True))
    )


classes = st.integers(0, 2)
binary = st.integers(0, 1)
numbers = st.floats(-100, 100, width=32)


@given(pairs_of(classes))
def test_accuracy_is_the_share_of_right_rows(sides):
    predictions, references = sides
    found = compute_metrics(["accuracy"], predictions, references)["accuracy"]
    assert found == pytest.approx(sum(map(int.__eq__, predictions, references)) / len(references))
    assert found == pytest.approx(sklearn_metrics.accuracy_score(references, predictions))


@given(pairs_of(binary))
def test_matthews_of_two_classes_is_the_correlation_of_their_ids(sides):
    found = compute_metrics(["matthews_correlation"], *sides)["matthews_correlation"]
    if len(set(sides[0])) == 1 or len(set(sides[1])) == 1:
        assert found == 0
    else:
        assert found == pytest.approx(stats.pearsonr(*sides).statistic, abs=1e-12)


@given(pairs_of(classes))
def test_matthews_is_that_of_scikit_learn(sides):
    found = compute_metrics(["matthews_correlation"], *sides)["matthews_correlation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found == pytest.approx(sklearn_metrics.matthews_corrcoef(sides[1], sides[0]), abs=1e-12)


@given(pairs_of(binary))
def test_f1_counts_class_one(sides):
    predictions, references = map(np.array, sides)
    right = (predictions * references).sum()
    named = predictions.sum() + references.sum()
    expected = 2 * right / named if named else 0.0
    found = compute_metrics(["f1", "accuracy"], predictions, references)
    assert found["f1"] == pytest.approx(expected)
    assert found["f1"] == pytest.approx(sklearn_metrics.f1_score(references, predictions, zero_division=0))


@given(pairs_of(numbers, min_size=2))
def test_correlations_are_those_of_scipy_and_never_nan(sides):
    found = compute_metrics(["pearson", "spearmanr"], *sides)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = {
            "pearson": stats.pearsonr(*sides).statistic,
            "spearmanr": stats.spearmanr(*sides).statistic,
        }
    for name, value in expected.items():
        assert found[name] == pytest.approx(0.0 if np.isnan(value) else value, abs=1e-9)


def test_spearman_is_pearson_of_the_ranks():
    predictions, references = [0.1, 5.0, 2.0, 2.0], [1.0, 100.0, 3.0, 4.0]
    ranks = [stats.rankdata(side) for side in (predictions, references)]
    found = compute_metrics(["spearmanr"], predictions, references)["spearmanr"]
    assert found == pytest.approx(np.corrcoef(*ranks)[0, 1])
    assert found < 1


def test_a_constant_side_correlates_with_nothing():
    for sides in (([2.5] * 3, [1.0, 2.0, 4.0]), ([1.0, 2.0, 4.0], [2.5] * 3)):
        assert compute_metrics(["pearson", "spearmanr"], *sides) == {"pearson": 0, "spearmanr": 0}


@pytest.mark.parametrize("nearly", [[0, 5e-324, 0], [1, 1 + 2.3e-16, 1], [1.7e308, -1.7e308, 0], [-1e308, 0, 1e308]])
def test_sides_at_the_edge_of_precision_have_a_number(nearly):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = compute_metrics(["pearson", "spearmanr"], nearly, [1.0, 2.0, 4.0])
    assert all(-1 <= value <= 1 for value in found.values())


def test_one_row_correlates_with_nothing():
    assert compute_metrics(["pearson", "spearmanr"], [1.0], [1.0]) == {"pearson": 0, "spearmanr": 0}


matrices = st.integers(1, 4).flatmap(lambda width: pairs_of(st.lists(binary, min_size=width, max_size=width)))


@given(matrices)
def test_multi_label_f1_by_counting_and_by_scikit_learn(sides):
    predictions, references = map(np.array, sides)
    found = compute_metrics(["micro_f1", "macro_f1"], predictions, references)

    def counted(predicted, true):
        named = predicted.sum() + true.sum()
        return 2 * (predicted * true).sum() / named if named else 0.0

    assert found["micro_f1"] == pytest.approx(counted(predictions, references))
    columns = [counted(*columns) for columns in zip(predictions.T, references.T, strict=True)]
    assert found["macro_f1"] == pytest.approx(np.mean(columns))
    # In one column scikit-learn sees two classes where a label is meant.
    if predictions.shape[1] > 1:
        for average in ("micro", "macro"):
            theirs = sklearn_metrics.f1_score(references, predictions, average=average, zero_division=0)
            assert found[f"{average}_f1"] == pytest.approx(theirs)


# ---- Tags ----


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("O O", set()),
        ("B-X I-X O", {("X", 0, 2)}),
        ("B-X B-X", {("X", 0, 1), ("X", 1, 2)}),
        ("O I-X I-X", {("X", 1, 3)}),
        ("B-X I-Y", {("X", 0, 1), ("Y", 1, 2)}),
        ("I-X O I-X", {("X", 0, 1), ("X", 2, 3)}),
        ("B-X I-X", {("X", 0, 2)}),
        ("B-A-B I-A-B", {("A-B", 0, 2)}),
    ],
)
def test_entities_by_hand(tags, expected):
    assert entities(tags.split()) == expected


def test_entity_f1_by_hand():
    true = [["B-PER", "I-PER", "O", "B-LOC"], ["O", "B-ORG"]]
    # One of three entities whole, one with a wrong end, one of a wrong type; one more that is not there.
    predicted = [["B-PER", "O", "O", "B-LOC"], ["B-PER", "B-LOC"]]
    found = compute_metrics(["entity_f1", "token_accuracy"], predicted, true)
    assert found["entity_f1"] == pytest.approx(2 * 1 / (4 + 3))
    assert found["token_accuracy"] == pytest.approx(3 / 6)


def test_an_entity_of_the_next_sentence_is_another():
    true = [["B-X", "I-X"], ["O", "O"]]
    assert compute_metrics(["entity_f1"], [["O", "O"], ["B-X", "I-X"]], true)["entity_f1"] == 0


tag_rows = st.lists(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), min_size=1, max_size=6), min_size=1)


@given(tag_rows)
def test_the_truth_scores_one_unless_there_is_nothing_to_find(rows):
    found = compute_metrics(["entity_f1", "token_accuracy"], rows, rows)
    assert found["entity_f1"] == any(tag != "O" for row in rows for tag in row)
    assert found["token_accuracy"] == 1


@given(st.lists(st.sampled_from(["O", "B-X", "I-X", "B-Y", "I-Y"]), max_size=12))
def test_entities_cover_the_tagged_words_once_and_begin_at_every_b(tags):
    found = entities(tags)
    covered = [position for _, start, end in found for position in range(start, end)]
    assert sorted(covered) == [position for position, tag in enumerate(tags) if tag != "O"]
    starts = {start for _, start, _ in found}
    assert all(position in starts for position, tag in enumerate(tags) if tag.startswith("B-"))
    assert all(tags[position][2:] == kind for kind, start, end in found for position in range(start, end))


# ---- The interface ----


def test_it_is_a_metric_of_evaluate():
    metric = TaskMetric(["f1", "accuracy"])
    assert isinstance(metric, evaluate.Metric)
    metric.add_batch(predictions=[1, 0], references=[1, 1])
    metric.add_batch(predictions=[1], references=[1])
    assert metric.compute() == {"f1": pytest.approx(0.8), "accuracy": pytest.approx(2 / 3)}
    # Nothing is left of the last computation.
    assert metric.compute(predictions=[1], references=[1])["accuracy"] == 1


def test_float32_and_lists_are_taken():
    found = compute_metrics(["pearson"], np.array([1, 2, 4], dtype=np.float32), [1.0, 2.0, 4.0])
    assert found["pearson"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("names", "sides", "message"),
    [
        (["acuracy"], ([1], [1]), "'acuracy'"),
        ([], ([1], [1]), "no metric given"),
        (["accuracy", "pearson"], ([1], [1]), "different kinds"),
        (["accuracy"], ([1, 0], [1]), "there are 2 predictions but 1"),
        (["accuracy"], ([], []), "at least one"),
        (["pearson"], ([1.0, float("nan")], [1.0, 2.0]), "1 of 2 predictions are not finite"),
        (["spearmanr"], ([1.0, 2.0], [1.0, float("inf")]), "1 of 2 references are not finite"),
    ],
)
def test_bad_input_is_named(names, sides, message):
    with pytest.raises(ValueError, match=message):
        compute_metrics(names, *sides)


def test_the_score_is_the_mean_of_the_tasks_metrics():
    assert task_score(["f1", "accuracy"], {"f1": 0.8, "accuracy": 0.6, "loss": 3.0}) == pytest.approx(0.7)
    with pytest.raises(ValueError, match="f1 is not among"):
        task_score(["f1"], {"accuracy": 0.6})


def test_every_metric_says_when_it_is_given_nothing_to_predict():
    for name in METRICS:
        with pytest.raises(ValueError, match="at least one"):
            compute_metrics([name], [], [])


def test_macro_f1_is_of_classes_and_of_vectors():
    classes = compute_metrics(("accuracy", "macro_f1"), np.array([0, 1, 2, 2]), np.array([0, 1, 1, 2]))
    # F1 of the three classes: 1, 2/3, 2/3.
    assert classes == {"accuracy": 0.75, "macro_f1": pytest.approx(7 / 9)}
    vectors = compute_metrics(("micro_f1", "macro_f1"), np.array([[1, 0], [1, 1]]), np.array([[1, 0], [0, 1]]))
    assert vectors["macro_f1"] == pytest.approx((2 / 3 + 1) / 2)
    with pytest.raises(ValueError, match="different kinds of rows"):
        compute_metrics(("accuracy", "micro_f1"), np.array([0]), np.array([0]))
