"""The run of a block-wise super-net in its folder: its result, what follows it, stopped and resumed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_runs import text_settings, write_preset, write_teacher, write_text
from transformers import AutoModelForMaskedLM, AutoTokenizer

from modeling_magic import MagicForMaskedLM
from training.data.text import MaskingCollator, load_data
from training.retraining.retrain import follow_search, retrain
from training.retraining.settings import RetrainSettings
from training.runs.recipes import settings_from
from training.runs.settings import FEWEST_STEPS, SUPERNET_EPOCHS
from training.space.costs import count_parameters
from training.supernet.blockwise import BlockwiseTrainer
from training.supernet.blockwise_run import blockwise_table, run_blockwise
from training.supernet.evaluation import evaluate_child, validation_batches
from training.supernet.figures import draw_health, draw_search
from training.supernet.loading import export_child, load_supernet
from training.supernet.settings import BlockwiseSettings


SIZES: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
SIZES |= {"max_position_embeddings": 16, "pad_token_id": 0, "layer_norm_eps": 1e-12, "initializer_range": 0.2}
PATTERN = ["MHA4", "FFN"] * 2


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return text_settings(write_text(tmp_path_factory.mktemp("text")))


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return write_preset(tmp_path_factory.mktemp("preset"), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)


@pytest.fixture(scope="module")
def teacher(text, tmp_path_factory):
    return write_teacher(tmp_path_factory.mktemp("teacher"), text, SIZES)


def run_settings(preset, text, teacher, init_from=None, num_ranked=10, **arguments) -> BlockwiseSettings:
    given: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 8, "disable_tqdm": True, "save_steps": 4}
    given |= {"logging_steps": 3, "learning_rate": 1e-3, "num_validation_sequences": 16, **arguments}
    return BlockwiseSettings(
        preset,
        init_from,
        data=text,
        training_arguments=given,
        teacher=teacher,
        num_blocks=2,
        num_ranked=num_ranked,
    )


@pytest.fixture(scope="module")
def finished(preset, text, teacher, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "blockwise"
    return folder, run_blockwise(run_settings(preset, text, teacher), folder)


def test_a_run_of_which_nothing_is_said_trains_long_enough(preset, text, teacher, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("training.supernet.blockwise_run._train", lambda run, *given: asked.append(given[3]))
    run_blockwise(
        BlockwiseSettings(preset, data=replace(text, max_documents=30), teacher=teacher, num_blocks=2), tmp_path
    )
    (args,) = asked
    assert (args.num_train_epochs, args.max_steps) == (SUPERNET_EPOCHS, FEWEST_STEPS)


def test_a_run_ends_with_a_supernet_and_the_best_child(finished, text, teacher):
    folder, result = finished
    assert json.loads((folder / "result.json").read_text()) == result
    supernet = load_supernet(folder)
    assert isinstance(supernet, MagicForMaskedLM)
    assert len(AutoTokenizer.from_pretrained(folder / "supernet")) == supernet.config.vocab_size
    assert result["candidate_operators"] == supernet.config.candidate_operators
    assert result["num_paths"] == [9, 9]
    assert result["borders"] == [0, 2, 4]
    assert result["teacher"]["borders"] == [0, 1, 2]
    assert result["teacher"]["is_mapped"] is False
    assert result["steps"] == 6
    losses = [row["block_loss"] for row in result["ranking"]]
    assert len(losses) == 10
    assert losses == sorted(losses)
    assert result["ranking"][0] == {"architecture": result["architecture"], "block_loss": result["block_loss"]}
    assert sum(result["block_losses"]) == result["block_loss"]
    assert {"loss", "loss_block_0", "loss_block_1"} <= set(result["log_history"][0])
    # Of the child itself, as an export of it would be judged.
    data = load_data(replace(text, tokenizer=teacher))
    batches = validation_batches(data.validation, MaskingCollator(data.tokenizer, seed=42), 8, 16)
    child = supernet.extract_child(result["architecture"]).eval()
    assert (result["val_loss"], result["val_accuracy"]) == pytest.approx(evaluate_child(child, batches), rel=1e-5)


def test_the_winner_is_exported_and_retrained_as_any_other(finished, teacher, tmp_path):
    folder, result = finished
    exported = AutoModelForMaskedLM.from_pretrained(export_child(folder, tmp_path / "child"))
    assert [layer[0] for layer in exported.config.candidate_operators] == result["architecture"]
    recipe, record = follow_search(
        folder, {"training_arguments": {"max_steps": 1, "disable_tqdm": True}}, inherit=True
    )
    retrained = retrain(settings_from(RetrainSettings, recipe), tmp_path / "retrain", record)
    assert retrained["architecture"] == result["architecture"]
    manifest = json.loads((tmp_path / "retrain" / "model" / "search.json").read_text())
    assert manifest["search"]["objective"].startswith("block-wise imitation")
    # What is published names a folder of this disk, not its place.
    assert manifest["search"]["teacher"]["name"] == Path(teacher).name


def test_the_table_and_the_figures_show_it(finished, tmp_path):
    folder, result = finished
    table = blockwise_table(load_supernet(folder).config, result)
    assert f"| block loss (ranking score) | {result['block_loss']:.4f} |" in table
    assert f"| 1 | {','.join(result['architecture'])} | {result['block_loss']:.4f} |" in table
    assert table.count("\n| ") >= 20
    assert draw_search(result, {}, tmp_path / "search.png").stat().st_size > 1000
    assert draw_health(result, tmp_path / "health.png").stat().st_size > 1000


def test_a_supernet_that_begins_as_the_teacher_finds_it(preset, text, teacher, tmp_path):
    """Without a step to speak of, the teacher's own operators are found, and its embeddings and head are there."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "run.json").write_text("{}", encoding="utf-8")
    (tmp_path / "source" / "model").symlink_to(teacher, target_is_directory=True)
    source_run = str(tmp_path / "source")
    settings = run_settings(preset, text, source_run, init_from=source_run, max_steps=1, learning_rate=0.0)
    result = run_blockwise(settings, tmp_path / "run")
    assert result["architecture"] == PATTERN
    assert result["block_loss"] < 1e-9
    child = load_supernet(tmp_path / "run").extract_child(PATTERN).eval()
    source = AutoModelForMaskedLM.from_pretrained(teacher).eval()
    ids = torch.arange(5, 17).unsqueeze(0)
    assert torch.allclose(child(ids).logits, source(ids).logits, atol=1e-5)


def test_the_best_child_is_within_the_budget(preset, text, teacher, tmp_path, finished):
    config = load_supernet(finished[0]).config
    found = count_parameters(config, finished[1]["architecture"], head="mlm")
    settings = run_settings(preset, text, teacher, max_params=found - 1)
    result = run_blockwise(settings, tmp_path / "run")
    assert count_parameters(config, result["architecture"], head="mlm") < found
    assert result["budget"] == f"num_parameters <= {found - 1:,}"
    # Training knows nothing of the budget: of the same losses, the best child that is within it.
    assert result["block_loss"] >= finished[1]["block_loss"]


def test_a_stopped_run_goes_on_with_the_same_bits(finished, preset, text, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "training.supernet.blockwise_run.save_supernet", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt)
    )
    with pytest.raises(KeyboardInterrupt):
        run_blockwise(run_settings(preset, text, teacher), tmp_path / "stopped")
    monkeypatch.undo()
    # As if the process had died between the checkpoints 4 and 6.
    (tmp_path / "stopped" / "checkpoint-6" / "trainer_state.json").unlink()
    step, steps = BlockwiseTrainer.training_step, []
    monkeypatch.setattr(BlockwiseTrainer, "training_step", lambda *given: (steps.append(1), step(*given))[1])
    resumed = run_blockwise(run_settings(preset, text, teacher), tmp_path / "stopped")
    assert len(steps) == 2
    for key in ("architecture", "block_losses", "ranking", "val_loss", "visits"):
        assert resumed[key] == finished[1][key]


def test_a_finished_run_needs_no_teacher_and_its_folder_is_its_own(finished, preset, text, teacher, monkeypatch):
    folder, result = finished
    monkeypatch.setattr(
        "training.supernet.blockwise_run.load_data", lambda settings: pytest.fail("read the text again")
    )
    monkeypatch.setattr(
        "training.supernet.blockwise_run.load_teacher_encoder", lambda *_: pytest.fail("loaded it again")
    )
    assert run_blockwise(run_settings(preset, text, teacher), folder) == result
    with pytest.raises(ValueError, match=r"another run .num_ranked is 10 there, 3 here"):
        run_blockwise(run_settings(preset, text, teacher, num_ranked=3), folder)


def test_what_does_not_fit_is_refused_before_the_text_is_read(preset, text, teacher, tmp_path, monkeypatch):
    monkeypatch.setattr("training.supernet.blockwise_run.load_data", lambda settings: pytest.fail("read the text"))
    settings = run_settings(preset, text, teacher)
    other = tmp_path / "other"
    AutoModelForMaskedLM.from_pretrained(teacher).save_pretrained(other)
    load_data(replace(text, vocab_size=60)).tokenizer.save_pretrained(other)
    cases = {
        "no teacher is given": replace(settings, teacher=""),
        "num_blocks is 9; choose 1 to 4": replace(settings, num_blocks=9),
        "teacher has 2 layers": replace(settings, num_blocks=3),
        "alignment is 'anchor'": run_settings(preset, text, teacher, alignment="anchor"),
        "has a different vocabulary": replace(settings, data=replace(text, tokenizer=str(other))),
        "block_size is 32 but the teacher": replace(settings, data=replace(text, block_size=32)),
    }
    for message, wrong in cases.items():
        with pytest.raises(ValueError, match=message):
            run_blockwise(wrong, tmp_path / "run")
    assert not (tmp_path / "run").exists()
