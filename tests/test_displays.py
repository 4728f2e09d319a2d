"""HTML that notebooks show."""

from itertools import combinations

import numpy as np
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


# The colours as seen without one of the three kinds of cones (Machado et al., 2009), in linear RGB.
SEEN_BY = {
    "everyone": np.eye(3),
    "protanopes": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopes": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
    "tritanopes": np.array(
        [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]]
    ),
}


def lab(color: str, seen: np.ndarray) -> np.ndarray:
    """The coordinates of a colour in CIELAB, in which a difference of 2.3 is just noticeable."""
    rgb = np.array([int(color[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.clip(seen @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    x, y, z = np.cbrt(np.maximum(to_xyz @ linear / np.array([0.95047, 1, 1.08883]), 1e-3))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("who", SEEN_BY)
def test_kinds_of_operators_differ_in_colour_for(who):
    for one, other in combinations(KIND_COLORS.values(), 2):
        assert np.linalg.norm(lab(one, SEEN_BY[who]) - lab(other, SEEN_BY[who])) > 20
