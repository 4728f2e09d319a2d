"""The official metrics of SQuAD 1.1 and 2.0: exact match, F1, and the best threshold for no answer."""

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np


# The texts that count as correct for each question id; empty for a question without an answer.
References: TypeAlias = Mapping[str, Sequence[str]]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_WITHOUT_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalize_answer(text: str) -> str:
    """Returns the text in lower case, without ASCII punctuation, articles and superfluous white space."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_WITHOUT_PUNCTUATION)).split())


def exact_match(prediction: str, reference: str) -> float:
    """Returns 1 if both texts are the same after `normalize_answer`, else 0."""
    return float(normalize_answer(prediction) == normalize_answer(reference))


def f1(prediction: str, reference: str) -> float:
    """Returns the harmonic mean of precision and recall over the words of both texts, as bags of words.

    If one of them has no word left after `normalize_answer`, it is 1 if the other has none either, else 0. That is the
    rule of SQuAD 2.0; the script of 1.1 gives 0 to two such texts, although it counts them as an exact match.
    """
    words, others = normalize_answer(prediction).split(), normalize_answer(reference).split()
    if not words or not others:
        return float(words == others)
    num_common = sum((Counter(words) & Counter(others)).values())
    return 2 * num_common / (len(words) + len(others))


def question_scores(
    predictions: Mapping[str, str], references: References, version_2: bool = False
) -> tuple[dict[str, float], dict[str, float]]:
    """Returns exact match and F1 of each question, the best over its correct answers, from 0 to 1.

    Args:
        predictions: a text for each question id, "" for no answer.
        references: the correct answers.
        version_2: whether to follow SQuAD 2.0: answers without a word are ignored, and a question with no answer left
            is correct if nothing is predicted.

    Raises:
        ValueError: a question has no prediction, or in SQuAD 1.1 no correct answer.
    """
    missing = [name for name in references if name not in predictions]
    if missing:
        raise ValueError(
            f"{len(missing)} of {len(references)} questions have no prediction, the first is {missing[0]!r}; predict "
            f'"" if there is no answer'
        )
    exact, overlap = {}, {}
    for name, texts in references.items():
        if version_2:
            texts = [text for text in texts if normalize_answer(text)] or [""]
        if not texts:
            raise ValueError(f"question {name!r} has no correct answer, which only SQuAD 2.0 allows; set version_2")
        exact[name] = max(exact_match(predictions[name], text) for text in texts)
        overlap[name] = max(f1(predictions[name], text) for text in texts)
    return exact, overlap


def squad_v1_metrics(predictions: Mapping[str, str], references: References) -> dict[str, float]:
    """Returns the metrics of SQuAD 1.1, "exact_match" and "f1", in percent.

    Raises:
        ValueError: see `question_scores`; or there are no questions.
    """
    _check_questions(references)
    exact, overlap = question_scores(predictions, references)
    return {"exact_match": _percent(exact.values()), "f1": _percent(overlap.values())}


def squad_v2_metrics(
    predictions: Mapping[str, str],
    references: References,
    null_odds: Mapping[str, float] | None = None,
    threshold: float | None = 0.0,
) -> dict[str, float]:
    """Returns the metrics of SQuAD 2.0 in percent, under the official names.

    They are "exact", "f1" and "total"; the same with the prefixes HasAns_ and NoAns_ for the questions with and
    without an answer, if there are any; and with `null_odds`, "best_exact" and "best_f1" with the thresholds that
    reach them, "best_exact_thresh" and "best_f1_thresh" (see `best_threshold`).

    Args:
        predictions: a text for each question id. For meaningful best thresholds it must be the model's best answer to
            every question, even if `null_odds` favours no answer.
        references: the correct answers, empty for a question without one.
        null_odds: evidence for no answer; `None` leaves the predictions unchanged.
        threshold: questions with `null_odds` above it are not answered; `None` takes the best threshold for F1.

    Raises:
        ValueError: see `question_scores`; or there are no questions, or a question has no null odds.
    """
    _check_questions(references)
    scores = dict(zip(("exact", "f1"), question_scores(predictions, references, version_2=True), strict=True))
    best: dict[str, float] = {}
    if null_odds is not None:
        _check_null_odds(references, null_odds)
        for key, of_question in scores.items():
            value, at = best_threshold(predictions, of_question, null_odds, references)
            best |= {f"best_{key}": value, f"best_{key}_thresh": at}
        limit = best["best_f1_thresh"] if threshold is None else threshold
        silent = {name: float(not texts) for name, texts in references.items() if null_odds[name] > limit}
        scores = {key: {**of_question, **silent} for key, of_question in scores.items()}
    metrics = _averages(scores, list(references))
    answerable = [name for name, texts in references.items() if texts]
    unanswerable = [name for name, texts in references.items() if not texts]
    for part, names in (("HasAns", answerable), ("NoAns", unanswerable)):
        if names:
            metrics |= {f"{part}_{key}": value for key, value in _averages(scores, names).items()}
    return {**metrics, **best}


def apply_threshold(
    predictions: Mapping[str, str], null_odds: Mapping[str, float], threshold: float
) -> dict[str, str]:
    """Returns the predictions, with "" if the null odds are above the threshold.

    Raises:
        ValueError: a question has no null odds.
    """
    _check_null_odds(predictions, null_odds)
    return {name: "" if null_odds[name] > threshold else text for name, text in predictions.items()}


def best_threshold(
    predictions: Mapping[str, str],
    scores: Mapping[str, float],
    null_odds: Mapping[str, float],
    references: References,
) -> tuple[float, float]:
    """Returns the best mean score of all thresholds on the null odds, in percent, and the lowest threshold for it.

    This is the official procedure: questions are answered one after the other, by rising null odds. An answer to a
    question that has one adds its score; an answer to a question without one loses the point for no answer. Questions
    with equal odds are answered together, so that `apply_threshold` reaches exactly this score. If it is best not to
    answer at all, the threshold is the official 0, or just below the lowest odds if 0 would answer some questions.

    Args:
        predictions: the model's best answer to every question.
        scores: scores of these predictions, from 0 to 1.
        null_odds: evidence for no answer.
        references: the correct answers, empty for a question without one.
    """
    names = sorted(references, key=lambda name: null_odds[name])
    odds = np.array([null_odds[name] for name in names], dtype=np.float64)
    changes = [scores[name] if references[name] else -float(bool(predictions[name])) for name in names]
    num_silent = sum(not texts for texts in references.values())
    totals = num_silent + np.cumsum(changes)
    # A sum counts only if the next question has other odds.
    ends = np.flatnonzero(np.append(odds[1:] != odds[:-1], True))
    best = ends[np.argmax(totals[ends])]
    if totals[best] <= num_silent:
        return 100 * num_silent / len(names), min(0.0, float(np.nextafter(odds[0], -np.inf)))
    return float(100 * totals[best] / len(names)), float(odds[best])


def _check_questions(references: References) -> None:
    if not references:
        raise ValueError("there are no questions to score; give a file with questions")


def _check_null_odds(names: Iterable[str], null_odds: Mapping[str, float]) -> None:
    missing = [name for name in names if name not in null_odds]
    if missing:
        raise ValueError(
            f"{len(missing)} questions have no null odds, the first is {missing[0]!r}; give null odds for each"
        )


def _averages(scores: Mapping[str, Mapping[str, float]], names: Sequence[str]) -> dict[str, float]:
    measures = {key: _percent(of_question[name] for name in names) for key, of_question in scores.items()}
    return {**measures, "total": len(names)}


def _percent(scores: Iterable[float]) -> float:
    values = list(scores)
    return 100 * sum(values) / len(values)
