"""Rows and labels of the files that a task is read from: CSV, TSV, JSON lines, CoNLL.

Errors are reported with file and line, before any training.
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

from .settings import MULTI_LABEL, REGRESSION, TOKENS


# The types of a cell of JSON lines; a cell of CSV and TSV is a string, one of CoNLL a list of strings.
Cell: TypeAlias = str | int | float | bool | list | None
CONLL_SUFFIXES = (".conll", ".bio")
SUFFIXES = (".csv", ".tsv", ".json", ".jsonl", *CONLL_SUFFIXES)
# Separates the labels of one row of a multi-label CSV or TSV.
LABEL_SEPARATOR = "|"


_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")
_INTEGER = re.compile(r"[+-]?\d+")
# One cell of TSV that is quoted like CSV, or has no quotation mark.
_QUOTED_CELL = re.compile(r'"((?:[^"]|"")*)"|[^"\t\r\n]*')
_ESCAPE = re.compile(r"\\(?:u([0-9a-fA-F]{4})|.)")
_SHOWN_LABELS = 10


@dataclass(frozen=True)
class Row:
    """One row of a file: its location, such as "train.csv, line 3", and its cells by column."""

    where: str
    cells: Mapping[str, Cell]


@dataclass(frozen=True)
class Table:
    """The result of `read_table`.

    Attributes:
        path: the file.
        columns: names of the columns in the order of the file; for JSON lines, the keys of the first line.
        rows: the rows, at least one.
        is_quoted: whether a TSV was found to be quoted like CSV.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]
    is_quoted: bool = False


# ---- Reading ----


def read_table(path: str | Path) -> Table:
    """Returns the rows of a .csv, .tsv, .json, .jsonl, .conll or .bio file in UTF-8.

    CSV is quoted as spreadsheets quote it and may contain line breaks in quotes. In TSV a quotation mark is an
    ordinary character, as in GLUE's files, unless the whole file is quoted like CSV (see `_is_quoted`). JSON lines
    have one object per line, all with the keys of the first. CoNLL has a word and its tag per line and an empty line
    between sentences: the words are the column "tokens", the tags, which come last, the column "label". Empty rows at
    the end of a file are ignored.

    Raises:
        ValueError: there is no such file, it has another suffix, is not UTF-8 or is empty, names a column twice, has
            an empty row, one with another number of columns or half of a character; the message gives file and line.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(f"{path} cannot be read; known suffixes: {', '.join(SUFFIXES)}")
    _check_utf8(path)
    is_quoted = suffix == ".tsv" and _is_quoted(path)
    if suffix in CONLL_SUFFIXES:
        columns, rows = _conll_rows(path)
    elif suffix in (".json", ".jsonl"):
        columns, rows = _json_rows(path)
    else:
        columns, rows = _separated_rows(path, is_quoted)
    if not rows:
        raise ValueError(f"{path} holds no rows; give at least one")
    return Table(path, columns, rows, is_quoted)


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


def _is_quoted(path: Path) -> bool:
    """Whether a TSV is quoted like CSV, as pandas writes it.

    It is if each quotation mark is part of such quoting, and some cell had to be quoted: it contains a doubled mark, a
    tab or a line break, or is the name of a column.
    """
    text = path.read_text(encoding="utf-8-sig")
    if '"' not in text:
        return False
    place, has_reason, in_header = 0, False, True
    while place < len(text):
        cell = _QUOTED_CELL.match(text, place)
        assert cell is not None
        place = cell.end()
        if place < len(text) and text[place] not in "\t\r\n":
            return False
        if cell[1] is not None:
            has_reason = has_reason or in_header or any(mark in cell[1] for mark in ('""', "\t", "\n"))
        in_header = in_header and text[place : place + 1] == "\t"
        place += 1
    return has_reason


def _separated_rows(path: Path, is_quoted: bool) -> tuple[tuple[str, ...], list[Row]]:
    is_plain = path.suffix.lower() == ".tsv" and not is_quoted
    with path.open(encoding="utf-8-sig", newline="\n" if is_plain else "") as file:
        records = _tsv_records(file) if is_plain else _csv_records(file, path)
        _, header = next(records, (1, []))
        columns = tuple(name.strip() for name in header)
        _check_header(path, columns)
        rows, empty = [], ""
        for number, record in records:
            where = f"{path}, line {number}"
            if not any(cell.strip() for cell in record):
                empty = empty or where
                continue
            _check_no_gap(empty)
            if len(record) != len(columns):
                raise ValueError(
                    f"{where}: {len(record)} columns, but the header has {len(columns)} ({', '.join(columns)})"
                )
            rows.append(Row(where, dict(zip(columns, record, strict=True))))
    return columns, rows


def _check_no_gap(empty: str) -> None:
    """Raises a ValueError if another row follows an empty one, which is only allowed at the end."""
    if empty:
        raise ValueError(f"{empty}: empty row; delete it")


def _tsv_records(lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(lines, 1):
        yield number, line.rstrip("\r\n").split("\t")


def _csv_records(lines: Iterator[str], path: Path) -> Iterator[tuple[int, list[str]]]:
    # This limit applies to the whole process, by default 131,072 characters per cell; no cell is longer than its file.
    csv.field_size_limit(max(csv.field_size_limit(), path.stat().st_size))
    reader = csv.reader(lines, strict=True, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
    while True:
        # A quoted cell may span several lines; a record is identified by its first.
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
        raise ValueError(f"{path} is empty or has an empty first line, which must name the columns; add it")
    if len(columns) == 1 and ";" in columns[0] and path.suffix.lower() == ".csv":
        raise ValueError(f"{path}, line 1: columns are separated by ';'; save the file with commas, or as TSV")
    repeated = sorted({name for name in columns if columns.count(name) > 1})
    if repeated:
        raise ValueError(f"{path}, line 1: column {repeated[0]!r} is named more than once; rename one")


def _json_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    columns: tuple[str, ...] = ()
    rows, empty = [], ""
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            where = f"{path}, line {number}"
            if not line.strip():
                empty = empty or where
                continue
            _check_no_gap(empty)
            try:
                # Handles NaN, which pandas and json write for a cell without a value.
                cells = json.loads(line, parse_constant=_constant)
            except json.JSONDecodeError as error:
                raise ValueError(f"{where}: not JSON ({error.msg}); each line must be one object") from None
            except ValueError as error:
                # A whole number of more digits than Python converts.
                raise ValueError(f"{where}: {str(error).partition(';')[0]}; correct the number") from None
            except RecursionError:
                raise ValueError(f"{where}: lists are nested too deeply; each line must be one flat object") from None
            if not isinstance(cells, dict):
                raise ValueError(f"{where}: {type(cells).__name__} instead of an object; each line must be one object")
            if (found := lone_surrogate(line)) is not None:
                raise ValueError(f"{where}: {line[found : found + 6]} is half of a character; correct or delete it")
            columns = columns or tuple(cells)
            if set(cells) != set(columns):
                odd = sorted(set(cells) ^ set(columns))
                raise ValueError(
                    f"{where}: keys differ from those of line 1 in {', '.join(map(repr, odd))}; give all lines the "
                    f"same keys"
                )
            rows.append(Row(where, cells))
    return columns, rows


def _constant(name: str) -> float | None:
    return None if name == "NaN" else float(name)


def lone_surrogate(text: str) -> int | None:
    """Returns where JSON escapes half of a character without the other, which UTF-8 cannot encode; else `None`."""
    if "\\ud" not in text and "\\uD" not in text:
        return None
    high: re.Match[str] | None = None
    for escape in _ESCAPE.finditer(text):
        code = int(escape[1], 16) if escape[1] else 0
        is_low = 0xDC00 <= code < 0xE000
        if high is not None and not (is_low and escape.start() == high.end()):
            return high.start()
        if is_low and high is None:
            return escape.start()
        high = escape if 0xD800 <= code < 0xDC00 else None
    return None if high is None else high.start()


def _conll_rows(path: Path) -> tuple[tuple[str, ...], list[Row]]:
    sentences: list[tuple[str, list[list[str]]]] = []
    is_open = False
    with path.open(encoding="utf-8-sig", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            line = line.strip()
            if not line or line.startswith("-DOCSTART-"):
                is_open = False
                continue
            # A word followed by a tab may contain spaces.
            cells = [cell.strip() for cell in line.split("\t")] if "\t" in line else line.split()
            where = f"{path}, line {number}"
            width = len(sentences[0][1][0]) if sentences else len(cells)
            if len(cells) != width or "" in cells:
                raise ValueError(
                    f"{where}: {len(cells)} columns, none of which may be empty, but the first word has {width}; give "
                    f"a word and its tag on each line"
                )
            if not is_open:
                sentences.append((where, []))
                is_open = True
            sentences[-1][1].append(cells)
    if not sentences:
        return (), []
    width = len(sentences[0][1][0])
    columns = ("tokens", *(f"column_{number}" for number in range(2, width)), *(["label"] if width > 1 else []))
    rows = [
        Row(where, {name: list(column) for name, column in zip(columns, zip(*words, strict=True), strict=True)})
        for where, words in sentences
    ]
    return columns, rows


# ---- Columns and texts ----


def require_columns(table: Table, names: Sequence[str], option: str = "") -> None:
    """Checks that a table has the named columns.

    Args:
        table: the table that was read.
        names: names of the columns.
        option: the option that sets another column, for the message.

    Raises:
        ValueError: a column is missing; the message lists the existing ones, and the closest.
    """
    for name in names:
        if name not in table.columns:
            near = get_close_matches(name, table.columns, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            remedy = f"; set another with {option}" if option else ""
            raise ValueError(
                f"{table.path}, line 1: no column {name!r} among {', '.join(table.columns)}{hint}{remedy}"
            )


def text_of(row: Row, column: str) -> str:
    """Returns a row's text.

    Raises:
        ValueError: it is empty or not a string.
    """
    text = row.cells[column]
    if not isinstance(text, str):
        raise ValueError(
            f"{row.where}: column {column!r} holds {type(text).__name__}, not a text; choose a "
            f"column of texts with text_columns (--text-column)"
        )
    if not text.strip():
        raise ValueError(f"{row.where}: column {column!r} is empty; delete the row or fill it")
    return text


def words_of(row: Row, column: str) -> list[str]:
    """Returns a row's words or tags: a list of strings, or a text split at white space.

    Raises:
        ValueError: there are none, or the list holds something else.
    """
    cell = row.cells[column]
    words = cell.split() if isinstance(cell, str) else cell
    if not isinstance(words, list) or not words or not all(isinstance(word, str) and word.strip() for word in words):
        raise ValueError(f"{row.where}: column {column!r} must hold at least one word, and no empty words")
    return [str(word) for word in words]


# ---- Labels ----


def is_number(cell: Cell) -> bool:
    """Whether a cell holds a number, also as text; "nan", "inf" and true are not numbers."""
    return not isinstance(cell, bool | list) and _NUMBER.fullmatch(str(cell).strip()) is not None


def label_names(table: Table, label_column: str, problem_type: str) -> tuple[str, ...]:
    """Returns the labels of a training table in the order of their ids: whole numbers by size, others by name.

    Regression has none.

    Raises:
        ValueError: a row has no label although it needs one, or the whole table has too few labels to learn from.
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
    return tuple(sorted(found, key=lambda name: (int(name) if are_numbers else 0, name)))


def label_of(row: Row, label_column: str, problem_type: str, ids: Mapping[str, int]) -> int | float | list[int]:
    """Returns a row's label: a number, a class id, 0 or 1 for each label, or the id of each word's tag.

    Args:
        row: the row that was read.
        label_column: the label column.
        problem_type: see `own_kinds.infer_problem_type`.
        ids: ids of the labels by name; several names may share one id.

    Raises:
        ValueError: there is no label, it is unknown, or it is not a finite number although one is needed.
    """
    if problem_type == REGRESSION:
        return _number_of(row, label_column)
    names = _names_of(row, label_column, problem_type)
    unknown = [name for name in names if name not in ids]
    if unknown:
        shown = ", ".join(list(ids)[:_SHOWN_LABELS]) + (", ..." if len(ids) > _SHOWN_LABELS else "")
        raise ValueError(
            f"{row.where}: unknown label {unknown[0]!r}; known labels: {shown}; correct the row or remove it"
        )
    if problem_type == MULTI_LABEL:
        return [int(name in names) for name in ids]
    return [ids[name] for name in names] if problem_type == TOKENS else ids[names[0]]


def _number_of(row: Row, label_column: str) -> float:
    cell = row.cells[label_column]
    if not is_number(cell) or not math.isfinite(float(str(cell))):
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
            raise ValueError(
                f"{row.where}: column {label_column!r} holds {cell!r}, in which one label is empty; fill or remove it"
            )
        return names
    name = _name_of(cell, row.where)
    if not name:
        raise ValueError(f"{row.where}: column {label_column!r} is empty; every row needs a label")
    return [name]


def _name_of(cell: Cell, where: str) -> str:
    if isinstance(cell, list | dict):
        raise ValueError(f"{where}: the label is {cell!r}; it must be one name or number")
    if cell is None:
        return ""
    return str(cell).lower() if isinstance(cell, bool) else str(cell).strip()
