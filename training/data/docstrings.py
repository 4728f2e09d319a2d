"""The default corpus: English from the docstrings of installed packages, cached on disk."""

import json
import platform
import re
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path, PurePath

from ..bars import progress_bar
from ..files import cache_folder, short_hash, written_at_once


STANDARD_LIBRARY = "python"
# The project's dependencies, without packages that contain hardly any prose. The list is fixed, so that the corpus
# does not depend on whatever else is installed; missing packages are skipped.
DOCSTRING_PACKAGES = tuple(
    "accelerate aiohttp datasets evaluate fonttools fsspec huggingface_hub jinja2 joblib matplotlib mpmath networkx "
    "numpy pandas pillow pyarrow python rich scikit-learn scipy sympy tokenizers torch transformers typer".split()
)

# Part of the key of the cached corpus; increase it if the same packages give a different corpus.
_DOCSTRINGS_VERSION = 1

_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
_NO_PROSE = (
    "autosummary|code|code-block|csv-table|deprecated|doctest|figure|image|ipython|jupyter-execute|list-table|math|"
    "parsed-literal|plot|rubric|sourcecode|table|testcode|testoutput|toctree|versionadded|versionchanged"
)

# Text that is not prose, or that precedes a paragraph. Each match becomes a blank line, in this order.
_BREAKS = tuple(
    re.compile(pattern, re.MULTILINE)
    for pattern in (
        r"^[ \t]*```[\s\S]*?(?:^[ \t]*```|\Z)",  # a fenced block
        r"^[ \t]*>>>.*(?:\n[ \t]*\S.*)*",  # a doctest with its output
        rf"^([ \t]*)\.\. (?:(?:{_NO_PROSE})::|\[\w+\]).*(?:\n(?:\1[ \t]+\S.*|[ \t]*$))*",  # a directive with its body
        r"^[ \t]*[^\w\s]{3}.*$",  # an underline, a rule
        r"^[ \t]*[|+].*$",  # a row of a table
        r"^[ \t]*\.\. .*?::",  # a directive whose body is prose: .. note::
        r"^[ \t]*(?:[-*\u2022+]|\d+[.)]|\(\w\))[ \t]+",  # the bullet or number of an item
        r"^[ \t]*\*{0,2}[\w.]+(?:, ?\*{0,2}[\w.]+)* : .*$",  # x, y : array_like
        r"^[ \t]*:\w[^:\n`]*:(?=\s)",  # :param x:
        r"^[ \t]*[`*]*[\w.]+[`*]*(?: ?\([^\n]*\))? ?:(?=\s)",  # x (int): and Returns:
    )
)

# An indented block after a double colon.
_LITERAL_BLOCK = re.compile(r"::[ \t]*\n(?:[ \t]*\n)*([ \t]+)\S.*(?:\n(?:\1.*|[ \t]*$))*", re.MULTILINE)
# Inline markup and its replacement.
_MARKUP = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"::(?=\s|$)", ":"),
        (r":[\w:+-]+:`(?:~[\w.]*\.)?([^`<]*?)(?: ?<[^`]*>)?`", r"\1"),  # :class:`~torch.Tensor`
        (r"\[([^\]\n]+)\]\([^)\s]*\)", r"\1"),  # [text](address)
        (r"\s?\[\w+\]_", ""),  # a footnote mark
        (r"`([^`<]*?)\s*<[^`]*>`__?", r"\1"),  # `text <address>`_
        (r"\[?`+~?([^`]*)`+\]?_{0,2}", r"\1"),  # ``code`` and [`Code`]
        (r"\*{1,2}(\w[^*\n]*)\*{1,2}", r"\1"),  # *emphasis*
    )
)

_PARAGRAPH_END = re.compile(r"\n[ \t]*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])(?<!e\.g\.)(?<!i\.e\.)(?<!\bcf\.)(?<!\bvs\.)\s+(?=[A-Z\"'(])")
_SENTENCE = re.compile(r"[A-Z][\w ,;:'\"()/%&.?!-]{28,}[.!?:]")
_STOP_WORDS = frozenset(
    "a an and are as at be been but by can each for from has have if in into is it its may more must no not of on one "
    "only or other should so such than that the their then there these they this to used was we when where which "
    "will with you your".split()
)

# "..": files that a wheel puts outside site-packages.
_SKIPPED_FOLDERS = frozenset(("..", "test", "tests", "idle_test", "site-packages", "dist-packages"))


def reads_as_english(sentence: str) -> bool:
    """Whether a line looks like a sentence of 6 to 100 words, mostly of letters, with at least a sixth stop words."""
    if not _SENTENCE.fullmatch(sentence):
        return False
    words = [word.strip(".,;:()'\"!?") for word in sentence.split()]
    num_stop_words = sum(word.lower() in _STOP_WORDS for word in words)
    return (
        6 <= len(words) <= 100
        and num_stop_words >= max(2, len(words) / 6)
        and sum(word.isalpha() for word in words) >= 0.8 * len(words)
    )


def docstring_sentences(docstring: str) -> Iterator[list[str]]:
    """Yields the paragraphs of a docstring as lists of sentences, without code, tables, signatures or markup."""
    for pattern in _BREAKS:
        docstring = pattern.sub("\n\n", docstring)
    docstring = _LITERAL_BLOCK.sub(":\n\n", docstring)
    for pattern, text in _MARKUP:
        docstring = pattern.sub(text, docstring)
    for paragraph in _PARAGRAPH_END.split(docstring):
        yield _SENTENCE_END.split(" ".join(paragraph.split()))


def docstring_documents(
    packages: Sequence[str] | None = None, cache_dir: str | Path | None = None
) -> list[dict[str, str]]:
    """Returns the English sentences in the docstrings of installed packages, one document per .py file.

    Nothing is imported: a regular expression finds triple-quoted strings. Duplicate sentences are dropped. Documents
    are ordered by package and path. The result is cached under a key that contains the versions of the packages.

    Args:
        packages: the names of distributions, "python" for the standard library; `None` for all installed packages of
            DOCSTRING_PACKAGES.
        cache_dir: the cache folder; `None` for $MAGIC_CACHE, or ~/.cache/magic-nas if that is not set.

    Returns:
        Documents of the form `{"text": ..., "source": package}`; each line of the text is a paragraph.

    Raises:
        ValueError: a package of `packages` is not installed, or their docstrings contain no English.
    """
    versions = docstring_versions(packages)
    path = cache_folder(cache_dir) / f"docstrings-{short_hash(_DOCSTRINGS_VERSION, versions)}.jsonl"
    if not path.is_file():
        documents = _read_docstrings(versions)
        if not documents:
            raise ValueError(f"no English in the docstrings of {', '.join(versions)}; name packages with more text")
        with written_at_once(path) as temporary:
            temporary.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def docstring_versions(packages: Sequence[str] | None = None) -> dict[str, str]:
    """Returns the versions of the packages that `docstring_documents` reads, in the same order."""
    versions = {}
    for package in sorted(set(DOCSTRING_PACKAGES if packages is None else packages)):
        try:
            versions[package] = platform.python_version() if package == STANDARD_LIBRARY else version(package)
        except PackageNotFoundError:
            if packages is not None:
                raise ValueError(f"package {package!r} is not installed; install it or omit it") from None
    return versions


def _read_docstrings(packages: Iterable[str]) -> list[dict[str, str]]:
    files = [(package, path) for package in packages for path in source_files(package)]
    documents = []
    docstrings: set[str] = set()
    seen: set[str] = set()
    for package, path in progress_bar(files, desc="Reading docstrings", unit="file"):
        paragraphs = []
        for docstring in triple_quoted(path):
            # A tenth of all docstrings are copies, which need not be parsed again.
            if docstring in docstrings:
                continue
            docstrings.add(docstring)
            for sentences in docstring_sentences(docstring):
                new = [text for text in dict.fromkeys(sentences) if text not in seen and reads_as_english(text)]
                seen.update(new)
                if new:
                    paragraphs.append(" ".join(new))
        if paragraphs:
            documents.append({"text": "\n".join(paragraphs), "source": package})
    return documents


def triple_quoted(path: Path) -> Iterator[str]:
    """Yields all triple-quoted strings of a file, docstrings and others alike."""
    for match in _TRIPLE_QUOTED.finditer(path.read_text(encoding="utf-8", errors="replace")):
        yield match[1] or match[2] or ""


def source_files(package: str) -> list[Path]:
    """Returns the .py files of a package or of the standard library, sorted by name and without tests."""
    if package == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        files: dict[PurePath, Path] = {path.relative_to(root): path for path in root.rglob("*.py")}
    else:
        files = {PurePath(file): Path(str(file.locate())) for file in distribution(package).files or ()}
    names = [name for name in files if name.suffix == ".py" and _SKIPPED_FOLDERS.isdisjoint(name.parts)]
    return [files[name] for name in sorted(names, key=PurePath.as_posix) if files[name].is_file()]
