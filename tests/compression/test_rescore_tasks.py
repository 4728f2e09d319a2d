"""Recorded scores of compressed models, measured once more on the rows that they were measured on."""

from pathlib import Path

import pytest
from toy_sources import save_sentence_checkpoint, toy_child
from toy_verify import edit_record

from training.compression.compress_run import read_tasks
from training.compression.compressed_folder import export_compressed
from training.compression.predictor import Predictor, forward_of
from training.compression.rescore_tasks import check_tasks
from training.compression.source import load_source
from training.hub.verified_folder import DIFFERS, NOT_MEASURED, OK


ROWS = [
    "sentence1\tsentence2\tscore",
    "a man\tthe guitar\t1",
    "no\trates rose\t2",
    "a town\tan old town\t5",
    "a\tb\t3",
    "no\tno.\t4",
]


@pytest.fixture
def compressed(tmp_path) -> tuple[Path, str, float]:
    """A compressed encoder that was scored on a file: its folder, the task as `--eval` has it, and its score."""
    (tmp_path / "dev.tsv").write_text("\n".join(ROWS) + "\n")
    source, asked = load_source(str(save_sentence_checkpoint(tmp_path / "source"))), f"stsb={tmp_path / 'dev.tsv'}"
    model = toy_child(source.model)
    (task,) = read_tasks([asked], source)
    value = Predictor(source, forward_of(model)).score(task).value
    record = {"models": [{"role": "found", "tasks": {task.title: value}}], "eval": {task.title: task.sha256}}
    folder = export_compressed(
        source, model, tmp_path / "small", {"compression": record}, budget="half", table="| a |"
    )
    return folder, asked, value


def test_a_score_is_found_again(compressed):
    folder, asked, value = compressed
    (found,) = check_tasks(folder, [asked])
    assert (found.what, found.recorded, found.verdict) == ("score: stsb (dev.tsv)", f"{value:.2f}", OK)
    assert found.found == found.recorded != "0.00"


def test_another_score_differs(compressed):
    folder, asked, _ = compressed
    edit_record(folder, lambda record: record["compression"]["models"][0]["tasks"].update({"stsb (dev.tsv)": 101.0}))
    (found,) = check_tasks(folder, [asked])
    assert (found.verdict, found.note) == (DIFFERS, "not within 0.1")


def test_other_rows_are_not_scored(compressed):
    folder, asked, _ = compressed
    path = Path(asked.partition("=")[2])
    path.write_text(path.read_text().replace("\t5\n", "\t4\n"))
    (found,) = check_tasks(folder, [asked])
    assert (found.verdict, found.note) == (NOT_MEASURED, "these rows are not the recorded ones")
    edit_record(folder, lambda record: record["compression"].pop("eval"))
    assert check_tasks(folder, [asked])[0].note == "the record does not say which rows were used"


def test_a_model_that_does_not_load_is_not_scored(compressed):
    folder, asked, _ = compressed
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    (found,) = check_tasks(folder, [asked])
    assert found.verdict == NOT_MEASURED
    assert "are not readable" in found.note


def test_tasks_that_are_not_on_record_and_damage_are_told(compressed):
    folder, asked, _ = compressed
    edit_record(folder, lambda record: record["compression"].update(models=[]))
    assert check_tasks(folder, [asked])[0].verdict == NOT_MEASURED
    edit_record(folder, lambda record: record["compression"].update(models=3))
    assert check_tasks(folder, [asked])[0].verdict == DIFFERS
    edit_record(folder, lambda record: record.pop("compression"))
    with pytest.raises(ValueError, match=r"--eval is for models written by `magic-nas compress` or .*; remove --eval"):
        check_tasks(folder, [asked])
