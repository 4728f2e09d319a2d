"""Pages of the site generated from other files of the repository, as Markdown by their paths in the site."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


# Pages from outside docs/, with their paths in the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "hub_configs/README.md": "presets.md",
}
RESULTS = "benchmarks/results"
_TITLE = re.compile(r"^# (.*)$", re.MULTILINE)


def pages_from_elsewhere(root: Path) -> dict[str, str]:
    """Returns the path in the site of each page from outside docs/ and of each notebook, by file."""
    results = [path.relative_to(root).as_posix() for path in sorted((root / RESULTS).rglob("*.md"))]
    notebooks = [path.relative_to(root) for path in sorted((root / "docs" / "notebooks").glob("*.ipynb"))]
    shown = {path.as_posix(): path.relative_to("docs").with_suffix(".md").as_posix() for path in notebooks}
    # mkdocs turns a README into the index page of its folder, so it is named index.md here.
    return ELSEWHERE | {path: path.replace("README.md", "index.md") for path in results} | shown


def made_pages(root: Path) -> dict[str, str]:
    """Returns the Markdown of all generated pages, by their paths in the site."""
    pages = {"recipes.md": recipes_page(root), "results.md": results_page(root)}
    return pages | {f"api/{room}.md": text for room, text in api_pages(root).items()}


# ---- Recipes and results ----


def recipes_page(root: Path) -> str:
    """Returns a section for each recipe: its first comment, its command and the file."""
    parts = [
        "# Recipes\n",
        "A recipe is a YAML file with the options of one command. `--config` takes the name of one of these, or the "
        "path of your own file; flags take precedence over it. [Options](options.md) explains each key.\n",
    ]
    for path in sorted((root / "hub_configs" / "recipes").glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        command = yaml.safe_load(text)["command"]
        comment = re.match(r"(?:#.*\n)*", text)
        words = " ".join(line.removeprefix("#").strip() for line in (comment[0] if comment else "").splitlines())
        shown = text[comment.end() :].strip() if comment else text.strip()
        parts += [f"## {path.stem}\n", f"{words}\n", f"```bash\nmagic-nas {command} --config {path.stem}\n```\n"]
        parts.append(f"```yaml\n{shown}\n```\n")
    return "\n".join(parts)


def results_page(root: Path) -> str:
    """Returns a list of all pages with measured results, by title."""
    lines = ["# Measured results\n", "Each page states the command, the versions, the device and the spread.\n"]
    for path in sorted((root / RESULTS).rglob("*.md")):
        title = _TITLE.search(path.read_text(encoding="utf-8"))
        place = path.relative_to(root).as_posix()
        lines.append(f"- [{title[1] if title else path.stem}](../{place})")
    return "\n".join([*lines, ""])


# ---- API ----


def public_names(root: Path) -> dict[str, list[str]]:
    """Returns the public names of each room of `training`, and of `modeling_magic`."""
    rooms: dict[str, list[str]] = {"modeling_magic": _assigned(root / "modeling_magic" / "__init__.py", "__all__")}
    for home, names in _assigned(root / "training" / "__init__.py", "_HOMES").items():
        rooms.setdefault(home.partition(".")[0], []).extend(names)
    return rooms


def _assigned(path: Path, name: str) -> Any:
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            return ast.literal_eval(node.value)
    raise ValueError(f"{path} does not assign {name}")


def api_pages(root: Path) -> dict[str, str]:
    """Returns a page for each room with public names. mkdocstrings fills it from the docstrings."""
    pages = {}
    for room, names in public_names(root).items():
        package = room if room == "modeling_magic" else "training"
        init = root / (room if room == package else f"training/{room}") / "__init__.py"
        about = ast.get_docstring(ast.parse(init.read_text(encoding="utf-8"))) or ""
        members = "\n".join(f"::: {package}.{name}\n" for name in sorted(names))
        example = f"```python\nfrom {package} import {sorted(names)[0]}\n```\n"
        pages[room] = f"# {room}\n\n{about}\n\n{example}\n{members}"
    return pages


# ---- Notebooks ----


def notebook_page(text: str, name: str) -> str:
    """Returns a notebook as Markdown: its text, its code and its saved outputs.

    Args:
        text: the contents of the .ipynb file.
        name: the name of the file, to which the page links.
    """
    cells = json.loads(text)["cells"]
    parts = [part for cell in cells for part in _cell_parts(cell)]
    link = f'<p><a href="../{name}" download>Download this notebook</a></p>'
    return "\n\n".join([*parts[:1], link, *parts[1:]]) + "\n"


def _cell_parts(cell: dict[str, Any]) -> Iterator[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        yield source
        return
    yield _fenced(source, "python")
    for output in cell["outputs"]:
        yield from _output_parts(output)


def _output_parts(output: dict[str, Any]) -> Iterator[str]:
    if output["output_type"] == "stream":
        yield _fenced("".join(output["text"]), "text")
        return
    data = output["data"]
    if "text/html" in data:
        # One block without empty lines, as these would end the HTML.
        lines = "".join(data["text/html"]).splitlines()
        yield f"<div>{''.join(line for line in lines if line.strip())}</div>"
    elif "image/png" in data:
        yield f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    else:
        yield _fenced("".join(data["text/plain"]), "text")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
