"""docs/method.md names what exists: files, tests, functions, training arguments, recipe keys, commands, operators."""

import ast
import importlib
import inspect
import re
import shlex
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest
import typer.main
import yaml
from transformers import TrainingArguments

from modeling_magic import MagicConfig, parse_operator
from training.cli.main import app
from training.data.settings import DataSettings
from training.hub.presets import preset_names
from training.retraining.settings import RtdSettings
from training.space.samplers import make_sampler
from training.space.search_space import SearchSpace
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.settings import PretrainSettings


ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
# The modules that the map calls by their bare names.
MODULES = {
    path.stem: f"{folder}.{path.stem}"
    for folder in ("modeling_magic", "training")
    for path in (ROOT / folder).glob("*.py")
    if path.stem != "__init__"
}


def names_of(kind: type) -> set[str]:
    return {field.name for field in fields(kind)}


@cache
def functions_of(path: Path) -> set[str]:
    body = ast.parse(path.read_text(encoding="utf-8")).body
    return {node.name for node in body if isinstance(node, ast.FunctionDef)}


def is_test(reference: str) -> bool:
    path, _, name = reference.partition("::")
    return (ROOT / path).is_file() and name.startswith("test_") and name in functions_of(ROOT / path)


def is_command(reference: str) -> bool:
    """Whether the command and its options exist, and the preset that it names."""
    _, name, *words = shlex.split(reference)
    command = getattr(typer.main.get_command(app), "commands", {}).get(name)
    if command is not None and hasattr(command, "commands") and words:
        command = command.commands.get(words.pop(0))
    if command is None:
        return False
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    if not all(word in options for word in words if word.startswith("-")):
        return False
    presets = [preset for option, preset in pairwise(words) if option == "--preset"]
    return set(presets if name != "describe" else words[:1]) <= set(preset_names())


def is_recipe_key(reference: str) -> bool:
    section, _, name = reference.partition("=")[0].rpartition(".")
    if section == "data":
        return name in names_of(DataSettings)
    kinds = (PretrainSettings, RtdSettings, MagicTrainingArguments)
    return section == "" and any(name in names_of(kind) for kind in kinds)


def is_argument(reference: str, folder: Path) -> bool:
    """Whether it is a training argument, and its value, where there is one, is allowed."""
    name, equals, value = reference.partition("=")
    if name not in names_of(MagicTrainingArguments):
        return False
    try:
        if name == "sampler" and equals:
            make_sampler(value, SearchSpace((("MHA4", "FFN"),)), seed=0, cost=len)
        elif equals:
            MagicTrainingArguments(str(folder), report_to="none", **{name: yaml.safe_load(value)})
    except ValueError:
        return False
    return True


def is_defined(reference: str) -> bool:
    """Whether module.name.name is defined there, not merely imported."""
    first, *rest = reference.split(".")
    if first != "MagicConfig" and first not in MODULES:
        return False
    value = MagicConfig if first == "MagicConfig" else importlib.import_module(MODULES[first])
    for name in rest:
        if name in getattr(value, "__dataclass_fields__", {}):
            return name == rest[-1]
        if not hasattr(value, name):
            return False
        owner, value = value, getattr(value, name)
        if inspect.ismodule(owner) and getattr(value, "__module__", owner.__name__) != owner.__name__:
            return False
    return True


def is_operator(reference: str) -> bool:
    try:
        return parse_operator(reference) is not None
    except ValueError:
        return False


def exists(reference: str, folder: Path) -> bool:
    """Whether what stands between backticks exists; each kind of reference is known by its form."""
    if "::" in reference:
        return is_test(reference)
    if reference.startswith("magic-nas "):
        return is_command(reference)
    if reference.startswith("--set "):
        return is_recipe_key(reference.removeprefix("--set "))
    if "/" in reference:
        return (ROOT / reference).exists()
    if re.fullmatch(r"[a-z_]+(=.+)?", reference):
        return is_argument(reference, folder)
    if "." in reference:
        return is_defined(reference)
    return is_operator(reference)


def references() -> list[tuple[int, str]]:
    """Line number and text of all that stands between backticks."""
    return [
        (number, reference)
        for number, line in enumerate(TEXT.splitlines(), start=1)
        for reference in re.findall(r"`([^`]*)`", line)
    ]


def test_everything_named_exists(tmp_path):
    assert len(references()) > 100
    wrong = [f"line {number}: {reference}" for number, reference in references() if not exists(reference, tmp_path)]
    assert not wrong


def test_no_reference_is_broken_over_lines():
    assert all(line.count("`") % 2 == 0 for line in TEXT.splitlines())


@pytest.mark.parametrize(
    "reference",
    [
        "tests/test_objectives.py::test_alignment_loss",
        "tests/test_objective.py::test_alignment_loss_by_hand",
        "tests/test_objectives.py::alignment_loss",
        "training/objective.py",
        "hub_configs/magic-large.json",
        "objectives.align_loss",
        "objective.alignment_loss",
        "trainer.MagicTrainer.compute_losses",
        "trainer.alignment_loss",
        "MagicConfig.hidden_dropout",
        "alignment_weigth",
        "alignment=teacher",
        "sampler=spos",
        "alignment_weight=-1",
        "--set data.block_length=128",
        "--set model.block_size=128",
        "--set block_size=128",
        "magic-nas evolve",
        "magic-nas pretrain -o RUN --samplers uniform",
        "magic-nas pretrain -o RUN --preset magic-large",
        "magic-nas describe magic-large",
        "CONV4",
        "Anything else",
        "",
    ],
)
def test_a_wrong_name_is_found(reference, tmp_path):
    assert not exists(reference, tmp_path)


def test_every_equation_figure_and_table_of_the_paper_has_a_row():
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    for name, number in (("Eq. ({})", 2), ("Fig. {}", 5)):
        assert all(name.format(index) in rows for index in range(1, number + 1))
    tables = {number for group in re.findall(r"\bTables? ([\d and]+)", rows) for number in re.findall(r"\d", group)}
    assert tables == {"1", "2", "3", "4"}


def test_every_argument_of_our_own_is_named():
    """A choice that can be changed is in the map with its option."""
    named = {reference.partition("=")[0] for _, reference in references()}
    own = names_of(MagicTrainingArguments) - names_of(TrainingArguments)
    assert own
    assert own <= named
