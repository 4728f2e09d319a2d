"""Documentation and examples import from the packages' top level alone, and what stands there loads."""

import ast
import configparser
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import modeling_magic
import training


ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {"modeling_magic": modeling_magic, "training": training}
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
INIT = ast.parse((ROOT / "training" / "__init__.py").read_text(encoding="utf-8"))


def blocks(page: Path) -> list[str]:
    """The Python that stands in a page."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def wrong_imports(code: str) -> Iterator[str]:
    """Imports of our own packages that go below their top level, or name what is not public there."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
            yield from (name for name in names if name.partition(".")[0] in PACKAGES and name not in PACKAGES)
        elif isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in PACKAGES:
            public = PACKAGES[node.module].__all__ if node.module in PACKAGES else ()
            yield from (f"{node.module}.{alias.name}" for alias in node.names if alias.name not in public)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in PACKAGES:
            if node.attr not in (*PACKAGES[node.value.id].__all__, "__version__"):
                yield f"{node.value.id}.{node.attr}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_pages_import_public_names_alone(page):
    assert not [name for code in blocks(page) for name in wrong_imports(code)]


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_examples_import_public_names_alone(path):
    assert not list(wrong_imports(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("from training import MagicTrainer, pretrain\nimport modeling_magic", []),
        ("from training.supernet.trainer import MagicTrainer", ["training.supernet.trainer.MagicTrainer"]),
        ("from training import supernet", ["training.supernet"]),
        ("import training.supernet", ["training.supernet"]),
        ("from modeling_magic import MagicTrainer", ["modeling_magic.MagicTrainer"]),
        ("import training\ntraining.MagicTrainer\ntraining.Trainer", ["training.Trainer"]),
    ],
)
def test_wrong_imports_are_found(code, wrong):
    assert list(wrong_imports(code)) == wrong


def test_names_that_pages_mention_are_public():
    """Such as `training.load_recipe()` in a sentence."""
    mentions = {
        page.name: re.findall(r"`training\.(\w+)(?:\(\))?`", page.read_text(encoding="utf-8")) for page in PAGES
    }
    assert any(mentions.values())
    for page, names in mentions.items():
        assert set(names) <= set(training.__all__), page


def test_type_checkers_see_what_loads():
    (block,) = (node for node in INIT.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen: dict[str, tuple[str, ...]] = {}
    for node in block.body:
        assert isinstance(node, ast.ImportFrom)
        assert node.level == 1
        assert all(alias.asname is None for alias in node.names)
        seen[str(node.module)] = tuple(alias.name for alias in node.names)
    assert seen == training._HOMES
    assert list(training._HOMES) == sorted(training._HOMES)
    names = [name for home in training._HOMES.values() for name in home]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("name", training.__all__)
def test_every_name_loads_from_where_it_is_defined(name):
    value = getattr(training, name)
    home = f"training.{training._HOME_OF[name]}"
    assert value is getattr(import_module(home), name)
    assert value.__module__ == home


@pytest.mark.parametrize("package", PACKAGES)
def test_other_names_are_refused(package):
    with pytest.raises(AttributeError, match=rf"module '{package}' has no attribute 'Magick'"):
        _ = PACKAGES[package].Magick


def test_versions_agree():
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    version = config["metadata"]["version"]
    assert training.__version__ == version
    assert modeling_magic.__version__ == version
    command = [sys.executable, "-c", "from training.cli import main; main()", "--version"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == f"magic-nas {version}", done.stderr
