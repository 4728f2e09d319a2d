"""Compressed models as folders that are used like the checkpoint: by commands, libraries and the card's examples."""

import json
import re
import shutil
from hashlib import sha256
from pathlib import Path

import numpy
import pytest
import torch
import transformers
from hub_server import run_client
from huggingface_hub import ModelCard
from toy import toy_config
from toy_hub import SENTENCES, assert_same_tensors
from toy_sources import (
    CHILD,
    LABELS,
    add_modules,
    edit_json,
    save_checkpoint,
    save_sentence_checkpoint,
    toy_child,
)
from toy_verify import differing, edit, edit_record, verdicts, without_contents
from transformers import AutoTokenizer

from modeling_magic import MagicForMaskedLM, MagicModel
from training.compression.compressed_folder import export_compressed
from training.compression.source import Pooling, Source, load_source
from training.hub.card import HEADS
from training.hub.convert import convert_checkpoint
from training.hub.publish import check_export, push_model
from training.hub.verify import verify_export


BUDGET = "at most 0.40 of the checkpoint's latency"
TABLE = "| model | score |\n| --- | ---: |\n| checkpoint | 82.0 |\n| this model | 81.4 |"
CLASSES = {
    "BertModel": "MagicModel",
    "RobertaModel": "MagicModel",
    "ElectraForMaskedLM": "MagicForMaskedLM",
    "RobertaForMaskedLM": "MagicForMaskedLM",
    "BertForSequenceClassification": "MagicForSequenceClassification",
    "ElectraForTokenClassification": "MagicForTokenClassification",
    "RobertaForQuestionAnswering": "MagicForQuestionAnswering",
}


def export(source: Source, output_dir: Path, **manifest) -> Path:
    return export_compressed(source, toy_child(source.model), output_dir, manifest, budget=BUDGET, table=TABLE)


def examples(folder: Path) -> list[str]:
    """The blocks of Python on a card, with the folder's path where a user writes it."""
    blocks = re.findall(r"```python\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL)
    assert all(block.count(f"path/to/{folder.name}") == 1 for block in blocks)
    return [block.replace(f"path/to/{folder.name}", str(folder)) for block in blocks]


@pytest.fixture(scope="module")
def exports(tmp_path_factory) -> dict[str, tuple[Source, Path]]:
    """A compressed checkpoint of every family and head: its source and its folder."""
    work = tmp_path_factory.mktemp("exports")
    found = {}
    for class_name in CLASSES:
        source = load_source(str(save_checkpoint(work / "sources" / class_name, class_name)))
        found[class_name] = (source, export(source, work / class_name))
    return found


@pytest.fixture(scope="module")
def sentence_source(tmp_path_factory) -> Source:
    folder = save_sentence_checkpoint(tmp_path_factory.mktemp("sentence") / "source", max_seq_length=12)
    edit_json(folder / "config_sentence_transformers.json", prompts={"query": "find: "}, similarity_fn_name="dot")
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n# A model\n")
    return load_source(str(folder))


@pytest.fixture(scope="module")
def sentence_export(sentence_source, tmp_path_factory) -> Path:
    return export(sentence_source, tmp_path_factory.mktemp("compressed") / "small", search={"seed": 3})


def expected_embeddings(source: Source, sentences: list[str]) -> numpy.ndarray:
    """What the child, as it was in memory, pools to."""
    assert source.pooling is not None
    batch = source.tokenizer(
        sentences, padding=True, truncation=True, max_length=source.max_length, return_tensors="pt"
    )
    with torch.no_grad():
        states = toy_child(source.model)(**batch).last_hidden_state
    return source.pooling(states, batch["attention_mask"]).numpy()


# ---- Every head ----


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_folder_is_what_the_source_was(exports, class_name):
    source, folder = exports[class_name]
    kind = CLASSES[class_name]
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [kind]
    assert config["candidate_operators"] == [[name] for name in CHILD]
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
        assert config[name] == getattr(source.model.config, name)
    assert config["hidden_dropout_prob"] > 0
    loaded = getattr(transformers, HEADS[kind].auto_class).from_pretrained(folder).eval()
    assert_same_tensors(loaded, toy_child(source.model))
    assert loaded.config.id2label == source.model.config.id2label
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer(SENTENCES).data == AutoTokenizer.from_pretrained(source.folder)(SENTENCES).data
    longest = source.model.config.max_sequence_length
    assert tokenizer.model_max_length == min(source.tokenizer.model_max_length, longest)
    manifest = json.loads((folder / "search.json").read_text())
    weights = (source.model_folder / "model.safetensors").read_bytes()
    assert manifest["compressed_from"] == f"sha256:{sha256(weights).hexdigest()}"
    assert (manifest["kind"], manifest["budget"]) == (source.kind, BUDGET)
    assert manifest["num_parameters"] == loaded.num_parameters()


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_folder_can_be_compressed_again_and_published(exports, class_name):
    source, folder = exports[class_name]
    again = load_source(str(folder))
    assert (again.kind, again.pooling, again.max_length) == (source.kind, source.pooling, source.max_length)
    assert_same_tensors(again.model, toy_child(source.model))
    report = push_model(folder, "ada/small", dry_run=True)
    assert set(report.files) == set(check_export(folder))


@pytest.mark.parametrize("class_name", CLASSES)
def test_the_card_says_what_it_is_and_its_examples_run(exports, class_name):
    source, folder = exports[class_name]
    card = ModelCard.load(folder / "README.md")
    is_sentence = source.kind == "sentence"
    assert card.data.pipeline_tag == ("feature-extraction" if is_sentence else HEADS[CLASSES[class_name]].task)
    assert card.data.library_name == ("sentence-transformers" if is_sentence else "transformers")
    assert {"magic", "encoder"} <= set(card.data.tags)
    assert card.data.license == "unknown"
    assert card.data.base_model is None
    assert "compressed from the model whose weights have the SHA-256" in card.text
    for text in (
        BUDGET,
        TABLE,
        ",".join(CHILD),
        "3, the checkpoint 4",
        f"the checkpoint {source.model.num_parameters():,}",
    ):
        assert text in card.text
    assert "$" not in card.text
    assert str(source.folder) not in card.text
    blocks = examples(folder)
    assert len(blocks) == (2 if is_sentence else 1)
    for block in blocks:
        if "sentence_transformers" in block:
            pytest.importorskip("sentence_transformers")
        exec(block, {})


def test_the_model_and_the_tokenizer_are_left_as_they_are(sentence_source, tmp_path):
    model = toy_child(sentence_source.model)
    before, tensors = model.config.to_dict(), {name: value.clone() for name, value in model.state_dict().items()}
    sentence_source.tokenizer(SENTENCES, padding=True, truncation=True, max_length=5)
    folder = export_compressed(sentence_source, model, tmp_path / "small", {}, budget=BUDGET, table=TABLE)
    assert model.config.to_dict() == before
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in model.state_dict().items())
    written, kept = (json.loads((place / "tokenizer.json").read_text()) for place in (folder, sentence_source.folder))
    assert written == kept, "what a call leaves behind in a tokenizer is not written"


# ---- Sentence embeddings ----


def test_sentence_transformers_loads_the_folder_with_the_package(sentence_source, sentence_export):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    expected = expected_embeddings(sentence_source, SENTENCES)
    teacher = sentence_transformers.SentenceTransformer(str(sentence_source.folder), device="cpu")
    for options in ({"trust_remote_code": True}, {}):
        encoder = sentence_transformers.SentenceTransformer(str(sentence_export), device="cpu", **options)
        numpy.testing.assert_allclose(encoder.encode(SENTENCES), expected, rtol=0, atol=1e-5)
        assert encoder.get_embedding_dimension() == teacher.get_embedding_dimension() == 32
        assert encoder.max_seq_length == teacher.max_seq_length == 12
        assert encoder.prompts == teacher.prompts
        assert encoder.similarity_fn_name == "dot"


def test_sentence_transformers_loads_the_folder_without_the_package(sentence_source, sentence_export, tmp_path):
    """In a clean process, offline, by the code beside the weights: the same embeddings, and both examples run."""
    pytest.importorskip("sentence_transformers")
    code = f"""
import sys
import numpy
from sentence_transformers import SentenceTransformer
encoder = SentenceTransformer({str(sentence_export)!r}, trust_remote_code=True, device="cpu")
assert type(encoder[0].model).__module__.startswith("transformers_modules."), type(encoder[0].model)
numpy.save("found.npy", encoder.encode({SENTENCES!r}))
spaces = []
for block in {examples(sentence_export)!r}:
    spaces.append({{}})
    exec(block, spaces[-1])
numpy.testing.assert_allclose(spaces[0]["embeddings"], spaces[1]["embeddings"].numpy(), rtol=0, atol=1e-5)
assert "training" not in sys.modules and "modeling_magic" not in sys.modules
"""
    run_client(code, tmp_path, packages=False)
    expected = expected_embeddings(sentence_source, SENTENCES)
    numpy.testing.assert_allclose(numpy.load(tmp_path / "found.npy"), expected, rtol=0, atol=1e-5)


def test_the_card_of_sentence_embeddings(sentence_source, sentence_export):
    card = ModelCard.load(sentence_export / "README.md")
    assert card.data.pipeline_tag == "sentence-similarity"
    assert card.data.library_name == "sentence-transformers"
    assert {"magic", "sentence-transformers", "sentence-similarity"} <= set(card.data.tags)
    assert (card.data.license, card.data.language) == ("mit", "de")
    assert "32 numbers, mean of the last states, scaled to length 1" in card.text
    assert "12 tokens" in card.text
    manifest = json.loads((sentence_export / "search.json").read_text())
    assert manifest["search"] == {"seed": 3}
    again = load_source(str(sentence_export))
    assert again.notes[-1] == "prompts: query, kept in the export; texts are embedded without them"
    assert again.notes[0] == "kind: sentence, because modules.json belongs to a sentence-transformers model"


def test_an_untouched_folder_is_as_recorded_and_an_edited_table_is_not(exports, sentence_export, tmp_path):
    for _, folder in exports.values():
        assert not verify_export(folder).differing
    folder = shutil.copytree(sentence_export, tmp_path / "small")
    found = verdicts(verify_export(folder).checks)
    assert set(found.values()) == {"ok"}
    edit(folder / "README.md", "| this model | 81.4 |", "| this model | 91.4 |")
    assert differing(folder) == {"card: Compared with the checkpoint", "card: lines with numbers"}
    edit(folder / "README.md", "## Compared with the checkpoint", "## Scores")
    assert differing(folder) >= {"card: Results", "card: Training"}
    edit_json(folder / "1_Pooling" / "config.json", pooling_mode_cls_token=True)
    assert "1_Pooling/config.json" in differing(folder)
    # Without a table in the record, what the card says is not known.
    bare = without_contents(shutil.copytree(sentence_export, tmp_path / "bare"))
    edit_record(bare, lambda record: record.pop("table"))
    assert differing(bare) == {"hashes of the files"}


def test_a_name_on_the_hub_is_the_base_model(sentence_source, tmp_path):
    named = Source(**{**vars(sentence_source), "name": "ada/encoder"})
    folder = export(named, tmp_path / "small")
    card = ModelCard.load(folder / "README.md")
    assert card.data.base_model == "ada/encoder"
    assert "compressed from [ada/encoder](https://huggingface.co/ada/encoder)" in card.text
    assert json.loads((folder / "search.json").read_text())["compressed_from"] == "ada/encoder"


@pytest.mark.parametrize(
    ("pooling", "types", "words"),
    [
        ({"pooling_mode": "cls"}, ("Transformer", "Pooling"), "the first token's state"),
        ({"pooling_mode": ["max", "mean"]}, ("Transformer", "Pooling", "Normalize"), None),
    ],
)
def test_other_poolings_are_kept(tmp_path, pooling, types, words):
    folder = add_modules(save_checkpoint(tmp_path / "source", "RobertaModel"), *types, pooling=pooling)
    source = load_source(str(folder))
    exported = export(source, tmp_path / "small")
    assert load_source(str(exported)).pooling == source.pooling
    assert (exported / "2_Normalize").is_dir() == ("Normalize" in types)
    card = ModelCard.load(exported / "README.md").text
    assert len(examples(exported)) == (1 if words is None else 2)
    assert words is None or f"With transformers alone, {words}:" in card
    sentence_transformers = pytest.importorskip("sentence_transformers")
    found = sentence_transformers.SentenceTransformer(str(exported), device="cpu").encode(SENTENCES)
    numpy.testing.assert_allclose(found, expected_embeddings(source, SENTENCES), rtol=0, atol=1e-5)
    assert found.shape[1] == (32 if words else 64)


def test_an_encoder_in_a_folder_of_its_own_comes_out_of_it(tmp_path):
    source_folder = tmp_path / "source"
    inside = save_checkpoint(source_folder / "0_Transformer", "BertModel")
    edit_json(inside / "sentence_bert_config.json", max_seq_length=20, do_lower_case=True, query_length=7)
    add_modules(source_folder, "Transformer", "Pooling")
    modules = json.loads((source_folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (source_folder / "modules.json").write_text(json.dumps(modules))
    source = load_source(str(source_folder))
    folder = export(source, tmp_path / "small")
    settings = json.loads((folder / "sentence_bert_config.json").read_text())
    assert settings == {"max_seq_length": 20, "do_lower_case": True, "query_length": 7}
    assert load_source(str(folder)).pooling == Pooling("mean", normalize=False)
    check_export(folder)


@pytest.mark.parametrize("saved_again", [False, True])
def test_a_cross_encoder_stays_one(tmp_path, saved_again):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    labels = {"id2label": {0: "LABEL_0"}, "label2id": {"LABEL_0": 0}}
    folder = save_checkpoint(tmp_path / "source", "BertForSequenceClassification", **labels)
    edit_json(folder / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.activation.Tanh"})
    if saved_again:
        sentence_transformers.CrossEncoder(str(folder), device="cpu").save(str(tmp_path / "saved"))
        folder = tmp_path / "saved"
    source = load_source(str(folder))
    exported = export(source, tmp_path / "small")
    pairs = list(zip(SENTENCES, reversed(SENTENCES), strict=True))
    with torch.no_grad():
        batch = source.tokenizer(pairs, padding=True, truncation=True, max_length=64, return_tensors="pt")
        expected = toy_child(source.model)(**batch).logits.squeeze(-1).tanh()
    for options in ({"trust_remote_code": True}, {}):
        encoder = sentence_transformers.CrossEncoder(str(exported), device="cpu", **options)
        numpy.testing.assert_allclose(encoder.predict(pairs), expected.numpy(), rtol=0, atol=1e-5)
    check_export(exported)
    assert load_source(str(exported)).kind == "sequence"


# ---- Other commands ----


@pytest.mark.slow
def test_onnx_takes_the_folder(sentence_source, sentence_export, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from training.hub.onnx_export import export_onnx

    folder = shutil.copytree(sentence_export, tmp_path / "small")
    session = onnxruntime.InferenceSession(str(export_onnx(folder, folder / "onnx")))
    batch = sentence_source.tokenizer(SENTENCES, padding=True, truncation=True, max_length=12, return_tensors="np")
    (states,) = session.run(["last_hidden_state"], dict(batch))
    found = sentence_source.pooling(torch.tensor(states), torch.tensor(batch["attention_mask"]))
    numpy.testing.assert_allclose(found, expected_embeddings(sentence_source, SENTENCES), rtol=0, atol=1e-4)
    assert "onnx/model.onnx" in check_export(folder)


def test_convert_takes_the_folder(sentence_source, tmp_path):
    child = toy_child(sentence_source.model, ("MHA4", "FFN"))
    folder = export_compressed(sentence_source, child, tmp_path / "small", {}, budget=BUDGET, table=TABLE)
    plain, dropped = convert_checkpoint(str(folder), tmp_path / "plain", "bert")
    assert dropped == ()
    model = transformers.AutoModel.from_pretrained(plain).eval()
    assert type(model) is transformers.BertModel
    batch = sentence_source.tokenizer(SENTENCES[:1], return_tensors="pt")
    with torch.no_grad():
        expected = child(**batch).last_hidden_state
        torch.testing.assert_close(model(**batch).last_hidden_state, expected, rtol=0, atol=1e-6)


def test_an_older_export_is_replaced_and_nothing_else(sentence_source, exports, tmp_path):
    source, _ = exports["BertForSequenceClassification"]
    folder = export(sentence_source, tmp_path / "small")
    assert (folder / "modules.json").is_file()
    export(source, folder)
    assert not (folder / "modules.json").exists()
    assert load_source(str(folder)).model.config.id2label == LABELS
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="mine holds something other than an exported model; use another folder"):
        export(source, tmp_path / "mine")


def test_models_that_are_no_child_of_the_source_are_refused(sentence_source, tmp_path):
    config = sentence_source.model.config
    wider = config.child_config(CHILD)
    wider.vocab_size += 1
    for model, message in (
        (MagicModel(toy_config()), "the model is a super-net; export one of its children"),
        (
            MagicForMaskedLM(config.child_config(CHILD)),
            "the model is a MagicForMaskedLM but the checkpoint is a MagicModel",
        ),
        (
            MagicModel(wider),
            f"vocab_size is {wider.vocab_size} in the model but {config.vocab_size} in the checkpoint",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            export_compressed(sentence_source, model, tmp_path / "small", {}, budget=BUDGET, table=TABLE)
    assert not (tmp_path / "small").exists()
