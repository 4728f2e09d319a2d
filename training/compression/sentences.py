"""Unlabelled sentences to distil on: from files of any size to tokenised rows, and from rows to batches.

1. The text is read in pieces drawn at random, until there are several times as many sentences as requested.
2. `split_sentences` cuts its lines into sentences; duplicates and sentences of fewer than three words are dropped.
3. They are shuffled; the first are the validation set, the next the training set. No row of one is in the other.
4. `length_batches` and `collate` make batches with almost no padding.
"""

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import chain, groupby
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from datasets.exceptions import DatasetsError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ..bars import progress_bar
from ..data.documents import (
    DOCSTRINGS,
    are_wrapped,
    files_of,
    first_line,
    is_packed,
    is_saved,
    load_documents,
    load_saved,
    not_utf8,
    opened_text,
    suffix_of,
    text_pieces,
    tsv_texts,
)
from ..data.tokenizing import encode_text, share_unknown, tokenizer_sha256
from ..files import short_hash


# Columns "input_ids" (with special tokens), "length" in tokens, and "token_type_ids" if one of them is not 0.
Rows: TypeAlias = Dataset
# The additional column of labelled rows, and the key of their labels in a batch.
LABEL = "label"

FEWEST_SENTENCES = 100
# With fewer, a choice by the held-out sentences may be due to chance.
ENOUGH_SENTENCES = 1000
# A tokenizer that knows less than this share of the tokens was made for another language or script.
MOST_UNKNOWN = 1 / 3

# Part of the fingerprint: raise it when the same text gives other rows.
_VERSION = 2
# Bytes per read, so few that the default number of sentences takes hundreds of pieces from all over a large text.
_PIECE_BYTES = 2**16
# Sentences to read for each one kept, so that they come from several times as many documents.
_READ_FOR_EACH = 4
_TOKENISED_TOGETHER = 1000
_SORTED_TOGETHER = 50

# ---- Sentences ----

_SHORT = 256
_LONG = 1000
# After . ! ? and a closing quote or bracket, before anything but a lower-case letter; not after a title or an initial.
_SENTENCE_END = re.compile(
    r"(?:(?<=[.!?\u2026])|(?<=[.!?\u2026][\"'\u201d\u2019)\]]))(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)"
    r"(?<!\bSt\.)(?<!\b[A-Z]\.)\s+(?=[^\Wa-z]|[\"'\u201c\u2018(\[])|(?<=[\u3002\uff01\uff1f])"
)
# A character of a script that puts no spaces between words (Thai to Lao, Burmese, Khmer, Japanese, Chinese) is a word.
_THREE_WORDS = re.compile(
    r"(?:[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]\W*|\w+\b\W*){3}"
)


def split_sentences(line: str) -> list[str]:
    """Returns the sentences of a line of text (a paragraph or a sentence), with single spaces between the words.

    A line of up to 256 characters is kept whole. A longer one is cut where a sentence ends: at white space after a
    full stop, an exclamation mark or a question mark, including closing quotes and brackets, and before anything but a
    lower-case letter; after a Chinese or Japanese full stop even without white space. A part that is still longer than
    1,000 characters is cut between words, or anywhere if it has none.
    """
    text = " ".join(line.split())
    if len(text) <= _SHORT:
        return [text] if text else []
    return [part for sentence in _SENTENCE_END.split(text) for part in _cut(sentence) if part]


def _cut(sentence: str) -> Iterator[str]:
    while len(sentence) > _LONG:
        end = sentence.rfind(" ", 1, _LONG + 1)
        end = _LONG if end < 0 else end
        yield sentence[:end]
        sentence = sentence[end:].lstrip()
    yield sentence


def _lines(text: str) -> Iterator[str]:
    """Yields the non-empty lines of a text; the lines of a paragraph that an editor has wrapped come as one."""
    # In pieces, since lines are split word by word.
    for piece in text_pieces(text):
        yield from _lines_of_piece(piece)


def _lines_of_piece(text: str) -> Iterator[str]:
    for is_text, block in groupby((line.strip() for line in text.splitlines()), key=bool):
        if is_text:
            lines = list(block)
            yield from [" ".join(lines)] if are_wrapped(lines) else lines


# ---- Sources ----


@dataclass(frozen=True)
class _Source:
    """A file or a data set.

    Attributes:
        num_bytes: size by which it gets its turns; 0 if unknown.
        lines: its lines of text, in any order.
    """

    num_bytes: int
    lines: Iterator[str]


def _sources(
    paths: Sequence[str | Path], text_column: str, seed: int, cache_dir: str | Path | None
) -> Iterator[_Source]:
    for given in paths or (DOCSTRINGS,):
        path = Path(given).expanduser()
        if given == DOCSTRINGS:
            documents = load_documents(given, streaming=True, cache_dir=cache_dir)
            yield _Source(0, _document_lines(documents, DOCSTRINGS))
        elif is_saved(path):
            yield _saved_source(path, text_column, seed)
        elif path.exists():
            for file in files_of(path):
                lines = _text_lines(file, seed) if suffix_of(file) == ".txt" else _data_lines(file, text_column)
                yield _Source(file.stat().st_size, lines)
        else:
            documents = load_documents(given, text_column=text_column, streaming=True)
            yield _Source(0, _document_lines(documents, str(given)))


def _saved_source(path: Path, text_column: str, seed: int) -> _Source:
    saved = load_saved(path, text_column)
    rows = saved.select_columns([text_column]).shuffle(seed=seed, keep_in_memory=True)
    texts = (row[text_column] for row in rows if isinstance(row[text_column], str))
    return _Source(saved.data.nbytes, chain.from_iterable(map(_lines, texts)))


def _data_lines(path: Path, text_column: str) -> Iterator[str]:
    if suffix_of(path) == ".tsv":
        yield from chain.from_iterable(map(_lines, tsv_texts(path, text_column)))
    else:
        yield from _document_lines(load_documents(path, text_column=text_column, streaming=True), str(path))


def _document_lines(documents: Iterable[Mapping[str, Any]], name: str) -> Iterator[str]:
    try:
        for document in documents:
            yield from _lines(document["text"])
    except (DatasetsError, OSError, ValueError) as error:
        # An error beyond the head of a stream.
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"cannot read {name} ({reason}); repair it, or remove it from the text") from error


# ---- Pieces of text files ----


def _text_lines(path: Path, seed: int) -> Iterator[str]:
    if is_packed(path):
        yield from _packed_lines(path)
        return
    starts = list(range(0, path.stat().st_size, _PIECE_BYTES))
    random.Random(seed).shuffle(starts)
    for start in starts:
        yield from _lines(_read_piece(path, start))


def _packed_lines(path: Path) -> Iterator[str]:
    with opened_text(path) as file:
        while lines := file.readlines(_PIECE_BYTES):
            text = "".join(lines)
            _refuse_zero_bytes("\0" in text, path)
            yield from _lines(text)


def _refuse_zero_bytes(has_zero_bytes: bool, path: Path) -> None:
    if has_zero_bytes:
        raise not_utf8(path, "it has zero bytes, as binary files and UTF-16 have")


def _read_piece(path: Path, start: int) -> str:
    """Returns the lines, or parts of them (see `_boundary`), that begin in the piece that starts at byte `start`."""
    with path.open("rb") as file:
        begin, end = _boundary(file, start), _boundary(file, start + _PIECE_BYTES)
        file.seek(begin)
        content = file.read(end - begin)
    _refuse_zero_bytes(b"\0" in content, path)
    try:
        return content.decode("utf-8" if begin else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(path, f"{error.reason}, byte {begin + error.start}") from None


def _boundary(file: BinaryIO, offset: int) -> int:
    """Returns where the first line at or after a byte begins, which is where a piece ends and the next one starts.

    Inside a line that is longer than a piece, it is the beginning of a word or, without spaces, of a character. It is
    at most a piece beyond the offset, and at most the end of the file.
    """
    if not offset:
        return 0
    # Includes the byte before, which shows whether a line begins right here.
    file.seek(offset - 1)
    ahead = file.read(_PIECE_BYTES + 1)
    place = ahead.find(b"\n")
    if place < 0 and len(ahead) <= _PIECE_BYTES:
        return offset - 1 + len(ahead)
    if place < 0:
        place = ahead.find(b" ")
    if place < 0:
        place = next((number for number, byte in enumerate(ahead[1:]) if byte & 0xC0 != 0x80), 0)
    return offset + place


# ---- Reading ----


@dataclass(frozen=True)
class _Reading:
    """The result of reading.

    Attributes:
        sentences: different sentences, in the order in which they were found.
        counts: numbers of lines, characters, duplicates, and sentences that were too short.
        is_whole: whether the sources were read to their end.
    """

    sentences: list[str]
    counts: Counter[str]
    is_whole: bool


def _read(sources: Sequence[_Source], wanted: int | None, seed: int, progress: bool) -> _Reading:
    found: dict[str, None] = {}
    counts: Counter[str] = Counter()
    with progress_bar(
        total=wanted, desc="reading", unit="sentence", delay=1, leave=False, disable=not progress
    ) as bar:
        for line in _in_turns(sources, seed):
            counts["lines"] += 1
            counts["characters"] += len(line)
            before = len(found)
            for sentence in split_sentences(line):
                if not _THREE_WORDS.search(sentence):
                    counts["short"] += 1
                elif sentence in found:
                    counts["duplicates"] += 1
                else:
                    found[sentence] = None
            bar.update(len(found) - before)
            if wanted is not None and len(found) >= wanted:
                return _Reading(list(found), counts, is_whole=False)
    return _Reading(list(found), counts, is_whole=True)


def _in_turns(sources: Sequence[_Source], seed: int) -> Iterator[str]:
    """Yields the lines of all sources in turns by their sizes, so that stopping early is fair to all of them."""
    turns = [number for number, source in enumerate(sources) for _ in range(source.num_bytes // _PIECE_BYTES + 1)]
    random.Random(seed).shuffle(turns)
    for number in turns:
        num_characters = 0
        for line in sources[number].lines:
            yield line
            num_characters += len(line)
            if num_characters >= _PIECE_BYTES:
                break
    # Compressed sources hold more text than bytes.
    for source in sources:
        yield from source.lines


# ---- Rows ----


@dataclass(frozen=True)
class Sentences:
    """The sentences that a child is distilled on, and those by which it is chosen.

    Attributes:
        train: rows in random order.
        validation: held-out rows, none of which is in `train`.
        fingerprint: a hash of the sentences in their order, of the tokenizer and of the arguments.
        notes: lines that describe what was read.
        warnings: lines about what may spoil a result.
    """

    train: Rows
    validation: Rows
    fingerprint: str
    notes: tuple[str, ...]
    warnings: tuple[str, ...]


def read_sentences(
    paths: Sequence[str | Path],
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    num_sentences: int | None = 50_000,
    num_validation: int = 1_000,
    seed: int = 0,
    *,
    text_column: str = "text",
    cache_dir: str | Path | None = None,
    progress: bool = False,
) -> Sentences:
    """Returns the tokenized sentences of a text; those of the validation set are drawn first.

    Every text is read in pieces of 64 KiB in random order, with files taking turns by size, until it has given four
    times as many different sentences as requested; data files and compressed files are read in order, from the
    beginning. So a huge text is not read to its end, and each file contributes in proportion to its size. Sentences
    are cut by `split_sentences`. A sentence of fewer than three words is dropped, and so is one whose text or tokens
    came before.

    Args:
        paths: files, folders or anything else that `load_documents` takes; if empty, the docstrings of the installed
            packages. Plain text (.txt, UTF-8) has one sentence, paragraph or document per line, with or without blank
            lines in between; a paragraph that an editor has wrapped is joined again. Other files have their text in a
            column: .json, .jsonl, .csv, .tsv, .parquet, and folders of `Dataset.save_to_disk`. `documents.files_of`
            determines which files of a folder are read.
        tokenizer: the model's tokenizer.
        max_length: largest number of tokens per row, including special ones; longer sentences are truncated.
        num_sentences: largest number of training sentences; `None` takes all, which reads everything into memory.
        num_validation: number of held-out sentences; at most a fifth of all sentences.
        seed: seed of the choice of text, and of the order.
        text_column: text column of data files and data sets.
        cache_dir: cache of the docstrings; `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.
        progress: whether to show a bar for steps that take more than a second.

    Raises:
        ValueError: a path does not exist, is not text or holds none; there are fewer than 100 sentences; a third or
            more of the tokens are unknown to the tokenizer; a number is out of bounds.
    """
    _check(tokenizer, max_length, num_sentences, num_validation)
    sources = list(_sources(paths, text_column, seed, cache_dir))
    drawn = None if num_sentences is None else num_sentences + num_validation
    reading = _read(sources, None if drawn is None else _READ_FOR_EACH * drawn, seed, progress)
    names = ", ".join(str(path) for path in paths) or DOCSTRINGS
    if not reading.counts["lines"]:
        raise ValueError(f"there is no text in {names}; name files or folders of text")
    random.Random(seed).shuffle(reading.sentences)
    texts, columns = _tokenise(reading.sentences, tokenizer, max_length, drawn, progress)
    # Checked before the number of sentences: those of unknown words soon look all the same to the tokenizer.
    unknown = share_unknown(columns["input_ids"], tokenizer)
    if unknown >= MOST_UNKNOWN:
        raise ValueError(
            f"{unknown:.0%} of the tokens of {names} are unknown to the tokenizer; the share must be below "
            f"{MOST_UNKNOWN:.0%}: give text in the language of the model"
        )
    if len(texts) < FEWEST_SENTENCES:
        raise ValueError(
            f"{names}: {len(texts)} different sentences of three words or more; at least {FEWEST_SENTENCES} are "
            f"needed, and {ENOUGH_SENTENCES:,} or more recommended: give more text"
        )
    num_available = len(reading.sentences) if len(texts) == drawn else len(texts)
    num_held_out = min(num_validation, num_available // 5)
    num_rows = len(texts) if num_sentences is None else min(len(texts), num_held_out + num_sentences)
    digest = sha256("\0".join(texts[:num_rows]).encode()).hexdigest()
    settings = [max_length, num_sentences, num_validation, seed]
    rows = Dataset.from_dict(columns, features=_features(columns))
    return Sentences(
        train=rows.select(range(num_held_out, num_rows)),
        validation=rows.select(range(num_held_out)),
        fingerprint=short_hash(_VERSION, digest, tokenizer_sha256(tokenizer), settings),
        notes=(
            _note_on_reading(names, sources, reading),
            f"{num_rows - num_held_out:,} sentences to train on and {num_held_out:,} held out; dropped "
            f"{reading.counts['duplicates']:,} duplicates and {reading.counts['short']:,} sentences of fewer than "
            f"three words",
            _note_on_tokens(columns["length"], max_length, unknown),
        ),
        warnings=_warnings(names, num_available),
    )


def _check(
    tokenizer: PreTrainedTokenizerBase, max_length: int, num_sentences: int | None, num_validation: int
) -> None:
    smallest = tokenizer.num_special_tokens_to_add(pair=False) + 1
    if not smallest <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length is {max_length}; it must be between {smallest}, which leaves one token for the text, and "
            f"{tokenizer.model_max_length}, the largest number of tokens that the tokenizer's model takes"
        )
    if num_sentences is not None and num_sentences < FEWEST_SENTENCES:
        raise ValueError(f"num_sentences is {num_sentences}; it must be at least {FEWEST_SENTENCES}, or None for all")
    if num_validation < 1:
        raise ValueError(f"num_validation is {num_validation}; it must be at least 1")


def _tokenise(
    sentences: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int, wanted: int | None, progress: bool
) -> tuple[list[str], dict[str, list[Any]]]:
    """Returns the first `wanted` sentences whose tokens differ from those before, and their columns."""
    num_special = tokenizer.num_special_tokens_to_add(pair=False)
    has_types = "token_type_ids" in tokenizer.model_input_names and any(tokenizer("a")["token_type_ids"])
    names = ["input_ids", "token_type_ids"] if has_types else ["input_ids"]
    texts: list[str] = []
    columns: dict[str, list[Any]] = {name: [] for name in (*names, "length")}
    # Hashes, since the tokens of all sentences would be as large as the rows; losing one to a collision is harmless.
    seen: set[int] = set()
    total = len(sentences) if wanted is None else min(wanted, len(sentences))
    with progress_bar(
        total=total, desc="tokenising", unit="sentence", delay=1, leave=False, disable=not progress
    ) as bar:
        for start in range(0, len(sentences), _TOKENISED_TOGETHER):
            batch = sentences[start : start + _TOKENISED_TOGETHER]
            encoded = encode_text(
                tokenizer,
                list(batch),
                truncation=True,
                max_length=max_length,
                return_attention_mask=False,
                return_token_type_ids=has_types,
            )
            for row, (text, ids) in enumerate(zip(batch, encoded["input_ids"], strict=True)):
                key = hash(tuple(ids))
                # An uncased tokenizer or truncation may make two sentences equal, or leave nothing of one.
                if len(ids) <= num_special or key in seen:
                    continue
                if len(texts) == wanted:
                    return texts, columns
                seen.add(key)
                texts.append(text)
                for name in names:
                    columns[name].append(encoded[name][row])
                columns["length"].append(len(ids))
            bar.update(min(len(texts), total) - bar.n)
    return texts, columns


def _features(columns: Mapping[str, Any]) -> Features:
    types = {"token_type_ids": List(Value("int8"))} if "token_type_ids" in columns else {}
    return Features({"input_ids": List(Value("int32")), **types, "length": Value("int32")})


def _note_on_reading(names: str, sources: Sequence[_Source], reading: _Reading) -> str:
    num_bytes = sum(source.num_bytes for source in sources)
    size = f" of {num_bytes / 1e6:,.1f} MB" if num_bytes else ""
    files = f"{len(sources):,} sources" if len(sources) > 1 else "1 source"
    part = "all of it" if reading.is_whole else "pieces drawn at random"
    return (
        f"text: {names}, {files}{size}; read {part}, {reading.counts['lines']:,} lines with "
        f"{reading.counts['characters'] / 1e6:,.1f} M characters and {len(reading.sentences):,} different sentences"
    )


def _note_on_tokens(lengths: Sequence[int], max_length: int, unknown: float) -> str:
    share_cut = sum(length == max_length for length in lengths) / len(lengths)
    return (
        f"{sum(lengths) / len(lengths):.1f} tokens per sentence on average, including special ones; {share_cut:.1%} "
        f"of the sentences reach the limit of {max_length}; {unknown:.2%} of the tokens are unknown to the tokenizer"
    )


def _warnings(names: str, num_sentences: int) -> tuple[str, ...]:
    if num_sentences >= ENOUGH_SENTENCES:
        return ()
    return (
        f"{names}: only {num_sentences} different sentences; with fewer than {ENOUGH_SENTENCES:,}, choices may be due "
        f"to chance: give more text",
    )


# ---- Batches ----


def length_batches(lengths: Sequence[int] | np.ndarray, batch_size: int, seed: int) -> list[list[int]]:
    """Returns the rows of each batch, of nearly equal lengths, in random order.

    The rows are shuffled, sorted by length among the rows of 50 batches at a time, cut into batches, and the batches
    are shuffled. Every row is in one batch; the last rows may make a smaller one.

    Args:
        lengths: lengths of all rows.
        batch_size: rows per batch.
        seed: the same seed gives the same batches; use another for each epoch.

    Raises:
        ValueError: `batch_size` is less than 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    generator = np.random.default_rng(seed)
    of_rows = np.asarray(lengths[:])
    order = generator.permutation(len(of_rows))
    batches = []
    for start in range(0, len(order), _SORTED_TOGETHER * batch_size):
        rows = order[start : start + _SORTED_TOGETHER * batch_size]
        rows = rows[np.argsort(of_rows[rows], kind="stable")]
        batches += [rows[first : first + batch_size].tolist() for first in range(0, len(rows), batch_size)]
    return [batches[number] for number in generator.permutation(len(batches))]


def collate(rows: Sequence[Mapping[str, Any]], pad_token_id: int, pad_to: int | None = None) -> dict[str, Tensor]:
    """Returns a batch of rows, padded on the right.

    Args:
        rows: rows with "input_ids" and, if there are any, "token_type_ids" and `LABEL`; other columns are ignored.
        pad_token_id: id of the pad token.
        pad_to: the width of the batch; `None` takes the length of the longest row.

    Returns:
        "input_ids", "token_type_ids" if the rows have them and, if anything is padded, "attention_mask" (1 = token,
        0 = padding): int64, (batch, width). If any row has a label, also `LABEL`, (batch, numbers per label), NaN for
        rows without a label.

    Raises:
        ValueError: there are no rows, or one is longer than `pad_to`.
    """
    lengths = [len(row["input_ids"]) for row in rows]
    if not lengths:
        raise ValueError("a batch has no rows; give at least one")
    width = max(lengths) if pad_to is None else pad_to
    if max(lengths) > width:
        raise ValueError(f"a row has {max(lengths)} tokens but pad_to is {width}; set it to at least that")
    batch = {"input_ids": _padded([row["input_ids"] for row in rows], width, pad_token_id)}
    if "token_type_ids" in rows[0]:
        batch["token_type_ids"] = _padded([row["token_type_ids"] for row in rows], width, 0)
    if min(lengths) < width:
        batch["attention_mask"] = (torch.arange(width) < torch.tensor(lengths)[:, None]).long()
    if width := max(len(row.get(LABEL, ())) for row in rows):
        batch[LABEL] = torch.tensor([list(row[LABEL]) or [math.nan] * width for row in rows])
    return batch


def _padded(rows: Sequence[Sequence[int]], width: int, value: int) -> Tensor:
    padded = np.full((len(rows), width), value, dtype=np.int64)
    for place, row in enumerate(rows):
        padded[place, : len(row)] = row
    return torch.from_numpy(padded)
