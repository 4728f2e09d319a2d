"""Options, output and intervals shared by the scripts that print a table."""

import argparse
import statistics
from collections.abc import Sequence
from pathlib import Path

from scipy import stats


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a module's docstring unchanged, with the option `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="A Markdown file to write the table to.")
    return parser


def publish(lines: Sequence[str], output: Path | None) -> None:
    """Prints lines, and writes them to `output` if it is given."""
    table = "\n".join(lines)
    print(table)
    if output:
        output.write_text(f"{table}\n", encoding="utf-8")


def mean_with_interval(values: Sequence[float], sign: str = "") -> str:
    """Returns the mean, with its 95% t-interval if there are several values; `sign` "+" signs positive numbers."""
    mean = statistics.fmean(values)
    if len(values) < 2:
        return f"{mean:{sign}.3f}"
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:{sign}.3f} ({mean - half:{sign}.3f} to {mean + half:{sign}.3f})"
