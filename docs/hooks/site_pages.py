"""Pages of the site that are made from other files of the repository, each as Markdown by its place in the site."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml


# Pages that stand outside of docs/, by their place in the site.
ELSEWHERE = {
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "hub_configs/README.md": "presets.md",
}
RESULTS = "benchmarks/results"
_TITLE = re.compile(r"^# (.*)$", re.MULTILINE)


def pages_from_elsewhere(root: Path) -> dict[str, str]:
    """Returns the place in the site of each page outside of docs/ that the site has, and of each notebook."""
    results = [path.relative_to(root).as_posix() for path in sorted((root / RESULTS).rglob("*.md"))]
    notebooks = [path.relative_to(root) for path in sorted((root / "docs" / "notebooks").glob("*.ipynb"))]
    shown = {path.as_posix(): path.relative_to("docs").with_suffix(".md").as_posix() for path in notebooks}
    # A README would become the index of its folder, beside which there is no other page of that address.
    return ELSEWHERE | {path: path.replace("README.md", "index.md") for path in results} | shown


def made_pages(root: Path) -> dict[str, str]:
    """Returns the Markdown of all pages that are made here, by their place in the site."""
    pages = {"recipes.md": recipes_page(root), "results.md": results_page(root)}
    return pages | {f"api/{room}.md": text for room, text in api_pages(root).items()}


# ---- Recipes and results ----


def recipes_page(root: Path) -> str:
    """Returns a section for each recipe: its command, what its first comment says, and the file."""
    parts = [
        "# Recipes\n",
        "A recipe is a YAML file with the options of one command. `--config NAME` takes one of these, or a file of "
        "your own; flags win over it. [The page of options](options.md) says what each key means.\n",
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
    """Returns the list of all pages of measured results, by their titles."""
    lines = ["# Measured results\n", "Each page has the command, the versions, the device and the spread.\n"]
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
    """Returns a page for each room of the public names, whose text mkdocstrings takes from the docstrings."""
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
    """Returns a notebook as Markdown: its texts, its code, and the outputs that it was saved with.

    Args:
        text: of the .ipynb file.
        name: its name, under which the page links to it.
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
        # In one block without empty lines, which would end the HTML.
        lines = "".join(data["text/html"]).splitlines()
        yield f"<div>{''.join(line for line in lines if line.strip())}</div>"
    elif "image/png" in data:
        yield f'<img alt="figure" src="data:image/png;base64,{"".join(data["image/png"]).strip()}">'
    else:
        yield _fenced("".join(data["text/plain"]), "text")


def _fenced(text: str, language: str) -> str:
    return f"````{language}\n{text.rstrip()}\n````"
