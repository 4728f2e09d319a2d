"""Hooks of mkdocs: add pages from outside docs/, and turn links between files into links between pages."""

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify
from site_links import site_links
from site_pages import made_pages, notebook_page, pages_from_elsewhere


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Gives headings the same anchors as on GitHub, so that links work in both places."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds pages from outside docs/, notebooks as pages, and pages generated from other files."""
    root = _root(config)
    for path, place in pages_from_elsewhere(root).items():
        text = (root / path).read_text(encoding="utf-8")
        content = notebook_page(text, Path(path).name) if path.endswith(".ipynb") else text
        files.append(File.generated(config, place, content=content))
    for place, content in made_pages(root).items():
        files.append(File.generated(config, place, content=content))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, **_: Any) -> str:
    """Turns links to files on a page into links to pages of the site."""
    places = pages_from_elsewhere(_root(config))
    place = page.file.src_uri
    path = next((path for path, its in places.items() if its == place), f"docs/{place}")
    return site_links(markdown, path, place, places)


def _root(config: MkDocsConfig) -> Path:
    return Path(config.config_file_path or "").parent
