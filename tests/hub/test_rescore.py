"""Recorded losses measured once more on the text that they were measured on."""

import json
import shutil
from dataclasses import asdict

import pytest
from toy_runs import shared_preset, shared_search, shared_text, text_settings, train_settings
from toy_verify import edit_record, flip_byte
from transformers import AutoTokenizer

from modeling_magic import MagicForMaskedLM
from training.data.settings import DataSettings
from training.hub.rescore import JudgedOn, read_judged_on, rescore
from training.hub.verified_folder import DIFFERS, NOT_CHECKED, NOT_MEASURED, OK
from training.hub.verify import verify_export
from training.retraining.retrain import retrain
from training.search.run import search_supernet
from training.search.settings import SearchSettings
from training.supernet.loading import export_child


WHAT = "score on held-out text"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A child trained on the shared text: its folder and the result of its run."""
    run = tmp_path_factory.mktemp("rescore") / "run"
    settings = train_settings(
        shared_preset(), text_settings(shared_text(), vocab_size=100), per_device_eval_batch_size=7
    )
    return run / "model", retrain(settings, run)


@pytest.fixture
def folder(trained, tmp_path):
    return shutil.copytree(trained[0], tmp_path / "model")


def score_check(folder, text):
    (one,) = [one for one in verify_export(folder, text=text).checks if one.what == WHAT]
    return one


def test_the_loss_of_a_run_is_found_again(trained):
    folder, result = trained
    record = json.loads((folder / "search.json").read_text())["training"]
    judged_on = read_judged_on(record)
    assert judged_on == JudgedOn(0.15, 7, 16, 0, "no")
    score = rescore(folder, str(shared_text()), record["corpus"], judged_on)
    assert score.loss == pytest.approx(result["val_loss"], abs=1e-5)
    assert score.accuracy == pytest.approx(result["val_accuracy"], abs=1e-9)


@pytest.mark.parametrize(
    "changed", [{"batch_size": 8}, {"mask_seed": 1}, {"num_sequences": 9}, {"mlm_probability": 0.3}]
)
def test_the_loss_depends_on_all_that_is_recorded(trained, changed):
    folder, result = trained
    record = json.loads((folder / "search.json").read_text())["training"]
    judged_on = JudgedOn(**{**record["judged_on"], **changed})
    score = rescore(folder, str(shared_text()), record["corpus"], judged_on)
    assert abs(score.loss - result["val_loss"]) > 1e-4


def test_a_score_is_compared_where_the_text_is_given(trained):
    folder, result = trained
    assert score_check(folder, None).verdict == NOT_CHECKED
    assert score_check(folder, None).note == "give --text"
    found = score_check(folder, str(shared_text()))
    assert found.verdict == OK
    assert found.recorded == found.found == f"loss {result['val_loss']:.4f}, accuracy {result['val_accuracy']:.4f}"


def test_a_text_that_has_moved_is_the_same_and_one_that_was_changed_is_not(folder, tmp_path):
    moved = shutil.copytree(shared_text(), tmp_path / "elsewhere")
    assert score_check(folder, str(moved)).verdict == OK
    text = (moved / "a.txt").read_text()
    (moved / "a.txt").write_text(text.replace("the ", "a "))
    other = score_check(folder, str(moved))
    assert other.verdict == NOT_MEASURED
    assert "elsewhere is a different text: the SHA-256 of its held-out documents begins with" in other.note
    missing = score_check(folder, str(tmp_path / "nowhere"))
    assert missing.verdict == NOT_MEASURED
    assert "nowhere" in missing.note
    found = verify_export(folder, text=str(tmp_path / "nowhere"))
    assert found.unmeasured == ("score on held-out text",)
    assert found.summary.endswith("; not measured: score on held-out text.")
    edit_record(folder, lambda record: record["training"]["corpus"].pop("max_documents"))
    unknown = score_check(folder, str(shared_text()))
    assert (unknown.verdict, unknown.note) == (
        NOT_MEASURED,
        "how the text was read is not on record: KeyError('max_documents')",
    )


def test_other_weights_and_other_numbers_are_found(folder):
    edit_record(
        folder, lambda record: record["results"][0].update(val_loss=[record["results"][0]["val_loss"][0] - 0.01])
    )
    assert score_check(folder, str(shared_text())).verdict == DIFFERS
    model = MagicForMaskedLM.from_pretrained(folder)
    model.lm_head.bias.data[7] += 3
    model.save_pretrained(folder)
    assert score_check(folder, str(shared_text())).verdict == DIFFERS


def test_what_cannot_be_measured_is_not_checked(folder):
    text = str(shared_text())
    flip_byte(folder / "model.safetensors", 0)
    assert "does not load" in score_check(folder, text).note
    edit_record(folder, lambda record: record["training"].update(judged_on={"batch_size": "x"}))
    assert score_check(folder, text).verdict == DIFFERS
    edit_record(folder, lambda record: record["training"].pop("judged_on"))
    assert score_check(folder, text).note == "how the text was masked is not on record"


@pytest.mark.parametrize("changed", [{"batch_size": 0}, {"num_sequences": -1}, {"mlm_probability": 9.0}])
def test_a_record_that_nothing_can_be_measured_by_is_damaged(folder, changed):
    edit_record(folder, lambda record: record["training"]["judged_on"].update(changed))
    found = score_check(folder, str(shared_text()))
    assert (found.verdict, found.found[:20]) == (DIFFERS, "damaged: JudgedOn(ml")


def test_the_child_of_a_super_net_is_measured_with_the_masks_of_its_training(tmp_path):
    run, result = shared_search()
    folder = export_child(run, tmp_path / "child")
    found = score_check(folder, str(shared_text()))
    assert found.verdict == OK, found
    assert f"loss {result['val_loss']:.4f}" in found.found


def test_the_winner_of_a_search_is_measured_again(tmp_path):
    run, _ = shared_search()
    data = asdict(text_settings(shared_text(), vocab_size=100)) | {"tokenizer": str(run / "supernet")}
    settings = SearchSettings(
        str(run),
        data=DataSettings(**data),
        num_evaluations=6,
        num_validation_sequences=12,
        batch_size=5,
        full_space=True,
    )
    result = search_supernet(settings, tmp_path / "search")
    assert result["judged_on"] == {
        "mlm_probability": 0.15,
        "batch_size": 5,
        "num_sequences": 12,
        "mask_seed": 0,
        "precision": "no",
    }
    found = score_check(tmp_path / "search" / "model", str(shared_text()))
    assert found.verdict == OK, found


def test_sixteen_bits_have_a_wider_bound():
    assert JudgedOn(0.15, 8, None, 0, "bf16").tolerance > JudgedOn(0.15, 8, None, 0, "no").tolerance


def test_all_of_the_text_is_taken_where_no_number_is_recorded(trained):
    folder, _ = trained
    record = json.loads((folder / "search.json").read_text())["training"]
    blocks = record["corpus"]["blocks"]["validation"]
    values = {**record["judged_on"], "num_sequences": None}
    every = rescore(folder, str(shared_text()), record["corpus"], JudgedOn(**values))
    assert every == rescore(
        folder, str(shared_text()), record["corpus"], JudgedOn(**{**values, "num_sequences": blocks})
    )
    assert AutoTokenizer.from_pretrained(folder).model_max_length == 16
