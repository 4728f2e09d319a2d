"""Regression in the user's units: outputs, gradients, the folded layer, and what is learnt of large labels."""

import json

import numpy as np
import pytest
import torch
from torch import nn
from toy_finetune import arguments, save_toy_model, toy_tokenizer
from transformers import AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from training.finetuning.finetune import finetune, load_for_task, predict
from training.finetuning.label_units import standardized_labels
from training.finetuning.own_files import load_files
from training.finetuning.tasks import tokenize


LABELS = [40.0, 44.0, 36.0, 52.0]
IDS = torch.tensor([[2, 7, 8, 3], [2, 9, 10, 3], [2, 5, 6, 3], [2, 11, 12, 3]])


def model_of_one_number() -> BertForSequenceClassification:
    torch.manual_seed(0)
    config = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=20)
    config.num_labels = 1
    return BertForSequenceClassification(config).eval()


def test_the_model_returns_the_labels_units_inside_and_after():
    model = model_of_one_number()
    before = model(IDS).logits.detach()
    with standardized_labels(model, LABELS):
        inside = model(IDS).logits.detach()
    torch.testing.assert_close(inside, before * np.std(LABELS) + np.mean(LABELS))
    torch.testing.assert_close(model(IDS).logits, inside)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_does_not_round_the_units(dtype):
    model = model_of_one_number()
    with standardized_labels(model, [70_000.0, 70_010.0]), torch.no_grad():
        exact = model(IDS).logits
        with torch.autocast("cpu", dtype):
            mixed = model(IDS).logits
    torch.testing.assert_close(mixed, exact, rtol=0, atol=0.1)


def test_gradients_are_those_of_standardised_labels():
    mean, scale = np.mean(LABELS), np.std(LABELS)
    labels = torch.tensor(LABELS)
    plain, ours = model_of_one_number(), model_of_one_number()
    plain(IDS, labels=((labels - mean) / scale).float()).loss.backward()
    with standardized_labels(ours, LABELS):
        loss = ours(IDS, labels=labels).loss
        loss.backward()
        torch.testing.assert_close(loss, nn.functional.mse_loss(ours(IDS).logits.squeeze(), labels))
    for expected, found in zip(plain.parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found.grad, expected.grad, rtol=1e-4, atol=1e-6)


def test_an_error_leaves_the_weights_and_no_hook():
    model = model_of_one_number()
    before = model(IDS).logits.detach()
    with pytest.raises(KeyError), standardized_labels(model, LABELS):
        raise KeyError
    assert torch.equal(model(IDS).logits, before)


def test_equal_labels_and_a_head_without_bias():
    model = model_of_one_number()
    before = model(IDS).logits.detach()
    with standardized_labels(model, [3.0, 3.0]):
        torch.testing.assert_close(model(IDS).logits, before + 3)
    model = model_of_one_number()
    model.classifier.bias = None
    before = model(IDS).logits.detach()
    with standardized_labels(model, LABELS):
        assert torch.equal(model(IDS).logits, before)


@pytest.mark.parametrize("kind", ["magic", "bert", "roberta", "electra"])
def test_a_few_steps_predict_large_numbers_in_their_units(kind, tmp_path):
    good, bad = {"text": "a fine b", "label": 140.5}, {"text": "c poor d", "label": 90.0}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [good, bad] * 8), encoding="utf-8")
    task, data, _ = load_files(path, path)
    rows = tokenize(data, task, toy_tokenizer(), max_length=40)
    folder = save_toy_model(kind, tmp_path / kind)
    args = arguments(tmp_path / "run", task, num_train_epochs=8, learning_rate=2e-3, max_grad_norm=1.0)
    model = load_for_task(folder, task, 0)
    result = finetune(model, rows, task, args, toy_tokenizer())
    predicted = predict(model, rows["validation"], task, toy_tokenizer()).values
    # A bias that began at 0 would have come to 0.05.
    assert np.abs(predicted[0::2] - 140.5).max() < 40
    assert np.abs(predicted[1::2] - 90.0).max() < 40
    assert predicted[0::2].min() > predicted[1::2].max()
    # The loss on record is in the labels' units, squared.
    error = float(np.mean((predicted - np.array([140.5, 90.0] * 8)) ** 2))
    assert result.metrics["validation"]["loss"] == pytest.approx(error, rel=1e-3)
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "saved")
    assert np.array_equal(predict(again, rows["validation"], task, toy_tokenizer()).values, predicted)
