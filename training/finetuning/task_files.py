"""Rows and labels of the files that a task is read from: CSV, TSV, JSON lines.

Whatever is wrong is named with its file and line, before anything is trained on it.
"""

import csv
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TypeAlias

from .settings import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS


# What a cell of JSON lines may hold; a cell of CSV and TSV is a string.
Cell: TypeAlias = str | int | float | bool | list | None
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl")
# Between the labels of one row of a multi-label CSV or TSV.
LABEL_SEPARATOR = "|"


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")
_SHOWN_LABELS = 10


@dataclass(frozen=True)
class Row:
    """One row of a file: where it stands, such as "train.csv, line 3", and its cells by column."""

    where: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """What `read_table` read.

    Attributes:
        path: the file.
        columns: in the order of the file; of JSON lines, the keys of the first line.
        rows: at least one.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]


# ---- Reading ----


def read_table(path: str | Path) -> Table:
    """Returns the rows of a .csv, .tsv, .json or .jsonl file in UTF-8.

    CSV is quoted as spreadsheets quote it and may hold line breaks in quotes. In TSV a quotation mark is a character
    as any other, as in GLUE's files. JSON lines hold one object a line, all with the keys of the first.

    Raises:
        ValueError: there is no such file, it has another suffix, is not UTF-8 or empty, names a column twice, has an
            empty row or one with another number of columns; with file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path")
    if path.suffix not in SUFFIXES:
        raise ValueError(f"{path} is not a kind of file that can be read; known suffixes: {', '.join(SUFFIXES)}")
    _check_utf8(path)
    if path.suffix in (".json", ".jsonl"):
        columns, rows = _json_rows(path)
    else:
        columns, rows = _separated_rows(path)
    if not rows:
        raise ValueError(f"{path} holds no rows; give at least one")
    return Table(path, columns, rows)


def _check_utf8(path: Path) -> None:
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"{path}, line {number}: not UTF-8 ({error.reason}, byte 0x{line[error.start]:02x}); convert the "
                    f"file, for example with iconv -f latin1 -t utf8"
                ) from None


def _separated_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    with path.open(encoding="utf-8-sig", newline="\n" if path.suffix == ".tsv" else "") as file:
        records = _tsv_records(file) if path.suffix == ".tsv" else _csv_records(file, path)
        _, header = next(records, (1, []))
        columns = tuple(name.strip() for name in header)
        _check_header(path, columns)
        rows = []
        for number, record in records:
            where = f"{path}, line {number}"
            if not any(cell.strip() for cell in record):
                raise ValueError(f"{where}: empty row; delete it")
            if len(record) != len(columns):
                raise ValueError(
                    f"{where}: {len(record)} columns, but the header has {len(columns)} ({', '.join(columns)})"
                )
            rows.append(Row(where, dict(zip(columns, record, strict=True))))
    return columns, rows


def _tsv_records(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        yield number, line.rstrip("\r\n").split("\t")


def _csv_records(lines: Iterator[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    reader = csv.reader(lines, strict=True)
    while True:
        # A quoted cell may run over several lines: a record is named by its first.
        number = reader.line_num + 1
        try:
            record = next(reader, None)
        except csv.Error as error:
            raise ValueError(f"{path}, line {number}: not CSV ({error}); check the quotation marks") from None
        if record is None:
            return
        yield number, record


def _check_header(path: Path, columns: tuple[str, ...]) -> None:
    if not any(columns):
        raise ValueError(f"{path} is empty or its first line is; it must name the columns")
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: column {repeated[0]!r} is named more than once; rename one")


def _json_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    columns: tuple[str, ...] = ()
    rows = []
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                raise ValueError(f"{where}: empty row; delete it")
            try:
                cells = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}); each line must be one object") from None
            if not isinstance(cells, dict):
                raise ValueError(f"{where}: {type(cells).__name__} where an object is wanted; each line must be one")
            columns = columns or tuple(cells)
            if set(cells) != set(columns):
                odd = sorted(set(cells) ^ set(columns))
                raise ValueError(f"{where}: keys differ from those of line 1 in {', '.join(map(repr, odd))}")
            rows.append(Row(where, cells))
    return columns, rows


# ---- Columns and texts ----


def require_columns(table: Table, names: Sequence[str]) -> None:
    """Checks that a table has the named columns.

    Raises:
        ValueError: it lacks one; the message names those that it has, and the nearest.
    """
    for name in names:
        if name not in table.columns:
            near = get_close_matches(name, table.columns, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{table.path}, line 1: no column {name!r} among {', '.join(table.columns)}{hint}")


def text_of(row: Row, column: str) -> str:
    """Returns a row's text.

    Raises:
        ValueError: it is empty or no string.
    """
    text = row.cells[column]
    if not isinstance(text, str):
        raise ValueError(f"{row.where}: column {column!r} holds {type(text).__name__}, not a text")
    if not text.strip():
        raise ValueError(f"{row.where}: column {column!r} is empty; delete the row or fill it")
    return text


def words_of(row: Row, column: str) -> list[str]:
    """Returns a row's words or tags: a list of strings, or a text split at white space.

    Raises:
        ValueError: there is none, or the list holds something else.
    """
    cell = row.cells[column]
    words = cell.split() if isinstance(cell, str) else cell
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{row.where}: column {column!r} must hold at least one word and no empty one")
    return [str(word) for word in words]


# ---- Labels ----


def infer_problem_type(table: Table, text_columns: Sequence[str], label_column: str) -> str:
    """Returns the kind of task that a table's labels ask for.

    - lists of words, or for most rows as many tags as words, and more than one somewhere: token classification;
    - lists of labels, or labels joined by "|": several labels a row;
    - for most rows a number, somewhere with a decimal point: regression;
    - all else, whole numbers too: one class a row.

    The odd row of a kind that most rows are of is then an error of that row, not another kind of task.
    """
    cells = [row.cells[label_column] for row in table.rows]
    if len(text_columns) == 1 and _are_token_tags([row.cells[text_columns[0]] for row in table.rows], cells):
        return TOKENS
    if any(isinstance(cell, list) or (isinstance(cell, str) and LABEL_SEPARATOR in cell) for cell in cells):
        return MULTI_LABEL
    numbers = [cell for cell in cells if _is_number(cell)]
    has_fractions = any(not _INTEGER.fullmatch(str(cell).strip()) for cell in numbers)
    return REGRESSION if has_fractions and 2 * len(numbers) > len(cells) else SINGLE_LABEL


def _are_token_tags(texts: Sequence[Cell], cells: Sequence[Cell]) -> bool:
    if any(isinstance(text, list) for text in texts):
        return True
    num_words, num_tags = ([len(str(cell).split()) for cell in column] for column in (texts, cells))
    aligned = [tags for words, tags in zip(num_words, num_tags, strict=True) if words == tags]
    return 2 * len(aligned) > len(cells) and max(aligned) > 1


def _is_number(cell: Cell) -> bool:
    return not isinstance(cell, bool | list) and _NUMBER.fullmatch(str(cell).strip()) is not None


def label_names(table: Table, label_column: str, problem_type: str) -> tuple[str, ...]:
    """Returns the labels of a training table in the order of their ids: whole numbers by size, others by name.

    Regression has none.

    Raises:
        ValueError: a row has no label, unless it may have several; or the whole table has too few to learn from.
    """
    if problem_type == REGRESSION:
        return ()
    found = {name for row in table.rows for name in _names_of(row, label_column, problem_type)}
    if len(found) < (1 if problem_type == MULTI_LABEL else 2):
        raise ValueError(
            f"column {label_column!r} of {table.path} holds no label but {', '.join(map(repr, found)) or 'none'}; "
            f"there is nothing to learn"
        )
    are_numbers = all(_INTEGER.fullmatch(name) for name in found)
    return tuple(sorted(found, key=int if are_numbers else str))


def label_of(row: Row, label_column: str, problem_type: str, ids: Mapping[str, int]) -> int | float | list[int]:
    """Returns a row's label: a number, a class id, 0 or 1 for each label, or the id of each word's tag.

    Args:
        row: what was read.
        label_column: where its label stands.
        problem_type: see `infer_problem_type`.
        ids: of the labels by name; several names may stand for one.

    Raises:
        ValueError: there is no label, it is unknown, or is no finite number where one is wanted.
    """
    if problem_type == REGRESSION:
        return _number_of(row, label_column)
    names = _names_of(row, label_column, problem_type)
    unknown = [name for name in names if name not in ids]
    if unknown:
        shown = ", ".join(list(ids)[:_SHOWN_LABELS]) + (", ..." if len(ids) > _SHOWN_LABELS else "")
        raise ValueError(f"{row.where}: unknown label {unknown[0]!r}; known labels: {shown}")
    if problem_type == MULTI_LABEL:
        return [int(name in names) for name in ids]
    return [ids[name] for name in names] if problem_type == TOKENS else ids[names[0]]


def _number_of(row: Row, label_column: str) -> float:
    cell = row.cells[label_column]
    if not _is_number(cell) or not math.isfinite(float(str(cell))):
        raise ValueError(f"{row.where}: column {label_column!r} holds {cell!r}; regression needs a finite number")
    return float(str(cell))


def _names_of(row: Row, label_column: str, problem_type: str) -> list[str]:
    cell = row.cells[label_column]
    if problem_type == TOKENS:
        return words_of(row, label_column)
    if problem_type == MULTI_LABEL:
        parts = cell if isinstance(cell, list) else _name_of(cell, row.where).split(LABEL_SEPARATOR)
        names = [_name_of(part, row.where) for part in parts]
        # A row without any label is an empty cell or an empty list.
        names = [] if names == [""] else names
        if "" in names:
            raise ValueError(f"{row.where}: column {label_column!r} holds {cell!r}, in which one label is empty")
        return names
    name = _name_of(cell, row.where)
    if not name:
        raise ValueError(f"{row.where}: column {label_column!r} is empty; every row needs a label")
    return [name]


def _name_of(cell: Cell, where: str) -> str:
    if isinstance(cell, list | dict):
        raise ValueError(f"{where}: label {cell!r} where one name or number is wanted")
    if cell is None:
        return ""
    return str(cell).lower() if isinstance(cell, bool) else str(cell).strip()
