"""The figure of a comparison of super-nets of cells: Kendall's tau over training."""

import math
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any

from matplotlib.figure import Figure

from ..drawing import GREY, INK, SERIES, clean


_MAX_COLUMNS = 4
# Grey is for the other methods.
_COLORS = tuple(INK if color == GREY else color for color in SERIES)


def draw_curves(points: Sequence[Mapping[str, Any]]) -> Figure:
    """Returns a figure of Kendall's tau over training, one panel per method.

    A panel shows the mean over seeds, the seeds as dots, and the means of the other methods in grey.
    """
    means = _means_by_method(points)
    num_columns = min(len(means), _MAX_COLUMNS)
    num_rows = math.ceil(len(means) / num_columns)
    figure = Figure(figsize=(max(5.0, 2.6 * num_columns), 0.9 + 2.3 * num_rows), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False).flat
    for index, (method, axes) in enumerate(zip(means, panels, strict=False)):
        color = _COLORS[index % len(_COLORS)]
        for other in means:
            axes.plot(*means[other], color=GREY, alpha=0.4, linewidth=1, zorder=1)
        own = [point for point in points if point["method"] == method]
        axes.plot([point["step"] for point in own], [point["tau_loss"] for point in own], ".", color=color, alpha=0.5)
        axes.plot(*means[method], color=color, linewidth=2.2)
        axes.set_title(method, fontsize="medium")
        clean(axes)
        # The lowest panel of each column, even if the last row is not full.
        axes.tick_params(labelbottom=index + num_columns >= len(means))
    for axes in list(figure.axes)[len(means) :]:
        axes.remove()
    figure.supxlabel("optimizer steps", fontsize="medium")
    figure.supylabel("Kendall's tau with the published accuracy", fontsize="medium")
    return figure


def _means_by_method(points: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[int], list[float]]]:
    """Returns for each method the steps and, at each, the mean of tau over the super-nets that rank children."""
    taus: dict[str, dict[int, list[float]]] = {}
    for point in points:
        by_step = taus.setdefault(point["method"], {})
        if math.isfinite(point["tau_loss"]):
            by_step.setdefault(point["step"], []).append(point["tau_loss"])
    return {
        method: (sorted(by_step), [mean(by_step[step]) for step in sorted(by_step)])
        for method, by_step in taus.items()
    }
