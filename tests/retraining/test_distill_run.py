"""The run of pre-training distillation in its folder: export, result, the teacher's score, stopped and resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import text_settings, write_preset, write_teacher, write_text
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

from modeling_magic import MagicForMaskedLM
from training.data.fitting import max_sequence_length
from training.data.text import MaskingCollator, load_data
from training.distillation.teacher import weights_hash
from training.hub.presets import load_preset
from training.retraining.distill_run import retrain_distilled, score_teacher
from training.retraining.retrain import retrain
from training.retraining.settings import DistillSettings, RetrainSettings
from training.runs.recipes import settings_from
from training.supernet.evaluation import evaluate_child, validation_batches


CHAIN = "MHA4,FFN,CONV3,FFN"
SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 16, "pad_token_id": 0}


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_settings(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return write_preset(tmp_path_factory.mktemp("preset"))


@pytest.fixture(scope="module")
def teacher(text, tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"), text, SIZES)


def run_settings(preset, text, teacher, **changes) -> DistillSettings:
    arguments: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 8, "disable_tqdm": True}
    arguments |= {"save_steps": 4, "logging_steps": 3, "learning_rate": 1e-3, **changes.pop("arguments", {})}
    return DistillSettings(
        preset,
        CHAIN,
        num_validation_sequences=16,
        data=text,
        training_arguments=arguments,
        **{"teacher": teacher, "temperature": 2.0, **changes},
    )


@pytest.fixture(scope="module")
def finished(preset, text, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "distilled"
    return folder, retrain_distilled(run_settings(preset, text, teacher), folder)


def test_a_run_ends_with_a_model_and_what_both_score_on_the_same_text(finished, text, teacher):
    folder, result = finished
    model = AutoModelForMaskedLM.from_pretrained(folder / "model")
    assert isinstance(model, MagicForMaskedLM)
    tokenizer = AutoTokenizer.from_pretrained(folder / "model")
    assert tokenizer.get_vocab() == AutoTokenizer.from_pretrained(teacher).get_vocab()
    data = load_data(replace(text, tokenizer=teacher))
    batches = validation_batches(data.validation, MaskingCollator(tokenizer, seed=0), 8, 16)
    assert (result["val_loss"], result["val_accuracy"]) == pytest.approx(evaluate_child(model, batches))
    scored = BertForMaskedLM.from_pretrained(teacher).eval()
    with torch.no_grad():
        losses = [scored(**batch).loss.item() * int((batch["labels"] != -100).sum()) for batch in batches]
    number = sum(int((batch["labels"] != -100).sum()) for batch in batches)
    assert result["teacher"]["val_loss"] == pytest.approx(sum(losses) / number, rel=1e-5)
    assert 0 <= result["teacher"]["val_accuracy"] <= 1
    assert result["teacher"]["name"] == teacher
    assert result["teacher"]["weights"] == weights_hash(scored)
    assert result["teacher_sequences"] == {"run": 48, "cached": 0}
    assert (result["steps"], result["tokens_per_step"]) == (6, 128)
    assert {"loss_labels", "loss_teacher"} <= set(result["log_history"][0])
    assert json.loads((folder / "result.json").read_text()) == result


def test_blocks_are_no_longer_than_a_teacher_that_takes_little(text, teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("training.retraining.distill_run._train", lambda run, start, *_: asked.append(start))
    wide = write_preset(tmp_path, max_position_embeddings=64)
    settings = run_settings(wide, replace(text, block_size=None), teacher)
    retrain_distilled(settings, tmp_path / "run")
    assert asked[0].data.block_size == 16


def test_the_score_of_a_teacher_is_that_of_a_child_on_the_same_batches(preset, text):
    data = load_data(text)
    config = load_preset(preset).child_config(CHAIN.split(","))
    config.vocab_size = len(data.tokenizer)
    torch.manual_seed(1)
    model = MagicForMaskedLM(config).eval()
    batches = validation_batches(data.validation, MaskingCollator(data.tokenizer, seed=0), 5, 16)
    scored = score_teacher(model, batches)
    assert (scored["val_loss"], scored["val_accuracy"]) == pytest.approx(evaluate_child(model, batches))


def test_the_manifest_and_the_card_say_the_teacher(finished, teacher):
    folder, result = finished
    training = json.loads((folder / "model" / "search.json").read_text())["training"]
    # What is published names a folder of this disk, not its place.
    assert training["teacher"] == {**result["teacher"], "name": Path(teacher).name}
    assert (training["distillation_weight"], training["temperature"], training["teacher_top_k"]) == (0.5, 2.0, None)
    card = (folder / "model" / "README.md").read_text()
    assert f"80/10/10, distilled from {Path(teacher).name} (weight 0.5, temperature 2)" in card
    assert teacher not in card


def test_it_begins_as_the_plain_run_and_differs_by_the_teacher_alone(preset, text, teacher, finished, tmp_path):
    settings = run_settings(preset, text, teacher, distillation_weight=0.0)
    undistilled = retrain_distilled(settings, tmp_path / "weight-0")
    plain = RetrainSettings(
        preset,
        CHAIN,
        num_validation_sequences=16,
        data=replace(text, tokenizer=teacher),
        training_arguments=settings.training_arguments,
    )
    expected = retrain(plain, tmp_path / "plain")
    assert undistilled["val_loss"] == expected["val_loss"]
    assert undistilled["teacher_sequences"] == {"run": 0, "cached": 0}
    assert finished[1]["val_loss"] != expected["val_loss"]
    assert finished[1]["training_flops"] == expected["training_flops"]


def test_a_finished_run_needs_no_teacher_and_its_folder_is_its_own(finished, preset, text, teacher, monkeypatch):
    folder, result = finished
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text again"))
    monkeypatch.setattr(
        "training.retraining.distill_run.load_teacher", lambda *_: pytest.fail("loaded the teacher again")
    )
    assert retrain_distilled(run_settings(preset, text, teacher), folder) == result
    with pytest.raises(ValueError, match=r"another run .distillation_weight is 0.5 there, 0.7 here"):
        retrain_distilled(run_settings(preset, text, teacher, distillation_weight=0.7), folder)


@pytest.mark.parametrize("cache_teacher", [False, True])
def test_a_stopped_run_goes_on_with_the_same_bits(tmp_path, preset, text, teacher, monkeypatch, cache_teacher):
    settings = run_settings(preset, text, teacher, cache_teacher=cache_teacher, teacher_top_k=10)
    whole = retrain_distilled(settings, tmp_path / "whole")
    monkeypatch.setattr(
        "training.retraining.retrain.export_model", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        retrain_distilled(settings, tmp_path / "stopped")
    monkeypatch.undo()
    # As if the process had died between the checkpoints 4 and 6.
    (tmp_path / "stopped" / "checkpoint-6" / "trainer_state.json").unlink()
    resumed = retrain_distilled(settings, tmp_path / "stopped")
    assert (resumed["val_loss"], resumed["teacher"]) == (whole["val_loss"], whole["teacher"])


def test_another_child_of_the_same_text_and_seed_runs_no_teacher(tmp_path, preset, text, teacher):
    settings = run_settings(preset, text, teacher, cache_teacher=True, teacher_top_k=10)
    assert retrain_distilled(settings, tmp_path / "first")["teacher_sequences"] == {"run": 48, "cached": 0}
    other = replace(settings, architecture="CONV3,FFN,MHA4,FFN")
    assert retrain_distilled(other, tmp_path / "other")["teacher_sequences"] == {"run": 0, "cached": 48}
    reseeded = replace(settings, training_arguments={**settings.training_arguments, "seed": 1})
    assert retrain_distilled(reseeded, tmp_path / "reseeded")["teacher_sequences"] == {"run": 48, "cached": 0}


def test_a_finished_run_is_a_teacher(finished, tmp_path, preset, text):
    """A larger child, or the same one again, by the folder of its run."""
    folder, result = finished
    again = retrain_distilled(run_settings(preset, text, str(folder)), tmp_path / "again")
    assert again["teacher"]["val_loss"] == pytest.approx(result["val_loss"], rel=1e-5)


def test_settings_are_a_recipe(preset):
    recipe = {"preset": preset, "architecture": CHAIN, "teacher": "bert-base-uncased", "teacher_top_k": 64}
    settings = settings_from(DistillSettings, recipe, {"temperature": 2, "cache_teacher": True})
    assert (settings.teacher, settings.temperature, settings.teacher_top_k) == ("bert-base-uncased", 2.0, 64)
    assert settings.cache_teacher
    with pytest.raises(ValueError, match="unknown key 'teacher_topk' in recipe; did you mean 'teacher_top_k'"):
        settings_from(DistillSettings, {**recipe, "teacher_topk": 1})


def test_positions_are_counted_from_the_first_that_a_token_may_have():
    assert max_sequence_length(BertConfig(max_position_embeddings=512)) == 512
    assert max_sequence_length(RobertaConfig(max_position_embeddings=514, pad_token_id=1)) == 512
    assert max_sequence_length(load_preset("magic-tiny")) == 128


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"teacher": ""}, "no teacher is given; pass a masked LM with --teacher"),
        ({"teacher": "nowhere"}, "the tokenizer 'nowhere' cannot be loaded"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5; it must be from 0 to 1"),
        ({"temperature": -1.0}, "temperature is -1.0; it must be above 0"),
        ({"teacher_top_k": 0}, "teacher_top_k is 0; it must be at least 1"),
        ({"architecture": "MHA5,FFN"}, "MHA5 has 5 heads, which do not divide"),
        ({"data": "longer"}, "block_size is 32 but the teacher .* has 16 positions"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_read(
    tmp_path, preset, text, teacher, change, message, monkeypatch
):
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text"))
    if "data" in change:
        change = {"data": replace(text, block_size=32)}
    with pytest.raises(ValueError, match=message):
        retrain_distilled(replace(run_settings(preset, text, teacher), **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_another_vocabulary_is_refused_before_anything_is_read(
    tmp_path, preset, text, teacher, monkeypatch
):
    other = load_data(replace(text, vocab_size=70)).tokenizer
    other.save_pretrained(tmp_path / "other")
    RobertaForMaskedLM(RobertaConfig(vocab_size=len(other), **SIZES)).save_pretrained(tmp_path / "other")
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text"))
    settings = run_settings(preset, replace(text, tokenizer=teacher), str(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=r"has a different vocabulary \(70 tokens\) than the student's \(80\): the first"
    ):
        retrain_distilled(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()
