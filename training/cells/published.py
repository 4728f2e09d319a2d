"""The table of published accuracies of all cells, each trained alone (D)."""

import math
from pathlib import Path

from ..analysis.truth import Truth, is_lower_better
from ..files import read_csv
from ..space.search_space import Architecture
from .cell_space import parse_cell


# Possible names for the column of architectures.
ARCHITECTURE_COLUMNS = ("arch", "architecture", "arch_str")


def load_published(path: str | Path, metric: str) -> Truth:
    """Returns the accuracy of each cell in a CSV table, or its negative loss.

    Args:
        path: a table with a column `arch` of cells in the notation of the benchmark, and columns of numbers.
        metric: the column to read. Lower values are better if its name ends like that of a loss
            (`truth.is_lower_better`).

    Raises:
        ValueError: the file or a column does not exist, a cell is invalid or occurs twice, a value is not a number,
            the column numbers the rows, or the file is damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the table of published accuracies as CSV")
    columns, rows = read_csv(path)
    named = next((name for name in ARCHITECTURE_COLUMNS if name in columns), None)
    if named is None or metric not in columns:
        wanted = metric if named else ARCHITECTURE_COLUMNS[0]
        raise ValueError(f"{path} has no column {wanted!r}; its columns are {', '.join(columns) or 'none'}")
    is_loss = is_lower_better(metric)
    found: dict[Architecture, tuple[float, ...]] = {}
    for line, row in rows:
        child, value = _read_row(row[named], row[metric], f"{path}, line {line}", metric)
        if child in found:
            raise ValueError(f"{path}, line {line}: the cell {row[named]} occurs twice; remove one")
        found[child] = (-value if is_loss else value,)
    if not found:
        raise ValueError(f"{path} has no rows; give the table of published accuracies")
    if [abs(value) for (value,) in found.values()] == list(range(len(found))):
        raise ValueError(f"the column {metric!r} of {path} only numbers the rows; give a column of accuracies")
    return Truth(metric, is_loss, found)


def _read_row(cell: str | None, value: str | None, where: str, metric: str) -> tuple[Architecture, float]:
    try:
        child = parse_cell(cell or "")
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None
    try:
        number = float(value or "nan")
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{where}: {metric} is {value!r}; it must be a number")
    return child, number
