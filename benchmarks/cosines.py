"""Compares the gradient cosines of methods, each with several super-nets, with those of the first method.

    python benchmarks/cosines.py NAME=FOLDER,FOLDER,... NAME=FOLDER,FOLDER,... [--output FILE.md]

Each FOLDER is one of `magic-nas analyze interference`, with the same children and batches for all, and each super-net
of a method has one. The lists must have their seeds in the same order. Intervals are 95% t-intervals over super-nets.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tables import mean_with_interval, parser_of, publish
from transformers import TrainingArguments

from training.analysis.interference_run import read_comparable
from training.runs.folders import RUN_NAME, read_settings


COLUMNS = {"one kind": "same_kind", "two kinds": "other_kind", "one kind - two kinds": "same_minus_other"}


def cosines_of(results: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns the mean cosine of each super-net, by the number m of differing layers and by kinds of operators."""
    found: dict[str, list[float]] = {}
    for result in results:
        for point in result["curve"]:
            found.setdefault(f"m = {point['num_differing_layers']}", []).append(point["mean"])
        for name, key in COLUMNS.items():
            found.setdefault(name, []).append(result[key]["mean"])
    return found


def seed_of(result: Mapping[str, Any]) -> int | None:
    """Returns the seed of the super-net that was analysed, `None` if its run does not exist."""
    folder = Path(result["settings"]["supernet"])
    # A checkpoint is in the folder of its run.
    run = next((path for path in (folder, folder.parent) if (path / RUN_NAME).is_file()), None)
    return None if run is None else read_settings(run)["training_arguments"].get("seed", TrainingArguments.seed)


def check_places(results: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Raises a ValueError if methods differ in the number of super-nets or in the order of their seeds."""
    seeds = {name: [seed_of(result) for result in own] for name, own in results.items()}
    first = next(iter(seeds))
    for name, own in seeds.items():
        known = [(one, other) for one, other in zip(own, seeds[first], strict=False) if None not in (one, other)]
        if len(own) != len(seeds[first]) or any(one != other for one, other in known):
            raise ValueError(
                f"{name} has super-nets with the seeds {own}, but {first} with {seeds[first]}; list the same seeds in "
                f"the same order"
            )


def main() -> None:
    """Prints both tables, and writes them to the output file if one is given."""
    parser = parser_of(__doc__)
    parser.add_argument("methods", nargs="+", metavar="NAME=FOLDER[,FOLDER]")
    options = parser.parse_args()
    named = {name: folders.split(",") for name, _, folders in (given.partition("=") for given in options.methods)}
    comparable, _ = read_comparable({folder: folder for folders in named.values() for folder in folders})
    results = {name: [comparable[folder] for folder in folders] for name, folders in named.items()}
    check_places(results)
    cosines = {name: cosines_of(own) for name, own in results.items()}
    (first_name, first), *others = cosines.items()
    heads = " | ".join(first)
    rule = "| --- " * (len(first) + 1) + "|"
    lines = [f"| cosine | {heads} |", rule]
    for name, own in cosines.items():
        lines.append(f"| {name} | {' | '.join(map(mean_with_interval, own.values()))} |")
    lines += ["", f"| minus {first_name} | {heads} |", rule]
    for name, own in others:
        # Super-nets with one seed start from the same weights and see the text in the same order.
        pairs = [[a - b for a, b in zip(own[key], first[key], strict=True)] for key in first]
        lines.append(f"| {name} | {' | '.join(mean_with_interval(pair, '+') for pair in pairs)} |")
    publish(lines, options.output)


if __name__ == "__main__":
    main()
