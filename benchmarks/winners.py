"""Computes the regret of search winners, trained alone, against the best child of the space.

    python benchmarks/winners.py METHODS [--shrunk RUN ...] [--num-evaluations 64] [--output FILE.md]

METHODS is a folder of `magic-nas analyze sweep` whose truth holds every child of the space. Its children.csv has the
truth and the shared-weight scores, so nothing is trained or evaluated here. Each RUN is a super-net run that shrinking
has reduced to one child (`magic-nas pretrain --shrink`).
"""

import csv
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

from found_children import found_child
from tables import mean_with_interval, parser_of, publish

from training import Budget, BudgetedSpace, EvolutionSearcher, RandomSearcher, RankedChild, SearchSpace
from training.search.searchers import Searcher
from training.space.search_space import Architecture, format_architecture, parse_architecture


Losses = Mapping[Architecture, float]


def read_methods(folder: Path) -> tuple[Losses, dict[str, list[Losses]]]:
    """Returns the true loss of each child, and the shared-weight losses of each method's super-nets."""
    with open(folder / "supernets.csv", encoding="utf-8", newline="") as file:
        method_of = {row["supernet"]: row["method"] for row in csv.DictReader(file)}
    with open(folder / "children.csv", encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    children = [parse_architecture(row["architecture"]) for row in rows]
    true = {child: float(row["val_loss"]) for child, row in zip(children, rows, strict=True)}
    shared: dict[str, list[Losses]] = {}
    for supernet, method in method_of.items():
        losses = {child: -float(row[f"score {supernet}"]) for child, row in zip(children, rows, strict=True)}
        shared.setdefault(method, []).append(losses)
    return true, shared


def space_of(children: Iterable[Architecture]) -> SearchSpace:
    """Returns the space that the children span.

    Raises:
        ValueError: some of its children are missing.
    """
    known = set(children)
    space = SearchSpace.from_json([sorted(set(layer)) for layer in zip(*known, strict=True)])
    if space.size != len(known):
        raise ValueError(
            f"the truth holds {len(known)} of {space.size} children; it must hold all, as a search may end in any"
        )
    return space


def search_winner(searcher: Searcher, shared: Losses, num_evaluations: int) -> Architecture:
    """Returns the child with the lowest shared-weight loss among those that a searcher asks for."""
    asked: list[RankedChild] = []
    while len(asked) < num_evaluations and (children := searcher.ask()):
        ranked = [RankedChild(child, shared[child], 0.0) for child in children[: num_evaluations - len(asked)]]
        searcher.tell(ranked)
        asked += ranked
    return min(asked, key=lambda child: child.val_loss).architecture


def row(name: str, how: str, winners: Sequence[Architecture], true: Losses) -> str:
    """Returns one row of the table: the mean regret of winners with its t-interval, and their mean place."""
    order = sorted(true, key=lambda child: true[child])
    regrets = [true[winner] - true[order[0]] for winner in winners]
    place = statistics.fmean(order.index(winner) + 1 for winner in winners)
    return f"| {name} | {how} | {len(winners)} | {mean_with_interval(regrets)} | {place:.1f} |"


def main() -> None:
    """Prints the table, and writes it to the output file if one is given."""
    parser = parser_of(__doc__)
    parser.add_argument("methods", type=Path)
    parser.add_argument("--shrunk", type=Path, nargs="*", default=[])
    parser.add_argument("--num-evaluations", type=int, default=64)
    options = parser.parse_args()
    true, shared = read_methods(options.methods)
    space, number = BudgetedSpace(space_of(true), Budget()), options.num_evaluations
    # The defaults are for spaces of billions, where 50 children are a first generation.
    searchers: dict[str, Callable[[int], Searcher]] = {
        "evolution": partial(EvolutionSearcher, space, population_size=16, generation_size=8, num_parents=6),
        "random search": partial(RandomSearcher, space),
    }
    best = min(true, key=lambda child: true[child])
    lines = [
        f"{len(true)} children; the best is {format_architecture(best)} with a loss of {true[best]:.3f}. Regret is "
        f"the loss of a winner, trained alone, minus that loss; 95% t-intervals over super-nets.",
        "",
        "| super-nets | winner of | winners | mean regret | mean place |",
        "| --- | --- | --- | --- | --- |",
    ]
    for method, supernets in shared.items():
        everywhere = [min(one, key=lambda child: one[child]) for one in supernets]
        lines.append(row(method, "all children", everywhere, true))
        for name, searcher_of in searchers.items():
            found = [search_winner(searcher_of(seed), one, number) for seed, one in enumerate(supernets)]
            lines.append(row(method, f"{name}, {number} children", found, true))
    if options.shrunk:
        lines.append(row("shrinking", "shrinking", [found_child(run) for run in options.shrunk], true))
    lines.append(row("none", "chance: every child", list(true), true))
    publish(lines, options.output)


if __name__ == "__main__":
    main()
