"""Options and output that the scripts which print a table share."""

import argparse
from collections.abc import Sequence
from pathlib import Path


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Returns a parser that shows a module's docstring as it stands, with the option `--output`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="A Markdown file to write the table to.")
    return parser


def publish(lines: Sequence[str], output: Path | None) -> None:
    """Prints lines, and writes them where asked."""
    table = "\n".join(lines)
    print(table)
    if output:
        output.write_text(f"{table}\n", encoding="utf-8")
