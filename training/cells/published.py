"""The table of published accuracies of all cells, each trained alone (D)."""

import csv
import math
from pathlib import Path

from ..analysis.truth import Truth
from ..space.search_space import Architecture
from .cell_space import parse_cell


# Possible names for the column of architectures.
ARCHITECTURE_COLUMNS = ("arch", "architecture", "arch_str")


def load_published(path: str | Path, metric: str) -> Truth:
    """Returns the accuracy of each cell in a CSV table.

    Args:
        path: a table with a column `arch` of cells in the notation of the benchmark, and columns of accuracies.
        metric: the column of accuracies to read.

    Raises:
        ValueError: the file or a column does not exist, a cell is invalid or occurs twice, or an accuracy is not a
            number, or a quotation mark is not closed.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is not a file; give the table of published accuracies as CSV")
    try:
        return Truth(metric, is_loss=False, values=_read(path, metric))
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV table ({error}); look for a quotation mark that is not closed"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def _read(path: Path, metric: str) -> dict[Architecture, tuple[float, ...]]:
    # Spreadsheets write a byte order mark at the beginning.
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or []
        named = next((name for name in ARCHITECTURE_COLUMNS if name in columns), None)
        for name, wanted in ((named, ARCHITECTURE_COLUMNS[0]), (metric, metric)):
            if name not in columns:
                raise ValueError(f"{path} has no column {wanted!r}; its columns are {', '.join(columns) or 'none'}")
        found: dict[Architecture, tuple[float, ...]] = {}
        for row in reader:
            try:
                child, accuracy = parse_cell(row[named] or ""), float(row[metric] or "nan")
            except ValueError as error:
                raise ValueError(f"{path}, line {reader.line_num}: {error}") from None
            if not math.isfinite(accuracy):
                raise ValueError(f"{path}, line {reader.line_num}: {metric} is {row[metric]!r}; it must be a number")
            if child in found:
                raise ValueError(f"{path}, line {reader.line_num}: the cell {row[named]} occurs twice; remove one")
            found[child] = (accuracy,)
    if not found:
        raise ValueError(f"{path} has no rows; give the table of published accuracies")
    return found
