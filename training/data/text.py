"""From text to packed, masked batches.

1. `load_documents`: docstrings of the installed packages, files of text, or any data set of the `datasets` library.
2. `split_documents`: whole documents are held out, by a hash of their text.
3. `train_tokenizer`, or any tokenizer that has a mask token.
4. `pack_blocks`: documents end to end, cut into blocks of equal length, so that no position is padding.
5. `MaskingCollator`: dynamic 80/10/10 masking that is a function of the seed and the batch.

`prepare_data` does 1 to 4 and keeps the result on disk. The validation slice is collated by
`evaluation.validation_batches`.
"""

import json
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b, sha256
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any, TypeAlias

import torch
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase

from ..files import cache_folder, remove_leftovers, short_hash, written_at_once
from .docstrings import docstring_documents, docstring_versions
from .settings import DataSettings


Documents: TypeAlias = Dataset | IterableDataset

DOCSTRINGS = "docstrings"
# Part of the key of what is cached: raise it when the same text gives other blocks.
_PREPARED_VERSION = 1

_LOCAL_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Documents packed together; the tokens after their last full block are dropped.
_PACKED_TOGETHER = 1000
# More than enough to learn a vocabulary from.
_TOKENIZER_DOCUMENTS = 100_000
# What is read of a stream beforehand: its held-out documents are the validation set, the others train the tokenizer.
_STREAM_HEAD = 10_000


# ---- Sources ----


def load_documents(
    source: str | Path | None = None,
    *,
    dataset_config: str | None = None,
    split: str = "train",
    text_column: str = "text",
    streaming: bool = False,
    max_documents: int | None = None,
    cache_dir: str | Path | None = None,
) -> Documents:
    """Returns the documents of a source, in a fixed order, in the column "text".

    Args:
        source: one of

            - `None` or "docstrings": `docstring_documents`, with the package in the column "source";
            - a .txt file, or a folder of them, read in sorted order with its subfolders; a document is a block between
              blank lines;
            - a .json, .jsonl, .csv or .parquet file;
            - the name of a data set that `datasets.load_dataset` finds, locally or on the Hub.
        dataset_config: the configuration of a data set by name.
        split: the split of a data set by name.
        text_column: the column of a data set that holds the text; rows without text are left out.
        streaming: returns an IterableDataset that reads as it goes; otherwise text files are held in memory.
        max_documents: the first documents only.
        cache_dir: see `docstring_documents`.

    Raises:
        ValueError: there is no such source, no text in it, or no such column.
    """
    if max_documents is not None and max_documents < 1:
        raise ValueError(f"max_documents is {max_documents}; it must be at least 1, or None for all")
    path = Path(source or DOCSTRINGS).expanduser()
    documents: Documents
    if source is None or source == DOCSTRINGS:
        documents = Dataset.from_list(docstring_documents(cache_dir=cache_dir))
        documents = documents.to_iterable_dataset() if streaming else documents
    elif path.is_dir() or (path.suffix == ".txt" and path.is_file()):
        documents = _load_text_files(path, streaming)
    else:
        if path.is_file() and path.suffix in _LOCAL_BUILDERS:
            arguments: dict[str, Any] = {"path": _LOCAL_BUILDERS[path.suffix], "data_files": {split: str(path)}}
        else:
            _refuse_paths(source, path)
            arguments = {"path": str(source), "name": dataset_config}
        documents = _load_data_set(source, text_column, {**arguments, "split": split, "streaming": streaming})
    return documents if max_documents is None else documents.take(max_documents)


def _load_text_files(path: Path, streaming: bool) -> Documents:
    paths = sorted(file for file in path.rglob("*.txt") if file.is_file()) if path.is_dir() else [path]
    if not paths:
        raise ValueError(f"folder {path} holds no .txt file; name a folder of text files or a single file")
    if next(_text_blocks(paths), None) is None:
        raise ValueError(f"there is no text in {path}; documents are blocks of lines between blank lines")
    if streaming:
        return IterableDataset.from_generator(_text_blocks, gen_kwargs={"paths": paths})
    return Dataset.from_list(list(_text_blocks(paths)))


def _text_blocks(paths: list[Path]) -> Iterator[dict[str, str]]:
    for path in paths:
        with path.open(encoding="utf-8-sig") as lines:
            try:
                for is_text, block in groupby(lines, key=lambda line: not line.isspace()):
                    if is_text:
                        yield {"text": "".join(block).strip()}
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is not UTF-8 ({error.reason}); convert it, for example with iconv") from None


def _refuse_paths(source: str | Path, path: Path) -> None:
    """Raises where the source can only be meant as a file: names of data sets are "name" or "owner/name"."""
    suffixes = (".txt", *_LOCAL_BUILDERS)
    if path.exists():
        raise ValueError(f"{path} is not a kind of file that can be read; known suffixes: {', '.join(suffixes)}")
    looks_like_path = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path or path.suffix in suffixes:
        raise ValueError(f"there is no file or folder {str(path)!r}; check the path")


def _load_data_set(source: str | Path, text_column: str, arguments: dict[str, Any]) -> Documents:
    try:
        documents = load_dataset(**arguments)
    except (DatasetsError, OSError, ValueError) as error:
        reason = str(error.__cause__ or error).splitlines()[0]
        raise ValueError(f"cannot read data set {str(source)!r} ({reason}); check its name or the file") from error
    columns = documents.column_names or list(next(iter(documents), {}))
    if text_column not in columns:
        raise ValueError(f"{str(source)!r} has no column {text_column!r}; choose one of: {', '.join(columns)}")
    documents = documents.select_columns([text_column])
    if text_column != "text":
        documents = documents.rename_column(text_column, "text")
    documents = documents.filter(_has_text, input_columns="text")
    if isinstance(documents, Dataset) and not len(documents):
        raise ValueError(f"{str(source)!r} has no text in column {text_column!r}; choose among: {', '.join(columns)}")
    return documents


def _has_text(text: Any) -> bool:
    return isinstance(text, str) and bool(text.strip())


# ---- Held-out documents ----


def is_held_out(text: str, fraction: float, seed: int = 0) -> bool:
    """Whether a document is of the validation set: by a hash of its text alone, so wherever and however it is read.

    What is held out at a fraction is held out at every larger one.
    """
    digest = blake2b(text.encode(), digest_size=8, key=str(seed).encode()).digest()
    return int.from_bytes(digest, "big") < fraction * 2**64


def split_documents(
    documents: Documents, validation_fraction: float = 0.02, seed: int = 0
) -> tuple[Documents, Documents]:
    """Returns the documents of the training and of the validation set (see `is_held_out`), each in the given order.

    Raises:
        ValueError: the fraction is not between 0 and 1, or a side is empty; of a stream, that is not known.
    """
    _check_fraction(validation_fraction)
    sides = []
    for name, held_out in (("training", False), ("validation", True)):
        arguments = {"fraction": validation_fraction, "seed": seed, "held_out": held_out}
        side = documents.filter(_is_on_side, input_columns="text", fn_kwargs=arguments)
        if isinstance(side, Dataset) and not len(side):
            raise ValueError(
                f"none of {len(documents)} documents is left for the {name} set at validation_fraction "
                f"{validation_fraction}; give more documents or another fraction"
            )
        sides.append(side)
    return sides[0], sides[1]


def _check_fraction(validation_fraction: float) -> None:
    if not 0 < validation_fraction < 1:
        raise ValueError(f"validation_fraction is {validation_fraction}; it must be between 0 and 1")


def _is_on_side(text: str, fraction: float, seed: int, held_out: bool) -> bool:
    return is_held_out(text, fraction, seed) == held_out


# ---- Tokenizer ----


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 8192, lowercase: bool = True, model_max_length: int = 512
) -> BertTokenizer:
    """Returns a WordPiece tokenizer as BERT's, trained on the texts; the same texts give the same vocabulary.

    Args:
        texts: what to learn from.
        vocab_size: an upper bound; little text gives fewer pieces. [PAD], [UNK], [CLS], [SEP], [MASK] are 0 to 4.
        lowercase: whether case and accents are dropped.
        model_max_length: the longest input that the model will take.

    Raises:
        ValueError: `vocab_size` has no room for the single characters.
    """
    texts = list(texts)
    trained = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    trained.normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    trained.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    num_characters = min(1000, max(128, vocab_size // 16))
    alphabet, continuations = _alphabet(texts, trained.normalizer, trained.pre_tokenizer, num_characters)
    reserved = [*_SPECIAL_TOKENS, *continuations]
    if len(reserved) + len(alphabet) > vocab_size:
        raise ValueError(
            f"vocab_size is {vocab_size} but the text needs {len(reserved) + len(alphabet)} pieces for its single "
            f"characters; take a larger vocab_size"
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
    trained.train_from_iterator(texts, trainer, length=len(texts))
    return BertTokenizer(vocab=trained.get_vocab(), do_lower_case=lowercase, model_max_length=model_max_length)


def _alphabet(
    texts: list[str], normalizer: normalizers.Normalizer, pre_tokenizer: pre_tokenizers.PreTokenizer, limit: int
) -> tuple[list[str], list[str]]:
    """The `limit` commonest characters, and as ##x those of them that can stand inside a word."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text)
    normal: Counter[str] = Counter()
    for character, count in counts.items():
        for part in normalizer.normalize_str(character).strip():
            normal[part] += count
    alphabet = sorted(sorted(normal, key=lambda part: (-normal[part], part))[:limit])
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
    if isinstance(blocks, Dataset) and not len(blocks):
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


def _pack(texts: list[str], tokenizer: PreTrainedTokenizerBase, block_size: int) -> dict[str, list[list[int]]]:
    line = []
    for ids in _tokenize(texts, tokenizer):
        if ids:
            line += [*ids, tokenizer.sep_token_id]
    width = block_size - 2
    cuts = (line[start : start + width] for start in range(0, len(line) - width + 1, width))
    return {"input_ids": [[tokenizer.cls_token_id, *cut, tokenizer.sep_token_id] for cut in cuts]}


def _tokenize(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    # Not verbose: documents are longer than the model's positions, which the tokenizer would warn of.
    encoding = tokenizer(
        texts, add_special_tokens=False, return_attention_mask=False, return_token_type_ids=False, verbose=False
    )
    return encoding["input_ids"]


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


@dataclass(frozen=True)
class PreparedData:
    """What a run trains and validates on.

    Attributes:
        tokenizer: with a mask and a pad token.
        train: blocks (see `pack_blocks`); an IterableDataset where the source is streamed.
        validation: blocks of the held-out documents.
        fingerprint: JSON: what was asked for, the versions of what the text depends on, and for either set the SHA-256
            of its texts in order and the numbers of documents, words, tokens (without those that frame a block) and
            blocks. Of a streamed training set these are not known.
    """

    tokenizer: PreTrainedTokenizerBase
    train: Documents
    validation: Dataset
    fingerprint: dict[str, Any]


def prepare_data(
    source: str | Path | None = None,
    *,
    tokenizer: PreTrainedTokenizerBase | str | Path | None = None,
    vocab_size: int = 8192,
    block_size: int = 128,
    validation_fraction: float = 0.02,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    max_documents: int | None = None,
    streaming: bool = False,
    dataset_config: str | None = None,
    split: str = "train",
    text_column: str = "text",
) -> PreparedData:
    """Returns the tokenizer and the blocks of a source, from disk if the same text was prepared before.

    Of a stream, the first 10,000 documents are read beforehand: those held out are the validation set and the others
    train the tokenizer. The training set streams all documents that are not held out; nothing is kept on disk.

    Args:
        source: see `load_documents`, as for the arguments from `max_documents` on.
        tokenizer: a tokenizer, or what `load_tokenizer` takes; `None` trains one on the training set.
        vocab_size: of the tokenizer to be trained.
        block_size: see `pack_blocks`.
        validation_fraction: see `split_documents`.
        seed: of the split.
        cache_dir: `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.

    Raises:
        ValueError: see the functions named above.
    """
    _check_fraction(validation_fraction)
    if isinstance(tokenizer, str | Path):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer is not None:
        _require_tokens(tokenizer, "mask_token", "pad_token", "cls_token", "sep_token")
    _check_block_size(block_size, None if tokenizer is None else tokenizer.model_max_length)
    reading: dict[str, Any] = {
        "max_documents": max_documents,
        "streaming": streaming,
        "dataset_config": dataset_config,
        "split": split,
        "text_column": text_column,
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
    build = partial(_build, texts, train, validation, tokenizer, vocab_size, fingerprint)
    if streaming:
        return build()
    tokenizer_key = vocab_size if tokenizer is None else tokenizer_sha256(tokenizer)
    folder = cache_folder(cache_dir) / f"prepared-{short_hash(_PREPARED_VERSION, fingerprint, tokenizer_key)}"
    # Of other texts too: whether a text will ever be asked for again is not known.
    remove_leftovers(folder.parent)
    if not folder.is_dir():
        with written_at_once(folder) as temporary:
            _save(build(), temporary)
    return _load(folder, tokenizer)


def load_data(settings: DataSettings) -> PreparedData:
    """Returns the packed blocks, the tokenizer and the fingerprint of the text that settings name (`prepare_data`)."""
    return prepare_data(**asdict(settings))


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
        num_words += sum(len(text.split()) for text in batch["text"])
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
    vocab_size: int,
    fingerprint: dict[str, Any],
) -> PreparedData:
    block_size = fingerprint["block_size"]
    if tokenizer is None:
        known = texts.take(_TOKENIZER_DOCUMENTS)["text"]
        tokenizer = train_tokenizer(known, vocab_size, model_max_length=max(512, block_size))
    train, validation = (
        pack_blocks(documents, tokenizer, block_size, tokenizer.model_max_length) for documents in (train, validation)
    )
    facts = _by_side(partial(_describe_blocks, block_size=block_size), train, validation)
    facts |= {"tokenizer": tokenizer_sha256(tokenizer), "vocab_size": len(tokenizer)}
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
