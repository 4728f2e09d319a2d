"""A user's own files: from tables to a task and its rows, and notes on what was inferred."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from decimal import Decimal
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from datasets import DatasetDict

from ..tables import counted
from .own_kinds import (
    are_bio,
    are_vectors,
    check_lists,
    find_label_column,
    find_text_columns,
    infer_problem_type,
    vector_of,
    with_lists,
)
from .settings import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, TOKENS
from .task_files import LABEL_SEPARATOR, Cell, Row, Table, is_number, label_names, read_table, require_columns
from .tasks import Task, rows_of


_METRICS: dict[str, tuple[str, ...]] = {
    SINGLE_LABEL: ("accuracy", "macro_f1"),
    REGRESSION: ("pearson", "spearmanr"),
    MULTI_LABEL: ("micro_f1", "macro_f1"),
}
_SHOWN_LABELS = 10
# Largest number of digits of a class number; one such as 1e999 is treated as text.
_MOST_DIGITS = 40


class OwnFiles(NamedTuple):
    """The result of `load_files`.

    Attributes:
        task: the task that the files describe.
        data: their rows, in the form of `tasks.load_glue`.
        notes: lines that describe what was inferred.
    """

    task: Task
    data: DatasetDict
    notes: tuple[str, ...]


def load_files(
    train_file: str | Path,
    validation_file: str | Path | None = None,
    test_file: str | Path | None = None,
    *,
    text_columns: Sequence[str] | None = None,
    label_column: str | None = None,
    problem_type: str | None = None,
    class_names: Sequence[str] | None = None,
    validation_fraction: float = 0.1,
    metric_for_best_model: str | None = None,
) -> OwnFiles:
    """Returns the task that a user's own files describe, their rows, and notes on what was inferred.

    Args:
        train_file: see `task_files.read_table`.
        validation_file: the same columns; `None` takes a part of the training file, chosen by a hash of the texts.
        test_file: the same columns; the labels may be missing.
        text_columns: one or two; `None` infers them, see `own_kinds.find_text_columns`. Tokens are lists of words, or
            words separated by spaces.
        label_column: column of a class, a number, several labels (a list, joined by "|", or a vector of zeros and
            ones), or a tag for each word; `None` infers it, see `own_kinds.find_label_column`.
        problem_type: see `Task`; `None` infers it, see `own_kinds.infer_problem_type`.
        class_names: names of the classes, in the order of their numbers if the labels are numbers; `None` takes the
            labels in the training file.
        validation_fraction: share of the training file to split off if there is no validation file.
        metric_for_best_model: the task's score, one of its metrics or "loss"; `None` takes the first metric.

    Raises:
        ValueError: a file is invalid (with its name and line), or something cannot be inferred from it (with the
            option that sets it).
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        near = get_close_matches(str(problem_type), PROBLEM_TYPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown problem_type {problem_type!r}; {hint}choose among {', '.join(PROBLEM_TYPES)}")
    files = {"train": train_file, "validation": validation_file, "test": test_file}
    tables = {split: with_lists(read_table(path)) for split, path in files.items() if path is not None}
    whole = tables["train"]
    label = find_label_column(whole, label_column)
    texts, others = find_text_columns(whole, text_columns, label)
    for split, table in tables.items():
        require_columns(table, texts if split == "test" else (*texts, label))
        check_lists(table, [name for name in (*texts, label) if name in table.columns])
    kind = problem_type or infer_problem_type(whole, texts, label)
    if kind == TOKENS and len(texts) > 1:
        raise ValueError(
            f"token_classification takes one column of words, not {', '.join(texts)}; choose one with "
            "text_columns (--text-column)"
        )
    read = label_reader(whole, label, kind, class_names)
    tables = {split: with_labels(table, label, read) for split, table in tables.items()}
    classes = tuple(class_names or label_names(tables["train"], label, kind))
    metrics = metrics_of(kind, classes)
    name = whole.path.stem
    task = Task(name, name, kind, texts, classes, metrics).by_metric(metric_for_best_model or metrics[0])
    if "validation" not in tables:
        tables["train"], tables["validation"] = _split_off(tables["train"], texts, validation_fraction)
    ids = {name: number for number, name in enumerate(classes)}
    data = DatasetDict({split: rows_of(task, table, label, ids, split == "test") for split, table in tables.items()})
    notes = _notes(task, tables, data, label, others, is_split=validation_file is None)
    return OwnFiles(task, data, notes)


def metrics_of(problem_type: str, classes: Sequence[str]) -> tuple[str, ...]:
    """Returns the metrics of a kind of task, the usual one first."""
    if problem_type == TOKENS:
        return ("entity_f1", "token_accuracy") if are_bio(classes) else ("token_accuracy",)
    return _METRICS[problem_type]


# ---- Labels by name ----


def label_reader(
    table: Table, column: str, problem_type: str, names: Sequence[str] | None
) -> Callable[[Row], Cell] | None:
    """Returns what reads a row's label, with names in place of class numbers and vectors; `None` for regression.

    Args:
        table: the table whose values show whether labels are numbers or vectors.
        column: the label column.
        problem_type: the kind of task.
        names: names of the classes, in the order of their numbers; `None` if the labels are the names.

    Raises:
        ValueError: the names do not fit the kind of task or the vectors.
    """
    if names is not None and (problem_type == REGRESSION or len(set(names)) != len(names)):
        why = "regression has no classes" if problem_type == REGRESSION else "a name occurs twice"
        raise ValueError(f"class_names is {', '.join(names)}, but {why}; remove or correct it")
    if problem_type == REGRESSION:
        return None
    cells = [row.cells[column] for row in table.rows]
    parts = [part for cell in cells for part in _parts(cell, problem_type)]
    are_numbers = all(_whole_number(part) is not None for part in parts if part not in ("", None))
    named = None if names is None or any(is_number(name) for name in names) else names

    def name_of(part: Cell, where: str) -> Cell:
        number = _whole_number(part) if are_numbers else None
        if number is None:
            return part
        if named is None:
            # With digits only, such as 007, it is kept as a name.
            return part.strip() if isinstance(part, str) and part.strip().isdecimal() else str(number)
        if not 0 <= number < len(named):
            raise ValueError(
                f"{where}: class {number}, but there are {len(named)}, numbered from 0: {', '.join(named)}; "
                f"correct it, or fine-tune with more class_names"
            )
        return named[number]

    def read(row: Row) -> Cell:
        cell = row.cells[column]
        found = [name_of(part, row.where) for part in _parts(cell, problem_type)]
        return found if isinstance(cell, list) or problem_type in (TOKENS, MULTI_LABEL) else found[0]

    if problem_type == MULTI_LABEL and are_vectors(cells):
        return _vector_reader(column, len(vector_of(cells[0]) or ()), names)
    return read


def _whole_number(cell: Cell) -> int | None:
    """Returns the whole number in a cell, such as 1.0, or `None`."""
    if not is_number(cell):
        return None
    number = Decimal(str(cell).strip())
    return int(number) if number == number.to_integral_value() and number.adjusted() < _MOST_DIGITS else None


def _vector_reader(column: str, width: int, names: Sequence[str] | None) -> Callable[[Row], Cell]:
    if names is not None and len(names) != width:
        raise ValueError(
            f"class_names has {len(names)} classes, but {column!r} holds vectors of {width}; name each class"
        )
    # As in transformers, for classes without a name.
    known = names or [f"LABEL_{number}" for number in range(width)]

    def read(row: Row) -> Cell:
        vector = vector_of(row.cells[column])
        if vector is None or len(vector) != width:
            raise ValueError(
                f"{row.where}: column {column!r} holds {row.cells[column]!r:.60}, but the training file has {width} "
                f"zeros and ones in each row"
            )
        return [name for name, is_there in zip(known, vector, strict=True) if is_there]

    return read


def _parts(cell: Cell, problem_type: str) -> list[Cell]:
    """Returns the labels of a cell, one by one."""
    if isinstance(cell, list):
        return cell
    if isinstance(cell, str) and problem_type == TOKENS:
        return list(cell.split())
    if isinstance(cell, str) and problem_type == MULTI_LABEL:
        return list(cell.split(LABEL_SEPARATOR))
    return [cell]


def with_labels(table: Table, column: str, read: Callable[[Row], Cell] | None) -> Table:
    """Returns a table with the labels that `label_reader` gives, if it has labels.

    Raises:
        ValueError: a label is invalid; the message gives file and line.
    """
    if column not in table.columns or read is None:
        return table
    return replace(table, rows=[Row(row.where, {**row.cells, column: read(row)}) for row in table.rows])


# ---- A part for validation ----


def _split_off(table: Table, texts: Sequence[str], fraction: float) -> tuple[Table, Table]:
    """Splits off about `fraction` of the rows; returns the table without this part, and the part.

    Whether a row is in the part depends only on its texts: rows with equal texts are never on both sides, and rows
    that are added to the file later move none of the others.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction:g}; it must be between 0 and 1")
    places = [_place(row, texts) for row in table.rows]
    # A small file has at least one.
    bound = max(fraction, min(places))
    held_out = [place <= bound for place in places]
    parts = [[row for row, held in zip(table.rows, held_out, strict=True) if held == side] for side in (False, True)]
    if not parts[0]:
        raise ValueError(f"{table.path} has too few different texts to split off a part; give a validation_file")
    return replace(table, rows=parts[0]), replace(table, rows=parts[1])


def _place(row: Row, texts: Sequence[str]) -> float:
    """Returns a number from 0 to 1 that depends only on the texts of a row."""
    text = json.dumps([row.cells[name] for name in texts])
    return int(sha256(text.encode()).hexdigest()[:8], 16) / 2**32


# ---- Notes ----


def _notes(
    task: Task, tables: dict[str, Table], data: DatasetDict, label: str, others: dict[str, str], is_split: bool
) -> tuple[str, ...]:
    notes = [f"text: {' and '.join(task.text_columns)}; label: {label}"]
    notes += [f"not read: {name or 'the column without a name'} ({what})" for name, what in others.items()]
    shown = ", ".join(task.labels[:_SHOWN_LABELS]) + (", ..." if len(task.labels) > _SHOWN_LABELS else "")
    classes = f", {counted(len(task.labels), 'class', 'classes')}: {shown}" if task.labels else ""
    notes.append(f"kind: {task.problem_type}{classes}")
    for split in (split for split in ("train", "validation", "test") if split in tables):
        table = tables[split]
        what = f"{counted(len(table.rows), 'row')} of {table.path}"
        if split == "validation" and is_split:
            what += ", split off by a hash of the text since no validation_file is given"
        if split == "test" and "label" not in data[split].column_names:
            what += ", without labels: predicted, not scored"
        if table.is_quoted:
            what += "; read as quoted like CSV"
        notes.append(f"{split}: {what}")
    notes.append(f"metrics: {', '.join(task.metrics)}; the best epoch is the one with the best {task.best_metric}")
    return tuple(notes)
