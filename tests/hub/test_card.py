"""The model card: what was measured, and nothing of other weights or of this machine."""

import ast
import copy
import json
import re
from pathlib import Path
from typing import Any

import pytest
import toy_hub
import yaml
from huggingface_hub import ModelCard, parse_eval_result_entries
from toy_hub import CORPUS, MIXED, SEARCH, export_child, export_tokenizer
from transformers import AutoModelForMaskedLM, AutoTokenizer

from training.hub.card import results_table, spread
from training.hub.export import export_model


@pytest.fixture(scope="module")
def tokenizer():
    return export_tokenizer()


@pytest.fixture
def child(supernet, tokenizer):
    return export_child(supernet, tokenizer)


ROW: dict[str, Any] = {
    "name": "this model",
    "architecture": MIXED,
    "num_parameters": 1_234_567,
    "flops": 2e8,
    "steps": 800,
    "val_loss": [5.0, 5.2],
    "val_accuracy": [0.25, 0.21],
    "seed": [3, 4],
}
TRAINING: dict[str, Any] = {**toy_hub.TRAINING, "seed": 4, "versions": {"torch": "2.13.0"}}


def test_card_tells_what_was_measured(child, tokenizer, tmp_path):
    manifest = {"search": SEARCH, "training": TRAINING, "results": [ROW]}
    folder = export_model(child, tokenizer, tmp_path / "model", manifest)
    card = ModelCard.load(folder / "README.md")
    assert "$" not in card.content
    assert "MHA4,CONV3,FFN,CONV5" in card.text
    assert "4 layers, 256 children" in card.text
    assert (
        "| this model | MHA4,CONV3,FFN,CONV5 | 1.23M | 2.00e+08 | 800 | 5.100 +- 0.100 | 23.0 +- 2.0% |" in card.text
    )
    assert "![The operators from the bottom up](architecture.png)" in card.text
    assert card.data.to_dict() == {
        "language": "en",
        "library_name": "transformers",
        "license": "unknown",
        "metrics": ["accuracy"],
        "pipeline_tag": "fill-mask",
        "tags": ["magic", "neural-architecture-search", "encoder"],
        "mask_token": "[MASK]",
        "widget": [{"text": "This function returns the [MASK] of the input."}],
        "model-index": [
            {
                "name": "model",
                "results": [
                    {
                        "task": {"type": "fill-mask", "name": "masked language modelling"},
                        "dataset": {
                            "name": "docstrings, documents held out from training",
                            "type": "text",
                            "args": {"sha256": "b" * 64},
                        },
                        "metrics": [
                            {"type": "loss", "value": 5.2, "name": "masked-LM loss (nats per masked token)"},
                            {"type": "accuracy", "value": 0.21, "name": "accuracy on masked tokens"},
                        ],
                    }
                ],
            }
        ],
    }
    assert not (folder / ".eval_results").exists()


@pytest.mark.parametrize(
    "manifest",
    [
        {},
        {"search": SEARCH, "results": [ROW]},
        {"training": TRAINING | {"seed": 5}, "results": [ROW]},
        {"training": TRAINING, "results": [ROW | {"architecture": ("FFN",) * 4}]},
        {"training": TRAINING},
    ],
    ids=["nothing known", "no record of the training", "another seed", "another architecture", "no results"],
)
def test_card_claims_no_result_of_other_weights(child, tokenizer, tmp_path, manifest):
    folder = export_model(child, tokenizer, tmp_path / "model", manifest)
    data = ModelCard.load(folder / "README.md").data
    assert data.eval_results is None
    assert data.metrics is None
    assert data.datasets is None


def test_card_of_weights_taken_from_a_supernet(child, tokenizer, tmp_path):
    search = {**SEARCH, "val_accuracy": 0.125, "corpus": CORPUS}
    card = ModelCard.load(export_model(child, tokenizer, tmp_path / "model", {"search": search}) / "README.md")
    assert "weights are those of the super-net" in card.text
    assert [result.metric_value for result in card.data.eval_results] == [5.25, 0.125]
    assert card.data.language == "en"


def test_a_card_says_only_what_is_known_of_the_weights(child, tokenizer, tmp_path):
    searched = {**SEARCH, "corpus": TRAINING["corpus"], "val_loss": 4.25, "val_accuracy": 0.125}
    card = (export_model(child, tokenizer, tmp_path / "searched", {"search": searched}) / "README.md").read_text()
    assert "As a masked LM, on text held out from training: loss 4.2500, accuracy 0.1250." in card
    assert "It has learned only from the text named above" in card
    assert f"| text | {TRAINING['corpus']['source']} |" in card
    bare = (export_model(child, tokenizer, tmp_path / "bare", {}) / "README.md").read_text()
    assert "Nothing was measured." in bare
    assert "the text named above" not in bare
    assert "It has the kind of language, topics and biases of the text that its weights were trained on." in bare
    assert "license: unknown" in bare


@pytest.mark.parametrize(
    ("budget", "stated"),
    [({"budget": "at most 0.40 of its FLOPs"}, "at most 0.40 of its FLOPs"), ({}, "not recorded")],
)
def test_card_of_a_compressed_model_that_was_trained_further(child, tokenizer, tmp_path, budget, stated):
    folder = export_model(child, tokenizer, tmp_path / "model", {"compressed_from": "ada/encoder", **budget})
    card = (folder / "README.md").read_text()
    link = "[ada/encoder](https://huggingface.co/ada/encoder)"
    assert f"The layers were found by compressing {link}. Budget: {stated}." in card


def test_card_names_a_data_set_of_the_hub(child, tokenizer, tmp_path):
    corpus = {**CORPUS, "source": "Salesforce/wikitext", "dataset_config": "wikitext-103-v1"}
    manifest = {"training": {**TRAINING, "corpus": corpus}, "results": [ROW], "language": "en"}
    folder = export_model(child, tokenizer, tmp_path / "model", manifest)
    data = ModelCard.load(folder / "README.md").data
    assert data.datasets == ["Salesforce/wikitext"]
    assert data.language == "en"
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_config, result.dataset_split) == (
        "Salesforce/wikitext",
        "wikitext-103-v1",
        "train",
    )
    (path,) = (folder / ".eval_results").iterdir()
    assert path.name == "wikitext.yaml"
    (entry,) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    assert (entry.dataset_id, entry.task_id, entry.value) == ("Salesforce/wikitext", "wikitext-103-v1", 0.21)
    assert entry.notes == "accuracy on masked tokens; documents held out from the train split"


@pytest.mark.parametrize(
    "source", ["{folder}", "{folder}/secret-owner/text.txt", "~/secret-owner/text", "secret-owner/a.txt"]
)
def test_no_path_of_this_machine_is_published(child, tokenizer, tmp_path, monkeypatch, source):
    private = tmp_path / "secret-owner" / "text"
    private.mkdir(parents=True)
    tokenizer.save_pretrained(private)
    source = source.format(folder=private)
    corpus = {**CORPUS, "source": source}
    search = {**SEARCH, "corpus": corpus, "space": [[str(private)]]}
    manifest = {"search": search, "training": {**TRAINING, "corpus": corpus, "start": str(private)}, "results": [ROW]}
    tokenizer = AutoTokenizer.from_pretrained(private)
    child.save_pretrained(private)
    child = AutoModelForMaskedLM.from_pretrained(private)
    folder = export_model(child, tokenizer, tmp_path / "model", manifest)
    for path in (item for item in folder.rglob("*") if item.is_file()):
        assert b"secret-owner" not in path.read_bytes(), path
    manifest = json.loads((folder / "search.json").read_text())
    assert manifest["training"]["corpus"]["source"] == Path(source).name
    data = ModelCard.load(folder / "README.md").data
    assert data.datasets is None
    assert data.language is None
    assert data.eval_results[0].dataset_type == "text"
    assert not (folder / ".eval_results").exists()
    # What was local stays local when the manifest is exported again.
    again = export_model(child, tokenizer, tmp_path / "again", manifest)
    assert ModelCard.load(again / "README.md").data.datasets is None


def test_a_folder_of_text_beside_the_run_is_no_data_set(child, tokenizer, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpora" / "english").mkdir(parents=True)
    corpus = {**CORPUS, "source": "corpora/english"}
    folder = export_model(child, tokenizer, tmp_path / "model", {"training": {**TRAINING, "corpus": corpus}})
    assert ModelCard.load(folder / "README.md").data.datasets is None
    assert "corpora" not in (folder / "search.json").read_text()


def test_no_name_breaks_the_card(child, tokenizer, tmp_path):
    """Names of text, of objectives and of folders, and a mask token, are others' words."""
    corpus = {**CORPUS, "source": "x|y\n<script>alert(1)</script>![a](http://b)", "source_kind": "local"}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_special_tokens({"mask_token": '"); import os; ("'})
    name = 'm"<b>`\n# title'
    folder = export_model(child, tokenizer, tmp_path / name, {"training": {**TRAINING, "corpus": corpus}})
    text = (folder / "README.md").read_text(encoding="utf-8")
    body = text.split("\n---\n")[1]
    assert "| text | x\\|y \\<script>alert(1)\\</script>!\\[a](http://b) |" in body
    assert body.startswith("\n# m--b---# title\n")
    blocks = re.findall(r"```python\n(.*?)```", body, re.S)
    assert len(blocks) == 2
    for block in blocks:
        calls = [node for node in ast.walk(ast.parse(block)) if isinstance(node, ast.Import)]
        assert [alias.name for node in calls for alias in node.names] in ([], ["modeling_magic"])
    assert ModelCard(text).data.mask_token == tokenizer.mask_token


def test_tables():
    assert results_table([]) == "Nothing was measured."
    assert spread([1.0], 2) == "1.00"
