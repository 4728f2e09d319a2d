"""The cosines between gradients of methods with several super-nets each, and their differences to the first method.

    python benchmarks/cosines.py NAME=FOLDER,FOLDER,... NAME=FOLDER,FOLDER,... [--output FILE.md]

FOLDERs are those of `magic-nas analyze interference` with the same children and batches, one for each super-net of a
method, those with the same place in their lists of the same seed. The intervals are 95% t-intervals over super-nets.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tables import mean_with_interval, parser_of, publish

from training.runs import read_result


COLUMNS = {"one kind": "same_kind", "two kinds": "other_kind", "one kind - two kinds": "same_minus_other"}


def read_cosines(folders: Sequence[str]) -> dict[str, list[float]]:
    """Returns the mean cosine of each super-net by the number m of differing layers, and by kinds of operators."""
    found: dict[str, list[float]] = {}
    for folder in folders:
        result: dict[str, Any] | None = read_result(Path(folder))
        if result is None:
            raise ValueError(f"{folder} holds no finished analysis; run `magic-nas analyze interference` first")
        for point in result["curve"]:
            found.setdefault(f"m = {point['num_differing_layers']}", []).append(point["mean"])
        for name, key in COLUMNS.items():
            found.setdefault(name, []).append(result[key]["mean"])
    return found


def main() -> None:
    """Prints both tables, and writes them where asked."""
    parser = parser_of(__doc__)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDER[,FOLDER]")
    options = parser.parse_args()
    named = {name: folders.split(",") for name, _, folders in (given.partition("=") for given in options.methods)}
    cosines = {name: read_cosines(folders) for name, folders in named.items()}
    (first_name, first), *others = cosines.items()
    heads = " | ".join(first)
    rule = "| --- " * (len(first) + 1) + "|"
    lines = [f"| cosine | {heads} |", rule]
    for name, own in cosines.items():
        lines.append(f"| {name} | {' | '.join(map(mean_with_interval, own.values()))} |")
    lines += ["", f"| less {first_name} | {heads} |", rule]
    for name, own in others:
        # Super-nets of one seed share weights at the start and the order of the text.
        pairs = [[a - b for a, b in zip(own[key], first[key], strict=True)] for key in first]
        lines.append(f"| {name} | {' | '.join(mean_with_interval(pair, '+') for pair in pairs)} |")
    publish(lines, options.output)


if __name__ == "__main__":
    main()
