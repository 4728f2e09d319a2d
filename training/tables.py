"""Markdown tables, and counts with their nouns."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


# A pipe ends a cell; the others start HTML, a link or an image. "<= 3" and "[1, 2]" are not escaped.
_MARKUP = re.compile(r"\||<(?=[A-Za-z/!?])|\[(?=[^\]]*\]\()")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 row", "2,000 rows"; give `plural` if it is not the noun with an s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def counted_children(number: int) -> str:
    """Returns "1 child", "2,000 children"."""
    return counted(number, "child", "children")


def markdown_table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """Returns a table as Markdown; special characters in cells are escaped.

    Args:
        columns: the titles.
        rows: the rows, with one cell for each column.
        align: a letter for each column, "r" for right-aligned; other columns are left-aligned.
    """
    rules = ["---:" if align[place : place + 1] == "r" else "---" for place in range(len(columns))]
    lines = [_line(columns), f"| {' | '.join(rules)} |"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: Any) -> str:
    text = " ".join(str(value).splitlines())
    return _MARKUP.sub(r"\\\g<0>", text)


def first_line(error: BaseException) -> str:
    """Returns the first line of an error's message, or the name of its class if there is no message."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
