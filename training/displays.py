"""Views of results in notebooks: operators as boxes, and small tables, as HTML for light and dark pages."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any


# Told apart in every form of colour blindness.
KIND_COLORS = {"MHA": "#f2c14e", "FFN": "#a8d0ee", "CONV": "#c06f9f"}
KIND_NAMES = {"MHA": "attention", "FFN": "feed-forward", "CONV": "convolution"}
OTHER_COLOR = "#dddddd"
# A box has its own background and text colour; everything else uses the page's.
_BOX = "display:inline-block;margin:1px;padding:0 5px;border-radius:4px;color:#222;font:12px/1.7 monospace"


def kind_of(operator: str) -> str | None:
    """Returns the kind of an operator, a key of `KIND_COLORS`; `None` for others, such as SKIP."""
    return next((kind for kind in KIND_COLORS if operator.startswith(kind)), None)


def operator_color(operator: str) -> str:
    """Returns the colour of an operator's kind."""
    kind = kind_of(operator)
    return KIND_COLORS[kind] if kind else OTHER_COLOR


def operator_boxes(operators: Iterable[str]) -> str:
    """Returns a box for each operator, coloured by its kind, in the order given."""
    return "".join(map(_box, operators))


def _box(operator: str) -> str:
    return f'<span style="{_BOX};background:{operator_color(operator)}">{escape(operator)}</span>'


def html_table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as HTML.

    Args:
        columns: the titles, which are escaped.
        rows: one cell for each column: a sequence of operators, which is drawn as boxes, or a value, which is escaped.
    """
    head = "".join(f"<th>{escape(title)}</th>" for title in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f'<td style="text-align:left;min-width:20em">{operator_boxes(value)}</td>'
    return f"<td>{escape(str(value))}</td>"


def html_paragraphs(lines: Iterable[str]) -> str:
    """Returns lines of text as paragraphs, escaped."""
    return "".join(f"<p>{escape(line)}</p>" for line in lines)
