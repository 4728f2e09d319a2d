"""SKIP in runs of a super-net from scratch: a child that skips layers is shorter than the space it was found in."""

import dataclasses

import pytest
import torch
from toy_runs import search_settings, text_settings, write_preset, write_text
from transformers import AutoModelForMaskedLM

from modeling_magic import MagicForMaskedLM
from training.analysis.settings import StandaloneSettings
from training.analysis.standalone import train_standalone
from training.hub.presets import load_preset
from training.retraining.retrain import retrain
from training.retraining.settings import RetrainSettings
from training.search.run import search_supernet
from training.search.settings import SearchSettings
from training.space.latency import measure_latency
from training.space.settings import BudgetSettings, LatencySettings
from training.supernet.pretrain import pretrain


CHILD = "MHA4,SKIP,FFN,SKIP"
QUIET = {"per_device_train_batch_size": 8, "disable_tqdm": True}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("skip"))


@pytest.fixture(scope="module")
def preset(folder):
    return write_preset(folder, candidate_operators=[["MHA4", "FFN", "SKIP"]] * 4)


@pytest.fixture(scope="module")
def supernet(folder, preset):
    settings = search_settings(preset, text_settings(folder), shrink=False, num_best_candidates=4, max_steps=6)
    pretrain(settings, folder / "supernet")
    return folder / "supernet"


def test_a_search_measures_the_winner_that_it_exports(folder, supernet):
    """Few parameters: the winner skips at least two layers, and the table still foretells it."""
    config = load_preset(str(supernet / "supernet"))
    table = folder / "table.json"
    measure_latency(config, LatencySettings(seq_len=8, min_run_time=0.001), num_held_out=4, progress=False).save(table)
    latency = {"max_latency_ms": 1e6, "latency_table": str(table), "accept_noisy_latency": True}
    budget = BudgetSettings(max_params=12_000, min_params=8_000, **latency)
    settings = SearchSettings(
        supernet=str(supernet), budget=budget, data=text_settings(folder), num_evaluations=8, population_size=4
    )
    result = search_supernet(settings, folder / "search")
    winner = result["architecture"]
    assert "SKIP" in winner
    exported = AutoModelForMaskedLM.from_pretrained(folder / "search" / "model")
    assert list(exported.config.chain) == [name for name in winner if name != "SKIP"]
    assert result["latency"]["measured_ms"] > 0


def test_a_child_that_skips_inherits_its_weights(folder, preset, supernet):
    settings = RetrainSettings(
        preset=preset,
        architecture=CHILD,
        inherit=str(supernet / "supernet"),
        data=dataclasses.replace(text_settings(folder), tokenizer=str(supernet / "supernet")),
        training_arguments={"max_steps": 1, "learning_rate": 0.0, **QUIET},
    )
    retrain(settings, folder / "retrained")
    child = AutoModelForMaskedLM.from_pretrained(folder / "retrained" / "model")
    assert child.config.chain == ("MHA4", "FFN")
    whole = MagicForMaskedLM.from_pretrained(supernet / "supernet").eval()
    input_ids = torch.arange(10).unsqueeze(0)
    with torch.no_grad():
        expected = whole(input_ids, architecture=tuple(CHILD.split(","))).logits
        torch.testing.assert_close(child(input_ids).logits, expected)


def test_a_child_that_skips_is_trained_alone(folder, preset):
    settings = StandaloneSettings(
        preset=preset,
        architectures=(CHILD,),
        num_validation_sequences=8,
        data=text_settings(folder),
        training_arguments={"max_steps": 2, **QUIET},
    )
    (trained,) = train_standalone(settings, folder / "alone")
    assert trained.architecture == tuple(CHILD.split(","))
    assert trained.steps == 2
