"""Figures of a super-net run: losses, the operators that shrinking has left, and the health of the super-net."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from matplotlib.ticker import MaxNLocator

from ..drawing import BLUE, ORANGE, SERIES, cut_steep_start, write_figure
from ..space.search_space import format_architecture


def draw_search(search: dict[str, Any], trained: Mapping[str, Sequence[dict[str, Any]]], path: str | Path) -> Path:
    """Draws the losses of the super-net and of re-trained models and the remaining operators; returns the PNG's path.

    Args:
        search: the result of a super-net run (`pretrain.pretrain`).
        trained: for each model, its results (`retrain.retrain`), one for each seed. Without any, and without
            shrinking, the figure has no panel for them.
        path: the PNG file to write.
    """
    panels: list[Callable[[Axes], None]] = [partial(_draw_supernet, log_history=search["log_history"])]
    if trained:
        panels.append(partial(_draw_children, trained=trained))
    if search["shrink_history"]:
        panels.append(partial(_draw_operators, search=search))
    figure = Figure(figsize=(5 * len(panels), 4.5), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
    return write_figure(path, figure, dpi=120)


def _series(log_history: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in log_history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _draw_supernet(axes: Axes, log_history: Sequence[dict[str, Any]]) -> None:
    steps, losses = _series(log_history, "loss_pred")
    if steps:
        axes.plot(steps, losses, color=BLUE, label="prediction loss")
        axes.set(title="super-net", xlabel="optimizer step", ylabel="masked-LM loss")
        cut_steep_start(axes)
    elif any("loss" in entry for entry in log_history):
        axes.plot(*_series(log_history, "loss"), color=BLUE, label="sum of block losses")
        axes.set(title="super-net, block-wise", xlabel="optimizer step", ylabel="squared error")
    else:
        axes.set_axis_off()
        axes.text(0.5, 0.5, "no loss was logged in so short a run", ha="center", va="center")
        return
    steps, losses = _series(log_history, "loss_align")
    lines = list(axes.lines)
    if any(losses):
        right = axes.twinx()
        lines += right.plot(steps, losses, color=ORANGE, label="alignment loss")
        right.set_ylabel("alignment loss, Eq. (1)")
        right.set_ylim(bottom=0)
    axes.legend(handles=lines)


def _draw_children(axes: Axes, trained: Mapping[str, Sequence[dict[str, Any]]]) -> None:
    axes.set(title="re-trained alone, at equal compute", xlabel="training FLOPs", ylabel="masked-LM loss")
    for index, (name, results) in enumerate(trained.items()):
        for number, result in enumerate(results):
            steps, losses = _series(result["log_history"], "loss")
            flops_per_step = result["training_flops"] / result["steps"]
            label = name if number == 0 else None
            axes.plot(
                [step * flops_per_step for step in steps],
                losses,
                color=SERIES[index % len(SERIES)],
                alpha=0.7,
                label=label,
            )
    cut_steep_start(axes)
    axes.legend(fontsize="small")


def _draw_operators(axes: Axes, search: dict[str, Any]) -> None:
    """Draws a cell for each layer and operator, with the step at which shrinking deleted it, or "left"."""
    layers = search["candidate_operators"]
    names = list(dict.fromkeys(name for layer in layers for name in layer))
    deleted = {(layer, name): entry["step"] for entry in search["shrink_history"] for layer, name in entry["deleted"]}
    last = max(deleted.values(), default=1)
    grid = [
        [
            float("nan") if name not in candidates else deleted.get((layer, name), last) / last
            for layer, candidates in enumerate(layers)
        ]
        for name in names
    ]
    axes.imshow(grid, cmap="Blues", vmin=0, vmax=1.3, aspect="auto")
    for row, name in enumerate(names):
        for layer, candidates in enumerate(layers):
            if name in candidates:
                step = deleted.get((layer, name))
                style: dict[str, Any] = {
                    "weight": "normal" if step else "bold",
                    "color": "white" if grid[row][layer] > 0.7 else "black",
                }
                axes.text(layer, row, step or "left", ha="center", va="center", size=8, **style)
    axes.set(
        title=f"operators, and the step that deleted them\nfound: {format_architecture(search['architecture'])}",
        xlabel="layer",
        xticks=range(len(layers)),
        yticks=range(len(names)),
        yticklabels=names,
    )
    axes.title.set_fontsize(9)


def draw_health(search: dict[str, Any], path: str | Path) -> Path:
    """Draws the health of a super-net's training and returns the PNG's path.

    Args:
        search: the result of a super-net run (`pretrain.pretrain`).
        path: the PNG file to write.
    """
    health, layers = search["health"], search["candidate_operators"]
    figure = Figure(figsize=(14, 9), layout="constrained")
    probes = health["probes"]
    panels = figure.subplot_mosaic([["visits", "norms"], ["distances", "probes" if probes else "distances"]])
    shares = [
        {name: count / fair[name] if fair[name] else math.nan for name, count in layer.items()}
        for layer, fair in zip(health["visits"], health["fair_visits"], strict=True)
    ]
    means = [
        {name: norm["mean"] if norm["steps"] else math.nan for name, norm in layer.items()}
        for layer in health["gradient_norms"]
    ]
    warned = {(entry["layer"], entry["operator"]) for entry in health["warnings"]}
    _draw_heat_map(panels["visits"], layers, shares, warned)
    panels["visits"].set_title("visits, relative to uniform sampling")
    _draw_heat_map(panels["norms"], layers, means, warned)
    panels["norms"].set_title("mean gradient norm, before clipping")
    if warned:
        figure.legend([FancyBboxPatch((0, 0), 1, 1, fc="none", ec="red")], ["warning"], loc="outside upper right")
    _draw_distances(panels["distances"], health["distances"])
    if probes:
        _draw_probes(panels["probes"], probes, search)
    return write_figure(path, figure, dpi=120)


def _draw_heat_map(
    axes: Axes,
    layers: Sequence[Sequence[str]],
    values: Sequence[Mapping[str, float]],
    framed: set[tuple[int, str]],
) -> None:
    """Draws a cell for each layer and operator, blank if the layer lacks the operator."""
    names = list(dict.fromkeys(name for layer in layers for name in layer))
    grid = [[layer.get(name, math.nan) for layer in values] for name in names]
    # One huge value must not make all the others look alike.
    finite = sorted(value for row in grid for value in row if math.isfinite(value))
    highest = finite[min(len(finite) - 1, round(0.98 * len(finite)))] if finite else 1
    image = axes.imshow(grid, cmap="viridis", vmin=0, vmax=highest or 1, aspect="auto")
    axes.figure.colorbar(image, ax=axes, extend="max" if finite and finite[-1] > highest else "neither")
    for layer, name in framed:
        axes.add_patch(Rectangle((layer - 0.5, names.index(name) - 0.5), 1, 1, fc="none", ec="red", lw=2.5))
    step = -(-len(layers) // 26)
    axes.set(xlabel="layer", xticks=range(0, len(layers), step), yticks=range(len(names)), yticklabels=names)


def _draw_distances(axes: Axes, counts: Sequence[int]) -> None:
    axes.bar(range(len(counts)), counts, color=BLUE)
    axes.set(
        title="distance between consecutive children",
        xlabel="layers that differ",
        ylabel="steps",
        xlim=(-0.6, len(counts) - 0.4),
    )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _draw_probes(axes: Axes, probes: Sequence[dict[str, Any]], search: dict[str, Any]) -> None:
    """Draws the losses of the probe children, and below them the steps of anchor changes and operator deletions."""
    for index, probe in enumerate(probes):
        losses = [math.nan if loss is None else loss for loss in probe["val_losses"]]
        text = format_architecture(probe["architecture"])
        label = text if len(text) <= 40 else f"{text[:37]}..."
        axes.plot(probe["steps"], losses, marker=".", color=SERIES[index % len(SERIES)], label=label)
    rows = (("anchor changed", "anchor_history", "black"), ("operators deleted", "shrink_history", "grey"))
    for row, (label, key, color) in enumerate(rows):
        steps = [entry["step"] for entry in search[key]]
        if steps:
            ticks = axes.vlines(steps, 0.05 * row, 0.05 * row + 0.04, transform=axes.get_xaxis_transform())
            ticks.set(color=color, label=label)
    axes.set(title="probe children", xlabel="optimizer step", ylabel="validation loss", ymargin=0.15)
    axes.legend(fontsize=7)
