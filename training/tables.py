"""Tables as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any


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
    return " ".join(str(value).replace("|", "\\|").split("\n"))
