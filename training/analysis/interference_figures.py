"""Figures of interference: cosine matrices by operator and by kind (Fig. 2 a, b) and curves over m (Fig. 2 c)."""

import math
import textwrap
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..drawing import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, clean
from .interference import Estimate


# Distinguishable with common colour vision deficiencies; markers differ as well.
_COLORS = (BLUE, RED, GREEN, PURPLE, ORANGE, "#56b4e9", "#000000")
_MARKERS = "osD^vPX"

Cells = Sequence[Sequence[Estimate | None]]


def draw_matrices(
    operators: Sequence[str], cells: Cells, kinds: Sequence[str], kind_cells: Cells, title: str, note: str
) -> Figure:
    """Draws the cosine matrix by operator (Fig. 2 a, b) and next to it the means over pairs of kinds.

    Args:
        operators: the children's operators in the layer that differs, in the order of the rows.
        cells: the cosine of each pair of children.
        kinds: the kinds of operators, in the order of the rows of `kind_cells`.
        kind_cells: the mean cosine of pairs of different children, `None` if no pair has these kinds.
        title: what was measured, shown above both.
        note: how it was measured, shown below both.
    """
    size = 1.9 + 0.72 * len(operators)
    figure = Figure(figsize=(size + 2.4 + 0.9 * len(kinds), 0.6 + size), layout="constrained")
    widths = [size, 2.2 + 0.9 * len(kinds)]
    by_operator, by_kind = figure.subplots(1, 2, width_ratios=widths)
    values = [cell.mean for row in (*cells, *kind_cells) for cell in row if cell is not None]
    # Both share one colour scale, from the lowest cosine, rounded down, so that cosines that are all high differ.
    limits = (min(0.9, math.floor(10 * min(values)) / 10), 1.0)
    _draw_cells(by_operator, operators, cells, limits)
    by_operator.set(
        title="pairs of children", xlabel="operator of one child in that layer", ylabel="operator of the other child"
    )
    image = _draw_cells(by_kind, kinds, kind_cells, limits)
    by_kind.set_title("means over pairs of children by kind")
    figure.colorbar(image, ax=by_kind, label="cosine of the gradients on the shared operator", shrink=0.8)
    figure.suptitle(title, fontsize=11)
    _write_note(figure, note)
    return figure


def _write_note(figure: Figure, note: str) -> None:
    # About 15 letters of this size fit in an inch.
    figure.supxlabel("\n".join(textwrap.wrap(note, round(15 * figure.get_figwidth()))), fontsize=8)


def _draw_cells(axes: Axes, names: Sequence[str], cells: Cells, limits: tuple[float, float]):
    grid = [[math.nan if cell is None else cell.mean for cell in row] for row in cells]
    image = axes.imshow(grid, cmap="viridis", vmin=limits[0], vmax=limits[1])
    for row, own in enumerate(cells):
        for column, cell in enumerate(own):
            if cell is not None:
                is_dark = (cell.mean - limits[0]) / (limits[1] - limits[0]) < 0.55
                text = _cell_text(cell)
                axes.text(column, row, text, ha="center", va="center", size=8, color="white" if is_dark else "black")
            else:
                axes.text(column, row, "no\npair", ha="center", va="center", size=8, color=GREY)
    axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), names)
    return image


def _cell_text(cell: Estimate) -> str:
    if cell.high is None or cell.high == cell.low:
        return f"{cell.mean:.2f}"
    return f"{cell.mean:.2f}\n±{cell.high - cell.mean:.2f}"


def draw_curves(curves: Mapping[str, Sequence[tuple[int, Estimate]]], title: str, note: str) -> Figure:
    """Draws the mean cosine over the number of layers in which children differ, a curve per super-net (Fig. 2 c).

    Args:
        curves: for each name, pairs of m and the mean cosine. The shaded band is its interval.
        title: what was measured, shown above.
        note: how it was measured, shown below.
    """
    figure = Figure(figsize=(7.2, 5.0), layout="constrained")
    axes = figure.subplots()
    clean(axes)
    for index, (name, points) in enumerate(curves.items()):
        color, marker = _COLORS[index % len(_COLORS)], _MARKERS[index % len(_MARKERS)]
        numbers = [number for number, _ in points]
        axes.plot(numbers, [point.mean for _, point in points], color=color, marker=marker, markersize=4, label=name)
        lows = [point.mean if point.low is None else point.low for _, point in points]
        highs = [point.mean if point.high is None else point.high for _, point in points]
        axes.fill_between(numbers, lows, highs, color=color, alpha=0.15, linewidth=0)
    axes.set(
        title=title,
        xlabel="m, layers in which two children differ",
        ylabel="mean cosine of the gradients on the shared operator",
    )
    axes.title.set_fontsize(11)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if len(curves) > 1:
        axes.legend(frameon=False)
    _write_note(figure, note)
    return figure
