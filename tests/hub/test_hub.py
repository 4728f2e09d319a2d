"""Presets, and exports that load elsewhere: in a clean process, without this package, offline."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from hub_server import run_client
from huggingface_hub import ModelCard, parse_eval_result_entries
from PIL import Image
from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM, AutoTokenizer, pipeline
from transformers.dynamic_module_utils import get_relative_imports

import modeling_magic
from training.data.text import train_tokenizer
from training.hub.card import HEADS, results_table, spread
from training.hub.export import AUTO_MAP, CODE_FILES, export_model
from training.hub.figures import draw_architecture
from training.hub.presets import load_preset, preset_names
from training.space.search_space import compact_architecture


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
TEXT = ["the quick brown fox jumps over the lazy dog", "a function returns the value of its argument"] * 20
SEARCH: dict[str, Any] = {
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
    classes = [getattr(modeling_magic, kind) for kind in HEADS]
    export_model(child, tokenizer, tmp_path / "model", {})
    assert torch.equal(torch.random.get_rng_state(), generator)
    assert tokenizer.init_kwargs == tokens
    assert all(kind._auto_class is None for kind in (*classes, modeling_magic.MagicConfig))
    child.save_pretrained(tmp_path / "plain")
    assert "auto_map" not in json.loads((tmp_path / "plain" / "config.json").read_text())
    assert not list((tmp_path / "plain").glob("*.py"))


# ---- Folders ----


def test_export_overwrites_nothing_but_an_export(child, tokenizer, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="model holds something else than an exported model; take another folder"):
        export_model(child, tokenizer, folder, {})
    assert [path.name for path in folder.iterdir()] == ["thesis.txt"]
    (folder / "thesis.txt").unlink()
    export_model(child, tokenizer, folder, {"note": "first"})
    (folder / ".git").mkdir()
    (folder / ".git" / "HEAD").write_text("ref")
    with pytest.raises(ValueError, match=r"holds \.git/HEAD beside an exported model; take another folder"):
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


# ---- The card ----

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
CORPUS: dict[str, Any] = {
    "source": "docstrings",
    "dataset_config": None,
    "split": "train",
    "sha256": {"train": "a" * 64, "validation": "b" * 64},
}
TRAINING: dict[str, Any] = {
    "seed": 4,
    "steps": 800,
    "tokens_per_step": 4096,
    "start": "random weights",
    "versions": {"torch": "2.13.0"},
    "corpus": CORPUS,
}


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
        "license": "apache-2.0",
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


def test_figure_of_an_architecture(tmp_path):
    """A box of its own colour for each operator; a long chain goes on in a second column."""
    short = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "short.png"))
    bare = Image.open(draw_architecture(("MHA4", "FFN"), tmp_path / "bare.png", head=""))
    long = Image.open(draw_architecture(("MHA12", "CONV3") * 13, tmp_path / "long.png"))
    assert bare.height < short.height < long.height < 2 * long.width
    images = {"short": short, "long": long}
    colors = {name: set(image.convert("RGB").get_flattened_data()) for name, image in images.items()}
    orange, blue, green = (0xF4, 0xA5, 0x82), (0x92, 0xC5, 0xDE), (0xA6, 0xD9, 0x6A)
    assert {orange, blue} <= colors["short"]
    assert green not in colors["short"]
    assert {orange, green} <= colors["long"]
    assert blue not in colors["long"]


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
