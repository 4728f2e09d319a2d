"""Tables as Markdown."""

import pytest

from training.tables import counted, counted_children, markdown_table


def test_rows_stand_under_their_titles():
    assert markdown_table(("a", "b"), [(1, "x"), (2.5, None)], align="r") == (
        "| a | b |\n| ---: | --- |\n| 1 | x |\n| 2.5 | None |"
    )
    assert markdown_table(("a",), []) == "| a |\n| --- |"


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("a|b", "a\\|b"),
        ("a\nb", "a b"),
        ("a\r\u2028b", "a  b"),
        ("", ""),
        ("[1, 2] <= 3", "[1, 2] <= 3"),
        ("<script>", "\\<script>"),
        ("![x](http://y)", "!\\[x](http://y)"),
    ],
)
def test_what_would_end_a_cell_is_escaped(cell, shown):
    assert markdown_table(("t|",), [(cell,)]) == f"| t\\| |\n| --- |\n| {shown} |"


def test_one_thing_is_no_plural():
    assert [counted(number, "row") for number in (0, 1, 2, 2000)] == ["0 rows", "1 row", "2 rows", "2,000 rows"]
    assert [counted(number, "class", "classes") for number in (1, 2)] == ["1 class", "2 classes"]
    assert [counted_children(number) for number in (1, 10**6)] == ["1 child", "1,000,000 children"]
