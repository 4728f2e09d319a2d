"""Reads documents from their sources and splits off the held-out documents.

`load_documents` reads docstrings of the installed packages, files and folders, or any data set of the `datasets`
library. `split_documents` holds out whole documents, by a hash of their text. Compression reads the same kinds of
files with `files_of`, `opened_text`, `load_saved` and `tsv_texts`.
"""

import bz2
import glob
import gzip
import logging
import lzma
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import blake2b
from itertools import chain, dropwhile, groupby, islice, pairwise, takewhile
from pathlib import Path
from typing import Any, TextIO, TypeAlias

from datasets import (
    Dataset,
    DatasetDict,
    IterableDataset,
    Value,
    concatenate_datasets,
    load_dataset,
    load_from_disk,
)
from datasets.exceptions import DatasetsError
from datasets.utils import logging as datasets_logging

from ..tables import counted, first_line
from .docstrings import docstring_documents


Documents: TypeAlias = Dataset | IterableDataset

logger = logging.getLogger(__name__)

DOCSTRINGS = "docstrings"

_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SUFFIXES = (".txt", ".tsv", *_BUILDERS)
_PACKED: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
KNOWN_SUFFIXES = f"{', '.join(_SUFFIXES)}, each also compressed as {', '.join(_PACKED)}"
# Files that `Dataset.save_to_disk` and `DatasetDict.save_to_disk` write in addition to the rows.
_SAVED = ("state.json", "dataset_dict.json")

# The amount tokenised at a time. A tokenizer takes more than a hundred times the memory of its text.
_PIECE_CHARACTERS = 2**16
# The widest line of text that an editor would wrap.
_WRAPPED_AT = 100
# The number of lines that are examined to find out whether an editor has wrapped the lines of a file.
_LOOKED_AT = 1000
# Files with more lines than this between blank lines have one document per line: hardly any document is that long.
_LONGEST_DOCUMENT = 1000
# The number of blocks whose mean length is taken for that of all.
_ENOUGH_BLOCKS = 10
_KINDS = {
    "block": "documents are blocks of lines between blank lines",
    "line": "documents are lines, because there are no blank lines between them",
    "stray": f"documents are lines, because blank lines are {_LONGEST_DOCUMENT:,} or more lines apart on average",
    "file": "documents are files, because there are no blank lines in them",
}


# ---- Sources ----


def load_documents(
    source: str | Path | None = None,
    *,
    dataset_config: str | None = None,
    split: str = "train",
    text_column: str = "text",
    streaming: bool = False,
    max_documents: int | None = None,
    document: str | None = None,
    cache_dir: str | Path | None = None,
) -> Documents:
    """Returns the documents of a source, in a fixed order, in the column "text".

    Args:
        source: one of

            - `None` or "docstrings": `docstring_documents`, with the package in the column "source";
            - a file: .txt, or .json, .jsonl, .csv, .tsv or .parquet with a text column; all but the last may be
              compressed as .gz, .bz2 or .xz;
            - a folder written by `Dataset.save_to_disk` or `DatasetDict.save_to_disk`;
            - a folder of such files, read in sorted order including its subfolders (see `files_of`);
            - the name of a data set that `datasets.load_dataset` finds, locally or on the Hub.
        dataset_config: the configuration of a data set by name.
        split: the split of a data set or of a saved `DatasetDict`; see also `files_of`.
        text_column: the column that holds the text; rows without text are skipped.
        streaming: whether to return an IterableDataset that reads on demand; otherwise text files are held in memory.
        max_documents: the number of documents to read from the start; `None` for all.
        document: the unit that forms a document in .txt files: a "block" of lines between blank lines, a "line" or a
            "file". `None` chooses blocks. Without blank lines in the text, it chooses lines, or files if there are
            several with fewer than 1,000 lines on average or if an editor has wrapped the lines. If blocks have 1,000
            lines or more on average and no editor has wrapped them, it chooses lines too.
        cache_dir: see `docstring_documents`.

    Raises:
        ValueError: the source does not exist, cannot be read, contains no text, or lacks the column or split.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents is {max_documents}; it must be at least 1, or None for all")
    if source is not None and not str(source).strip():
        raise ValueError("the name of the text is empty; give a file, a folder or the name of a data set")
    path = Path(source or DOCSTRINGS).expanduser()
    documents: Documents
    if source is None or source == DOCSTRINGS:
        documents = Dataset.from_list(docstring_documents(cache_dir=cache_dir))
        documents = documents.to_iterable_dataset() if streaming else documents
    elif is_saved(path):
        # Not `load_from_disk`, which stores whatever is computed from the rows in the folder itself.
        parts = [glob.escape(part["filename"]) for part in load_saved(path, text_column, split).cache_files]
        arguments = {"path": "arrow", "data_files": {split: parts}, "split": split, "streaming": streaming}
        documents = _load_data_set(source, text_column, arguments)
    elif path.exists():
        files = files_of(path, split)
        if suffix_of(files[0]) == ".txt":
            documents = _load_text_files(path, files, streaming, document)
        else:
            documents = _load_data_files(path, files, text_column, split, streaming)
    else:
        _refuse_paths(source, path)
        arguments = {"path": str(source), "name": dataset_config, "split": split, "streaming": streaming}
        documents = _load_data_set(source, text_column, arguments)
    return documents if max_documents is None else documents.take(max_documents)


def files_of(path: Path, split: str = "train") -> list[Path]:
    """Returns a file, or the files of a folder and its subfolders in sorted order; all readers of text use this rule.

    A folder yields its .txt files, or its data files if it has no .txt files. If the split occurs as a word in the
    names of some data files or their folders, such as train-00000.parquet, only those files are used. Hidden files are
    skipped.

    Raises:
        ValueError: no file is of a readable kind.
    """
    if path.is_file():
        if not suffix_of(path):
            raise ValueError(
                f"{path} is not of a readable kind; known suffixes: {KNOWN_SUFFIXES}; rename plain text to .txt"
            )
        return [path]
    files = {file.relative_to(path): file for file in sorted(path.rglob("*")) if suffix_of(file) and file.is_file()}
    files = {name: file for name, file in files.items() if not any(part.startswith(".") for part in name.parts)}
    if not files:
        raise ValueError(f"folder {path} contains no text; known suffixes: {KNOWN_SUFFIXES}")
    if texts := [file for file in files.values() if suffix_of(file) == ".txt"]:
        return texts
    of_the_split = [file for name, file in files.items() if split in re.split(r"[^a-z]+", name.as_posix().lower())]
    if of_the_split and len(of_the_split) < len(files):
        logger.info(f"{path}: {len(of_the_split)} of {len(files)} data files are named for the split {split!r}")
    return of_the_split or list(files.values())


def suffix_of(path: Path) -> str:
    """Returns the suffix that determines how a file is read, such as ".txt" for text.txt and text.TXT.gz, or ""."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in _PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in _SUFFIXES else ""


def is_packed(path: Path) -> bool:
    """Whether a file is compressed, and so can only be read from its beginning."""
    return path.suffix.lower() in _PACKED


@contextmanager
def opened_text(path: Path, newline: str | None = None) -> Iterator[TextIO]:
    """Opens a text file in UTF-8, compressed or not.

    Raises:
        ValueError: the file is not UTF-8, or cannot be decompressed.
    """
    try:
        with _PACKED.get(path.suffix.lower(), open)(path, "rt", encoding="utf-8-sig", newline=newline) as lines:
            yield lines
    except UnicodeDecodeError as error:
        raise not_utf8(path, error.reason) from None
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as error:
        raise ValueError(f"cannot read {path} ({first_line(error)}); repair or remove it") from error


def not_utf8(path: Path, reason: str) -> ValueError:
    """Returns the error for a text file in another encoding."""
    return ValueError(f"{path} is not UTF-8 ({reason}); convert it, for example with iconv, or remove it")


def _refuse_paths(source: str | Path, path: Path) -> None:
    """Raises an error if the source can only be a path: names of data sets have the form "name" or "owner/name"."""
    looks_like_path = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path or suffix_of(path):
        raise ValueError(f"there is no file or folder {str(path)!r}; check the path, or give another text (--text)")


# ---- Text files ----


def _load_text_files(path: Path, files: list[Path], streaming: bool, document: str | None) -> Documents:
    kind = document or _kind_of_documents(path, files)
    if next(_text_documents(files, kind), None) is None:
        raise ValueError(f"there is no text in {path}; give files or folders that contain text")
    if streaming:
        return IterableDataset.from_generator(_text_documents, gen_kwargs={"paths": files, "kind": kind})
    return Dataset.from_list(list(_text_documents(files, kind)))


def _text_documents(paths: Iterable[Path], kind: str) -> Iterator[dict[str, str]]:
    for path in paths:
        with opened_text(path) as lines:
            checked = _checked(lines, path)
            if kind == "line":
                texts: Iterable[str] = checked
            elif kind == "file":
                texts = ["".join(checked)]
            else:
                texts = ("".join(block) for is_text, block in groupby(checked, key=_is_text) if is_text)
            yield from ({"text": text.strip()} for text in texts if _is_text(text))


def _is_text(text: str) -> bool:
    return bool(text) and not text.isspace()


def _checked(lines: Iterable[str], path: Path) -> Iterator[str]:
    for line in lines:
        if "\0" in line:
            raise not_utf8(path, "it has zero bytes, like binary files and UTF-16")
        yield line


def _kind_of_documents(path: Path, files: Sequence[Path]) -> str:
    num_lines, is_wrapped, has_blocks = 0, True, False
    for file in files:
        with opened_text(file) as lines:
            head = list(islice(lines, _LOOKED_AT))
            num_blocks = lines_of_file = 0
            for is_text, block in groupby(chain(head, lines), key=_is_text):
                if not is_text:
                    continue
                num_blocks += 1
                lines_of_file += sum(1 for _ in block)
                if num_blocks >= _ENOUGH_BLOCKS and lines_of_file < _LONGEST_DOCUMENT * num_blocks:
                    break
        if num_blocks > 1 and lines_of_file < _LONGEST_DOCUMENT * num_blocks:
            logger.info(f"{path}: {_KINDS['block']}; to change this, set `document`")
            return "block"
        num_lines += lines_of_file
        has_blocks = has_blocks or num_blocks > 1
        first_block = takewhile(_is_text, dropwhile(str.isspace, head))
        is_wrapped = is_wrapped and are_wrapped([line.strip() for line in first_block])
    are_short = len(files) > 1 and num_lines / len(files) < _LONGEST_DOCUMENT
    if has_blocks:
        kind, reason = ("block", "block") if are_short or is_wrapped else ("line", "stray")
    else:
        kind = reason = "file" if are_short or is_wrapped else "line"
    size = f"{counted(num_lines, 'line')} in {counted(len(files), 'file')}"
    logger.info(f"{path}: {_KINDS[reason]}; {size}; to change this, set `document`")
    return kind


def are_wrapped(lines: Sequence[str]) -> bool:
    """Whether these lines, none of them blank, are one paragraph that an editor has wrapped.

    In such a paragraph every line is as full as possible: the first word of the next line would make it the widest.
    """
    if len(lines) < 3:
        return False
    width = max(map(len, lines))
    return width <= _WRAPPED_AT and all(
        len(line) + 1 + len(following.split(maxsplit=1)[0]) > width for line, following in pairwise(lines)
    )


def text_pieces(text: str) -> Iterator[str]:
    """Yields the consecutive pieces of a text, each of at most 65,536 characters.

    A piece ends before the white space between two lines if possible, otherwise before the white space between two
    words, and in a text without white space between two characters. Tokenizers that split text at white space
    therefore give the same tokens piece by piece.
    """
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        piece = text[start : start + _PIECE_CHARACTERS]
        place = piece.rfind("\n")
        place = piece.rfind(" ") if place < _PIECE_CHARACTERS // 2 else place
        end = len(piece[:place].rstrip()) if place > 0 else 0
        yield piece[: end or _PIECE_CHARACTERS]
        start += end or _PIECE_CHARACTERS
    yield text[start:]


# ---- Data files and data sets ----


def is_saved(path: Path) -> bool:
    """Whether a folder was written by `save_to_disk` of the `datasets` library."""
    return any((path / name).is_file() for name in _SAVED)


def load_saved(path: Path, text_column: str, split: str = "train") -> Dataset:
    """Returns a data set written by `save_to_disk`, or one split of a DatasetDict.

    Raises:
        ValueError: the data set cannot be read, or lacks the split or column.
    """
    try:
        saved = load_from_disk(path)
    except (DatasetsError, OSError, ValueError) as error:
        raise ValueError(f"cannot read {path} ({first_line(error)}); save it again") from error
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(
                f"{path} has no split {split!r}; give the folder of a split: {', '.join(map(str, saved))}"
            )
        saved = saved[split]
    if text_column not in saved.column_names:
        raise ValueError(f"{path} has no column {text_column!r}; choose one of: {', '.join(saved.column_names)}")
    return saved


def _load_data_files(path: Path, files: list[Path], text_column: str, split: str, streaming: bool) -> Documents:
    parts = []
    for builder, group in groupby(sorted(files, key=_builder_of), key=_builder_of):
        paths = list(group)
        if not builder:
            parts.append(_load_tsv_files(path, paths, text_column, streaming))
            continue
        try:
            parts.append(_load_rows(path, builder, paths, text_column, split, streaming))
        except ValueError:
            if len(paths) == 1:
                raise
            # Files whose other columns differ can be read one by one, and then a damaged file is named.
            parts += [_load_rows(file, builder, [file], text_column, split, streaming) for file in paths]
    return parts[0] if len(parts) == 1 else concatenate_datasets(parts)


def _load_rows(
    source: Path, builder: str, files: list[Path], text_column: str, split: str, streaming: bool
) -> Documents:
    # *, ? and [ in file names are not patterns.
    patterns = [glob.escape(str(file)) for file in files]
    arguments = {"path": builder, "data_files": {split: patterns}, "split": split, "streaming": streaming}
    if builder == "csv":
        # Without it, if rows have one more cell than the header, their first cells are not assigned to a column.
        arguments["index_col"] = False
    return _load_data_set(source, text_column, arguments)


def _builder_of(path: Path) -> str:
    return _BUILDERS.get(suffix_of(path), "")


def _load_tsv_files(path: Path, files: list[Path], text_column: str, streaming: bool) -> Documents:
    if next(_tsv_documents(files, text_column), None) is None:
        raise ValueError(f"{str(path)!r} has no text in column {text_column!r}; choose another column")
    if streaming:
        return IterableDataset.from_generator(_tsv_documents, gen_kwargs={"paths": files, "text_column": text_column})
    return Dataset.from_list(list(_tsv_documents(files, text_column)))


def _tsv_documents(paths: Iterable[Path], text_column: str) -> Iterator[dict[str, str]]:
    for path in paths:
        yield from ({"text": text} for text in tsv_texts(path, text_column) if _has_text(text))


def tsv_texts(path: Path, text_column: str) -> Iterator[str]:
    """Yields the cells of a column; quotation marks are ordinary characters, as in GLUE's files.

    Raises:
        ValueError: the column does not exist, or the file cannot be read.
    """
    with opened_text(path, newline="\n") as lines:
        header = next(lines, "").rstrip("\r\n").split("\t")
        if text_column not in header:
            raise ValueError(f"{path} has no column {text_column!r}; choose one of: {', '.join(header)}")
        place = header.index(text_column)
        for line in lines:
            cells = line.rstrip("\r\n").split("\t")
            if place < len(cells):
                yield cells[place]


def _load_data_set(source: str | Path, text_column: str, arguments: dict[str, Any]) -> Documents:
    try:
        with _errors_raised_alone():
            documents = load_dataset(**arguments)
            # A file that is read as it is needed shows its damage here.
            columns = documents.column_names or list(next(iter(documents), {}))
    except (DatasetsError, OSError, ValueError, StopIteration) as error:
        # An empty file of JSON lines raises StopIteration.
        reason = "it is empty" if isinstance(error, StopIteration) else first_line(error.__cause__ or error)
        raise ValueError(f"cannot read data set {str(source)!r} ({reason}); check its name or the file") from error
    return _text_alone(documents, columns, source, text_column)


@contextmanager
def _errors_raised_alone() -> Iterator[None]:
    """Makes `datasets` raise an error for a damaged file instead of logging many lines or only warning."""
    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            # pandas truncates such rows.
            warnings.filterwarnings("error", "Length of header or names does not match length of data")
            yield
    finally:
        datasets_logging.set_verbosity(level)


def _text_alone(documents: Documents, columns: list[str], source: str | Path, text_column: str) -> Documents:
    if not columns:
        raise ValueError(f"{str(source)!r} has no rows; remove it, or give another file or folder")
    if text_column not in columns:
        raise ValueError(f"{str(source)!r} has no column {text_column!r}; choose one of: {', '.join(columns)}")
    documents = documents.select_columns([text_column])
    if documents.features and documents.features[text_column] == Value("large_string"):
        # Some programs write this type, which cannot be concatenated with the text of other files.
        documents = documents.cast_column(text_column, Value("string"))
    if text_column != "text":
        documents = documents.rename_column(text_column, "text")
    documents = documents.filter(_has_text, input_columns="text")
    if isinstance(documents, Dataset) and not len(documents):
        raise ValueError(f"{str(source)!r} has no text in column {text_column!r}; choose one of: {', '.join(columns)}")
    return documents


def _has_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


# ---- Held-out documents ----


def is_held_out(text: str, fraction: float, seed: int = 0) -> bool:
    """Whether a document belongs to the validation set, decided by a hash of its text alone, however it is read.

    A document held out at one fraction is also held out at every larger fraction.
    """
    digest = blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split_documents(
    documents: Documents, validation_fraction: float = 0.02, seed: int = 0
) -> tuple[Documents, Documents]:
    """Returns the documents of the training and the validation set (see `is_held_out`), each in the given order.

    Raises:
        ValueError: the fraction is not between 0 and 1, or a set is empty; this cannot be checked for a stream.
    """
    check_fraction(validation_fraction)
    sides = []
    for name, held_out in (("training", False), ("validation", True)):
        arguments = {"fraction": validation_fraction, "seed": seed, "held_out": held_out}
        side = documents.filter(_is_on_side, input_columns="text", fn_kwargs=arguments)
        if isinstance(side, Dataset) and not len(side):
            raise ValueError(
                f"none of {len(documents)} documents are left for the {name} set at validation_fraction "
                f"{validation_fraction}; give more documents, another fraction or, for text files, another `document` "
                f"(block, line or file)"
            )
        sides.append(side)
    return sides[0], sides[1]


def check_fraction(validation_fraction: float) -> None:
    """Raises a ValueError if a fraction is not between 0 and 1."""
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must be between 0 and 1")


def _is_on_side(text: str, fraction: float, seed: int, held_out: bool) -> bool:
    return is_held_out(text, fraction, seed) == held_out
