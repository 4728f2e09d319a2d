"""The table, the figure and the verdict of a compression: the found models and their controls."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from modeling_magic.configuration_magic import without_skips

from ..displays import html_paragraphs, html_table
from ..drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, clean
from ..space.search_space import compact_architecture
from ..tables import markdown_table


CHECKPOINT, CHECKPOINT_INT8, FOUND, FOUND_INT8 = "checkpoint", "checkpoint, int8", "found", "found, int8"
# The roles of `choices.Choices`, as tables and figures show them.
ROLES = {
    "block_drop": "best drop of blocks",
    "sublayer_drop": "best drop of layers",
    "evenly_spaced_blocks": "evenly spaced blocks",
    "one_width": "one width",
    "random": "random child",
}
BEST_DROPS = ("block_drop", "sublayer_drop")
DROPS = (*BEST_DROPS, "evenly_spaced_blocks")
# Suffix of the role of a drop that was distilled for as many steps as the winner, instead of at its compute.
EQUAL_STEPS = "_equal_steps"
ROLES |= {f"{role}{EQUAL_STEPS}": f"{ROLES[role]}, equal steps" for role in BEST_DROPS}
# The roles whose models form a line of the figure over several budgets: the winners and the drops they have to beat.
_LINES = (FOUND, "block_drop", "sublayer_drop")
# Shapes differ as well as colours; int8 models and drops at equal steps have hollow markers.
_STYLES: dict[str, dict[str, Any]] = {
    CHECKPOINT: {"color": INK, "marker": "*", "markersize": 10},
    CHECKPOINT_INT8: {"color": INK, "marker": "*", "markersize": 10, "markerfacecolor": "white"},
    FOUND: {"color": BLUE, "marker": "o"},
    FOUND_INT8: {"color": BLUE, "marker": "o", "markerfacecolor": "white"},
    "block_drop": {"color": RED, "marker": "v"},
    "sublayer_drop": {"color": PURPLE, "marker": "^"},
    "evenly_spaced_blocks": {"color": ORANGE, "marker": "s", "markersize": 5},
    "one_width": {"color": GREEN, "marker": "D", "markersize": 5},
    "random": {"color": GREY, "marker": "x"},
    f"block_drop{EQUAL_STEPS}": {"color": RED, "marker": "v", "markerfacecolor": "white"},
    f"sublayer_drop{EQUAL_STEPS}": {"color": PURPLE, "marker": "^", "markerfacecolor": "white"},
}


@dataclass(frozen=True)
class ModelRow:
    """One model of the table.

    Attributes:
        role: "checkpoint", "found", one of `ROLES`, or one of the two in int8.
        member: the name of its budget; empty for the checkpoint.
        architecture: one operator per layer, without SKIP.
        num_parameters: number of parameters, including embeddings.
        flops: FLOPs of a forward pass ("electra").
        steps: steps of its distillation; 0 for the checkpoint.
        loss: loss of the objective on held-out text; 0 for the checkpoint.
        score: second score on held-out text.
        tasks: a value in percent for each task, by its title.
        padded: latency relative to the checkpoint's, (median, low, high), with padding; `None` if it was not measured.
        unpadded: the same without padding.
    """

    role: str
    member: str
    architecture: tuple[str, ...]
    num_parameters: int
    flops: float
    steps: int
    loss: float
    score: float
    tasks: dict[str, float] = field(default_factory=dict)
    padded: tuple[float, float, float] | None = None
    unpadded: tuple[float, float, float] | None = None

    @property
    def label(self) -> str:
        """The role in words."""
        return ROLES.get(self.role, self.role)

    @property
    def name(self) -> str:
        """The role in words, preceded by the name of the budget."""
        return f"{self.member}: {self.label}" if self.member else self.label

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON."""
        return asdict(self)


def compression_table(rows: Sequence[ModelRow], loss_name: str, score_name: str) -> str:
    """Returns the models as a Markdown table, in the order given."""
    tasks = _task_titles(rows)
    cells = [_cells(row, rows[0], tasks) for row in rows]
    return markdown_table(_columns(loss_name, score_name, tasks), cells, "llrrrrrrr" + "r" * len(tasks))


def _task_titles(rows: Sequence[ModelRow]) -> list[str]:
    return list(dict.fromkeys(title for row in rows for title in row.tasks))


def _columns(loss_name: str, score_name: str, tasks: Sequence[str]) -> tuple[str, ...]:
    measured = ("parameters", "FLOPs", "latency, padded", "unpadded", "steps", loss_name, score_name)
    return ("model", "operators", *measured, *tasks)


def _cells(row: ModelRow, checkpoint: ModelRow, tasks: Sequence[str]) -> list[str]:
    name = f"**{row.name}**" if row.role == FOUND else row.name
    return [name, compact_architecture(without_skips(row.architecture)), *_measured_cells(row, checkpoint, tasks)]


def _measured_cells(row: ModelRow, checkpoint: ModelRow, tasks: Sequence[str]) -> list[str]:
    return [
        f"{row.num_parameters / 1e6:.2f}M",
        f"{row.flops / checkpoint.flops:.2f}x",
        _ratio(row.padded),
        _ratio(row.unpadded),
        f"{row.steps}" if row.steps else "",
        # z: a loss that rounding has put below 0 is shown as 0.
        f"{row.loss:z.4f}",
        f"{row.score:.3f}",
        *(f"{row.tasks[title]:.2f}" if title in row.tasks else "" for title in tasks),
    ]


def _ratio(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f}x"


def verdict(rows: Sequence[ModelRow], member: str) -> str:
    """Returns a sentence that says whether the found child is better than dropping blocks or layers.

    Children are compared by the loss on held-out text, since nothing else chooses them. A found child with the
    operators of a drop is a drop itself, and so no better whatever its loss.

    Args:
        rows: rows of all models.
        member: the budget's name.
    """
    of_roles = {row.role: row for row in rows if row.member == member}
    found, drops = of_roles[FOUND], [of_roles[role] for role in DROPS if role in of_roles]
    if not drops:
        return f"{member}: no drop of blocks or layers is within the budget, so there is nothing to compare with."
    best = min(drops, key=_by_loss)
    compared = f"{found.loss:.4f}, that of the {best.label} at equal compute {best.loss:.4f}{_on_tasks(found, best)}"
    if found.architecture in [row.architecture for row in drops]:
        return (
            f"{member}: no better than dropping layers, since the found child is such a drop: its loss is {compared}."
        )
    better = "better" if _by_loss(found) < _by_loss(best) else "no better"
    return f"{member}: {better} than dropping blocks or layers: its loss is {compared}.{_nearer(found, of_roles)}"


def _nearer(found: ModelRow, of_roles: Mapping[str, ModelRow]) -> str:
    """Returns which of the children that no search chose came nearer to the checkpoint than the found one, if any."""
    names = {"one_width": "the child of one width", "random": "a random child"}
    others = [of_roles[role] for role in names if role in of_roles]
    nearer = [f"{names[row.role]} has {row.loss:.4f}" for row in others if _by_loss(row) < _by_loss(found)]
    return f" But at equal compute {' and '.join(nearer)}." if nearer else ""


def _by_loss(row: ModelRow) -> tuple[bool, float]:
    is_finite = math.isfinite(row.loss)
    return not is_finite, row.loss if is_finite else 0.0


def _on_tasks(found: ModelRow, other: ModelRow) -> str:
    return "".join(f"; {title} {value:.2f} against {other.tasks[title]:.2f}" for title, value in found.tasks.items())


# ---- In a notebook ----


class CompressionResult(dict[str, Any]):
    """The contents of a compression's result.json; a notebook shows its table and its verdicts."""

    def __repr__(self) -> str:
        return "\n".join((f"CompressionResult of {self['checkpoint']}", *self["verdicts"]))

    def _repr_html_(self) -> str:
        rows = [ModelRow(**row) for row in self["models"]]
        tasks = _task_titles(rows)
        # Results of earlier versions lack these names.
        columns = _columns(self.get("loss_name", "loss"), self.get("score_name", "second score"), tasks)
        cells = [(row.name, without_skips(row.architecture), *_measured_cells(row, rows[0], tasks)) for row in rows]
        warnings = [f"warning: {text}" for text in self["latency"]["warnings"]]
        return html_table(columns, cells) + html_paragraphs([*self["verdicts"], *warnings])


# ---- Figure ----


def draw_compression(rows: Sequence[ModelRow], loss_name: str, score_name: str) -> Figure:
    """Draws the models by latency: their loss on held-out text, and their score on the first task.

    Without a task the second panel shows the second score on held-out text.

    Args:
        rows: rows of all models, the checkpoint first; if latency was not measured, models are drawn by FLOPs.
        loss_name: name of the objective's loss.
        score_name: name of the objective's second score.
    """
    task = next(iter(rows[0].tasks), None)
    by_latency = any(row.padded is not None for row in rows[1:])
    figure = Figure(figsize=(9.4, 4.8), layout="constrained")
    loss_axes, score_axes = figure.subplots(1, 2, sharex=True)
    _draw_panel(loss_axes, rows, by_latency, lambda row: row.loss)
    _draw_panel(score_axes, rows, by_latency, lambda row: row.score if task is None else row.tasks[task])
    # In both panels better models are further up.
    loss_axes.invert_yaxis()
    loss_axes.set_title(f"{loss_name}, held-out text (lower is better, axis inverted)", fontsize=10)
    score_axes.set_title(f"{task or f'{score_name}, held-out text'} (higher is better)", fontsize=10)
    handles, labels = loss_axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return figure


def _draw_panel(axes: Axes, rows: Sequence[ModelRow], by_latency: bool, height: Callable[[ModelRow], float]) -> None:
    clean(axes)
    for role, style in _STYLES.items():
        places = sorted(
            (place, height(row))
            for row in rows
            if row.role == role and (place := _place(row, rows[0], by_latency)) is not None
        )
        if not places:
            continue
        xs, ys = zip(*places, strict=True)
        line = "-" if role in _LINES else "none"
        zorder = 4 if role == FOUND else 3
        axes.plot(xs, ys, linestyle=line, linewidth=1.2, label=ROLES.get(role, role), zorder=zorder, **style)
    # On a linear scale, the checkpoint at 100% would squeeze the small models together.
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.xaxis.set_minor_locator(NullLocator())
    cost = "latency relative to the checkpoint, padded" if by_latency else "FLOPs relative to the checkpoint"
    axes.set_xlabel(f"{cost} (log scale)")


def _place(row: ModelRow, checkpoint: ModelRow, by_latency: bool) -> float | None:
    """Returns the latency, or else the FLOPs, relative to the checkpoint's; `None` if it was not measured."""
    if not by_latency:
        return row.flops / checkpoint.flops
    if row.role == CHECKPOINT:
        return 1.0
    return None if row.padded is None else row.padded[0]
