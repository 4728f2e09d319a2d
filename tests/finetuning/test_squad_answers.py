"""Answers from logits, against all spans of all windows and the real files."""

import json
import time

import numpy as np
import pytest
import torch
from toy_squad import (
    LONG,
    RIVER,
    TOWER,
    data_of,
    squad_tokenizer,
)
from transformers import BertTokenizer

from training.finetuning.squad_answers import find_answers, span_loss
from training.finetuning.squad_data import NO_ANSWER, load_squad, make_windows
from training.finetuning.squad_metrics import (
    squad_v1_metrics,
    squad_v2_metrics,
)


@pytest.fixture(scope="module")
def tokenizer() -> BertTokenizer:
    return squad_tokenizer()


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
    with pytest.raises(ValueError, match=r"have the shape \(1, 5\); the windows need \(1, "):
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
    [
        pytest.param("dev-v1.1.json", False, 10_570, 0, marks=pytest.mark.slow),
        ("dev-v2.0.json", True, 11_873, 5_945),
    ],
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
