"""Exports that load elsewhere: in a clean process, without this package, offline."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from hub_server import run_client
from huggingface_hub import ModelCard
from toy_hub import MIXED, SEARCH, export_child, export_tokenizer
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_relative_imports

import modeling_magic
from modeling_magic.modeling_magic import AUTO_MAP
from training.hub.card import HEADS
from training.hub.export import CODE_FILES, export_model


@pytest.fixture(scope="module")
def tokenizer():
    return export_tokenizer()


@pytest.fixture
def child(supernet, tokenizer):
    return export_child(supernet, tokenizer)


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
        "architecture.png",
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


def test_the_tokenizer_cuts_at_the_models_positions(child, tokenizer, tmp_path):
    assert tokenizer.model_max_length > child.config.max_position_embeddings
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    fill = pipeline("fill-mask", model=str(folder), tokenizer_kwargs={"truncation": True})
    assert len(fill("the [MASK] " + "fox " * 200, top_k=3)) == 3


def test_fill_mask_pipeline_answers(child, tokenizer, tmp_path):
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    guesses = pipeline("fill-mask", model=str(folder))("the [MASK] fox", top_k=3)
    assert len(guesses) == 3
    with torch.no_grad():
        logits = child(**tokenizer("the [MASK] fox", return_tensors="pt")).logits
    assert guesses[0]["token"] == logits[0, 2].argmax().item()


# ---- Every class ----


def test_every_class_is_in_the_map_and_has_a_head():
    classes = {name for name in dir(modeling_magic) if re.fullmatch(r"MagicFor\w+|MagicModel", name)}
    assert HEADS.keys() == classes
    assert AUTO_MAP == {
        "AutoConfig": "configuration_magic.MagicConfig",
        **{head.auto_class: f"modeling_magic.{kind}" for kind, head in HEADS.items()},
    }
    package = Path(modeling_magic.__file__).parent
    reached = {f"{name}.py" for file in CODE_FILES for name in get_relative_imports(package / file)}
    assert reached <= set(CODE_FILES), "transformers would not find the rest beside the weights"


@pytest.fixture(scope="module")
def exports(tokenizer, tiny_config, tmp_path_factory):
    """A model of every class, and the folder that it was exported to; the encoders are the same."""
    work, models = tmp_path_factory.mktemp("exports"), {}
    config = tiny_config(candidate_operators=[[name] for name in MIXED], add_pooling_layer=True, num_labels=3)
    torch.manual_seed(0)
    encoder = modeling_magic.MagicModel(config).eval()
    for kind in HEADS:
        model = getattr(modeling_magic, kind)(config).eval()
        model.base_model.load_state_dict(encoder.state_dict(), strict=False)
        models[kind] = (model, export_model(model, tokenizer, work / kind, {}))
    return models


def example_inputs(kind: str) -> torch.Tensor:
    ids = torch.arange(5, 23).view(2, 9)
    return ids.unsqueeze(0) if kind == "MagicForMultipleChoice" else ids


def tensors(outputs) -> list[torch.Tensor]:
    return [value for value in outputs.to_tuple() if isinstance(value, torch.Tensor)]


@pytest.mark.parametrize("kind", HEADS)
def test_every_class_is_exported(exports, kind):
    model, folder = exports[kind]
    head, ids = HEADS[kind], example_inputs(kind)
    loaded = getattr(transformers, head.auto_class).from_pretrained(folder)
    assert type(loaded) is type(model)
    for ours, theirs in zip(tensors(model(ids)), tensors(loaded(ids)), strict=True):
        # Not to the bit: a product with one column sums in an order that depends on where its weights lie.
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == [kind]
    assert config["auto_map"] == AUTO_MAP
    manifest = json.loads((folder / "search.json").read_text())
    assert manifest["num_parameters"] == model.num_parameters()
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == head.task
    assert card.data.eval_results is None
    assert head.kind in card.text
    assert ("mask_token" in card.data) == (kind == "MagicForMaskedLM")


@pytest.mark.parametrize("auto_class", [name for name in AUTO_MAP if name != "AutoConfig"])
def test_with_the_package_no_class_asks_for_code_of_the_folder(exports, monkeypatch, auto_class):
    """Nor runs it: what is installed is taken, whatever the folder holds."""
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    folder = exports["MagicForMaskedLM"][1]
    model = getattr(transformers, auto_class).from_pretrained(folder)
    assert type(model).__module__ == "modeling_magic.modeling_magic"


def test_every_class_loads_without_the_package(exports, tmp_path):
    """In a clean process, offline: the same bits, every other head on the same encoder, and the card's example."""
    work = exports["MagicModel"][1].parent
    code = f"""
import re, sys
import transformers
from huggingface_hub import ModelCard
from pathlib import Path
from typing import Any
heads = {[(kind, head.auto_class) for kind, head in HEADS.items()]!r}
ids = torch.arange(5, 23).view(2, 9)
found = {{}}
with torch.no_grad():
    for kind, auto_class in heads:
        folder = Path({str(work)!r}) / kind
        model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True)
        assert type(model).__module__.startswith("transformers_modules."), type(model)
        assert type(model).__name__ == kind
        shaped = ids.unsqueeze(0) if kind == "MagicForMultipleChoice" else ids
        found[kind] = [value for value in model(shaped).to_tuple() if isinstance(value, torch.Tensor)]
        example = re.findall(r"```python\\n(.*?)```", ModelCard.load(folder / "README.md").text, re.DOTALL)[0]
        assert example.count("path/to/" + kind) == 1
        exec(example.replace("path/to/" + kind, str(folder)), {{}})
    for kind, auto_class in heads:
        torch.manual_seed(0)
        folder = Path({str(work)!r}) / "MagicForMaskedLM"
        model = getattr(transformers, auto_class).from_pretrained(folder, num_labels=3, trust_remote_code=True)
        found["encoder of " + kind] = [model.base_model(ids).last_hidden_state]
        assert getattr(model.config, "num_labels") == 3
        # The folder of what was fine-tuned from the folder's code is as whole as that.
        model.save_pretrained("tuned")
        again = getattr(transformers, auto_class).from_pretrained("tuned", trust_remote_code=True)
        assert type(again).__name__ == kind, type(again)
        assert again.config.auto_map == {AUTO_MAP!r}
assert transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True).hidden_size == 32
torch.save(found, "found.pt")
assert "training" not in sys.modules and "modeling_magic" not in sys.modules
"""
    done = run_client(code, tmp_path, packages=False)
    assert "Do you wish to run the custom code" not in done.stdout + done.stderr
    found = torch.load(tmp_path / "found.pt", weights_only=True)
    with torch.no_grad():
        for kind, (model, _) in exports.items():
            for ours, theirs in zip(tensors(model(example_inputs(kind))), found[kind], strict=True):
                torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6, msg=kind)
            hidden_states = model.base_model(example_inputs("")).last_hidden_state
            assert torch.equal(found[f"encoder of {kind}"][0], hidden_states), kind


def test_export_leaves_no_trace(child, tokenizer, tmp_path):
    generator, tokens = torch.random.get_rng_state(), tokenizer.init_kwargs.copy()
    export_model(child, tokenizer, tmp_path / "model", {})
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert tokenizer.init_kwargs == tokens
    assert "auto_map" not in child.config.to_dict()


# ---- Folders ----


def test_export_overwrites_nothing_but_an_export(child, tokenizer, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="model holds something other than an exported model; use another folder"):
        export_model(child, tokenizer, folder, {})
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    export_model(child, tokenizer, folder, {"note": "first"})
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    with pytest.raises(ValueError, match=r"holds \.git/HEAD in addition to an exported model; use another folder"):
        export_model(child, tokenizer, folder, {})
    assert (folder / ".git" / "HEAD").is_file()
    shutil.rmtree(folder / ".git")
    export_model(child, tokenizer, folder, {"note": "first"})
    export_model(child, tokenizer, folder, {"note": "second"})
    assert json.loads((folder / "search.json").read_text())["note"] == "second"


def test_failed_export_leaves_the_older_one(child, tokenizer, tmp_path, monkeypatch):
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    monkeypatch.setattr(
        "training.hub.export.render_model_card", lambda *_: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(OSError, match="disk full"):
        export_model(child, tokenizer, folder, {})
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    AutoConfig.from_pretrained(folder)


def test_a_supernet_is_not_exported(supernet, tokenizer, tmp_path):
    with pytest.raises(ValueError, match="super-net; export one of its children"):
        export_model(supernet, tokenizer, tmp_path / "model", {})
