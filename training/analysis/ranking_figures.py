"""Figures of a ranking: shared-weight scores against the truth (Table 1), and tau over a swept argument (Fig. 4)."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, product
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import rankdata

from ..drawing import BLUE, GREEN, GREY, INK, RED, clean
from .ranking import Interval, MethodTau, RankingQuality, Scores, TruthNoise


# Labels for the swept arguments of the paper's Fig. 4.
_IN_WORDS = {"num_substitutions": "k, operators changed per step", "anchor_top_percent": "rank of the anchor, top p%"}


def draw_ranking(
    truth: Scores,
    scores: Scores,
    quality: RankingQuality,
    title: str = "",
    labels: tuple[str, str] = ("shared-weight score", "truth"),
) -> Figure:
    """Draws truth against score for each child, next to it the ranks in both, and tau with its interval.

    Args:
        truth: the true value of each child, higher is better.
        scores: the score that ranks each child, for the same children.
        quality: the result of `evaluate_ranking` for both.
        title: the title, such as the super-net's name.
        labels: axis labels of the score and of the truth.
    """
    children = sorted(truth)
    x, y = (np.array([values[child] for child in children]) for values in (scores, truth))
    figure = Figure(figsize=(9.2, 4.4), layout="constrained")
    values, ranks = figure.subplots(1, 2)
    first, best = np.lexsort((y, -x))[0], int(np.argmax(y))
    for axes, (horizontal, vertical) in ((values, (x, y)), (ranks, (rankdata(-x), rankdata(-y)))):
        clean(axes)
        axes.scatter(horizontal, vertical, s=18, color=BLUE, alpha=0.6, linewidths=0)
        axes.scatter(*_at(horizontal, vertical, first), s=90, marker="D", fc="none", ec=RED, label="ranked first")
        axes.scatter(*_at(horizontal, vertical, best), s=150, marker="*", color=GREEN, label="truly best")
    values.set(xlabel=labels[0], ylabel=labels[1])
    ranks.set(xlabel=f"rank by {labels[0]}", ylabel=f"rank by {labels[1]}")
    # Rank 1 is at the end of the highest values.
    ranks.invert_xaxis()
    ranks.invert_yaxis()
    low, high = quality.kendall_interval
    tau = f"Kendall's tau {quality.kendall_tau:.3f} ({low:.3f} to {high:.3f}), {quality.num_children} children"
    figure.suptitle(f"{title}\n{tau}" if title else tau, fontsize=10)
    figure.legend(*values.get_legend_handles_labels(), loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _at(x: np.ndarray, y: np.ndarray, index: int) -> tuple[list[float], list[float]]:
    return [float(x[index])], [float(y[index])]


def draw_methods(methods: Mapping[str, MethodTau], noise: TruthNoise | None = None) -> Figure:
    """Draws tau for each method: its super-nets as points, their mean with its interval, and the truth's ceiling."""
    figure = Figure(figsize=(7.2, 1.8 + 0.45 * len(methods)), layout="constrained")
    axes = figure.subplots()
    clean(axes)
    for row, method in enumerate(methods.values()):
        lengths = _lengths([method.mean], [method.interval])
        points, mean = ("a super-net", "mean and 95% interval") if row == 0 else (None, None)
        axes.plot(method.taus, [row] * len(method.taus), "o", color=BLUE, alpha=0.5, ms=5, lw=0, label=points)
        axes.errorbar([method.mean], [row], xerr=lengths, fmt="D", color=INK, label=mean)
    if noise is not None:
        _draw_ceiling(axes, noise, axes.get_xlim(), axes.axvline)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8)
    axes.set(xlabel="Kendall's tau", yticks=range(len(methods)), ylim=(len(methods) - 0.4, -0.6))
    # As in the paper's Fig. 4 (a).
    axes.set_yticklabels([name.replace("num_substitutions = ", "k = ") for name in methods], fontsize=8)
    return figure


@dataclass(frozen=True)
class SweepPoint:
    """Tau of the super-nets trained with one value of the swept argument.

    Attributes:
        value: the value of the argument.
        tau: Kendall's tau of the super-nets, one for each seed.
    """

    value: float | str
    tau: MethodTau


def draw_sweep(
    parameter: str,
    points: Sequence[SweepPoint],
    references: Mapping[str, MethodTau] | None = None,
    noise: TruthNoise | None = None,
) -> Figure:
    """Draws tau over the values of a training argument (Fig. 4a, 4b), with intervals, references and the ceiling.

    Args:
        parameter: the argument's name.
        points: the points in the order of the axis. If a value is not a number, they are evenly spaced.
        references: other methods, each drawn as a horizontal line with its interval on the right.
        noise: the seed noise of the truth, which sets the ceiling.
    """
    figure = Figure(figsize=(6.8, 4.4), layout="constrained")
    axes = figure.subplots()
    clean(axes)
    are_numbers = all(isinstance(point.value, int | float) for point in points)
    x = [float(point.value) if are_numbers else float(place) for place, point in enumerate(points)]
    for place, point in zip(x, points, strict=True):
        axes.plot([place] * len(point.tau.taus), point.tau.taus, "o", color=BLUE, alpha=0.4, ms=4, lw=0)
    means = [point.tau.mean for point in points]
    lengths = _lengths(means, [point.tau.interval for point in points])
    axes.errorbar(x, means, yerr=lengths, fmt="D-", color=BLUE, capsize=3, label="mean over super-nets, 95% interval")
    styles = product((":", "-.", (0, (1, 4))), (GREEN, "#cc79a7", "#e69f00", GREY))
    step = 0.06 * (max(x) - min(x) or 1.0)
    for number, ((style, color), (name, method)) in enumerate(
        zip(cycle(styles), (references or {}).items(), strict=False), 1
    ):
        axes.axhline(method.mean, color=color, linestyle=style, label=name)
        # Intervals are drawn to the right of the curve, next to each other: bands would cover the curve.
        ends = _lengths([method.mean], [method.interval])
        axes.errorbar([max(x) + number * step], [method.mean], yerr=ends, fmt="s", ms=4, color=color, capsize=3)
    if noise is not None:
        _draw_ceiling(axes, noise, axes.get_ylim(), axes.axhline)
    axes.set(xlabel=_IN_WORDS.get(parameter, parameter), ylabel="Kendall's tau")
    axes.set_xticks(x, [str(point.value) for point in points])
    figure.legend(loc="outside lower center", ncols=2, fontsize=8)
    return figure


def _draw_ceiling(axes: Axes, noise: TruthNoise, limits: Interval, line: Callable[..., Any]) -> None:
    low, high = limits
    label = f"ceiling of a truth with seed noise: {noise.ceiling:.2f}"
    style: dict[str, Any] = {"color": RED, "linestyle": "--"}
    if low < noise.ceiling < high + 0.5 * (high - low):
        line(noise.ceiling, label=label, **style)
    else:
        # A line so far away would press the points together.
        axes.plot([], [], label=f"{label}, outside the axis", **style)


def _lengths(means: Sequence[float], intervals: Sequence[Interval]) -> np.ndarray:
    """Returns the lengths of error bars on both sides, (2, points). A bootstrap interval need not contain its mean."""
    lows, highs = np.array(intervals).T
    return np.maximum(0.0, np.stack([np.array(means) - lows, highs - np.array(means)]))
