"""HTML that notebooks show."""

import pytest

from training.displays import KIND_COLORS, html_paragraphs, html_table, kind_of, operator_boxes


EVIL = "<script>alert('x')</script>"


@pytest.mark.parametrize(
    ("operator", "kind"),
    [("MHA12x96", "MHA"), ("FFN", "FFN"), ("CONV5", "CONV"), ("SKIP", None), ("nor_conv_3x3", None)],
)
def test_boxes_have_the_colour_of_their_kind(operator, kind):
    assert kind_of(operator) == kind
    box = operator_boxes([operator])
    assert f">{operator}</span>" in box
    assert [name for name, color in KIND_COLORS.items() if color in box] == ([kind] if kind else [])


def test_boxes_and_cells_stand_in_the_order_given():
    boxes = operator_boxes(("FFN", "MHA4"))
    assert boxes.index("FFN") < boxes.index("MHA4")
    table = html_table(("child", "loss"), [(("MHA4",), 1.5), (["SKIP"], "")])
    assert table.count("<tr>") == 3
    assert "<td>1.5</td>" in table
    assert operator_boxes(["SKIP"]) in table


def test_names_are_escaped():
    for shown in (
        operator_boxes([EVIL]),
        html_table([EVIL], [(EVIL,), ((EVIL,),)]),
        html_paragraphs([EVIL]),
    ):
        assert "<script" not in shown
        assert "&lt;script&gt;" in shown
