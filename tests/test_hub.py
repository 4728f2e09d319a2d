"""Presets, and exports that load elsewhere: in a clean process, without this package, offline."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline

from training.data import train_tokenizer
from training.hub import (
    CODE_FILES,
    compact_architecture,
    describe_space,
    export_model,
    load_preset,
    preset_names,
    results_table,
    spread,
)


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
TEXT = ["the quick brown fox jumps over the lazy dog", "a function returns the value of its argument"] * 20
SEARCH = {
    "candidate_operators": [["MHA4", "FFN", "CONV3", "CONV5"]] * 4,
    "sampler": "gradual, k = 1",
    "alignment": "anchor",
    "steps": 1200,
    "seed": 3,
    "val_loss": 5.25,
}


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXT, vocab_size=100)


@pytest.fixture
def child(supernet, tokenizer):
    supernet.config.sparse_prediction = True
    child = supernet.extract_child(MIXED)
    child.resize_token_embeddings(len(tokenizer))
    return child


def test_export_is_a_model_folder(child, tokenizer, tmp_path):
    before = child.config.to_dict()
    folder = export_model(child, tokenizer, tmp_path / "model", {"search": SEARCH})
    assert child.config.to_dict() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "README.md",
        "search.json",
        *CODE_FILES,
    }
    manifest = json.loads((folder / "search.json").read_text())
    assert manifest["architecture"] == list(MIXED)
    assert manifest["num_parameters"] == child.num_parameters()
    config = json.loads((folder / "config.json").read_text())
    assert config["sparse_prediction"] is False
    assert config["architectures"] == ["MagicForMaskedLM"]
    loaded = AutoModelForMaskedLM.from_pretrained(folder)
    ids = torch.randint(5, 50, (2, 9))
    assert torch.equal(loaded(ids).logits, child(ids).logits)
    assert AutoTokenizer.from_pretrained(folder)("the fox").input_ids == tokenizer("the fox").input_ids
    assert isinstance(AutoModel.from_pretrained(folder), type(child.magic))


def test_fill_mask_pipeline_answers(child, tokenizer, tmp_path):
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    guesses = pipeline("fill-mask", model=str(folder))("the [MASK] fox", top_k=3)
    assert len(guesses) == 3
    with torch.no_grad():
        logits = child(**tokenizer("the [MASK] fox", return_tensors="pt")).logits
    assert guesses[0]["token"] == logits[0, 2].argmax().item()


def test_export_loads_without_the_package(child, tokenizer, tmp_path):
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    code = f"""
import sys
import torch
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained({str(folder)!r}, trust_remote_code=True)
bare = AutoModel.from_pretrained({str(folder)!r}, trust_remote_code=True)
assert AutoConfig.from_pretrained({str(folder)!r}, trust_remote_code=True).hidden_size == 32
ids = torch.arange(5, 14).unsqueeze(0)
torch.save((model(ids).logits.detach(), bare(ids).last_hidden_state.detach()), {str(tmp_path / "out.pt")!r})
assert "training" not in sys.modules and "modeling_magic" not in sys.modules
assert type(model).__module__.startswith("transformers_modules.")
"""
    # An import hook refuses our packages, as if they were not installed.
    refuse = (
        "import sys\nclass Refuse:\n    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('modeling_magic', 'training'):\n            raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
    )
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", refuse + code], capture_output=True, text=True, env=environment, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    logits, hidden_states = torch.load(tmp_path / "out.pt", weights_only=True)
    ids = torch.arange(5, 14).unsqueeze(0)
    assert torch.equal(logits, child(ids).logits)
    assert torch.equal(hidden_states, child.magic(ids).last_hidden_state)


def test_export_leaves_later_saves_alone(child, tokenizer, tmp_path):
    export_model(child, tokenizer, tmp_path / "model", {})
    child.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))


def test_export_overwrites_nothing_but_an_export(child, tokenizer, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="model holds something else than an exported model; take another folder"):
        export_model(child, tokenizer, folder, {})
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    export_model(child, tokenizer, folder, {"note": "first"})
    export_model(child, tokenizer, folder, {"note": "second"})
    assert json.loads((folder / "search.json").read_text())["note"] == "second"


def test_failed_export_leaves_the_older_one(child, tokenizer, tmp_path, monkeypatch):
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    monkeypatch.setattr("training.hub.render_model_card", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        export_model(child, tokenizer, folder, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    AutoConfig.from_pretrained(folder)


def test_a_supernet_is_not_exported(supernet, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="super-net; export one of its children"):
        export_model(supernet, tokenizer, tmp_path / "model", {})


def test_card_tells_what_was_measured(child, tokenizer, tmp_path):
    row = {
        "name": "this model",
        "architecture": MIXED,
        "num_parameters": 1_234_567,
        "flops": 2e8,
        "steps": 800,
        "val_loss": [5.0, 5.2],
        "val_accuracy": [0.25, 0.21],
    }
    folder = export_model(child, tokenizer, tmp_path / "model", {"search": SEARCH, "results": [row]})
    card = (folder / "README.md").read_text()
    assert "$" not in card
    assert card.startswith("---\nlanguage: en\n")
    assert "MHA4,CONV3,FFN,CONV5" in card
    assert "4 layers, 256 children" in card
    assert "| this model | MHA4,CONV3,FFN,CONV5 | 1.23M | 2.00e+08 | 800 | 5.100 +- 0.100 | 23.0 +- 2.0% |" in card
    assert "weights are those of the super-net" in card


def test_tables():
    assert results_table([]) == "Nothing was measured."
    assert spread([1.0], 2) == "1.00"
    assert compact_architecture(("MHA4", "FFN") * 3) == "(MHA4,FFN)*3"
    assert compact_architecture(("MHA4", "FFN")) == "MHA4,FFN"
    assert compact_architecture(("FFN",) * 4) == "FFN,FFN,FFN,FFN"


# ---- Presets ----


def test_presets_by_name_by_file_and_by_folder(child, tokenizer, tmp_path):
    assert "magic-base" in preset_names()
    assert load_preset("magic-base").num_hidden_layers == 26
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    assert load_preset(str(folder)).candidate_operators == [[name] for name in MIXED]
    assert load_preset(str(folder / "config.json")).hidden_size == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "magic", "hidden_sise": 3}', "unknown keys: hidden_sise; known: .*hidden_size"),
        ('{"model_type": "bert"}', "its model_type is not 'magic'"),
        ('{"hidden_size": 3', "is not JSON"),
        ("[]", "not the configuration of a MAGIC model"),
        ('{"model_type": "magic", "hidden_size": "big"}', "hidden_size"),
        ('{"model_type": "magic", "candidate_operators": [["MHA5"]]}', "5 heads, which do not divide"),
    ],
)
def test_wrong_presets_are_refused(tmp_path, text, message):
    path = tmp_path / "preset.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_preset(str(path))


def test_unknown_presets_are_listed():
    with pytest.raises(ValueError, match=r"unknown preset 'magic-huge'; choose one of bert-base, .*magic-tiny"):
        load_preset("magic-huge")


def test_description_of_a_space():
    text = describe_space(load_preset("magic-base"))
    assert "26 layers, 104 operators, 4,503,599,627,370,496 children (4.5e+15)" in text
    child = describe_space(load_preset("magic-base"), architecture="(MHA12,FFN)*12")
    assert "109,514,298" in child
    assert "2.864e+10" in child
    assert Path(__file__).name not in text
