"""Figures of a run: losses over the steps, and which operators shrinking has left."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .search_space import format_architecture


def draw_search(search: dict[str, Any], trained: Mapping[str, Sequence[dict[str, Any]]], path: str | Path) -> Path:
    """Draws the losses of the super-net and of re-trained models and the surviving operators; returns the PNG's path.

    Args:
        search: the result of a super-net run (`runs.pretrain`).
        trained: for each model its results (`runs.retrain`), one for each seed; may be empty.
        path: where to write.
    """
    figure = Figure(figsize=(15, 4.5), layout="constrained")
    supernet, children, operators = figure.subplots(1, 3)
    _draw_supernet(supernet, search["log_history"])
    _draw_children(children, trained)
    _draw_operators(operators, search)
    path = Path(path)
    figure.savefig(path, dpi=120)
    return path


def _series(log_history: Sequence[dict[str, Any]], key: str) -> tuple[list[int], list[float]]:
    entries = [entry for entry in log_history if key in entry]
    return [entry["step"] for entry in entries], [entry[key] for entry in entries]


def _draw_supernet(axes: Axes, log_history: Sequence[dict[str, Any]]) -> None:
    axes.plot(*_series(log_history, "loss_pred"), color="tab:blue", label="prediction loss")
    axes.set(title="super-net", xlabel="optimizer step", ylabel="masked-LM loss")
    steps, losses = _series(log_history, "loss_align")
    lines = list(axes.lines)
    if any(losses):
        right = axes.twinx()
        lines += right.plot(steps, losses, color="tab:orange", label="alignment loss")
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
            axes.plot([step * flops_per_step for step in steps], losses, color=f"C{index}", alpha=0.7, label=label)
    if trained:
        axes.legend()
    else:
        axes.text(0.5, 0.5, "nothing re-trained yet", ha="center", va="center", transform=axes.transAxes)


def _draw_operators(axes: Axes, search: dict[str, Any]) -> None:
    """A cell for each layer and operator: the step at which shrinking deleted it, or that it is left."""
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
