"""The run of a super-net in its folder: its result, whose the folder is, what goes on after a kill, a warm start."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
import yaml
from toy_cli import run_main
from toy_hub import SENTENCES, save_bert
from toy_runs import search_settings, shared_preset, shared_search, shared_text, text_settings, train_settings
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from modeling_magic.conversion import convert_to_magic
from training.retraining.retrain import retrain
from training.runs.recipes import load_recipe, settings_from
from training.runs.settings import FEWEST_STEPS, SUPERNET_EPOCHS
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings


@pytest.fixture(scope="module")
def preset():
    return shared_preset()


@pytest.fixture(scope="module")
def data():
    return text_settings(shared_text(), vocab_size=100)


@pytest.fixture(scope="module")
def search_run():
    return shared_search()


def test_a_search_ends_with_a_child_and_a_supernet(search_run):
    folder, result = search_run
    assert len(result["architecture"]) == 4
    assert all(name in layer for name, layer in zip(result["architecture"], result["space"], strict=True))
    assert len(result["shrink_history"]) == 2
    assert json.loads((folder / "result.json").read_text()) == result
    model = AutoModelForMaskedLM.from_pretrained(folder / "supernet")
    assert model.config.is_supernet
    assert len(AutoTokenizer.from_pretrained(folder / "supernet")) == model.config.vocab_size
    assert result["corpus"]["sha256"]["train"]


def test_a_super_net_of_which_nothing_is_said_trains_long_enough_to_align(tmp_path, preset, data, monkeypatch):
    asked = []
    monkeypatch.setattr("training.supernet.pretrain._train_supernet", lambda run, *given: asked.append(given[2]))
    pretrain(PretrainSettings(preset, data=replace(data, max_documents=30)), tmp_path)
    (args,) = asked
    assert (args.num_train_epochs, args.max_steps) == (SUPERNET_EPOCHS, FEWEST_STEPS)
    assert args.num_train_epochs > args.alignment_warmup_epochs


def test_a_finished_search_is_not_run_again(search_run, preset, data, monkeypatch):
    folder, result = search_run
    monkeypatch.setattr("training.supernet.pretrain.load_data", lambda settings: pytest.fail("read the text again"))
    assert pretrain(search_settings(preset, data), folder) == result


def test_a_folder_of_another_run_is_refused(search_run, preset, data):
    folder, _ = search_run
    with pytest.raises(ValueError, match=r"another run .*max_steps is 12 there, 99 here.*use another"):
        pretrain(search_settings(preset, data, max_steps=99), folder)
    with pytest.raises(ValueError, match=r"holds another run .of pretrain, not retrain"):
        retrain(train_settings(preset, data), folder)


def test_a_folder_of_something_else_is_refused(tmp_path, preset, data):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and does not hold a run; use another --output-dir"):
        pretrain(search_settings(preset, data), tmp_path)
    with pytest.raises(ValueError, match=r"notes\.txt is a file; give a folder"):
        pretrain(search_settings(preset, data), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_refused_start_leaves_its_folder_free(tmp_path, preset, data, monkeypatch):
    """Settings that only the trainer can refuse, then others; and a kill while run.json was written."""
    stream = replace(data, streaming=True)
    arguments = {"alignment_warmup_steps": None, "shrink": False}
    with pytest.raises(ValueError, match="set alignment_warmup_steps"):
        pretrain(search_settings(preset, stream, **arguments), tmp_path)
    (tmp_path / "run.json").rename(tmp_path / "run.json.1.tmp")
    with pytest.raises(ValueError, match="set alignment_warmup_steps"):
        pretrain(search_settings(preset, stream, **arguments), tmp_path)
    assert pretrain(search_settings(preset, data, max_steps=3), tmp_path)["steps"] == 3


@pytest.mark.slow
def test_a_second_process_may_be_killed_and_the_search_goes_on(tmp_path, preset, data, search_run):
    """kill -9 in the middle of `magic-nas pretrain`; the same command then ends with the same result."""
    folder, whole = search_run
    settings = json.loads((folder / "run.json").read_text())["settings"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    code = f"""
import os, signal, torch
torch.set_num_threads(1)
from transformers import TrainerCallback
from training import PretrainSettings, load_recipe, pretrain, settings_from
from training.supernet import trainer
class Kill(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 7:
            os.kill(os.getpid(), signal.SIGKILL)
init = trainer.MagicTrainer.__init__
def patched(self, *args, **kwargs):
    init(self, *args, **kwargs)
    self.add_callback(Kill())
trainer.MagicTrainer.__init__ = patched
settings = settings_from(PretrainSettings, load_recipe({str(recipe)!r}))
pretrain(settings, {str(tmp_path / "run")!r})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, env=dict(os.environ))
    assert done.returncode == -9, done.stderr.decode()
    assert (tmp_path / "run" / "checkpoint-5").is_dir()
    result = pretrain(settings_from(PretrainSettings, load_recipe(str(recipe))), tmp_path / "run")
    for key in ("architecture", "val_loss", "shrink_history", "anchor_history", "visits"):
        assert result[key] == whole[key], key


def test_pretrain_starts_from_a_checkpoint(tmp_path, monkeypatch, capsys):
    bert_folder = save_bert(tmp_path / "bert")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"{number}: {' '.join(SENTENCES)}" for number in range(60)))
    preset = tmp_path / "preset.json"
    sizes = {"hidden_size": 48, "intermediate_size": 80, "max_position_embeddings": 16}
    operators = {"candidate_operators": [["MHA4", "FFN", "CONV3"]] * 6}
    preset.write_text(json.dumps({"model_type": "magic", **sizes, **operators}))
    run = tmp_path / "run"
    arguments = ["pretrain", "-o", run, "--preset", preset, "--text", text, "--max-steps", 2, "--batch-size", 4]
    arguments += ["--set", "data.block_size=16", "--set", "data.validation_fraction=0.2", "--learning-rate", 0.0]
    arguments += ["--set", "num_validation_sequences=4", "--set", "disable_tqdm=true", "--alignment", "none"]

    narrow = tmp_path / "narrow.json"
    narrow.write_text(json.dumps({"model_type": "magic", **sizes, **operators, "hidden_size": 32}))
    for changes, message in (
        (["--init-from", bert_folder, "--preset", narrow], "has the hidden_size 48 but the super-net has 32"),
        (
            ["--init-from", bert_folder, "--set", "data.vocab_size=80"],
            "use the tokenizer of the checkpoint: --tokenizer",
        ),
        (["--init-from", tmp_path / "nowhere"], "nowhere"),
    ):
        code, _, err = run_main(monkeypatch, capsys, *arguments, *changes)
        assert code == 2
        assert message in err.strip().splitlines()[-1]
        assert not run.exists()

    arguments += ["--tokenizer", bert_folder]
    # A run stands for the model in it.
    source = tmp_path / "source"
    shutil.copytree(bert_folder, source / "model")
    (source / "run.json").write_text("{}", encoding="utf-8")
    code, _, err = run_main(monkeypatch, capsys, *arguments, "--init-from", source)
    assert code == 0, err
    assert json.loads((run / "run.json").read_text())["settings"]["init_from"] == str(source)
    assert json.loads((run / "result.json").read_text())["init_from"] == str(source)
    # Without learning the weights are those of the start.
    supernet = AutoModelForMaskedLM.from_pretrained(run / "supernet")
    bert = BertForMaskedLM.from_pretrained(bert_folder)
    expected = convert_to_magic(bert).model.magic.encoder.state_dict()
    found = supernet.magic.encoder.state_dict()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    code, _, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 2
    assert f"init_from is {str(source)!r} there, None here" in err
    # Neither a finished run nor one that resumes needs them again.
    shutil.rmtree(source)
    for _ in range(2):
        code, _, err = run_main(monkeypatch, capsys, *arguments, "--init-from", source)
        assert code == 0, err
        (run / "result.json").unlink()
    # But it needs the same text.
    text.write_text("\n\n".join(f"{number}: {' '.join(SENTENCES[::-1])}" for number in range(60)))
    code, _, err = run_main(monkeypatch, capsys, *arguments, "--init-from", source)
    assert code == 2
    assert f"the text has changed since the run in {run} began" in err
