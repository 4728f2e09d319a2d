"""Shared parts of all figures: colours, the style of axes, and writing to files."""

import io
import os
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .files import write_bytes


# The colours of Okabe and Ito, which are distinguishable with all common colour deficiencies.
BLUE, GREEN, RED, ORANGE, PURPLE = "#0072b2", "#009e73", "#d55e00", "#e69f00", "#cc79a7"
GREY, INK = "#777777", "#222222"
SKY, YELLOW = "#56b4e9", "#d9c31c"
# The colours of lines without a fixed meaning, in order.
SERIES = (BLUE, ORANGE, GREEN, PURPLE, RED, SKY, GREY, YELLOW)


def clean(axes: Axes) -> None:
    """Removes everything but the data and a faint grid from axes."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e5e5e5", linewidth=0.6)
    axes.set_axisbelow(True)


def render(figure: Figure, file_format: str, dpi: int = 150) -> bytes:
    """Returns the figure as "png" or "svg"; the same figure gives the same bytes."""
    buffer = io.BytesIO()
    with rc_context({"svg.hashsalt": "magic", "hatch.linewidth": 0.5}):
        figure.savefig(buffer, format=file_format, dpi=dpi, metadata={"Date": None} if file_format == "svg" else None)
    return buffer.getvalue()


def write_figure(path: str | os.PathLike, figure: Figure, dpi: int = 150) -> Path:
    """Writes a figure atomically, in the format given by the suffix of its name, and returns its path."""
    path = Path(path)
    write_bytes(path, render(figure, path.suffix.removeprefix("."), dpi))
    return path
