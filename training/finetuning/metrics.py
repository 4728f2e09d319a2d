"""The metrics of fine-tuning, through evaluate's interface and without a network.

`evaluate.load("glue")` downloads a script. The metrics here have the same names and values, and defined values where
that one gives NaN, as each function documents.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import evaluate
import numpy as np
from datasets import Features, List, Value
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import f1_score, matthews_corrcoef


# ---- Each metric: predictions, references -> number ----


def accuracy(predictions: np.ndarray, references: np.ndarray) -> float:
    """Returns the share of rows whose class is correct."""
    return float(np.mean(np.asarray(predictions) == np.asarray(references)))


def matthews_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Returns Matthews' correlation of two sequences of class ids; 0 if either holds only one class."""
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(matthews_corrcoef(references, predictions))


def f1(predictions: np.ndarray, references: np.ndarray, average: str = "binary") -> float:
    """Returns F1 of class 1, or over all classes or columns of 0/1 matrices by `average`, as scikit-learn names them.

    A column that is neither predicted nor true counts as 0; such a class does not count.
    """
    if np.ndim(references) == 2 and np.shape(references)[1] == 1:
        # scikit-learn treats one column as a sequence of two classes and would average over both.
        average = "binary"
    return float(f1_score(references, predictions, average=average, zero_division=0))


def pearson_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Returns Pearson's correlation; 0 if either side is constant, or if there is only one row."""
    return _correlation(pearsonr, predictions, references)


def spearman_correlation(predictions: np.ndarray, references: np.ndarray) -> float:
    """Returns Spearman's rank correlation; 0 if either side is constant, or if there is only one row."""
    return _correlation(spearmanr, predictions, references)


def _correlation(function: Callable[..., Any], predictions: np.ndarray, references: np.ndarray) -> float:
    predictions, references = (np.asarray(side, dtype=np.float64) for side in (predictions, references))
    if np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(function(predictions, references).statistic)


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns the entities of one sentence's BIO tags as (type, first word, word after the last).

    As in the CoNLL evaluation and seqeval's default, "I-X" that does not continue an entity of type X begins one.
    """
    found = set()
    start, kind = 0, ""
    for position, tag in enumerate([*tags, "O"]):
        prefix, _, tag_kind = tag.partition("-")
        if kind and (prefix != "I" or tag_kind != kind):
            found.add((kind, start, position))
            kind = ""
        if prefix in ("B", "I") and not kind:
            start, kind = position, tag_kind
    return found


def entity_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Returns F1 of whole entities over all sentences together; 0 if none is correct, or if there are none."""
    pairs = [(entities(predicted), entities(true)) for predicted, true in zip(predictions, references, strict=True)]
    num_right = sum(len(predicted & true) for predicted, true in pairs)
    num_named = sum(len(predicted) + len(true) for predicted, true in pairs)
    return 2 * num_right / num_named if num_named else 0.0


def token_accuracy(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Returns the share of words, in all sentences together, whose tag is correct."""
    right = [
        predicted == true
        for row, true_row in zip(predictions, references, strict=True)
        for predicted, true in zip(row, true_row, strict=True)
    ]
    return sum(right) / len(right) if right else 0.0


# ---- By name, through evaluate ----


@dataclass(frozen=True)
class _Kind:
    """What a metric compares: the possible types of one row, and the function that computes it from all rows."""

    rows: tuple[Any, ...]
    function: Callable[..., float]


_CLASS, _NUMBER, _VECTOR, _TAGS = Value("int64"), Value("float64"), List(Value("int64")), List(Value("string"))
METRICS = {
    "accuracy": _Kind((_CLASS,), accuracy),
    "matthews_correlation": _Kind((_CLASS,), matthews_correlation),
    "f1": _Kind((_CLASS,), f1),
    "pearson": _Kind((_NUMBER,), pearson_correlation),
    "spearmanr": _Kind((_NUMBER,), spearman_correlation),
    "micro_f1": _Kind((_VECTOR,), partial(f1, average="micro")),
    "macro_f1": _Kind((_VECTOR, _CLASS), partial(f1, average="macro")),
    "entity_f1": _Kind((_TAGS,), entity_f1),
    "token_accuracy": _Kind((_TAGS,), token_accuracy),
}


def _rows_of(names: Sequence[str]) -> list[Any]:
    """Returns the types of rows that all of these metrics compare."""
    first, *others = names
    return [row for row in METRICS[first].rows if all(row in METRICS[name].rows for name in others)]


class TaskMetric(evaluate.Metric):
    """The metrics of one task as one `evaluate.Metric`; with its `add_batch` and `compute`.

    Args:
        names: names from `METRICS` that compare the same kind of rows.

    Raises:
        ValueError: a name is unknown, or the kinds differ.
    """

    def __init__(self, names: Sequence[str], **kwargs):
        unknown = [name for name in names if name not in METRICS]
        if unknown or not names:
            raise ValueError(
                f"no metric {', '.join(map(repr, unknown)) or 'given'}; choose among {', '.join(METRICS)}"
            )
        if not _rows_of(names):
            raise ValueError(f"metrics {', '.join(names)} compare different kinds of rows; ask for them one by one")
        self.names = tuple(names)
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        row = _rows_of(self.names)[0]
        return evaluate.MetricInfo(
            description=f"Metrics of a fine-tuning task: {', '.join(self.names)}",
            citation="",
            inputs_description="",
            features=Features({"predictions": row, "references": row}),
        )

    def _compute(self, predictions: Any, references: Any) -> dict[str, float]:
        if isinstance(_rows_of(self.names)[0], Value):
            predictions, references = np.asarray(predictions), np.asarray(references)
        return {name: METRICS[name].function(predictions, references) for name in self.names}


def compute_metrics(names: Sequence[str], predictions: Any, references: Any) -> dict[str, float]:
    """Returns the value of each named metric.

    Args:
        names: see `METRICS`.
        predictions: class ids or numbers (num_rows,), 0/1 for each label (num_rows, num_labels), or the tags of each
            sentence's words.
        references: the truth, in the same form.

    Raises:
        ValueError: a name is unknown, the two sides differ in length or are empty, or a number is not finite.
    """
    metric = TaskMetric(names)
    if len(predictions) != len(references) or not len(references):
        raise ValueError(
            f"there are {len(predictions)} predictions but {len(references)} references; give equally many, and at "
            f"least one"
        )
    for side, values in (("predictions", predictions), ("references", references)):
        if METRICS[names[0]].rows == (_NUMBER,):
            num_bad = int((~np.isfinite(np.asarray(values, dtype=np.float64))).sum())
            if num_bad:
                raise ValueError(f"{num_bad} of {len(values)} {side} are not finite; a smaller learning rate may help")
    return metric.compute(predictions=predictions, references=references)


def task_score(names: Sequence[str], metrics: dict[str, float]) -> float:
    """Returns the score of a task: the mean of its metrics, as GLUE averages F1 with accuracy and both correlations.

    Raises:
        ValueError: a metric is missing.
    """
    missing = [name for name in names if name not in metrics]
    if missing:
        raise ValueError(f"{', '.join(missing)} is not among the metrics {', '.join(metrics)}")
    return sum(metrics[name] for name in names) / len(names)
