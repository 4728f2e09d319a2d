"""Compares found children, trained alone, with uniform children of their space.

    python benchmarks/found_children.py TRUTH ALONE NAME=RUN[,RUN] ... [--named CHILD ...] [--output FILE.md]

This is for spaces of which the truth holds a sample; for those that it holds whole, use winners.py. TRUTH and ALONE
are folders of `magic-nas analyze standalone` with one recipe: TRUTH has uniform children, ALONE the found ones. Each
RUN is a finished search (`magic-nas search`, of which the searcher's best child counts and its random children do not)
or a super-net that shrinking has reduced to one child. `--named` adds children that no search found, such as the BERT
pattern. Intervals are 95% t-intervals over runs.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from tables import mean_with_interval, parser_of, publish

from training.analysis.truth import has_standalone, read_standalone
from training.runs.folders import read_result
from training.space.search_space import Architecture, format_architecture, parse_architecture


Losses = Mapping[Architecture, float]


def found_child(run: Path) -> Architecture:
    """Returns the child that a search or shrinking ended with.

    Raises:
        ValueError: the run is not finished, or did not end with one child.
    """
    result = read_result(run)
    if result is None:
        raise ValueError(f"{run} is not a finished run; finish it with the command that began it")
    if "search" in result:
        ranked = [child for child in result["search"]["searched"] if child["val_loss"] is not None]
        return tuple(min(ranked, key=lambda child: child["val_loss"])["architecture"])
    if any(len(layer) > 1 for layer in result.get("space", ["none"])):
        raise ValueError(f"{run} is neither a search nor a super-net that shrinking has reduced to one child")
    return tuple(layer[0] for layer in result["space"])


def read_alone(truth: Path, alone: Path) -> tuple[list[float], Losses]:
    """Returns the losses of uniform children, and the losses of found ones by child, all with one seed.

    With one seed, its effect on all children alike makes no difference between them.

    Raises:
        ValueError: the folders differ in space, text or recipe, or a loss is not finite.
    """
    (key, uniform), (other_key, found) = read_standalone(truth), read_standalone(alone)
    if differing := [name for name in key if key[name] != other_key.get(name)]:
        raise ValueError(f"{alone} and {truth} differ in {' and '.join(differing)}; train both in the same way")
    for child in (*uniform, *found):
        if not math.isfinite(child.val_loss):
            raise ValueError(f"the loss of {format_architecture(child.architecture)} is {child.val_loss}: it diverged")
    seed = min(child.seed for child in uniform)
    losses = {child.architecture: child.val_loss for child in found if child.seed == seed}
    return [child.val_loss for child in uniform if child.seed == seed], losses


def row(name: str, children: Sequence[Architecture], alone: Losses, uniform: Sequence[float]) -> str:
    """Returns one row of the table."""
    losses = [alone[child] for child in children]
    behind = [100 * sum(other < loss for other in uniform) / len(uniform) for loss in losses]
    cells = [mean_with_interval(losses), mean_with_interval([loss - min(uniform) for loss in losses], "+")]
    return f"| {name} | {len(children)} | {' | '.join(cells)} | {statistics.fmean(behind):.1f}% |"


def check_trained(children: Iterable[Architecture], alone: Losses, folder: Path) -> None:
    """Raises a ValueError if children are not trained yet. It lists them as options for the command that does so."""
    if missing := [child for child in dict.fromkeys(children) if child not in alone]:
        options = " ".join(f"--architecture {format_architecture(child)}" for child in missing)
        raise ValueError(
            f"{len(missing)} children are not in {folder} with the truth's first seed; run `magic-nas analyze "
            f"standalone` with that --seed and {options}"
        )


def main() -> None:
    """Prints the table, and writes it to the output file if one is given."""
    parser = parser_of(__doc__)
    parser.add_argument("truth", type=Path)
    parser.add_argument("alone", type=Path)
    parser.add_argument("methods", nargs="+", metavar="NAME=RUN[,RUN]")
    parser.add_argument("--named", nargs="*", default=[], metavar="CHILD")
    options = parser.parse_args()
    found = {
        name: [found_child(Path(run)) for run in runs.split(",")]
        for name, _, runs in (given.partition("=") for given in options.methods)
    }
    named = {text: [parse_architecture(text)] for text in options.named}
    children = [child for own in (found | named).values() for child in own]
    if not has_standalone(options.alone):
        check_trained(children, {}, options.alone)
    uniform, alone = read_alone(options.truth, options.alone)
    check_trained(children, alone, options.alone)
    lines = ["| found by | children | loss alone | above the best uniform child | better uniform children |"]
    lines.append("| --- " * 5 + "|")
    lines += [row(name, own, alone, uniform) for name, own in (found | named).items()]
    lines.append(f"| none: uniform | {len(uniform)} | {mean_with_interval(uniform)} | | |")
    for name, own in found.items():
        lines += ["", f"{name}: {'; '.join(map(format_architecture, own))}"]
    publish(lines, options.output)


if __name__ == "__main__":
    main()
