"""Weights of classes: which they are, and the gradients that they give beside those of torch's own losses."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, DatasetDict
from sklearn.utils.class_weight import compute_class_weight
from toy_finetune import arguments, save_toy_model, toy_tokenizer
from transformers import PreTrainedModel

from modeling_magic.modeling_magic import MagicAttention
from training.finetuning.class_weights import find_class_weights
from training.finetuning.finetune import finetune, load_for_task
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks import Task, glue_task, tokenize


ONE = Task(
    "one", "one", "single_label_classification", ("text",), ("a", "b", "c"), ("accuracy",), best_metric="accuracy"
)
SEVERAL = Task("several", "several", "multi_label_classification", ("text",), ("x", "y"), ("micro_f1",))
LABELS = [0, 0, 1, 0, 2, 0, 1, 0]
VECTORS = [[1, 0], [1, 1], [0, 0], [1, 0], [0, 0], [1, 0], [0, 1], [1, 0]]
TEXTS = ["fine a", "b c d", "dull", "e great f g h i", "k", "warm l m", "poor n", "o p q r s"]


def rows_of(labels: list[Any]) -> Dataset:
    return Dataset.from_dict({"text": TEXTS, "label": labels})


# ---- Which weights ----


def test_balanced_weights_are_those_of_scikit_learn():
    weights = find_class_weights(ONE, rows_of(LABELS), "balanced")
    expected = compute_class_weight("balanced", classes=np.arange(3), y=np.array(LABELS))
    assert list(weights) == ["a", "b", "c"]
    np.testing.assert_allclose(list(weights.values()), expected)


def test_a_class_that_is_in_no_row_has_no_part_in_them():
    weights = find_class_weights(ONE, rows_of([0, 0, 0, 1, 0, 0, 1, 0]), "balanced")
    assert weights == {"a": 8 / (2 * 6), "b": 8 / (2 * 2), "c": 1.0}


def test_of_several_labels_rows_with_one_weigh_as_much_as_those_without():
    assert find_class_weights(SEVERAL, rows_of(VECTORS), "balanced") == {"x": 3 / 5, "y": 6 / 2}
    everywhere = [[1, second] for _, second in VECTORS]
    assert find_class_weights(SEVERAL, rows_of(everywhere), "balanced")["x"] == 1


def test_classes_that_are_not_named_weigh_one():
    assert find_class_weights(ONE, rows_of(LABELS), {"c": 5}) == {"a": 1.0, "b": 1.0, "c": 5.0}


def test_what_has_no_such_classes_is_refused():
    with pytest.raises(ValueError, match="class_weights names 'spam', but the classes of one are a, b, c"):
        find_class_weights(ONE, rows_of(LABELS), {"a": 1, "spam": 5})
    with pytest.raises(ValueError, match="STS-B is a task of regression; remove class_weights"):
        find_class_weights(glue_task("stsb"), rows_of(LABELS), "balanced")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"class_weights": "even"}, "class_weights is 'even'; it must be balanced, or weights by name"),
        ({"class_weights": {}}, "class_weights is empty"),
        ({"class_weights": {"a": 0}}, r"class_weights\.a is 0; it must be a number above 0"),
        ({"class_weights": {"a": "much"}}, r"class_weights\.a is 'much'; it must be a number"),
        ({"class_weights": 3}, "class_weights is 3; it must be text"),
        ({"class_weights": "balanced", "teacher": "bert"}, "class_weights and teacher both change the loss"),
        (
            {"class_weights": "balanced", "training_arguments": {"label_smoothing_factor": 0.1}},
            "class_weights and label_smoothing_factor both change the loss",
        ),
    ],
)
def test_weights_that_cannot_be_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**given)


def test_names_that_are_numbers_are_names():
    assert FinetuneSettings(class_weights={1: 2, "0": 1.5}).class_weights == {"1": 2, "0": 1.5}


# ---- The loss ----


def without_dropout(kind: str, folder: Path, task: Task) -> PreTrainedModel:
    model = load_for_task(save_toy_model(kind, folder / kind), task, seed=0)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        elif isinstance(module, MagicAttention):
            module.attention_dropout = 0.0
    return model


# Their sum over a batch may be far below 1, and above.
WEIGHTS = [[0.01, 0.03, 0.02], [0.5, 4.0, 2.0]]


@pytest.mark.parametrize("task", [ONE, SEVERAL], ids=lambda task: task.problem_type)
@pytest.mark.parametrize("weights", WEIGHTS, ids=["small", "large"])
@pytest.mark.parametrize(("size", "accumulation"), [(8, 1), (2, 4), (3, 3)])
@pytest.mark.parametrize("kind", ["magic", "bert"])
def test_a_step_has_the_gradient_of_torchs_loss_over_the_whole_batch(
    kind, size, accumulation, weights, task, tmp_path
):
    labels = LABELS if task is ONE else VECTORS
    data = DatasetDict(train=rows_of(labels), validation=rows_of(labels))
    rows = tokenize(data, task, toy_tokenizer(), max_length=40)
    weights = weights[: task.num_labels]
    model, reference = (without_dropout(kind, tmp_path, task) for _ in range(2))
    args = arguments(
        tmp_path / "run",
        task,
        per_device_train_batch_size=size,
        gradient_accumulation_steps=accumulation,
        max_steps=1,
        optim="sgd",
        learning_rate=0.1,
        max_grad_norm=0.0,
        train_sampling_strategy="random",
    )
    result = finetune(model, rows, task, args, toy_tokenizer(), class_weights=weights)

    batch = toy_tokenizer().pad(rows["train"].remove_columns("length")[:], return_tensors="pt")
    logits = reference(**{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}).logits
    if task is ONE:
        loss = torch.nn.CrossEntropyLoss(weight=torch.tensor(weights))(logits, batch["labels"])
    else:
        loss = torch.nn.BCEWithLogitsLoss(pos_weight=torch.tensor(weights))(logits, batch["labels"])
    loss.backward()
    for (name, trained), start in zip(model.named_parameters(), reference.parameters(), strict=True):
        gradient = torch.zeros_like(start) if start.grad is None else start.grad
        torch.testing.assert_close(trained, start - 0.1 * gradient, rtol=0, atol=2e-6, msg=name)

    # The loss of evaluation has no weights.
    with torch.no_grad():
        logits = model.eval()(
            **{name: batch[name] for name in ("input_ids", "attention_mask", "token_type_ids")}
        ).logits
        plain = torch.nn.CrossEntropyLoss() if task is ONE else torch.nn.BCEWithLogitsLoss()
        expected = plain(logits, batch["labels"]).item()
    assert result.metrics["validation"]["loss"] == pytest.approx(expected, abs=1e-5)


def test_a_teacher_beside_weights_is_refused(tmp_path):
    task = ONE
    data = DatasetDict(train=rows_of(LABELS), validation=rows_of(LABELS))
    model = load_for_task(save_toy_model("magic", tmp_path / "magic"), task, seed=0)
    args = arguments(tmp_path / "run", task)
    with pytest.raises(ValueError, match="class_weights and a teacher"):
        finetune(model, data, task, args, toy_tokenizer(), teacher=model, class_weights=[1.0, 1.0, 2.0])
