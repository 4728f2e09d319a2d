"""The run of a child in its folder: trained, stopped, continued, inherited from a super-net, and exported."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from toy_runs import shared_preset, shared_search, shared_text, text_settings, train_settings
from transformers import AutoModelForMaskedLM

from training.retraining.retrain import follow_search, retrain
from training.retraining.settings import RetrainSettings
from training.runs.recipes import settings_from
from training.runs.settings import EPOCHS, FEWEST_STEPS
from training.space.costs import training_flops


@pytest.fixture(scope="module")
def preset():
    return shared_preset()


@pytest.fixture(scope="module")
def data():
    return text_settings(shared_text(), vocab_size=100)


@pytest.fixture(scope="module")
def search_run():
    return shared_search()


def test_retraining_exports_a_model_and_is_reproducible(tmp_path, preset, data):
    results = [retrain(train_settings(preset, data), tmp_path / name) for name in "ab"]
    assert results[0]["val_loss"] == results[1]["val_loss"]
    assert results[0]["val_accuracy"] == results[1]["val_accuracy"]
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "a" / "model")
    assert model.num_parameters() == results[0]["num_parameters"]
    assert not model.config.sparse_prediction
    assert results[0]["tokens_per_step"] == 8 * 16
    assert results[0]["training_flops"] == 8 * training_flops(model.config, results[0]["architecture"], 16, 128)
    manifest = json.loads((tmp_path / "a" / "model" / "search.json").read_text())
    assert manifest["search"] is None
    assert manifest["training"]["start"] == "random weights"
    other = retrain(train_settings(preset, data, seed=1), tmp_path / "c")
    assert other["val_loss"] != results[0]["val_loss"]


def test_blocks_are_no_longer_than_a_model_that_takes_little(tmp_path, preset, data, caplog):
    settings = train_settings(preset, replace(data, block_size=None))
    with caplog.at_level("INFO", "training"):
        result = retrain(settings, tmp_path / "run")
    assert result["corpus"]["block_size"] == 16
    assert result["tokens_per_step"] == 8 * 16
    assert "block_size: 16 tokens, the maximum of the model" in caplog.messages
    with pytest.raises(ValueError, match="block_size is 128 but the model has 16 positions"):
        retrain(train_settings(preset, replace(data, block_size=128)), tmp_path / "asked")


def test_a_training_of_which_nothing_is_said_is_one_that_trains(tmp_path, preset, data, monkeypatch):
    asked = []
    monkeypatch.setattr("training.retraining.retrain._train", lambda run, start, *_: asked.append(start.args))
    retrain(RetrainSettings(preset, "MHA4,FFN,CONV3,FFN", data=replace(data, max_documents=30)), tmp_path)
    (args,) = asked
    assert (args.learning_rate, args.num_train_epochs, args.max_steps) == (2e-3, EPOCHS, FEWEST_STEPS)


def test_more_masked_tokens_cost_more(tmp_path, preset, data):
    result = retrain(replace(train_settings(preset, data), mlm_probability=0.5), tmp_path)
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "model")
    assert result["training_flops"] == 8 * training_flops(model.config, result["architecture"], 16, 128, 0.5)
    assert "| objective | masked language modelling, 50% of the tokens" in (tmp_path / "model/README.md").read_text()


def test_a_stopped_retraining_goes_on_with_the_same_bits(tmp_path, preset, data, monkeypatch):
    whole = retrain(train_settings(preset, data), tmp_path / "whole")
    monkeypatch.setattr(
        "training.retraining.retrain.export_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        retrain(train_settings(preset, data), tmp_path / "stopped")
    monkeypatch.undo()
    for name in ("checkpoint-8", "checkpoint-6"):
        assert (tmp_path / "stopped" / name).is_dir()
    # Stopped after the last checkpoint: not a step more is trained.
    shutil.copytree(tmp_path / "stopped", tmp_path / "at the end")
    ended = retrain(train_settings(preset, data), tmp_path / "at the end")
    assert (ended["steps"], ended["val_loss"]) == (8, whole["val_loss"])
    # As if the process had died between the checkpoints 6 and 8.
    (tmp_path / "stopped" / "checkpoint-8" / "trainer_state.json").unlink()
    resumed = retrain(train_settings(preset, data), tmp_path / "stopped")
    assert resumed["val_loss"] == whole["val_loss"]
    first, second = (
        AutoModelForMaskedLM.from_pretrained(tmp_path / name / "model").state_dict() for name in ("whole", "stopped")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_folder_is_one_processs_at_a_time(tmp_path, preset, data):
    lock = FileLock(tmp_path / ".lock")
    with lock, pytest.raises(ValueError, match=r"another process is using .*; wait for it, or use another"):
        retrain(train_settings(preset, data), tmp_path)
    assert retrain(train_settings(preset, data), tmp_path)["steps"] == 8


def test_inheriting_needs_the_super_nets_sizes_and_tokenizer(search_run, tmp_path, preset, data):
    folder, _ = search_run
    other = json.loads(Path(preset).read_text()) | {"hidden_size": 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    settings = replace(train_settings(str(tmp_path / "other.json"), data), inherit=str(folder))
    with pytest.raises(ValueError, match="hidden_size is 64 in the preset but 32 in the super-net"):
        retrain(settings, tmp_path / "run")
    settings = replace(train_settings(preset, replace(data, vocab_size=80)), inherit=str(folder))
    with pytest.raises(ValueError, match=r"vocabulary \(80 tokens\) differs from the super-net's"):
        retrain(settings, tmp_path / "run")
    settings = replace(train_settings(preset, data, architecture="CONV7,FFN,FFN,FFN"), inherit=str(folder))
    with pytest.raises(ValueError, match="layer 0 has no operator 'CONV7'"):
        retrain(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_retraining_follows_a_search(search_run, tmp_path):
    folder, result = search_run
    recipe, record = follow_search(
        folder, {"training_arguments": {"max_steps": 2, "disable_tqdm": True}}, inherit=True
    )
    settings = settings_from(RetrainSettings, recipe, {"training_arguments": {"learning_rate": 0.0}})
    trained = retrain(settings, tmp_path / "child", record)
    assert trained["architecture"] == result["architecture"]
    # With a learning rate of zero the inherited weights are those of the super-net.
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "child" / "model")
    supernet = AutoModelForMaskedLM.from_pretrained(folder / "supernet")
    assert all(torch.equal(tensor, supernet.state_dict()[name]) for name, tensor in model.state_dict().items())
    manifest = json.loads((tmp_path / "child" / "model" / "search.json").read_text())
    assert manifest["search"]["candidate_operators"] == result["candidate_operators"]
    assert manifest["training"]["start"] == "the super-net's weights"
