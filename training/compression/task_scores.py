"""Scores of encoders on tasks, to compare a faster encoder with the one that it was made from: `--eval NAME=FILE`.

1. `read_task` reads and checks a file, before any work; `docstring_retrieval` makes a task of the installed packages.
2. `score_task` gets the model's outputs for the task through one function, and scores them.

| kind of model | name | file | output of the function | score |
| --- | --- | --- | --- | --- |
| "sentence" | stsb, sts | sentence1, sentence2, score | embeddings | Spearman's correlation of cosine and score |
| | pairs | sentence1, sentence2, label of 0 or 1 | embeddings | average precision by cosine |
| | retrieval | query, document | embeddings | accuracy@1, and MRR@10 |
| "sequence" | labels | text, optionally a second one, label | logits | accuracy and F1; Spearman for numbers |
| "token" | labels | words, one tag per word | ids of the tags | F1 of entities and accuracy |
| "span" | squad | SQuAD's JSON, 1.1 or 2.0 | answers | F1 and exact match |

Files of rows are CSV, TSV or JSON lines, as for `finetuning.task_files.read_table`. All scores are in percent.
"""

import json
import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.metrics import average_precision_score

from ..data.docstrings import (
    docstring_sentences,
    docstring_versions,
    reads_as_english,
    source_files,
    triple_quoted,
)
from ..files import file_sha256
from ..finetuning.metrics import (
    accuracy,
    entity_f1,
    f1,
    pearson_correlation,
    spearman_correlation,
    token_accuracy,
)
from ..finetuning.own_kinds import find_text_columns
from ..finetuning.settings import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL, TOKENS
from ..finetuning.squad_data import SquadData, load_squad
from ..finetuning.squad_metrics import squad_v1_metrics, squad_v2_metrics
from ..finetuning.task_files import Row, Table, label_of, read_table, require_columns, text_of, words_of
from ..tables import counted


# Names of tasks by the kind of model that they score.
TASKS: dict[str, tuple[str, ...]] = {
    "sentence": ("stsb", "sts", "pairs", "retrieval"),
    "sequence": ("labels",),
    "token": ("labels",),
    "span": ("squad",),
}

_SENTENCES = ("sentence1", "sentence2")
_TOKEN_LABELS = ("label", "labels", "tags", "ner_tags")
# Spellings in files of whether two sentences belong together.
_TOGETHER = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
_RANKED_TOGETHER = 1000
# Decimals of cosines, so that those that differ only by rounding errors are equal.
_DECIMALS = 9


class TaskScore(NamedTuple):
    """The score of a model on a task.

    Attributes:
        name: the name of the task and its file, such as "stsb (dev.tsv)".
        metric: the name of the metric.
        value: the metric in percent; higher is better.
        num_examples: number of pairs, queries, rows, words or questions that the metric covers.
        further: names and values, in percent, of other metrics of the same outputs.
    """

    name: str
    metric: str
    value: float
    num_examples: int
    further: tuple[tuple[str, float], ...] = ()


@dataclass(frozen=True)
class Task:
    """The inputs for a model, and the correct answers.

    Attributes:
        name: one of `TASKS`, or "docstrings".
        kind: kind of model.
        path: the file; `None` if there is none.
        metric: name of the main metric.
        texts: columns of equal length: texts, or for tokens the words of each row; empty for spans.
        truth: for each row a score, 0 or 1, a class id, a number, 0 or 1 for each label, or tag ids; `None` for
            retrieval; the questions for spans.
        labels: the model's labels in the order of their ids, for classes and tags.
        columns: columns of the file that the texts were read from.
    """

    name: str
    kind: str
    path: Path | None
    metric: str
    texts: tuple[list[Any], ...]
    truth: Any = None
    labels: tuple[str, ...] = ()
    columns: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """A line for the user that describes what was read."""
        texts = f"text in {' and '.join(map(repr, self.columns))}, " if self.columns else ""
        num_rows = len(self.texts[0]) if self.texts else len(self.truth.questions)
        return f"{self.title}: {texts}{counted(num_rows, 'row')}, scored by {self.metric}"

    @property
    def sha256(self) -> str:
        """A hash of the file or, if there is none, of the texts."""
        texts = json.dumps(self.texts).encode()
        return sha256(texts).hexdigest() if self.path is None else file_sha256(self.path)

    @property
    def title(self) -> str:
        """The name of the task and that of the file."""
        return self.name if self.path is None else f"{self.name} ({self.path.name})"


# ---- Reading ----


def read_task(
    name: str,
    path: str | Path,
    kind: str,
    *,
    id2label: Mapping[int, str] | None = None,
    problem_type: str | None = None,
) -> Task:
    """Returns the task of a file, with every row checked.

    Args:
        name: one of `TASKS`, for this kind of model.
        path: the file; see the module.
        kind: "sentence", "sequence", "token", "span" or "masked_lm".
        id2label: the model's labels by id; a file may give them by name, in any case, or by number.
        problem_type: the problem of a sequence model, as in its configuration; `None` means regression for a model
            with one label, and one class per row for any other.

    Raises:
        ValueError: the kind of model has no such task, or the file is invalid; the message gives the line.
    """
    name = _known_name(name, kind)
    path = Path(path).expanduser()
    if kind == "span":
        squad = load_squad(_existing(path), version_2=True)
        return Task(name, kind, path, "f1", (), squad)
    table = read_table(path)
    if kind == "sentence":
        read = {"pairs": _read_pairs, "retrieval": _read_retrieval}.get(name, _read_similarity)
        return read(name, table)
    labels = tuple((id2label or {})[number] for number in sorted(id2label or {}))
    if not labels:
        raise ValueError(
            f"the {kind} model has no id2label, so the labels of {path} are unknown; name its labels there"
        )
    if kind == "token":
        return _read_tags(name, table, labels)
    return _read_labels(name, table, labels, problem_type)


def _known_name(name: str, kind: str) -> str:
    if kind == "masked_lm":
        raise ValueError(
            f"--eval {name}: a masked language model is scored on the words that it predicts in held-out sentences of "
            f"--text; remove --eval"
        )
    if kind not in TASKS:
        raise ValueError(f"unknown kind of model {kind!r}; choose among {', '.join(TASKS)}, masked_lm")
    key = name.lower().replace("-", "").replace("_", "")
    if key not in TASKS[kind]:
        near = get_close_matches(key, TASKS[kind], 1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        known = [*TASKS[kind], *(["docstrings (without a file)"] if kind == "sentence" else [])]
        raise ValueError(f"--eval {name}: a {kind} model has no such task; {hint}choose among {', '.join(known)}")
    return key


def _existing(path: Path) -> Path:
    # `load_squad` would look it up on the Hub.
    if not path.is_file():
        raise ValueError(f"there is no file {path}; check the path")
    return path


def _column(table: Table, names: Sequence[str]) -> str:
    """Returns the first of the names that is a column of the table."""
    found = [name for name in names if name in table.columns]
    if not found:
        require_columns(table, names[:1])
    return found[0]


def _texts(table: Table, names: Sequence[str]) -> tuple[list[str], ...]:
    require_columns(table, names)
    return tuple([text_of(row, name) for row in table.rows] for name in names)


def _read_similarity(name: str, table: Table) -> Task:
    texts = _texts(table, _SENTENCES)
    column = _column(table, ("score", "label"))
    scores = np.array([label_of(row, column, REGRESSION, {}) for row in table.rows])
    if np.ptp(scores) == 0:
        raise ValueError(f"{table.path}: column {column!r} holds only {scores[0]:g}; a ranking needs different scores")
    return Task(name, "sentence", table.path, "spearman", texts, scores, columns=_SENTENCES)


def _read_pairs(name: str, table: Table) -> Task:
    texts = _texts(table, _SENTENCES)
    column = _column(table, ("label", "score"))
    labels = np.array([label_of(row, column, SINGLE_LABEL, _TOGETHER) for row in table.rows])
    if np.ptp(labels) == 0:
        raise ValueError(f"{table.path}: column {column!r} holds only {labels[0]}; give pairs of both labels, 0 and 1")
    return Task(name, "sentence", table.path, "average_precision", texts, labels, columns=_SENTENCES)


def _read_retrieval(name: str, table: Table) -> Task:
    texts = _texts(table, ("query", "document"))
    if len(set(texts[1])) < 2:
        raise ValueError(f"{table.path} holds only one document; give at least two to choose from")
    return Task(name, "sentence", table.path, "accuracy@1", texts, columns=("query", "document"))


def _read_labels(name: str, table: Table, labels: tuple[str, ...], problem_type: str | None) -> Task:
    problem_type = problem_type or (REGRESSION if len(labels) == 1 else SINGLE_LABEL)
    if problem_type not in PROBLEM_TYPES or problem_type == TOKENS:
        raise ValueError(
            f"problem_type {problem_type!r} is not one for sequences; choose among {', '.join(PROBLEM_TYPES[:3])}"
        )
    column = _column(table, ("label", "labels", "score"))
    columns = _text_columns(table, column)
    texts = _texts(table, columns)
    ids = {label: number for number, label in enumerate(labels)}
    ids = ids if problem_type == MULTI_LABEL else _spelled(labels)
    truth = np.array([label_of(row, column, problem_type, ids) for row in table.rows])
    metric = {REGRESSION: "spearman", MULTI_LABEL: "micro_f1"}.get(problem_type, "accuracy")
    return Task(name, "sequence", table.path, metric, texts, truth, labels, columns)


def _text_columns(table: Table, label_column: str) -> tuple[str, ...]:
    """Returns "text" and "text_pair" if they exist, or else the one or two columns that hold text."""
    if "text" in table.columns:
        return ("text", "text_pair") if "text_pair" in table.columns else ("text",)
    return find_text_columns(table, None, label_column, "by calling them 'text' and 'text_pair'")[0]


def _spelled(labels: Sequence[str]) -> dict[str, int]:
    """Returns the ids of labels by their names, also in other cases, and by number unless labels are numbers.

    Labels that differ only in their case are matched only exactly.
    """
    ids = {label: number for number, label in enumerate(labels)}
    if not any(re.fullmatch(r"[+-]?\d+", label) for label in labels):
        ids |= {str(number): number for number in range(len(labels))}
    if len({label.lower() for label in labels}) == len(labels):
        for number, label in enumerate(labels):
            for spelling in (label.lower(), label.upper(), label.capitalize()):
                ids.setdefault(spelling, number)
    return ids


def _read_tags(name: str, table: Table, labels: tuple[str, ...]) -> Task:
    column = _column(table, _TOKEN_LABELS)
    names = tuple(name for name in table.columns if name in ("tokens", "words"))
    texts = names[:1] or find_text_columns(table, None, column, "by calling it 'tokens'")[0]
    if len(texts) > 1:
        raise ValueError(
            f"{table.path}: {', '.join(texts)} hold text next to {column!r}; name the column of the words 'tokens'"
        )
    ids = _spelled(labels)
    words, tags = [], []
    for row in table.rows:
        words.append(words_of(row, texts[0]))
        tags.append(np.array(label_of(_with_text_tags(row, column), column, TOKENS, ids)))
        if len(words[-1]) != len(tags[-1]):
            raise ValueError(f"{row.where}: {len(words[-1])} words but {len(tags[-1])} tags; give one tag per word")
    are_bio = all(label == "O" or label.startswith(("B-", "I-")) for label in labels)
    return Task(name, "token", table.path, "entity_f1" if are_bio else "accuracy", (words,), tags, labels, texts)


def _with_text_tags(row: Row, column: str) -> Row:
    """Returns a row whose tags are text, since data sets on the Hub give them as numbers."""
    cell = row.cells[column]
    return Row(row.where, {**row.cells, column: [str(tag) for tag in cell]}) if isinstance(cell, list) else row


# ---- Scoring ----


def score_task(task: Task, predict: Callable[..., Any]) -> TaskScore:
    """Returns the score of a model on a task.

    Args:
        task: the task.
        predict: the model, by its kind:

            - "sentence": takes a list of n different texts, and returns (n, width) embeddings;
            - "sequence": takes a list of n texts and a list of their second texts or `None`, and returns (n, labels)
              logits, for regression also (n,);
            - "token": takes a list of n lists of words and returns n sequences of tag ids, one per word; words beyond
              the model's length may be missing at the end, and are not scored;
            - "span": takes `SquadData` and returns the answer to each question by id, "" for no answer.

    Raises:
        ValueError: the model's output has another shape, or is not finite.
    """
    if task.kind == "sentence":
        scores = _sentence_scores(task, predict)
    elif task.kind == "sequence":
        scores = _sequence_scores(task, predict(*task.texts) if len(task.texts) == 2 else predict(*task.texts, None))
    elif task.kind == "token":
        return _token_score(task, predict(*task.texts))
    else:
        return _span_score(task, predict(task.truth))
    return _score(task, scores, len(task.texts[0]))


def _score(task: Task, scores: Mapping[str, float], num_examples: int) -> TaskScore:
    """Returns scores in percent; one of them is the task's metric."""
    percent = {name: 100 * value for name, value in scores.items()}
    value = percent.pop(task.metric)
    return TaskScore(task.title, task.metric, value, num_examples, tuple(percent.items()))


def _sentence_scores(task: Task, encode: Callable[[list[str]], np.ndarray]) -> dict[str, float]:
    # Texts that occur several times are encoded once.
    places: dict[str, int] = {}
    of_columns = [[places.setdefault(text, len(places)) for text in column] for column in task.texts]
    embeddings = _checked(task, encode(list(places)), len(places)).astype(np.float64)
    if embeddings.ndim != 2:
        raise ValueError(f"{task.title}: embeddings of shape {embeddings.shape}; give one row per text")
    norms = np.linalg.norm(embeddings, axis=1, keepdims=True)
    # A row of zeros has cosine 0 to all others.
    embeddings /= np.where(norms > 0, norms, 1)
    if task.metric == "accuracy@1":
        return _retrieval_scores(embeddings, np.array(of_columns[0]), np.array(of_columns[1]))
    cosines = (embeddings[of_columns[0]] * embeddings[of_columns[1]]).sum(axis=1).round(_DECIMALS)
    if task.metric == "average_precision":
        return {task.metric: float(average_precision_score(task.truth, cosines))}
    return {
        task.metric: spearman_correlation(cosines, task.truth),
        "pearson": pearson_correlation(cosines, task.truth),
    }


def _retrieval_scores(embeddings: np.ndarray, queries: np.ndarray, documents: np.ndarray) -> dict[str, float]:
    """Returns how the documents of queries rank among all different documents, by cosine.

    Equal cosines count against a query, so a model for which all texts are alike finds nothing. If a query comes with
    several documents, the others are removed from the ranking of each one.

    Args:
        embeddings: (num_texts, width), each of length 1.
        queries: (num_rows,), the index of each row's query in the texts.
        documents: (num_rows,), the index of the document that belongs to it.
    """
    candidates = np.unique(documents)
    right = np.searchsorted(candidates, documents)
    of_query: dict[int, set[int]] = {}
    for query, document in zip(queries.tolist(), right.tolist(), strict=True):
        of_query.setdefault(query, set()).add(document)
    ranks = np.empty(len(queries), dtype=np.int64)
    for start in range(0, len(queries), _RANKED_TOGETHER):
        rows = np.arange(start, min(start + _RANKED_TOGETHER, len(queries)))
        cosines = (embeddings[queries[rows]] @ embeddings[candidates].T).round(_DECIMALS)
        own = cosines[np.arange(len(rows)), right[rows]]
        for place, query in enumerate(queries[rows].tolist()):
            cosines[place, sorted(of_query[query])] = -np.inf
        ranks[rows] = 1 + (cosines >= own[:, None]).sum(axis=1)
    return {"accuracy@1": float((ranks == 1).mean()), "mrr@10": float(np.where(ranks <= 10, 1 / ranks, 0).mean())}


def _checked(task: Task, outputs: Any, num_rows: int) -> np.ndarray:
    outputs = np.asarray(outputs)
    if not outputs.ndim or len(outputs) != num_rows:
        raise ValueError(f"{task.title}: outputs of shape {outputs.shape} for {num_rows} rows; give one per row")
    num_bad = int((~np.isfinite(outputs)).sum())
    if num_bad:
        raise ValueError(f"{task.title}: {num_bad} of {outputs.size} outputs are not finite; the model is damaged")
    return outputs


def _sequence_scores(task: Task, outputs: Any) -> dict[str, float]:
    logits = _checked(task, outputs, len(task.truth))
    if task.metric == "spearman":
        numbers = logits.reshape(len(logits), -1)
        if numbers.shape[1] != 1:
            raise ValueError(f"{task.title}: outputs of shape {logits.shape}; regression needs one number per row")
        return {
            "spearman": spearman_correlation(numbers[:, 0], task.truth),
            "pearson": pearson_correlation(numbers[:, 0], task.truth),
        }
    if logits.shape != (len(task.truth), len(task.labels)):
        raise ValueError(
            f"{task.title}: logits of shape {logits.shape}; give one per label, {len(task.labels)} in each row"
        )
    if task.metric == "micro_f1":
        predicted = (logits > 0).astype(np.int64)
        return {average: f1(predicted, task.truth, average[:5]) for average in ("micro_f1", "macro_f1")}
    predicted = logits.argmax(axis=1)
    average = "binary" if len(task.labels) == 2 else "macro"
    name = "f1" if average == "binary" else "macro_f1"
    return {"accuracy": accuracy(predicted, task.truth), name: f1(predicted, task.truth, average)}


def _token_score(task: Task, outputs: Sequence[Sequence[int]]) -> TaskScore:
    if len(outputs) != len(task.truth):
        raise ValueError(f"{task.title}: tags of {len(outputs)} rows for {len(task.truth)}; give tags for each row")
    predicted, references = [], []
    for number, (ids, true) in enumerate(zip(outputs, task.truth, strict=True)):
        if len(ids) > len(true):
            raise ValueError(
                f"{task.title}: {len(ids)} tags for the {len(true)} words of row {number + 1}; give one per word"
            )
        predicted.append([task.labels[tag] for tag in ids])
        references.append([task.labels[tag] for tag in true[: len(ids)]])
    scores = {"accuracy": token_accuracy(predicted, references)}
    if task.metric == "entity_f1":
        scores["entity_f1"] = entity_f1(predicted, references)
    return _score(task, scores, sum(map(len, references)))


def _span_score(task: Task, answers: Mapping[str, str]) -> TaskScore:
    squad: SquadData = task.truth
    if squad.fingerprint["unanswerable"]:
        metrics = squad_v2_metrics(answers, squad.references)
        metrics["exact_match"] = metrics["exact"]
    else:
        metrics = squad_v1_metrics(answers, squad.references)
    further = (("exact_match", metrics["exact_match"]),)
    return TaskScore(task.title, task.metric, metrics["f1"], len(squad.questions), further)


# ---- Retrieval without a file ----

_PAIRS_OF_A_FILE = 3
_MOST_SENTENCES = 8


def docstring_retrieval(num_pairs: int = 1000, seed: int = 0, packages: Sequence[str] | None = None) -> Task:
    """Returns a retrieval task of docstrings: their first sentence is the query, the rest is the document.

    Only English sentences are used, as in `docstring_documents`, two to eight of them in a document. At most three
    docstrings are taken from a file; no sentence begins two documents, and no query comes twice. The files are read in
    random order until there are enough pairs, so the seed and the installed versions determine which pairs these are.

    Args:
        num_pairs: number of pairs, at least two.
        seed: seed of the order.
        packages: as in `docstring_documents`.

    Raises:
        ValueError: a package is not installed, or the packages do not have that many such docstrings.
    """
    if num_pairs < 2:
        raise ValueError(f"num_pairs is {num_pairs}; it must be at least 2")
    files = [path for package in docstring_versions(packages) for path in source_files(package)]
    random.Random(seed).shuffle(files)
    pairs: dict[str, str] = {}
    beginnings: set[str] = set()
    for path in files:
        num_found = 0
        for query, *body in _english_docstrings(path):
            if len(body) < 2 or query in pairs or body[0] in beginnings:
                continue
            num_found += 1
            beginnings.add(body[0])
            pairs[query] = " ".join(body[:_MOST_SENTENCES])
            if len(pairs) == num_pairs:
                return Task("docstrings", "sentence", None, "accuracy@1", (list(pairs), list(pairs.values())))
            if num_found == _PAIRS_OF_A_FILE:
                break
    raise ValueError(
        f"found {len(pairs)} of {num_pairs} pairs in the docstrings of {len(files)} files; ask for fewer or name "
        f"packages with more text"
    )


def _english_docstrings(path: Path) -> Iterator[list[str]]:
    """Yields the different English sentences of each docstring of a file that begins with one."""
    for docstring in triple_quoted(path):
        sentences = [text for paragraph in docstring_sentences(docstring) for text in paragraph if text]
        if sentences and reads_as_english(sentences[0]):
            yield list(dict.fromkeys(filter(reads_as_english, sentences)))
