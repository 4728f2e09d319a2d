"""The official measures of SQuAD, against hand-made cases and brute force."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.finetuning.squad_metrics import (
    apply_threshold,
    best_threshold,
    exact_match,
    f1,
    normalize_answer,
    question_scores,
    squad_v1_metrics,
    squad_v2_metrics,
)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("a cat, an owl and the dog", "cat owl and dog"),
        ("Theatre another ban", "theatre another ban"),
        ("U.S.A. (1,000)", "usa 1000"),
        ("the", ""),
        ("state-of-the-art", "stateoftheart"),
        ("the-cat", "thecat"),
        ("Ångström  “quoted”", "ångström “quoted”"),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "overlap"),
    [
        ("The Eiffel Tower", "eiffel tower.", 1, 1),
        ("big red fox", "red fox jumps high", 0, 4 / 7),
        ("x x y", "x z", 0, 2 / 5),
        ("x x", "x x x", 0, 4 / 5),
        ("cat", "dog", 0, 0),
        ("", "", 1, 1),
        ("", "dog", 0, 0),
        ("the", "a", 1, 1),
        ("1,000", "1000", 1, 1),
    ],
)
def test_exact_match_and_f1_by_hand(prediction, reference, exact, overlap):
    assert exact_match(prediction, reference) == exact
    assert f1(prediction, reference) == pytest.approx(overlap)


def test_the_best_of_several_answers_counts():
    references = {"q": ["in Paris", "Paris, France", "the city of Paris"], "p": ["no"]}
    exact, overlap = question_scores({"q": "Paris", "p": "yes"}, references)
    assert exact == {"q": 0.0, "p": 0.0}
    assert overlap["q"] == pytest.approx(2 / 3)
    assert squad_v1_metrics({"q": "paris france", "p": "yes"}, references) == {"exact_match": 50.0, "f1": 50.0}


def test_a_question_without_an_answer_wants_silence():
    references: dict[str, list[str]] = {"none": [], "other": [], "some": ["Paris"], "articles": ["the", "of Paris"]}
    predictions = {"none": "", "other": "Rome", "some": "", "articles": "The"}
    metrics = squad_v2_metrics(predictions, references)
    # An answer of articles alone is left out, so that "The" meets "of Paris" only.
    assert (metrics["exact"], metrics["total"]) == (25.0, 4)
    assert (metrics["NoAns_exact"], metrics["NoAns_f1"], metrics["NoAns_total"]) == (50.0, 50.0, 2)
    assert (metrics["HasAns_exact"], metrics["HasAns_f1"], metrics["HasAns_total"]) == (0.0, 0.0, 2)
    assert "best_f1" not in metrics
    assert "NoAns_f1" not in squad_v2_metrics({"some": "Paris"}, {"some": ["Paris"]})


def test_the_best_threshold_by_hand():
    """Right, right, wrong answer to no question, half right: answering the first two is best for both measures."""
    references: dict[str, list[str]] = {"a": ["x"], "b": ["y"], "c": [], "d": ["one two"]}
    predictions = {"a": "x", "b": "y", "c": "z", "d": "one"}
    odds = {"a": -3.0, "b": -1.0, "c": 0.5, "d": 2.0}
    metrics = squad_v2_metrics(predictions, references, odds, threshold=5.0)
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (75.0, -1.0)
    assert (metrics["best_f1"], metrics["best_f1_thresh"]) == (75.0, -1.0)
    assert metrics["exact"] == 50.0
    assert metrics["f1"] == pytest.approx(100 * (1 + 1 + 0 + 2 / 3) / 4)
    tuned = squad_v2_metrics(predictions, references, odds, threshold=None)
    assert (tuned["exact"], tuned["f1"]) == (75.0, 75.0)


def official_threshold(predictions, scores, odds, references) -> tuple[float, float]:
    """The loop of evaluate-v2.0, in its own words."""
    best = current = float(sum(not texts for texts in references.values()))
    at = 0.0
    for name in sorted(odds, key=lambda name: odds[name]):
        current += scores[name] if references[name] else (-1 if predictions[name] else 0)
        if current > best:
            best, at = current, odds[name]
    return 100 * best / len(scores), at


cases = st.lists(
    st.tuples(
        st.integers(-3, 3), st.sampled_from(["", "x", "y z"]), st.sampled_from([[], ["x"], ["y"], ["y z", "x"]])
    ),
    min_size=1,
    max_size=8,
)


@given(cases, st.booleans())
def test_the_best_threshold_is_the_best_of_all(drawn, distinct):
    names = [str(number) for number in range(len(drawn))]
    odds = {
        name: item[0] + (0.01 * number if distinct else 0.0)
        for number, (name, item) in enumerate(zip(names, drawn, strict=True))
    }
    predictions = {name: item[1] for name, item in zip(names, drawn, strict=True)}
    references = {name: item[2] for name, item in zip(names, drawn, strict=True)}
    metrics = squad_v2_metrics(predictions, references, odds)
    for key, index in (("exact", 0), ("f1", 1)):
        reached = []
        for threshold in [*odds.values(), -100.0]:
            answers = apply_threshold(predictions, odds, threshold)
            reached.append(sum(question_scores(answers, references, version_2=True)[index].values()))
        assert metrics[f"best_{key}"] == pytest.approx(100 * max(reached) / len(drawn))
        answers = apply_threshold(predictions, odds, metrics[f"best_{key}_thresh"])
        assert squad_v2_metrics(answers, references)[key] == pytest.approx(metrics[f"best_{key}"])
        if distinct:
            scores = question_scores(predictions, references, version_2=True)[index]
            best, at = official_threshold(predictions, scores, odds, references)
            ours = best_threshold(predictions, scores, odds, references)
            assert ours[0] == pytest.approx(best)
            assert ours[1] == at or (at == 0.0 and ours[1] < min(odds.values()))


@given(cases)
def test_a_threshold_scores_what_the_predictions_with_it_score(drawn):
    predictions = {str(number): item[1] for number, item in enumerate(drawn)}
    references = {str(number): item[2] for number, item in enumerate(drawn)}
    odds = {str(number): float(item[0]) for number, item in enumerate(drawn)}
    with_odds = squad_v2_metrics(predictions, references, odds, threshold=0.0)
    plain = squad_v2_metrics(apply_threshold(predictions, odds, 0.0), references)
    assert {name: value for name, value in with_odds.items() if "best" not in name} == pytest.approx(plain)


words = st.lists(st.sampled_from("cat dog The a fox, (red) 3.5 x".split()), max_size=6).map(" ".join)


@given(words, words)
def test_f1_is_symmetric_and_at_least_the_exact_match(one, other):
    assert f1(one, other) == f1(other, one)
    assert 0 <= exact_match(one, other) <= f1(one, other) <= 1
    assert exact_match(one, other) == exact_match(other, one)
    assert exact_match(one, one) == f1(one, one) == 1


@given(words, words, st.sampled_from(["a", "An", "THE"]), st.integers(0, 6))
def test_articles_case_and_punctuation_do_not_count(one, other, article, place):
    pieces = one.split()
    pieces.insert(place, article)
    changed = f"  {'  '.join(pieces).upper()} ?!"
    assert normalize_answer(changed) == normalize_answer(one)
    assert f1(changed, other) == f1(one, other)
    assert exact_match(changed, other) == exact_match(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squad_v1_metrics({"a": "x"}, {"a": ["x"], "b": ["y"]}), "1 of 2 questions have no prediction.*'b'"),
        (lambda: squad_v1_metrics({"a": ""}, {"a": []}), "'a' has no correct answer"),
        (lambda: squad_v1_metrics({}, {}), "no questions to score"),
        (lambda: squad_v2_metrics({"a": ""}, {"a": []}, {}), "1 questions have no null odds, the first is 'a'"),
    ],
)
def test_what_cannot_be_scored_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
