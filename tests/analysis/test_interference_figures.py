"""Figures of interference say what they are given: a cell for each pair, a curve for each super-net."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from training.analysis.interference import Estimate
from training.analysis.interference_figures import draw_curves, draw_matrices
from training.drawing import render


OPERATORS = ["MHA4", "FFN", "CONV3"]


def between(mean: float, length: float) -> Estimate:
    return Estimate(mean, mean - length, mean + length)


def matrix(cells=None, kind_cells=None, **texts: str) -> Figure:
    one, some, none = Estimate(1.0, 1.0, 1.0), between(0.5, 0.07), between(-0.25, 0.1)
    cells = cells or [[one, some, none], [some, one, some], [none, some, one]]
    kind_cells = kind_cells or [[None, some], [some, Estimate(0.75, None, None)]]
    texts = {"title": "The title", "note": "how it was measured", **texts}
    return draw_matrices(OPERATORS, cells, ["attention", "other"], kind_cells, **texts)


def shown(axes) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


def test_cells_hold_means_and_half_lengths_of_their_intervals():
    by_operator, by_kind, *_ = matrix().axes
    # A pair of equal children has no interval, nor has a mean of one repeat.
    assert shown(by_operator) == {
        **{(place, place): "1.00" for place in range(3)},
        **{(x, y): "0.50\n±0.07" for x, y in ((0, 1), (1, 0), (1, 2), (2, 1))},
        **{(x, y): "-0.25\n±0.10" for x, y in ((0, 2), (2, 0))},
    }
    assert shown(by_kind) == {(0, 0): "no\npair", (1, 0): "0.50\n±0.07", (0, 1): "0.50\n±0.07", (1, 1): "0.75"}
    assert [label.get_text() for label in by_operator.get_yticklabels()] == OPERATORS
    assert [label.get_text() for label in by_kind.get_xticklabels()] == ["attention", "other"]


def test_both_matrices_have_the_same_colours():
    by_operator, by_kind, *_ = matrix().axes
    # From the lowest value, rounded down, to 1.
    assert by_operator.images[0].get_clim() == by_kind.images[0].get_clim() == (-0.3, 1)
    assert by_operator.images[0].get_array()[2].tolist() == [-0.25, 0.5, 1.0]
    assert np.ma.getmaskarray(np.ma.masked_invalid(by_kind.images[0].get_array())).tolist() == [[1, 0], [0, 0]]
    for value, lowest in ((0.5, 0.5), (0.96, 0.9), (1.0, 0.9)):
        high = matrix([[between(value, 0.0)] * 3] * 3, [[between(value, 0.0)] * 2] * 2)
        assert high.axes[0].images[0].get_clim() == (lowest, 1)


def test_text_is_white_on_dark_cells_alone():
    by_operator, *_ = matrix().axes
    colors = {text.get_text()[:4]: text.get_color() for text in by_operator.texts}
    # viridis is dark at its lower end; the limits are -0.3 and 1.
    assert colors == {"1.00": "black", "0.50": "black", "-0.2": "white"}


def test_notes_are_wrapped_to_the_width():
    note = "a long note that says how all of it was measured " * 8
    figure = matrix(note=note)
    lines = figure.get_supxlabel().split("\n")
    assert len(lines) > 1
    assert " ".join(lines) == note.strip()
    assert max(map(len, lines)) <= round(15 * figure.get_figwidth())
    assert figure.get_suptitle() == "The title"
    assert render(figure, "png").startswith(b"\x89PNG")


def test_curves_stand_within_their_bands():
    points = [(1, between(0.8, 0.1)), (2, between(0.6, 0.05)), (4, Estimate(0.5, None, None))]
    (axes,) = draw_curves({"ours": points, "theirs": points[:2]}, "Title", "Note").axes
    ours, theirs = axes.lines
    assert (list(ours.get_xdata()), list(ours.get_ydata())) == ([1, 2, 4], [0.8, 0.6, 0.5])
    assert list(theirs.get_xdata()) == [1, 2]
    band = {tuple(vertex) for vertex in axes.collections[0].get_paths()[0].vertices.round(9).tolist()}
    # Without an interval the band closes on the curve.
    assert band == {(1, 0.7), (1, 0.9), (2, 0.55), (2, 0.65), (4, 0.5)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["ours", "theirs"]
    assert axes.get_title() == "Title"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_curves_are_told_apart_and_one_needs_no_legend():
    points = [(1, between(0.8, 0.1)), (2, between(0.6, 0.1))]
    (axes,) = draw_curves({f"run {number}": points for number in range(8)}, "Title", "Note").axes
    looks = [(line.get_color(), line.get_marker()) for line in axes.lines]
    assert (
        len(set(looks[:7])) == len({color for color, _ in looks[:7]}) == len({marker for _, marker in looks[:7]}) == 7
    )
    assert looks[7] == looks[0]
    (alone,) = draw_curves({"one": points}, "Title", "Note").axes
    assert alone.get_legend() is None


@pytest.mark.parametrize("length", [0.0, 0.2])
def test_an_interval_without_length_is_no_interval(length):
    cells = [[between(0.5, length)] * 3] * 3
    (text,) = {text.get_text() for text in matrix(cells).axes[0].texts}
    assert text == ("0.50\n±0.20" if length else "0.50")
