"""Models run on texts against transformers' own classes, one text at a time."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_compress import CLASSES, save_source, toy_bench
from toy_squad import LONG, RIVER, TOWER, content_of, question, squad_tokenizer, write
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    AutoTokenizer,
)

from modeling_magic import MagicConfig, MagicForQuestionAnswering
from training.compression.predictor import Predictor, forward_of, window_lengths
from training.compression.source import Source, load_source
from training.compression.task_scores import read_task
from training.finetuning.squad_data import load_squad
from training.supernet.evaluation import evaluate_child


TEXTS = ["A man is playing a guitar.", "No.", "Someone plays an instrument on the stage of the old town hall."]


def source_of(folder: Path, class_name: str, **changes: Any) -> tuple[Source, Path]:
    path = save_source(folder / "source", class_name, **changes)
    return load_source(str(path)), path


def predictor_of(source: Source, **changes: Any) -> Predictor:
    return Predictor(source, forward_of(source.model), **changes)


@pytest.mark.parametrize("class_name", ["BertModel", "RobertaModel"])
@pytest.mark.parametrize("batch_size", [1, 64])
@torch.no_grad()
def test_embeddings_are_those_of_each_text_alone(tmp_path, class_name, batch_size):
    source, path = source_of(tmp_path, class_name)
    found = predictor_of(source, batch_size=batch_size).embed(TEXTS)
    tokenizer, model = AutoTokenizer.from_pretrained(path), AutoModel.from_pretrained(path).eval()
    for text, embedding in zip(TEXTS, found, strict=True):
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        mean = model(input_ids=ids).last_hidden_state[0].mean(dim=0)
        np.testing.assert_allclose(embedding, (mean / mean.norm()).numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Roberta", "Electra"])
@torch.no_grad()
def test_classes_are_those_of_each_text_and_pair_alone(tmp_path, family):
    source, path = source_of(tmp_path, f"{family}ForSequenceClassification")
    predictor = predictor_of(source)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForSequenceClassification.from_pretrained(path).eval()
    for second in (None, TEXTS[::-1]):
        found = predictor.classify(TEXTS, second)
        for row, text in enumerate(TEXTS):
            encoded = tokenizer(text, None if second is None else second[row], return_tensors="pt")
            np.testing.assert_allclose(found[row], model(**encoded).logits[0].numpy(), rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", ["Bert", "Electra"])
@torch.no_grad()
def test_tags_are_those_of_the_first_tokens_of_words(tmp_path, family):
    source, path = source_of(tmp_path, f"{family}ForTokenClassification")
    rows = [text.replace(".", " .").split() for text in TEXTS]
    found = predictor_of(source).tag(rows)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForTokenClassification.from_pretrained(path).eval()
    for words, tags in zip(rows, found, strict=True):
        encoded = tokenizer(words, is_split_into_words=True, return_tensors="pt")
        classes = model(**encoded).logits[0].argmax(-1).tolist()
        numbers = encoded.word_ids()
        assert tags == [classes[numbers.index(word)] for word in range(len(words))]


@torch.no_grad()
def test_words_of_a_byte_level_tokenizer_have_spaces_between_them(tmp_path):
    source, path = source_of(tmp_path, "RobertaForTokenClassification")
    rows = [text.rstrip(".").split() for text in TEXTS]
    found = predictor_of(source).tag(rows)
    tokenizer = AutoTokenizer.from_pretrained(path)
    model = AutoModelForTokenClassification.from_pretrained(path).eval()
    for words, tags in zip(rows, found, strict=True):
        encoded = tokenizer(" ".join(words), return_tensors="pt")
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"][0])
        starts = [1, *(place for place, token in enumerate(tokens) if token.startswith("\u0120"))]
        assert len(starts) == len(words)
        assert tags == model(**encoded).logits[0, starts].argmax(-1).tolist()


def test_words_without_tokens_are_outside_and_those_beyond_the_length_have_no_tag(tmp_path):
    labels = {0: "B-X", 1: "O", 2: "I-X"}
    changes = {"id2label": labels, "label2id": {name: number for number, name in labels.items()}}
    source, _ = source_of(tmp_path, "BertForTokenClassification", **changes)
    predictor = predictor_of(source)
    plain = ["a", "man", "is", "playing"]
    with_nothing = ["a", "\u200b", "man", "is", "playing"]
    (expected,), (found,) = predictor.tag([plain]), predictor.tag([with_nothing])
    assert found == [expected[0], 1, *expected[1:]]
    (cut,) = predictor.tag([["man"] * 200])
    assert len(cut) == source.max_length - 2


def test_a_model_with_one_token_type_is_given_none(tmp_path):
    source, _ = source_of(tmp_path, "RobertaForSequenceClassification")
    seen = []

    def forward(**batch):
        seen.append(set(batch))
        return forward_of(source.model)(**batch)

    Predictor(source, forward).classify(TEXTS, TEXTS)
    assert seen == [{"input_ids", "attention_mask"}]


# ---- Spans ----


def span_source() -> Source:
    tokenizer = squad_tokenizer()
    tokenizer.model_max_length = 64
    config = MagicConfig(
        candidate_operators=[["MHA4"], ["FFN"]],
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=64,
    )
    model = MagicForQuestionAnswering(config).eval()
    return Source("toy", "span", model, tokenizer, 64, None, Path(), ())


def pointing_at(source: Source, answer: str):
    """A forward pass that puts start and end at the tokens of an answer, and at the class token where it is not."""
    wanted = source.tokenizer(answer, add_special_tokens=False)["input_ids"]

    def forward(input_ids, **_):
        starts, ends = (torch.zeros(input_ids.shape) for _ in range(2))
        starts[:, 0] = ends[:, 0] = 1
        for row, ids in enumerate(input_ids.tolist()):
            places = [place for place in range(len(ids)) if ids[place : place + len(wanted)] == wanted]
            # Not where the question says it.
            if places and places[-1] > ids.index(source.tokenizer.sep_token_id):
                starts[row, places[-1]] = ends[row, places[-1] + len(wanted) - 1] = 5
        return {"start_logits": starts, "end_logits": ends}

    return forward


@pytest.mark.parametrize("context", [RIVER, LONG])
def test_answers_are_the_text_between_the_best_start_and_end(tmp_path, context):
    source = span_source()
    # In the last of several windows, and in the only one.
    answer = "the most water" if context == LONG else "South America"
    paragraph = ("T", context, [question("q", "what is it?", context, answer)])
    data = load_squad(write(tmp_path / "s.json", content_of(paragraph)), version_2=True)
    predictor = Predictor(source, pointing_at(source, answer))
    assert predictor.answer(data) == {"q": answer}
    task = read_task("squad", tmp_path / "s.json", "span")
    assert predictor.score(task).value == 100


def test_a_question_without_an_answer_has_none(tmp_path):
    source = span_source()
    questions = [question("a", "where is it?", RIVER, "South America"), question("b", "what was it?", RIVER)]
    write(tmp_path / "s.json", content_of(("T", RIVER, questions), ("U", TOWER, [question("c", "what?", TOWER)])))
    task = read_task("squad", tmp_path / "s.json", "span")
    predictor = Predictor(source, pointing_at(source, "South America"))
    assert predictor.answer(task.truth) == {"a": "South America", "b": "South America", "c": ""}
    assert predictor.score(task).value == pytest.approx(200 / 3)


def test_windows_are_as_long_as_the_model_takes():
    source = span_source()
    assert window_lengths(source) == {"max_seq_length": 64, "doc_stride": 21, "max_query_length": 64}
    longer = Source(*(getattr(source, name) for name in ("name", "kind", "model", "tokenizer")), 512, None, Path(), ())
    assert window_lengths(longer) == {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64}


# ---- Fidelity ----


@pytest.mark.parametrize("kind", CLASSES)
def test_fidelity_is_that_of_the_model_itself(tmp_path, kind):
    bench = toy_bench(tmp_path, CLASSES[kind], num_sentences=100)
    bench.judged_outputs.fill(bench.validation)
    batches = bench.judged_batches()
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in bench.teacher.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    expected = evaluate_child(bench.teacher, batches, judge=bench.objective)
    assert expected[0] > 1e-4
    found = Predictor(bench.source, forward_of(bench.teacher)).fidelity(bench.objective, batches)
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-6)
