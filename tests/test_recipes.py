"""Every recipe names its command, and starts: two steps, on toy text and with toy sizes in place of its preset's."""

import json
import sys
from itertools import product

import pytest
import typer.main
from toy_cells import write_images, write_table
from toy_cli import SHORT, write_compression
from toy_finetune import WORDS, save_toy_model, toy_model, write_glue

from training.cli.main import app, main
from training.cli.reference import ALL_SETTINGS
from training.runs.recipes import load_recipe, recipe_names, settings_from


KINDS = {kind.command: kind for kind in ALL_SETTINGS}
STEPS = ["--set", "max_steps=2", "--set", "warmup_steps=1", "--set", "logging_steps=1", "--set", "save_steps=2"]
SMALL = ["--set", "per_device_train_batch_size=2", "--set", "per_device_eval_batch_size=2"]
TEXT = ["--preset", "{toy}", "--text", "{text}", "--tokenizer", "{encoder}", "--set", "data.block_size=16"]
TEXT += ["--set", "data.validation_fraction=0.2"]
SUPERNET = ["--set", "num_validation_sequences=2"]
CHILD = ["--architecture", "MHA4,FFN,CONV3,FFN", "--set", "num_validation_sequences=2"]
TEACHER = ["--teacher", "{encoder}"]

# What follows the recipe's name on the command line.
PRETRAIN = ["pretrain", *TEXT, *STEPS, *SMALL, *SUPERNET]
RETRAIN = ["retrain", *TEXT, *STEPS, *SMALL, *CHILD]
GLUE = ["finetune", "--model", "{encoder}", "--glue-folder", "{glue}", "--max-steps", "2", "--seed", "1"]
GLUE += ["--learning-rate", "1e-4", "--batch-size", "4", "--set", "max_length=24"]
SQUAD = ["squad", "--model", "{encoder}", "--train-file", "{squad}", "--validation-file", "{squad}", *STEPS, *SMALL]
SQUAD += ["--set", "max_seq_length=24", "--set", "doc_stride=8"]
STANDALONE = ["analyze", "standalone", *TEXT, *STEPS[:4], *SMALL, *SUPERNET]
SWEEP = ["analyze", "sweep", *TEXT[2:4], *STEPS[:4], *SMALL, "--truth", "{truth}", "--seed", "0", *SUPERNET, *TEXT[6:]]
# The toy has four layers.
SWEEP += ["--set", "preset={toy}", "--set", "data.tokenizer={encoder}", "--set", "values=[1, 4]"]
LONGER = ["--set", "values=[uniform, gradual]"]
BLOCK = "{{alignment: anchor, anchor_challenger: block}}"
FALLING = "{{sampler: gradual, num_substitutions_from: 4}}"
LONGER += ["--set", f"references={{{{falling: {FALLING}, block: {BLOCK}}}}}"]
OPERATORS = ("MHA4", "FFN", "CONV3")
# What a toy costs in milliseconds is not in its layers.
COMPRESS = ["compress", "{compression}/minilm", "--text", "{compression}/text", *SHORT, "--max-params", "0.9x,0.6x"]
COMPRESS += ["--set", "max_latency=[]"]
CELLS = [
    "analyze",
    "cells",
    "--images",
    "{images}",
    "--table",
    "{table}",
    "--metric",
    "accuracy",
    "--num-children",
    "10",
]
CELLS += [*STEPS[:4], *SMALL, "--seed", "0", "--set", "num_validation_images=4", "--set", "num_validation_sequences=4"]
CELLS += ["--set", "num_curve_children=5", "--set", "num_repeats=1"]

COMMANDS = {
    "blockwise-short": [*PRETRAIN, "--blockwise", "{encoder}", "--num-blocks", "2"],
    "cells-methods": CELLS,
    # The recipe's methods have steps of their own, up to 38,300.
    "cells-regimes": [*CELLS, "--set", "methods={{fast: {{learning_rate: 0.3}}}}"],
    "compact-blockwise": [*PRETRAIN, "--blockwise", "{encoder}", "--num-blocks", "2"],
    "compact-pretrain": [*PRETRAIN, "--set", "shrink_num_children=4"],
    "compact-retrain": [*RETRAIN, *TEACHER],
    "compress-minilm": COMPRESS,
    "compress-quick": COMPRESS,
    "demo-compress": COMPRESS,
    "demo-compress-short": COMPRESS,
    "demo-pretrain": [*PRETRAIN, "--set", "shrink_num_children=4"],
    "demo-pretrain-short": [*PRETRAIN, "--set", "shrink_num_children=4"],
    "demo-retrain": RETRAIN,
    "demo-retrain-short": RETRAIN,
    "micro-anchor": [*SWEEP, "--set", "values=[0, 100]"],
    "micro-benchmark": [*STANDALONE, "--num-children", "1"],
    "micro-methods": SWEEP,
    "micro-shrink": [*PRETRAIN, "--set", "shrink_num_children=4"],
    # A named child wins over the recipe's 48 uniform ones.
    "micro8-benchmark": [*STANDALONE, "--architecture", "(MHA4,FFN)*2"],
    "micro8-longer": [*SWEEP, *LONGER],
    "micro8-methods": SWEEP,
    "micro8-shrink": [*PRETRAIN, "--set", "shrink_num_children=4"],
    "mini-distill": [*RETRAIN, *TEACHER],
    "mini-glue": [*GLUE, "--task", "rte"],
    "mini-pretrain": PRETRAIN,
    "mini-retrain": RETRAIN,
    "mini-retrain-rtd": RETRAIN,
    "mini-squad": SQUAD,
    "paper-glue": [*GLUE, "--task", "sst2"],
    "paper-pretrain": [*PRETRAIN, "--set", "shrink_num_children=4"],
    "paper-retrain": RETRAIN,
    "paper-retrain-rtd": RETRAIN,
    "paper-squad": SQUAD,
}


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_names_its_command_first(name):
    recipe = load_recipe(name)
    assert next(iter(recipe)) == "command"
    kind = KINDS[recipe["command"]]
    assert type(settings_from(kind, recipe)) is kind
    words = recipe["command"].split()
    command = typer.main.get_command(app)
    for word in COMMANDS[name][: 2 if words[0] == "analyze" else 1]:
        assert words.pop(0) == word
        command = command.commands[word]
    known = {option for parameter in command.params for option in parameter.opts}
    assert {"--config", *words[:1]} <= known


@pytest.mark.parametrize(
    ("name", "function"),
    [
        ("paper-retrain", "retrain.retrain"),
        ("paper-retrain-rtd", "rtd_run.retrain_rtd"),
        ("compact-retrain", "distill_run.retrain_distilled"),
    ],
)
def test_a_recipe_needs_no_flag_that_it_names(name, function, monkeypatch, tmp_path):
    asked: list = []
    monkeypatch.setattr(f"training.retraining.{function}", lambda settings, *_: asked.append(settings) or 1 / 0)
    monkeypatch.setattr(sys, "argv", ["magic-nas", "retrain", "-c", name, "-o", str(tmp_path / "run")])
    with pytest.raises(ZeroDivisionError):
        main()
    assert asked[0].command == load_recipe(name)["command"]


@pytest.mark.parametrize(
    ("command", "name"),
    [
        (["pretrain"], "paper-retrain-rtd"),
        (["retrain", "--objective", "mlm"], "paper-retrain-rtd"),
        (["retrain", "--objective", "rtd"], "paper-retrain"),
        (["finetune"], "paper-squad"),
        (["analyze", "standalone"], "micro-methods"),
        (["compress"], "compact-retrain"),
        (["retrain"], "compress-minilm"),
    ],
)
def test_a_recipe_of_another_command_is_refused(command, name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["magic-nas", *command, "-c", name, "-o", str(tmp_path / "run")])
    with pytest.raises(SystemExit):
        main()
    assert f"the recipe is for `magic-nas {load_recipe(name)['command']}`" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A text, a preset, an encoder with its tokenizer, GLUE, questions and a compression, all of toy size."""
    folder = tmp_path_factory.mktemp("recipes")
    words = WORDS
    (folder / "text").mkdir()
    documents = [" ".join(words[(start + step * 7) % len(words)] for step in range(60)) for start in range(120)]
    (folder / "text" / "a.txt").write_text("\n\n".join(documents))
    config = toy_model("magic").config.to_dict() | {"candidate_operators": [["MHA4", "FFN", "CONV3"]] * 4}
    del config["num_hidden_layers"]
    (folder / "toy.json").write_text(json.dumps(config))
    save_toy_model("bert", folder / "encoder")
    write_glue(folder / "glue")
    answers = [{"text": words[3], "answer_start": len(" ".join(words[:3])) + 1}]
    questions = [{"id": str(number), "question": words[number], "answers": answers} for number in range(8)]
    paragraphs = [{"context": " ".join(words[:12]), "qas": questions}]
    (folder / "squad.json").write_text(json.dumps({"data": [{"title": "a", "paragraphs": paragraphs}]}))
    losses = {f"{first},{second},FFN,FFN": step for step, (first, second) in enumerate(product(OPERATORS, OPERATORS))}
    (folder / "truth.json").write_text(json.dumps(losses))
    (folder / "compression").mkdir()
    write_compression(folder / "compression")
    write_images(folder / "images", 12, 16)
    write_table(folder / "cells.csv")
    names = {"truth": "truth.json", "toy": "toy.json", "squad": "squad.json", "table": "cells.csv"}
    every = ("text", "toy", "encoder", "glue", "squad", "truth", "compression", "images", "table")
    return {name: str(folder / names.get(name, name)) for name in every}


@pytest.mark.slow
@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_starts(name, places, tmp_path, monkeypatch, capsys):
    command = [word.format(**places) for word in COMMANDS[name]]
    start = 2 if command[0] == "analyze" else 1
    quiet = [] if command[0] == "compress" else ["--set", "disable_tqdm=true"]
    command[start:start] = ["-c", name, "-o", str(tmp_path / "run"), *quiet]
    monkeypatch.setattr(sys, "argv", ["magic-nas", *command])
    with pytest.raises(SystemExit) as end:
        main()
    assert not end.value.code, capsys.readouterr().err
    assert any((tmp_path / "run").iterdir())
