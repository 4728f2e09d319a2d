"""Figures of a super-net run show its losses, its operators and its health."""

import math
from typing import Any

import matplotlib.colors
import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from training.drawing import BLUE, ORANGE
from training.supernet import figures
from training.supernet.figures import draw_health, draw_search


SPACE = [["MHA4", "FFN"], ["FFN", "CONV3"], ["MHA4", "FFN"]]
LOGS: list[dict[str, Any]] = [
    {"step": 10, "loss_pred": 5.0, "loss_align": 0.25},
    {"step": 15, "eval_loss": 4.9},
    {"step": 20, "loss_pred": 4.0, "loss_align": 0.125},
]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """What draws with a function and returns the figure, which is written as well."""
    seen: list[Figure] = []
    write = figures.write_figure

    def keep(path, figure, **options):
        seen.append(figure)
        return write(path, figure, **options)

    monkeypatch.setattr(figures, "write_figure", keep)

    def draw(function, *given) -> Figure:
        path = function(*given, tmp_path / "figure.png")
        assert path.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        return seen[-1]

    return draw


def search_of(**changes: Any) -> dict[str, Any]:
    deleted = [{"step": 8, "deleted": [(0, "MHA4")]}, {"step": 16, "deleted": [(1, "FFN")]}]
    return {
        "candidate_operators": SPACE,
        "shrink_history": deleted,
        "anchor_history": [{"step": 3}, {"step": 12}],
        "architecture": ["FFN", "CONV3", "MHA4"],
        "log_history": LOGS,
        **changes,
    }


def lines_of(axes) -> dict[str, list[tuple[float, float]]]:
    return {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in axes.lines}


def texts_of(axes) -> dict[tuple[float, float], str]:
    return {text.get_position(): text.get_text() for text in axes.texts}


# ---- Losses and operators ----


def test_losses_stand_at_their_steps_and_alignment_has_an_axis_of_its_own(drawn):
    supernet, _, right = drawn(draw_search, search_of(), {}).axes
    assert lines_of(supernet) == {"prediction loss": [(10, 5.0), (20, 4.0)]}
    assert lines_of(right) == {"alignment loss": [(10, 0.25), (20, 0.125)]}
    assert right.get_ylim()[0] == 0
    assert [text.get_text() for text in supernet.get_legend().get_texts()] == ["prediction loss", "alignment loss"]


def test_without_alignment_there_is_no_second_axis(drawn):
    logs = [{**entry, "loss_align": 0.0} for entry in LOGS]
    assert len(drawn(draw_search, search_of(log_history=logs), {}).axes) == 2


def test_a_block_wise_run_shows_its_loss(drawn):
    supernet, *_ = drawn(draw_search, search_of(log_history=[{"step": 2, "loss": 7.0}]), {}).axes
    assert lines_of(supernet) == {"sum of block losses": [(2, 7.0)]}
    assert supernet.get_ylabel() == "squared error"


def test_trained_children_are_compared_at_equal_compute(drawn):
    def result(flops, *losses):
        history = [{"step": 5 * number, "loss": loss} for number, loss in enumerate(losses, 1)]
        return {"log_history": history, "steps": 10, "training_flops": flops}

    trained = {"found": [result(100.0, 3.0, 2.0), result(100.0, 3.1, 2.1)], "BERT pattern": [result(40.0, 4.0, 3.5)]}
    _, children, *_ = drawn(draw_search, search_of(), trained).axes
    curves = [(list(line.get_xdata()), list(line.get_ydata())) for line in children.lines]
    assert curves == [([50, 100], [3.0, 2.0]), ([50, 100], [3.1, 2.1]), ([20, 40], [4.0, 3.5])]
    assert [text.get_text() for text in children.get_legend().get_texts()] == ["found", "BERT pattern"]
    # One colour for all seeds of a child.
    assert [line.get_color() for line in children.lines] == [BLUE, BLUE, ORANGE]


def test_a_panel_without_content_is_left_out(drawn):
    (supernet, right) = drawn(draw_search, search_of(shrink_history=[]), {}).axes
    assert supernet.get_title() == "super-net"
    assert right.get_ylabel().startswith("alignment")
    titles = [axes.get_title() for axes in drawn(draw_health, search_of(health=health_of(probes=[]))).axes]
    assert "probe children" not in titles
    assert "distance between consecutive children" in titles
    # Two heat maps with their colour bars, and the distances; no empty axes.
    assert len(titles) == 5


def test_a_steep_start_leaves_room_for_the_end(drawn):
    losses = [8.0, 7.0, 5.0, 4.9, 4.8, 4.8, 4.7, 4.7, 4.6, 4.6]
    logs = [{"step": step, "loss_pred": loss} for step, loss in enumerate(losses)]
    (supernet,) = drawn(draw_search, search_of(log_history=logs, shrink_history=[]), {}).axes
    low, high = supernet.get_ylim()
    assert 4.5 < low < 4.6
    assert 5.0 < high < 5.1
    assert supernet.get_ylabel() == "masked-LM loss (the start is cut off)"
    # A loss that does not fall first keeps the full range.
    logs = [{"step": step, "loss_pred": loss} for step, loss in enumerate([4.0, 4.0, 5.0, 8.0, 8.0])]
    (supernet,) = drawn(draw_search, search_of(log_history=logs, shrink_history=[]), {}).axes
    assert supernet.get_ylim()[1] > 8
    assert supernet.get_ylabel() == "masked-LM loss"


def test_operators_have_the_step_that_deleted_them(drawn):
    _, operators, *_ = drawn(draw_search, search_of(), {}).axes
    names = [label.get_text() for label in operators.get_yticklabels()]
    assert names == ["MHA4", "FFN", "CONV3"]
    shown = {(x, names[int(y)]): text for (x, y), text in texts_of(operators).items()}
    assert shown == {
        (0, "MHA4"): "8",
        (0, "FFN"): "left",
        (1, "FFN"): "16",
        (1, "CONV3"): "left",
        (2, "MHA4"): "left",
        (2, "FFN"): "left",
    }
    assert "found: FFN,CONV3,MHA4" in operators.get_title()
    # The later, the darker; blank where a layer lacks the operator.
    shades = operators.images[0].get_array()
    assert np.ma.filled(shades, np.nan)[:2, :2].tolist() == [[0.5, pytest.approx(math.nan, nan_ok=True)], [1.0, 1.0]]


# ---- Health ----


def health_of(**changes: Any) -> dict[str, Any]:
    visits = [{"MHA4": 6, "FFN": 2}, {"FFN": 4, "CONV3": 4}, {"MHA4": 8, "FFN": 0}]
    fair = [{"MHA4": 4.0, "FFN": 4.0}, {"FFN": 4.0, "CONV3": 4.0}, {"MHA4": 8.0, "FFN": 0.0}]
    norms = [{name: {"mean": 0.5, "steps": count} for name, count in layer.items()} for layer in visits]
    norms[0]["FFN"]["mean"] = 2.0
    return {
        "visits": visits,
        "fair_visits": fair,
        "gradient_norms": norms,
        "warnings": [{"step": 3, "layer": 1, "operator": "CONV3", "problem": "starved"}],
        "distances": [0, 5, 2, 1],
        "probes": [
            {"architecture": ["FFN", "FFN", "FFN"], "steps": [2, 4, 6], "val_losses": [5.0, None, 3.0]},
            {"architecture": ["MHA4", "CONV3", "FFN"] * 9, "steps": [2], "val_losses": [6.0]},
        ],
        **changes,
    }


def test_visits_are_in_units_of_uniform_sampling(drawn):
    visits, norms, *_ = drawn(draw_health, search_of(health=health_of())).axes
    nan = math.nan
    # Rows are MHA4, FFN and CONV3; what is never visited under fairness either has no share.
    expected = [[1.5, nan, 1.0], [0.5, 1.0, nan], [nan, 1.0, nan]]
    np.testing.assert_array_equal(np.ma.filled(visits.images[0].get_array(), nan), expected)
    # An operator that no step has trained has no norm.
    expected = [[0.5, nan, 0.5], [2.0, 0.5, nan], [nan, 0.5, nan]]
    np.testing.assert_array_equal(np.ma.filled(norms.images[0].get_array(), nan), expected)


def test_operators_warned_of_are_framed(drawn):
    figure = drawn(draw_health, search_of(health=health_of()))
    for axes in figure.axes[:2]:
        (frame,) = (patch for patch in axes.patches if isinstance(patch, Rectangle))
        # Layer 1, the third name.
        assert (frame.get_x(), frame.get_y()) == (0.5, 1.5)
        assert matplotlib.colors.same_color(frame.get_edgecolor(), "red")
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["warning"]
    quiet = drawn(draw_health, search_of(health=health_of(warnings=[])))
    assert not quiet.legends
    assert not any(axes.patches for axes in quiet.axes[:2])


def test_one_huge_norm_does_not_hide_the_others(drawn):
    layers = [["FFN", "CONV3"]] * 50
    norms = [{name: {"mean": 1.0, "steps": 1} for name in layer} for layer in layers]
    norms[7]["FFN"]["mean"] = 1e6
    counts = [dict.fromkeys(layer, 1) for layer in layers]
    health = health_of(gradient_norms=norms, visits=counts, fair_visits=counts, warnings=[])
    _, axes, *_ = drawn(draw_health, search_of(candidate_operators=layers, health=health)).axes
    assert axes.images[0].get_clim() == (0, 1.0)


def test_distances_and_probes(drawn):
    _, _, distances, probes, *_ = drawn(draw_health, search_of(health=health_of())).axes
    bars = {bar.get_x() + bar.get_width() / 2: bar.get_height() for bar in distances.patches}
    assert bars == pytest.approx({0: 0, 1: 5, 2: 2, 3: 1})
    first, second = probes.lines
    # A loss that was not finite is a gap.
    np.testing.assert_array_equal(first.get_data(), [[2, 4, 6], [5.0, math.nan, 3.0]])
    assert first.get_label() == "FFN,FFN,FFN"
    assert second.get_label() == "MHA4,CONV3,FFN,MHA4,CONV3,FFN,MHA4,CO..."
    ticks = {one.get_label(): sorted(segment[0, 0] for segment in one.get_segments()) for one in probes.collections}
    assert ticks == {"anchor changed": [3, 12], "operators deleted": [8, 16]}


def test_a_run_that_has_seen_nothing_is_drawn(drawn):
    nothing = [dict.fromkeys(layer, 0) for layer in SPACE]
    norms = [{name: {"mean": 0.0, "steps": 0} for name in layer} for layer in SPACE]
    health = health_of(
        visits=nothing, fair_visits=nothing, gradient_norms=norms, warnings=[], probes=[], distances=[0, 0]
    )
    figure = drawn(draw_health, search_of(health=health, shrink_history=[], anchor_history=[]))
    assert np.ma.getmaskarray(np.ma.masked_invalid(figure.axes[0].images[0].get_array())).all()
    assert "probe children" not in [axes.get_title() for axes in figure.axes]


def test_a_run_too_short_to_log_a_loss_is_not_drawn_as_another_kind(drawn):
    (supernet,) = drawn(draw_search, search_of(log_history=[], shrink_history=[]), {}).axes
    assert [text.get_text() for text in supernet.texts] == ["no loss was logged in so short a run"]
    assert not supernet.axison
    assert not supernet.get_title()
