"""SQuAD: files, windows, spans and the official measures, against hand-made cases, brute force and the real files."""

import json
import time
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import ByteLevelBPETokenizer
from transformers import BertTokenizer, RobertaTokenizer

import training.finetuning.squad_data
from training.data.text import train_tokenizer
from training.finetuning.squad_answers import find_answers, span_loss
from training.finetuning.squad_data import NO_ANSWER, SquadData, load_squad, make_windows, split_by_article
from training.finetuning.squad_metrics import (
    apply_threshold,
    best_threshold,
    exact_match,
    f1,
    normalize_answer,
    question_scores,
    squad_v1_metrics,
    squad_v2_metrics,
)


RIVER = "The Amazon is a river in South America. It is 6,400 km long, and the river carries the most water."
TOWER = "Built in 1889, the Eiffel Tower stands in Paris; the tower's height is 330 metres."


def question(name: str, text: str, context: str, *answers: str, **changes: Any) -> dict[str, Any]:
    found = [{"text": answer, "answer_start": context.index(answer)} for answer in answers]
    return {"id": name, "question": text, "answers": found, **changes}


def content_of(*paragraphs: tuple[str, str, list[dict[str, Any]]]) -> dict[str, Any]:
    """The official layout from (title, context, questions)."""
    articles: dict[str, list[Any]] = {}
    for title, context, questions in paragraphs:
        articles.setdefault(title, []).append({"context": context, "qas": questions})
    return {"version": "1.1", "data": [{"title": name, "paragraphs": items} for name, items in articles.items()]}


def river_questions() -> list[dict[str, Any]]:
    return [
        question("r1", "Where is the Amazon?", RIVER, "South America", "in South America"),
        question("r2", "How long is it?", RIVER, "6,400 km"),
    ]


def tower_questions() -> list[dict[str, Any]]:
    return [question("t1", "When was it built?", TOWER, "1889")]


def unanswerable(name: str = "n1") -> dict[str, Any]:
    return question(name, "Who built it?", TOWER, is_impossible=True)


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content), encoding="utf-8")
    return path


@pytest.fixture
def small_file(tmp_path) -> Path:
    return write(
        tmp_path / "small.json", content_of(("River", RIVER, river_questions()), ("Tower", TOWER, tower_questions()))
    )


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return train_tokenizer([RIVER, TOWER, "where when who how what was it built 7,777"] * 3, vocab_size=200)


def byte_level_tokenizer(folder: Path) -> RobertaTokenizer:
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator([RIVER, TOWER], vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>"])
    trained.save_model(str(folder))
    merges: Any = [tuple(line.split()) for line in (folder / "merges.txt").read_text().splitlines()[1:]]
    return RobertaTokenizer(vocab=json.loads((folder / "vocab.json").read_text()), merges=merges)


# ---- Measures ----


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("The  Eiffel\tTower!", "eiffel tower"),
        ("a cat, an owl and the dog", "cat owl and dog"),
        ("Theatre another ban", "theatre another ban"),
        ("U.S.A. (1,000)", "usa 1000"),
        ("the", ""),
        ("state-of-the-art", "stateoftheart"),
        ("the-cat", "thecat"),
        ("Ångström  “quoted”", "ångström “quoted”"),
    ],
)
def test_answers_are_normalised_as_the_official_script_does(text, normal):
    assert normalize_answer(text) == normal


@pytest.mark.parametrize(
    ("prediction", "reference", "exact", "overlap"),
    [
        ("The Eiffel Tower", "eiffel tower.", 1, 1),
        ("big red fox", "red fox jumps high", 0, 4 / 7),
        ("x x y", "x z", 0, 2 / 5),
        ("x x", "x x x", 0, 4 / 5),
        ("cat", "dog", 0, 0),
        ("", "", 1, 1),
        ("", "dog", 0, 0),
        ("the", "a", 1, 1),
        ("1,000", "1000", 1, 1),
    ],
)
def test_exact_match_and_f1_by_hand(prediction, reference, exact, overlap):
    assert exact_match(prediction, reference) == exact
    assert f1(prediction, reference) == pytest.approx(overlap)


def test_the_best_of_several_answers_counts():
    references = {"q": ["in Paris", "Paris, France", "the city of Paris"], "p": ["no"]}
    exact, overlap = question_scores({"q": "Paris", "p": "yes"}, references)
    assert exact == {"q": 0.0, "p": 0.0}
    assert overlap["q"] == pytest.approx(2 / 3)
    assert squad_v1_metrics({"q": "paris france", "p": "yes"}, references) == {"exact_match": 50.0, "f1": 50.0}


def test_a_question_without_an_answer_wants_silence():
    references: dict[str, list[str]] = {"none": [], "other": [], "some": ["Paris"], "articles": ["the", "of Paris"]}
    predictions = {"none": "", "other": "Rome", "some": "", "articles": "The"}
    metrics = squad_v2_metrics(predictions, references)
    # An answer of articles alone is left out, so that "The" meets "of Paris" only.
    assert (metrics["exact"], metrics["total"]) == (25.0, 4)
    assert (metrics["NoAns_exact"], metrics["NoAns_f1"], metrics["NoAns_total"]) == (50.0, 50.0, 2)
    assert (metrics["HasAns_exact"], metrics["HasAns_f1"], metrics["HasAns_total"]) == (0.0, 0.0, 2)
    assert "best_f1" not in metrics
    assert "NoAns_f1" not in squad_v2_metrics({"some": "Paris"}, {"some": ["Paris"]})


def test_the_best_threshold_by_hand():
    """Right, right, wrong answer to no question, half right: answering the first two is best for both measures."""
    references: dict[str, list[str]] = {"a": ["x"], "b": ["y"], "c": [], "d": ["one two"]}
    predictions = {"a": "x", "b": "y", "c": "z", "d": "one"}
    odds = {"a": -3.0, "b": -1.0, "c": 0.5, "d": 2.0}
    metrics = squad_v2_metrics(predictions, references, odds, threshold=5.0)
    assert (metrics["best_exact"], metrics["best_exact_thresh"]) == (75.0, -1.0)
    assert (metrics["best_f1"], metrics["best_f1_thresh"]) == (75.0, -1.0)
    assert metrics["exact"] == 50.0
    assert metrics["f1"] == pytest.approx(100 * (1 + 1 + 0 + 2 / 3) / 4)
    tuned = squad_v2_metrics(predictions, references, odds, threshold=None)
    assert (tuned["exact"], tuned["f1"]) == (75.0, 75.0)


def official_threshold(predictions, scores, odds, references) -> tuple[float, float]:
    """The loop of evaluate-v2.0, in its own words."""
    best = current = float(sum(not texts for texts in references.values()))
    at = 0.0
    for name in sorted(odds, key=lambda name: odds[name]):
        current += scores[name] if references[name] else (-1 if predictions[name] else 0)
        if current > best:
            best, at = current, odds[name]
    return 100 * best / len(scores), at


cases = st.lists(
    st.tuples(
        st.integers(-3, 3), st.sampled_from(["", "x", "y z"]), st.sampled_from([[], ["x"], ["y"], ["y z", "x"]])
    ),
    min_size=1,
    max_size=8,
)


@given(cases, st.booleans())
def test_the_best_threshold_is_the_best_of_all(drawn, distinct):
    names = [str(number) for number in range(len(drawn))]
    odds = {
        name: item[0] + (0.01 * number if distinct else 0.0)
        for number, (name, item) in enumerate(zip(names, drawn, strict=True))
    }
    predictions = {name: item[1] for name, item in zip(names, drawn, strict=True)}
    references = {name: item[2] for name, item in zip(names, drawn, strict=True)}
    metrics = squad_v2_metrics(predictions, references, odds)
    for key, index in (("exact", 0), ("f1", 1)):
        reached = []
        for threshold in [*odds.values(), -100.0]:
            answers = apply_threshold(predictions, odds, threshold)
            reached.append(sum(question_scores(answers, references, version_2=True)[index].values()))
        assert metrics[f"best_{key}"] == pytest.approx(100 * max(reached) / len(drawn))
        answers = apply_threshold(predictions, odds, metrics[f"best_{key}_thresh"])
        assert squad_v2_metrics(answers, references)[key] == pytest.approx(metrics[f"best_{key}"])
        if distinct:
            scores = question_scores(predictions, references, version_2=True)[index]
            best, at = official_threshold(predictions, scores, odds, references)
            ours = best_threshold(predictions, scores, odds, references)
            assert ours[0] == pytest.approx(best)
            assert ours[1] == at or (at == 0.0 and ours[1] < min(odds.values()))


@given(cases)
def test_a_threshold_scores_what_the_predictions_with_it_score(drawn):
    predictions = {str(number): item[1] for number, item in enumerate(drawn)}
    references = {str(number): item[2] for number, item in enumerate(drawn)}
    odds = {str(number): float(item[0]) for number, item in enumerate(drawn)}
    with_odds = squad_v2_metrics(predictions, references, odds, threshold=0.0)
    plain = squad_v2_metrics(apply_threshold(predictions, odds, 0.0), references)
    assert {name: value for name, value in with_odds.items() if "best" not in name} == pytest.approx(plain)


words = st.lists(st.sampled_from("cat dog The a fox, (red) 3.5 x".split()), max_size=6).map(" ".join)


@given(words, words)
def test_f1_is_symmetric_and_at_least_the_exact_match(one, other):
    assert f1(one, other) == f1(other, one)
    assert 0 <= exact_match(one, other) <= f1(one, other) <= 1
    assert exact_match(one, other) == exact_match(other, one)
    assert exact_match(one, one) == f1(one, one) == 1


@given(words, words, st.sampled_from(["a", "An", "THE"]), st.integers(0, 6))
def test_articles_case_and_punctuation_do_not_count(one, other, article, place):
    pieces = one.split()
    pieces.insert(place, article)
    changed = f"  {'  '.join(pieces).upper()} ?!"
    assert normalize_answer(changed) == normalize_answer(one)
    assert f1(changed, other) == f1(one, other)
    assert exact_match(changed, other) == exact_match(one, other)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: squad_v1_metrics({"a": "x"}, {"a": ["x"], "b": ["y"]}), "1 of 2 questions have no prediction.*'b'"),
        (lambda: squad_v1_metrics({"a": ""}, {"a": []}), "'a' has no right answer"),
        (lambda: squad_v1_metrics({}, {}), "no question to score"),
        (lambda: squad_v2_metrics({"a": ""}, {"a": []}, {}), "1 questions have no null odds, the first is 'a'"),
    ],
)
def test_what_cannot_be_scored_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- Reading ----


def test_a_file_in_the_official_layout_is_read(small_file):
    data = load_squad(small_file)
    assert data.questions["id"][:] == ["r1", "r2", "t1"]
    assert data.questions[0] == {
        "id": "r1",
        "title": "River",
        "question": "Where is the Amazon?",
        "context": RIVER,
        "answers": {"text": ["South America", "in South America"], "answer_start": [25, 22]},
    }
    assert data.references == {"r1": ["South America", "in South America"], "r2": ["6,400 km"], "t1": ["1889"]}
    facts = data.fingerprint
    assert (facts["articles"], facts["questions"], facts["unanswerable"], facts["realigned"]) == (2, 3, 0, 0)


def test_the_fingerprint_follows_what_counts(tmp_path, small_file):
    content = json.loads(small_file.read_text())
    content["version"] = "other"
    same = load_squad(write(tmp_path / "same.json", content)).fingerprint["sha256"]
    assert same == load_squad(small_file).fingerprint["sha256"]
    content["data"][0]["paragraphs"][0]["qas"][0]["question"] += "?"
    assert load_squad(write(tmp_path / "other.json", content)).fingerprint["sha256"] != same


def test_questions_without_an_answer_are_of_version_2(tmp_path):
    path = write(tmp_path / "v2.json", content_of(("Tower", TOWER, [*tower_questions(), unanswerable()])))
    data = load_squad(path, version_2=True)
    assert data.references == {"t1": ["1889"], "n1": []}
    assert data.fingerprint["unanswerable"] == 1
    with pytest.raises(ValueError, match=r"article 'Tower', question 'n1' has no answer.*set version_2"):
        load_squad(path)


def test_a_byte_order_mark_is_no_content(tmp_path, small_file):
    path = tmp_path / "bom.json"
    path.write_bytes(b"\xef\xbb\xbf" + small_file.read_bytes())
    assert len(load_squad(path).questions) == 3


def wrong_offset(text: str, start: int) -> dict[str, Any]:
    return content_of(
        ("River", RIVER, [{"id": "w", "question": "What?", "answers": [{"text": text, "answer_start": start}]}])
    )


@pytest.mark.parametrize("start", [0, -1, 24, 10_000])
def test_an_answer_that_stands_elsewhere_is_realigned_where_it_occurs_once(tmp_path, caplog, start):
    with caplog.at_level("WARNING"):
        data = load_squad(write(tmp_path / "wrong.json", wrong_offset("South America", start)))
    assert data.questions[0]["answers"]["answer_start"] == [25]
    assert data.fingerprint["realigned"] == 1
    assert "1 answers stood elsewhere than their answer_start says" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (wrong_offset("river", 0), "article 'River', question 'w': answer 'river' occurs several times"),
        (wrong_offset("Nile", 0), "article 'River', question 'w': answer 'Nile' does not occur in the context"),
        (wrong_offset(" ", 3), "question 'w' has an empty answer"),
        ({}, "has no 'data'; the official layout is data > paragraphs"),
        ([], "holds list at its top"),
        ({"data": {}}, "'data' is {}; it must be a list"),
        ({"data": []}, "holds no question"),
        ({"data": [{"paragraphs": []}]}, "article 1 has no 'title'"),
        ({"data": ["x"]}, "article 1 is 'x', not an object"),
        ({"data": [{"title": "T"}]}, "article 'T' has no 'paragraphs'"),
        ({"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}, "article 'T', paragraph 1 has no 'context'"),
        ({"data": [{"title": "T", "paragraphs": [{"context": "c"}]}]}, "article 'T', paragraph 1 has no 'qas'"),
        (content_of(("T", "c", [{"question": "q", "answers": []}])), "paragraph 1, a question has no 'id'"),
        (content_of(("T", "c", [{"id": 7, "question": "q", "answers": []}])), "'id' is 7; it must be a text"),
        (content_of(("T", "c", [{"id": "q7", "question": "q"}])), "article 'T', question 'q7' has no 'answers'"),
        (content_of(("T", "c", [{"id": "q7", "answers": []}])), "question 'q7' has no 'question'"),
        (
            content_of(("T", "c", [{"id": "q7", "question": "q", "answers": [{"answer_start": 0}]}])),
            "question 'q7', an answer has no 'text'",
        ),
        (
            content_of(("T", "c", [{"id": "q7", "question": "q", "answers": [{"text": "c"}]}])),
            "question 'q7', answer 'c' has no 'answer_start'",
        ),
        (
            content_of(("T", "c", [{"id": "q7", "question": "q", "answers": [{"text": "c", "answer_start": True}]}])),
            "'answer_start' is True; it must be a whole number",
        ),
        (content_of(("T", " ", [{"id": "q7", "question": "q", "answers": []}])), "'q7' has an empty context"),
        (content_of(("T", TOWER, [unanswerable()] * 2)), "question 'n1' comes twice"),
        (
            content_of(("T", TOWER, [{**tower_questions()[0], "is_impossible": True}])),
            "question 't1' is_impossible and yet has answers",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path, content, message):
    path = write(tmp_path / "wrong.json", content)
    with pytest.raises(ValueError, match=message) as raised:
        load_squad(path, version_2=True)
    assert str(path) in str(raised.value)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b" \n", "is empty; the official layout"),
        (b'{"data":\n [1,, 2]}', r"is not JSON \(line 2, column 5"),
        ('{"data":\n "caf\u00e9"}'.encode("latin-1"), r"is not UTF-8 \(line 2, byte 14"),
    ],
)
def test_files_that_are_no_json_are_named(tmp_path, raw, message):
    path = tmp_path / "file.json"
    path.write_bytes(raw)
    with pytest.raises(ValueError, match=message):
        load_squad(path)


def test_many_lost_answers_are_counted(tmp_path):
    content = wrong_offset("Nile", 0)
    content["data"][0]["paragraphs"][0]["qas"].append({**content["data"][0]["paragraphs"][0]["qas"][0], "id": "w2"})
    with pytest.raises(ValueError, match=r"'w': answer 'Nile'.*2 such answers in all"):
        load_squad(write(tmp_path / "wrong.json", content))


def test_a_data_set_of_the_hub_gives_the_same_questions(tmp_path, small_file, monkeypatch):
    """A folder of that name stands in for the Hub: `load_dataset` reads both by the same call."""
    expected = load_squad(small_file)
    folder = tmp_path / "hub" / "rajpurkar" / "squad"
    folder.mkdir(parents=True)
    for split in ("train", "validation"):
        expected.questions.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    monkeypatch.chdir(tmp_path / "hub")
    data = load_squad("rajpurkar/squad", "train")
    assert data.questions[:] == expected.questions[:]
    assert data.fingerprint["sha256"] == expected.fingerprint["sha256"]
    assert data.fingerprint["split"] == "train"
    with pytest.raises(ValueError, match=r"cannot read data set 'rajpurkar/squad'.*check its name"):
        load_squad("rajpurkar/squad", "test")
    for path in folder.iterdir():
        expected.questions.remove_columns("answers").to_parquet(path)
    with pytest.raises(ValueError, match="'rajpurkar/squad' has no column answers"):
        load_squad("rajpurkar/squad", "train")


@pytest.mark.parametrize("source", ["train-v1.1.json", "./data", "some/where/else", Path("folder")])
def test_a_missing_file_is_not_taken_for_a_data_set(source):
    with pytest.raises(ValueError, match="there is no file"):
        load_squad(source)


# ---- Split by article ----


def articles(number: int) -> dict[str, Any]:
    return content_of(
        *[
            (f"A{index}", f"{TOWER} {index}", [question(f"q{index}", "When?", f"{TOWER} {index}", "1889")])
            for index in range(number)
        ]
    )


def test_a_file_is_split_by_article(tmp_path):
    path = write(tmp_path / "one.json", articles(10))
    train, test = split_by_article(path, tmp_path / "parts", test_fraction=0.3, seed=1)
    sides = [load_squad(part) for part in (train, test)]
    titles = [set(side.questions["title"]) for side in sides]
    assert [len(side) for side in titles] == [7, 3]
    assert not titles[0] & titles[1]
    for side, part in zip(sides, ("train", "test"), strict=True):
        assert side.fingerprint["split_by_article"] == {
            "part": part,
            "source": "one.json",
            "sha256": load_squad(path).fingerprint["sha256"],
            "articles": 7 if part == "train" else 3,
            "of_articles": 10,
            "test_fraction": 0.3,
            "seed": 1,
        }
    again = split_by_article(path, tmp_path / "again", test_fraction=0.3, seed=1)
    other = split_by_article(path, tmp_path / "other", test_fraction=0.3, seed=2)
    assert [part.read_text() for part in again] == [train.read_text(), test.read_text()]
    assert other[1].read_text() != test.read_text()
    with pytest.raises(ValueError, match=r"train.json exists; take another folder"):
        split_by_article(path, tmp_path / "parts")


@pytest.mark.parametrize("fraction", [0.01, 0.99])
def test_either_side_has_an_article(tmp_path, fraction):
    parts = split_by_article(write(tmp_path / "one.json", articles(2)), tmp_path / "parts", fraction)
    assert [len(load_squad(part).questions) for part in parts] == [1, 1]
    with pytest.raises(ValueError, match="holds one article"):
        split_by_article(write(tmp_path / "single.json", articles(1)), tmp_path / "parts2")
    with pytest.raises(ValueError, match="test_fraction is 1; it must be between 0 and 1"):
        split_by_article(tmp_path / "one.json", tmp_path / "parts3", 1)


# ---- Windows ----


def data_of(*rows: tuple[str, str, list[str]]) -> SquadData:
    """Questions from (question, context, answers)."""
    questions = [
        {
            "id": str(number),
            "title": "T",
            "question": text,
            "context": context,
            "answers": {"text": answers, "answer_start": [context.index(answer) for answer in answers]},
        }
        for number, (text, context, answers) in enumerate(rows)
    ]
    features = training.finetuning.squad_data._ROW
    facts = {"source": "hand", "sha256": json.dumps(rows), "unanswerable": sum(not row[2] for row in rows)}
    return SquadData(Dataset.from_list(questions, features=features), facts)


LONG = " ".join(f"{RIVER if number % 2 else TOWER}" for number in range(4)).replace("6,400", "7,777", 1)


@pytest.mark.parametrize(("max_seq_length", "doc_stride"), [(64, 20), (40, 8), (33, 0), (384, 128)])
def test_windows_cover_the_context_and_hold_the_answer(tokenizer, max_seq_length, doc_stride, tmp_path):
    rows = [("How long is it?", LONG, ["7,777 km long"]), ("Where?", LONG, []), ("When?", TOWER, ["1889"])]
    # An answer that begins where a token ends, without a space between them.
    rows.append(("Whose?", TOWER, ["s height"]))
    data = data_of(*rows)
    windows = make_windows(
        data, tokenizer, max_seq_length=max_seq_length, doc_stride=doc_stride, cache_dir=tmp_path
    ).rows
    whole = tokenizer(LONG, add_special_tokens=False, return_offsets_mapping=True)
    for number, (_, context, answers) in enumerate(rows):
        own = [row for row in windows if row["question"] == number]
        seen: list[int] = []
        for row in own:
            assert len(row["input_ids"]) == row["length"] <= max_seq_length
            assert len(row["token_type_ids"]) == row["length"]
            spans = list(zip(row["first_characters"], row["end_characters"], strict=True))
            assert row["context_start"] + len(spans) + 1 == row["length"]
            assert sum(row["token_type_ids"]) == len(spans) + 1
            pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])[row["context_start"] : -1]
            assert all(
                context[a:b].lower() == piece.removeprefix("##") for (a, b), piece in zip(spans, pieces, strict=True)
            )
            start = context.index(answers[0]) if answers else -1
            end = start + len(answers[0]) if answers else -1
            holds = bool(answers) and spans[0][0] <= start and end <= spans[-1][1]
            if holds:
                first, last = (row[name] - row["context_start"] for name in ("start_positions", "end_positions"))
                assert context[spans[first][0] : spans[last][1]] == answers[0]
            else:
                assert (row["start_positions"], row["end_positions"]) == (NO_ANSWER, NO_ANSWER)
            if seen:
                assert len(set(seen) & set(row["first_characters"])) == doc_stride
            seen += row["first_characters"]
        assert any(row["start_positions"] for row in own) == bool(answers)
        if context == LONG:
            assert sorted(set(seen)) == [offset[0] for offset in whole["offset_mapping"]]
            assert (len(own) > 1) == (max_seq_length < 384)


def test_the_first_of_several_answers_is_learnt(tokenizer, tmp_path):
    data = data_of(("Where?", RIVER, ["South America", "in South America"]))
    row = make_windows(data, tokenizer, cache_dir=tmp_path).rows[0]
    first, last = (row[name] - row["context_start"] for name in ("start_positions", "end_positions"))
    assert RIVER[row["first_characters"][first] : row["end_characters"][last]] == "South America"


def test_a_long_question_is_cut_and_leaves_room(tokenizer, tmp_path):
    asked = " ".join(["where is the tower and when was it built in Paris"] * 9)
    data = data_of((asked, LONG, ["7,777"]), ("Where?", LONG, ["7,777"]))
    windows = make_windows(data, tokenizer, max_seq_length=60, doc_stride=20, max_query_length=16, cache_dir=tmp_path)
    assert windows.facts["questions_cut"] == 1
    first = windows.rows[0]
    assert first["context_start"] == 16 + 2
    kept = tokenizer(asked, add_special_tokens=False)["input_ids"][:16]
    assert first["input_ids"][1:17] == kept
    # Without a limit of its own, a question is cut where the stride would have no room.
    windows = make_windows(data, tokenizer, max_seq_length=60, doc_stride=20, max_query_length=999, cache_dir=tmp_path)
    assert windows.rows[0]["context_start"] == 60 - 3 - 20 - 1 + 2
    assert windows.facts["answers_in_no_window"] == 0


def test_a_question_is_cut_whatever_its_tokens_are(tmp_path):
    """A character of four tokens that all end with it, and a text that has more tokens once it is cut."""
    roberta = byte_level_tokenizer(tmp_path)
    assert len(roberta("😀", add_special_tokens=False)["input_ids"]) == 4
    assert training.finetuning.squad_data._shorten(["😀", "a😀", "😀a", "aaa"], roberta, 2) == ["", "a", "", "aa"]

    def changing(texts, **_):
        width = 2 if texts == ["x" * 10] else 1
        length = len(texts if isinstance(texts, str) else texts[0])
        offsets = [(start, start + width) for start in range(0, length, width)]
        return {"offset_mapping": offsets if isinstance(texts, str) else [offsets]}

    assert training.finetuning.squad_data._shorten(["x" * 10], cast(Any, changing), 3) == ["xxx"]


def test_an_answer_that_no_window_holds_is_counted(tokenizer, tmp_path, caplog):
    data = data_of(("What?", LONG, [LONG[10:260]]), ("When?", TOWER, ["1889"]), ("Who?", TOWER, []))
    with caplog.at_level("WARNING"):
        windows = make_windows(data, tokenizer, max_seq_length=40, doc_stride=8, cache_dir=tmp_path)
    assert windows.facts["answers_in_no_window"] == 1
    assert not any(row["end_positions"] for row in windows.rows if row["question"] == 0)
    assert "1 answers are in no window of 40 tokens" in caplog.text


def test_windows_are_kept_on_disk(tokenizer, tmp_path, monkeypatch):
    data = data_of(("Where?", RIVER, ["South America"]))
    first = make_windows(data, tokenizer, cache_dir=tmp_path)
    monkeypatch.setattr(training.finetuning.squad_data, "_write_windows", lambda *_: pytest.fail("cut again"))
    again = make_windows(data, tokenizer, cache_dir=tmp_path)
    assert again.rows[:] == first.rows[:]
    assert again.facts == first.facts
    for changed in (
        lambda: make_windows(data, tokenizer, max_seq_length=100, doc_stride=20, cache_dir=tmp_path),
        lambda: make_windows(data_of(("When?", RIVER, ["South America"])), tokenizer, cache_dir=tmp_path),
        lambda: make_windows(data, train_tokenizer([RIVER], vocab_size=150), cache_dir=tmp_path),
    ):
        with pytest.raises(pytest.fail.Exception, match="cut again"):
            changed()


def test_robertas_tokenizer_serves_as_well(tmp_path):
    """No token types, two separators, words that carry their space, characters of several tokens."""
    roberta = byte_level_tokenizer(tmp_path)
    context = f"naïve 日本 😀 {TOWER}"
    windows = make_windows(
        data_of(("When?", context, ["1889"]), ("What?", context, ["日本 😀"])), roberta, cache_dir=tmp_path
    )
    assert "token_type_ids" not in windows.rows.column_names
    for row, answer in zip(windows.rows, ("1889", "日本 😀"), strict=True):
        assert row["input_ids"].count(roberta.sep_token_id) == 3
        first, last = (row[name] - row["context_start"] for name in ("start_positions", "end_positions"))
        assert context[row["first_characters"][first] : row["end_characters"][last]] == answer


@pytest.mark.parametrize(
    ("lengths", "message"),
    [
        ({"max_seq_length": 0}, "max_seq_length is 0"),
        ({"doc_stride": -1}, "doc_stride is -1"),
        ({"max_query_length": 0}, "max_query_length is 0"),
        (
            {"max_seq_length": 100, "doc_stride": 96},
            "doc_stride 96 leaves no room for a question in max_seq_length 100",
        ),
    ],
)
def test_lengths_without_room_are_named(tokenizer, lengths, message):
    with pytest.raises(ValueError, match=message):
        make_windows(data_of(("Where?", RIVER, [])), tokenizer, **lengths)


def test_tokenizers_that_cannot_serve_are_named(tmp_path):
    other = train_tokenizer([RIVER], vocab_size=150)
    other.padding_side = "left"
    with pytest.raises(ValueError, match="BertTokenizer pads or truncates on the left"):
        make_windows(data_of(("Where?", RIVER, [])), other, cache_dir=tmp_path)
    other.padding_side, other.cls_token = "right", "[MASK]"
    with pytest.raises(ValueError, match="does not put a class token first"):
        make_windows(data_of(("Where?", RIVER, [])), other, cache_dir=tmp_path)


# ---- Answers ----


def all_spans(data, windows, start_logits, end_logits, max_answer_length):
    """For each question all spans of all windows, the best first, as (score, text), each text once; and no answer."""
    found: list[dict[str, float]] = [{} for _ in range(len(data.questions))]
    silent = [float("inf")] * len(found)
    for number, row in enumerate(windows.rows):
        context = data.questions[row["question"]]["context"]
        silent[row["question"]] = min(silent[row["question"]], start_logits[number, 0] + end_logits[number, 0])
        count = len(row["first_characters"])
        for i in range(count):
            for j in range(i, min(count, i + max_answer_length)):
                text = context[row["first_characters"][i] : row["end_characters"][j]]
                place = row["context_start"]
                score = start_logits[number, place + i] + end_logits[number, place + j]
                own = found[row["question"]]
                own[text] = max(score, own.get(text, -np.inf))
    return [sorted(((score, text) for text, score in own.items()), reverse=True) for own in found], silent


@pytest.mark.parametrize(("max_answer_length", "n_best"), [(1, 3), (4, 5), (30, 20), (1000, 2)])
def test_answers_are_the_best_of_all_spans_of_all_windows(tokenizer, tmp_path, max_answer_length, n_best, monkeypatch):
    # Several chunks, the last of them short.
    monkeypatch.setattr("training.finetuning.squad_answers._SCORED_TOGETHER", 2)
    data = data_of(("Where?", LONG, []), ("When?", TOWER, ["1889"]), ("How long is it?", RIVER, ["6,400"]))
    windows = make_windows(data, tokenizer, max_seq_length=48, doc_stride=16, cache_dir=tmp_path)
    rng = np.random.default_rng(max_answer_length)
    logits = rng.normal(size=(2, len(windows.rows), 50))
    found = find_answers(data, windows, *logits, version_2=True, n_best=n_best, max_answer_length=max_answer_length)
    expected, silent = all_spans(data, windows, *logits, max_answer_length)
    for number in range(3):
        name, best = str(number), expected[number][:n_best]
        assert found.texts[name] == best[0][1]
        assert found.null_odds[name] == pytest.approx(silent[number] - best[0][0])
        scores = {item["text"]: item["start_logit"] + item["end_logit"] for item in found.nbest[name]}
        # Of a window n spans are kept, of which some have one text; what is missing is worse than all of them.
        assert scores.pop("") == pytest.approx(silent[number])
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert all(scores[text] == pytest.approx(score) for score, text in best[: len(scores)])
        assert 0 < len(scores) <= n_best
        exponentials = {item["text"]: np.exp(item["start_logit"] + item["end_logit"]) for item in found.nbest[name]}
        for item in found.nbest[name]:
            assert item["probability"] == pytest.approx(exponentials[item["text"]] / sum(exponentials.values()))


def plant(windows, span: dict[int, tuple[int, int, float]], width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits of 0, and for some windows a start, an end and half their score."""
    shape = (len(windows.rows), width or max(windows.rows["length"]))
    logits = np.zeros(shape, dtype=np.float32), np.zeros(shape, dtype=np.float32)
    for number, (start, end, value) in span.items():
        logits[0][number, start] = logits[1][number, end] = value
    return logits


def test_the_best_window_wins_and_padding_never_does(tokenizer, tmp_path):
    data = data_of(("How long is it?", LONG, ["7,777 km"]))
    windows = make_windows(data, tokenizer, max_seq_length=64, doc_stride=44, cache_dir=tmp_path)
    spans = [(row["start_positions"], row["end_positions"]) for row in windows.rows]
    labels = {number: (*span, 6.0 - number) for number, span in enumerate(spans) if span[0]}
    assert 1 < len(labels) < len(windows.rows)
    logits = plant(windows, labels, width=70)
    for side in logits:
        side[:, :5] += 50.0
        side[:, 64:] = 99.0
    found = find_answers(data, windows, *logits)
    assert found.texts == {"0": "7,777 km"}
    assert found.null_odds == {}
    assert found.predictions(threshold=-99.0) == {"0": "7,777 km"}
    # The answer stands in several windows, with other scores.
    assert [item["start_logit"] for item in found.nbest["0"] if item["text"] == "7,777 km"] == [6.0 - min(labels)]
    assert sum(item["probability"] for item in found.nbest["0"]) == pytest.approx(1.0)


def test_silence_scores_as_in_the_window_where_it_is_worst(tokenizer, tmp_path):
    data = data_of(("How long is it?", LONG, ["7,777 km"]), ("Who?", TOWER, []))
    windows = make_windows(data, tokenizer, max_seq_length=64, doc_stride=20, cache_dir=tmp_path)
    answered = next(n for n, row in enumerate(windows.rows) if row["start_positions"])
    row = windows.rows[answered]
    logits = plant(windows, {answered: (row["start_positions"], row["end_positions"], 4.0)})
    for side in logits:
        side[:, 0] = 3.0
        side[answered, 0] = 1.5
    found = find_answers(data, windows, *logits, version_2=True)
    assert found.null_odds == {"0": pytest.approx(3.0 - 8.0), "1": pytest.approx(6.0)}
    assert found.predictions() == {"0": "7,777 km", "1": ""}
    assert found.predictions(threshold=-6.0) == {"0": "", "1": ""}
    assert found.predictions(threshold=7.0)["1"] != ""
    assert found.nbest["1"][0]["text"] == ""


def test_a_context_without_a_token_has_no_answer(tokenizer, tmp_path):
    data = data_of(("What?", "\u0007\u0008", []), ("When?", TOWER, ["1889"]))
    windows = make_windows(data, tokenizer, cache_dir=tmp_path)
    logits = plant(windows, {})
    found = find_answers(data, windows, *logits, version_2=True)
    assert (found.texts["0"], found.null_odds["0"]) == ("", 0.0)
    alone = data_of(("What?", "\u0007\u0008", []))
    windows = make_windows(alone, tokenizer, cache_dir=tmp_path)
    empty = {"text": "", "probability": 1.0, "start_logit": 0.0, "end_logit": 0.0}
    assert find_answers(alone, windows, *plant(windows, {})).nbest == {"0": [empty]}


def test_the_files_have_the_official_form(tokenizer, tmp_path):
    data = data_of(("When?", TOWER, ["1889"]), ("Who?", TOWER, []))
    windows = make_windows(data, tokenizer, cache_dir=tmp_path)
    logits = plant(windows, {1: (0, 0, 9.0)})
    found = find_answers(data, windows, *logits, version_2=True, n_best=3)
    found.write(tmp_path / "out", threshold=1.0)
    read = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out").iterdir()}
    assert read.keys() == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
    assert read["predictions.json"] == {"0": found.texts["0"], "1": ""}
    assert read["null_odds.json"] == {"0": 0.0, "1": 18.0}
    assert [len(entries) for entries in read["nbest_predictions.json"].values()] == [4, 4]
    assert read["nbest_predictions.json"]["1"][0].keys() == {"text", "probability", "start_logit", "end_logit"}
    find_answers(data, windows, *logits).write(tmp_path / "v1")
    assert not (tmp_path / "v1" / "null_odds.json").exists()


def test_the_loss_is_over_the_tokens_of_each_window(tokenizer, tmp_path):
    data = data_of(("When?", TOWER, ["1889"]), ("How long is it?", LONG, []))
    rows = make_windows(data, tokenizer, max_seq_length=64, doc_stride=20, cache_dir=tmp_path)
    logits = torch.randn(2, len(rows.rows), 70, generator=torch.Generator().manual_seed(0))
    expected = []
    for number, row in enumerate(rows.rows):
        for side, column in zip(logits, ("start_positions", "end_positions"), strict=True):
            expected.append(
                torch.nn.functional.cross_entropy(side[number, : row["length"]], torch.tensor(row[column]))
            )
    assert span_loss(rows, *logits.numpy()) == pytest.approx(torch.stack(expected).mean().item(), abs=1e-5)


def test_logits_that_do_not_fit_are_named(tokenizer, tmp_path):
    data = data_of(("When?", TOWER, ["1889"]))
    windows = make_windows(data, tokenizer, cache_dir=tmp_path)
    start, end = plant(windows, {})
    with pytest.raises(ValueError, match=r"have the shape \(1, 5\); the windows want \(1, "):
        find_answers(data, windows, start, end[:, :5])
    with pytest.raises(ValueError, match="n_best is 0; it must be at least 1"):
        find_answers(data, windows, start, end, n_best=0)
    start[0, windows.rows[0]["context_start"] + 1] = np.nan
    with pytest.raises(ValueError, match="the model's logits are not finite"):
        find_answers(data, windows, start, end)


# ---- The real files ----


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "version_2", "questions", "silent"),
    [("dev-v1.1.json", False, 10_570, 0), ("dev-v2.0.json", True, 11_873, 5_945)],
)
def test_the_real_development_sets(data_folder, tmp_path, name, version_2, questions, silent):
    """Right answers score 100, and come back through windows and spans but for what tokens cannot cut out."""
    data = load_squad(data_folder / "squad" / name, version_2=version_2)
    facts = data.fingerprint
    assert (facts["questions"], facts["unanswerable"], facts["realigned"]) == (questions, silent, 0)
    right = {name: texts[0] if texts else "" for name, texts in data.references.items()}
    if version_2:
        metrics = squad_v2_metrics(right, data.references)
        assert {metrics[key] for key in ("exact", "f1", "HasAns_f1", "NoAns_f1", "HasAns_exact")} == {100.0}
    else:
        assert squad_v1_metrics(right, data.references) == {"exact_match": 100.0, "f1": 100.0}
    vocab = data_folder / "vocab" / "bert-base-uncased-vocab.txt"
    windows = make_windows(data, BertTokenizer(vocab=str(vocab)), cache_dir=tmp_path)
    assert windows.facts["answers_in_no_window"] == 0
    labels = windows.rows.select_columns(["question", "start_positions", "end_positions"]).with_format("numpy")[:]
    answered = labels["start_positions"] != NO_ANSWER
    # A window of an answered question that does not hold the answer says nothing at all.
    says = answered | ~np.isin(labels["question"], labels["question"][answered])
    logits = np.random.default_rng(0).normal(size=(2, len(windows.rows), 384)).astype(np.float32)
    for side, column in zip(logits, ("start_positions", "end_positions"), strict=True):
        side[np.flatnonzero(says), labels[column][says]] = 20.0
    begin = time.process_time()
    found = find_answers(data, windows, *logits, version_2=version_2)
    assert time.process_time() - begin < 20
    if version_2:
        metrics = squad_v2_metrics(found.texts, data.references, found.null_odds, threshold=None)
        assert metrics["best_f1"] == metrics["f1"] > 99.5
        assert metrics["NoAns_exact"] == 100.0
    else:
        metrics = squad_v1_metrics(found.texts, data.references)
    assert metrics["f1"] > 99.5
    assert metrics["exact" if version_2 else "exact_match"] > 99.3
    assert found.texts.keys() == data.references.keys()
