"""Compares encoders by their fine-tunings, task by task, with intervals over seeds.

    python benchmarks/compare_finetunings.py NAME=FOLDER[,FOLDER] NAME=FOLDER[,FOLDER] ... [--output FILE.md]

FOLDERs are those of `magic-nas finetune`. All others are held against the first encoder by Welch's t-interval: seeds
of fine-tuning differ in the new head and the order of the rows, the encoder behind them is one and the same. Scores
are GLUE's own: of MRPC the mean of accuracy and F1, of STS-B that of both correlations.
"""

import json
import statistics
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from scipy import stats
from tables import parser_of, publish


Scores = Mapping[str, Sequence[float]]


def read_scores(folders: Sequence[str]) -> dict[str, list[float]]:
    """Returns the scores of each task in percent, one a seed, of the setting with the best median."""
    settings: dict[str, dict[tuple[float, int], list[float]]] = {}
    for folder in folders:
        for run in json.loads((Path(folder) / "runs.json").read_text(encoding="utf-8")):
            of_task = settings.setdefault(run["task"], {})
            of_task.setdefault((run["learning_rate"], run["batch_size"]), []).append(100 * run["score"])
    return {task: max(found.values(), key=statistics.median) for task, found in settings.items()}


def tasks_of(scores: Mapping[str, Scores]) -> list[str]:
    """Returns the tasks that all encoders have, in the first one's order.

    Raises:
        ValueError: an encoder lacks one, or has one seed of it only.
    """
    first = next(iter(scores.values()))
    for name, own in scores.items():
        if set(own) != set(first):
            raise ValueError(f"{name} has the tasks {', '.join(own)}, the first encoder {', '.join(first)}")
        if single := [task for task, values in own.items() if len(values) < 2]:
            raise ValueError(f"{name} has one seed of {single[0]}; an interval needs two or more")
    return list(first)


def score_row(name: str, own: Scores, tasks: Sequence[str]) -> str:
    """An encoder's row: of each task the median and the range, last the mean of the medians."""
    cells = [f"{statistics.median(own[task]):.1f} ({min(own[task]):.1f} to {max(own[task]):.1f})" for task in tasks]
    mean = statistics.fmean(statistics.median(own[task]) for task in tasks)
    return f"| {name} | {' | '.join(cells)} | {mean:.1f} |"


def difference_row(name: str, own: Scores, first: Scores, tasks: Sequence[str]) -> str:
    """An encoder's row: of each task, and of the mean over tasks, the mean difference and its 95% interval."""
    cells = [_difference(own[task], first[task]) for task in tasks]
    if len({len(scores[task]) for scores in (own, first) for task in tasks}) > 1:
        return f"| {name} | {' | '.join(cells)} | - |"
    means = [np.mean([scores[task] for task in tasks], axis=0).tolist() for scores in (own, first)]
    return f"| {name} | {' | '.join([*cells, _difference(*means)])} |"


def _difference(own: Sequence[float], first: Sequence[float]) -> str:
    with warnings.catch_warnings():
        # Where all seeds end in the same answers, the variance is 0, which scipy warns of.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_ind(own, first, equal_var=False).confidence_interval(0.95)
    return f"{statistics.fmean(own) - statistics.fmean(first):+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def main() -> None:
    """Prints both tables, and writes them where asked."""
    parser = parser_of(__doc__)
    parser.add_argument("encoders", nargs="+", metavar="NAME=FOLDER[,FOLDER]")
    options = parser.parse_args()
    named = dict(encoder.split("=", 1) for encoder in options.encoders)
    scores = {name: read_scores(folders.split(",")) for name, folders in named.items()}
    tasks = tasks_of(scores)
    (reference, first), *others = scores.items()
    names = " | ".join(task.upper() for task in tasks)
    rule = "| --- " * (len(tasks) + 2) + "|"
    lines = [f"| median (range over seeds) | {names} | mean |", rule]
    lines += [score_row(name, own, tasks) for name, own in scores.items()]
    lines += ["", f"| mean difference to {reference} (95% interval) | {names} | mean |", rule]
    lines += [difference_row(name, own, first, tasks) for name, own in others]
    publish(lines, options.output)


if __name__ == "__main__":
    main()
