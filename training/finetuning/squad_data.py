"""SQuAD 1.1 and 2.0: from files of questions to windows of tokens.

1. `load_squad`: reads a file in the official layout, or a data set on the Hub, and reports every error in it.
2. `make_windows`: cuts question and context into overlapping windows, with the answer's first and last token.

squad_answers.py turns the model's outputs into answers.
"""

import json
import logging
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from datasets import Dataset, Features, List, Value, load_dataset
from datasets.exceptions import DatasetsError
from transformers import PreTrainedTokenizerBase

from ..data.tokenizing import tokenizer_sha256
from ..files import cache_folder, make_output_folder, short_hash, write_json, written_at_once
from ..tables import first_line
from .task_files import lone_surrogate


logger = logging.getLogger(__name__)

LAYOUT = "the official layout is data > paragraphs > qas > answers > text, answer_start"
# Part of the cache key: raise it when the same questions give other windows.
_WINDOWS_VERSION = 2
# The label of a window without the answer: the class token, which comes first.
NO_ANSWER = 0

_WORDS = {dict: "an object", list: "a list", str: "a text", int: "a whole number", bool: "true or false"}


# ---- Reading ----


@dataclass(frozen=True)
class SquadData:
    """Questions with their contexts and correct answers.

    Attributes:
        questions: columns "id", "title", "question", "context" and "answers" (lists "text" and "answer_start", both
            empty if there is no answer), as in the Hub's data sets.
        fingerprint: JSON: the source, the SHA-256 of all that matters, the numbers of articles, questions and
            questions without an answer, the number of realigned answers, and for a file of `split_by_article` its
            origin.
    """

    questions: Dataset
    fingerprint: dict[str, Any]

    @cached_property
    def references(self) -> dict[str, list[str]]:
        """The texts of the correct answers for each question id; empty if there is no answer."""
        columns = self.questions.select_columns(["id", "answers"])[:]
        return {name: list(answers["text"]) for name, answers in zip(columns["id"], columns["answers"], strict=True)}


class _Question(NamedTuple):
    where: str
    row: dict[str, Any]


_ROW = Features(
    {
        **{name: Value("string") for name in ("id", "title", "question", "context")},
        "answers": {"text": List(Value("string")), "answer_start": List(Value("int32"))},
    }
)


def load_squad(source: str | Path, split: str = "validation", version_2: bool = False) -> SquadData:
    """Returns the questions of a file in the official layout, or of a data set on the Hub such as rajpurkar/squad.

    An article without a title is named by its number, and an id that is a number is converted to text, since
    annotation tools write them so. An answer that is not at its `answer_start` is moved to where it is, if it occurs
    exactly once in the context; the number of moved answers is logged and recorded in the fingerprint.

    Args:
        source: a JSON file or the name of a data set.
        split: name of the split of a data set.
        version_2: whether questions without an answer are allowed, as in SQuAD 2.0.

    Raises:
        ValueError: there is no such source; the file is not UTF-8, not JSON, contains half of a character or has
            another layout; an id occurs twice, an answer is not in its context, or a question has none and `version_2`
            is not set. The message names file, article and question.
    """
    path = Path(source).expanduser()
    if path.is_file():
        content = _read_json(path)
        found = list(_questions_of_file(path, content))
        facts = {"source": str(source), "split_by_article": content.get("split_by_article")}
    else:
        found = list(_questions_of_data_set(source, path, split))
        facts = {"source": str(source), "split": split}
    if not found:
        raise ValueError(f"{source} holds no questions; {LAYOUT}")
    num_realigned = _check_questions(found, version_2)
    if num_realigned:
        logger.warning(f"{source}: {num_realigned} answers were not at their answer_start; realigned")
    rows = [question.row for question in found]
    digest = sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True).encode() + b"\n")
    facts |= {
        "sha256": digest.hexdigest(),
        "articles": len({row["title"] for row in rows}),
        "questions": len(rows),
        "unanswerable": sum(not row["answers"]["text"] for row in rows),
        "realigned": num_realigned,
    }
    return SquadData(Dataset.from_list(rows, features=_ROW), facts)


def _read_json(path: Path) -> dict[str, Any]:
    raw = path.read_bytes()
    if not raw.strip():
        raise ValueError(f"{path} is empty; {LAYOUT}")
    try:
        text = raw.decode("utf-8-sig")
        content = json.loads(text)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path} is not UTF-8 (line {line}, byte {error.start}: {error.reason}); convert it, for example with "
            f"iconv -f latin1 -t utf-8"
        ) from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg})") from None
    if (found := lone_surrogate(text)) is not None:
        line = text.count("\n", 0, found) + 1
        raise ValueError(
            f"{path}, line {line}: {text[found : found + 6]} after {text[max(0, found - 30) : found]!r} is half of a "
            f"character; correct or delete it"
        )
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds {type(content).__name__} at its top, not an object; {LAYOUT}")
    return content


def _field(value: Any, key: str, kind: type, where: str) -> Any:
    """Returns `value[key]`; raises a ValueError if it is missing or of another kind."""
    if not isinstance(value, dict):
        raise ValueError(f"{where} is {value!r:.40}, not an object; {LAYOUT}")
    if key not in value:
        raise ValueError(f"{where} has no {key!r}; {LAYOUT}")
    if not isinstance(value[key], kind) or (kind is int and isinstance(value[key], bool)):
        raise ValueError(f"{where}: {key!r} is {value[key]!r:.40}; it must be {_WORDS[kind]}")
    return value[key]


def _questions_of_file(path: Path, content: dict[str, Any]) -> Iterator[_Question]:
    for number, article in enumerate(_field(content, "data", list, str(path)), 1):
        place = f"{path}: article {number}"
        title = _title_of(article, number, place)
        place = f"{path}: article {title!r}"
        for position, paragraph in enumerate(_field(article, "paragraphs", list, place), 1):
            there = f"{place}, paragraph {position}"
            context = _field(paragraph, "context", str, there)
            for item in _field(paragraph, "qas", list, there):
                name = _id_of(item, f"{there}, a question")
                yield _question_of_file({**item, "id": name}, title, context, f"{place}, question {name!r}")


def _title_of(article: Any, number: int, where: str) -> str:
    if isinstance(article, dict) and article.get("title") is None:
        return f"untitled {number}"
    return _field(article, "title", str, where)


def _id_of(item: Any, where: str) -> str:
    if isinstance(item, dict) and type(item.get("id")) is int:
        return str(item["id"])
    return _field(item, "id", str, where)


def _question_of_file(item: dict[str, Any], title: str, context: str, where: str) -> _Question:
    answers = _field(item, "answers", list, where)
    if answers and _field({"is_impossible": False, **item}, "is_impossible", bool, where):
        raise ValueError(f"{where} is_impossible but has answers; remove one or the other")
    texts = [_field(answer, "text", str, f"{where}, an answer") for answer in answers]
    starts = [_field(answer, "answer_start", int, f"{where}, answer {answer['text']!r:.60}") for answer in answers]
    row = {"id": item["id"], "title": title, "question": _field(item, "question", str, where), "context": context}
    return _Question(where, {**row, "answers": {"text": texts, "answer_start": starts}})


def _questions_of_data_set(source: str | Path, path: Path, split: str) -> Iterator[_Question]:
    looks_like_path = isinstance(source, Path) or source.startswith((".", "/", "~")) or source.count("/") > 1
    if looks_like_path or path.suffix == ".json":
        raise ValueError(f"there is no file {str(path)!r}; check the path, or give a data set such as rajpurkar/squad")
    try:
        rows = load_dataset(str(source), split=split)
    except (DatasetsError, OSError, ValueError) as error:
        reason = first_line(error.__cause__ or error)
        raise ValueError(f"cannot read data set {source!r} ({reason}); check its name, or give a file") from error
    if missing := [name for name in _ROW if name not in rows.column_names]:
        raise ValueError(f"{source!r} has no column {', '.join(missing)}; SQuAD has {', '.join(_ROW)}")
    for row in rows.select_columns(list(_ROW)):
        where = f"{source} ({split}): article {row['title']!r}, question {row['id']!r}"
        answers = {name: list(row["answers"][name]) for name in ("text", "answer_start")}
        yield _Question(where, {**row, "answers": answers})


def _check_questions(questions: Iterable[_Question], version_2: bool) -> int:
    """Realigns answers and returns how many; raises a ValueError that names the first invalid question."""
    ids: set[str] = set()
    lost: list[str] = []
    num_realigned = 0
    for where, row in questions:
        if row["id"] in ids:
            raise ValueError(f"{where} occurs twice; give each question its own id")
        ids.add(row["id"])
        if not row["context"].strip():
            raise ValueError(f"{where} has an empty context; fill it, or delete the question")
        answers = row["answers"]
        if not answers["text"] and not version_2:
            raise ValueError(f"{where} has no answer, which only SQuAD 2.0 allows; set version_2")
        for number, (text, start) in enumerate(zip(answers["text"], answers["answer_start"], strict=True)):
            if not text.strip():
                raise ValueError(f"{where} has an empty answer; use an empty list for a question without an answer")
            if start >= 0 and row["context"].startswith(text, start):
                continue
            found = row["context"].find(text)
            if found < 0 or row["context"].find(text, found + 1) >= 0:
                times = "does not occur" if found < 0 else "occurs several times, but elsewhere,"
                lost.append(f"{where}: answer {text!r:.60} {times} in the context, answer_start is {start}")
                continue
            answers["answer_start"][number] = found
            num_realigned += 1
    if lost:
        more = f" ({len(lost)} such answers in all)" if len(lost) > 1 else ""
        raise ValueError(f"{lost[0]}{more}; correct the text or its answer_start")
    return num_realigned


# ---- One file as train and test ----


def split_by_article(
    source: str | Path, output_dir: str | Path, test_fraction: float = 0.2, seed: int = 0
) -> tuple[Path, Path]:
    """Writes the articles of one file as train.json and test.json, and returns their paths.

    This is for users with only one file, such as the development set. Articles are drawn, never paragraphs, since
    questions on one article reveal answers to others. Both files record their origin, and so does every result made
    with them.

    Args:
        source: a file in the official layout; articles are distinguished by their titles.
        output_dir: the folder to write to.
        test_fraction: share of the articles for the test file, which gets at least one.
        seed: seed of the draw.

    Raises:
        ValueError: the file is invalid (see `load_squad`), has fewer than two articles, or one of the files exists.
    """
    source, output_dir = Path(source), Path(output_dir)
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction is {test_fraction}; it must be between 0 and 1")
    whole = load_squad(source, version_2=True)
    content = _read_json(source)
    title_of = [_title_of(article, number, str(source)) for number, article in enumerate(content["data"], 1)]
    titles = list(dict.fromkeys(title_of))
    if len(titles) < 2:
        raise ValueError(f"{source} holds one article; at least two are needed, one for each file")
    num_test = min(max(1, round(test_fraction * len(titles))), len(titles) - 1)
    held_out = set(random.Random(seed).sample(titles, num_test))
    paths = output_dir / "train.json", output_dir / "test.json"
    for path in paths:
        if path.exists():
            raise ValueError(f"{path} exists; use another folder")
    make_output_folder(output_dir)
    for path, part in zip(paths, ("train", "test"), strict=True):
        chosen = [number for number, title in enumerate(title_of) if (title in held_out) == (part == "test")]
        # Both files keep the titles of the original.
        articles = [{**content["data"][number], "title": title_of[number]} for number in chosen]
        facts = {
            "part": part,
            "source": source.name,
            "sha256": whole.fingerprint["sha256"],
            "articles": len({article["title"] for article in articles}),
            "of_articles": len(titles),
            "test_fraction": test_fraction,
            "seed": seed,
        }
        write_json(path, {"version": content.get("version"), "split_by_article": facts, "data": articles})
    return paths


# ---- Windows ----


@dataclass(frozen=True)
class SquadWindows:
    """Questions and contexts in the form that a model takes.

    Attributes:
        rows: one per window, those of a question one after the other: `input_ids`, `token_type_ids` if the tokenizer
            has them, `start_positions` and `end_positions` (0, the class token, if the answer is not entirely in the
            window), `length`, "question" (its number), "context_start" (the first token of the context), and the first
            and last + 1 characters of the tokens of the context, "first_characters" and "end_characters".
        facts: JSON: numbers of windows, of truncated questions, and of answers that no window contains.
    """

    rows: Dataset
    facts: dict[str, int]


def make_windows(
    data: SquadData,
    tokenizer: PreTrainedTokenizerBase,
    *,
    max_seq_length: int = 384,
    doc_stride: int = 128,
    max_query_length: int = 64,
    cache_dir: str | Path | None = None,
) -> SquadWindows:
    """Returns the questions and contexts as windows, from disk if the same questions were cut before.

    Args:
        data: the questions.
        tokenizer: a fast tokenizer that puts the class token first.
        max_seq_length: tokens of a window, including those of the question and special ones.
        doc_stride: tokens that neighbouring windows share.
        max_query_length: tokens after which a question is truncated, as in BERT; fewer if the window would otherwise
            have no room for `doc_stride` and one more token of the context.
        cache_dir: `None` takes $MAGIC_CACHE, or else ~/.cache/magic-nas.

    Raises:
        ValueError: the tokenizer cannot be used, or the lengths leave no room.
    """
    room = check_lengths(tokenizer, max_seq_length, doc_stride, max_query_length)
    lengths = (max_seq_length, doc_stride, room)
    versions = [version(name) for name in ("tokenizers", "transformers")]
    key = short_hash(_WINDOWS_VERSION, data.fingerprint["sha256"], tokenizer_sha256(tokenizer), lengths, versions)
    folder = cache_folder(cache_dir) / f"squad-{key}"
    if not folder.is_dir():
        with written_at_once(folder) as temporary:
            temporary.mkdir()
            _write_windows(data, tokenizer, lengths, temporary)
    facts = json.loads((folder / "facts.json").read_text(encoding="utf-8"))
    if facts["answers_in_no_window"]:
        logger.warning(
            f"{data.fingerprint['source']}: {facts['answers_in_no_window']} answers are not entirely in any window of "
            f"{max_seq_length} tokens and cannot be learned; a larger doc_stride helps"
        )
    return SquadWindows(Dataset.from_file(str(folder / "windows.arrow")), facts)


def check_lengths(
    tokenizer: PreTrainedTokenizerBase, max_seq_length: int, doc_stride: int, max_query_length: int
) -> int:
    """Returns the largest number of tokens of a question (see `make_windows`).

    Raises:
        ValueError: the tokenizer cannot be used, or the lengths leave no room.
    """
    kind = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise ValueError(f"{kind} does not return the positions of tokens in the text; use a fast tokenizer")
    if tokenizer.cls_token_id is None or tokenizer("a", "b")["input_ids"][0] != tokenizer.cls_token_id:
        raise ValueError(
            f"{kind} does not put a class token first, which stands for no answer; use a tokenizer like BERT's"
        )
    if tokenizer.padding_side != "right" or tokenizer.truncation_side != "right":
        raise ValueError(f"{kind} pads or truncates on the left; set padding_side and truncation_side to 'right'")
    for name, value, least in (
        ("max_seq_length", max_seq_length, 1),
        ("doc_stride", doc_stride, 0),
        ("max_query_length", max_query_length, 1),
    ):
        if value < least:
            raise ValueError(f"{name} is {value}; it must be at least {least}")
    num_special = tokenizer.num_special_tokens_to_add(pair=True)
    room = max_seq_length - num_special - doc_stride - 1
    if room < 1:
        raise ValueError(
            f"doc_stride {doc_stride} leaves no room for a question in max_seq_length {max_seq_length}, of which "
            f"{num_special} are special tokens; use a smaller doc_stride or a larger max_seq_length"
        )
    return min(max_query_length, room)


def _write_windows(
    data: SquadData, tokenizer: PreTrainedTokenizerBase, lengths: tuple[int, int, int], folder: Path
) -> None:
    numbers = List(Value("int32"))
    columns = ("start_positions", "end_positions", "length", "question", "context_start")
    types = {"token_type_ids": List(Value("int8"))} if "token_type_ids" in tokenizer.model_input_names else {}
    features = Features(
        {
            "input_ids": numbers,
            **types,
            **{name: Value("int32") for name in columns},
            "first_characters": numbers,
            "end_characters": numbers,
            "question_is_cut": Value("bool"),
        }
    )
    windows = data.questions.map(
        _windows_of,
        batched=True,
        batch_size=200,
        with_indices=True,
        remove_columns=data.questions.column_names,
        features=features,
        fn_kwargs={"tokenizer": tokenizer, "lengths": lengths},
        cache_file_name=str(folder / "windows.arrow"),
        desc="Cutting windows",
    )
    facts = windows.select_columns(["question", "start_positions", "question_is_cut"]).with_format("numpy")[:]
    found, cut = np.zeros(len(data.questions), dtype=bool), np.zeros(len(data.questions), dtype=bool)
    found[facts["question"][facts["start_positions"] != NO_ANSWER]] = True
    cut[facts["question"]] = facts["question_is_cut"]
    counts = {
        "windows": len(windows),
        "questions_cut": int(cut.sum()),
        "answers_in_no_window": int((~found).sum()) - data.fingerprint["unanswerable"],
    }
    write_json(folder / "facts.json", counts)


def _windows_of(
    batch: dict[str, list[Any]], indices: list[int], tokenizer: PreTrainedTokenizerBase, lengths: tuple[int, int, int]
) -> dict[str, list[Any]]:
    """Returns the columns of the windows of some questions."""
    max_seq_length, doc_stride, room = lengths
    questions = [question.strip() for question in batch["question"]]
    shortened = _shorten(questions, tokenizer, room)
    encoded = tokenizer(
        shortened,
        batch["context"],
        truncation="only_second",
        max_length=max_seq_length,
        stride=doc_stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    columns: dict[str, list[Any]] = {
        name: encoded[name] for name in ("input_ids", "token_type_ids") if name in encoded
    }
    further: list[dict[str, Any]] = []
    for window, question in enumerate(encoded["overflow_to_sample_mapping"]):
        sides = encoded.sequence_ids(window)
        # The special tokens belong to neither side.
        first = sides.index(1) if 1 in sides else len(sides)
        offsets = np.array(encoded["offset_mapping"][window], dtype=np.int32)[first : first + sides.count(1)]
        offsets = offsets.reshape(-1, 2)
        answers = batch["answers"][question]
        start, end = NO_ANSWER, NO_ANSWER
        if answers["text"]:
            # No token includes the white space at either end of a context.
            text, character = answers["text"][0], answers["answer_start"][0]
            character += len(text) - len(text.lstrip())
            start, end = _token_span(offsets, first, character, character + len(text.strip()))
        further.append(
            {
                "start_positions": start,
                "end_positions": end,
                "length": len(sides),
                "question": indices[question],
                "context_start": first,
                "first_characters": offsets[:, 0],
                "end_characters": offsets[:, 1],
                "question_is_cut": shortened[question] != questions[question],
            }
        )
    return {**columns, **{name: [row[name] for row in further] for name in further[0]}}


def _shorten(questions: Sequence[str], tokenizer: PreTrainedTokenizerBase, limit: int) -> list[str]:
    """Returns the questions, truncated to at most `limit` tokens."""
    encoded = tokenizer(list(questions), add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    shortened = []
    for question, offsets in zip(questions, encoded["offset_mapping"], strict=True):
        # The rest may give more tokens than it was cut to, and one character may give several that end where it does.
        while len(offsets) > limit:
            question = question[: min(offsets[limit - 1][1], len(question) - 1)]
            offsets = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
        shortened.append(question)
    return shortened


def _token_span(offsets: np.ndarray, first: int, start: int, end: int) -> tuple[int, int]:
    """Returns the first and last token of the characters from `start` to `end`, `NO_ANSWER` if some are outside."""
    if not len(offsets) or start < offsets[0, 0] or end > offsets[-1, 1]:
        return NO_ANSWER, NO_ANSWER
    first_token = int(np.searchsorted(offsets[:, 1], start, side="right"))
    last_token = int(np.searchsorted(offsets[:, 0], end, side="left")) - 1
    return (first + first_token, first + last_token) if first_token <= last_token else (NO_ANSWER, NO_ANSWER)
