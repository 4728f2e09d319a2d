"""Analyses a ranking by shared weights: where its tau comes from, and which operators it misjudges.

The tables show tau within groups of children, tau of scores that need no training, and the effect of each operator in
each layer on the loss, trained alone and with shared weights.

    python benchmarks/ranking_limits.py METHODS [--preset magic-micro] [--below LOSS] [--output FILE.md]

METHODS is a folder of `magic-nas analyze sweep`; nothing is trained or evaluated here. With `--preset`, the preset of
the children, parameters and FLOPs are scores too. With `--below`, a second group has the children whose true loss is
below LOSS: if some children are on a plateau, they are easy to distinguish from the others, and this raises tau over
all children. A third group is the better half of the second. The last column is for pairs in the second group that
have equally many convolutions, which a count of convolutions cannot rank.
"""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from tables import mean_with_interval, parser_of, publish
from winners import Losses, read_methods

from training import load_preset
from training.analysis.ranking import tau_among_equals
from training.space.costs import additive_cost
from training.space.search_space import Architecture


def groups_of(true: Losses, below: float) -> dict[str, list[Architecture]]:
    """Returns the children of each group by name."""
    order = sorted(true, key=lambda child: true[child])
    learned = [child for child in order if true[child] < below]
    groups = {"all": order, f"loss below {below:g}": learned} if len(learned) < len(order) else {"all": order}
    return {**groups, "the better half of them": learned[: len(learned) // 2]}


def tau(children: Sequence[Architecture], true: Losses, score: Mapping[Architecture, float]) -> float:
    """Returns Kendall's tau-b between true losses and a score that is lower for better children."""
    return float(kendalltau([true[child] for child in children], [score[child] for child in children]).statistic)


def tau_of_equals(children: Sequence[Architecture], true: Losses, score: Losses) -> float:
    """Returns Kendall's tau between children with equally many convolutions (see `tau_among_equals`)."""
    return tau_among_equals({child: true[child] for child in children}, score, _num_convolutions)


def _num_convolutions(child: Architecture) -> int:
    return sum(name.startswith("CONV") for name in child)


def untrained_scores(true: Losses, preset: str | None = None) -> dict[str, Losses]:
    """Returns scores that need no training, lower for better children: counts of operators, and costs."""
    names = sorted({name for child in true for name in child})
    scores: dict[str, Losses] = {
        f"number of {name}": {child: -float(child.count(name)) for child in true} for name in names
    }
    scores["number of convolutions"] = {child: -float(_num_convolutions(child)) for child in true}
    if preset:
        config = load_preset(preset)
        for name in ("num_parameters", "flops"):
            cost = additive_cost(config, name, seq_len=min(128, config.max_position_embeddings))
            scores[f"minus {name}"] = {child: cost(child) for child in true}
    return scores


def effects(losses: Losses, children: Sequence[Architecture]) -> dict[tuple[int, str], float]:
    """Returns the mean loss of the children with an operator in a layer, minus the mean of all; layers from 1."""
    grand = statistics.fmean(losses[child] for child in children)
    having: dict[tuple[int, str], list[float]] = {}
    for child in children:
        for place, name in enumerate(child, 1):
            having.setdefault((place, name), []).append(losses[child])
    return {key: statistics.fmean(values) - grand for key, values in having.items()}


def additive_fit(losses: Losses, children: Sequence[Architecture]) -> Losses:
    """Returns the losses that one number for each operator in each layer predicts, fitted to some children."""
    columns = sorted({(place, name) for child in losses for place, name in enumerate(child)})
    design = {child: np.array([float(child[place] == name) for place, name in columns]) for child in losses}
    known = np.array([losses[child] for child in children])
    numbers = np.linalg.lstsq(np.stack([design[child] for child in children]), known, rcond=None)[0]
    return {child: float(design[child] @ numbers) for child in losses}


def effects_table(true: Losses, shared: Mapping[str, Sequence[Losses]], children: Sequence[Architecture]) -> list[str]:
    """Returns the effect of each operator in each layer, trained alone and as a mean over each method's super-nets."""
    alone = effects(true, children)
    of_methods = [[effects(one, children) for one in supernets] for supernets in shared.values()]
    lines = [f"| layer | operator | alone | {' | '.join(shared)} |", "| --- " * (len(shared) + 3) + "|"]
    for place, name in sorted(alone):
        cells = [f"{statistics.fmean(one[place, name] for one in found):+.3f}" for found in of_methods]
        lines.append(f"| {place} | {name} | {alone[place, name]:+.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Prints the tables, and writes them to the output file if one is given."""
    parser = parser_of(__doc__)
    parser.add_argument("methods", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--below", type=float, default=float("inf"), metavar="LOSS")
    options = parser.parse_args()
    true, shared = read_methods(options.methods)
    groups = groups_of(true, options.below)
    # The group of all children that have learned. Effects in the last group would be biased, as it is chosen by loss.
    group_name, group = list(groups.items())[-2]
    heads = " | ".join(f"{name} ({len(children)})" for name, children in groups.items())
    lines = [f"| tau of | {heads} | equally many convolutions |", "| --- " * (len(groups) + 2) + "|"]

    def taus(score: Losses) -> list[float]:
        return [*(tau(children, true, score) for children in groups.values()), tau_of_equals(group, true, score)]

    def row(name: str, cells: Iterable[str]) -> str:
        # Tau is undefined for a score that is the same for all children.
        return f"| {name} | {' | '.join(cells).replace('nan', '-')} |"

    for method, supernets in shared.items():
        lines.append(row(method, map(mean_with_interval, zip(*map(taus, supernets), strict=True))))
        averaged = {child: statistics.fmean(one[child] for one in supernets) for child in true}
        lines.append(row(f"{method}, mean loss of its super-nets", (f"{one:.3f}" for one in taus(averaged))))
    untrained = untrained_scores(true, options.preset)
    for name, score in {**untrained, "additive fit of the truth": additive_fit(true, group)}.items():
        lines.append(row(name, (f"{one:.3f}" for one in taus(score))))
    lines += ["", f"Effect of an operator on the loss, for children of the group {group_name!r}:", ""]
    publish([*lines, *effects_table(true, shared, group)], options.output)


if __name__ == "__main__":
    main()
