"""Recorded scores of fine-tuned classifiers, measured once more on the file that they were measured on."""

import json
from pathlib import Path

import pytest
from toy_finetune import save_toy_model
from toy_verify import edit_record

from training.finetuning.finetune_run import run_finetuning
from training.finetuning.rescore_file import check_file, is_finetuned
from training.finetuning.settings import FinetuneSettings
from training.hub.verified_folder import DIFFERS, NOT_MEASURED, OK


ROWS = [("fine a", "yes"), ("dull b c", "no"), ("great d", "yes"), ("awful e f g h", "no"), ("b c poor", "no")]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """The folder of a fine-tuned classifier, and its validation file."""
    root = tmp_path_factory.mktemp("run")
    file = root / "dev.jsonl"
    file.write_text("".join(json.dumps({"text": text, "answer": label}) + "\n" for text, label in ROWS * 3))
    settings = FinetuneSettings(
        model=str(save_toy_model("magic", root / "encoder")),
        train_file=str(file),
        validation_file=str(file),
        label_column="answer",
        learning_rates=(5e-3,),
        batch_sizes=(8,),
        seeds=(1,),
        num_epochs=1,
        training_arguments={"disable_tqdm": True, "use_cpu": True},
    )
    run_finetuning(settings, root / "tuned")
    return root / "tuned" / "dev" / "model", file


@pytest.fixture
def copied(run, tmp_path) -> tuple[Path, Path]:
    folder, file = tmp_path / "model", tmp_path / "dev.jsonl"
    folder.mkdir()
    for path in run[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    file.write_bytes(run[1].read_bytes())
    return folder, file


def test_scores_are_found_again_on_the_file_wherever_it_is(copied):
    folder, file = copied
    assert is_finetuned(folder)
    assert not is_finetuned(folder.parent)
    found = check_file(folder, str(file))
    assert [one.what for one in found] == ["score: accuracy", "score: macro_f1"]
    assert {(one.verdict, one.note) for one in found} == {(OK, "within 0.001")}
    assert all(one.recorded == one.found != "0.0000" for one in found)


def test_another_score_differs(copied):
    folder, file = copied
    edit_record(folder, lambda record: record["scores"][0].update(value=record["scores"][0]["value"] + 0.01))
    assert [one.note for one in check_file(folder, str(file)) if one.verdict == DIFFERS] == ["not within 0.001"]
    edit_record(folder, lambda record: record["scores"][0].update(metric="perplexity"))
    found = [(one.what, one.note) for one in check_file(folder, str(file)) if one.verdict == DIFFERS]
    assert found == [("score: perplexity", "the task has no such metric")]


def test_what_cannot_be_measured_is_told(copied):
    folder, file = copied
    whole = file.read_text()
    file.write_text(whole.replace("fine", "dull", 1))
    (found,) = check_file(folder, str(file))
    assert (found.verdict, found.note) == (NOT_MEASURED, "this file is not the recorded one")
    with pytest.raises(ValueError, match=r"there is no file .*nowhere; give the validation file"):
        check_file(folder, str(folder / "nowhere"))
    file.write_text(whole)
    (folder / "model.safetensors").write_bytes(b"damaged")
    (found,) = check_file(folder, str(file))
    assert found.verdict == NOT_MEASURED
    assert "cannot be loaded: SafetensorError" in found.note
    edit_record(folder, lambda record: record["finetuning"].pop("validation_file"))
    (found,) = check_file(folder, str(file))
    assert found.note == "the record does not say which file was used"
    edit_record(folder, lambda record: record.update(scores=3))
    (found,) = check_file(folder, str(file))
    assert found.verdict == DIFFERS
