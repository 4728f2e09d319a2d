"""Figures of a search: loss against cost, operators by layer among the best, and the best so far."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from ..drawing import BLUE, INK, ORANGE, RED, clean
from ..space.search_space import Architecture
from .pareto import COST_LABELS, ReportChild, Source, distinct_children, known_cost, pareto_front


# Markers differ as well, for readers who cannot tell the colors apart.
SOURCE_STYLES: dict[Source, tuple[str, str]] = {
    "random": (ORANGE, "^"),
    "search": (BLUE, "o"),
    "BERT pattern": (RED, "D"),
}

SOURCE_NAMES: dict[Source, str] = {
    "random": "random control",
    "search": "search",
    "BERT pattern": "BERT pattern",
}

# A vector figure grows with the number of points; more points than this are rasterized inside it.
_VECTOR_POINTS = 300

Window = tuple[float | None, float | None]


def draw_loss_against_cost(
    children: Sequence[ReportChild], cost: str, winner: Architecture, windows: Sequence[Window] = ()
) -> Figure:
    """Draws each evaluated child at its cost and loss, with the front, the controls, the winner and the budget.

    Args:
        children: all evaluations; those without a finite loss or without the cost are not drawn.
        cost: name of the cost.
        winner: the architecture to mark.
        windows: smallest and largest value of this cost that the budget allows; the area outside is shaded.
    """
    figure, axes = _figure()
    drawn = [child for child in children if known_cost(child, cost) is not None and math.isfinite(child.val_loss)]
    shown = _window_losses(axes, drawn)
    for source in SOURCE_STYLES:
        _scatter(axes, [child for child in shown if child.source == source], lambda child: child.costs[cost])
    _window_costs(axes, [child.costs[cost] for child in shown])
    _shade_outside(axes, windows)
    front = pareto_front(drawn, [cost])
    if front:
        # To the right of a point on the front, its loss is available at any higher cost.
        x = [child.costs[cost] for child in front] + [axes.get_xlim()[1]]
        y = [child.val_loss for child in front] + [front[-1].val_loss]
        axes.plot(x, y, drawstyle="steps-post", color=INK, linewidth=1.2, label="Pareto front", zorder=3)
    for child in distinct_children(child for child in drawn if child.architecture == winner):
        _mark_winner(axes, child.costs[cost], child.val_loss)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.xaxis.set_major_locator(MaxNLocator(7))
    axes.set(xlabel=COST_LABELS.get(cost, cost), ylabel="validation loss, shared weights")
    _finish(figure, axes, empty=not drawn)
    return figure


def _figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(6.4, 4.6), layout="constrained")
    axes = figure.subplots()
    clean(axes)
    return figure, axes


def _scatter(
    axes: Axes, children: Sequence[ReportChild], x: Callable[[ReportChild], float], faint: bool = False
) -> None:
    if not children:
        return
    source = children[0].source
    color, marker = SOURCE_STYLES[source]
    is_control = source == "BERT pattern"
    axes.scatter(
        [x(child) for child in children],
        [child.val_loss for child in children],
        s=55 if is_control else 7 if faint else 18,
        color=color,
        marker=marker,
        alpha=1 if is_control else 0.25 if faint else 0.55,
        linewidths=1 if is_control else 0,
        edgecolors="white" if is_control else "none",
        label=None if faint else SOURCE_NAMES[source],
        rasterized=len(children) > _VECTOR_POINTS,
        zorder=4 if is_control else 2,
    )


def _mark_winner(axes: Axes, x: float, y: float) -> None:
    axes.scatter(
        [x], [y], s=190, marker="*", color="#009e73", edgecolors=INK, linewidths=0.8, label="winner", zorder=5
    )


def _window_losses(axes: Axes, children: Sequence[ReportChild]) -> list[ReportChild]:
    """Limits the loss axis to most of the children, notes what lies above it, and returns the children shown.

    A few very bad children, or a BERT pattern that is still on its plateau, would press all others into a line.
    """
    if not children:
        return []
    others = [child.val_loss for child in children if child.source != "BERT pattern"]
    losses = others or [child.val_loss for child in children]
    lower_quartile, upper_quartile = np.quantile(losses, [0.25, 0.75])
    fence = upper_quartile + 3 * (upper_quartile - lower_quartile)
    low, high = min(losses), max(loss for loss in losses if loss <= fence)
    # The BERT pattern is what the others are compared with, so it has as much room again.
    shown = [
        child
        for child in children
        if child.val_loss <= (2 * high - low if child.source == "BERT pattern" and others else fence)
    ]
    low, high = min(child.val_loss for child in shown), max(child.val_loss for child in shown)
    margin = 0.06 * (high - low) or 0.01 * abs(low) or 0.01
    top = high + margin
    axes.set_ylim(low - margin, top)
    _note_above(axes, [child for child in children if child.val_loss > top])
    return [child for child in children if child.val_loss <= top]


def _note_above(axes: Axes, children: Sequence[ReportChild]) -> None:
    patterns = [child for child in children if child.source == "BERT pattern"]
    above = len(children) - len(patterns)
    notes = [f"{above:,} {'child' if above == 1 else 'children'} above"] if above else []
    notes += [f"BERT pattern above, at {child.val_loss:.3g}" for child in patterns]
    if notes:
        text = "; ".join(notes)
        axes.text(0.99, 1.01, text, transform=axes.transAxes, ha="right", va="bottom", size=8, color="#555555")


def _window_costs(axes: Axes, costs: Sequence[float]) -> None:
    """Limits the cost axis to the children that the loss axis shows."""
    if costs:
        low, high = min(costs), max(costs)
        margin = 0.05 * (high - low) or 0.01 * abs(low)
        axes.set_xlim(low - margin, high + margin)


def _shade_outside(axes: Axes, windows: Sequence[Window]) -> None:
    low, high = axes.get_xlim()
    width = high - low
    bounds = [bound for window in windows for bound in window if bound is not None]
    # Leave room beyond a bound to show its shaded side; a bound far away would squeeze the children together.
    near = [bound for bound in bounds if low - width <= bound <= high + width]
    low = min([low, *(bound - 0.06 * width for bound in near)])
    high = max([high, *(bound + 0.06 * width for bound in near)])
    axes.set_xlim(low, high)
    for minimum, maximum in windows:
        if minimum is not None and minimum > low:
            _shade(axes, low, minimum, line=minimum)
        if maximum is not None and maximum < high:
            _shade(axes, maximum, high, line=maximum)


def _shade(axes: Axes, left: float, right: float, line: float) -> None:
    is_first = "outside the budget" not in axes.get_legend_handles_labels()[1]
    label = "outside the budget" if is_first else None
    axes.axvspan(left, right, facecolor="#eeeeee", edgecolor="#bbbbbb", hatch="//", lw=0, zorder=0, label=label)
    axes.axvline(line, color="#777777", linewidth=1, zorder=1)


def _finish(figure: Figure, axes: Axes, empty: bool) -> None:
    """Puts the legend below the axes, where it covers no point, and a note in the axes if there is nothing to see."""
    if empty:
        axes.text(0.5, 0.5, "no child with a finite loss", ha="center", va="center", transform=axes.transAxes)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=9, frameon=False)


def draw_history(children: Sequence[ReportChild], winner: Architecture) -> Figure:
    """Draws the lowest loss within the budget so far against the number of evaluations, for search and random."""
    figure, axes = _figure()
    allowed = [child for child in children if child.in_budget and math.isfinite(child.val_loss)]
    everyone = [child for child in children if math.isfinite(child.val_loss)]
    last = max((child.order for child in children), default=1)
    sources: tuple[Source, ...] = ("random", "search")
    for source in sources:
        own = [child for child in allowed if child.source == source]
        _scatter(axes, own, lambda child: child.order, faint=True)
        if own:
            best = np.minimum.accumulate([child.val_loss for child in own])
            x = [child.order for child in own] + [last]
            axes.plot(
                x,
                [*best, best[-1]],
                drawstyle="steps-post",
                color=SOURCE_STYLES[source][0],
                linestyle="--" if source == "random" else "-",
                linewidth=1.8,
                label=f"best so far, {SOURCE_NAMES[source]}",
            )
    for child in distinct_children(child for child in everyone if child.architecture == winner):
        if child.source != "BERT pattern":
            _mark_winner(axes, child.order, child.val_loss)
    shown = [child for child in everyone if child.in_budget or child.source == "BERT pattern"]
    for child in _window_losses(axes, shown):
        if child.source == "BERT pattern":
            color = SOURCE_STYLES[child.source][0]
            axes.axhline(child.val_loss, color=color, linestyle=":", linewidth=1.5, label=SOURCE_NAMES[child.source])
    axes.xaxis.set_major_locator(MaxNLocator(7, integer=True, min_n_ticks=1))
    axes.set(xlabel="children evaluated", ylabel="validation loss, shared weights")
    _finish(figure, axes, empty=not shown)
    return figure


def draw_operators_by_layer(children: Sequence[ReportChild], share: float = 0.1) -> Figure:
    """Draws how often the best children within the budget have each operator in each layer, next to random children.

    Args:
        children: all evaluations; an architecture counts once in each half.
        share: share of the children within the budget that count as the best, at least one child.
    """
    allowed = [child for child in distinct_children(children) if child.in_budget and math.isfinite(child.val_loss)]
    best = sorted(allowed, key=lambda child: (child.val_loss, child.architecture))[: math.ceil(share * len(allowed))]
    random = distinct_children(child for child in children if child.source == "random")
    panels = [(f"best {share:.0%} in the budget", best), ("random control", random)]
    panels = [(name, group) for name, group in panels if group]
    if not panels:
        figure, axes = _figure()
        _finish(figure, axes, empty=True)
        return figure
    operators = sorted({name for _, group in panels for child in group for name in child.architecture})
    num_layers = len(panels[0][1][0].architecture)
    width, height = 0.9 + len(panels) * (0.3 + 0.62 * len(operators)), 1.3 + 0.27 * num_layers
    figure = Figure(figsize=(max(width, 4.5), max(height, 2.5)), layout="constrained")
    grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (name, group) in zip(grid, panels, strict=True):
        _draw_shares(axes, group, operators, num_layers)
        axes.set_title(f"{name}\n{len(group):,} {'child' if len(group) == 1 else 'children'}", fontsize=9)
    # From the bottom up, as encoders are drawn.
    grid[0].set(ylabel="layer", yticks=range(num_layers), ylim=(-0.5, num_layers - 0.5))
    return figure


def _draw_shares(axes: Axes, group: Sequence[ReportChild], operators: Sequence[str], num_layers: int) -> None:
    counts = np.zeros((num_layers, len(operators)))
    for child in group:
        for layer, name in enumerate(child.architecture):
            counts[layer, operators.index(name)] += 1
    shares = counts / len(group)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (layer, column), value in np.ndenumerate(shares):
        text = f"{100 * value:.0f}%" if value else "\N{MIDDLE DOT}"
        axes.text(column, layer, text, ha="center", va="center", size=8, color="white" if value > 0.65 else INK)
    axes.set_xticks(range(len(operators)), operators, size=8, rotation=90 if max(map(len, operators)) > 6 else 0)
    axes.tick_params(length=0, labelsize=8)
    axes.spines[:].set_visible(False)
