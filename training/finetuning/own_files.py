"""A user's own files: from tables to a task and its rows, and what was inferred of them in words."""

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
# Of a class's number; one such as 1e999 is a text.
_MOST_DIGITS = 40


class OwnFiles(NamedTuple):
    """What `load_files` read.

    Attributes:
        task: what the files describe.
        data: their rows, as `tasks.load_glue` gives them.
        notes: lines that say what was inferred.
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
    """Returns the task that files of one's own describe, their rows, and what was inferred in words.

    Args:
        train_file: see `task_files.read_table`.
        validation_file: the same columns; `None` takes a part of the training file, chosen by a hash of the texts.
        test_file: the same columns; the labels may be left out.
        text_columns: one or two; `None` infers them, see `own_kinds.find_text_columns`. Tokens are lists of words, or
            words between spaces.
        label_column: a class, a number, several labels (a list, joined by "|", or a vector of zeros and ones), or a
            tag for each word; `None` infers it, see `own_kinds.find_label_column`.
        problem_type: see `Task`; `None` infers it, see `own_kinds.infer_problem_type`.
        class_names: of the classes, in the order of their numbers where the labels are numbers; `None` takes the
            labels that the training file has.
        validation_fraction: of the training file, where there is no validation file.
        metric_for_best_model: the task's score, one of its metrics or "loss"; `None` takes the first metric.

    Raises:
        ValueError: whatever is wrong with a file, with its name and line, or cannot be inferred from it, with the
            option that says it.
    """
    if problem_type not in (None, *PROBLEM_TYPES):
        near = get_close_matches(str(problem_type), PROBLEM_TYPES, 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"no problem_type {problem_type!r}; {hint}choose among {', '.join(PROBLEM_TYPES)}")
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
        raise ValueError(f"token_classification takes one column of words, not {', '.join(texts)}; choose one")
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
    """Returns what gives a row's label with classes by name in place of numbers and vectors; `None` for regression.

    Args:
        table: whose values tell whether labels are numbers or vectors.
        column: of the label.
        problem_type: the kind of task.
        names: of the classes, in the order of their numbers; `None` where the labels name them.

    Raises:
        ValueError: the names do not fit the kind or the vectors.
    """
    if names is not None and (problem_type == REGRESSION or len(set(names)) != len(names)):
        why = "a regression has no classes" if problem_type == REGRESSION else "a name comes twice"
        raise ValueError(f"class_names is {', '.join(names)}, but {why}; leave it out or mend it")
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
            # In figures alone, such as 007, it is a name as it stands.
            return part.strip() if isinstance(part, str) and part.strip().isdecimal() else str(number)
        if not 0 <= number < len(named):
            raise ValueError(f"{where}: class {number}, but class_names has {len(named)}, from 0 on; name all of them")
        return named[number]

    def read(row: Row) -> Cell:
        cell = row.cells[column]
        found = [name_of(part, row.where) for part in _parts(cell, problem_type)]
        return found if isinstance(cell, list) or problem_type in (TOKENS, MULTI_LABEL) else found[0]

    if problem_type == MULTI_LABEL and are_vectors(cells):
        return _vector_reader(column, len(vector_of(cells[0]) or ()), names)
    return read


def _whole_number(cell: Cell) -> int | None:
    """Returns the whole number that a cell holds, 1.0 being one, `None` where it holds none."""
    if not is_number(cell):
        return None
    number = Decimal(str(cell).strip())
    return int(number) if number == number.to_integral_value() and number.adjusted() < _MOST_DIGITS else None


def _vector_reader(column: str, width: int, names: Sequence[str] | None) -> Callable[[Row], Cell]:
    if names is not None and len(names) != width:
        raise ValueError(f"class_names names {len(names)} classes, but {column!r} holds vectors of {width}; name each")
    # As transformers calls classes without a name.
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
    """Returns a table with the labels that `label_reader` gives, where it has labels.

    Raises:
        ValueError: a label is none, with its file and line.
    """
    if column not in table.columns or read is None:
        return table
    return replace(table, rows=[Row(row.where, {**row.cells, column: read(row)}) for row in table.rows])


# ---- A part for validation ----


def _split_off(table: Table, texts: Sequence[str], fraction: float) -> tuple[Table, Table]:
    """Returns a table without a part, and the part, of about `fraction` of the rows.

    Which row is of it depends on the row's texts alone: equal ones are never on both sides, and rows that are added
    to the file later move none of the others.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"validation_fraction is {fraction:g}; it must be between 0 and 1")
    places = [_place(row, texts) for row in table.rows]
    # A small file has one at least.
    bound = max(fraction, min(places))
    held_out = [place <= bound for place in places]
    parts = [[row for row, held in zip(table.rows, held_out, strict=True) if held == side] for side in (False, True)]
    if not parts[0]:
        raise ValueError(f"{table.path} has too few different texts to split off a part; name a validation_file")
    return replace(table, rows=parts[0]), replace(table, rows=parts[1])


def _place(row: Row, texts: Sequence[str]) -> float:
    """Returns a number from 0 to 1 that depends on the texts of a row alone."""
    text = json.dumps([row.cells[name] for name in texts])
    return int(sha256(text.encode()).hexdigest()[:8], 16) / 2**32


# ---- In words ----


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
            what += ", split off by a hash of the text since no validation_file is named"
        if split == "test" and "label" not in data[split].column_names:
            what += ", without labels: predicted, not scored"
        if table.is_quoted:
            what += "; it is quoted as CSV is, and read so"
        notes.append(f"{split}: {what}")
    notes.append(f"metrics: {', '.join(task.metrics)}; the best epoch is the one of the best {task.best_metric}")
    return tuple(notes)
