"""Compares encoders by their fine-tunings, task by task, with intervals over seeds.

    python benchmarks/compare_finetunings.py NAME=FOLDER[,FOLDER] NAME=FOLDER[,FOLDER] ... [--output FILE.md]

Each FOLDER is one of `magic-nas finetune`. The other encoders are compared with the first by Welch's t-interval. Seeds
of fine-tuning differ in the new head and the order of the rows, but all start from the same encoder. Scores are those
of GLUE: the mean of accuracy and F1 for MRPC, the mean of both correlations for STS-B.
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
    """Returns the scores of each task in percent, one per seed, for the setting with the best median."""
    settings: dict[str, dict[tuple[float, int], list[float]]] = {}
    for folder in folders:
        for run in json.loads((Path(folder) / "runs.json").read_text(encoding="utf-8")):
            of_task = settings.setdefault(run["task"], {})
            of_task.setdefault((run["learning_rate"], run["batch_size"]), []).append(100 * run["score"])
    return {task: max(found.values(), key=statistics.median) for task, found in settings.items()}


def tasks_of(scores: Mapping[str, Scores]) -> list[str]:
    """Returns the tasks that all encoders have, in the first one's order.

    Raises:
        ValueError: the encoders have different tasks, or one has only one seed of a task.
    """
    first = next(iter(scores.values()))
    for name, own in scores.items():
        if set(own) != set(first):
            raise ValueError(f"{name} has the tasks {', '.join(own)}, but the first encoder has {', '.join(first)}")
        if single := [task for task, values in own.items() if len(values) < 2]:
            raise ValueError(f"{name} has one seed of {single[0]}; an interval needs at least two")
    return list(first)


def score_row(name: str, own: Scores, tasks: Sequence[str]) -> str:
    """Returns the row of an encoder: median and range for each task, then the mean of the medians."""
    cells = [f"{statistics.median(own[task]):.1f} ({min(own[task]):.1f} to {max(own[task]):.1f})" for task in tasks]
    mean = statistics.fmean(statistics.median(own[task]) for task in tasks)
    return f"| {name} | {' | '.join(cells)} | {mean:.1f} |"


def difference_row(name: str, own: Scores, first: Scores, tasks: Sequence[str]) -> str:
    """Returns the row of an encoder: mean difference and 95% interval for each task and for the mean over tasks."""
    cells = [_difference(own[task], first[task]) for task in tasks]
    if len({len(scores[task]) for scores in (own, first) for task in tasks}) > 1:
        return f"| {name} | {' | '.join(cells)} | - |"
    means = [np.mean([scores[task] for task in tasks], axis=0).tolist() for scores in (own, first)]
    return f"| {name} | {' | '.join([*cells, _difference(*means)])} |"


def _difference(own: Sequence[float], first: Sequence[float]) -> str:
    with warnings.catch_warnings():
        # If all seeds give the same answers, the variance is 0, and scipy warns.
        warnings.simplefilter("ignore", RuntimeWarning)
        interval = stats.ttest_ind(own, first, equal_var=False).confidence_interval(0.95)
    return f"{statistics.fmean(own) - statistics.fmean(first):+.1f} ({interval.low:+.1f} to {interval.high:+.1f})"


def main() -> None:
    """Prints both tables, and writes them to the output file if one is given."""
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
    lines += ["", f"| mean difference from {reference} (95% interval) | {names} | mean |", rule]
    lines += [difference_row(name, own, first, tasks) for name, own in others]
    publish(lines, options.output)


if __name__ == "__main__":
    main()
