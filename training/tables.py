"""Tables as Markdown."""

import re
from collections.abc import Iterable, Sequence
from typing import Any


# A pipe ends a cell; the others begin HTML, a link or a picture. "<= 3" and "[1, 2]" stay as they are.
_MARKUP = re.compile(r"\||<(?=[A-Za-z/!?])|\[(?=[^\]]*\]\()")


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
