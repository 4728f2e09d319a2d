"""The teacher: what is refused, its predictions at masked positions, and its outputs on disk."""

import copy
import json
import logging
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_config
from toy_rtd import toy_child
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    BertTokenizer,
    DistilBertConfig,
    DistilBertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    RobertaConfig,
    RobertaForMaskedLM,
)
from transformers.utils import logging as hf_logging

from modeling_magic import MagicForMaskedLM, MagicForSequenceClassification
from training.distillation.teacher import (
    TeacherCache,
    check_teacher,
    check_tokenizers,
    follow_teacher,
    head_of,
    load_teacher,
    masked_logits,
    sequence_keys,
    teacher_inputs,
    weights_hash,
)
from training.retraining.settings import DistillSettings
from training.supernet.blockwise import load_teacher_encoder


SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{index}" for index in range(95))]
DISTILBERT = DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, pad_token_id=0)
MASKED_LMS = {
    "magic": lambda: MagicForMaskedLM(toy_child()),
    "magic, sparse": lambda: MagicForMaskedLM(toy_child(sparse_prediction=True)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "electra": lambda: ElectraForMaskedLM(ElectraConfig(**SIZES, embedding_size=16)),
    "distilbert": lambda: DistilBertForMaskedLM(DISTILBERT),
}


def tokenizer(words=WORDS, **changes) -> BertTokenizer:
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, **changes)


def saved(model, folder, words=WORDS, **changes):
    model.save_pretrained(folder)
    tokenizer(words, **changes).save_pretrained(folder)
    return folder


def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(5, 100, (3, 9), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 6:] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


# ---- Loading and refusals ----


def test_a_teacher_is_loaded_frozen_without_dropout(tmp_path):
    source = BertForMaskedLM(BertConfig(**SIZES))
    teacher = load_teacher(saved(source, tmp_path), tokenizer())
    assert not teacher.training
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert all(torch.equal(own, other) for own, other in zip(teacher.parameters(), source.parameters(), strict=True))
    assert isinstance(load_teacher(saved(MagicForMaskedLM(toy_child()), tmp_path / "magic")), MagicForMaskedLM)


@pytest.mark.parametrize("place", ["model", "model/flops-0.5x", "mine/model"])
def test_a_run_stands_for_the_teacher_in_it(place, tmp_path):
    saved(BertForMaskedLM(BertConfig(**SIZES)), tmp_path / place)
    (tmp_path / "run.json").write_text("{}", encoding="utf-8")
    assert isinstance(load_teacher(tmp_path, tokenizer()), BertForMaskedLM)
    assert isinstance(load_teacher_encoder(tmp_path, tokenizer()), BertModel)
    source, followed = follow_teacher(DistillSettings(teacher=str(tmp_path)))
    assert source == followed.data.tokenizer == str(tmp_path / place)


def test_rows_that_stand_for_no_token_are_cut_off(tmp_path):
    """A vocabulary filled up to a round number says the same of real tokens."""
    source = BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": 128})).eval()
    teacher = load_teacher(saved(source, tmp_path), tokenizer())
    assert teacher.config.vocab_size == 100
    inputs = batch()
    assert torch.allclose(teacher(**inputs).logits, source(**inputs).logits[..., :100], atol=1e-6)


def test_models_that_are_no_teachers_are_refused(tmp_path):
    encoder = saved(BertModel(BertConfig(**SIZES)), tmp_path / "encoder")
    with pytest.raises(
        ValueError, match=r"has no trained weights for classifier.bias; give a model that was trained as"
    ):
        load_teacher(encoder, None, AutoModelForSequenceClassification)
    with pytest.raises(ValueError, match="is a super-net; export one of its children"):
        load_teacher(saved(MagicForMaskedLM(toy_config()), tmp_path / "supernet"))
    with pytest.raises(ValueError, match=r"the teacher .*nowhere.* cannot be loaded"):
        load_teacher(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"the tokenizer '.*nowhere' cannot be loaded: there is no such folder"):
        load_teacher(tmp_path / "nowhere", tokenizer())
    damaged = saved(BertForMaskedLM(BertConfig(**SIZES)), tmp_path / "damaged")
    (damaged / "model.safetensors").write_bytes((damaged / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged.* cannot be loaded"):
        load_teacher(damaged)


SWAPPED = [*WORDS[:7], WORDS[8], WORDS[7], *WORDS[9:]]


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            lambda: tokenizer(WORDS[:90]),
            r"\(90 tokens\) than the student's \(100\): .* 'word85', no id in the teacher and 90",
        ),
        (
            lambda: tokenizer([*WORDS, "more"]),
            r"\(101 tokens\) .* differs is 'more', 100 in the teacher and no id in the student",
        ),
        (lambda: tokenizer(SWAPPED), r"\(100 tokens\) .* differs is 'word2', 8 in the teacher and 7 in the student"),
        (
            lambda: tokenizer(pad_token="word3"),
            "the pad_token of the teacher 'other' has the id 8, but the student's has 0",
        ),
        (lambda: tokenizer(mask_token="word4"), "the mask_token of the teacher 'other' has the id 9"),
    ],
)
def test_other_tokenizers_are_refused_with_the_first_difference(other, message):
    with pytest.raises(ValueError, match=message):
        check_tokenizers(other(), tokenizer(), "other")
    check_tokenizers(tokenizer(), tokenizer(), "same")


def test_the_same_vocabulary_cut_in_another_way_is_refused():
    letters = [*WORDS[:5], *(f"{prefix}{letter}" for prefix in ("", "##") for letter in "abcdefghijklmnopqrstuvwxyzT")]
    lower, cased = (tokenizer(letters, do_lower_case=lower) for lower in (True, False))
    assert lower.get_vocab() == cased.get_vocab()
    with pytest.raises(
        ValueError,
        match=r"but splits .The Quick .* into other tokens: the first is 'T' in the teacher and 't' in the student",
    ):
        check_tokenizers(cased, lower, "cased")


def classifier(num_labels=3, kind=BertForSequenceClassification, **changes):
    return kind(BertConfig(**SIZES | {"num_labels": num_labels} | changes))


@pytest.mark.parametrize(
    ("teacher", "student", "message"),
    [
        (
            lambda: BertForMaskedLM(BertConfig(**SIZES)),
            lambda: MagicForMaskedLM(toy_child(vocab_size=96)),
            "vocab_size is 100 in the teacher and 96 in the student",
        ),
        (
            lambda: BertForMaskedLM(BertConfig(**SIZES | {"pad_token_id": 1})),
            lambda: MagicForMaskedLM(toy_child()),
            "pad_token_id is 1 in the teacher and 0 in the student",
        ),
        (
            lambda: classifier(vocab_size=96),
            lambda: classifier(),
            "vocab_size is 96 in the teacher and 100 in the student",
        ),
        (
            lambda: classifier(),
            lambda: BertForMaskedLM(BertConfig(**SIZES)),
            "teacher is a BertForSequenceClassification but the student is a BertForMaskedLM",
        ),
        (lambda: classifier(3), lambda: classifier(2), "the teacher has 3 labels but the student has 2"),
        (
            lambda: classifier(2, BertForTokenClassification),
            lambda: classifier(5, BertForTokenClassification),
            "the teacher has 2 labels but the student has 5",
        ),
        (
            lambda: classifier(2, id2label={0: "no", 1: "yes"}),
            lambda: classifier(2, id2label={0: "yes", 1: "no"}),
            "label 0 is 'no' in the teacher and 'yes' in the student",
        ),
        (
            lambda: classifier(2, problem_type="multi_label_classification"),
            lambda: classifier(2, problem_type="single_label_classification"),
            "problem_type is multi_label_classification in the teacher",
        ),
        (
            lambda: ElectraForPreTraining(ElectraConfig(**SIZES)),
            lambda: classifier(),
            "ElectraForPreTraining cannot be distilled; use a class whose name ends in one of: ForMaskedLM",
        ),
    ],
)
def test_a_teacher_that_speaks_of_something_else_is_refused(teacher, student, message):
    with pytest.raises(ValueError, match=message):
        check_teacher(teacher(), student())


def test_a_filled_up_vocabulary_is_no_obstacle_to_fine_tuning(tmp_path):
    """Both are of one checkpoint with more rows than tokens, or the teacher alone is."""
    source = saved(classifier(2, vocab_size=128), tmp_path)
    teacher = load_teacher(source, tokenizer(), AutoModelForSequenceClassification)
    check_teacher(teacher, classifier(2, vocab_size=128))
    check_teacher(teacher, classifier(2))


def test_loading_reports_nothing_beside_the_error(tmp_path):
    encoder = saved(BertModel(BertConfig(**SIZES)), tmp_path / "encoder")
    reports: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = reports.append
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_warning()
    hf_logging.add_handler(handler)
    try:
        with pytest.raises(ValueError, match="has no trained weights"):
            load_teacher(encoder, None, AutoModelForSequenceClassification)
        assert hf_logging.get_verbosity() == hf_logging.WARNING
    finally:
        hf_logging.remove_handler(handler)
        hf_logging.set_verbosity(before)
    assert not reports


def test_a_teacher_without_names_for_its_labels_fits():
    named = classifier(2, id2label={0: "no", 1: "yes"})
    check_teacher(classifier(2), named)
    check_teacher(named, classifier(2, id2label={0: "no", 1: "yes"}))
    check_teacher(classifier(4), MagicForSequenceClassification(toy_child(num_labels=4)))
    assert head_of(named) == "ForSequenceClassification"


# ---- Predictions ----


def test_a_teacher_reads_neither_labels_nor_what_its_class_has_no_place_for():
    inputs = {**batch(), "labels": torch.zeros(3), "length": torch.zeros(3)}
    assert set(teacher_inputs(MASKED_LMS["bert"](), inputs)) == {"input_ids", "attention_mask", "token_type_ids"}
    assert set(teacher_inputs(MASKED_LMS["distilbert"](), inputs)) == {"input_ids", "attention_mask"}
    one_type = BertForMaskedLM(BertConfig(**SIZES, type_vocab_size=1))
    assert set(teacher_inputs(one_type, inputs)) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize("name", MASKED_LMS)
@pytest.mark.parametrize("rows", [3, 1])
def test_masked_logits_are_the_models_own_at_these_positions(name, rows):
    torch.manual_seed(0)
    model = MASKED_LMS[name]().eval()
    inputs = {key: value[:rows] for key, value in teacher_inputs(model, batch()).items()}
    masked = torch.zeros(3, 9, dtype=torch.bool)
    masked[0, [1, 4]] = masked[2, 8] = True
    seen = []
    hook = model.get_output_embeddings().register_forward_hook(lambda module, args, output: seen.append(args[0].shape))
    logits = masked_logits(model.base_model, model, inputs, masked[:rows])
    hook.remove()
    assert torch.allclose(logits, model(**inputs).logits[masked[:rows]], atol=1e-6)
    # The head saw no other position, and nothing is left hooked.
    assert [shape[:-1].numel() for shape in seen] == [int(masked[:rows].sum())]
    assert not model.base_model._forward_hooks
    assert masked_logits(model.base_model, model, inputs, torch.zeros_like(masked[:rows])).shape == (0, 100)


def test_a_model_that_keeps_its_encoder_elsewhere_runs_its_head_on_all_positions():
    model = MASKED_LMS["bert"]().eval()
    inputs, masked = batch(), torch.zeros(3, 9, dtype=torch.bool)
    masked[0, :2] = True
    logits = masked_logits(model, model, inputs, masked)
    assert torch.equal(logits, model(**inputs).logits[masked])


# ---- The cache ----


def test_the_hash_is_of_the_weights_and_of_what_they_compute(tmp_path):
    torch.manual_seed(0)
    model = MASKED_LMS["bert"]()
    first = weights_hash(model)
    assert weights_hash(copy.deepcopy(model)) == first
    assert weights_hash(AutoModelForMaskedLM.from_pretrained(saved(model, tmp_path))) == first
    assert weights_hash(copy.deepcopy(model).to(torch.bfloat16)) != first
    changed = copy.deepcopy(model)
    with torch.no_grad():
        changed.bert.encoder.layer[1].output.dense.weight[3, 5] += 1e-4
    assert weights_hash(changed) != first
    other = copy.deepcopy(model)
    other.config.hidden_act = "relu"
    assert weights_hash(other) != first


def test_a_key_is_of_the_tokens_read_and_not_of_the_padding():
    inputs = batch()
    keys = sequence_keys(inputs)
    assert len(set(keys)) == 3
    longer = {name: torch.nn.functional.pad(value, (0, 4)) for name, value in inputs.items()}
    assert sequence_keys(longer) == keys
    shorter = {name: value[1:2, :6] for name, value in inputs.items()}
    assert sequence_keys(shorter) == keys[1:2]
    # Without padding no mask is needed.
    del shorter["attention_mask"]
    assert sequence_keys(shorter) == keys[1:2]
    other = copy.deepcopy(inputs)
    other["token_type_ids"][0, 3] = 1
    assert [own == new for own, new in zip(keys, sequence_keys(other), strict=True)] == [False, True, True]
    masked = torch.zeros(3, 9, dtype=torch.bool)
    masked[2, 4] = True
    of_masked = sequence_keys(inputs, masked)
    assert not set(of_masked) & set(keys)
    assert sequence_keys(inputs, masked.roll(1, 1))[:2] == of_masked[:2]
    assert sequence_keys(inputs, masked.roll(1, 1))[2] != of_masked[2]
    # Padding on the other side moves positions.
    left = {name: torch.nn.functional.pad(value, (4, 0)) for name, value in shorter.items()}
    left["attention_mask"] = torch.tensor([[0] * 4 + [1] * 6])
    assert sequence_keys(left) != keys[1:2]


def records(number: int, seed: int = 0) -> dict[bytes, dict[str, np.ndarray]]:
    rng = np.random.default_rng(seed)
    found: dict[bytes, dict[str, np.ndarray]] = {}
    for _ in range(number):
        rows = int(rng.integers(0, 6))
        values = rng.normal(size=(rows, 4)).astype(np.float16)
        classes = rng.integers(0, 2**16, (rows, 4)).astype(np.uint16)
        found[rng.bytes(16)] = {"log_probs": values, "classes": classes, "log_rest": values[:, 0].astype(np.float32)}
    return found


def assert_holds(cache: TeacherCache, expected) -> None:
    for key, record in expected.items():
        found = cache.get(key)
        assert found is not None
        assert set(found) == set(record)
        for name, array in record.items():
            assert found[name].dtype == array.dtype
            assert np.array_equal(found[name], array)


@settings(max_examples=25)
@given(number=st.integers(0, 30), flush_every=st.integers(1, 10))
def test_what_is_put_is_found_before_and_after_it_is_on_disk(tmp_path_factory, number, flush_every):
    folder = tmp_path_factory.mktemp("cache")
    cache, expected = TeacherCache(folder, {"weights": "a"}), records(number)
    for index, (key, record) in enumerate(expected.items()):
        cache.put(key, record)
        if index % flush_every == 0:
            cache.flush()
    assert_holds(cache, expected)
    assert len(cache) == number
    assert cache.get(b"x" * 16) is None
    cache.flush()
    again = TeacherCache(folder, {"weights": "a"})
    assert len(again) == number
    assert_holds(again, expected)
    assert_holds(cache, expected)


def test_other_teachers_and_settings_have_folders_of_their_own(tmp_path):
    cache = TeacherCache(tmp_path, {"weights": "a", "top_k": 4})
    for key, record in records(3).items():
        cache.put(key, record)
    cache.flush()
    assert json.loads((cache.folder / "settings.json").read_text())["top_k"] == 4
    for other in ({"weights": "b", "top_k": 4}, {"weights": "a", "top_k": 8}, {"weights": "a"}):
        assert len(TeacherCache(tmp_path, other)) == 0


def test_enough_of_them_are_written_without_being_asked(tmp_path, monkeypatch):
    monkeypatch.setattr("training.distillation.teacher._SHARD_BYTES", 200)
    cache, expected = TeacherCache(tmp_path, {}), records(40)
    for key, record in expected.items():
        cache.put(key, record)
    # As after a kill: what was not written is gone, nothing else.
    again = TeacherCache(tmp_path, {})
    assert 40 - 10 < len(again) <= 40
    assert len(list(again.folder.glob("*.safetensors"))) > 3
    assert_holds(again, {key: record for key, record in expected.items() if again.get(key) is not None})


@pytest.mark.parametrize("damage", ["cut off", "one bit", "empty"])
def test_a_damaged_file_is_named(tmp_path, damage):
    cache = TeacherCache(tmp_path, {})
    for seed in (0, 1):
        for key, record in records(5, seed).items():
            cache.put(key, record)
        cache.flush()
    path = sorted(cache.folder.glob("*.safetensors"))[1]
    content = bytearray(path.read_bytes())
    if damage == "one bit":
        content[-20] ^= 4
    path.write_bytes(bytes(content) if damage == "one bit" else bytes(content[: 0 if damage == "empty" else -7]))
    with pytest.raises(ValueError, match=rf"{path.name} is damaged: .* delete it"):
        TeacherCache(tmp_path, {})
    path.unlink()
    assert len(TeacherCache(tmp_path, {})) == 5


def test_a_write_that_is_interrupted_leaves_nothing_half(tmp_path, monkeypatch):
    cache, expected = TeacherCache(tmp_path, {}), records(5)
    for key, record in expected.items():
        cache.put(key, record)
    monkeypatch.setattr("pathlib.Path.replace", lambda *_: (_ for _ in ()).throw(OSError("is busy")))
    with pytest.raises(OSError, match="is busy"):
        cache.flush()
    monkeypatch.undo()
    assert len(TeacherCache(tmp_path, {})) == 0
    # And can be done again.
    cache.flush()
    assert_holds(TeacherCache(tmp_path, {}), expected)


def test_two_processes_may_fill_one_cache(tmp_path):
    first, second = TeacherCache(tmp_path, {}), TeacherCache(tmp_path, {})
    expected = records(6)
    for index, (key, record) in enumerate(expected.items()):
        for cache in (first, second)[index % 2 :]:
            cache.put(key, record)
    first.flush()
    second.flush()
    assert_holds(TeacherCache(tmp_path, {}), expected)


def test_rows_are_kept_for_the_largest_id_of_a_vocabulary_with_gaps(tmp_path):
    gapped = BertTokenizer(vocab={word: index + (index == 94) * 11 for index, word in enumerate(WORDS[:95])})
    assert len(gapped) < 106
    BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": 128})).save_pretrained(tmp_path)
    gapped.save_pretrained(tmp_path)
    assert load_teacher(tmp_path, gapped).config.vocab_size == 106
