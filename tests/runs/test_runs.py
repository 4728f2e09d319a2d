"""Runs in their folders, from text to a model folder, and the command line on top of them."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from filelock import FileLock
from toy_runs import text_settings, write_preset, write_text
from transformers import AutoModelForMaskedLM, AutoTokenizer

from training.analysis.settings import StandaloneSettings, SweepSettings
from training.cli import demo
from training.cli.main import main
from training.finetuning.finetune_run import check_finetuning
from training.finetuning.settings import FinetuneSettings, SquadSettings
from training.hub.presets import load_preset
from training.retraining.retrain import follow_search, retrain
from training.retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from training.runs.recipes import load_recipe, read_yaml, settings_from
from training.space.costs import count_parameters, training_flops
from training.supernet.loading import export_child
from training.supernet.pretrain import pretrain
from training.supernet.settings import BlockwiseSettings, PretrainSettings


@pytest.fixture(scope="module")
def text_folder(tmp_path_factory):
    return write_text(tmp_path_factory.mktemp("text"), num_documents=150)


@pytest.fixture(scope="module")
def preset(tmp_path_factory):
    return write_preset(tmp_path_factory.mktemp("preset"), vocab_size=100, sparse_prediction=True)


@pytest.fixture(scope="module")
def data(text_folder):
    return text_settings(text_folder, vocab_size=100)


def search_settings(preset, data, **arguments) -> PretrainSettings:
    return PretrainSettings(
        preset,
        data=data,
        training_arguments={
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "shrink": True,
            "shrink_every_n_steps": 4,
            "shrink_num_children": 6,
            "alignment_warmup_steps": 2,
            "anchor_eval_steps": 3,
            "num_validation_sequences": 16,
            "disable_tqdm": True,
            "save_steps": 5,
            "logging_steps": 2,
            **arguments,
        },
    )


def train_settings(preset, data, architecture="MHA4,FFN,CONV3,FFN", **arguments) -> RetrainSettings:
    return RetrainSettings(
        preset,
        architecture,
        num_validation_sequences=16,
        data=data,
        training_arguments={
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "disable_tqdm": True,
            "save_steps": 3,
            "logging_steps": 2,
            "learning_rate": 1e-3,
            **arguments,
        },
    )


@pytest.fixture(scope="module")
def search_run(preset, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "search"
    return folder, pretrain(search_settings(preset, data), folder)


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


def test_a_finished_search_is_not_run_again(search_run, preset, data, monkeypatch):
    folder, result = search_run
    monkeypatch.setattr("training.retraining.retrain.load_data", lambda settings: pytest.fail("read the text again"))
    assert pretrain(search_settings(preset, data), folder) == result


def test_a_folder_of_another_run_is_refused(search_run, preset, data):
    folder, _ = search_run
    with pytest.raises(ValueError, match=r"another run .*max_steps is 12 there, 99 here.*take another"):
        pretrain(search_settings(preset, data, max_steps=99), folder)
    with pytest.raises(ValueError, match=r"holds another run .of pretrain, not retrain"):
        retrain(train_settings(preset, data), folder)


def test_a_folder_of_something_else_is_refused(tmp_path, preset, data):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="is not empty and holds no run; take another --output-dir"):
        pretrain(search_settings(preset, data), tmp_path)
    with pytest.raises(ValueError, match="holds no run"):
        pretrain(search_settings(preset, data), tmp_path / "notes.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


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
    with lock, pytest.raises(ValueError, match=r"another process works in .*; wait for it, or take another"):
        retrain(train_settings(preset, data), tmp_path)
    assert retrain(train_settings(preset, data), tmp_path)["steps"] == 8


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


def test_inheriting_needs_the_super_nets_sizes_and_tokenizer(search_run, tmp_path, preset, data):
    folder, _ = search_run
    other = json.loads(Path(preset).read_text()) | {"hidden_size": 64}
    (tmp_path / "other.json").write_text(json.dumps(other))
    settings = replace(train_settings(str(tmp_path / "other.json"), data), inherit=str(folder))
    with pytest.raises(ValueError, match="hidden_size is 64 in the preset but 32 in the super-net"):
        retrain(settings, tmp_path / "run")
    settings = replace(train_settings(preset, replace(data, vocab_size=80)), inherit=str(folder))
    with pytest.raises(ValueError, match=r"another vocabulary \(80 tokens\) than the super-net's"):
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


def test_export_of_the_found_child_and_of_another(search_run, tmp_path):
    folder, result = search_run
    export_child(folder, tmp_path / "found")
    manifest = json.loads((tmp_path / "found" / "search.json").read_text())
    assert manifest["architecture"] == result["architecture"]
    assert manifest["search"]["val_loss"] == result["val_loss"]
    export_child(folder, tmp_path / "other", "FFN,FFN,FFN,FFN")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "other").config.candidate_operators == [["FFN"]] * 4
    with pytest.raises(ValueError, match="layer 0 has no operator 'CONV7'; candidates: MHA4, FFN, CONV3"):
        export_child(folder, tmp_path / "none", "CONV7,FFN,FFN,FFN")
    with pytest.raises(ValueError, match="holds no finished super-net run; run `magic-nas pretrain"):
        export_child(tmp_path / "nowhere", tmp_path / "none")


def test_damaged_weights_are_named(search_run, tmp_path):
    folder, _ = search_run
    shutil.copytree(folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "supernet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the weights in .* are cut off or damaged"):
        export_child(tmp_path / "copy", tmp_path / "out")


# ---- Settings ----


RECIPES = {
    "blockwise-short": BlockwiseSettings,
    "compact-blockwise": BlockwiseSettings,
    "compact-pretrain": PretrainSettings,
    "compact-retrain": DistillSettings,
    "demo-pretrain": PretrainSettings,
    "demo-pretrain-short": PretrainSettings,
    "demo-retrain": RetrainSettings,
    "demo-retrain-short": RetrainSettings,
    "micro-anchor": SweepSettings,
    "micro-benchmark": StandaloneSettings,
    "micro-methods": SweepSettings,
    "micro-shrink": PretrainSettings,
    "micro8-shrink": PretrainSettings,
    "micro8-benchmark": StandaloneSettings,
    "micro8-methods": SweepSettings,
    "mini-distill": DistillSettings,
    "mini-pretrain": PretrainSettings,
    "mini-retrain": RetrainSettings,
    "mini-retrain-rtd": RtdSettings,
    "paper-pretrain": PretrainSettings,
    "paper-retrain": RetrainSettings,
    "paper-retrain-rtd": RtdSettings,
    "mini-glue": FinetuneSettings,
    "mini-squad": SquadSettings,
    "paper-glue": FinetuneSettings,
    "paper-squad": SquadSettings,
}


def test_every_recipe_is_read_and_checked():
    folder = Path(__file__).parents[2] / "hub_configs" / "recipes"
    assert {path.stem for path in folder.glob("*.yaml")} == set(RECIPES)
    for name, kind in RECIPES.items():
        settings = settings_from(kind, load_recipe(name))
        if kind is SweepSettings:
            settings = settings.pretrain
        if kind is FinetuneSettings:
            check_finetuning(replace(settings, model="encoder"))
        elif kind is not SquadSettings:
            assert load_preset(settings.preset)
            assert settings.training_arguments["max_steps"] > 0


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ({"presett": "magic-tiny"}, "unknown key 'presett' in recipe; did you mean 'preset'"),
        ({"data": {"vocab": 3}}, "unknown key 'vocab' in data; did you mean 'vocab_size'"),
        ({"training_arguments": {"learning_rat": 1}}, "in training_arguments; did you mean 'learning_rate'"),
        ({"training_arguments": {"output_dir": "x"}}, "unknown key 'output_dir' in training_arguments"),
        ({"data": {"zzz": 3}}, "unknown key 'zzz' in data; known keys: block_size"),
        ({"data": 3}, "data is 3; it must be a mapping"),
        ({"training_arguments": {"learning_rate": "fast"}}, "learning_rate is 'fast'; it must be a number"),
        ({"training_arguments": {"shrink": "yes, please"}}, "shrink is 'yes, please'; it must be true or false"),
        ({"training_arguments": {"num_substitutions": 1.5}}, "num_substitutions is 1.5; it must be a whole number"),
        ({"training_arguments": {"alignment_weight": None}}, "alignment_weight is None; it must be a number"),
        ({"training_arguments": {"max_steps": [1]}}, r"max_steps is \[1\]; it must be a whole number"),
        ({"training_arguments": {"shrink_every_n_steps": "soon"}}, "is 'soon'; it must be a whole number or null"),
        ({"data": {"block_size": None}}, "block_size is None; it must be a whole number"),
        ({"preset": 3}, "preset is 3; it must be text"),
        ({1: 2}, "unknown key 1 in recipe"),
        ({"mlm_probability": 0.0}, "mlm_probability is 0.0; it must be between 0 and 1"),
        ({"training_arguments": {"per_device_train_batch_size": 0}}, "per_device_train_batch_size is 0; .*at least 1"),
    ],
)
def test_broken_recipe_keys_are_named(recipe, message):
    with pytest.raises(ValueError, match=message):
        settings_from(PretrainSettings, recipe)


def test_flags_win_over_the_recipe():
    recipe = {"preset": "magic-base", "training_arguments": {"max_steps": 5, "seed": 3}, "data": {"vocab_size": 7}}
    changes = {"preset": None, "training_arguments": {"seed": 4}, "data": {"block_size": 9}}
    settings = settings_from(PretrainSettings, recipe, changes)
    assert settings.preset == "magic-base"
    assert settings.training_arguments == {"max_steps": 5, "seed": 4}
    assert (settings.data.vocab_size, settings.data.block_size) == (7, 9)


def test_numbers_that_yaml_takes_for_text_are_numbers():
    given = "{learning_rate: 1e-3, max_steps: 2e3, shrink_every_n_steps: +1E2}"
    settings = settings_from(PretrainSettings, {"training_arguments": read_yaml(given)})
    assert settings.training_arguments == {"learning_rate": 1e-3, "max_steps": 2000, "shrink_every_n_steps": 100}
    assert isinstance(settings.training_arguments["max_steps"], int)


def test_recipes_that_are_none(tmp_path):
    with pytest.raises(ValueError, match="recipe 'nothing' does not exist; choose one of blockwise-short, "):
        load_recipe("nothing")
    path = tmp_path / "broken.yaml"
    path.write_text("a: [1")
    with pytest.raises(ValueError, match="is not a recipe: while parsing"):
        load_recipe(str(path))
    path.write_text("- a")
    with pytest.raises(ValueError, match="a YAML mapping is expected"):
        load_recipe(str(path))


# ---- The demo's comparison ----


def test_controls_are_a_bert_pattern_of_like_size_and_another_child():
    config = load_preset("magic-tiny")
    found = ("MHA4", "FFN", "CONV3", "FFN", "CONV5", "FFN")
    children = demo.controls(config, found)
    bert, other = children[demo.BERT], children[demo.RANDOM]
    assert set(bert[::2]) == {"MHA4"}
    assert set(bert[1::2]) == {"FFN"}
    size = {name: count_parameters(config, child, head="mlm") for name, child in children.items()}
    longer, shorter = (*bert, "MHA4", "FFN"), bert[:-2]
    for pattern in (longer, shorter):
        if pattern:
            distance = abs(count_parameters(config, pattern, head="mlm") - size[demo.FOUND])
            assert abs(size[demo.BERT] - size[demo.FOUND]) <= distance
    assert other not in (found, bert)
    assert len(other) == 6


def test_steps_give_equal_training_flops():
    config = load_preset("magic-tiny")
    children = demo.controls(config, ("CONV3",) * 6)
    steps = demo.equal_compute_steps(config, children, 1000)
    flops = {name: steps[name] * training_flops(config, children[name], 128, 2048) for name in children}
    assert steps[demo.FOUND] == 1000
    assert max(flops.values()) / min(flops.values()) < 1.005
    assert len(set(steps.values())) > 1


# ---- The command line ----


def run_main(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["magic-nas", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    output = capsys.readouterr()
    return int(stop.value.code or 0), output.out, output.err


def test_commands_from_search_to_export(tmp_path, preset, text_folder, monkeypatch, capsys):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump(
            {
                "preset": preset,
                "data": {"source": str(text_folder), "vocab_size": 100, "block_size": 16, "validation_fraction": 0.1},
                "training_arguments": {
                    "shrink_every_n_steps": 2,
                    "shrink_operators_per_round": 8,
                    "disable_tqdm": True,
                },
            }
        )
    )
    search = tmp_path / "search"
    arguments = ["pretrain", "-c", recipe, "-o", search, "--max-steps", 4, "--batch-size", 4, "--shrink"]
    arguments += ["--set", "num_validation_sequences=8", "--set", "mlm_probability=0.2"]
    arguments += ["--set", "shrink_num_children=4", "--set", "alignment_warmup_steps=0", "--set", "learning_rate=1e-3"]
    code, out, err = run_main(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "| found child |" in out
    assert (search / "report.png").stat().st_size > 10_000
    settings = json.loads((search / "run.json").read_text())["settings"]
    assert settings["training_arguments"]["learning_rate"] == 1e-3
    assert settings["training_arguments"]["num_validation_sequences"] == 8
    assert settings["mlm_probability"] == 0.2
    child = tmp_path / "child"
    code, out, err = run_main(monkeypatch, capsys, "retrain", "--search", search, "-o", child, "--max-steps", 2)
    assert code == 0, err
    assert "| this model |" in out
    assert AutoModelForMaskedLM.from_pretrained(child / "model")
    code, out, err = run_main(monkeypatch, capsys, "export", search, tmp_path / "exported", "--onnx")
    assert code == 0, err
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "exported")
    assert (tmp_path / "exported" / "onnx" / "model.onnx").is_file()
    code, out, err = run_main(monkeypatch, capsys, "export", child / "model", tmp_path / "onnx", "--onnx")
    assert code == 0, err
    assert sorted(path.name for path in (tmp_path / "onnx").iterdir()) == ["config.json", "model.onnx"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["describe", "magic-huge"], "unknown preset 'magic-huge'; choose one of"),
        (["describe", "magic-tiny", "--architecture", "MHA5,FFN"], "5 heads"),
        (["describe", "magic-tiny", "--architecture", "MHA4,,FFN"], "is not an operator name"),
        (["pretrain", "-o", "{tmp}/run", "--text", "{tmp}/nowhere"], "nowhere"),
        (["pretrain", "-o", "{tmp}/run", "--text", "{tmp}/empty"], "empty"),
        (["pretrain", "-o", "{tmp}/run", "--preset", "bert-base"], "super-net needs a layer with a choice"),
        (["pretrain", "-o", "{tmp}/run", "--set", "num_substitutions=99"], "choose 1 to 6, the number of layers"),
        (["pretrain", "-o", "{tmp}/run", "--set", "optim=[1"], "is not a value that YAML reads"),
        (["pretrain", "-o", "{tmp}/run", "--set", "max_step=3"], "did you mean 'training_arguments.max_steps'"),
        (["pretrain", "-o", "{tmp}/run", "--set", "max_steps"], "has no value; write KEY=VALUE"),
        (["pretrain", "-o", "{tmp}/run", "--set", "a.b=3"], "names no section"),
        (["pretrain", "-o", "{tmp}/run", "--sampler", "spos"], "sampler is 'spos'; choose one of"),
        (["pretrain", "-o", "{tmp}/run", "-c", "{tmp}/none.yaml"], "does not exist; choose one of"),
        (["pretrain", "-o", "{tmp}/run", "--num-threads", "0"], "--num-threads is 0; it must be at least 1"),
        (["pretrain", "-o", "{tmp}"], "is not empty and holds no run"),
        (["retrain", "-o", "{tmp}/run", "--architecture", "MHA4,CONV8"], "even kernel 8"),
        (["retrain", "-o", "{tmp}/run", "--architecture", ""], "architecture"),
        (["retrain", "-o", "{tmp}/run", "--inherit"], "say which with --search RUN"),
        (["retrain", "-o", "{tmp}/run", "--search", "{tmp}/nowhere"], "holds no finished super-net run"),
        (["export", "{tmp}/nowhere", "{tmp}/out"], "holds no finished super-net run"),
    ],
)
def test_wrong_input_ends_in_one_line_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "empty").mkdir()
    monkeypatch.setattr("training.supernet.trainer.MagicTrainer.train", lambda *_, **__: pytest.fail("trained"))
    code, _, err = run_main(monkeypatch, capsys, *(text.format(tmp=tmp_path) for text in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("magic-nas: error: ")
    assert message in last
    assert "Traceback" not in err
    assert not (tmp_path / "run").exists()


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
