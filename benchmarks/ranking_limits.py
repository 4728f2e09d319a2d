"""What a ranking by shared weights is made of, and which operators it misjudges.

Tau within groups of children, tau of scores that cost no training, and the effect of each operator in each layer on
the loss, trained alone and with shared weights.

    python benchmarks/ranking_limits.py METHODS [--preset magic-micro] [--below LOSS] [--output FILE.md]

METHODS is a folder of `magic-nas analyze sweep`; nothing is trained or evaluated here. With `--preset`, whose children
they are, parameters and FLOPs are scores too. With `--below` a second group
has the children whose true loss is below LOSS: where some children are on a plateau, telling these from the others is
easy, and a tau over all children is partly made of it. A third group is the better half of the second.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import kendalltau
from tables import mean_with_interval, parser_of, publish
from winners import Losses, read_methods

from training.costs import additive_cost
from training.hub import load_preset
from training.search_space import Architecture


def groups_of(true: Losses, below: float) -> dict[str, list[Architecture]]:
    """Returns the children of each group, by its name."""
    order = sorted(true, key=lambda child: true[child])
    learned = [child for child in order if true[child] < below]
    groups = {"all": order, f"loss below {below:g}": learned} if len(learned) < len(order) else {"all": order}
    return {**groups, "the better half of them": learned[: len(learned) // 2]}


def tau(children: Sequence[Architecture], true: Losses, score: Mapping[Architecture, float]) -> float:
    """Kendall's tau-b between true losses and a score that is lower for better children."""
    return float(kendalltau([true[child] for child in children], [score[child] for child in children]).statistic)


def untrained_scores(true: Losses, preset: str | None = None) -> dict[str, Losses]:
    """Returns scores that need no training, lower for better children: counts of operators, and costs."""
    names = sorted({name for child in true for name in child})
    kinds: dict[str, Callable[[str], bool]] = {name: name.__eq__ for name in names}
    kinds["convolutions"] = lambda name: name.startswith("CONV")
    scores: dict[str, Losses] = {
        f"number of {kind}": {child: -float(sum(map(is_kind, child))) for child in true}
        for kind, is_kind in kinds.items()
    }
    if preset:
        config = load_preset(preset)
        for name in ("num_parameters", "flops"):
            cost = additive_cost(config, name, seq_len=min(128, config.max_position_embeddings))
            scores[f"minus {name}"] = {child: cost(child) for child in true}
    return scores


def effects(losses: Losses, children: Sequence[Architecture]) -> dict[tuple[int, str], float]:
    """Mean loss of the children that have an operator in a layer, less the mean of all; layers count from 1."""
    grand = statistics.fmean(losses[child] for child in children)
    having: dict[tuple[int, str], list[float]] = {}
    for child in children:
        for place, name in enumerate(child, 1):
            having.setdefault((place, name), []).append(losses[child])
    return {key: statistics.fmean(values) - grand for key, values in having.items()}


def additive_fit(losses: Losses, children: Sequence[Architecture]) -> Losses:
    """Returns the least-squares fit of losses by one number for each operator in each layer."""
    columns = sorted({(place, name) for child in children for place, name in enumerate(child)})
    design = np.array([[float(child[place] == name) for place, name in columns] for child in children])
    values = np.array([losses[child] for child in children])
    fitted = design @ np.linalg.lstsq(design, values, rcond=None)[0]
    return dict(zip(children, fitted.tolist(), strict=True))


def main() -> None:
    """Prints the tables, and writes them where asked."""
    parser = parser_of(__doc__)
    parser.add_argument("methods", type=Path)
    parser.add_argument("--preset")
    parser.add_argument("--below", type=float, default=float("inf"), metavar="LOSS")
    options = parser.parse_args()
    true, shared = read_methods(options.methods)
    groups = groups_of(true, options.below)
    heads = " | ".join(f"{name} ({len(children)})" for name, children in groups.items())
    rule = "| --- " * (len(groups) + 1) + "|"
    lines = [f"| tau of | {heads} |", rule]
    for method, supernets in shared.items():
        cells = [mean_with_interval([tau(group, true, one) for one in supernets]) for group in groups.values()]
        lines.append(f"| {method} | {' | '.join(cells)} |")
        averaged = {child: statistics.fmean(one[child] for one in supernets) for child in true}
        cells = [f"{tau(group, true, averaged):.3f}" for group in groups.values()]
        lines.append(f"| {method}, mean loss of its super-nets | {' | '.join(cells)} |")
    for name, score in untrained_scores(true, options.preset).items():
        lines.append(f"| {name} | {' | '.join(f'{tau(group, true, score):.3f}' for group in groups.values())} |")
    fits = [tau(group, true, additive_fit(true, group)) for group in groups.values()]
    lines.append(f"| the truth's own additive fit | {' | '.join(f'{fit:.3f}' for fit in fits)} |")
    # All that have learned: the last group is chosen by the very losses that its effects would be means of.
    group_name, group = list(groups.items())[-2]
    alone = effects(true, group)
    lines += ["", f"Effect of an operator on the loss, children of the group {group_name!r}:", ""]
    lines += [f"| layer | operator | alone | {' | '.join(shared)} |", "| --- " * (len(shared) + 3) + "|"]
    of_methods = [[effects(one, group) for one in supernets] for supernets in shared.values()]
    for place, name in sorted(alone):
        cells = [f"{statistics.fmean(one[place, name] for one in found):+.3f}" for found in of_methods]
        lines.append(f"| {place} | {name} | {alone[place, name]:+.3f} | {' | '.join(cells)} |")
    publish(lines, options.output)


if __name__ == "__main__":
    main()
