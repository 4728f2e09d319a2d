"""Turns text into packed, masked batches.

1. `documents.load_documents` reads docstrings of the installed packages, text files, or any data set of the `datasets`
   library.
2. `documents.split_documents` holds out whole documents, by a hash of their text.
3. `train_tokenizer` trains a tokenizer; any tokenizer with a mask token can be used instead.
4. `pack_blocks` concatenates documents and cuts them into blocks of equal length, so that no position is padding.
5. `MaskingCollator` applies dynamic 80/10/10 masking that depends only on the seed and the batch.

`prepare_data` performs steps 1 to 4 and keeps the result on disk. `evaluation.validation_batches` collates the
validation slice.
"""

import json
import logging
import platform
import re
from array import array
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from torch import Tensor
from transformers import (
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from ..displays import html_paragraphs, html_table
from ..files import cache_folder, remove_leftovers, short_hash, written_at_once
from ..pretrained import pretrained_tokenizer
from .docstrings import docstring_versions
from .documents import DOCSTRINGS, Documents, check_fraction, load_documents, split_documents, text_pieces
from .settings import DataSettings
from .tokenizing import encode_text, load_tokenizer, require_tokens, share_unknown, tokenizer_sha256, train_tokenizer


logger = logging.getLogger(__name__)

# Part of the cache key; increase it if the same text gives different blocks.
_PREPARED_VERSION = 2

# The default length of a block, as in the paper; less if the model accepts less.
_USUAL_BLOCK_SIZE = 128
# Documents packed together; the tokens after their last full block are dropped.
_PACKED_TOGETHER = 1000
# More than enough for learning a vocabulary.
_TOKENIZER_DOCUMENTS = 100_000
# Documents of a stream that are read in advance: the held-out ones are the validation set, the rest train the
# tokenizer.
_STREAM_HEAD = 10_000
# Characters that are tokenised together.
_TOKENISED_TOGETHER = 2**18
# The largest share of unknown tokens in held-out text before a warning.
_MOST_UNKNOWN = 0.01
_WORD = re.compile(r"\S+")
# The fields of a fingerprint that record how the text was read.
_READING = ("max_documents", "streaming", "dataset_config", "split", "text_column", "document")


# ---- Blocks ----


def pack_blocks(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, block_size: int = 128, max_positions: int | None = None
) -> Documents:
    """Returns the documents as blocks of exactly `block_size` ids, in a single column "input_ids".

    The documents are concatenated with a separator after each, and cut. A block consists of the class token,
    `block_size` - 2 ids of the concatenation, and a separator. Documents are packed in groups of a thousand, so
    map-style and streamed data sets of the same documents give the same blocks. The ids after the last full block of a
    group are dropped.

    Args:
        documents: documents with a column "text".
        tokenizer: a tokenizer with a class and a separator token.
        block_size: the length of a block, at least 8.
        max_positions: the longest input of the model; `None` skips the check.

    Raises:
        ValueError: `block_size` is out of bounds, the tokenizer has no class or separator token, or the documents do
            not fill one block; the latter cannot be checked for a stream.
    """
    require_tokens(tokenizer, "cls_token", "sep_token")
    _check_block_size(block_size, max_positions)
    blocks = documents.select_columns(["text"]).map(
        _pack,
        batched=True,
        batch_size=_PACKED_TOGETHER,
        input_columns="text",
        remove_columns="text",
        features=Features({"input_ids": List(Value("int32"))}),
        fn_kwargs={"tokenizer": tokenizer, "block_size": block_size},
    )
    if not isinstance(blocks, Dataset):
        return blocks.map(_as_list, input_columns="input_ids")
    if not len(blocks):
        num_tokens = sum(map(len, _tokenize(documents["text"][:], tokenizer)))
        raise ValueError(
            f"{len(documents)} documents have {num_tokens} tokens, not a full block of {block_size}; give more text, "
            f"a smaller block_size or, for the validation set, a larger validation_fraction"
        )
    return blocks


def _check_block_size(block_size: int, max_positions: int | None) -> None:
    if block_size < 8:
        raise ValueError(f"block_size is {block_size}; it must be at least 8")
    if max_positions is not None and block_size > max_positions:
        raise ValueError(
            f"block_size is {block_size} but the model accepts {max_positions} tokens; choose a smaller one"
        )


def _pack(texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> dict[str, np.ndarray]:
    # Four bytes per token; for a long document, lists would take ten times as much.
    line = array("i")
    for ids in _tokenize(texts, tokenizer):
        if ids:
            line.extend(ids)
            line.append(tokenizer.sep_token_id)
    width = block_size - 2
    num_blocks = len(line) // width
    blocks = np.empty((num_blocks, block_size), dtype=np.int32)
    blocks[:, 0], blocks[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
    blocks[:, 1:-1] = np.frombuffer(line, dtype=np.intc, count=num_blocks * width).reshape(num_blocks, width)
    return {"input_ids": blocks}


def _as_list(block: np.ndarray) -> dict[str, list[int]]:
    return {"input_ids": block.tolist()}


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[array]:
    """Returns the ids of each text, tokenised in pieces because a tokenizer needs much memory for its output."""
    of_texts = [array("i") for _ in texts]
    for numbers, pieces in _groups_of_pieces(texts):
        # Not verbose: documents are longer than the model's positions, and the tokenizer would warn about it.
        encoding = encode_text(
            tokenizer,
            pieces,
            add_special_tokens=False,
            return_attention_mask=False,
            return_token_type_ids=False,
            verbose=False,
        )
        for number, ids in zip(numbers, encoding["input_ids"], strict=True):
            of_texts[number].extend(ids)
    return of_texts


def _groups_of_pieces(texts: list[str]) -> Iterator[tuple[list[int], list[str]]]:
    numbers: list[int] = []
    pieces: list[str] = []
    num_characters = 0
    for number, text in enumerate(texts):
        for piece in text_pieces(text):
            numbers.append(number)
            pieces.append(piece)
            num_characters += len(piece)
            if num_characters >= _TOKENISED_TOGETHER:
                yield numbers, pieces
                numbers, pieces, num_characters = [], [], 0
    if pieces:
        yield numbers, pieces


# ---- Masking ----


@dataclass
class MaskingCollator(DataCollatorForLanguageModeling):
    """Selects 15% of the tokens: 80% become the mask token, 10% a random token, and 10% stay unchanged.

    The masks depend only on the seed and the ids of the batch; the global generator, workers, skipped batches and
    resuming do not change them. A validation batch always gets the same masks. The training set is masked differently
    in every epoch, because shuffling combines the blocks into different batches. Batches that recur with the same
    blocks in the same order (no shuffling, batches of one) get the same masks again.

    Rows of equal length are stacked, without an attention mask unless they have one: attention is fastest without.
    """

    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.generator = torch.Generator()
        self.special_ids = torch.tensor(sorted(set(self.tokenizer.all_special_ids)))

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Returns the batch: `input_ids`, `labels` (-100 = not predicted), and the other columns of the rows."""
        plain = self.mlm and not self.whole_word_mask and self.pad_to_multiple_of is None
        if not plain or not isinstance(examples[0], Mapping) or len({len(row["input_ids"]) for row in examples}) > 1:
            return super().torch_call(examples)
        batch = {name: torch.stack([torch.as_tensor(row[name]) for row in examples]) for name in examples[0]}
        batch["input_ids"], batch["labels"] = self.torch_mask_tokens(
            batch["input_ids"].long(), special_tokens_mask=batch.pop("special_tokens_mask", None)
        )
        return batch

    def torch_mask_tokens(
        self, inputs: Tensor, special_tokens_mask: Any | None = None, offset_mapping: Any | None = None
    ) -> tuple[Tensor, Tensor]:
        """Returns masked inputs and labels, drawn by the parent class from a generator seeded by the inputs."""
        digest = blake2b(inputs.numpy().tobytes(), digest_size=8, key=str(self.seed).encode()).digest()
        self.generator.manual_seed(int.from_bytes(digest, "little"))
        if special_tokens_mask is None:
            # The parent class asks the tokenizer row by row in Python, which takes ten times as long.
            special_tokens_mask = torch.isin(inputs, self.special_ids)
        return super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)


# ---- All together ----


@dataclass(frozen=True, repr=False)
class PreparedData:
    """The data that a run trains and validates on.

    Attributes:
        tokenizer: a tokenizer with a mask and a pad token.
        train: the training blocks (see `pack_blocks`); an IterableDataset if the source is streamed.
        validation: the blocks of the held-out documents.
        fingerprint: JSON data: the arguments, the versions of the libraries that the text depends on, and for each set
            the SHA-256 of its texts in order and the numbers of documents, words, blocks and tokens (without those
            that frame a block). These are not available for a streamed training set. "unknown" is the share of the
            validation set's tokens that the tokenizer does not know.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Documents
    validation: Dataset
    fingerprint: dict[str, Any]

    @property
    def block_size(self) -> int:
        """The length of each block, in tokens."""
        return self.fingerprint["block_size"]

    @property
    def hashes(self) -> dict[str, Any]:
        """Hashes of text and tokenizer, for `open_run`."""
        return {"the text": self.fingerprint["sha256"], "the tokenizer": tokenizer_sha256(self.tokenizer)}

    def __repr__(self) -> str:
        return f"PreparedData({', '.join(f'{name}={value!r}' for name, value in self._short_facts().items())})"

    def _repr_html_(self) -> str:
        """The sizes of both sets for a notebook; an empty cell means that the number is unknown."""
        title = ", ".join(f"{name} {value}" for name, value in self._short_facts().items())
        sizes = {name: self.fingerprint.get(name, {}) for name in ("documents", "words", "blocks", "tokens")}
        rows = [
            (side, *("" if (size := of.get(side)) is None else f"{size:,}" for of in sizes.values()))
            for side in ("train", "validation")
        ]
        return html_paragraphs([title]) + html_table(("set", *sizes), rows)

    def _short_facts(self) -> dict[str, Any]:
        return {name: self.fingerprint.get(name) for name in ("source", "block_size", "vocab_size")}


def prepare_data(
    source: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    vocab_size: int = 8192,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    character_coverage: float = 0.9995,
    block_size: int | None = None,
    max_positions: int | None = None,
    validation_fraction: float = 0.02,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    max_documents: int | None = None,
    streaming: bool = False,
    dataset_config: str | None = None,
    split: str = "train",
    text_column: str = "text",
    document: str | None = None,
) -> PreparedData:
    """Returns the tokenizer and the blocks of a source, from disk if the same text was prepared before.

    If the source is streamed, its first 10,000 documents are read in advance: the held-out ones are the validation
    set, and the others train the tokenizer. The training set streams all documents that are not held out; nothing is
    kept on disk.

    Args:
        source: see `load_documents`, as for the arguments from `max_documents` on.
        tokenizer: a tokenizer, or an argument of `load_tokenizer`; `None` trains one on the training set.
        vocab_size: the vocabulary size of a tokenizer to train; see `train_tokenizer` for this and the next three.
        lowercase: whether to lowercase the text.
        strip_accents: whether to strip the marks of letters.
        character_coverage: the share of the text's characters that the alphabet covers.
        block_size: see `pack_blocks`; `None` for 128, or less if the tokenizer or model allows less.
        max_positions: the longest input of the model; `None` if it is unknown.
        validation_fraction: see `split_documents`.
        seed: the seed of the split.
        cache_dir: the cache folder; `None` for $MAGIC_CACHE, or ~/.cache/magic-nas if that is not set.

    Raises:
        ValueError: see the functions named above.
    """
    check_fraction(validation_fraction)
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is not None:
        require_tokens(tokenizer, "mask_token", "pad_token", "cls_token", "sep_token")
    if block_size is None:
        block_size = _usual_block_size(tokenizer, max_positions)
    _check_block_size(block_size, None if tokenizer is None else tokenizer.model_max_length)
    reading: dict[str, Any] = {
        "max_documents": max_documents,
        "streaming": streaming,
        "dataset_config": dataset_config,
        "split": split,
        "text_column": text_column,
        "document": document,
    }
    training = {
        "vocab_size": vocab_size,
        "lowercase": lowercase,
        "strip_accents": strip_accents,
        "character_coverage": character_coverage,
    }
    documents = load_documents(source, **reading, cache_dir=cache_dir)
    head = Dataset.from_list(list(documents.take(_STREAM_HEAD))) if streaming else documents
    texts, validation = split_documents(head, validation_fraction, seed)
    train = split_documents(documents, validation_fraction, seed)[0] if streaming else texts
    fingerprint = {
        "source": str(source or DOCSTRINGS),
        **reading,
        "block_size": block_size,
        "validation_fraction": validation_fraction,
        "seed": seed,
        "versions": _versions(source),
        **_by_side(_describe_texts, train, validation),
    }
    build = partial(_build, texts, train, validation, tokenizer, training, fingerprint)
    if streaming:
        data = build()
    else:
        tokenizer_key = training if tokenizer is None else tokenizer_sha256(tokenizer)
        folder = cache_folder(cache_dir) / f"prepared-{short_hash(_PREPARED_VERSION, fingerprint, tokenizer_key)}"
        # Leftovers of other texts as well, since those texts may never be requested again.
        remove_leftovers(folder.parent)
        if not folder.is_dir():
            with written_at_once(folder) as temporary:
                _save(build(), temporary)
        data = _load(folder, tokenizer)
    if (share := data.fingerprint["unknown"]) > _MOST_UNKNOWN:
        remedy = "use one made for this text" if tokenizer else "choose a larger character_coverage or give more text"
        logger.warning(
            f"the tokenizer does not know {share:.1%} of the tokens of the held-out text; at most "
            f"{_MOST_UNKNOWN:.0%} is usual; {remedy}"
        )
    return data


def load_data(settings: DataSettings, max_positions: int | None = None) -> PreparedData:
    """Returns the packed blocks, the tokenizer and the fingerprint of the text given by settings (see `prepare_data`).

    Args:
        settings: the settings of the text.
        max_positions: the longest input of the model; blocks are not longer unless the settings say so.
    """
    return prepare_data(**asdict(settings), max_positions=max_positions)


def held_out_texts(source: str, fingerprint: Mapping[str, Any]) -> Dataset:
    """Returns the documents that `prepare_data` held out, read again from the current location of the text.

    Args:
        source: the text.
        fingerprint: the fingerprint of the data, which records how the text was read and split.

    Raises:
        ValueError: the text cannot be read that way, or it differs from that of the fingerprint.
    """
    reading = {name: fingerprint[name] for name in _READING}
    documents = load_documents(source, **reading)
    head = Dataset.from_list(list(documents.take(_STREAM_HEAD))) if reading["streaming"] else documents
    held_out = split_documents(head, fingerprint["validation_fraction"], fingerprint["seed"])[1]
    assert isinstance(held_out, Dataset)
    found, recorded = _describe_texts(held_out)["sha256"], fingerprint["sha256"]["validation"]
    if found != recorded:
        raise ValueError(
            f"{source} is a different text: the SHA-256 of its held-out documents begins with {found[:12]}, but the "
            f"recorded one begins with {str(recorded)[:12]}"
        )
    return held_out


def _usual_block_size(tokenizer: PreTrainedTokenizerBase | None, max_positions: int | None) -> int:
    longest = [_USUAL_BLOCK_SIZE] if tokenizer is None else [_USUAL_BLOCK_SIZE, tokenizer.model_max_length]
    block_size = min([*longest, *([] if max_positions is None else [max_positions])])
    if block_size < _USUAL_BLOCK_SIZE:
        logger.info(f"block_size: {block_size} tokens, the maximum of the model")
    return block_size


def _versions(source: str | Path | None) -> dict[str, str]:
    versions = {name: version(name) for name in ("datasets", "tokenizers", "transformers")}
    of_the_text = docstring_versions() if source in (None, DOCSTRINGS) else {}
    return {"python": platform.python_version(), **versions, **of_the_text}


def _by_side(
    describe: Callable[[Documents], dict[str, Any]], train: Documents, validation: Documents
) -> dict[str, Any]:
    sides = {"train": describe(train), "validation": describe(validation)}
    return {name: {side: facts[name] for side, facts in sides.items()} for name in sides["train"]}


def _describe_texts(documents: Documents) -> dict[str, Any]:
    if not isinstance(documents, Dataset):
        return {"sha256": "streamed", "documents": None, "words": None}
    digest, num_words = sha256(), 0
    for batch in documents.select_columns(["text"]).iter(1000):
        digest.update("".join(f"{text}\0" for text in batch["text"]).encode())
        # Counted one by one, because a list of the words takes ten times the memory of the text.
        num_words += sum(1 for text in batch["text"] for _ in _WORD.finditer(text))
    return {"sha256": digest.hexdigest(), "documents": len(documents), "words": num_words}


def _describe_blocks(blocks: Documents, block_size: int) -> dict[str, int | None]:
    if not isinstance(blocks, Dataset):
        return {"blocks": None, "tokens": None}
    return {"blocks": len(blocks), "tokens": len(blocks) * (block_size - 2)}


def _build(
    texts: Dataset,
    train: Documents,
    validation: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    training: dict[str, Any],
    fingerprint: dict[str, Any],
) -> PreparedData:
    block_size = fingerprint["block_size"]
    if tokenizer is None:
        known = texts.take(_TOKENIZER_DOCUMENTS)["text"]
        tokenizer = train_tokenizer(known, **training, model_max_length=max(512, block_size))
    train, validation = (
        pack_blocks(documents, tokenizer, block_size, tokenizer.model_max_length) for documents in (train, validation)
    )
    facts = _by_side(partial(_describe_blocks, block_size=block_size), train, validation)
    facts |= {"tokenizer": tokenizer_sha256(tokenizer), "vocab_size": len(tokenizer)}
    facts["unknown"] = share_unknown((block["input_ids"] for block in validation), tokenizer)
    return PreparedData(tokenizer, train, validation, {**fingerprint, **facts})


def _save(data: PreparedData, folder: Path) -> None:
    data.tokenizer.save_pretrained(folder / "tokenizer")
    data.train.save_to_disk(folder / "train")
    data.validation.save_to_disk(folder / "validation")
    (folder / "fingerprint.json").write_text(json.dumps(data.fingerprint), encoding="utf-8")


def _load(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> PreparedData:
    return PreparedData(
        tokenizer=pretrained_tokenizer(folder / "tokenizer") if tokenizer is None else tokenizer,
        train=load_from_disk(folder / "train"),
        validation=load_from_disk(folder / "validation"),
        fingerprint=json.loads((folder / "fingerprint.json").read_text(encoding="utf-8")),
    )
