"""Every head: its Auto class, its loss by hand, its gradient under accumulation, and wrong labels."""

from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    ElectraConfig,
    ElectraForPreTraining,
    Trainer,
    TrainingArguments,
)

from modeling_magic import (
    MagicConfig,
    MagicForMultipleChoice,
    MagicForPreTraining,
    MagicForQuestionAnswering,
    MagicForSequenceClassification,
    MagicForTokenClassification,
    MagicModel,
)
from training.space.costs import count_flops, count_parameters


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
AUTO = {
    AutoModel: "MagicModel",
    AutoModelForMaskedLM: "MagicForMaskedLM",
    AutoModelForMultipleChoice: "MagicForMultipleChoice",
    AutoModelForPreTraining: "MagicForPreTraining",
    AutoModelForQuestionAnswering: "MagicForQuestionAnswering",
    AutoModelForSequenceClassification: "MagicForSequenceClassification",
    AutoModelForTokenClassification: "MagicForTokenClassification",
}


@pytest.fixture
def config(tiny_config):
    def make(**changes):
        fields = {"candidate_operators": [[name] for name in MIXED], "hidden_dropout_prob": 0.0}
        return tiny_config(**{**fields, "attention_probs_dropout_prob": 0.0, **changes})

    return make


def batch(size: int = 4, length: int = 10) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    mask = (torch.arange(length) < torch.randint(4, length + 1, (size, 1), generator=generator)).long()
    return {"input_ids": torch.randint(5, 100, (size, length), generator=generator) * mask, "attention_mask": mask}


@pytest.mark.parametrize("auto", AUTO, ids=AUTO.values())
def test_auto_classes_load_every_head_from_an_encoder(config, supernet, auto, tmp_path):
    supernet.extract_child(MIXED).save_pretrained(tmp_path)
    model, info = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert type(model).__name__ == AUTO[auto]
    assert not [name for name in info["missing_keys"] if name.startswith("magic.")]
    inputs = batch()
    expected = supernet.magic(**inputs, architecture=MIXED).last_hidden_state
    base = model if auto is AutoModel else model.magic
    torch.testing.assert_close(base(**inputs).last_hidden_state, expected)
    model.save_pretrained(tmp_path / "again")
    reloaded, info = auto.from_pretrained(tmp_path / "again", output_loading_info=True)
    assert not info["missing_keys"]
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), reloaded.parameters(), strict=True))


@pytest.mark.parametrize("auto", AUTO, ids=AUTO.values())
def test_every_head_is_a_supernets_as_well(tiny_config, auto):
    model = auto.from_config(tiny_config()).eval()
    inputs = batch()
    if auto is AutoModelForMultipleChoice:
        inputs = {name: value.unsqueeze(1) for name, value in inputs.items()}
    child = model.extract_child(MIXED)
    assert type(child) is type(model)
    assert torch.equal(child(**inputs)[0], model(**inputs, architecture=MIXED)[0])
    with pytest.raises(ValueError, match="choose the child to run"):
        model(**inputs)


# ---- Losses by hand ----


def test_one_class_of_several(config):
    model = MagicForSequenceClassification(config(num_labels=3))
    labels = torch.tensor([0, 2, 1, -100])
    output = model(**batch(), labels=labels)
    assert output.logits.shape == (4, 3)
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[:3], labels[:3]))
    assert model.config.problem_type == "single_label_classification"


def test_several_classes_at_once(config):
    model = MagicForSequenceClassification(config(num_labels=3))
    labels = torch.tensor([[0.0, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 1]])
    output = model(**batch(), labels=labels)
    torch.testing.assert_close(output.loss, nn.functional.binary_cross_entropy_with_logits(output.logits, labels))
    assert model.config.problem_type == "multi_label_classification"


@pytest.mark.parametrize(("num_labels", "shape"), [(1, (4,)), (1, (4, 1)), (2, (4, 2))])
def test_regression(config, num_labels, shape):
    model = MagicForSequenceClassification(config(num_labels=num_labels, problem_type="regression"))
    labels = torch.linspace(-1, 1, 4 * num_labels).view(shape)
    output = model(**batch(), labels=labels)
    torch.testing.assert_close(output.loss, ((output.logits - labels.view(4, num_labels)) ** 2).mean())


def test_classification_head_is_berts_pooler_and_classifier(config):
    model = MagicForSequenceClassification(config(num_labels=3)).eval()
    inputs = batch()
    first = model.magic(**inputs).last_hidden_state[:, 0]
    head = model.classifier
    expected = torch.tanh(first @ head.dense.weight.T + head.dense.bias) @ head.out_proj.weight.T + head.out_proj.bias
    torch.testing.assert_close(model(**inputs).logits, expected)


def test_classes_of_tokens(config):
    model = MagicForTokenClassification(config(num_labels=5))
    inputs = batch()
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"] % 5, -100)
    output = model(**inputs, labels=labels)
    counted = labels != -100
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits[counted], labels[counted]))


def test_spans(config):
    model = MagicForQuestionAnswering(config())
    start, end = torch.tensor([0, 3, 2, 99]), torch.tensor([1, 3, 3, 99])
    output = model(**batch(), start_positions=start, end_positions=end)
    # The last answer lies beyond the sequence and is ignored.
    expected = nn.functional.cross_entropy(output.start_logits[:3], start[:3])
    expected = (expected + nn.functional.cross_entropy(output.end_logits[:3], end[:3])) / 2
    torch.testing.assert_close(output.loss, expected)


def test_choices(config):
    model = MagicForMultipleChoice(config()).eval()
    inputs = batch(6)
    choices = {name: value.view(2, 3, -1) for name, value in inputs.items()}
    labels = torch.tensor([2, 0])
    output = model(**choices, labels=labels)
    assert output.logits.shape == (2, 3)
    torch.testing.assert_close(output.logits.flatten(), model.classifier(model.magic(**inputs)[0]).flatten())
    torch.testing.assert_close(output.loss, nn.functional.cross_entropy(output.logits, labels))
    embedded = model.get_input_embeddings()(choices["input_ids"])
    by_vector = model(inputs_embeds=embedded, attention_mask=choices["attention_mask"]).logits
    torch.testing.assert_close(by_vector, output.logits)


def test_ignored_questions_have_no_part_in_the_mean(config):
    model = MagicForMultipleChoice(config()).eval()
    choices = {"input_ids": torch.randint(5, 20, (2, 3, 6))}
    both = model(**choices, labels=torch.tensor([1, -100])).loss
    alone = model(input_ids=choices["input_ids"][:1], labels=torch.tensor([1])).loss
    torch.testing.assert_close(both, alone)
    torch.testing.assert_close(model(**choices, labels=torch.tensor([1, -100]), num_items_in_batch=4).loss, alone / 4)


def test_replaced_tokens(config):
    model = MagicForPreTraining(config()).eval()
    inputs = batch()
    labels = (inputs["input_ids"] % 3 == 0).long()
    output = model(**inputs, labels=labels)
    counted = inputs["attention_mask"].bool()
    expected = nn.functional.binary_cross_entropy_with_logits(output.logits[counted], labels[counted].float())
    torch.testing.assert_close(output.loss, expected)
    ignored = labels.masked_fill(~counted, -100)
    torch.testing.assert_close(model(**inputs, labels=ignored).loss, expected)


# ---- Gradient accumulation ----

HEADS = {
    "one class": (MagicForSequenceClassification, {"num_labels": 3}, lambda n: {"labels": torch.arange(n) % 3}),
    "many classes": (
        MagicForSequenceClassification,
        {"num_labels": 3},
        lambda n: {"labels": (torch.arange(3 * n).view(n, 3) % 2).float()},
    ),
    "regression": (
        MagicForSequenceClassification,
        {"num_labels": 1},
        lambda n: {"labels": torch.linspace(-1, 1, n)},
    ),
    "tokens": (
        MagicForTokenClassification,
        {"num_labels": 3},
        # The number of labels differs from row to row.
        lambda n: {"labels": torch.where(torch.arange(10) <= torch.arange(n)[:, None], torch.arange(10) % 3, -100)},
    ),
    "spans": (
        MagicForQuestionAnswering,
        {},
        lambda n: {"start_positions": torch.arange(n) % 4, "end_positions": torch.arange(n) % 4 + 1},
    ),
    "choices": (MagicForMultipleChoice, {}, lambda n: {"labels": torch.arange(n) % 2}),
    "replaced": (MagicForPreTraining, {}, lambda n: {"labels": torch.arange(10 * n).view(n, 10) % 2}),
}


@pytest.mark.parametrize("head", HEADS)
def test_accumulation_equals_one_batch(config, head, tmp_path):
    kind, changes, labels = HEADS[head]
    size = 8
    inputs = {"input_ids": batch(2 * size)["input_ids"].clamp(min=5)}
    if kind is MagicForMultipleChoice:
        inputs = {name: value.view(size, 2, -1) for name, value in inputs.items()}
    columns = {**{name: value[:size] for name, value in inputs.items()}, **labels(size)}
    rows = [{name: value[index] for name, value in columns.items()} for index in range(size)]
    weights = []
    for per_step in (8, 2):
        torch.manual_seed(0)
        model = kind(config(**changes))
        args = TrainingArguments(
            str(tmp_path),
            max_steps=2,
            per_device_train_batch_size=per_step,
            gradient_accumulation_steps=size // per_step,
            optim="sgd",
            learning_rate=0.1,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )
        Trainer(model=model, args=args, train_dataset=rows).train()
        weights.append(list(model.parameters()))
    for whole, accumulated in zip(*weights, strict=True):
        torch.testing.assert_close(whole, accumulated, rtol=0, atol=1e-6)


# ---- Embeddings of other families ----


def test_factorised_embeddings(config):
    sizes = {"embedding_size": 16, "hidden_size": 32}
    model = AutoModelForMaskedLM.from_config(config(**sizes)).eval()
    assert model.magic.embeddings.word_embeddings.weight.shape == (100, 16)
    assert model.lm_head.decoder.weight is model.magic.embeddings.word_embeddings.weight
    assert model(**batch()).logits.shape == (4, 10, 100)
    assert count_parameters(model.config, MIXED, head="mlm") == model.num_parameters()
    assert count_parameters(model.config, MIXED) == MagicModel(model.config).num_parameters()
    wide = count_flops(config(), MIXED, 16, "macs")
    # Projection in, dense and decoder of the head, over 16 tokens.
    assert count_flops(model.config, MIXED, 16, "macs") - wide == 16 * (16 * 32 + (32 - 64) * 16 + (16 - 32) * 100)


def test_parameter_count_of_electra_small():
    sizes: dict[str, Any] = {"embedding_size": 128, "hidden_size": 256, "intermediate_size": 1024}
    with torch.device("meta"):
        theirs = ElectraForPreTraining(ElectraConfig(**sizes, num_hidden_layers=12, num_attention_heads=4))
        ours = MagicForPreTraining(MagicConfig(**sizes, candidate_operators=[["MHA4"], ["FFN"]] * 12))
    assert ours.num_parameters() == theirs.num_parameters()


def test_padding_aware_positions(config):
    plain = MagicModel(config(pad_token_id=1)).eval()
    aware = MagicModel(config(pad_token_id=1, padding_aware_positions=True)).eval()
    aware.load_state_dict(plain.state_dict())
    ids = torch.tensor([[7, 8, 9, 1, 1], [1, 1, 7, 8, 9]])
    mask = (ids != 1).long()
    positions = torch.tensor([[2, 3, 4, 1, 1], [1, 1, 2, 3, 4]])
    actual = aware(ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(actual, plain(ids, attention_mask=mask, position_ids=positions).last_hidden_state)
    # The side of the padding changes nothing.
    torch.testing.assert_close(actual[0, :3], actual[1, 2:])
    by_vector = aware(inputs_embeds=aware.embeddings.word_embeddings(ids)).last_hidden_state
    torch.testing.assert_close(by_vector, plain(ids, position_ids=torch.arange(2, 7)[None]).last_hidden_state)
    with pytest.raises(ValueError, match="63 tokens but the model has 62 positions"):
        aware(torch.full((1, 63), 7))


# ---- Wrong input ----


def test_labels_out_of_range_name_value_and_limit(config):
    model = MagicForSequenceClassification(config(num_labels=3))
    with pytest.raises(ValueError, match="a label is 3 but the head has 3 classes, 0 to 2"):
        model(**batch(), labels=torch.tensor([0, 3, 1, 1]))
    with pytest.raises(ValueError, match="a label is -1 but the head has 3 classes"):
        MagicForTokenClassification(config(num_labels=3))(**batch(), labels=torch.full((4, 10), -1))
    choices = {name: value.view(2, 2, -1) for name, value in batch().items()}
    with pytest.raises(ValueError, match="a label is 2 but the head has 2 classes"):
        MagicForMultipleChoice(config())(**choices, labels=torch.tensor([0, 2]))


def test_token_types_beyond_the_table(config):
    ids = batch()["input_ids"]
    with pytest.raises(ValueError, match="token_type_ids go up to 1 but the model has 1 token types; omit them"):
        MagicModel(config(type_vocab_size=1))(ids, token_type_ids=torch.ones_like(ids))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"embedding_size": 0}, "embedding_size is 0; it must be at least 1"),
        ({"classifier_dropout": 1.5}, "classifier_dropout is 1.5; it must be at least 0 and below 1"),
        ({"classifier_activation": "tahn"}, "classifier_activation is 'tahn'; transformers knows"),
        ({"padding_aware_positions": True, "pad_token_id": None}, "padding_aware_positions needs a pad_token_id"),
    ],
)
def test_wrong_configurations(config, changes, message):
    with pytest.raises(ValueError, match=message):
        config(**changes)
