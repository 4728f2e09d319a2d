"""Flags are made from fields, and flags, `--set` and recipes end in the same settings."""

import inspect
import subprocess
import sys
from dataclasses import dataclass, replace
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from training.analysis.settings import SweepSettings
from training.cli.main import app
from training.cli.options import Given, flags_of, path_of, read_value_text, start, starts, takes
from training.cli.reference import ALL_SETTINGS
from training.finetuning.settings import FinetuneSettings
from training.options import Settings, hints_of, is_section, option, options_of, own_keys
from training.retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from training.search.settings import SearchSettings
from training.supernet.settings import BlockwiseSettings, PretrainSettings


@dataclass(frozen=True)
class Toy(Settings):
    command = "toy"

    size: int | None = option(None, flag="--size", at_least=1, unit="rows", help="How many.")
    rate: float = option(0.5, flag="--rate", help="How fast.")
    name: str = option("a", flag="--name", choices=("a", "b"), help="Which.")
    file: str | None = option(None, flag="--file", is_path=True, help="Where.")
    loud: bool = option(False, flag="--loud/--soft", help="Whether.")
    rates: tuple[float, ...] = option((0.1, 0.2), flag="--one-rate", help="Rates.")
    words: tuple[str, ...] = option((), flag="--word", help="Words.")
    tasks: tuple[str, ...] = option((), flag="--task", splits=True, help="Tasks.")
    values: tuple[Any, ...] = option((), flag="--value", help="Values.")
    shares: dict[str, float] | str | None = option(None, flag="--shares", help="Numbers by name, or a word.")
    hidden: int = option(3, help="No flag.")


@dataclass(frozen=True)
class Threaded(Settings):
    command = "threaded"

    num_threads: int = option(1, flag="--num-threads", at_least=1, help="Threads.")


@dataclass(frozen=True)
class ToyPlus(Toy):
    command = "toy --plus"

    plus: str = option("", flag="--plus", help="More.")
    more: int = option(0, flag="--more", help="Even more.")


def toy(arguments: list[str], recipe: dict[str, Any] | None = None) -> Settings:
    """What a command makes of its arguments."""
    made: list[Settings] = []
    app = typer.Typer(add_completion=False)

    @app.command()
    @takes(Toy, ToyPlus)
    def command(given: Given) -> None:
        """Toy."""
        made.append(given.settings(recipe or {}))

    result = CliRunner().invoke(app, arguments)
    if isinstance(result.exception, ValueError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return made[0]


def test_what_is_not_given_is_left_to_recipe_and_default():
    assert toy([]) == Toy()
    assert toy([], {"size": 4, "name": "b"}) == Toy(size=4, name="b")
    assert toy(["--size", "5"], {"size": 4, "name": "b"}) == Toy(size=5, name="b")


def test_flags_are_read_as_recipes_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["--size", "1e3", "--rate", "1e-3", "--name", "b", "--file", "x.json", "--loud"]
    arguments += ["--one-rate", "1e-5,2e-5", "--one-rate", "3", "--word", "a,b", "--task", "a, b", "--task", "c"]
    arguments += ["--value", "1", "--value", "[1, 2]", "--value", "x"]
    assert toy(arguments) == Toy(
        size=1000,
        rate=1e-3,
        name="b",
        file=str(tmp_path / "x.json"),
        loud=True,
        rates=(1e-5, 2e-5, 3),
        words=("a,b",),
        tasks=("a", "b", "c"),
        values=(1, [1, 2], "x"),
    )
    assert toy(["--soft"], {"loud": True}) == Toy()
    assert toy(["--shares", "even"]) == Toy(shares="even")
    assert toy(["--shares", "{a: 2, 1: 0.5, no: 3}"]) == Toy(shares={"a": 2, "1": 0.5, "no": 3})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shares", "[1]"], "shares is .*; it must be text or null"),
        (["--shares", "{a: b}"], "shares.a is 'b'; it must be a number"),
        (["--size", "0"], "size is 0; it must be at least 1"),
        (["--size", "many"], "size is 'many'; it must be a whole number or null"),
        (["--size", ""], "size is ''; it must be a whole number or null"),
        (["--size", "1:30"], "size is '1:30'; it must be a whole number or null"),
        (["--rate", "~"], "rate is '~'; it must be a number"),
        (["--name", "c"], "name is 'c'; choose one of: a, b"),
        (["--one-rate", "1,x"], r"rates\[1\] is 'x'; it must be a number"),
        (["--value", "[1"], "--value: '\\[1' is not a valid YAML value; quote it"),
        (["--set", "hidden"], "has no value; write KEY=VALUE"),
        (["--set", "hiden=3"], "unknown key 'hiden' in recipe; did you mean 'hidden'"),
        (["--set", "a.b=3"], "--set a.b: the recipe has no such section; write KEY=VALUE"),
        (["--set", "hidden=[1"], "--set hidden: '\\[1' is not a valid YAML value"),
    ],
)
def test_wrong_flags_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        toy(arguments)


def test_numbers_of_flags_are_decimal():
    assert toy(["--size", "010", "--rate", "08"]) == Toy(size=10, rate=8.0)


def test_an_assignment_may_be_null_and_never_goes_into_a_value():
    assert toy(["--set", "size=null"], {"size": 4}) == Toy()
    given = Given((PretrainSettings,), {}, None, ("data=3", "data.seed=1"))
    with pytest.raises(ValueError, match="data is 3 in --set; it must be a mapping"):
        given.changes(PretrainSettings)


def test_assignments_win_over_flags_and_reach_what_has_none():
    assert toy(["--size", "5", "--set", "size=6", "--set", "hidden=7"]) == Toy(size=6, hidden=7)


def test_a_flag_or_a_key_or_the_recipes_command_tells_the_kind():
    assert toy(["--plus", "x"]) == ToyPlus(plus="x")
    assert toy([], {"more": 2}) == ToyPlus(more=2)
    assert toy([], {"command": "toy --plus"}) == ToyPlus()
    assert toy([], {"command": "toy"}) == Toy()
    with pytest.raises(ValueError, match="the recipe is for `magic-nas other`, not for `magic-nas toy`"):
        toy([], {"command": "other"})
    with pytest.raises(ValueError, match="--plus is for `magic-nas toy --plus`, but this is `magic-nas toy`"):
        toy(["--plus", "x"], {"command": "toy"})


def test_help_tells_unit_bounds_and_default():
    texts = {flag.name: flag.help for flag in flags_of(Toy)}
    assert texts["--size"] == "How many. (rows; must be at least 1)"
    assert texts["--rate"] == "How fast. (default: 0.5)"
    assert texts["--one-rate"] == "Rates. (default: 0.1, 0.2)"
    assert texts["--loud/--soft"] == "Whether. (default: false)"
    assert texts["--file"] == "Where."
    assert texts["--name"] == "Which. (one of a, b; default: a)"


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.command)
def test_every_flag_leads_to_a_field(kind):
    flags = list(flags_of(kind))
    assert len({flag.name for flag in flags}) == len(flags), "two options of one command share a flag"
    for flag in flags:
        inner: Any = kind
        for name in flag.path[:-1]:
            inner = _section(inner, name)
        assert flag.path[-1] in hints_of(inner) or flag.path[-1] in own_keys(inner)
        assert flag.help[0].isupper()
        assert flag.name.startswith("--")


def _section(kind: Any, name: str) -> Any:
    if name == "training_arguments":
        inline = [hints_of(kind)[item.name] for item, facts in options_of(kind) if facts.is_inline]
        return (inline[0] if inline else kind).arguments_class()
    for item, facts in options_of(kind):
        hint = hints_of(kind)[item.name]
        if item.name == name and is_section(hint):
            return hint
        if facts.is_inline:
            return _section(hint, name)
    raise AssertionError(name)


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.command)
def test_every_option_says_what_it_means(kind):
    for _, facts in options_of(kind):
        assert facts.help[0].isupper(), facts.help
        assert facts.help.endswith("."), facts.help


@pytest.mark.parametrize(
    ("kind", "key", "path"),
    [
        (PretrainSettings, "preset", ("preset",)),
        (PretrainSettings, "max_steps", ("training_arguments", "max_steps")),
        (PretrainSettings, "block_size", ("data", "block_size")),
        # A key of several sections is that of the training arguments; the other needs its section.
        (PretrainSettings, "seed", ("training_arguments", "seed")),
        (PretrainSettings, "data.seed", ("data", "seed")),
        (SearchSettings, "seed", ("seed",)),
        (SearchSettings, "max_params", ("budget", "max_params")),
        (SweepSettings, "num_validation_sequences", ("num_validation_sequences",)),
        (SweepSettings, "init_from", ("init_from",)),
        (SweepSettings, "warmup_steps", ("training_arguments", "warmup_steps")),
        (FinetuneSettings, "tasks", ("tasks",)),
        # No key of a recipe without sections is refused here: the settings name it.
        (Toy, "anything", ("anything",)),
    ],
)
def test_keys_without_a_section_are_found(kind, key, path):
    assert path_of(kind, key) == path


def test_unknown_keys_are_named_with_their_section():
    with pytest.raises(ValueError, match=r"unknown key 'blok_size' in --set; did you mean 'data\.block_size'"):
        path_of(PretrainSettings, "blok_size")
    with pytest.raises(ValueError, match="unknown key 'qqqq' in --set; `magic-nas options search` lists the keys"):
        path_of(SearchSettings, "qqqq")


@pytest.mark.parametrize(
    ("kinds", "given", "recipe", "wanted"),
    [
        ((PretrainSettings, BlockwiseSettings), {}, {}, PretrainSettings),
        ((PretrainSettings, BlockwiseSettings), {("num_blocks",): 3}, {}, BlockwiseSettings),
        ((PretrainSettings, BlockwiseSettings), {("data", "source"): "x"}, {"num_ranked": 3}, BlockwiseSettings),
        ((RetrainSettings, RtdSettings, DistillSettings), {("teacher",): "x"}, {}, DistillSettings),
        ((RetrainSettings, RtdSettings, DistillSettings), {}, {"rtd_weight": 3}, RtdSettings),
        ((RetrainSettings, RtdSettings, DistillSettings), {}, {"command": "retrain --objective rtd"}, RtdSettings),
    ],
)
def test_kinds_of_a_command(kinds, given, recipe, wanted):
    assert Given(kinds, given).kind(recipe) is wanted


def test_no_command_lost_a_parameter():
    """The flags stand between what a command has of its own and what all have last."""

    def command(folder: str, given: Given, top: int = 5) -> None:
        """Toy."""

    flags = ["__".join(flag.path) for flag in flags_of(Toy)]
    names = list(inspect.signature(takes(Toy)(command)).parameters)
    assert names == ["folder", "config", "top", *flags, "assignments", "num_threads", "quiet", "verbose"]
    assert list(inspect.signature(takes(Toy, recipe=False)(command)).parameters) == ["folder", "top", *flags]
    # A setting of that name is the one flag.
    names = list(inspect.signature(takes(Threaded)(command)).parameters)
    assert names == ["folder", "config", "top", "num_threads", "assignments", "quiet", "verbose"]


def test_threads_may_be_a_setting(monkeypatch):
    asked: list = []
    monkeypatch.setattr("training.cli.options.start", lambda threads, *said: asked.append(threads))
    said = {"quiet": False, "verbose": False}
    takes(Threaded)(lambda given: asked.append(given.settings({})))(num_threads="3", **said)
    takes(Toy)(lambda given: None)(**{"__".join(flag.path): None for flag in flags_of(Toy)}, num_threads=2, **said)
    assert asked == [None, Threaded(num_threads=3), 2]


def test_every_command_has_help_without_heavy_imports():
    for name in ("compress", "pretrain", "search", "retrain", "finetune", "squad", "describe", "best", "benchmark"):
        result = CliRunner().invoke(app, [name, "--help"])
        assert result.exit_code == 0
        assert "default:" in result.output or name in ("describe", "best")


def test_every_command_that_takes_time_can_be_quiet_or_verbose():
    commands = typer.main.get_command(app).commands
    commands = {**commands, **commands["analyze"].commands}
    without = {
        name
        for name, command in commands.items()
        if not {"--quiet", "--verbose"} <= {text for option in command.params for text in option.opts}
    }
    assert without == {"analyze", "compression-table", "describe", "options"}


def test_a_command_without_a_recipe_starts_with_its_flags(monkeypatch):
    asked: list = []
    monkeypatch.setattr("training.cli.options.start", lambda *given: asked.append(given))
    starts()(lambda folder: asked.append(folder))(folder="x", quiet=True, verbose=False)
    starts(threads=True)(lambda: None)(num_threads=3, quiet=False, verbose=True)
    assert asked == [(None, True, False), "x", (3, False, True)]


def test_values_on_the_command_line_are_yaml():
    assert read_value_text("--set x", "[1, 2e-5]") == [1, 2e-5]
    assert read_value_text("--set x", "") is None


def test_threads_are_checked():
    with pytest.raises(ValueError, match="--num-threads is 0; it must be at least 1"):
        start(0)


TALKING = """
import logging, sys
from training.cli.options import start
start(**{given})
from transformers.utils import logging as of_transformers
from datasets.utils import logging as of_datasets
from huggingface_hub.utils import logging as of_the_hub
from training.bars import progress_bar
logging.getLogger("training.some").info("what was inferred")
logging.getLogger("training.some").warning("a warning")
of_transformers.get_logger("transformers.some").info("of transformers")
of_datasets.get_logger("datasets.some").info("of datasets")
of_the_hub.get_logger("huggingface_hub.some").warning("of the Hub")
for _ in progress_bar(range(3), mininterval=0, desc="bar"):
    pass
for _ in of_transformers.tqdm(range(3), mininterval=0, desc="bar of transformers"):
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "shown"),
    [
        ({}, {"what was inferred", "a warning", "of the Hub"}),
        ({"quiet": True}, {"a warning", "of the Hub"}),
        ({"verbose": True}, {"what was inferred", "a warning", "of transformers", "of datasets", "of the Hub"}),
    ],
    ids=["default", "quiet", "verbose"],
)
def test_what_is_said_follows_the_flags(given, shown):
    done = subprocess.run([sys.executable, "-c", TALKING.format(given=given)], capture_output=True, text=True)
    said = [*shown, "what was inferred", "of transformers", "of datasets", "bar:", "bar of transformers"]
    # Once each: some libraries have a handler of their own and also hand their messages on to the root.
    assert {text: done.stderr.count(text) for text in said} == {text: text in shown for text in said}, done.stderr


def test_quiet_and_verbose_contradict():
    with pytest.raises(ValueError, match="--quiet and --verbose contradict each other"):
        start(quiet=True, verbose=True)


def test_settings_of_a_family_differ_by_command():
    assert len({kind.command for kind in ALL_SETTINGS}) == len(ALL_SETTINGS)
    assert replace(BlockwiseSettings(), teacher="x").command == "pretrain --blockwise"
