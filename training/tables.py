"""Tables as Markdown, and numbers of things in words."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


# A pipe ends a cell; the others begin HTML, a link or a picture. "<= 3" and "[1, 2]" stay as they are.
_MARKUP = re.compile(r"\||<(?=[A-Za-z/!?])|\[(?=[^\]]*\]\()")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """Returns a number with its noun: "1 row", "2,000 rows"; the plural is `plural` where it does not end in s."""
    return f"{number:,} {noun if number == 1 else plural or f'{noun}s'}"


def counted_children(number: int) -> str:
    """Returns "1 child", "2,000 children"."""
    return counted(number, "child", "children")


def markdown_table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], align: str = "") -> str:
    """Returns a table as Markdown; what a cell may not hold is escaped.

    Args:
        columns: the titles.
        rows: one cell for each column.
        align: a letter for each column, "r" for right; other columns are on the left.
    """
    rules = ["---:" if align[place : place + 1] == "r" else "---" for place in range(len(columns))]
    lines = [_line(columns), f"| {' | '.join(rules)} |"]
    return "\n".join([*lines, *map(_line, rows)])


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(_cell(cell) for cell in cells)} |"


def _cell(value: Any) -> str:
    text = " ".join(str(value).splitlines())
    return _MARKUP.sub(r"\\\g<0>", text)
