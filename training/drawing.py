"""Shared parts of all figures: colours, the style of axes, and writing to files."""

import io
import math
import os
from pathlib import Path

import numpy as np
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


def cut_steep_start(axes: Axes, share: float = 0.2) -> None:
    """Ends the loss axis at the highest loss after the first `share` of each line, and notes that it does.

    A loss falls fast at first; in the full range the differences that remain at the end cannot be seen.
    """
    losses = [[float(value) for value in np.asarray(line.get_ydata())] for line in axes.lines]
    everything = [value for line in losses for value in line if math.isfinite(value)]
    shown = [value for line in losses for value in line[round(share * len(line)) :] if math.isfinite(value)]
    if not shown or max(everything) <= max(shown):
        return
    low, high = min(everything), max(shown)
    margin = 0.05 * (high - low) or 0.01 * abs(high)
    axes.set_ylim(low - margin, high + margin)
    axes.set_ylabel(f"{axes.get_ylabel()} (the start is cut off)")


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
