"""The table of GLUE by hand: medians, the best setting, averages, and the files."""

import csv
import statistics

import pytest

from training.finetuning.glue_table import (
    PAPER_COLUMNS,
    FinetuneRun,
    ScoresOnTest,
    TaskRow,
    average,
    best_setting,
    table_columns,
    write_table,
)


def made_run(task="cola", score=0.5, learning_rate=1e-5, batch_size=16, seed=1, **metrics) -> FinetuneRun:
    found = {"validation": {"score": score, **metrics}}
    return FinetuneRun("k", "g", task, learning_rate, batch_size, seed, score, found, 1, [], 1, 1.0)


def test_the_setting_with_the_best_median_is_chosen_not_the_one_with_the_best_run():
    lucky = [made_run(score=score, seed=seed) for seed, score in enumerate([0.9, 0.1, 0.2])]
    steady = [made_run(score=score, seed=seed, batch_size=32) for seed, score in enumerate([0.4, 0.5, 0.3])]
    assert best_setting([*lucky, *steady]) == tuple(steady)
    with pytest.raises(ValueError, match="same seeds"):
        best_setting([*lucky, *steady[:2]])


def rows_of_the_paper() -> list[TaskRow]:
    rows = []
    for index, task in enumerate(PAPER_COLUMNS):
        scores = [0.80 + 0.01 * index, 0.70 + 0.01 * index, 0.90 + 0.01 * index]
        shown = {"accuracy": "accuracy", "stsb": "spearmanr"}.get(task, "accuracy")
        runs = [made_run(task, 0.0, seed=seed, **{shown: score}) for seed, score in enumerate(scores)]
        if task not in ("qqp", "mrpc", "stsb"):
            runs = [made_run(task, score, seed=seed) for seed, score in enumerate(scores)]
        rows.append(TaskRow(task, task.upper(), tuple(runs)))
    return rows


def test_avg_is_the_mean_of_the_eight_medians_and_spreads_over_seeds():
    rows = rows_of_the_paper()
    offset = statistics.mean(0.01 * index for index in range(8))
    mean = average(rows)
    assert mean == pytest.approx({"median": 0.8 + offset, "min": 0.7 + offset, "max": 0.9 + offset})
    assert average(rows[:7]) is None
    assert list(table_columns(rows)) == ["MNLI", "QQP", "QNLI", "COLA", "SST2", "STSB", "RTE", "MRPC", "AVG"]


def test_own_data_have_a_column_for_each_metric_whatever_they_are_called(tmp_path):
    run = made_run("rte", 0.5, accuracy=0.75, macro_f1=0.5)
    scores = ScoresOnTest(10, {"accuracy": 0.25, "macro_f1": 0.125, "score": 0.125}, "rte/test_predictions.jsonl")
    row = TaskRow("rte", "rte", (run,), 7, ("macro_f1", "accuracy"), scores, "macro_f1")
    assert {name: column["median"] for name, column in table_columns([row]).items()} == {
        "rte: macro_f1": 50.0,
        "rte: accuracy": 75.0,
    }
    assert average([*rows_of_the_paper()[:6], *rows_of_the_paper()[7:], row]) is None
    write_table([row], "m", 1000, tmp_path)
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| 12.5 | 25.0 | 10 |" in text
    assert "Epoch, setting and model of rte are chosen by macro_f1." in text
    assert "Matthews" not in text
    assert row.to_json()["shown"] == "macro_f1"
    assert row.to_json()["test"]["metrics"]["accuracy"] == 0.25


def test_the_files_hold_the_medians_and_the_range(tmp_path):
    rows = [*rows_of_the_paper()[3:5], TaskRow("own", "own", (made_run("own", 0.25),), 1234)]
    write_table(rows, "m", 12_345_678, tmp_path)
    with open(tmp_path / "table.csv", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    assert lines == [
        ["model", "params", "statistic", "COLA", "SST2", "AVG", "own"],
        ["m", "12345678", "median", "83.0000", "84.0000", "", "25.0000"],
        ["m", "12345678", "min", "73.0000", "74.0000", "", "25.0000"],
        ["m", "12345678", "max", "93.0000", "94.0000", "", "25.0000"],
    ]
    text = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "| m | 12M | 83.0 | 84.0 | - | 25.0 |" in text
    assert "| min to max |  | 73.0 to 93.0 | 74.0 to 94.0 |  | 25.0 to 25.0 |" in text
    assert "| own | 1e-05 | 16 | 1 | 1,234 |" in text
    assert "Mean of these 2 tasks: 83.5 (73.5 to 93.5)." in text
