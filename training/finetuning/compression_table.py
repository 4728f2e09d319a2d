"""The table of compressed encoders (5.4): the published rows of the paper's Table 4, and a user's results below them.

All published numbers are those that the paper prints; what it omits is omitted here. None of them was measured by this
package.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..files import csv_text, read_json
from ..tables import markdown_table
from .glue_table import PAPER_COLUMNS


SPLITS = ("dev", "test")
OWN_SOURCE = "this run"
_TITLES = {
    "mnli": "MNLI",
    "qqp": "QQP",
    "qnli": "QNLI",
    "cola": "CoLA",
    "sst2": "SST-2",
    "stsb": "STS-B",
    "rte": "RTE",
    "mrpc": "MRPC",
}


@dataclass(frozen=True)
class CompressionRow:
    """One model's results on one split, in percent.

    Attributes:
        model: its name.
        num_parameters: number of parameters, including embeddings.
        split: "dev" or "test", the leaderboard's.
        scores: scores by the names of `finetuning.tasks.GLUE`; tasks may be missing. MNLI is the matched one.
        source: who published it, or where it was measured.
        average: the published average; `None` means the mean over the eight tasks, if all are present.
        augmented: whether the fine-tuning sets were enlarged, the "*" of Table 4.
    """

    model: str
    num_parameters: int
    split: str
    scores: Mapping[str, float] = field(hash=False)
    source: str = OWN_SOURCE
    average: float | None = None
    augmented: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"the split of {self.model} is {self.split!r}; choose one of: {', '.join(SPLITS)}")
        for task, score in self.scores.items():
            if task not in PAPER_COLUMNS:
                raise ValueError(f"{self.model} has a score for {task!r}; tasks: {', '.join(PAPER_COLUMNS)}")
            # Correlations may be this small, accuracies are not.
            is_share = task not in ("cola", "stsb") and 0 < score <= 1
            if is_share or not -100 <= score <= 100:
                raise ValueError(f"{task} of {self.model} is {score}; scores are in percent, such as 84.2")

    @property
    def shown_average(self) -> float | None:
        """The published average, else the mean over the eight tasks, `None` if one is missing."""
        if self.average is not None:
            return self.average
        if self.scores.keys() != set(PAPER_COLUMNS):
            return None
        return math.fsum(self.scores[task] for task in PAPER_COLUMNS) / len(PAPER_COLUMNS)


def _published(
    split: str, model: str, citation: str, millions: int, scores: str, average: float | None, augmented: bool = False
) -> CompressionRow:
    """Returns a row from the scores in the order of Table 4, "-" if the paper prints none."""
    values = zip(PAPER_COLUMNS, scores.split(), strict=True)
    return CompressionRow(
        model=model,
        num_parameters=millions * 10**6,
        split=split,
        scores={task: float(score) for task, score in values if score != "-"},
        source=f"{citation}, as in Table 4 of the paper" if citation else "Table 4 of the paper",
        average=average,
        augmented=augmented,
    )


# In the order of Table 4: MNLI QQP QNLI CoLA SST-2 STS-B RTE MRPC, then AVG.
PUBLISHED: tuple[CompressionRow, ...] = (
    _published("dev", "DistilBERT", "Sanh et al., 2019", 66, "82.2 88.5 89.2 51.3 91.3 86.9 59.9 87.5", 79.6),
    _published("dev", "MiniLM", "Wang et al., 2020", 66, "84.0 91.0 91.0 49.2 92.0 - 71.5 88.4", None),
    _published("dev", "BERT-of-Theseus", "Xu et al., 2020", 66, "82.3 89.6 89.5 51.1 91.5 88.7 68.2 -", None),
    _published("dev", "PD-BERT", "Turc et al., 2019", 66, "82.5 90.7 89.4 - 91.1 - 66.7 84.9", None),
    _published("dev", "DynaBERT", "Hou et al., 2020", 60, "84.2 91.2 91.5 56.8 92.7 89.2 72.2 84.1", 82.7, True),
    _published("dev", "NAS-BERT", "Xu et al., 2021", 60, "84.1 91.0 91.3 58.1 92.1 89.4 79.2 88.5", 84.2),
    _published("dev", "SPOS", "Guo et al., 2020", 60, "84.0 90.7 91.1 57.1 91.6 88.2 75.9 86.5", 83.1),
    _published("dev", "MAGIC-AT", "", 60, "84.5 90.9 91.1 61.8 92.8 89.0 78.9 89.2", 84.8),
    _published("test", "BERT-of-Theseus", "Xu et al., 2020", 66, "82.4 89.3 89.6 47.8 92.2 84.1 66.2 83.2", 79.4),
    _published("test", "PD-BERT", "Turc et al., 2019", 66, "82.8 88.5 88.9 - 91.8 - 65.3 81.7", None),
    _published("test", "BERT-PKD", "Sun et al., 2019", 66, "81.5 88.9 89.0 - 92.0 - 65.5 79.9", None),
    _published("test", "TinyBERT", "Jiao et al., 2020", 66, "84.6 89.1 90.4 51.1 93.1 83.7 70.0 82.6", 80.6, True),
    _published("test", "NAS-BERT", "Xu et al., 2021", 60, "83.5 88.9 90.9 48.4 92.9 86.1 73.7 84.5", 81.1),
    _published("test", "SPOS", "Guo et al., 2020", 60, "83.5 88.5 90.6 52.4 91.7 86.5 74.2 83.6", 81.4),
    _published("test", "MAGIC-AT", "", 60, "84.2 88.8 90.6 53.6 92.1 86.8 75.6 84.3", 82.0),
)
"""Table 4 of the paper."""


def sweep_row(folder: str | Path, model: str | None = None) -> CompressionRow:
    """Returns the dev-set row of a run of `magic-nas finetune`: medians over seeds, as its own table shows them.

    If a task was trained on a part of its rows, the source says so.

    Args:
        folder: folder of the run; tasks that are not in Table 4 are ignored.
        model: the name to show; `None` takes the last part of the run's model name.

    Raises:
        ValueError: the run has not written a result, is not a fine-tuning, or holds no task of Table 4.
    """
    path = Path(folder) / "result.json"
    if not path.is_file():
        raise ValueError(
            f"{folder} holds no result of a fine-tuning; give a folder that `magic-nas finetune` finished"
        )
    result = read_json(path)
    if "tasks" not in result:
        raise ValueError(f"{folder} is a run of another command; give runs of `magic-nas finetune`")
    scores, parts = {}, []
    for row in result["tasks"]:
        if row["task"] in PAPER_COLUMNS:
            # MNLI's matched split comes first.
            first = next(iter(row["metrics"].values()))
            scores[row["task"]] = 100 * statistics.median(first[row["shown"]]["values"])
            if row["title"] != _TITLES[row["task"]]:
                parts.append(row["title"])
    if not scores:
        raise ValueError(f"{folder} holds none of the tasks of Table 4 ({', '.join(PAPER_COLUMNS)})")
    source = f"{OWN_SOURCE} ({', '.join(parts)})" if parts else OWN_SOURCE
    return CompressionRow(model or Path(result["model"]).name, result["num_parameters"], "dev", scores, source)


def compression_table(rows: Sequence[CompressionRow] = (), form: str = "markdown", published: bool = True) -> str:
    """Returns the user's results below the published rows of Table 4, dev set first.

    Args:
        rows: the user's rows, such as those of `sweep_row`.
        form: "markdown" or "csv".
        published: whether to include the paper's rows.

    Raises:
        ValueError: `form` is neither of these.
    """
    if form not in ("markdown", "csv"):
        raise ValueError(f"form is {form!r}; choose one of: markdown, csv")
    every = [*(PUBLISHED if published else ()), *rows]
    ordered = [row for split in SPLITS for row in every if row.split == split]
    return _markdown(ordered) if form == "markdown" else _csv(ordered)


def _csv(rows: Sequence[CompressionRow]) -> str:
    lines = []
    for row in rows:
        values = [row.scores.get(task) for task in PAPER_COLUMNS] + [row.shown_average]
        cells = ["" if value is None else f"{value:g}" for value in values]
        lines.append([row.split, row.model, row.num_parameters, *cells, str(row.augmented).lower(), row.source])
    return csv_text(["split", "model", "params", *_TITLES.values(), "AVG", "augmented", "source"], lines)


def _markdown(rows: Sequence[CompressionRow]) -> str:
    lines = []
    for split in SPLITS:
        own = [row for row in rows if row.split == split]
        if not own:
            continue
        lines += [
            f"{split.capitalize()} set:",
            "",
            markdown_table(["Model", "Params", *_TITLES.values(), "AVG", "source"], map(_cells, own)),
            "",
        ]
    lines.append(
        "In percent; MNLI matched. \\* = with data augmentation. Published rows are quoted, not measured here; others "
        "are comparable with them if data, teacher and size are."
    )
    return "\n".join(lines) + "\n"


def _cells(row: CompressionRow) -> list[str]:
    values = [row.scores.get(task) for task in PAPER_COLUMNS] + [row.shown_average]
    scores = ["-" if value is None else f"{value:.1f}" for value in values]
    model = f"{row.model}\\*" if row.augmented else row.model
    size = f"{row.num_parameters / 1e6:.{0 if row.num_parameters >= 10**7 else 2}f}M"
    return [model, size, *scores, row.source]
