"""Figures of a search show every child, the front, the budget and the course of the search."""

import math
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from matplotlib.text import Text
from toy_report import CHILDREN, LIMIT, NAN, RANDOM, WINNER, single

from training.drawing import render
from training.search.figures import draw_history, draw_loss_against_cost, draw_operators_by_layer
from training.search.pareto import ReportChild, pareto_front


def scattered(figure: Figure) -> dict[str, set[tuple[float, float]]]:
    clouds = [artist for artist in figure.axes[0].collections if isinstance(artist, PathCollection)]
    return {
        str(cloud.get_label()): {(float(x), float(y)) for x, y in np.asarray(cloud.get_offsets())} for cloud in clouds
    }


def point(child: ReportChild) -> tuple[float, float]:
    return float(child.costs["num_parameters"]), child.val_loss


def test_loss_figure_shows_every_child_the_front_and_the_budget():
    figure = draw_loss_against_cost(CHILDREN, "num_parameters", WINNER, [(7_000_000, None), (None, LIMIT)])
    clouds = scattered(figure)
    for label, source in (("search", "search"), ("random control", "random"), ("BERT pattern", "BERT pattern")):
        assert clouds[label] == {point(child) for child in CHILDREN if child.source == source}
    winner = next(child for child in CHILDREN if child.architecture == WINNER)
    assert clouds["winner"] == {point(winner)}
    axes = figure.axes[0]
    lines = {line.get_label(): line for line in axes.lines}
    assert lines["Pareto front"].get_drawstyle() == "steps-post"
    front = list(zip(*lines["Pareto front"].get_data(), strict=True))
    assert front[:-1] == [point(child) for child in pareto_front(CHILDREN, ["num_parameters"])]
    shaded = sorted((patch.get_x(), patch.get_x() + patch.get_width()) for patch in axes.patches)
    low, high = axes.get_xlim()
    assert shaded == [(low, pytest.approx(7_000_000)), (LIMIT, pytest.approx(high))]
    bottom, top = axes.get_ylim()
    assert all(bottom < child.val_loss < top for child in CHILDREN)


def test_loss_axis_leaves_out_what_is_far_above_and_says_so():
    outliers = [replace(CHILDREN[0], val_loss=90.0, architecture=("FFN",) * 4) for _ in range(3)]
    figure = draw_loss_against_cost([*CHILDREN, *outliers], "num_parameters", WINNER)
    assert figure.axes[0].get_ylim()[1] < 5
    assert "3 children above" in [text.get_text() for text in figure.axes[0].texts]


def test_a_bert_pattern_on_its_plateau_does_not_press_the_children_into_a_line():
    children = [child for child in CHILDREN if child.source != "BERT pattern"]
    costs = {name: 10 * value for name, value in children[0].costs.items()}
    plateau = replace(single(source="BERT pattern", val_loss=60.0), costs=costs)
    near = replace(plateau, val_loss=max(child.val_loss for child in children) + 0.05)
    for draw in (
        lambda group: draw_loss_against_cost(group, "num_parameters", WINNER),
        lambda g: draw_history(g, WINNER),
    ):
        alone, beside, close = (draw(group).axes[0] for group in (children, [*children, plateau], [*children, near]))
        assert beside.get_ylim() == alone.get_ylim()
        assert beside.get_xlim() == alone.get_xlim()
        assert "BERT pattern above, at 60" in [text.get_text() for text in beside.texts]
        # The legend names it only where it is drawn.
        assert ["BERT pattern" in axes.get_legend_handles_labels()[1] for axes in (alone, beside, close)] == [
            False,
            False,
            True,
        ]
        # One near them is shown.
        assert close.get_ylim()[1] > near.val_loss
        assert not close.texts


def test_every_child_is_shown_or_counted():
    """A shown BERT pattern makes room for children that are far above the others as well."""
    costs = {name: 100.0 + number for number, name in enumerate(CHILDREN[0].costs)}
    losses = [3.5, 4.0, 4.0, 4.005, 4.01, 4.01, 4.04]
    children = [replace(CHILDREN[0], val_loss=loss, costs=costs, source="search") for loss in losses]
    far = replace(children[0], val_loss=4.3, costs={name: 10 * value for name, value in costs.items()})
    pattern = replace(children[0], val_loss=4.5, source="BERT pattern")
    axes = draw_loss_against_cost([*children, far, pattern], "num_parameters", WINNER).axes[0]
    assert axes.get_xlim()[1] > far.costs["num_parameters"]
    assert not axes.texts


def test_history_is_the_running_minimum_within_the_budget():
    losses = [5.0, 4.0, NAN, 1.0, 3.0, 3.5]
    children = [
        single(val_loss=loss, order=order, architecture=(f"FFNx{order}",), in_budget=order != 4)
        for order, loss in enumerate(losses, start=1)
    ]
    children += [single(source="random", order=1, val_loss=4.5), single(source="BERT pattern", val_loss=4.2)]
    lines = {line.get_label(): line for line in draw_history(children, ("FFNx5",)).axes[0].lines}
    assert list(zip(*lines["best so far, search"].get_data(), strict=True)) == [(1, 5), (2, 4), (5, 3), (6, 3), (6, 3)]
    assert list(zip(*lines["best so far, random control"].get_data(), strict=True)) == [(1, 4.5), (6, 4.5)]
    assert set(lines["BERT pattern"].get_ydata()) == {4.2}


def test_operator_shares_are_counted_by_layer():
    figure = draw_operators_by_layer(CHILDREN)
    distinct = {child.architecture: child for child in CHILDREN if child.in_budget}
    order = sorted(distinct.values(), key=lambda child: child.val_loss)
    best = [child.architecture for child in order[: math.ceil(len(distinct) / 10)]]
    for axes, group in zip(figure.axes, (best, list({child.architecture for child in RANDOM})), strict=True):
        assert f"{len(group)} children" in axes.get_title()
        names = [label.get_text() for label in axes.get_xticklabels()]
        shown = {text.get_position(): text.get_text() for text in axes.texts}
        for layer in range(4):
            counts = Counter(child[layer] for child in group)
            for column, name in enumerate(names):
                share = 100 * counts[name] / len(group)
                assert shown[column, layer] == (f"{share:.0f}%" if share else "\N{MIDDLE DOT}")


def long_search() -> list[ReportChild]:
    """A deep encoder with six operators of long names, and costs of ten digits."""
    names = ["MHA12x3072", "MHA8", "FFNx3200", "FFN", "CONV3x1536", "CONV5x1536"]
    return [
        ReportChild(
            tuple(names[(number * (layer + 1) + layer) % 6] for layer in range(26)),
            123.456 + number / 7,
            0.1,
            {"flops": 2.86e10 + 1e6 * number},
            "random" if number % 2 else "search",
            number // 2 + 1,
        )
        for number in range(40)
    ]


@pytest.mark.parametrize("draw", ["loss", "history", "operators"])
@pytest.mark.parametrize("children", [CHILDREN, long_search()], ids=["short", "long"])
def test_texts_of_figures_do_not_overlap(draw, children):
    winner = children[0].architecture
    cost = next(iter(children[0].costs))
    figure = {
        "loss": lambda: draw_loss_against_cost(children, cost, winner, [(None, children[0].costs[cost])]),
        "history": lambda: draw_history(children, winner),
        "operators": lambda: draw_operators_by_layer(children),
    }[draw]()
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text()]
    # Tick labels outside the limits are made and not drawn.
    ticks = {
        id(label)
        for axes in figure.axes
        for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim()))
        for tick, label in zip(axis.get_majorticklocs(), axis.get_ticklabels(), strict=False)
        if not min(limits) <= tick <= max(limits)
    }
    boxes = [
        (text.get_text(), text.get_window_extent(canvas.get_renderer())) for text in texts if id(text) not in ticks
    ]
    assert len(boxes) > 8
    frame = figure.bbox.padded(1)
    assert all(frame.contains(box.x0, box.y0) and frame.contains(box.x1, box.y1) for _, box in boxes)
    overlapping = [(a, b) for (a, one), (b, other) in combinations(boxes, 2) if one.padded(-0.5).overlaps(other)]
    assert not overlapping


def test_drawings_are_vectors_that_stay_small():
    children = [replace(child, order=order) for order, child in enumerate(CHILDREN * 40, start=1)]
    few, many = (render(draw_history(group, WINNER), "svg") for group in (CHILDREN, children))
    assert b"<image" not in few
    assert b"<image" in many
    assert len(many) < 300_000
    assert ElementTree.fromstring(many).tag.endswith("svg")
