"""SQuAD's files and windows, against hand-made cases."""

import json
from pathlib import Path
from typing import Any, cast

import pytest
from datasets import Dataset
from toy_squad import (
    LONG,
    RIVER,
    TOWER,
    byte_level_tokenizer,
    content_of,
    data_of,
    question,
    squad_tokenizer,
    write,
)
from transformers import BertTokenizer

import training.finetuning.squad_data
from training.data.tokenizing import train_tokenizer
from training.finetuning.squad_data import NO_ANSWER, load_squad, make_windows, split_by_article


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return squad_tokenizer()


def river_questions() -> list[dict[str, Any]]:
    return [
        question("r1", "Where is the Amazon?", RIVER, "South America", "in South America"),
        question("r2", "How long is it?", RIVER, "6,400 km"),
    ]


def tower_questions() -> list[dict[str, Any]]:
    return [question("t1", "When was it built?", TOWER, "1889")]


def unanswerable(name: str = "n1") -> dict[str, Any]:
    return question(name, "Who built it?", TOWER, is_impossible=True)


@pytest.fixture
def small_file(tmp_path) -> Path:
    return write(
        tmp_path / "small.json", content_of(("River", RIVER, river_questions()), ("Tower", TOWER, tower_questions()))
    )


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


def as_annotated(number: int, name: Any) -> dict[str, Any]:
    """An article as annotation tools write it: without a title."""
    asked = [{**one, "id": name} for one in river_questions()[:1]]
    return {"paragraphs": [{"context": RIVER, "qas": asked}], **({"title": None} if number % 2 else {})}


def test_what_annotation_tools_write_is_read_and_split(tmp_path):
    content = {"data": [as_annotated(number, 100 + number) for number in range(4)]}
    path = write(tmp_path / "annotated.json", content)
    data = load_squad(path)
    assert data.questions["id"][:] == ["100", "101", "102", "103"]
    assert data.questions["title"][:] == [f"untitled {number}" for number in range(1, 5)]
    train, test = split_by_article(path, tmp_path / "parts", test_fraction=0.5)
    ids = [load_squad(part).questions["id"][:] for part in (train, test)]
    assert sorted(ids[0] + ids[1]) == data.questions["id"][:]
    assert len(ids[0]) == len(ids[1]) == 2


def test_half_a_character_is_named_with_its_line(tmp_path):
    content = content_of(("River", f"{RIVER} \ud83d.", river_questions()))
    path = tmp_path / "half.json"
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
    line = next(number for number, text in enumerate(path.read_text().splitlines(), 1) if "ud83d" in text)
    with pytest.raises(ValueError, match=rf"half\.json, line {line}: \\ud83d after .* is half of a character"):
        load_squad(path)


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
    assert "1 answers were not at their answer_start" in caplog.text


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
        ({"data": [{"title": 7, "paragraphs": []}]}, "article 1: 'title' is 7; it must be a text"),
        ({"data": ["x"]}, "article 1 is 'x', not an object"),
        ({"data": [{"title": "T"}]}, "article 'T' has no 'paragraphs'"),
        ({"data": [{"title": "T", "paragraphs": [{"qas": []}]}]}, "article 'T', paragraph 1 has no 'context'"),
        ({"data": [{"title": "T", "paragraphs": [{"context": "c"}]}]}, "article 'T', paragraph 1 has no 'qas'"),
        (content_of(("T", "c", [{"question": "q", "answers": []}])), "paragraph 1, a question has no 'id'"),
        (content_of(("T", "c", [{"id": 7.5, "question": "q", "answers": []}])), "'id' is 7.5; it must be a text"),
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
        (content_of(("T", TOWER, [unanswerable()] * 2)), "question 'n1' occurs twice"),
        (
            content_of(("T", TOWER, [{**tower_questions()[0], "is_impossible": True}])),
            "question 't1' is_impossible but has answers",
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
    with pytest.raises(ValueError, match=r"train.json exists; use another folder"):
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


@pytest.mark.parametrize("answer", ["It is long. ", "long. \n", " \tIt"])
def test_white_space_around_an_answer_is_no_part_of_it(tokenizer, tmp_path, answer):
    context = " \tIt is long. \n"
    data = data_of(("How?", context, [answer]), ("How?", context, [answer.strip()]))
    spaced, plain = make_windows(data, tokenizer, cache_dir=tmp_path).rows
    assert plain["start_positions"] != NO_ANSWER
    assert all(spaced[name] == plain[name] for name in ("start_positions", "end_positions"))


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
    """A character of four tokens that all end with it."""
    roberta = byte_level_tokenizer(tmp_path)
    assert len(roberta("😀", add_special_tokens=False)["input_ids"]) == 4
    asked, kept = ["😀", "a😀", "😀a", "aaa"], ["", "a", "", "aa"]
    data = data_of(*((text, TOWER, []) for text in asked))
    windows = make_windows(data, roberta, max_query_length=2, cache_dir=tmp_path / "windows")
    for row, text in zip(windows.rows, kept, strict=True):
        expected = roberta(text, TOWER)["input_ids"]
        assert row["input_ids"] == expected
        assert row["question_is_cut"]
    assert windows.facts["questions_cut"] == 4


def test_a_question_that_has_more_tokens_once_it_is_cut_is_cut_again():
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
    assert "1 answers are not entirely in any window of 40 tokens" in caplog.text


def test_windows_are_kept_on_disk(tokenizer, tmp_path, monkeypatch):
    data = data_of(("Where?", RIVER, ["South America"]))
    first = make_windows(data, tokenizer, cache_dir=tmp_path)
    monkeypatch.setattr(Dataset, "map", lambda *_, **__: pytest.fail("cut again"))
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
