"""Imports go one way, and the model's files stay what transformers can publish on the Hub."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports


ROOT = Path(__file__).resolve().parent.parent

# The floors of `training`, from the ground up. A room imports from the rooms below it, and siblings on one floor never
# import each other; `training/__init__.py`, which loads lazily, stands above all.
FLOORS = (
    {"bars", "displays", "extras", "files", "internals", "objectives", "options", "pretrained", "stopping", "tables"},
    {"space", "data", "drawing", "progress", "resuming"},
    {"hub", "runs", "losses"},
    {"distillation"},
    {"supernet", "finetuning"},
    {"search", "analysis", "retraining"},
    {"compression", "cells"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What a module may import beside the standard library, where that is less than everything.
ONLY: dict[str, set[str]] = {
    "displays": set(),
    "tables": set(),
    "space.search_space": {"training"},
    "space.samplers": {"training"},
    "objectives": {"torch"},
}

PACKAGE = ROOT / "training"
TRAINING = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path != PACKAGE / "__init__.py"
}
MODELING = sorted((ROOT / "modeling_magic").glob("*.py"))
modeling_files = pytest.mark.parametrize("path", MODELING, ids=lambda path: path.name)


def imported_modules(path: Path) -> set[str]:
    return imported_by_text(path.read_text(encoding="utf-8"), path)


def imported_by_text(text: str, path: Path) -> set[str]:
    """Absolute names of all that a file's text imports: `training.x.y` for `.y` in room x and for `..x.y`."""
    package = path.relative_to(ROOT).parts[:-1]
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else ()
            source = ".".join([*above, *filter(None, [node.module])])
            found.add(source)
            # A name may be a module itself.
            found.update(f"{source}.{alias.name}" for alias in node.names)
    return found


def top_levels(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(path)}


def imported_from_training(name: str) -> set[str]:
    """Modules of `training` that a module of `training` imports."""
    own = {found.removeprefix("training.") for found in imported_modules(TRAINING[name])}
    return (own & TRAINING.keys()) - {name}


def room_of(module: str) -> str:
    return module.partition(".")[0]


def test_files_are_found():
    assert len(TRAINING) > 60
    assert MODELING


def test_every_room_has_a_floor():
    assert {room_of(name) for name in TRAINING} == FLOOR_OF.keys()
    assert len(FLOORS) <= 8


@pytest.mark.parametrize("name", TRAINING)
def test_rooms_import_from_the_floors_below(name):
    own = room_of(name)
    wrong = {
        other
        for other in imported_from_training(name)
        if room_of(other) != own and FLOOR_OF[room_of(other)] >= FLOOR_OF[own]
    }
    assert not wrong, f"training.{name} imports from its own floor or from above: {sorted(wrong)}"


def test_training_has_no_import_cycle():
    graphlib.TopologicalSorter({name: imported_from_training(name) for name in TRAINING}).prepare()


def test_imports_are_read_as_python_reads_them():
    """The order above holds what this test's reader finds: no form of an import may get past it."""
    reads = {
        "from .journal import Journal": "training.supernet.journal",
        "from . import journal": "training.supernet.journal",
        "from ..space.budgets import Budget": "training.space.budgets",
        "from ..space import budgets": "training.space.budgets",
        "from .. import files": "training.files",
        "import training.cli.main": "training.cli.main",
        "def f():\n    from training.cli import main": "training.cli.main",
    }
    for text, module in reads.items():
        path = PACKAGE / "supernet" / "imagined.py"
        assert module in imported_by_text(text, path)


@pytest.mark.parametrize("name", [name for name in ONLY if name in TRAINING])
def test_pure_modules_stay_pure(name):
    foreign = top_levels(TRAINING[name]) - sys.stdlib_module_names - ONLY[name]
    assert not foreign, f"training.{name} imports {sorted(foreign)}"


@modeling_files
def test_model_never_imports_training(path):
    assert "training" not in top_levels(path)


@modeling_files
def test_model_files_reach_one_another_by_relative_name_only(path):
    # transformers finds the files to publish by this form alone; others are left out or make save_pretrained fail.
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert not any(alias.name.partition(".")[0] == "modeling_magic" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"line {node.lineno}: a step up leaves the package"
            assert node.module, f"line {node.lineno}: write `from .name import x`"
            assert "." not in node.module, f"line {node.lineno}: the package is flat"
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").partition(".")[0] != "modeling_magic"


@modeling_files
def test_every_relative_import_that_transformers_reads_is_a_file(path):
    # It reads text, docstrings included.
    for name in get_relative_imports(path):
        assert (path.parent / f"{name}.py").is_file()


@modeling_files
def test_model_annotations_are_evaluated(path):
    # As a string, the annotation `config: MagicConfig` no longer tells transformers the configuration's class.
    assert "__future__" not in top_levels(path)


def test_help_is_fast_and_imports_no_heavy_library():
    script = (
        "import resource, sys\n"
        "sys.argv = ['magic-nas', '--help']\n"
        "try:\n"
        "    from training.cli import main\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "heavy = {'torch', 'transformers', 'datasets', 'evaluate', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
        "print('user seconds', resource.getrusage(resource.RUSAGE_SELF).ru_utime)\n"
    )
    seconds = []
    for _ in range(3):
        run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
        assert run.returncode == 0, run.stderr
        assert "pretrain" in run.stdout
        seconds.append(float(run.stdout.rpartition("user seconds")[2]))
    assert min(seconds) < 1.0
