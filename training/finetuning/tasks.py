"""The tasks of fine-tuning: GLUE's nine and a user's own, from text to tokenised rows and the leaderboard's files.

1. `glue_task` and `load_glue`, or `own_files.load_files` for a user's own files: the task and its data, checked.
2. `tokenize`: rows as the model reads them, kept on disk.
3. `predictions_and_references`: from a model's logits to the inputs of `metrics.compute_metrics`.
4. `write_submission`: the files for the GLUE leaderboard.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, replace
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value, load_dataset, load_from_disk
from datasets.exceptions import DatasetsError
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from ..data.tokenizing import tokenizer_sha256
from ..files import cache_folder, short_hash, written_at_once
from ..tables import first_line
from .settings import LOSS, MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS
from .task_files import Table, label_of, read_table, require_columns, text_of, words_of


HUB_GLUE = "nyu-mll/glue"
# The label of a position that is neither trained nor scored.
IGNORED = -100
# Part of the cache key: raise it when the same rows give other tokens.
_TOKENIZED_VERSION = 3


@dataclass(frozen=True)
class Task:
    """What is predicted from which columns, and how it is scored.

    Attributes:
        name: the name, as on the command line and in `nyu-mll/glue`.
        title: the title in the paper's tables.
        problem_type: "single_label_classification", "multi_label_classification", "regression" or
            "token_classification"; all but the last are transformers' names.
        text_columns: one or two text columns; for token classification the column of the words.
        labels: the labels in the order of their ids; empty for regression.
        metrics: names from `metrics.METRICS`.
        starts_from: the task whose fine-tuned encoder this one starts from (5.1).
        validation_splits: the splits that are scored.
        test_splits: the splits that are predicted for the leaderboard.
        num_train: number of rows of the whole training set, if known; see `measured_title`.
        best_metric: the metric that is the task's score, or "loss"; `None` takes the mean of all, as GLUE does.
    """

    name: str
    title: str
    problem_type: str
    text_columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    starts_from: str | None = None
    validation_splits: tuple[str, ...] = ("validation",)
    test_splits: tuple[str, ...] = ("test",)
    num_train: int | None = None
    best_metric: str | None = None

    @property
    def score_metrics(self) -> tuple[str, ...]:
        """The metrics whose mean is the task's score, which chooses the best epoch, unless that is the loss."""
        return self.metrics if self.best_metric is None else (self.best_metric,)

    def by_metric(self, name: str) -> "Task":
        """Returns the same task with a metric, or "loss", as its score.

        Raises:
            ValueError: the task does not have it; the message lists those that it has.
        """
        if name not in (*self.metrics, LOSS):
            raise ValueError(
                f"metric_for_best_model is {name!r}; for {self.title} choose among {', '.join(self.metrics)}, {LOSS}"
            )
        return replace(self, best_metric=name)

    @property
    def num_labels(self) -> int:
        """The width of the model's output: 1 for regression."""
        return len(self.labels) or 1

    @property
    def id2label(self) -> dict[int, str]:
        """The labels by id, for a model's configuration; empty for regression."""
        return dict(enumerate(self.labels))


# ---- GLUE ----

_SENTENCE = ("sentence",)
_PAIR = ("sentence1", "sentence2")
_ENTAILED = ("entailment", "not_entailment")
_GLUE_TASKS = (
    Task(
        "cola",
        "CoLA",
        SINGLE_LABEL,
        _SENTENCE,
        ("unacceptable", "acceptable"),
        ("matthews_correlation",),
        num_train=8551,
    ),
    Task("sst2", "SST-2", SINGLE_LABEL, _SENTENCE, ("negative", "positive"), ("accuracy",), num_train=67349),
    Task(
        "mrpc",
        "MRPC",
        SINGLE_LABEL,
        _PAIR,
        ("not_equivalent", "equivalent"),
        ("f1", "accuracy"),
        starts_from="mnli",
        num_train=3668,
    ),
    Task("stsb", "STS-B", REGRESSION, _PAIR, (), ("pearson", "spearmanr"), starts_from="mnli", num_train=5749),
    Task(
        "qqp",
        "QQP",
        SINGLE_LABEL,
        ("question1", "question2"),
        ("not_duplicate", "duplicate"),
        ("f1", "accuracy"),
        num_train=363846,
    ),
    Task(
        "mnli",
        "MNLI",
        SINGLE_LABEL,
        ("premise", "hypothesis"),
        ("entailment", "neutral", "contradiction"),
        ("accuracy",),
        validation_splits=("validation_matched", "validation_mismatched"),
        test_splits=("test_matched", "test_mismatched", "ax"),
        num_train=392702,
    ),
    Task("qnli", "QNLI", SINGLE_LABEL, ("question", "sentence"), _ENTAILED, ("accuracy",), num_train=104743),
    Task("rte", "RTE", SINGLE_LABEL, _PAIR, _ENTAILED, ("accuracy",), starts_from="mnli", num_train=2490),
    Task("wnli", "WNLI", SINGLE_LABEL, _PAIR, ("not_entailment", "entailment"), ("accuracy",), num_train=635),
)
GLUE = {task.name: task for task in _GLUE_TASKS}

# Names of a split's file, of which the first existing one is read; "_part" marks files with a part of the split.
_SPLIT_FILES = {
    "train": ("train.tsv", "train_part.tsv"),
    "validation": ("dev.tsv", "dev_part.tsv"),
    "validation_matched": ("dev_matched.tsv", "dev_matched_part.tsv", "dev.tsv", "dev_part.tsv"),
    "validation_mismatched": ("dev_mismatched.tsv", "dev_mismatched_part.tsv"),
    "test": ("test.tsv", "test_part.tsv"),
    "test_matched": ("test_matched.tsv", "test_matched_part.tsv", "test.tsv", "test_part.tsv"),
    "test_mismatched": ("test_mismatched.tsv", "test_mismatched_part.tsv"),
    "ax": ("ax.tsv",),
}
_SUBMITTED_AS = {"test_matched": "MNLI-m", "test_mismatched": "MNLI-mm", "ax": "AX"}
# The leaderboard takes label names for these tasks, and label ids for the others.
_SUBMITS_NAMES = ("mnli", "qnli", "rte")


def glue_task(name: str) -> Task:
    """Returns a GLUE task by its name or title, such as "sst2" or "SST-2".

    Raises:
        ValueError: there is no such task; the message names the closest.
    """
    key = name.strip().lower().replace("-", "").replace("_", "")
    if key not in GLUE:
        near = get_close_matches(key, GLUE, 1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(f"unknown task {name!r}; {hint}GLUE's tasks: {', '.join(GLUE)}")
    return GLUE[key]


def load_glue(task: Task, source: str | Path | None = None, splits: Sequence[str] | None = None) -> DatasetDict:
    """Returns the splits of a GLUE task, with its text columns, "label" (class id or number) and "idx".

    A test split without labels has no column "label".

    Args:
        task: one of `GLUE`.
        source: `None` for `nyu-mll/glue` on the Hub, or a folder with a folder for each task by its title, such as
            `SST-2/train.tsv`, `SST-2/dev.tsv`, `SST-2/test.tsv`: TSV in UTF-8 without quoting, a header that names the
            text columns and "label" or "score", labels by name or id. A part of a split is called `train_part.tsv`.
            MNLI's files are `dev_matched.tsv` and `dev_mismatched.tsv`; a `dev.tsv` counts as matched.
        splits: the splits to load; `None` requires the training split and the first validation split, and loads the
            others if they exist.

    Raises:
        ValueError: a required split is missing, the Hub cannot be reached, or a row is invalid; the message gives file
            and line.
    """
    asked = ("train", task.validation_splits[0]) if splits is None else tuple(splits)
    optional = () if splits is not None else (*task.validation_splits[1:], *task.test_splits)
    known = ("train", *task.validation_splits, *task.test_splits)
    unknown = [split for split in asked if split not in known]
    if unknown:
        raise ValueError(f"{task.title} has no split {unknown[0]!r}; choose among {', '.join(known)}")
    if source is None:
        return _load_hub(task, asked, optional)
    folder = Path(source).expanduser() / task.title
    if not folder.is_dir():
        raise ValueError(f"there is no folder {folder}; {task.title} is read from files such as {folder}/train.tsv")
    paths = {split: _split_file(folder, split) for split in (*asked, *optional)}
    for split in asked:
        if paths[split] is None:
            expected = " or ".join(str(folder / name) for name in _SPLIT_FILES[split])
            raise ValueError(f"{task.title} has no {split} split; it is read from {expected}")
    tables = {split: read_table(path) for split, path in paths.items() if path is not None}
    return DatasetDict({split: _glue_rows(task, table, split) for split, table in tables.items()})


def _split_file(folder: Path, split: str) -> Path | None:
    return next((folder / name for name in _SPLIT_FILES[split] if (folder / name).is_file()), None)


def _glue_rows(task: Task, table: Table, split: str) -> Dataset:
    label_column = "score" if "score" in table.columns and task.problem_type == REGRESSION else "label"
    by_id = {str(number): number for number in range(len(task.labels))}
    ids = {**{name: number for number, name in enumerate(task.labels)}, **by_id}
    return rows_of(task, table, label_column, ids, is_test=split in task.test_splits)


def _load_hub(task: Task, asked: Sequence[str], optional: Sequence[str]) -> DatasetDict:
    found = _hub_configuration(task.name)
    if "ax" in asked:
        found["ax"] = _hub_configuration("ax")["test"]
    elif "ax" in optional:
        with suppress(ValueError):
            found["ax"] = _hub_configuration("ax")["test"]
    missing = [split for split in asked if split not in found]
    if missing:
        raise ValueError(f"{HUB_GLUE} has no split {missing[0]!r} of {task.title}; it has {', '.join(found)}")
    return DatasetDict({split: _hub_rows(task, found[split]) for split in (*asked, *optional) if split in found})


def _hub_configuration(name: str) -> DatasetDict:
    try:
        return load_dataset(HUB_GLUE, name)
    except (DatasetsError, OSError, ValueError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(
            f"cannot load {HUB_GLUE} ({name}) from the Hub ({reason}); check the network, or give a folder of TSV"
        ) from error


def _hub_rows(task: Task, rows: Dataset) -> Dataset:
    label = rows.features["label"]
    if isinstance(label, ClassLabel) and tuple(label.names) != task.labels:
        raise ValueError(f"{HUB_GLUE} numbers the labels of {task.title} as {label.names}, not as {task.labels}")
    columns = [*task.text_columns, "label", "idx"]
    rows = rows.select_columns(columns).cast(_features(task, with_labels=True))
    hidden = np.asarray(rows["label"][:]) == -1
    return rows.remove_columns("label") if hidden.all() else rows


def measured_title(task: Task, data: DatasetDict) -> str:
    """Returns the title under which a result is reported: "MNLI-3k" if the training set is a part of the task's."""
    num_rows = len(data["train"]) if "train" in data else task.num_train
    if task.num_train is None or num_rows is None or num_rows >= task.num_train:
        return task.title
    return f"{task.title}-{num_rows / 1000:.0f}k" if num_rows >= 1000 else f"{task.title}-{num_rows}"


# ---- Rows ----


def _features(task: Task, with_labels: bool) -> Features:
    text = List(Value("string")) if task.problem_type == TOKENS else Value("string")
    by_type = {SINGLE_LABEL: Value("int64"), REGRESSION: Value("float32")}
    label = {"label": by_type.get(task.problem_type, List(Value("int64")))} if with_labels else {}
    return Features({**dict.fromkeys(task.text_columns, text), **label, "idx": Value("int32")})


def rows_of(task: Task, table: Table, label_column: str, ids: Mapping[str, int], is_test: bool) -> Dataset:
    """Returns the text columns of a table, its labels as "label" and its row numbers as "idx".

    Args:
        task: determines the text columns and the kind of label.
        table: the table that was read.
        label_column: the label column; a test table may lack it.
        ids: ids of the labels by name.
        is_test: whether the table is a test split.

    Raises:
        ValueError: a column is missing, or a row is invalid; the message gives file and line.
    """
    with_labels = label_column in table.columns or not is_test
    require_columns(table, (*task.text_columns, label_column) if with_labels else task.text_columns)
    read = words_of if task.problem_type == TOKENS else text_of
    columns: dict[str, list[Any]] = {name: [read(row, name) for row in table.rows] for name in task.text_columns}
    if with_labels:
        columns["label"] = [label_of(row, label_column, task.problem_type, ids) for row in table.rows]
    if with_labels and task.problem_type == TOKENS:
        for row, words, tags in zip(table.rows, columns[task.text_columns[0]], columns["label"], strict=True):
            if len(words) != len(tags):
                raise ValueError(f"{row.where}: {len(words)} words but {len(tags)} tags; give one tag per word")
    columns["idx"] = list(range(len(table.rows)))
    return Dataset.from_dict(columns, features=_features(task, with_labels))


# ---- Tokens ----


def tokenize(
    data: DatasetDict,
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    cache_dir: str | Path | None = None,
) -> DatasetDict:
    """Returns the rows as the model reads them, unpadded: the tokenizer's outputs, "labels" and "length" in tokens.

    Pairs are truncated at the longer text first. For token classification, the first piece of a word has its label and
    the others have -100; a word that the tokenizer drops is read as the unknown token, so that it has a label too.
    Words beyond `max_length` are neither trained nor scored. Without labels, the first piece of a word has 0, which
    marks where words begin. Multi-label rows have a float for each label. The result is kept on disk, keyed by the
    content of the rows, the tokenizer and the task.

    Args:
        data: splits of `load_glue` or `load_files`.
        task: the task of the data.
        tokenizer: the tokenizer; for token classification a fast one.
        max_length: largest number of tokens of a row, including special ones.
        cache_dir: `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.

    Raises:
        ValueError: `max_length` is more than the model takes or leaves no room for text, or the tokenizer does not map
            pieces to words.
    """
    check_tokenizer(task, tokenizer, max_length)
    key = short_hash(_TOKENIZED_VERSION, task.problem_type, task.text_columns, task.labels, max_length)
    key = short_hash(key, _tokenizer_key(tokenizer), {split: _rows_sha256(rows) for split, rows in data.items()})
    folder = cache_folder(cache_dir) / f"tokenized-{key}"
    if not folder.is_dir():
        with written_at_once(folder) as temporary:
            _tokenize(data, task, tokenizer, max_length).save_to_disk(temporary)
    return load_from_disk(folder)


def check_tokenizer(task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises a ValueError if `tokenize` cannot truncate a task's rows to a length with a tokenizer."""
    num_special = tokenizer.num_special_tokens_to_add(pair=len(task.text_columns) == 2)
    smallest = num_special + len(task.text_columns)
    if not smallest <= max_length <= tokenizer.model_max_length:
        raise ValueError(
            f"max_length is {max_length}; it must be between {smallest}, which leaves one token for each text, and "
            f"{tokenizer.model_max_length}, the largest number of tokens that the tokenizer's model takes"
        )
    if task.problem_type == TOKENS:
        _check_words(tokenizer)


def _check_words(tokenizer: PreTrainedTokenizerBase) -> None:
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"{name} does not map tokens to words; use a fast tokenizer")
    if not _keeps_words_apart(tokenizer):
        raise ValueError(
            f"{name} tokenizes a list of words as if without spaces between them; pass it through with_word_spaces"
        )


def _keeps_words_apart(tokenizer: PreTrainedTokenizerBase) -> bool:
    words, text = tokenizer(["a", "a"], is_split_into_words=True)["input_ids"], tokenizer("a a")["input_ids"]
    # A byte-level tokenizer has other tokens for a word after a space than for the same letters within a word, and
    # perhaps one for the space itself.
    return len(words) == len(text) and words[-2:] == text[-2:]


def with_word_spaces(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Returns a tokenizer that splits a list of words like a text, for token classification.

    Byte-level tokenizers, such as RoBERTa's and ModernBERT's, only do so with a space before each word. The result is
    then a changed copy, which also reads texts with a space before them, and is saved that way.

    Raises:
        ValueError: the tokenizer is a slow one, or a space does not help.
    """
    if tokenizer.is_fast and not _keeps_words_apart(tokenizer):
        tokenizer = deepcopy(tokenizer)
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        first = backend["pre_tokenizer"] or {}
        for step in first.get("pretokenizers", [first]):
            if "add_prefix_space" in step:
                step["add_prefix_space"] = True
        tokenizer.backend_tokenizer.pre_tokenizer = Tokenizer.from_str(json.dumps(backend)).pre_tokenizer
        # Classes such as RoBERTa's rebuild their pre-tokenizer from this when they are loaded again.
        tokenizer.add_prefix_space = tokenizer.init_kwargs["add_prefix_space"] = True
    _check_words(tokenizer)
    return tokenizer


def _tokenizer_key(tokenizer: PreTrainedTokenizerBase) -> str:
    return short_hash(
        tokenizer_sha256(tokenizer),
        type(tokenizer).__name__,
        tokenizer.truncation_side,
        tokenizer.model_input_names,
    )


def _rows_sha256(rows: Dataset) -> str:
    digest = sha256(json.dumps(rows.column_names).encode())
    for batch in rows.iter(1000):
        digest.update(json.dumps(batch).encode())
    return digest.hexdigest()


def tokenize_rows(rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> Dataset:
    """Returns rows of one split like `tokenize`, in memory and without a cache; see `check_tokenizer`."""
    encode = _encode_words if task.problem_type == TOKENS else _encode_texts
    features = _token_features(task, tokenizer, with_labels="label" in rows.column_names)
    return Dataset.from_dict(encode(rows[:], task, tokenizer, max_length), features=features)


def _tokenize(data: DatasetDict, task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int) -> DatasetDict:
    encode = _encode_words if task.problem_type == TOKENS else _encode_texts
    return DatasetDict(
        {
            split: rows.map(
                encode,
                batched=True,
                remove_columns=rows.column_names,
                features=_token_features(task, tokenizer, with_labels="label" in rows.column_names),
                fn_kwargs={"task": task, "tokenizer": tokenizer, "max_length": max_length},
                # Kept once, by `tokenize`, and not also by `datasets`.
                keep_in_memory=True,
                load_from_cache_file=False,
                desc=f"tokenising {split}",
            )
            for split, rows in data.items()
        }
    )


def _token_features(task: Task, tokenizer: PreTrainedTokenizerBase, with_labels: bool) -> Features:
    types = {"input_ids": "int32", "token_type_ids": "int8", "attention_mask": "int8"}
    inputs = {name: List(Value(types[name])) for name in tokenizer.model_input_names if name in types}
    by_type = {SINGLE_LABEL: Value("int64"), REGRESSION: Value("float32"), MULTI_LABEL: List(Value("float32"))}
    has_labels = with_labels or task.problem_type == TOKENS
    labels = {"labels": by_type.get(task.problem_type, List(Value("int64")))} if has_labels else {}
    return Features({**inputs, **labels, "length": Value("int32")})


def _encode_texts(
    batch: Mapping[str, list[Any]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    texts = [batch[name] for name in task.text_columns]
    encoding = tokenizer(*texts, truncation="longest_first", max_length=max_length)
    labels = {"labels": batch["label"]} if "label" in batch else {}
    return {**_inputs(encoding, tokenizer), **labels}


def _encode_words(
    batch: Mapping[str, list[Any]], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> dict[str, list[Any]]:
    words = batch[task.text_columns[0]]
    odd = _words_without_pieces(words, tokenizer)
    if odd and tokenizer.unk_token is None:
        raise ValueError(
            f"the tokenizer has no token for the word {min(odd)!r} and no unknown token; correct the word"
        )
    if odd:
        words = [[tokenizer.unk_token if word in odd else word for word in row] for row in words]
    encoding = tokenizer(words, is_split_into_words=True, truncation=True, max_length=max_length)
    tags = batch["label"] if "label" in batch else [[0] * len(row) for row in words]
    labels = [_first_piece_labels(encoding.word_ids(row), tags[row]) for row in range(len(words))]
    return {**_inputs(encoding, tokenizer), "labels": labels}


def _words_without_pieces(words: Sequence[Sequence[str]], tokenizer: PreTrainedTokenizerBase) -> set[str]:
    """Returns the words that a tokenizer drops, such as a lone zero-width space or variation selector.

    Without a replacement they would have no tag, and the tags of all following words would be one place too early.
    """
    whole = tokenizer(words, is_split_into_words=True, add_special_tokens=False, verbose=False)
    return {
        word
        for number, row in enumerate(words)
        if len(kept := set(whole.word_ids(number))) < len(row)
        for place, word in enumerate(row)
        if place not in kept
    }


def _inputs(encoding: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Any]]:
    inputs = {name: encoding[name] for name in tokenizer.model_input_names if name in encoding}
    return {**inputs, "length": [len(ids) for ids in encoding["input_ids"]]}


def _first_piece_labels(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    before = [None, *word_ids[:-1]]
    return [
        IGNORED if word is None or word == last else tags[word] for last, word in zip(before, word_ids, strict=True)
    ]


# ---- Predictions ----


def predictions_and_references(task: Task, logits: np.ndarray, labels: np.ndarray) -> tuple[Any, Any]:
    """Returns the inputs of `metrics.compute_metrics`, from a model's logits and the labels of the same rows.

    Args:
        task: the task of the rows.
        logits: (num_rows, num_labels), for regression also (num_rows,), for tokens (num_rows, seq_len, num_labels).
        labels: labels of `tokenize`; for tokens padded by -100, (num_rows, seq_len).

    Returns:
        Class ids, numbers, 0/1 matrices (a label is predicted where its logit is above 0), or tags of the words.

    Raises:
        ValueError: a logit is not finite.
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    scored = logits[labels != IGNORED] if task.problem_type == TOKENS else logits
    num_bad = int((~np.isfinite(scored)).sum())
    if num_bad:
        raise ValueError(
            f"{num_bad} of {scored.size} outputs for {task.title} are not finite: the training has diverged; use a "
            f"smaller learning rate"
        )
    if task.problem_type == REGRESSION:
        return logits.reshape(len(logits)).astype(np.float64), labels.astype(np.float64)
    if task.problem_type == MULTI_LABEL:
        return (logits > 0).astype(np.int64), labels.astype(np.int64)
    classes = logits.argmax(-1)
    if task.problem_type == SINGLE_LABEL:
        return classes, labels
    return _tags(task, classes, labels), _tags(task, labels, labels)


def predicted_names(task: Task, predictions: Any) -> list[Any]:
    """Returns predictions in readable form: names of classes, lists of these, tags of the words, or numbers."""
    if task.problem_type == MULTI_LABEL:
        return [[name for name, is_there in zip(task.labels, row, strict=True) if is_there] for row in predictions]
    if task.problem_type == SINGLE_LABEL:
        return [task.labels[number] for number in predictions]
    return list(predictions) if task.problem_type == TOKENS else predictions.tolist()


def _tags(task: Task, ids: np.ndarray, labels: np.ndarray) -> list[list[str]]:
    return [[task.labels[number] for number in row[known != IGNORED]] for row, known in zip(ids, labels, strict=True)]


def write_submission(task: Task, predictions: Mapping[str, Iterable[float]], folder: str | Path) -> list[Path]:
    """Writes the files for the GLUE leaderboard for a task, and returns their paths.

    The columns are "index" and "prediction": names of labels for MNLI, AX, QNLI and RTE, ids for the others, and
    numbers from 0 to 5 for STS-B.

    Args:
        task: one of `GLUE`.
        predictions: for each test split, class ids or numbers in the order of its rows.
        folder: the folder to write to; it is created if it does not exist.

    Raises:
        ValueError: the leaderboard has no such task or split, or a prediction is not one of its classes.
    """
    if task != GLUE.get(task.name):
        raise ValueError(f"the GLUE leaderboard has no task {task.title!r}; its tasks: {', '.join(GLUE)}")
    unknown = [split for split in predictions if split not in task.test_splits]
    if unknown:
        raise ValueError(
            f"{unknown[0]!r} is not a test split of {task.title}; choose among {', '.join(task.test_splits)}"
        )
    written = []
    for split, values in predictions.items():
        lines = [f"{index}\t{_submitted(task, split, value)}\n" for index, value in enumerate(values)]
        path = Path(folder) / f"{_SUBMITTED_AS.get(split, task.title)}.tsv"
        with written_at_once(path) as temporary:
            temporary.write_text("index\tprediction\n" + "".join(lines), encoding="utf-8")
        written.append(path)
    return written


def _submitted(task: Task, split: str, value: float) -> str:
    if task.problem_type == REGRESSION:
        if not np.isfinite(value):
            raise ValueError(f"a prediction for {split} of {task.title} is {value}; the leaderboard takes numbers")
        return f"{min(max(float(value), 0.0), 5.0):.3f}"
    if value not in range(task.num_labels):
        raise ValueError(
            f"a prediction for {split} of {task.title} is {value}; classes are 0 to {task.num_labels - 1}"
        )
    return task.labels[int(value)] if task.name in _SUBMITS_NAMES else str(int(value))
