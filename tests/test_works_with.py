"""What users of the Hub do with a model: pipelines, ONNX, sentence embeddings, quantisation, sharding, precision."""

import json

import numpy
import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    pipeline,
)

from modeling_magic import MagicForMaskedLM, MagicModel
from training.data.tokenizing import train_tokenizer


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
SENTENCES = [
    "the quick brown fox jumps over the lazy dog.",
    "a fox jumps.",
    "the lazy dog returns the value of a function.",
]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(SENTENCES * 20, vocab_size=100, model_max_length=64)


@pytest.fixture
def folder(supernet, tokenizer, tmp_path):
    """A saved child with its tokenizer."""
    child = supernet.extract_child(MIXED)
    child.resize_token_embeddings(len(tokenizer))
    child.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return str(tmp_path)


# ---- Pipelines ----


def test_text_classification(folder, tokenizer):
    model = AutoModelForSequenceClassification.from_pretrained(folder, id2label={0: "no", 1: "yes", 2: "maybe"})
    answers = pipeline("text-classification", model=model, tokenizer=tokenizer)(SENTENCES)
    one = model(**tokenizer(SENTENCES[1], return_tensors="pt")).logits.softmax(-1)[0]
    assert answers[1]["label"] == model.config.id2label[int(one.argmax())]
    assert answers[1]["score"] == pytest.approx(one.max().item(), abs=1e-5)


def test_token_classification(folder, tokenizer):
    model = AutoModelForTokenClassification.from_pretrained(folder, num_labels=3)
    answers = pipeline("token-classification", model=model, tokenizer=tokenizer)(SENTENCES[1])
    assert "".join(answer["word"].removeprefix("##") for answer in answers) == "afoxjumps."
    assert {answer["entity"] for answer in answers} <= {"LABEL_0", "LABEL_1", "LABEL_2"}


def test_question_answering(folder, tokenizer):
    model = AutoModelForQuestionAnswering.from_pretrained(folder).eval()
    inputs = tokenizer("a fox?", SENTENCES[0], return_tensors="pt")
    output = model(**inputs)
    assert output.start_logits.shape == inputs["input_ids"].shape
    assert inputs["token_type_ids"].max() == 1


def test_feature_extraction(folder, tokenizer):
    features = pipeline("feature-extraction", model=folder, tokenizer=tokenizer)(SENTENCES[0])
    model = AutoModel.from_pretrained(folder)
    expected = model(**tokenizer(SENTENCES[0], return_tensors="pt")).last_hidden_state
    torch.testing.assert_close(torch.tensor(features), expected, rtol=0, atol=1e-5)


# ---- Other runtimes ----


@pytest.mark.slow
def test_onnx_runtime_agrees_on_other_shapes(folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    from training.hub.onnx_export import export_onnx

    path = export_onnx(folder, tmp_path / "onnx")
    session = onnxruntime.InferenceSession(str(path))
    child = AutoModelForMaskedLM.from_pretrained(folder)
    for size, length in ((1, 2), (3, 30), (5, 64)):
        ids = torch.randint(5, 90, (size, length))
        mask = (torch.arange(length) < torch.randint(1, length + 1, (size, 1))).long()
        inputs = {"input_ids": ids.numpy(), "attention_mask": mask.numpy(), "token_type_ids": (ids % 2).numpy()}
        (logits,) = session.run(["logits"], inputs)
        expected = child(ids, attention_mask=mask, token_type_ids=ids % 2).logits
        numpy.testing.assert_allclose(logits[mask.bool()], expected.detach()[mask.bool()], rtol=0, atol=1e-4)


def test_sentence_embeddings_do_not_depend_on_the_batch(folder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    from sentence_transformers.base.modules import Transformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    modules = [Transformer(folder, max_seq_length=32), Pooling(32, pooling_mode="mean")]
    encoder = sentence_transformers.SentenceTransformer(modules=modules, device="cpu")
    together = encoder.encode(SENTENCES)
    alone = numpy.concatenate([encoder.encode([sentence]) for sentence in SENTENCES])
    numpy.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)
    encoder.save(str(tmp_path / "st"))
    again = sentence_transformers.SentenceTransformer(str(tmp_path / "st"), device="cpu").encode(SENTENCES)
    numpy.testing.assert_allclose(again, together, rtol=0, atol=1e-6)


# ---- Loading and precision ----


def test_dynamic_int8(folder):
    model = MagicModel.from_pretrained(folder)
    ids = torch.randint(5, 90, (4, 20))
    expected = model(ids).last_hidden_state
    quantised = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    similarity = torch.nn.functional.cosine_similarity(quantised(ids).last_hidden_state, expected, dim=-1)
    assert similarity.min() > 0.97


def test_several_shards(folder, tmp_path):
    model = MagicForMaskedLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) > 2
    again = MagicForMaskedLM.from_pretrained(tmp_path / "shards")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("device_map", ["cpu", {"": "cpu"}, "auto"])
def test_device_map_and_dtype(folder, device_map):
    model = AutoModelForMaskedLM.from_pretrained(folder, device_map=device_map, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model(torch.randint(5, 90, (2, 7))).logits.isfinite().all()


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_is_chosen_at_load_and_at_run_time(folder, attn_implementation):
    ids = torch.randint(5, 90, (2, 7))
    model = AutoModel.from_pretrained(folder, attn_implementation=attn_implementation)
    expected = model(ids).last_hidden_state
    for other in ("eager", "sdpa"):
        model.set_attn_implementation(other)
        assert model.config._attn_implementation == other
        torch.testing.assert_close(model(ids).last_hidden_state, expected, rtol=0, atol=1e-5)


def test_truncated_weights_are_an_error(folder):
    path = f"{folder}/model.safetensors"
    with open(path, "rb") as file:
        whole = file.read()
    with open(path, "wb") as file:
        file.write(whole[: len(whole) // 2])
    with pytest.raises(Exception, match=r"(?i)safetensor|incomplete|invalid|metadata"):
        AutoModelForMaskedLM.from_pretrained(folder)
