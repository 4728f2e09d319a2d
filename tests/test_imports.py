"""Imports go one way, and the model's files stay what transformers can publish on the Hub."""

import ast
import graphlib
import subprocess
import sys
from pathlib import Path

import pytest
from transformers.dynamic_module_utils import get_relative_imports


ROOT = Path(__file__).resolve().parent.parent

# A module of `training` imports modules of its own tier or of a lower one, never in a circle.
TIERS = {
    "search_space": 0,
    "objectives": 0,
    "costs": 0,
    "budgets": 0,
    "journal": 0,
    "progress": 0,
    "timing": 0,
    "metrics": 0,
    "squad_metrics": 0,
    "task_files": 0,
    "shrinking": 0,
    "arguments": 0,
    "checkpoints": 0,
    "settings": 1,
    "docstrings": 0,
    "figures": 0,
    "anchors": 1,
    "health": 1,
    "latency": 1,
    "pareto": 1,
    "search_setup": 1,
    "trainer": 1,
    "evaluation": 1,
    "interference": 1,
    "gradient_watch": 1,
    "data": 2,
    "hub": 2,
    "describe": 2,
    "report": 2,
    "search_figures": 2,
    "searchers": 2,
    "rtd_model": 2,
    "rtd": 2,
    "teacher": 2,
    "distillation": 2,
    "blocks": 2,
    "blockwise": 2,
    "compression_table": 2,
    "tasks": 2,
    "squad": 2,
    "squad_answers": 2,
    "glue_table": 2,
    "truth": 2,
    "ranking": 2,
    "ranking_figures": 2,
    "micro_benchmark": 2,
    "interference_figures": 2,
    "publish": 2,
    "onnx_export": 2,
    "runs": 3,
    "search": 3,
    "finetune": 3,
    "search_run": 4,
    "standalone": 4,
    "standalone_ray": 4,
    "ranking_run": 4,
    "sweep_run": 4,
    "interference_run": 4,
    "rtd_run": 4,
    "distill_run": 4,
    "blockwise_run": 4,
    "finetune_run": 4,
    "squad_run": 4,
    "demo": 4,
    "cli_options": 5,
    "cli_analyze": 5,
    "cli": 5,
}
# What a module may import beside the standard library, where that is less than everything.
ONLY = {"search_space": set(), "objectives": {"torch"}}

TRAINING = {path.stem: path for path in sorted((ROOT / "training").glob("*.py")) if path.stem != "__init__"}
MODELING = sorted((ROOT / "modeling_magic").glob("*.py"))
modeling_files = pytest.mark.parametrize("path", MODELING, ids=lambda path: path.name)


def imported_modules(path: Path) -> set[str]:
    """Absolute names of all that a file imports, wherever in it: `training.x` for both `.x` and `from training`."""
    package = path.parent.name
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            source = ".".join(filter(None, [package if node.level else "", node.module or ""]))
            names_modules = source in ("training", "modeling_magic")
            found.update(f"{source}.{alias.name}" if names_modules else source for alias in node.names)
    return found


def top_levels(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imported_modules(path)}


def siblings(path: Path) -> set[str]:
    """Modules of `training` that a file of `training` imports."""
    return {name.split(".")[1] for name in imported_modules(path) if name.startswith("training.")}


def test_files_are_found():
    assert TRAINING
    assert MODELING


@pytest.mark.parametrize("name", TRAINING)
def test_module_has_a_tier(name):
    assert name in TIERS, f"training/{name}.py has no place in the order of imports; give it one in TIERS"


@pytest.mark.parametrize("name", TRAINING)
def test_training_imports_downwards(name):
    upwards = {other for other in siblings(TRAINING[name]) if TIERS.get(other, 0) > TIERS.get(name, 0)}
    assert not upwards, f"training/{name}.py imports from above: {sorted(upwards)}"


def test_training_has_no_import_cycle():
    graphlib.TopologicalSorter({name: siblings(path) for name, path in TRAINING.items()}).prepare()


@pytest.mark.parametrize("name", [name for name in ONLY if name in TRAINING])
def test_pure_modules_stay_pure(name):
    foreign = top_levels(TRAINING[name]) - sys.stdlib_module_names - ONLY[name]
    assert not foreign, f"training/{name}.py imports {sorted(foreign)}"


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
