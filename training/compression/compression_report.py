"""The table, the figure and the verdict of a compression: the models that were found beside their controls."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from modeling_magic.configuration_magic import without_skips

from ..drawing import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED, clean
from ..space.search_space import compact_architecture
from ..tables import markdown_table


TEACHER, TEACHER_INT8, FOUND, FOUND_INT8 = "teacher", "teacher, int8", "found", "found, int8"
# Of the roles of `choices.Choices`, as tables and figures have them.
ROLES = {
    "block_drop": "best drop of blocks",
    "sublayer_drop": "best drop of layers",
    "every_second_block": "evenly spaced blocks",
    "one_width": "one width",
    "random": "random child",
}
DROPS = ("block_drop", "sublayer_drop", "every_second_block")
_STYLES = {
    TEACHER: (INK, "*"),
    TEACHER_INT8: (GREY, "*"),
    FOUND: (BLUE, "o"),
    FOUND_INT8: (BLUE, "s"),
    "block_drop": (RED, "v"),
    "sublayer_drop": (PURPLE, "v"),
    "every_second_block": (ORANGE, "v"),
    "one_width": (GREEN, "D"),
    "random": (GREY, "x"),
}


@dataclass(frozen=True)
class ModelRow:
    """One model of the table.

    Attributes:
        role: "teacher", "found", one of `ROLES`, or one of the two in int8.
        member: the name of the budget that it is of; empty for the teacher.
        architecture: one operator a layer, without SKIP.
        num_parameters: embeddings included.
        flops: of a forward pass ("electra").
        steps: of its distillation; 0 for the teacher.
        loss: of the objective on held-out text, 0 for the teacher.
        score: the second score on held-out text.
        tasks: a value in percent for each task, by its title.
        padded: latency over the teacher's, (median, low, high), with padding; `None` where it was not measured.
        unpadded: the same without.
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

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON."""
        return asdict(self)


def compression_table(rows: Sequence[ModelRow], loss_name: str, score_name: str) -> str:
    """Returns the models as a Markdown table, in the order given."""
    tasks = list(dict.fromkeys(title for row in rows for title in row.tasks))
    columns = (
        "model",
        "operators",
        "parameters",
        "FLOPs",
        "latency, padded",
        "unpadded",
        "steps",
        loss_name,
        score_name,
        *tasks,
    )
    return markdown_table(columns, [_cells(row, rows[0], tasks) for row in rows], "llrrrrrrr" + "r" * len(tasks))


def _cells(row: ModelRow, teacher: ModelRow, tasks: Sequence[str]) -> list[str]:
    name = row.label if not row.member else f"{row.member}: {row.label}"
    return [
        f"**{name}**" if row.role == FOUND else name,
        compact_architecture(without_skips(row.architecture)),
        f"{row.num_parameters / 1e6:.2f}M",
        f"{row.flops / teacher.flops:.2f}x",
        _ratio(row.padded),
        _ratio(row.unpadded),
        f"{row.steps}" if row.steps else "",
        f"{row.loss:.4f}",
        f"{row.score:.3f}",
        *(f"{row.tasks[title]:.2f}" if title in row.tasks else "" for title in tasks),
    ]


def _ratio(value: tuple[float, float, float] | None) -> str:
    return "" if value is None else f"{value[0]:.2f}x"


def verdict(rows: Sequence[ModelRow], member: str) -> str:
    """Returns in a sentence whether the child that was found is worth more than dropping blocks or layers.

    By the loss on held-out text, the one thing that children are chosen by.

    Args:
        rows: of all models.
        member: the budget's name.
    """
    own = {row.role: row for row in rows if row.member == member}
    found, drops = own[FOUND], [own[role] for role in DROPS if role in own]
    if not drops:
        return f"{member}: no drop of blocks or layers is within the budget; there is nothing to compare with."
    best = min(drops, key=lambda row: row.loss)
    tasks = ", ".join(f"{title} {found.tasks[title]:.2f} against {best.tasks[title]:.2f}" for title in found.tasks)
    beside = f" ({tasks})" if tasks else ""
    if found.architecture == best.architecture:
        return f"{member}: the child that was found is the {best.label}; nothing better was found."
    if found.loss < best.loss:
        return (
            f"{member}: better than dropping blocks: its loss is {found.loss:.4f}, that of the {best.label} at equal "
            f"compute {best.loss:.4f}{beside}."
        )
    return (
        f"{member}: no better than dropping blocks: its loss is {found.loss:.4f}, that of the {best.label} at equal "
        f"compute {best.loss:.4f}{beside}."
    )


def draw_compression(rows: Sequence[ModelRow], loss_name: str, score_name: str) -> Figure:
    """Draws the models at their latency and their score: of the first task, or else the loss on held-out text.

    Args:
        rows: of all models, the teacher first; those whose latency was not measured stand at their FLOPs.
        loss_name: of the objective.
        score_name: of the objective.
    """
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    clean(axes)
    task = next((title for row in rows for title in row.tasks), None)
    drawn = [row for row in rows if task is None or task in row.tasks]
    by_latency = any(row.padded is not None for row in drawn[1:])
    for role, (color, marker) in _STYLES.items():
        points = [(_place(row, rows[0], by_latency), _height(row, task)) for row in drawn if row.role == role]
        points = [(x, y) for x, y in points if x is not None]
        if not points:
            continue
        points.sort()
        size = 90 if role in (TEACHER, TEACHER_INT8) else 42
        axes.scatter(
            *zip(*points, strict=True), color=color, marker=marker, s=size, label=ROLES.get(role, role), zorder=3
        )
        if role in (FOUND, *DROPS[:2]) and len(points) > 1:
            axes.plot(*zip(*points, strict=True), color=color, linewidth=1.2, alpha=0.7)
    axes.set_xlabel("latency over the teacher's, padded" if by_latency else "FLOPs over the teacher's")
    axes.set_ylabel(task or f"{loss_name}, held-out text (lower is better)")
    if task is None:
        axes.invert_yaxis()
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def _place(row: ModelRow, teacher: ModelRow, by_latency: bool) -> float | None:
    if not by_latency:
        return row.flops / teacher.flops
    if row.role == TEACHER:
        return 1.0
    return None if row.padded is None else row.padded[0]


def _height(row: ModelRow, task: str | None) -> float:
    return row.loss if task is None else row.tasks[task]
