"""Pages and docstrings name what exists: files, tests, functions, training arguments, keys, commands, operators."""

import ast
import importlib
import inspect
import re
import shlex
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml
from test_imports import FLOORS
from transformers import TrainingArguments

from modeling_magic import MagicConfig, parse_operator
from training.cli.main import app
from training.cli.options import flags_of, path_of
from training.cli.reference import options_page
from training.compression.settings import KINDS, LIMITS, CompressSettings
from training.compression.task_scores import TASKS
from training.data.settings import DataSettings
from training.hub.presets import preset_names
from training.retraining.settings import RtdSettings
from training.runs.recipes import read_yaml
from training.space.samplers import make_sampler
from training.space.search_space import SearchSpace
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.settings import PretrainSettings


ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
OPTIONS = ROOT / "docs" / "options.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "hub_configs/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
FOLDERS = ("training", "modeling_magic", "tests", "benchmarks", "examples", "hub_configs", "docs")
PATH = re.compile(rf"(?<![\w./-])(?:{'|'.join(FOLDERS)})/[\w./*-]*(?:::\w+)?")
TRAINING = [path for path in sorted((ROOT / "training").rglob("*.py")) if path.stem != "__init__"]
ROOMS = {path.parent.name for path in TRAINING} - {"training"}


def module_names() -> dict[str, str]:
    """Modules by what pages call them: the bare name where that is the only one, else the room's name before it."""
    names = {path.stem: f"modeling_magic.{path.stem}" for path in (ROOT / "modeling_magic").glob("*.py")}
    stems = [path.stem for path in TRAINING]
    for path in TRAINING:
        inside = ".".join(path.relative_to(ROOT / "training").with_suffix("").parts)
        names[inside] = f"training.{inside}"
        if stems.count(path.stem) == 1:
            names[path.stem] = f"training.{inside}"
    return names


MODULES = module_names()


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
    kinds = (PretrainSettings, RtdSettings, MagicTrainingArguments, CompressSettings)
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
    if first == "MagicConfig":
        value: Any = MagicConfig
    else:
        if rest and f"{first}.{rest[0]}" in MODULES:
            first = f"{first}.{rest.pop(0)}"
        if first not in MODULES:
            return False
        value = importlib.import_module(MODULES[first])
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


def references(text: str = TEXT) -> list[tuple[int, str]]:
    """Line number and text of all that stands between backticks."""
    return [
        (number, reference)
        for number, line in enumerate(text.splitlines(), start=1)
        for reference in re.findall(r"`([^`]*)`", line)
    ]


def missing_files(text: str) -> list[str]:
    """Files, folders and tests that a text names and that do not exist, with their lines."""
    wrong = []
    for number, line in enumerate(text.splitlines(), start=1):
        for reference in PATH.findall(line):
            path = reference.rstrip(".")
            found = is_test(path) if "::" in path else any(ROOT.glob(path)) if "*" in path else (ROOT / path).exists()
            if not found:
                wrong.append(f"line {number}: {reference}")
    return wrong


def heading_anchors(page: Path) -> set[str]:
    """What a link may end in after #, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def docstrings_and_comments(path: Path) -> Iterator[tuple[int, str]]:
    """Line number and text of each line of a module that is no code."""
    text = path.read_text(encoding="utf-8")
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node):
            value = node.body[0]
            lines = text.splitlines()[value.lineno - 1 : value.end_lineno]
            yield from enumerate(lines, start=value.lineno)
    yield from ((number, line) for number, line in enumerate(text.splitlines(), start=1) if re.match(r"\s*#", line))


def test_everything_named_exists(tmp_path):
    assert len(references()) > 100
    wrong = [f"line {number}: {reference}" for number, reference in references() if not exists(reference, tmp_path)]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_tests_and_commands_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    wrong = missing_files(text)
    wrong += [
        f"line {number}: {reference}"
        for number, reference in references(text)
        if reference.startswith("magic-nas ") and not is_command(reference)
    ]
    assert not wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    wrong = []
    for number, line in enumerate(page.read_text(encoding="utf-8").splitlines(), start=1):
        for target in re.findall(r"\]\(([^)]*)\)", line):
            if re.match(r"https?:", target):
                continue
            name, _, anchor = target.partition("#")
            linked = page.parent / name if name else page
            if not linked.exists() or (anchor and anchor not in heading_anchors(linked)):
                wrong.append(f"line {number}: {target}")
    assert not wrong


@pytest.mark.parametrize("path", TRAINING, ids=lambda path: f"{path.parent.name}.{path.stem}")
def test_modules_that_docstrings_name_exist(path):
    """Such as `costs.count_flops`; what begins with another word is none of our modules."""
    wrong = []
    for number, line in docstrings_and_comments(path):
        for reference in re.findall(r"`(?:training\.)?([a-z_]+\.\w+(?:\.\w+)*)(?:\(\))?`", line):
            ours = reference.partition(".")[0] in ROOMS | {name.rpartition(".")[2] for name in MODULES}
            if ours and not is_defined(reference) and not is_recipe_key(reference):
                wrong.append(f"line {number}: {reference}")
    assert not wrong


def test_the_page_of_options_is_up_to_date():
    page = OPTIONS.read_text(encoding="utf-8") if OPTIONS.exists() else ""
    if page != options_page() + "\n":
        pytest.fail("docs/options.md is out of date; run: magic-nas options > docs/options.md", pytrace=False)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_no_reference_is_broken_over_lines(page):
    text = re.sub(
        r"^```.*?^```$", lambda block: "\n" * block[0].count("\n"), page.read_text("utf-8"), flags=re.M | re.S
    )
    assert not [number for number, line in enumerate(text.splitlines(), start=1) if line.count("`") % 2]


def test_the_page_on_compression_names_what_the_settings_have():
    """Its options with values that they take, the budgets, the kinds of checkpoints, and the tasks of each."""
    text = (ROOT / "docs" / "compress.md").read_text(encoding="utf-8")
    assigned = [
        re.fullmatch(r"--set '?(\w+)=(.+?)'?", name) for _, name in references(text) if name.startswith("--set")
    ]
    assert len(assigned) > 8
    for match in assigned:
        assert match
        assert path_of(CompressSettings, match[1]) == (match[1],)
        CompressSettings(**{match[1]: read_yaml(match[2])})
    # A switch is named by both of its forms; the last three say where the command works, not what it does.
    flags = {form for flag in flags_of(CompressSettings) for form in flag.name.split("/")}
    flags |= {"--ray", "--address", "--num-workers"}
    named = set(re.findall(r"`(--[a-z-]+)[ `]", text)) - {"--set"}
    assert named <= flags
    assert {f"--{name.replace('_', '-')}" for name in LIMITS} <= named
    tables = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert set(tables) == set(KINDS)
    rows = re.findall(r"^\| (?:`(\w+)`)? ?\| `(\w+)`(?: or `(\w+)`)? \|", text, re.MULTILINE)
    tasks = {name for row in rows for name in row[1:] if name}
    assert tasks == {name for names in TASKS.values() for name in names}


def test_the_map_of_rooms_has_the_floors_of_the_imports():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    floors: list[set[str]] = []
    for number, rooms in re.findall(r"^\| (\d?) ?\| (`training/.*?`) \|", text, re.MULTILINE):
        if number:
            floors.append(set())
            assert int(number) == len(FLOORS) + 1 - len(floors)
        floors[-1] |= set(re.findall(r"training/(\w+)", rooms))
    assert floors == [set(rooms) for rooms in reversed(FLOORS)]


@pytest.mark.parametrize(
    "reference",
    [
        "tests/test_objectives.py::test_alignment_loss",
        "tests/test_objective.py::test_alignment_loss_by_hand",
        "tests/test_objectives.py::alignment_loss",
        "tests/test_trainer.py::test_loss_is_equation_2",
        "training/objective.py",
        "hub_configs/magic-large.json",
        "objectives.align_loss",
        "objective.alignment_loss",
        "supernet.objectives.alignment_loss",
        "settings.DistillSettings",
        "finetuning.settings.DistillSettings",
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


@pytest.mark.parametrize("reference", ["costs.count_flops", "space.costs.count_flops", "supernet.figures.draw_health"])
def test_modules_are_called_by_their_name_or_with_their_room(reference):
    assert is_defined(reference)


def test_a_wrong_file_is_found():
    text = "See training/space/costs.py, tests/space and\nbenchmarks/result; docs/*.md, and training/*/setting.py."
    assert missing_files(text) == ["line 2: benchmarks/result", "line 2: training/*/setting.py."]


def test_every_equation_figure_and_table_of_the_paper_has_a_row():
    rows = "\n".join(line for line in TEXT.splitlines() if line.startswith("|"))
    for name, number in (("Eq. ({})", 2), ("Fig. {}", 5)):
        assert all(name.format(index) in rows for index in range(1, number + 1))
    tables = {number for group in re.findall(r"\bTables? ([\d and]+)", rows) for number in re.findall(r"\d", group)}
    assert tables == {"1", "2", "3", "4"}


def test_every_argument_of_our_own_is_named():
    """A choice that can be changed is in the map with its option, or in the list of options."""
    named = {reference.partition("=")[0] for _, reference in references()}
    named |= set(re.findall(r"`training_arguments\.(\w+)`", OPTIONS.read_text(encoding="utf-8")))
    own = names_of(MagicTrainingArguments) - names_of(TrainingArguments)
    assert own
    assert own <= named


# ---- docs/security.md ----


def unsafe_calls(tree: ast.AST) -> Iterator[str]:
    """Calls that would run what a folder holds, and imports of what unpickles."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            given = {word.arg: word.value.value for word in node.keywords if isinstance(word.value, ast.Constant)}
            yield from (name for name in ("trust_remote_code", "allow_pickle") if given.get(name))
            if ast.unparse(node.func) in ("torch.load", "eval", "exec") and not given.get("weights_only"):
                yield ast.unparse(node.func)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            yield from (name for name in ("pickle", "joblib", "dill", "load", "loads") if name in names)


def test_unsafe_calls_are_found():
    text = "import pickle\nf(trust_remote_code=True)\ntorch.load(a)\ntorch.load(a, weights_only=True)\neval(b)"
    assert sorted(unsafe_calls(ast.parse(text))) == ["eval", "pickle", "torch.load", "trust_remote_code"]


@pytest.mark.parametrize("room", ["training", "modeling_magic"])
def test_nothing_unpickles_or_trusts_code_of_a_folder(room):
    found = {
        str(path.relative_to(ROOT)): calls
        for path in (ROOT / room).rglob("*.py")
        if (calls := list(unsafe_calls(ast.parse(path.read_text(encoding="utf-8")))))
    }
    assert not found
