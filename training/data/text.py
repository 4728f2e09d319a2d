"""From text to packed, masked batches.

1. `documents.load_documents`: docstrings of the installed packages, files of text, or any data set of the `datasets`
   library.
2. `documents.split_documents`: whole documents are held out, by a hash of their text.
3. `train_tokenizer`, or any tokenizer that has a mask token.
4. `pack_blocks`: documents end to end, cut into blocks of equal length, so that no position is padding.
5. `MaskingCollator`: dynamic 80/10/10 masking that is a function of the seed and the batch.

`prepare_data` does 1 to 4 and keeps the result on disk. The validation slice is collated by
`evaluation.validation_batches`.
"""

import json
import logging
import platform
import re
import unicodedata
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, List, Value, load_from_disk
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AutoTokenizer,
    BatchEncoding,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    PreTrainedTokenizerBase,
)

from ..displays import html_paragraphs, html_table
from ..files import cache_folder, remove_leftovers, short_hash, written_at_once
from .docstrings import docstring_versions
from .documents import DOCSTRINGS, Documents, check_fraction, load_documents, split_documents, text_pieces
from .settings import DataSettings


logger = logging.getLogger(__name__)

# Part of the key of what is cached: raise it when the same text gives other blocks.
_PREPARED_VERSION = 2

# What a block has unless the model takes less: the sequences of the paper.
_USUAL_BLOCK_SIZE = 128
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Documents packed together; the tokens after their last full block are dropped.
_PACKED_TOGETHER = 1000
# More than enough to learn a vocabulary from.
_TOKENIZER_DOCUMENTS = 100_000
# What is read of a stream beforehand: its held-out documents are the validation set, the others train the tokenizer.
_STREAM_HEAD = 10_000
# Characters that are tokenised together.
_TOKENISED_TOGETHER = 2**18
# Letters that stripping would change: in English a few of ten thousand, in German one of sixty.
_MOST_STRIPPED = 0.005
# Of the tokens of held-out text; more are warned of.
_MOST_UNKNOWN = 0.01
_WORD = re.compile(r"\S+")
# What a fingerprint says of how the text was read.
_READING = ("max_documents", "streaming", "dataset_config", "split", "text_column", "document")


# ---- Tokenizer ----


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 8192,
    lowercase: bool = True,
    model_max_length: int = 512,
    *,
    strip_accents: bool | None = None,
    character_coverage: float = 0.9995,
) -> BertTokenizer:
    """Returns a WordPiece tokenizer as BERT's, trained on the texts; the same texts give the same vocabulary.

    Args:
        texts: what to learn from.
        vocab_size: an upper bound; little text gives fewer pieces. [PAD], [UNK], [CLS], [SEP], [MASK] are 0 to 4.
        lowercase: whether capital letters become small ones.
        model_max_length: the longest input that the model will take.
        strip_accents: whether letters lose their marks: accents, and the vowel signs of such scripts as Devanagari.
            `None` strips them with `lowercase` where that changes at most 0.5% of the letters.
        character_coverage: share of the text's characters that the alphabet has. These are the commonest ones, and at
            least a sixteenth of `vocab_size` of them, between 128 and 1,000. A word with another character is [UNK].

    Raises:
        ValueError: `vocab_size` has no room for the single characters.
    """
    texts = list(texts)
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    if strip_accents is None:
        strip_accents = lowercase and _are_accents_rare(counts)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    # As BERT's own tokenizers say it where both are alike.
    as_bert = None if strip_accents == lowercase else strip_accents
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=as_bert)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    at_least = min(1000, max(128, vocab_size // 16))
    alphabet, continuations = _alphabet(
        counts, trained.normalizer, trained.pre_tokenizer, at_least, character_coverage
    )
    reserved = [*_SPECIAL_TOKENS, *continuations]
    if len(reserved) + len(alphabet) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size} but the text needs {len(reserved) + len(alphabet)} pieces for its single "
            f"characters; take a larger vocab_size, or a character_coverage below {character_coverage}"
        )
    # Left to itself, the trainer numbers the pieces ##x in the order of a hash table, another one in each process, and
    # breaks ties by these numbers: the vocabulary differs from run to run. Named beforehand they have fixed numbers.
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=reserved,
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    trained.train_from_iterator((piece for text in texts for piece in text_pieces(text)), trainer)
    return BertTokenizer(
        vocab=trained.get_vocab(), do_lower_case=lowercase, strip_accents=as_bert, model_max_length=model_max_length
    )


def _are_accents_rare(counts: Mapping[str, int]) -> bool:
    """Whether stripping the marks of letters changes next to nothing; says so where it does not."""
    num_letters = num_changed = 0
    for character, count in counts.items():
        if unicodedata.category(character)[0] in "LM":
            num_letters += count
            num_changed += count * (_without_marks(character) != character)
    share = num_changed / max(1, num_letters)
    if share > _MOST_STRIPPED:
        logger.info(
            f"the tokenizer keeps accents and other marks, since {share:.1%} of the letters of the text would change "
            f"without them; strip_accents sets it"
        )
    return share <= _MOST_STRIPPED


def _without_marks(character: str) -> str:
    parts = unicodedata.normalize("NFD", character)
    return "".join(part for part in parts if unicodedata.category(part) != "Mn")


def _alphabet(
    counts: Mapping[str, int],
    normalizer: normalizers.Normalizer,
    pre_tokenizer: pre_tokenizers.PreTokenizer,
    at_least: int,
    coverage: float,
) -> tuple[list[str], list[str]]:
    """The commonest characters that make up a share of the text, and as ##x those that can stand inside a word."""
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in normalizer.normalize_str(character).strip():
            normal[part] += count
    by_count = sorted(normal, key=lambda part: (-normal[part], part))
    # As many as are needed for all that has been counted before the rest is small enough.
    num_covering = np.searchsorted(np.cumsum([normal[part] for part in by_count]), coverage * normal.total()) + 1
    alphabet = sorted(by_count[: max(at_least, int(num_covering))])
    # Punctuation and Chinese characters are words of their own.
    pieces = {part: pre_tokenizer.pre_tokenize_str(normalizer.normalize_str("a" + part)) for part in alphabet}
    return alphabet, [f"##{part}" for part in alphabet if len(pieces[part]) == 1]


def load_tokenizer(name_or_path: str | Path) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder or of the Hub, of whatever kind, if it can serve for masked batches.

    Raises:
        ValueError: there is none, or it has no mask or pad token.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(str(name_or_path))
    except OSError as error:
        raise ValueError(f"no tokenizer {str(name_or_path)!r}; name a model or a folder that holds one") from error
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # What transformers makes of a folder that holds a model and no vocabulary.
        raise ValueError(f"{str(name_or_path)!r} has no vocabulary; name a model or a folder that holds a tokenizer")
    _require_tokens(tokenizer, "mask_token", "pad_token")
    return tokenizer


def _require_tokens(tokenizer: PreTrainedTokenizerBase, *names: str) -> None:
    missing = [name for name in names if getattr(tokenizer, name) is None]
    if missing:
        raise ValueError(
            f"{type(tokenizer).__name__} has no {' and no '.join(missing)}; set it, or take the tokenizer of an "
            f"encoder such as BERT or RoBERTa"
        )


def encode_text(tokenizer: PreTrainedTokenizerBase, *texts: Sequence[str], **arguments: Any) -> BatchEncoding:
    """Returns what a tokenizer makes of texts, or of pairs, as of text alone: "[MASK]" in it is no mask token.

    What spells a special token is cut into pieces as other text is. Some vocabularies have the spelling as a piece, as
    those of SentencePiece have "<s>": there it becomes the unknown token.

    Args:
        tokenizer: of any kind.
        texts: first texts, and perhaps second ones.
        arguments: of the tokenizer's call.
    """
    spelled = _spelled_ids(tokenizer)
    encoding = tokenizer(*texts, split_special_tokens=True, return_special_tokens_mask=bool(spelled), **arguments)
    if spelled:
        for ids, added in zip(encoding["input_ids"], encoding.pop("special_tokens_mask"), strict=True):
            for place, token_id in enumerate(ids):
                if token_id in spelled and not added[place]:
                    ids[place] = tokenizer.unk_token_id
    return encoding


def _spelled_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """The special tokens, less the unknown one, that come out of their spelling in text."""
    encoding = tokenizer(tokenizer.all_special_tokens, add_special_tokens=False, split_special_tokens=True)
    found = {token_id for ids in encoding["input_ids"] for token_id in ids}
    return found & set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}


def share_unknown(rows: Iterable[Sequence[int]], tokenizer: PreTrainedTokenizerBase) -> float:
    """Returns the share of unknown tokens in rows of ids, less those that frame a row; 0 if there is no such token.

    Args:
        rows: each framed as a single text.
        tokenizer: of the rows.
    """
    num_added = tokenizer.num_special_tokens_to_add(pair=False)
    num_tokens = num_unknown = 0
    for row in rows:
        num_tokens += len(row) - num_added
        num_unknown += 0 if tokenizer.unk_token_id is None else row.count(tokenizer.unk_token_id)
    return num_unknown / max(1, num_tokens)


# ---- Blocks ----


def pack_blocks(
    documents: Documents, tokenizer: PreTrainedTokenizerBase, block_size: int = 128, max_positions: int | None = None
) -> Documents:
    """Returns the documents as blocks of exactly `block_size` ids, in the one column "input_ids".

    The documents are laid end to end, a separator after each, and cut: a block is the class token, `block_size` - 2
    ids of that line and a separator. Documents are taken by the thousand, so that map-style and streamed data sets of
    the same documents give the same blocks; what is left after the last full block of a thousand is dropped.

    Args:
        documents: with a column "text".
        tokenizer: with a class and a separator token.
        block_size: at least 8.
        max_positions: the longest input of the model; `None` checks nothing.

    Raises:
        ValueError: `block_size` is out of bounds, the tokenizer has no class or separator token, or the documents do
            not fill one block; of a stream, that is not known.
    """
    _require_tokens(tokenizer, "cls_token", "sep_token")
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
            f"{len(documents)} documents hold {num_tokens} tokens, no full block of {block_size}; give more text, a "
            f"smaller block_size or, for the validation set, a larger validation_fraction"
        )
    return blocks


def _check_block_size(block_size: int, max_positions: int | None) -> None:
    if block_size < 8:
        raise ValueError(f"block_size is {block_size}; it must be at least 8")
    if max_positions is not None and block_size > max_positions:
        raise ValueError(f"block_size is {block_size} but the model takes {max_positions} tokens; take a smaller one")


def _pack(texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> dict[str, np.ndarray]:
    # In four bytes a token: of a long document, lists would take ten times as much.
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
    """Returns the ids of each text, which is cut in pieces, since a tokenizer takes much memory for its output."""
    of_texts = [array("i") for _ in texts]
    for numbers, pieces in _groups_of_pieces(texts):
        # Not verbose: documents are longer than the model's positions, which the tokenizer would warn of.
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
    """Masks 15% of the tokens, 80% of them by the mask token, 10% by a random one, 10% left as they are.

    The masks are a function of the seed and of the batch's ids, and of nothing else: neither the global generator nor
    workers, skipped batches or a resumption change them. A validation batch always gets the same masks; the training
    set is masked anew in every epoch because shuffling puts each block into other company. Batches that come back with
    the same blocks in the same order (no shuffling, batches of one) get the same masks again.

    Rows of equal length are stacked, without an attention mask unless they bring one: attention is fastest without.
    """

    seed: int = 0

    def __post_init__(self):
        super().__post_init__()
        self.generator = torch.Generator()
        self.special_ids = torch.tensor(sorted(set(self.tokenizer.all_special_ids)))

    def torch_call(self, examples: list[Any]) -> dict[str, Any]:
        """Returns the batch: `input_ids`, `labels` (-100 where nothing is predicted), and what else the rows hold."""
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
        """Returns masked inputs and labels as the parent class draws them, from a generator seeded by the inputs."""
        digest = blake2b(inputs.numpy().tobytes(), digest_size=8, key=str(self.seed).encode()).digest()
        self.generator.manual_seed(int.from_bytes(digest, "little"))
        if special_tokens_mask is None:
            # The parent class asks the tokenizer row by row, in Python, at ten times the price.
            special_tokens_mask = torch.isin(inputs, self.special_ids)
        return super().torch_mask_tokens(inputs, special_tokens_mask, offset_mapping)


# ---- All together ----


@dataclass(frozen=True, repr=False)
class PreparedData:
    """What a run trains and validates on.

    Attributes:
        tokenizer: with a mask and a pad token.
        train: blocks (see `pack_blocks`); an IterableDataset where the source is streamed.
        validation: blocks of the held-out documents.
        fingerprint: JSON: what was asked for, the versions of what the text depends on, and for either set the SHA-256
            of its texts in order and the numbers of documents, words, tokens (without those that frame a block) and
            blocks. Of a streamed training set these are not known. "unknown" is the share of the validation set's
            tokens that the tokenizer does not know.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Documents
    validation: Dataset
    fingerprint: dict[str, Any]

    @property
    def block_size(self) -> int:
        """Length of each block, in tokens."""
        return self.fingerprint["block_size"]

    def __repr__(self) -> str:
        return f"PreparedData({', '.join(f'{name}={value!r}' for name, value in self._short_facts().items())})"

    def _repr_html_(self) -> str:
        """The sizes of both sets for a notebook; an empty cell is not known."""
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

    Of a stream, the first 10,000 documents are read beforehand: those held out are the validation set and the others
    train the tokenizer. The training set streams all documents that are not held out; nothing is kept on disk.

    Args:
        source: see `load_documents`, as for the arguments from `max_documents` on.
        tokenizer: a tokenizer, or what `load_tokenizer` takes; `None` trains one on the training set.
        vocab_size: of the tokenizer to be trained, as the next three (see `train_tokenizer`).
        lowercase: whether capital letters become small ones.
        strip_accents: whether letters lose their marks.
        character_coverage: share of the text's characters that the alphabet has.
        block_size: see `pack_blocks`; `None` takes 128, or the most that tokenizer and model take where that is less.
        max_positions: the longest input of the model; `None` where it is not known.
        validation_fraction: see `split_documents`.
        seed: of the split.
        cache_dir: `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.

    Raises:
        ValueError: see the functions named above.
    """
    check_fraction(validation_fraction)
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is not None:
        _require_tokens(tokenizer, "mask_token", "pad_token", "cls_token", "sep_token")
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
        # Of other texts too: whether a text will ever be asked for again is not known.
        remove_leftovers(folder.parent)
        if not folder.is_dir():
            with written_at_once(folder) as temporary:
                _save(build(), temporary)
        data = _load(folder, tokenizer)
    if (share := data.fingerprint["unknown"]) > _MOST_UNKNOWN:
        remedy = (
            "take one that was made for this text" if tokenizer else "take a larger character_coverage or more text"
        )
        logger.warning(
            f"the tokenizer does not know {share:.1%} of the tokens of the held-out text, where at most "
            f"{_MOST_UNKNOWN:.0%} is common; {remedy}"
        )
    return data


def load_data(settings: DataSettings, max_positions: int | None = None) -> PreparedData:
    """Returns the packed blocks, the tokenizer and the fingerprint of the text that settings name (`prepare_data`).

    Args:
        settings: where the text comes from.
        max_positions: the longest input of the model, which a block is not longer than unless the settings say so.
    """
    return prepare_data(**asdict(settings), max_positions=max_positions)


def held_out_texts(source: str, fingerprint: Mapping[str, Any]) -> Dataset:
    """Returns the documents that `prepare_data` held out, read again from where the text is now.

    Args:
        source: the text.
        fingerprint: of the data, which says how the text was read and split.

    Raises:
        ValueError: the text cannot be read so, or is another one than that of the fingerprint.
    """
    reading = {name: fingerprint[name] for name in _READING}
    documents = load_documents(source, **reading)
    head = Dataset.from_list(list(documents.take(_STREAM_HEAD))) if reading["streaming"] else documents
    held_out = split_documents(head, fingerprint["validation_fraction"], fingerprint["seed"])[1]
    assert isinstance(held_out, Dataset)
    found, recorded = _describe_texts(held_out)["sha256"], fingerprint["sha256"]["validation"]
    if found != recorded:
        raise ValueError(
            f"{source} is another text: the SHA-256 of its held-out documents begins with {found[:12]}, the recorded "
            f"one with {str(recorded)[:12]}"
        )
    return held_out


def _usual_block_size(tokenizer: PreTrainedTokenizerBase | None, max_positions: int | None) -> int:
    longest = [_USUAL_BLOCK_SIZE] if tokenizer is None else [_USUAL_BLOCK_SIZE, tokenizer.model_max_length]
    block_size = min([*longest, *([] if max_positions is None else [max_positions])])
    if block_size < _USUAL_BLOCK_SIZE:
        logger.info(f"block_size: {block_size} tokens, the most that the model takes")
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
        # Counted one by one: a list of the words takes ten times the memory of the text.
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


def tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Returns a hash of all by which a tokenizer cuts text."""
    if tokenizer.is_fast:
        state = json.loads(tokenizer.backend_tokenizer.to_str())
        # What the last call asked for, no property of the tokenizer.
        state |= {"padding": None, "truncation": None}
    else:
        state = {"class": type(tokenizer).__name__, "vocab": tokenizer.get_vocab()}
    return sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _save(data: PreparedData, folder: Path) -> None:
    data.tokenizer.save_pretrained(folder / "tokenizer")
    data.train.save_to_disk(folder / "train")
    data.validation.save_to_disk(folder / "validation")
    (folder / "fingerprint.json").write_text(json.dumps(data.fingerprint), encoding="utf-8")


def _load(folder: Path, tokenizer: PreTrainedTokenizerBase | None) -> PreparedData:
    return PreparedData(
        tokenizer=AutoTokenizer.from_pretrained(folder / "tokenizer") if tokenizer is None else tokenizer,
        train=load_from_disk(folder / "train"),
        validation=load_from_disk(folder / "validation"),
        fingerprint=json.loads((folder / "fingerprint.json").read_text(encoding="utf-8")),
    )
