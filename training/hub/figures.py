"""The figure of an architecture (Fig. 5)."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from ..displays import KIND_COLORS, KIND_NAMES, OTHER_COLOR, kind_of, operator_color
from ..drawing import write_figure


# A longer chain of boxes continues in a column to the right.
_ROWS = 12


def draw_architecture(architecture: Sequence[str], path: str | Path, head: str = "masked-LM head") -> Path:
    """Draws an encoder as boxes, one operator per layer from the bottom up (Fig. 5), and returns the PNG's path.

    Args:
        architecture: one operator name per layer.
        path: the file to write.
        head: the name of the head on top of the encoder, empty for none.
    """
    boxes = [("embeddings", OTHER_COLOR)]
    boxes += [(f"{layer}  {name}", operator_color(name)) for layer, name in enumerate(architecture)]
    boxes += [(head, OTHER_COLOR)] if head else []
    num_columns = -(-len(boxes) // _ROWS)
    num_rows = -(-len(boxes) // num_columns)
    figure = Figure(figsize=(0.4 + 2.2 * num_columns, 0.9 + 0.42 * num_rows), layout="constrained")
    axes = figure.subplots()
    axes.set(xlim=(-0.1, 1.3 * num_columns - 0.2), ylim=(-0.1, num_rows))
    axes.axis("off")
    for index, (text, color) in enumerate(boxes):
        column, row = divmod(index, num_rows)
        x = 1.3 * column
        frame = FancyBboxPatch((x, row), 1, 0.6, boxstyle="round,pad=0,rounding_size=0.06", fc=color, ec="#333333")
        axes.add_patch(frame)
        axes.text(x + 0.5, row + 0.29, text, ha="center", va="center", size=9)
        if index + 1 < len(boxes):
            next_column, next_row = divmod(index + 1, num_rows)
            if next_column == column:
                start, end = (x + 0.5, row + 0.6), (x + 0.5, row + 1.0)
            else:
                start, end = (x + 1.0, row + 0.3), (x + 1.3, next_row + 0.3)
            axes.annotate("", xy=end, xytext=start, arrowprops={"arrowstyle": "->", "color": "#333333"})
    shown = [kind for kind in KIND_COLORS if any(kind_of(name) == kind for name in architecture)]
    handles = [FancyBboxPatch((0, 0), 1, 1, fc=KIND_COLORS[kind], ec="#333333") for kind in shown]
    labels = [f"{kind}: {KIND_NAMES[kind]}" for kind in shown]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(shown), num_columns), fontsize=8)
    return write_figure(path, figure, dpi=120)
