"""The run of replaced-token detection in its folder: two exports, one result, stopped and continued."""

import json
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from toy_runs import text_settings, write_preset, write_text
from transformers import AutoModelForMaskedLM, AutoModelForPreTraining, AutoTokenizer
from typer.testing import CliRunner

from modeling_magic import MagicForMaskedLM, MagicForPreTraining
from training.cli.main import app
from training.data.text import load_data
from training.hub.presets import load_preset
from training.retraining.rtd import rtd_training_flops
from training.retraining.rtd_run import retrain_rtd
from training.retraining.settings import RtdSettings
from training.runs.recipes import settings_from


CHAIN = "MHA4,FFN,CONV3,FFN"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return text_settings(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return write_preset(tmp_path_factory.mktemp("preset"))


def run_settings(preset, data, architecture=CHAIN, **arguments) -> RtdSettings:
    given: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 8, "disable_tqdm": True, "save_steps": 4}
    given |= {"logging_steps": 3, "learning_rate": 1e-3, **arguments}
    return RtdSettings(
        preset,
        architecture,
        num_validation_sequences=16,
        data=data,
        training_arguments=given,
        generator_fraction=1 / 4,
    )


@pytest.fixture(scope="module")
def finished(preset, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rtd"
    return folder, retrain_rtd(run_settings(preset, data), folder)


def test_a_run_ends_with_two_models_that_share_their_embeddings(finished):
    folder, result = finished
    discriminator = AutoModelForPreTraining.from_pretrained(folder / "model")
    generator = AutoModelForMaskedLM.from_pretrained(folder / "generator")
    assert isinstance(discriminator, MagicForPreTraining)
    assert isinstance(generator, MagicForMaskedLM)
    own, other = (model.get_input_embeddings().weight for model in (discriminator, generator))
    assert torch.equal(own, other)
    assert generator.config.hidden_size == 8
    assert len(AutoTokenizer.from_pretrained(folder / "model")) == own.shape[0]
    assert result["architecture"] == CHAIN.split(",")
    assert result["generator"]["architecture"] == ["MHA1", "FFN", "CONV3", "FFN"]
    assert result["steps"] == 6
    assert result["tokens_per_step"] == 8 * 16
    of_a_step = rtd_training_flops(discriminator.config, generator.config, 16, 128)
    assert result["training_flops"] == 6 * of_a_step
    assert json.loads((folder / "result.json").read_text()) == result


def test_the_result_and_both_manifests_hold_what_was_measured(finished):
    folder, result = finished
    validation = result["validation"]
    assert result["val_loss"] == validation["loss_rtd"]
    assert result["val_accuracy"] == validation["discriminator_accuracy"]
    assert validation["loss"] == pytest.approx(validation["loss_mlm"] + 50 * validation["loss_rtd"])
    manifests = [json.loads((folder / name / "search.json").read_text()) for name in ("model", "generator")]
    assert manifests[0]["results"][0]["val_loss"] == [validation["loss_rtd"]]
    assert manifests[1]["results"][0]["val_loss"] == [validation["loss_mlm"]]
    assert manifests[1]["results"][0]["architecture"] == manifests[1]["architecture"]
    for manifest in manifests:
        assert manifest["training"]["objective"].startswith("replaced-token detection")
        assert manifest["training"]["start"] == "random weights"
        card = (folder / ("model" if manifest is manifests[0] else "generator") / "README.md").read_text()
        assert "| objective | replaced-token detection" in card
        assert "masked language modelling, 15%" not in card
    assert {"loss_mlm", "loss_rtd", "discriminator_recall"} <= set(result["log_history"][0])


def test_the_command_trains_the_pair(tmp_path, preset, data):
    arguments = [
        "max_steps=1",
        "per_device_train_batch_size=8",
        "generator_fraction=0.25",
        "num_validation_sequences=8",
    ]
    arguments += [f"data.{name}={value}" for name, value in asdict(data).items() if value is not None]
    command = [
        "retrain",
        "--objective",
        "rtd",
        "--preset",
        str(preset),
        "--architecture",
        CHAIN,
        "-o",
        str(tmp_path / "run"),
    ]
    run = CliRunner().invoke(app, [*command, *(word for item in arguments for word in ("--set", item))])
    assert run.exit_code == 0, run.output
    assert isinstance(AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "model"), MagicForPreTraining)
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "generator").config.hidden_size == 8
    refused = CliRunner().invoke(app, [*command[:2], "electra", *command[3:]])
    assert "choose mlm or rtd" in str(refused.exception)


def test_a_finished_run_is_not_run_again_and_its_folder_is_its_own(finished, preset, data, monkeypatch):
    folder, result = finished
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text again"))
    assert retrain_rtd(run_settings(preset, data), folder) == result
    with pytest.raises(ValueError, match=r"another run .rtd_weight is 50.0 there, 20.0 here"):
        retrain_rtd(replace(run_settings(preset, data), rtd_weight=20.0), folder)


def test_a_stopped_run_goes_on_with_the_same_bits(finished, tmp_path, preset, data, monkeypatch):
    folder, whole = finished
    monkeypatch.setattr("training.retraining.rtd_run.export_pair", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        retrain_rtd(run_settings(preset, data), tmp_path)
    monkeypatch.undo()
    # As if the process had died between the checkpoints 4 and 6.
    (tmp_path / "checkpoint-6" / "trainer_state.json").unlink()
    resumed = retrain_rtd(run_settings(preset, data), tmp_path)
    assert resumed["validation"] == whole["validation"]
    first, second = (
        AutoModelForPreTraining.from_pretrained(path / "model").state_dict() for path in (folder, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_the_discriminator_inherits_from_a_super_net(tmp_path, preset, data):
    """With a learning rate of zero, encoder and embeddings are the super-net's."""
    torch.manual_seed(1)
    prepared = load_data(data)
    config = load_preset(preset)
    config.vocab_size = len(prepared.tokenizer)
    supernet = MagicForMaskedLM(config)
    supernet.save_pretrained(tmp_path / "supernet")
    prepared.tokenizer.save_pretrained(tmp_path / "supernet")
    settings = replace(run_settings(preset, data, learning_rate=0.0, max_steps=1), inherit=str(tmp_path / "supernet"))
    result = retrain_rtd(settings, tmp_path / "run")
    assert result["start"] == "the super-net's weights"
    child = supernet.extract_child(CHAIN.split(",")).magic.state_dict()
    own = AutoModelForPreTraining.from_pretrained(tmp_path / "run" / "model").magic.state_dict()
    assert all(torch.equal(child[name], tensor) for name, tensor in own.items())
    other = replace(settings, architecture="MHA4,FFN,CONV5,FFN")
    with pytest.raises(ValueError, match="layer 2 has no operator 'CONV5'"):
        retrain_rtd(other, tmp_path / "other")


def test_settings_are_a_recipe(preset):
    recipe = {"preset": preset, "architecture": CHAIN, "rtd_weight": 20, "training_arguments": {"max_steps": 3}}
    settings = settings_from(RtdSettings, recipe, {"generator_architecture": "MHA2,FFN"})
    assert (settings.rtd_weight, settings.generator_fraction) == (20.0, 1 / 3)
    assert settings.training_arguments == {"max_steps": 3}
    with pytest.raises(ValueError, match="unknown key 'generator_fractio' in recipe; did you mean"):
        settings_from(RtdSettings, {**recipe, "generator_fractio": 1})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rtd_weight": -1.0}, "rtd_weight is -1.0; it must be at least 0"),
        ({"generator_fraction": 0.0}, "fraction is 0.0; it must be above 0 and at most 1"),
        ({"generator_architecture": "MHA3,FFN"}, "MHA3 has 3 heads, which do not divide its inner size 8"),
    ],
)
def test_wrong_settings_are_named_before_anything_is_read(tmp_path, preset, data, change, message, monkeypatch):
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text"))
    with pytest.raises(ValueError, match=message):
        retrain_rtd(replace(run_settings(preset, data), **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()
