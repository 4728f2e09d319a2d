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
import os
import platform
import re
import sysconfig
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b, sha256
from importlib.metadata import PackageNotFoundError, distribution, version
from itertools import groupby
from pathlib import Path, PurePath
from typing import Any, TypeAlias

import torch
from datasets import Dataset, Features, IterableDataset, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, BertTokenizer, DataCollatorForLanguageModeling, PreTrainedTokenizerBase


Documents: TypeAlias = Dataset | IterableDataset

DOCSTRINGS = "docstrings"
STANDARD_LIBRARY = "python"
# What the project and its dependencies bring along, less the packages that hold next to no prose. A fixed list, so
# that the corpus does not change with whatever else is installed; those that are missing are left out.
DOCSTRING_PACKAGES = (
    *("accelerate", "aiohttp", "datasets", "evaluate", "fonttools", "fsspec", "huggingface_hub", "jinja2", "joblib"),
    *("matplotlib", "mpmath", "networkx", "numpy", "pandas", "pillow", "pyarrow", STANDARD_LIBRARY, "rich"),
    *("scikit-learn", "scipy", "sympy", "tokenizers", "torch", "transformers", "typer"),
)
# Parts of the keys of what is cached: raise them when the same input gives another corpus or other blocks.
_DOCSTRINGS_VERSION = 1
_PREPARED_VERSION = 1

_LOCAL_BUILDERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet"}
_SPECIAL_TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Documents packed together; the tokens after their last full block are dropped.
_PACKED_TOGETHER = 1000
# A tokenizer learns nothing more from further documents.
_TOKENIZER_DOCUMENTS = 100_000
# What is read of a stream beforehand: its held-out documents are the validation set, the others train the tokenizer.
_STREAM_HEAD = 10_000


# ---- The default corpus ----

_TRIPLE_QUOTED = re.compile(r'"""(.*?)"""|\'\'\'(.*?)\'\'\'', re.DOTALL)
_NO_PROSE = (
    "autosummary|code|code-block|csv-table|deprecated|doctest|figure|image|ipython|jupyter-execute|list-table|math|"
    "parsed-literal|plot|rubric|sourcecode|table|testcode|testoutput|toctree|versionadded|versionchanged"
)
# What is no prose, or heads a paragraph. Each match becomes a blank line, in this order.
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
# Inline markup and the text it stands for.
_MARKUP = tuple(
    (re.compile(pattern), text)
    for pattern, text in (
        (r"::(?=\s|$)", ":"),
        (r":[\w:+-]+:`(?:~[\w.]*\.)?([^`<]*?)(?: ?<[^`]*>)?`", r"\1"),  # :class:`~torch.Tensor`
        (r"\[([^\]\n]+)\]\([^)\s]*\)", r"\1"),  # [text](address)
        (r"\s?\[\w+\]_", ""),  # a footnote's mark
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
# "..": what a wheel puts outside site-packages.
_SKIPPED_FOLDERS = frozenset(("..", "test", "tests", "idle_test", "site-packages", "dist-packages"))


def reads_as_english(sentence: str) -> bool:
    """Whether a line is an English sentence: shape, 6 to 100 words, mostly of letters, a sixth of them stop words."""
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
    """Yields the paragraphs of a docstring as lists of sentences, without code, tables, signatures and markup."""
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
    """Returns the English sentences of the docstrings of installed packages, one document a .py file.

    Nothing is imported: triple-quoted strings are found by a regular expression. No sentence comes twice. The order is
    that of package and path. The result is cached, under a key of the packages' versions.

    Args:
        packages: names of distributions, "python" for the standard library; `None` takes DOCSTRING_PACKAGES, as far as
            they are installed.
        cache_dir: `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.

    Returns:
        `{"text": ..., "source": package}` each; a paragraph is a line of the text.

    Raises:
        ValueError: a package of `packages` is not installed, or there is no English in them.
    """
    versions = _docstring_versions(packages)
    path = _cache_folder(cache_dir) / f"docstrings-{_digest(_DOCSTRINGS_VERSION, versions)}.jsonl"
    if not path.is_file():
        documents = _read_docstrings(versions)
        if not documents:
            raise ValueError(f"no English in the docstrings of {', '.join(versions)}; name packages with more text")
        with _written_at_once(path) as temporary:
            temporary.write_text("".join(json.dumps(document) + "\n" for document in documents), encoding="utf-8")
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def _docstring_versions(packages: Sequence[str] | None) -> dict[str, str]:
    versions = {}
    for package in sorted(set(DOCSTRING_PACKAGES if packages is None else packages)):
        try:
            versions[package] = platform.python_version() if package == STANDARD_LIBRARY else version(package)
        except PackageNotFoundError:
            if packages is not None:
                raise ValueError(f"package {package!r} is not installed; install it or leave it out") from None
    return versions


def _read_docstrings(packages: Iterable[str]) -> list[dict[str, str]]:
    files = [(package, path) for package in packages for path in _source_files(package)]
    documents = []
    docstrings: set[str] = set()
    seen: set[str] = set()
    for package, path in tqdm(files, desc="Reading docstrings", unit="file", disable=None):
        paragraphs = []
        for match in _TRIPLE_QUOTED.finditer(path.read_text(encoding="utf-8", errors="replace")):
            docstring = match[1] or match[2] or ""
            # A tenth of them are copies, which need not be read again.
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


def _source_files(package: str) -> list[Path]:
    if package == STANDARD_LIBRARY:
        root = Path(sysconfig.get_path("stdlib"))
        files: dict[PurePath, Path] = {path.relative_to(root): path for path in root.rglob("*.py")}
    else:
        files = {PurePath(file): Path(str(file.locate())) for file in distribution(package).files or ()}
    names = [name for name in files if name.suffix == ".py" and _SKIPPED_FOLDERS.isdisjoint(name.parts)]
    return [files[name] for name in sorted(names, key=PurePath.as_posix) if files[name].is_file()]


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
        raise ValueError(f"there is no file or folder {str(path)!r}; check the path, or leave it out for docstrings")


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
    return documents.filter(_has_text, input_columns="text")


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
    elif tokenizer is not None:
        _require_tokens(tokenizer, "mask_token", "pad_token")
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
    tokenizer_key = vocab_size if tokenizer is None else _tokenizer_sha256(tokenizer)
    folder = _cache_folder(cache_dir) / f"prepared-{_digest(_PREPARED_VERSION, fingerprint, tokenizer_key)}"
    if not folder.is_dir():
        with _written_at_once(folder) as temporary:
            _save(build(), temporary)
    return _load(folder, tokenizer)


def _versions(source: str | Path | None) -> dict[str, str]:
    versions = {name: version(name) for name in ("datasets", "tokenizers", "transformers")}
    of_the_text = _docstring_versions(None) if source in (None, DOCSTRINGS) else {}
    return {"python": platform.python_version(), **versions, **of_the_text}


def _by_side(describe: Callable[[Documents], dict[str, Any]], train: Documents, validation: Documents) -> dict:
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
    facts |= {"tokenizer": _tokenizer_sha256(tokenizer), "vocab_size": len(tokenizer)}
    return PreparedData(tokenizer, train, validation, {**fingerprint, **facts})


def _tokenizer_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
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


# ---- The cache on disk ----


def _cache_folder(cache_dir: str | Path | None) -> Path:
    return Path(cache_dir or os.environ.get("MAGIC_CACHE") or Path.home() / ".cache" / "magic-nas").expanduser()


def _digest(*values: Any) -> str:
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=12).hexdigest()


@contextmanager
def _written_at_once(path: Path) -> Iterator[Path]:
    """Yields a place to write a file or a folder, renamed to `path` at the end: `path` is complete or not there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        try:
            temporary.replace(path)
        except OSError:
            # A folder does not replace a folder: another process was faster, with the same content.
            if not path.is_dir():
                raise
