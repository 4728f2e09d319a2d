"""What is read from model folders, and folders of others made whole exports."""

import hashlib
import json
import logging
import shutil

import pytest
import torch
from toy import toy_config
from toy_hub import export_tokenizer, save_bert
from transformers import AutoModelForSequenceClassification

from modeling_magic import MagicForSequenceClassification
from training.hub.export import export_model
from training.hub.model_folders import card_facts, export_folder, model_in, provenance, public_name, tokenizer_of
from training.hub.publish import check_export, push_model
from training.hub.verify import verify_export


@pytest.fixture
def saved(tmp_path):
    """What `save_pretrained` of a fine-tuned child and of its tokenizer wrote."""
    torch.manual_seed(0)
    config = toy_config(candidate_operators=[["MHA4"], ["CONV3"]], num_labels=3)
    MagicForSequenceClassification(config).save_pretrained(tmp_path / "saved")
    export_tokenizer().save_pretrained(tmp_path / "saved")
    return tmp_path / "saved"


EVALUATION = {"eval_loss": 0.5, "eval_accuracy": 0.875, "eval_runtime": 2.0, "eval_samples": 40, "epoch": 3.0}
STATE = {
    "best_global_step": 20,
    "log_history": [
        {"step": 10, "eval_accuracy": 0.25},
        {"step": 20, "eval_accuracy": 0.75},
        {"step": 30, "eval_accuracy": 0.5},
        {"step": 30, "train_loss": 0.1},
    ],
}


@pytest.mark.parametrize(
    ("name", "values", "scores"),
    [
        ("eval_results.json", EVALUATION, {"loss": 0.5, "accuracy": 0.875}),
        ("trainer_state.json", STATE, {"accuracy": 0.75}),
        ("config.json", None, {}),
    ],
)
def test_a_folder_of_trainer_is_exported_with_what_was_measured(saved, tmp_path, name, values, scores):
    if values is not None:
        (saved / name).write_text(json.dumps(values))
    folder = export_folder(saved, tmp_path / "whole")
    check_export(folder)
    manifest = json.loads((folder / "search.json").read_text())
    assert {score["metric"]: score["value"] for score in manifest["scores"]} == scores
    card = (folder / "README.md").read_text()
    for metric, value in scores.items():
        assert f"| {metric} | {value:.4f} |" in card
    assert ("Nothing was measured." in card) == (not scores)
    ours, theirs = (AutoModelForSequenceClassification.from_pretrained(path) for path in (saved, folder))
    ids = torch.arange(5, 14).unsqueeze(0)
    assert torch.equal(ours(ids).logits, theirs(ids).logits)


def test_a_folder_without_a_child_or_a_tokenizer_is_refused(saved, tmp_path):
    with pytest.raises(ValueError, match="a MAGIC model is one of"):
        export_folder(save_bert(tmp_path / "bert"), tmp_path / "whole")
    for path in saved.glob("*token*"):
        path.unlink()
    assert tokenizer_of(saved) is None
    with pytest.raises(ValueError, match="saved holds no tokenizer; save the one that the model was trained with"):
        export_folder(saved, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()


def test_a_folder_is_named_by_its_weights_and_a_model_on_the_hub_by_its_name(saved):
    assert public_name(saved) == f"sha256:{hashlib.sha256((saved / 'model.safetensors').read_bytes()).hexdigest()}"
    assert public_name("google/electra-small") == "google/electra-small"


def test_what_stays_true_of_a_model_that_is_trained_on(saved, tmp_path):
    assert card_facts(str(saved)) == {"license": "unknown", "language": None}
    manifest = {"converted_from": "a/b", "license": "mit", "language": "de", "training": None, "note": "of its own"}
    model = MagicForSequenceClassification.from_pretrained(saved)
    folder = export_model(model, export_tokenizer(), tmp_path / "whole", manifest)
    assert provenance(str(folder)) == {"converted_from": "a/b", "license": "mit", "language": "de"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("README.md", "---\nlicense: [mit\n---\n", r"the front matter of .*README.md cannot be read \(.*\); correct"),
        ("README.md", "---\nname: a: b\n---\n", "the front matter of .*README.md cannot be read"),
        ("search.json", "3", "search.json is damaged: it is not a JSON mapping"),
        ("search.json", '{"license": ', "search.json is damaged"),
    ],
)
def test_a_damaged_card_or_record_is_one_line(saved, name, text, message):
    (saved / name).write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        provenance(str(saved))
    assert "\n" not in str(error.value)


# ---- Folders of runs ----


def test_a_run_stands_for_the_only_model_in_it(saved, tmp_path, caplog):
    """As `search`, `finetune` and a compression with several budgets lay it out."""
    assert model_in(saved) == str(saved)
    assert model_in("owner/name") == "owner/name"
    for place in ("found/model", "tuned/train/model", "smaller/model/0.4x"):
        shutil.copytree(saved, tmp_path / "runs" / place)
        run = tmp_path / "runs" / place.partition("/")[0]
        # Without its record a folder may be any, and may hold whatever it likes.
        assert model_in(run) == str(run)
        (run / "run.json").write_text("{}")
        shutil.copytree(saved, run / "supernet" / "model")
        with caplog.at_level(logging.INFO, "training"):
            assert model_in(run) == str(tmp_path / "runs" / place)
        assert caplog.messages[-1] == f"model: {tmp_path / 'runs' / place}"
        assert verify_export(run).folder == tmp_path / "runs" / place
        assert push_model(run, "ada/encoder", dry_run=True).files
    shutil.copytree(saved, tmp_path / "runs/tuned/other/model")
    with pytest.raises(ValueError, match=r"tuned is a run with 2 models; give the folder of one: .*other.*, .*train"):
        model_in(tmp_path / "runs/tuned")
    # A folder without a model is left to the caller's own message.
    (tmp_path / "empty").mkdir()
    assert model_in(tmp_path / "empty") == str(tmp_path / "empty")
