"""The table, the verdict and the figure of a compression."""

import json
import math
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from training.compression.compression_report import (
    BEST_DROPS,
    CHECKPOINT,
    CHECKPOINT_INT8,
    EQUAL_STEPS,
    FOUND,
    FOUND_INT8,
    ROLES,
    CompressionResult,
    ModelRow,
    compression_table,
    draw_compression,
    verdict,
)


CHAIN = ("MHA12", "FFN") * 6
TASK = "STS-B (Spearman x 100)"
# (latency, loss, task) of the winner and of its controls, in the order of `ROLES`, at four budgets.
FIGURES = {
    "latency-0.5x": [(0.5, 0.08, 81.1), (0.5, 0.08, 81.0), (0.5, 0.08, 80.9), (0.5, 0.22, 76.8), (0.53, 0.1, 81.4)],
    "latency-0.36x": [(0.36, 0.11, 81), (0.34, 0.13, 79.7), (0.34, 0.12, 80), (0.35, 0.15, 79.2), (0.38, 0.14, 80.4)],
    "latency-0.25x": [(0.24, 0.144, 80.3), (0.24, 0.2, 78.0), (0.24, 0.14, 79.8), (0.24, 0.21, 77.5)],
    "latency-0.9x": [(0.9, 0.02, 81.9), (0.89, 0.018, 81.8), (0.91, 0.018, 81.95), (0.85, 0.05, 81.0)],
}


def row(role: str, member: str = "latency-0.4x", **changes) -> ModelRow:
    values = {
        "architecture": ("MHA6x192", "FFNx384", "FFN"),
        "num_parameters": 15_660_000,
        "flops": 3.6e8,
        "steps": 800,
        "loss": 0.108,
        "score": 0.964,
        "tasks": {TASK: 81.02},
        "padded": (0.355, 0.34, 0.36),
        "unpadded": (0.404, 0.4, 0.41),
    }
    return ModelRow(role=role, member=member, **{**values, **changes})


CHECKPOINT_ROW = row(
    CHECKPOINT,
    "",
    architecture=CHAIN,
    num_parameters=22_500_000,
    flops=1e9,
    steps=0,
    loss=0.0,
    score=1.0,
    tasks={TASK: 82.03},
    padded=(1.0, 1.0, 1.0),
    unpadded=(1.0, 1.0, 1.0),
)


def family(*members: str, **changes) -> list[ModelRow]:
    """A run with all there may be in a figure: controls, the best drops at equal steps as well, and int8."""
    rows = [CHECKPOINT_ROW, replace(CHECKPOINT_ROW, role=CHECKPOINT_INT8, padded=(0.6, 0.6, 0.6), loss=0.01)]
    for member in members:
        for role, (latency, loss, task) in zip([FOUND, *ROLES], FIGURES[member], strict=False):
            rows.append(row(role, member, padded=(latency,) * 3, loss=loss, score=1 - loss / 3, tasks={TASK: task}))
        rows.append(row("random", member, loss=0.3, score=0.9, tasks={TASK: 76.0}))
        rows += [replace(rows[-1], role=f"{role}{EQUAL_STEPS}", loss=0.25) for role in BEST_DROPS]
        rows.append(replace(rows[-1], role=FOUND_INT8, loss=0.1, padded=(0.2, 0.2, 0.2)))
    return [replace(one, **changes) for one in rows]


# ---- Table ----


def test_a_table_has_a_row_for_each_model_and_a_column_for_each_task():
    rows = [CHECKPOINT_ROW, row(FOUND), row("block_drop", architecture=("MHA12", "FFN") * 2, tasks={"another": 3.456})]
    rows.append(row(FOUND_INT8, padded=None, unpadded=None))
    lines = compression_table(rows, "1 - cosine", "similarity correlation").splitlines()
    assert lines == [
        "| model | operators | parameters | FLOPs | latency, padded | unpadded | steps | 1 - cosine "
        f"| similarity correlation | {TASK} | another |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| checkpoint | (MHA12,FFN)*6 | 22.50M | 1.00x | 1.00x | 1.00x |  | 0.0000 | 1.000 | 82.03 |  |",
        "| **latency-0.4x: found** | MHA6x192,FFNx384,FFN | 15.66M | 0.36x | 0.35x | 0.40x | 800 | 0.1080 | 0.964 "
        "| 81.02 |  |",
        "| latency-0.4x: best drop of blocks | (MHA12,FFN)*2 | 15.66M | 0.36x | 0.35x | 0.40x | 800 | 0.1080 | 0.964 "
        "|  | 3.46 |",
        "| latency-0.4x: found, int8 | MHA6x192,FFNx384,FFN | 15.66M | 0.36x |  |  | 800 | 0.1080 | 0.964 "
        "| 81.02 |  |",
    ]


def test_rows_are_kept_as_json():
    values = json.loads(json.dumps(row(FOUND).to_json()))
    assert values["role"] == FOUND
    assert values["padded"] == [0.355, 0.34, 0.36]


# ---- Verdict ----

DROP = ("MHA12", "FFN") * 2


def drop(role: str, loss: float, **changes) -> ModelRow:
    return row(role, loss=loss, architecture=changes.pop("architecture", DROP), tasks={TASK: 79.654}, **changes)


def test_a_lower_loss_than_the_best_drop_is_better():
    rows = [
        CHECKPOINT_ROW,
        drop("block_drop", 0.131),
        drop("sublayer_drop", 0.124),
        drop("evenly_spaced_blocks", 0.2),
        row("one_width", loss=0.05),
        row("random", loss=0.06),
        row(FOUND, loss=0.1081),
        row(FOUND, "latency-0.2x", loss=0.9),
        drop("block_drop", 0.01, member="latency-0.2x"),
    ]
    assert verdict(rows, "latency-0.4x") == (
        "latency-0.4x: better than dropping blocks or layers: its loss is 0.1081, that of the best drop "
        f"of layers at equal compute 0.1240; {TASK} 81.02 against 79.65. But at equal compute the child of one width "
        "has 0.0500 and a random child has 0.0600."
    )
    assert verdict(rows, "latency-0.2x").startswith(
        "latency-0.2x: no better than dropping blocks or layers: its loss is 0.9000"
    )


@pytest.mark.parametrize("loss", [0.124, 0.125, math.nan, math.inf])
def test_an_equal_or_higher_loss_is_no_better(loss):
    rows = [row(FOUND, loss=loss, tasks={}), drop("block_drop", 0.124), drop("evenly_spaced_blocks", 0.3)]
    assert verdict(rows, "latency-0.4x") == (
        f"latency-0.4x: no better than dropping blocks or layers: its loss is {loss:.4f}, that of the best drop "
        "of blocks at equal compute 0.1240."
    )


@pytest.mark.parametrize("order", [1, -1])
def test_a_drop_that_has_diverged_is_not_the_best_one(order):
    drops = [drop("block_drop", math.nan), drop("sublayer_drop", 0.2)][::order]
    assert verdict([row(FOUND), *drops], "latency-0.4x").startswith(
        "latency-0.4x: better than dropping blocks or layers"
    )
    assert "no better" in verdict([row(FOUND, loss=0.3), *drops], "latency-0.4x")
    assert "0.2000" in verdict([row(FOUND), *drops], "latency-0.4x")
    assert ": better" in verdict([row(FOUND), drop("block_drop", math.nan)], "latency-0.4x")


@pytest.mark.parametrize("loss", [0.1, 0.3])
def test_a_drop_that_was_found_is_no_better_than_dropping(loss):
    """Whichever of the drops has its operators, and whatever more steps have made of that one."""
    other = drop("sublayer_drop", 0.15, architecture=("MHA12", "MHA12", "FFN"))
    rows = [row(FOUND, loss=loss, architecture=DROP), drop("block_drop", 0.2), other]
    assert verdict(rows, "latency-0.4x") == (
        f"latency-0.4x: no better than dropping layers, since the found child is such a drop: its loss is {loss:.4f}, "
        f"that of the best drop of layers at equal compute 0.1500; {TASK} 81.02 against 79.65."
    )


def test_without_drops_there_is_nothing_to_compare_with():
    assert verdict([row(FOUND), row("one_width")], "latency-0.4x") == (
        "latency-0.4x: no drop of blocks or layers is within the budget, so there is nothing to compare with."
    )


# ---- Figure ----


def overlapping_texts(figure: Figure) -> list[tuple[str, str]]:
    """The pairs of texts of a figure, legend and axes, of which one covers a part of the other."""
    FigureCanvasAgg(figure).draw()
    texts = [text for axes in figure.axes for text in (axes.title, axes.xaxis.label, axes.yaxis.label)]
    for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        texts += [tick.label1 for tick in axis.get_major_ticks() if low <= tick.get_loc() <= high]
    texts += [text for legend in figure.legends for text in legend.get_texts()]
    boxes = [(text.get_text(), text.get_window_extent()) for text in texts if text.get_text()]
    return [(one, other) for (one, a), (other, b) in combinations(boxes, 2) if a.overlaps(b)]


@pytest.mark.parametrize("members", [["latency-0.36x"], list(FIGURES)])
@pytest.mark.parametrize("tasks", [True, False])
def test_figures_are_legible_with_one_budget_and_with_four(members, tasks):
    rows = family(*members) if tasks else family(*members, tasks={})
    figure = draw_compression(rows, "1 - cosine", "similarity correlation")
    assert overlapping_texts(figure) == []
    (legend,) = figure.legends
    # The legend is beside the panels, so that it hides no model.
    assert not any(axes.bbox.overlaps(legend.get_window_extent()) for axes in figure.axes)
    assert all(figure.bbox.containsx(x) for x in (legend.get_window_extent().x0, legend.get_window_extent().x1))
    loss_axes, score_axes = figure.axes
    assert loss_axes.get_title() == "1 - cosine, held-out text (lower is better, axis inverted)"
    expected = TASK if tasks else "similarity correlation, held-out text"
    assert score_axes.get_title() == f"{expected} (higher is better)"
    assert loss_axes.yaxis_inverted()
    assert not score_axes.yaxis_inverted()
    assert {axes.get_xlabel() for axes in figure.axes} == {"latency relative to the checkpoint, padded (log scale)"}
    assert {axes.get_xscale() for axes in figure.axes} == {"log"}


def points(figure: Figure, panel: int) -> dict[str, list[tuple[float, float]]]:
    lines = {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[panel].lines}
    return {label: [(x, y) for x, y in places.tolist()] for label, places in lines.items()}


def test_models_stand_at_their_latency_their_loss_and_their_score():
    rows = family("latency-0.5x", "latency-0.36x")
    figure = draw_compression(rows, "1 - cosine", "similarity correlation")
    losses, scores = points(figure, 0), points(figure, 1)
    assert losses["found"] == [(0.36, 0.11), (0.5, 0.08)]
    assert scores["found"] == [(0.36, 81), (0.5, 81.1)]
    assert scores["checkpoint"] == [(1.0, 82.03)]
    assert scores["one width"] == [(0.38, 80.4), (0.53, 81.4)]
    assert points(draw_compression(family("latency-0.36x", tasks={}), "a", "b"), 1)["found"] == [(0.36, 1 - 0.11 / 3)]


def test_without_latency_models_stand_at_their_flops():
    rows = [CHECKPOINT_ROW, row(FOUND, padded=None), row("random", padded=None, flops=2e8)]
    figure = draw_compression(rows, "1 - cosine", "similarity correlation")
    assert points(figure, 0)["found"] == [(0.36, 0.108)]
    assert points(figure, 0)["random child"] == [(0.2, 0.108)]
    assert figure.axes[0].get_xlabel() == "FLOPs relative to the checkpoint (log scale)"


def test_a_model_whose_latency_alone_is_missing_is_left_out():
    rows = [CHECKPOINT_ROW, row(FOUND), row("random", padded=None)]
    assert set(points(draw_compression(rows, "a", "b"), 0)) == {"checkpoint", "found"}


def test_a_loss_that_rounding_put_below_zero_is_shown_as_none():
    table = compression_table([row(CHECKPOINT, "", loss=-1e-9)], "1 - cosine", "similarity correlation")
    assert " 0.0000 " in table
    assert "-0.0000" not in table


# ---- What a notebook shows ----


def test_a_result_is_shown_as_its_table_and_its_verdicts():
    rows = [
        CHECKPOINT_ROW,
        row(FOUND, architecture=("MHA6", "SKIP", "FFN"), tasks={"<script>": 81.0}),
        row("block_drop", loss=0.2),
    ]
    models = json.loads(json.dumps([one.to_json() for one in rows]))
    verdicts = ["latency-0.4x: better than <b>dropping</b> blocks."]
    latency = {"warnings": ["the machine was <b>busy</b>"]}
    result = CompressionResult(
        checkpoint="minilm", models=models, verdicts=verdicts, latency=latency, loss_name="1 - cosine"
    )
    assert repr(result) == f"CompressionResult of minilm\n{verdicts[0]}"
    shown = result._repr_html_()
    assert shown.count("<tr>") == 1 + len(rows)
    for expected in (
        "<th>1 - cosine</th>",
        "<th>&lt;script&gt;</th>",
        "<td>latency-0.4x: found</td>",
        "<td>0.2000</td>",
    ):
        assert expected in shown
    assert "<p>warning: the machine was &lt;b&gt;busy&lt;/b&gt;</p>" in shown
    assert "SKIP" not in shown
    assert "<b>" not in shown
    assert "<script" not in shown
