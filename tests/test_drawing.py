"""Figures become the same bytes each time, and whole files."""

import pytest
from matplotlib.figure import Figure

from training.drawing import clean, render, write_figure


def drawn() -> Figure:
    figure = Figure(figsize=(2, 2))
    axes = figure.subplots()
    clean(axes)
    axes.plot([0, 1], [1, 0])
    return figure


def test_clean_axes_have_no_frame_at_the_top_and_right():
    (axes,) = drawn().axes
    assert not axes.spines["top"].get_visible()
    assert not axes.spines["right"].get_visible()
    assert axes.spines["left"].get_visible()


@pytest.mark.parametrize(("name", "start"), [("a.png", b"\x89PNG"), ("a.svg", b"<?xml")])
def test_a_figure_is_a_file_of_the_format_of_its_name(tmp_path, name, start):
    assert write_figure(tmp_path / name, drawn(), dpi=50) == tmp_path / name
    content = (tmp_path / name).read_bytes()
    assert content.startswith(start)
    assert content == render(drawn(), name[-3:], dpi=50)


def test_a_figure_that_cannot_be_drawn_leaves_the_old_file(tmp_path):
    write_figure(tmp_path / "a.png", drawn(), dpi=50)
    before = (tmp_path / "a.png").read_bytes()
    broken = drawn()
    broken.text(0.5, 0.5, "$\\frac{$")
    with pytest.raises(ValueError, match="frac"):
        write_figure(tmp_path / "a.png", broken)
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]
