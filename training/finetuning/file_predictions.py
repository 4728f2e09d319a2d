"""Predictions of a fine-tuned classifier for a file, written next to its rows, and metrics if the rows have labels.

The model is any that `AutoModelForSequenceClassification` or `AutoModelForTokenClassification` loads, with a trained
head.
"""

import csv
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit, softmax
from sklearn.metrics import precision_recall_fscore_support
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling_magic import MagicConfig

from ..bars import progress_bar
from ..data.fitting import fit_tokenizer, max_sequence_length
from ..files import check_output, from_json, read_json, written_at_once
from ..hub.export import FINETUNING_NAME, MANIFEST_NAME
from ..hub.model_folders import file_of_model, model_in
from ..pretrained import pretrained_config, pretrained_model
from ..runs.folders import bars_off
from ..tables import counted, markdown_table
from .finetune import Predictions, check_fit, load_task_tokenizer, predict, references_of
from .metrics import compute_metrics
from .own_files import label_reader, metrics_of, with_labels
from .own_kinds import check_lists, find_label_column, find_text_columns, label_column_if_any, with_lists
from .settings import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS, EvaluateSettings, PredictSettings
from .task_files import LABEL_SEPARATOR, Cell, Table, read_table
from .tasks import Task, check_tokenizer, predicted_names, rows_of, tokenize_rows, with_word_spaces


logger = logging.getLogger(__name__)

OUTPUT_SUFFIXES = (".csv", ".jsonl")
PREDICTION, PROBABILITY = "prediction", "probability"
# Rows to tokenise and predict at a time, so that a large file takes no more memory than its text.
_ROWS_AT_ONCE = 4096
# Length for a model and a tokenizer that set no limit.
_USUAL_LENGTH = 512
_WITH_PROBABILITY = (SINGLE_LABEL, MULTI_LABEL)
_NO_LIMIT = 10**6
_SHOWN_LABELS = 10
_HEADS = {
    "ForSequenceClassification": AutoModelForSequenceClassification,
    "ForTokenClassification": AutoModelForTokenClassification,
}
# GLUE's metrics for a task with one class per row, in addition to those of fine-tuning.
_MORE_METRICS = ("matthews_correlation",)


@dataclass(frozen=True)
class _Classifier:
    """A fine-tuned model, according to its own files.

    Attributes:
        name: a folder or a name on the Hub.
        model: the model with a trained head.
        tokenizer: the tokenizer, fitted to the model.
        problem_type: what it predicts.
        labels: its classes in the order of their ids; empty for regression.
        facts: facts recorded by its fine-tuning: text_columns and max_length.
    """

    name: str
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    problem_type: str
    labels: tuple[str, ...]
    facts: dict[str, Any]


# ---- The model ----


def _load_classifier(name: str, settings: EvaluateSettings) -> _Classifier:
    config = pretrained_config(name)
    auto_class = _auto_class(name, config)
    problem_type = _problem_type(name, config, settings.problem_type, auto_class is AutoModelForTokenClassification)
    model, info = pretrained_model(auto_class, name, dtype=torch.float32)
    if info["missing_keys"]:
        raise ValueError(
            f"{name} has no trained weights for {min(info['missing_keys'])}; fine-tune it first, with magic-nas "
            f"finetune"
        )
    tokenizer = load_task_tokenizer(settings.tokenizer or name)
    if problem_type == TOKENS:
        tokenizer = with_word_spaces(tokenizer)
    if sorted(config.id2label) != list(range(config.num_labels)):
        numbers = ", ".join(map(str, sorted(config.id2label)))
        raise ValueError(f"id2label in config.json of {name} numbers the classes {numbers}; number them from 0")
    labels = () if problem_type == REGRESSION else tuple(str(config.id2label[i]) for i in range(config.num_labels))
    if len(set(labels)) < len(labels):
        raise ValueError(
            f"{name} has two classes with the same name ({', '.join(labels)}); correct id2label in its config.json"
        )
    return _Classifier(name, model, fit_tokenizer(tokenizer, config), problem_type, labels, _recorded(name))


def _auto_class(name: str, config: PreTrainedConfig) -> Any:
    if isinstance(config, MagicConfig) and config.is_supernet:
        raise ValueError(f"{name} is a super-net; export one of its children and fine-tune that")
    names = config.architectures or []
    found = [auto_class for head, auto_class in _HEADS.items() if any(kind.endswith(head) for kind in names)]
    if found:
        return found[0]
    if any(kind.endswith("ForQuestionAnswering") for kind in names):
        raise ValueError(
            f"{name} answers questions; score it, and write its answers, with magic-nas squad --model {name} "
            f"--validation-file FILE"
        )
    raise ValueError(
        f"{name} is not a classifier ({', '.join(names) or 'its configuration names no class'}); fine-tune it first, "
        f"with magic-nas finetune"
    )


def _problem_type(name: str, config: PreTrainedConfig, given: str | None, of_tokens: bool) -> str:
    """Returns the kind of problem, as given or else from the model's configuration, if its head supports it."""
    possible = [TOKENS] if of_tokens else [REGRESSION if config.num_labels == 1 else SINGLE_LABEL, MULTI_LABEL]
    kind = given or (None if of_tokens else config.problem_type) or possible[0]
    if kind not in possible:
        outputs = counted(config.num_labels or 0, "output")
        raise ValueError(f"problem_type is {kind!r}, but {name}, with {outputs}, supports {' or '.join(possible)}")
    return kind


def _recorded(name: str) -> dict[str, Any]:
    """Returns what fine-tuning recorded about a model's inputs; an export of MAGIC has it in the manifest."""
    for filename in (FINETUNING_NAME, MANIFEST_NAME):
        path = file_of_model(name, filename)
        found = {} if path is None else read_json(path)
        if filename == MANIFEST_NAME and isinstance(found, dict):
            found = found.get("finetuning")
        if isinstance(found, dict) and "text_columns" in found:
            where = f"{filename} of {name}"
            texts = from_json(tuple[str, ...], found["text_columns"], f"text_columns in {where}")
            length = from_json(int | None, found.get("max_length"), f"max_length in {where}")
            return {"text_columns": texts, "max_length": length}
    return {}


def _max_length(classifier: _Classifier, given: int | None) -> int:
    known = given or classifier.facts.get("max_length")
    if known is not None:
        return known
    limits = (classifier.tokenizer.model_max_length, max_sequence_length(classifier.model.config))
    return min((limit for limit in limits if limit is not None and limit < _NO_LIMIT), default=_USUAL_LENGTH)


# ---- The file ----


@dataclass(frozen=True)
class _Job:
    """A file as a model reads it: the task, the rows, and the length to which they are truncated."""

    classifier: _Classifier
    task: Task
    rows: Dataset
    max_length: int
    batch_size: int

    def run(self) -> Iterator[tuple[Dataset, Predictions]]:
        """Yields rows as the model reads them with its predictions, part by part, in the order of the file."""
        task, model, tokenizer = self.task, self.classifier.model, self.classifier.tokenizer
        num_cut = 0
        with progress_bar(total=len(self.rows), unit="row", desc="predicting") as bar:
            for start in range(0, len(self.rows), _ROWS_AT_ONCE):
                part = self.rows.select(range(start, min(start + _ROWS_AT_ONCE, len(self.rows))))
                tokenized = tokenize_rows(part, task, tokenizer, self.max_length)
                predictions = predict(model, tokenized, task, tokenizer, self.batch_size)
                if task.problem_type == TOKENS:
                    words = part[task.text_columns[0]]
                    num_cut += sum(len(row) > len(tags) for row, tags in zip(words, predictions.values, strict=True))
                yield tokenized, predictions
                bar.update(len(part))
        if num_cut:
            limit = counted(self.max_length, "token")
            logger.warning(f"{counted(num_cut, 'row')} of {task.title}: words beyond {limit} get no tag")


def _open(model: str, table: Table, label: str | None, is_scored: bool, settings: EvaluateSettings) -> _Job:
    """Checks everything, logs what was inferred, and returns the rows to predict."""
    classifier = _load_classifier(model_in(model), settings)
    texts = _text_columns(classifier, table, label, settings)
    kind, labels = classifier.problem_type, classifier.labels
    check_lists(table, [*texts, label] if is_scored and label is not None else texts)
    metrics = metrics_of(kind, labels)
    if kind == SINGLE_LABEL:
        metrics += (*_MORE_METRICS, *(("f1",) if len(labels) == 2 else ()))
    task = Task(table.path.stem, table.path.name, kind, texts, labels, metrics)
    if is_scored:
        assert label is not None
        names = None if kind == REGRESSION else labels
        table = with_labels(table, label, label_reader(table, label, kind, names))
    else:
        table = replace(table, columns=texts)
    ids = {name: number for number, name in enumerate(labels)}
    rows = rows_of(task, table, label or "label", ids, is_test=not is_scored)
    job = _Job(classifier, task, rows, _max_length(classifier, settings.max_length), settings.batch_size)
    check_tokenizer(task, classifier.tokenizer, job.max_length)
    check_fit(classifier.model, classifier.tokenizer, job.max_length)
    shown = ", ".join(labels[:_SHOWN_LABELS]) + (", ..." if len(labels) > _SHOWN_LABELS else "")
    logger.info(f"text: {' and '.join(texts)}" + (f"; label: {label}" if is_scored else ""))
    logger.info(f"kind: {kind}" + (f", {counted(len(labels), 'class', 'classes')}: {shown}" if labels else ""))
    logger.info(f"rows: {len(rows):,} of {table.path}, each up to {counted(job.max_length, 'token')}")
    return job


def _text_columns(
    classifier: _Classifier, table: Table, label: str | None, settings: EvaluateSettings
) -> tuple[str, ...]:
    trained = tuple(classifier.facts.get("text_columns", ()))
    given = settings.text_columns or None
    if given is None and trained and set(trained) <= set(table.columns):
        given = trained
    texts, _ = find_text_columns(table, given, label)
    if trained and len(texts) != len(trained):
        raise ValueError(
            f"{classifier.name} was fine-tuned on {counted(len(trained), 'column')} of text ({', '.join(trained)}), "
            f"but {table.path} has {', '.join(texts)}; name the columns with text_columns (--text-column)"
        )
    if classifier.problem_type == TOKENS and len(texts) > 1:
        raise ValueError(
            f"{TOKENS} takes one column of words, not {', '.join(texts)}; choose one with text_columns (--text-column)"
        )
    return texts


# ---- Scores ----


@bars_off()
def evaluate_file(model: str | Path, file: str | Path, settings: EvaluateSettings | None = None) -> dict[str, Any]:
    """Returns the metrics of a fine-tuned classifier on a file with labels.

    The file is read as by `magic-nas finetune`. Classes are identified by their names in the model's configuration, or
    by their numbers.

    Args:
        model: a folder, such as one written by fine-tuning, or a name on the Hub.
        file: CSV, TSV, JSON lines or CoNLL.
        settings: how to read the file.

    Returns:
        "metrics" by name, and for classes "classes": precision, recall, F1 and rows of each; also what was scored:
        "model", "file", "rows", "problem_type", "text_columns", "label_column" and "max_length".

    Raises:
        ValueError: the model is not a trained classifier, or the file is invalid; the message gives the line.
    """
    settings = settings or EvaluateSettings()
    table = with_lists(read_table(file))
    label = find_label_column(table, settings.label_column)
    job = _open(str(model), table, label, True, settings)
    parts = [(predictions.values, references_of(job.task, rows)) for rows, predictions in job.run()]
    predicted, true = (_joined(side) for side in zip(*parts, strict=True))
    result = {
        "model": str(model),
        "file": str(file),
        "rows": len(job.rows),
        "problem_type": job.task.problem_type,
        "text_columns": list(job.task.text_columns),
        "label_column": label,
        "max_length": job.max_length,
        "metrics": compute_metrics(job.task.metrics, predicted, true),
    }
    if job.task.problem_type in (SINGLE_LABEL, MULTI_LABEL):
        result["classes"] = _of_classes(job.task, predicted, true)
    return result


def _joined(parts: Sequence[Any]) -> Any:
    return np.concatenate(parts) if isinstance(parts[0], np.ndarray) else [row for part in parts for row in part]


def _of_classes(task: Task, predicted: np.ndarray, true: np.ndarray) -> dict[str, dict[str, float]]:
    numbers = list(range(len(task.labels)))
    sides = precision_recall_fscore_support(true, predicted, labels=numbers, zero_division=0)
    rows = zip(task.labels, *sides, strict=True)
    return {
        name: {"precision": float(precision), "recall": float(recall), "f1": float(f1), "rows": int(support)}
        for name, precision, recall, f1, support in rows
    }


def scores_table(result: dict[str, Any]) -> str:
    """Returns the result of `evaluate_file` as Markdown: the metrics, and below them the classes, in percent."""
    metrics = result["metrics"]
    scores = markdown_table([*metrics, "rows"], [[*map(_percent, metrics.values()), f"{result['rows']:,}"]])
    if "classes" not in result:
        return scores
    sides = ("precision", "recall", "f1")
    rows = [
        [name, *(_percent(found[side]) for side in sides), f"{found['rows']:,}"]
        for name, found in result["classes"].items()
    ]
    return f"{scores}\n\n{markdown_table(['class', *sides, 'rows'], rows)}"


def _percent(value: float) -> str:
    return f"{100 * value:.2f}"


# ---- Predictions ----


@bars_off()
def predict_file(
    model: str | Path, file: str | Path, output: str | Path, settings: PredictSettings | None = None
) -> Path:
    """Writes the rows of a file together with a fine-tuned classifier's predictions, and returns the path.

    The rows keep their order and their columns. "prediction" is the name of a class, the names of several labels, a
    tag for each word up to `max_length`, or a number; "probability" is that of the class, or of each of the labels. In
    CSV, several labels and their probabilities are joined by "|", tags by spaces.

    Args:
        model: a folder, such as one written by fine-tuning, or a name on the Hub.
        file: CSV, TSV, JSON lines or CoNLL; labels are copied unchanged.
        output: a .csv or .jsonl file, which is written atomically; an existing one is replaced.
        settings: how to read the file.

    Raises:
        ValueError: the model is not a trained classifier, the output is not such a file, or the input file is invalid;
            the message gives the line.
    """
    settings = settings or PredictSettings()
    output = Path(output).expanduser()
    check_output(output, OUTPUT_SUFFIXES, [file, model])
    table = read_table(file)
    taken = [name for name in (PREDICTION, PROBABILITY) if name in table.columns]
    if taken:
        raise ValueError(
            f"{table.path} has a column {taken[0]!r}, which is the name of a column of the output; rename it"
        )
    read = with_lists(table)
    job = _open(str(model), read, label_column_if_any(read, settings.label_column), False, settings)
    columns = [*table.columns, PREDICTION, *([PROBABILITY] if job.task.problem_type in _WITH_PROBABILITY else [])]
    with written_at_once(output) as temporary, temporary.open("w", encoding="utf-8", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n") if output.suffix == ".csv" else None
        if writer is not None:
            writer.writerow(columns)
        rows = iter(table.rows)
        for _, predictions in job.run():
            for values in _values_of(job.task, predictions):
                row = next(rows)
                cells = [row.cells[name] for name in table.columns]
                if writer is not None:
                    writer.writerow([*map(_csv_cell, cells), *(_joined_names(job.task, value) for value in values)])
                else:
                    cells += values
                    lines.write(json.dumps(dict(zip(columns, cells, strict=True)), ensure_ascii=False) + "\n")
    return output


def _values_of(task: Task, predictions: Predictions) -> Iterator[list[Any]]:
    """Yields the values to append to each row."""
    names = predicted_names(task, predictions.values)
    if task.problem_type == SINGLE_LABEL:
        for name, probability in zip(names, softmax(predictions.logits, axis=-1).max(axis=-1), strict=True):
            yield [name, _rounded(probability)]
    elif task.problem_type == MULTI_LABEL:
        for name, row in zip(names, expit(predictions.logits), strict=True):
            yield [name, [_rounded(probability) for probability in row if probability > 0.5]]
    else:
        yield from ([name] for name in names)


def _rounded(probability: float) -> float:
    return round(float(probability), 6)


def _csv_cell(cell: Cell) -> Any:
    """Returns a cell of the input for CSV, in a form that `own_kinds.with_lists` can read again."""
    return json.dumps(cell, ensure_ascii=False) if isinstance(cell, list) else cell


def _joined_names(task: Task, value: Any) -> Any:
    """Returns a prediction in the form that it has in a user's own file."""
    if not isinstance(value, list):
        return value
    return (" " if task.problem_type == TOKENS else LABEL_SEPARATOR).join(map(str, value))
