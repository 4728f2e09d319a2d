"""Nothing in a folder runs, and whatever is wrong with it is one line."""

import ast
import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig, BertForSequenceClassification

from training.data.tokenizing import train_tokenizer
from training.pretrained import pretrained_config, pretrained_model, pretrained_tokenizer


ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    folder = tmp_path_factory.mktemp("classifier")
    tokenizer = train_tokenizer([f"word{number} is good" for number in range(50)], vocab_size=80)
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=32,
    )
    BertForSequenceClassification(config).save_pretrained(folder)
    return folder


def changed(folder, tmp_path, file, **values):
    """A copy of a folder with other values in one of its JSON files; None removes a value."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = json.loads((tmp_path / file).read_text()) | values
    (tmp_path / file).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
    return tmp_path


def load(folder):
    return pretrained_model(AutoModelForSequenceClassification, folder)


def test_a_model_is_what_transformers_loads(classifier):
    expected = AutoModelForSequenceClassification.from_pretrained(classifier).state_dict()
    model, info = load(classifier)
    assert not info["missing_keys"]
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items())
    assert pretrained_config(classifier).num_hidden_layers == 2
    assert pretrained_tokenizer(classifier)("word1 is good").input_ids


def test_the_run_of_a_super_net_is_told_from_a_model(tmp_path):
    (tmp_path / "run" / "supernet").mkdir(parents=True)
    (tmp_path / "run" / "supernet" / "config.json").write_text("{}")
    with pytest.raises(ValueError, match=r"is the run of a super-net; export a child first: magic-nas export .*run "):
        pretrained_config(tmp_path / "run")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_hidden_layers": 1}, r"no layer for bert\.encoder\.layer\.1\."),
        ({"hidden_size": 32}, r"bert\.\S+ has another shape than its config\.json"),
        ({"hidden_size": "abc"}, "hidden_size.*int"),
        ({"hidden_act": "nothing"}, "nothing"),
        ({"id2label": ["a"]}, "."),
        ({"model_type": "unknown"}, "unknown"),
        ({"model_type": 5}, "."),
    ],
)
def test_a_damaged_configuration_is_one_line(classifier, tmp_path, values, message):
    folder = changed(classifier, tmp_path, "config.json", **values)
    with pytest.raises(ValueError, match=f"the model '.*' cannot be loaded: .*{message}") as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [[1], "Bert", {"a": 1}])
def test_architectures_are_a_list_of_names(classifier, tmp_path, names):
    folder = changed(classifier, tmp_path, "config.json", architectures=names)
    with pytest.raises(
        ValueError, match=r"architectures in its config\.json is .*; it must be a list of class names$"
    ):
        pretrained_config(folder)


def test_another_head_is_an_error_unless_it_is_to_be_new(classifier, tmp_path):
    folder = changed(classifier, tmp_path, "config.json", id2label={"0": "a", "1": "b", "2": "c"}, label2id=None)
    with pytest.raises(ValueError, match=r"classifier\.\S+ has another shape"):
        load(folder)
    model, info = pretrained_model(AutoModelForSequenceClassification, folder, new_head=True)
    assert model.num_labels == 3
    assert {key for key, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    # The encoder of a classifier has all its layers, and a head that is dropped is no fault.
    encoder, info = pretrained_model(AutoModel, classifier)
    assert len(encoder.encoder.layer) == 2
    assert not info["missing_keys"]


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("tokenizer.json", "{}"),
        ("tokenizer.json", "["),
        ("tokenizer_config.json", "[]"),
        ("tokenizer_config.json", "{"),
    ],
)
def test_a_damaged_tokenizer_is_one_line(classifier, tmp_path, file, content):
    folder = changed(classifier, tmp_path, "config.json")
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=f"^the tokenizer of '{folder}' cannot be loaded: .+") as caught:
        pretrained_tokenizer(folder)
    assert "\n" not in str(caught.value)


def test_damaged_weights_are_one_line(classifier, tmp_path):
    folder = changed(classifier, tmp_path, "config.json")
    (folder / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"cannot be loaded: \S+Error: "):
        load(folder)


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), MemoryError(), RuntimeError("out of memory")]
)
def test_what_the_machine_lacks_is_no_fault_of_the_folder(classifier, monkeypatch, error):
    def lacking(*_, **__):
        raise error

    monkeypatch.setattr(AutoModelForSequenceClassification, "from_pretrained", lacking)
    with pytest.raises(type(error)) as caught:
        load(classifier)
    assert caught.value is error


def test_missing_weights_are_for_the_caller(classifier, tmp_path):
    folder = changed(classifier, tmp_path, "config.json")
    weights = load_file(folder / "model.safetensors")
    del weights["classifier.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    assert load(folder)[1]["missing_keys"] == {"classifier.weight"}


@pytest.mark.parametrize("what", ["model", "tokenizer"])
def test_code_in_a_folder_never_runs_and_nobody_is_asked(classifier, tmp_path, what):
    maps = {
        "AutoConfig": "own.Own",
        "AutoModelForSequenceClassification": "own.Own",
        "AutoTokenizer": ["own.Own", None],
    }
    folder = changed(classifier, tmp_path, "config.json", auto_map=maps, model_type="own", architectures=["Own"])
    folder = changed(folder, folder, "tokenizer_config.json", auto_map=maps, tokenizer_class="Own")
    (folder / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    text = f"""
        from transformers import AutoModelForSequenceClassification
        from training.pretrained import pretrained_config, pretrained_model, pretrained_tokenizer
        for load in (pretrained_config, lambda name: pretrained_model(AutoModelForSequenceClassification, name)):
            try:
                load({str(folder)!r}) if {what!r} == "model" else pretrained_tokenizer({str(folder)!r})
            except ValueError as error:
                print(error)
    """
    lines = [line[8:] for line in text.splitlines()]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        input="y\ny\ny\n",
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("needs Python code from its folder, which is not run here") == 2, done.stdout
    assert not (tmp_path / "ran").exists()


def test_auto_classes_load_in_one_module_only():
    """Everything else would run code from a folder if the user, or whatever writes to standard input, agrees."""
    elsewhere = set()
    for path in (ROOT / "training").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and node.attr == "from_pretrained":
                owner = ast.unparse(node.value)
                if owner.rpartition(".")[2].startswith(("Auto", "auto_class")):
                    elsewhere.add(path.relative_to(ROOT).as_posix())
    assert elsewhere == {"training/pretrained.py"}
