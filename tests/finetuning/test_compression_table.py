"""The compression table: the paper's rows as printed, and a user's beside them."""

import csv
import io
import json
from pathlib import Path

import pytest

from training.finetuning.compression_table import PUBLISHED, CompressionRow, compression_table, sweep_row
from training.finetuning.glue_table import PAPER_COLUMNS, FinetuneRun, TaskRow


ALL = dict(zip(PAPER_COLUMNS, (80.0, 88.0, 86.0, 40.0, 90.0, 84.0, 60.0, 84.0), strict=True))


def test_the_published_averages_are_those_of_the_published_scores():
    averaged = [row for row in PUBLISHED if row.average is not None]
    assert len(averaged) == 10
    for row in averaged:
        assert sum(row.scores.values()) / len(PAPER_COLUMNS) == pytest.approx(row.average, abs=0.0501), row
    assert all(row.average is None for row in PUBLISHED if len(row.scores) < len(PAPER_COLUMNS))


def test_rows_of_the_table_by_hand():
    rows = {(row.split, row.model): row for row in PUBLISHED}
    assert len(rows) == len(PUBLISHED) == 15
    assert rows["dev", "DistilBERT"].scores["cola"] == 51.3
    assert rows["dev", "DistilBERT"].num_parameters == 66_000_000
    assert rows["test", "TinyBERT"].scores["rte"] == 70.0
    assert rows["test", "TinyBERT"].augmented
    assert ("dev", "TinyBERT") not in rows
    assert rows["dev", "NAS-BERT"].scores["mrpc"] == 88.5
    assert rows["test", "NAS-BERT"].scores["mrpc"] == 84.5
    assert "stsb" not in rows["dev", "MiniLM"].scores
    assert rows["dev", "NAS-BERT"].source == "Xu et al., 2021, as in Table 4 of the paper"


def test_own_results_stand_below_those_of_their_split():
    own = [CompressionRow("mine", 60_123_456, "dev", ALL), CompressionRow("part", 4_400_000, "dev", {"rte": 61.25})]
    lines = compression_table(own).splitlines()
    rows = [line.split(" | ")[0].removeprefix("| ") for line in lines if line.startswith("| ")]
    assert rows[0] == "Model"
    assert rows.index("MAGIC-AT") < rows.index("mine") < rows.index("part") < rows.index("TinyBERT\\*")
    assert rows.count("MAGIC-AT") == 2
    mine = next(line for line in lines if line.startswith("| mine"))
    assert mine == "| mine | 60M | 80.0 | 88.0 | 86.0 | 40.0 | 90.0 | 84.0 | 60.0 | 84.0 | 76.5 | this run |"
    part = next(line for line in lines if line.startswith("| part"))
    assert part == "| part | 4.40M | - | - | - | - | - | - | 61.2 | - | - | this run |"
    widths = {line.count(" | ") for line in lines if line.startswith("| ") and "---" not in line}
    assert widths == {11}


def test_the_csv_has_a_line_for_each_row_and_reads_back():
    own = CompressionRow("mine, or not", 60_123_456, "test", ALL, source="here")
    read = list(csv.DictReader(io.StringIO(compression_table([own], form="csv"))))
    assert len(read) == len(PUBLISHED) + 1
    last = read[-1]
    assert (last["model"], last["split"], last["params"], last["source"]) == (
        "mine, or not",
        "test",
        "60123456",
        "here",
    )
    assert [float(last[name]) for name in ("MNLI", "MRPC", "AVG")] == [80.0, 84.0, 76.5]
    theseus = next(row for row in read if row["model"] == "BERT-of-Theseus")
    assert (theseus["MRPC"], theseus["AVG"]) == ("", "")
    assert list(csv.DictReader(io.StringIO(compression_table([own], "csv", published=False)))) == [last]


def sweep(folder: Path, values: dict[str, list[float]], titles: dict[str, str] | None = None) -> Path:
    """What `magic-nas finetune` writes, from its own rows."""
    rows = []
    for task, scores in values.items():
        metrics = [
            {name: {"score": score / 2, "accuracy": score, "spearmanr": score} for name in ("validation", "other")}
            for score in scores
        ]
        runs = [
            FinetuneRun("k", "g", task, 1e-5, 16, seed, 0.5, own, 1, [], 1, 1.0) for seed, own in enumerate(metrics)
        ]
        rows.append(TaskRow(task, (titles or {}).get(task, task), tuple(runs)).to_json())
    result = {"model": "runs/compact/model", "num_parameters": 59_000_000, "tasks": rows}
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    return folder


def test_a_finished_sweep_is_a_row(tmp_path):
    folder = sweep(tmp_path / "sweep", {"cola": [0.4, 0.6, 0.5], "qqp": [0.8, 0.7, 0.9], "wnli": [0.5, 0.5, 0.5]})
    row = sweep_row(folder)
    assert (row.model, row.num_parameters, row.split) == ("model", 59_000_000, "dev")
    # Of QQP the accuracy is shown, of CoLA the score.
    assert row.scores == pytest.approx({"cola": 25.0, "qqp": 80.0})
    assert row.shown_average is None
    assert sweep_row(folder, "compact").model == "compact"
    with pytest.raises(ValueError, match="holds no result of a fine-tuning"):
        sweep_row(tmp_path)


def test_a_task_trained_on_a_part_of_its_rows_is_named_in_the_source(tmp_path):
    folder = sweep(tmp_path / "part", {"cola": [0.5], "mnli": [0.6]}, {"cola": "CoLA", "mnli": "MNLI-3k"})
    row = sweep_row(folder)
    assert row.source == "this run (MNLI-3k)"
    assert "| this run (MNLI-3k) |" in compression_table([row])
    assert sweep_row(sweep(tmp_path / "whole", {"cola": [0.5]}, {"cola": "CoLA"})).source == "this run"


def test_runs_that_are_no_row_are_refused(tmp_path):
    (tmp_path / "result.json").write_text('{"exact_match": 1.0}')
    with pytest.raises(ValueError, match="is a run of another command; give runs of `magic-nas finetune`"):
        sweep_row(tmp_path)
    with pytest.raises(ValueError, match="holds none of the tasks of Table 4"):
        sweep_row(sweep(tmp_path / "own", {"mine": [0.5]}))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "validation"}, "choose one of: dev, test"),
        ({"scores": {"mnly": 80.0}}, "a score for 'mnly'; tasks: mnli"),
        ({"scores": {"mnli": 0.8}}, "scores are in percent"),
        ({"scores": {"mnli": 180.0}}, "scores are in percent"),
    ],
)
def test_rows_that_are_none_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        CompressionRow(**{"model": "mine", "num_parameters": 1, "split": "dev", "scores": {}, **changes})


def test_small_correlations_are_scores():
    assert CompressionRow("mine", 1, "dev", {"cola": 0.0, "stsb": -0.5, "rte": 52.7}).scores["stsb"] == -0.5


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="form is 'html'; choose one of: markdown, csv"):
        compression_table(form="html")
