"""The table of a fine-tuning sweep: medians over seeds of the best setting.

GLUE's table has the layout of the paper's Tables 2 and 4; that of a user's own data has a column for each metric.
"""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ..files import csv_text, write_text
from ..tables import counted, markdown_table


# The columns of Table 2, in its order.
PAPER_COLUMNS = ("mnli", "qqp", "qnli", "cola", "sst2", "stsb", "rte", "mrpc")
# Paper silent: which metric it shows for a task that has two. With these, the test results for BERT-base are those of
# the leaderboard.
_SHOWN = {"qqp": "accuracy", "mrpc": "accuracy", "stsb": "spearmanr"}
_GLUE_CAPTION = (
    " MNLI, QQP, QNLI, SST-2, RTE, MRPC, WNLI: accuracy; CoLA: Matthews' correlation; STS-B: Spearman's. AVG is over "
    "the eight tasks of the paper's Table 2, MNLI matched."
)
_SPLIT_SUFFIX = {"validation_matched": "-m", "validation_mismatched": "-mm"}
_STATISTICS: dict[str, Callable[[Sequence[float]], float]] = {"median": statistics.median, "min": min, "max": max}


@dataclass(frozen=True)
class FinetuneRun:
    """One finished fine-tuning of a sweep, as recorded.

    Attributes:
        key: hash of all that the result depends on.
        group: hash of the same without learning rate, batch size and seed.
        task: name of the task.
        score: score of the task on its first validation split, after the best epoch; the negative if it is the loss.
        metrics: for each validation split its metrics, score and loss after that epoch.
        epochs: the same after every epoch.
    """

    key: str
    group: str
    task: str
    learning_rate: float
    batch_size: int
    seed: int
    score: float
    metrics: dict[str, dict[str, float]]
    best_step: int
    epochs: list[dict[str, Any]]
    steps: int
    seconds: float


@dataclass(frozen=True)
class ScoresOnTest:
    """The results of the best model on a test file.

    Attributes:
        num_rows: number of rows of the file.
        metrics: metrics and score; `None` if the file has no labels.
        predictions: path of the predictions, relative to the run's folder.
    """

    num_rows: int
    metrics: dict[str, float] | None
    predictions: str


@dataclass(frozen=True)
class TaskRow:
    """The results of one task of a sweep.

    Attributes:
        task: name of the task.
        title: reported title, with the number of rows if that is a part of the task's.
        runs: runs of the best setting, one for each seed.
        num_scored: scored rows of the first validation split, which may be a part of it; `None` if unknown.
        own_metrics: metrics of a user's own data, the one that is the score first; empty for GLUE.
        test: results on a user's own test file.
        class_weights: weights in the training loss, by class; `None` if all rows count equally.
        best_metric: what chooses epoch, setting and model; `None` means the mean of the task's metrics.
    """

    task: str
    title: str
    runs: tuple[FinetuneRun, ...]
    num_scored: int | None = None
    own_metrics: tuple[str, ...] = ()
    test: ScoresOnTest | None = None
    best_metric: str | None = None
    class_weights: dict[str, float] | None = None

    @property
    def shown(self) -> str:
        """The metric that represents the task if only one is shown."""
        return self.own_metrics[0] if self.own_metrics else _SHOWN.get(self.task, "score")

    def values(self, split: str, metric: str | None = None) -> list[float]:
        """Returns, for each seed, a metric of a split, from 0 to 1; by default the metric that is shown."""
        return [run.metrics[split][metric or self.shown] for run in self.runs]

    @property
    def splits(self) -> list[str]:
        """The validation splits, the one that chose the setting first."""
        return list(self.runs[0].metrics)

    def to_json(self) -> dict[str, Any]:
        """Returns the row as JSON: the setting, and for each split and metric the median, the range and all seeds."""
        first = self.runs[0]
        return {
            "task": self.task,
            "title": self.title,
            "learning_rate": first.learning_rate,
            "batch_size": first.batch_size,
            "seeds": [run.seed for run in self.runs],
            "num_scored": self.num_scored,
            "shown": self.shown,
            "metric_for_best_model": self.best_metric,
            **({} if self.class_weights is None else {"class_weights": self.class_weights}),
            **({} if self.test is None else {"test": asdict(self.test)}),
            "metrics": {
                split: {
                    name: _summary([run.metrics[split][name] for run in self.runs]) for name in first.metrics[split]
                }
                for split in self.splits
            },
        }


def _summary(values: list[float]) -> dict[str, Any]:
    return {**{name: function(values) for name, function in _STATISTICS.items()}, "values": values}


def best_setting(runs: Iterable[FinetuneRun]) -> tuple[FinetuneRun, ...]:
    """Returns the runs of the learning rate and batch size with the best median score over seeds, the first if equal.

    Args:
        runs: runs of one task, each setting with the same seeds.

    Raises:
        ValueError: there are no runs, or a setting lacks a seed.
    """
    by_setting: dict[tuple[float, int], list[FinetuneRun]] = {}
    for run in runs:
        by_setting.setdefault((run.learning_rate, run.batch_size), []).append(run)
    seeds = {tuple(sorted(run.seed for run in setting)) for setting in by_setting.values()}
    if len(seeds) != 1:
        raise ValueError(
            f"settings can only be compared over the same seeds, not over {sorted(seeds)}; train each with all of them"
        )
    return tuple(max(by_setting.values(), key=lambda setting: statistics.median(run.score for run in setting)))


# ---- The table ----


def average(rows: Sequence[TaskRow]) -> dict[str, float] | None:
    """Returns the median, min and max of AVG, `None` unless all columns of Table 2 are present.

    The median is the mean of the columns' medians, as in the paper; min and max are over the seeds' means. MNLI counts
    once, matched.
    """
    found = {row.task: row.values(row.splits[0]) for row in rows if not row.own_metrics}
    return _average([found[task] for task in PAPER_COLUMNS]) if found.keys() >= set(PAPER_COLUMNS) else None


def _average(columns: Sequence[Sequence[float]]) -> dict[str, float]:
    of_seeds = [statistics.mean(values) for values in zip(*columns, strict=True)]
    return {
        "median": statistics.mean(statistics.median(values) for values in columns),
        "min": min(of_seeds),
        "max": max(of_seeds),
    }


def table_columns(rows: Sequence[TaskRow]) -> dict[str, dict[str, float | None]]:
    """Returns the columns of the table by their titles: median, min and max in percent, `None` if there is no value.

    Those of Table 2 come first if any of them is present, then AVG, then all others. A user's own data have a column
    for each metric.
    """
    found = {row.task: row for row in rows if not row.own_metrics}
    columns: dict[str, dict[str, float | None]] = {}
    paper = [found[task] for task in PAPER_COLUMNS if task in found]
    for row in paper:
        columns |= _columns_of(row)
    if paper:
        mean = average(rows)
        columns["AVG"] = {name: None if mean is None else 100 * mean[name] for name in _STATISTICS}
    for row in rows:
        if row.own_metrics or row.task not in PAPER_COLUMNS:
            columns |= _columns_of(row)
    return columns


def _columns_of(row: TaskRow) -> dict[str, dict[str, float | None]]:
    shown = [(f"{row.title}: {metric}", row.splits[0], metric) for metric in row.own_metrics] or [
        (row.title + _SPLIT_SUFFIX.get(split, ""), split, row.shown) for split in row.splits
    ]
    return {
        title: {name: 100 * function(row.values(split, metric)) for name, function in _STATISTICS.items()}
        for title, split, metric in shown
    }


def write_table(rows: Sequence[TaskRow], model: str, num_parameters: int, folder: Path) -> tuple[Path, Path]:
    """Writes table.csv and table.md, each atomically, and returns their paths.

    Args:
        rows: rows of the finished tasks.
        model: name of the model.
        num_parameters: number of parameters of its encoder, including embeddings.
        folder: the folder to write to.
    """
    columns = table_columns(rows)
    texts = (_csv(columns, model, num_parameters), _markdown(columns, rows, model, num_parameters))
    paths = (folder / "table.csv", folder / "table.md")
    for path, text in zip(paths, texts, strict=True):
        write_text(path, text)
    return paths


def _csv(columns: dict[str, dict[str, float | None]], model: str, num_parameters: int) -> str:
    rows = []
    for name in _STATISTICS:
        values = [column[name] for column in columns.values()]
        rows.append([model, num_parameters, name, *("" if value is None else f"{value:.4f}" for value in values)])
    return csv_text(["model", "params", "statistic", *columns], rows)


def _markdown(
    columns: dict[str, dict[str, float | None]], rows: Sequence[TaskRow], model: str, num_parameters: int
) -> str:
    scores = [
        [model, _millions(num_parameters), *map(_cell, columns.values())],
        ["min to max", "", *map(_spread, columns.values())],
    ]
    lines = [
        markdown_table(["Model", "Params", *columns], scores),
        "",
        "Dev set, in percent: medians over seeds of the setting with the best median, and below them the range over "
        "seeds; each fine-tuning counts with its best epoch.",
    ]
    if any(not row.own_metrics for row in rows):
        lines[-1] += _GLUE_CAPTION
    for row in rows:
        if row.best_metric:
            lines[-1] += f" Epoch, setting and model of {row.title} are chosen by {row.best_metric}."
        if row.class_weights is not None:
            shown = ", ".join(f"{name} {weight:.4g}" for name, weight in row.class_weights.items())
            lines[-1] += f" Class weights of {row.title} in the training loss: {shown}."
    for row in rows:
        lines += _test_lines(row)
    paper = [row for row in rows if not row.own_metrics and row.task in PAPER_COLUMNS]
    if 1 < len(paper) < len(PAPER_COLUMNS):
        mean = _average([row.values(row.splits[0]) for row in paper])
        spread = f"{100 * mean['min']:.1f} to {100 * mean['max']:.1f}"
        lines += ["", f"Mean of these {len(paper)} tasks: {100 * mean['median']:.1f} ({spread})."]
    settings = [
        [
            row.title,
            f"{row.runs[0].learning_rate:g}",
            row.runs[0].batch_size,
            ", ".join(str(run.seed) for run in row.runs),
            "-" if row.num_scored is None else f"{row.num_scored:,}",
        ]
        for row in rows
    ]
    lines += ["", markdown_table(["Task", "learning rate", "batch size", "seeds", "dev rows"], settings)]
    return "\n".join(lines) + "\n"


def _test_lines(row: TaskRow) -> list[str]:
    if row.test is None:
        return []
    predictions = f"predictions in {row.test.predictions}"
    if row.test.metrics is None:
        return ["", f"Test file of {row.title}: {counted(row.test.num_rows, 'row')} without labels; {predictions}."]
    values = [f"{100 * row.test.metrics[name]:.1f}" for name in row.own_metrics]
    caption = f"Test file of {row.title}, in percent: the best model on dev; {predictions}."
    table = markdown_table([*row.own_metrics, "test rows"], [[*values, f"{row.test.num_rows:,}"]])
    return ["", table, "", caption]


def _millions(num_parameters: int) -> str:
    return f"{num_parameters / 1e6:.0f}M" if num_parameters >= 10**7 else f"{num_parameters / 1e6:.2f}M"


def _cell(column: dict[str, float | None]) -> str:
    return "-" if column["median"] is None else f"{column['median']:.1f}"


def _spread(column: dict[str, float | None]) -> str:
    return "" if column["median"] is None else f"{column['min']:.1f} to {column['max']:.1f}"
