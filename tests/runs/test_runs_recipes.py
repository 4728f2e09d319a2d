"""Recipes: every one is read, wrong keys and values are named, and flags win."""

import time
from dataclasses import replace
from pathlib import Path

import pytest

from training.analysis.settings import StandaloneSettings, SweepSettings
from training.cells.cell_sweep import check_sweep
from training.cells.settings import CellSweepSettings
from training.compression.members import check_budgets
from training.compression.settings import CompressSettings
from training.finetuning.finetune_run import check_finetuning
from training.finetuning.settings import FinetuneSettings, SquadSettings
from training.hub.presets import load_preset
from training.retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from training.runs.recipes import load_recipe, read_yaml, settings_from
from training.supernet.settings import BlockwiseSettings, PretrainSettings


RECIPES = {
    "blockwise-short": BlockwiseSettings,
    "compact-blockwise": BlockwiseSettings,
    "compact-pretrain": PretrainSettings,
    "compact-retrain": DistillSettings,
    "compress-minilm": CompressSettings,
    "compress-quick": CompressSettings,
    "demo-compress": CompressSettings,
    "demo-compress-short": CompressSettings,
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
    "micro8-longer": SweepSettings,
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
    "cells-methods": CellSweepSettings,
    "cells-regimes": CellSweepSettings,
}


def test_every_recipe_is_read_and_checked():
    folder = Path(__file__).parents[2] / "hub_configs" / "recipes"
    assert {path.stem for path in folder.glob("*.yaml")} == set(RECIPES)
    for name, kind in RECIPES.items():
        settings = settings_from(kind, load_recipe(name))
        if kind is SweepSettings:
            settings = settings.pretrain
        if kind is CellSweepSettings:
            check_sweep(replace(settings, supernet=replace(settings.supernet, images="images"), table="table"))
        elif kind is FinetuneSettings:
            check_finetuning(replace(settings, model="encoder"))
        elif kind is CompressSettings:
            # A recipe may leave the budget to its user.
            budgets = (settings.max_latency, settings.max_params, settings.max_flops)
            check_budgets(settings if any(budgets) else replace(settings, max_latency=("0.4x",)))
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
        ({"data": {"vocab_size": None}}, "vocab_size is None; it must be a whole number"),
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
    changes = {"training_arguments": {"seed": 4}, "data": {"block_size": 9}}
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


# ---- YAML ----


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-2E+5", -2e5),
        (".5e2", 50.0),
        ("1.5", 1.5),
        ("12", 12),
        ("1_000", 1000),
        ("010", 10),
        ("08", 8),
        ("1:30", "1:30"),
        ("no", "no"),
        ("off", "off"),
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("2020-01-01", "2020-01-01"),
        ("-.inf", -float("inf")),
        ("2.", 2.0),
        ("12e", "12e"),
        ("e5", "e5"),
        ("'1e-3'", "1e-3"),
        ("[1e3, {a: 2e-1}]", [1e3, {"a": 0.2}]),
        ("", None),
        ("a: &x [1, 2]\nb: *x", {"a": [1, 2], "b": [1, 2]}),
        ("a: &x {k: 1}\nb: {<<: *x, l: 2}", {"a": {"k": 1}, "b": {"k": 1, "l": 2}}),
    ],
)
def test_numbers_with_an_exponent_are_numbers(text, value):
    assert read_yaml(text) == value
    assert type(read_yaml(text)) is type(value)


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("preset: a\ndata:\n  seed: 1\n  seed: 2", "the key 'seed' occurs twice"),
        ("preset: a\npreset: b", "the key 'preset' occurs twice"),
        (BOMB, "it has more than 10,000 values with aliases expanded"),
        ("[" * 3000 + "]" * 3000, "nested deeper than 50 levels"),
        ("{a: " * 3000 + "1" + "}" * 3000, "nested deeper than 50 levels"),
        (
            "".join(f"a{n}: &a{n} [{f'*a{n - 1}' if n else 1}]\n" for n in range(60)),
            "nested deeper than 50 levels",
        ),
        ("a: &x [*x]", "an alias refers to a node that contains it"),
        ("[" + "1, " * 10_001 + "1]", "it has more than 10,000 values"),
        ("a: [1", "while parsing a flow sequence"),
        ("a: !!python/object:os.system x", "could not determine a constructor"),
        ("a: 1\n---\nb: 2", "expected a single document"),
        ("? [1]\n: 2", "unhashable"),
        ("a: !!bool maybe", "maybe"),
    ],
    ids=[
        "twice",
        "twice outside",
        "bomb",
        "deep list",
        "deep mapping",
        "deep aliases",
        "circle",
        "many",
        "cut",
        "tag",
        "two",
        "key",
        "bool",
    ],
)
def test_hostile_recipes_end_in_one_line_within_a_second(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    start = time.perf_counter()
    with pytest.raises(ValueError, match=message) as caught:
        load_recipe(str(path))
    assert time.perf_counter() - start < 1
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_recipe_that_is_no_text_is_named(tmp_path):
    (tmp_path / "recipe.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"recipe\.yaml is not a recipe"):
        load_recipe(str(tmp_path / "recipe.yaml"))


def test_a_recipe_names_its_command():
    recipe = {"command": "retrain --objective rtd", "generator_fraction": 0.5}
    assert settings_from(RtdSettings, recipe).generator_fraction == 0.5
    with pytest.raises(
        ValueError, match="the recipe is for `magic-nas retrain --objective rtd`, not for `magic-nas r"
    ):
        settings_from(RetrainSettings, recipe)
    with pytest.raises(ValueError, match="for `magic-nas brew`"):
        settings_from(RtdSettings, {"command": "brew"})


def test_a_sweeps_recipe_holds_the_keys_of_its_super_nets():
    recipe = {
        "preset": "magic-tiny",
        "values": [1, 2],
        "num_validation_sequences": 8,
        "data": {"block_size": 32},
        "training_arguments": {"max_steps": 3, "num_validation_sequences": 4},
    }
    settings = settings_from(SweepSettings, recipe, {"data": {"seed": 5}, "init_from": "x", "seeds": [7]})
    assert settings.pretrain.preset == "magic-tiny"
    assert (settings.pretrain.data.block_size, settings.pretrain.data.seed) == (32, 5)
    assert settings.pretrain.init_from == "x"
    assert settings.pretrain.training_arguments == {"max_steps": 3, "num_validation_sequences": 4}
    assert (settings.num_validation_sequences, settings.seeds, settings.values) == (8, (7,), (1, 2))


def test_sections_merge_and_a_change_may_be_null():
    recipe = {"data": {"block_size": 32, "seed": 1, "source": "x"}, "init_from": "y"}
    settings = settings_from(PretrainSettings, recipe, {"init_from": None, "data": {"seed": 2, "source": None}})
    assert (settings.init_from, settings.data.source) == (None, None)
    assert (settings.data.block_size, settings.data.seed) == (32, 2)
    assert recipe["data"] == {"block_size": 32, "seed": 1, "source": "x"}


def test_a_recorded_sweep_is_changed_as_a_recipe_is():
    """The settings that run.json holds have the super-nets' in a section of their own."""
    recorded = {"pretrain": {"data": {"source": "a"}, "training_arguments": {"max_steps": 5}}, "values": [1]}
    settings = settings_from(SweepSettings, recorded, {"data": {"seed": 1}, "training_arguments": {"seed": 3}})
    assert (settings.pretrain.data.source, settings.pretrain.data.seed) == ("a", 1)
    assert settings.pretrain.training_arguments == {"max_steps": 5, "seed": 3}


def test_a_wrong_key_of_a_sweep_is_named_beside_all_that_it_takes():
    with pytest.raises(ValueError, match="unknown key 'presett' in recipe; did you mean 'preset'"):
        settings_from(SweepSettings, {"presett": "magic-tiny"})
    with pytest.raises(ValueError, match="unknown key 'init_frm' in recipe; did you mean 'init_from'"):
        settings_from(SweepSettings, {"init_frm": "x"})


def test_a_command_of_null_is_none():
    assert settings_from(RtdSettings, {"command": None, "rtd_weight": 2}).rtd_weight == 2.0
