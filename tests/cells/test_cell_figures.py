import math
from statistics import mean

import pytest
from matplotlib.colors import same_color

from training.cells.cell_figures import draw_curves
from training.drawing import GREY


def points_of(num_methods: int) -> list[dict]:
    return [
        {"method": f"method {place}", "seed": seed, "step": step, "tau_loss": 0.1 * place + 0.01 * seed + step / 1000}
        for place in range(num_methods)
        for seed in range(2)
        for step in (200, 100)
    ]


@pytest.mark.parametrize("num_methods", [1, 3, 8])
def test_a_panel_shows_its_method_among_the_others(num_methods):
    points = points_of(num_methods)
    panels = draw_curves(points).axes
    assert [axes.get_title() for axes in panels] == [f"method {place}" for place in range(num_methods)]
    for axes in panels:
        own = [point for point in points if point["method"] == axes.get_title()]
        *others, dots, line = axes.lines
        assert len(others) == num_methods
        assert all(same_color(other.get_color(), GREY) for other in others)
        assert same_color(dots.get_color(), line.get_color())
        assert not same_color(line.get_color(), GREY)
        assert list(dots.get_ydata()) == [point["tau_loss"] for point in own]
        assert list(line.get_xdata()) == [100, 200]
        means = [mean(point["tau_loss"] for point in own if point["step"] == step) for step in (100, 200)]
        assert list(line.get_ydata()) == pytest.approx(means)


def test_a_super_net_that_does_not_rank_leaves_the_mean_of_the_others():
    points = points_of(2)
    for point in points:
        if point["method"] == "method 1" and (point["seed"] == 0 or point["step"] == 100):
            point["tau_loss"] = math.nan
    first, second = draw_curves(points).axes
    assert [list(axes.lines[-1].get_xdata()) for axes in (first, second)] == [[100, 200], [200]]
    assert list(second.lines[-1].get_ydata()) == pytest.approx([0.1 + 0.01 + 0.2])


def test_the_panels_have_one_scale():
    panels = draw_curves(points_of(5)).axes
    assert len(panels) == 5
    labelled = [axes.xaxis.get_tick_params()["labelbottom"] for axes in panels]
    assert labelled == [False, True, True, True, True]
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in panels}) == 1
