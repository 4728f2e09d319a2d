"""The command that converts checkpoints, there and back."""

import json
from pathlib import Path

import pytest
from toy_cli import run_main
from toy_hub import assert_same_tensors, save_bare_bert, save_bert
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from modeling_magic.conversion import convert_to_magic


@pytest.fixture
def bert_folder(tmp_path) -> Path:
    return save_bert(tmp_path / "bert")


def test_convert_there_and_back(bert_folder, tmp_path, monkeypatch, capsys):
    magic, back = tmp_path / "magic", tmp_path / "back"
    code, out, err = run_main(monkeypatch, capsys, "convert", bert_folder, magic)
    assert code == 0, err
    assert "left out: bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relationship." in out
    manifest = json.loads((magic / "search.json").read_text())
    assert manifest["architecture"] == ["MHA4", "FFN"] * 3
    assert manifest["converted_from"] == "bert"
    card = (magic / "README.md").read_text()
    assert "license: mit" in card
    assert "language: de" in card
    assert (magic / "modeling_magic.py").is_file()
    assert_same_tensors(AutoModelForMaskedLM.from_pretrained(magic), convert_to_magic(bert_folder).model)
    code, out, err = run_main(monkeypatch, capsys, "convert", magic, back, "--to", "bert")
    assert code == 0, err
    assert "left out: nothing" in out
    assert_same_tensors(AutoModelForMaskedLM.from_pretrained(back), BertForMaskedLM.from_pretrained(bert_folder))
    assert not list(back.glob("*.py"))
    for folder in (magic, back):
        assert (
            AutoTokenizer.from_pretrained(folder)("A man.").input_ids
            == AutoTokenizer.from_pretrained(bert_folder)("A man.").input_ids
        )
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "magic", "back"}


def test_convert_overwrites_nothing(bert_folder, tmp_path, monkeypatch, capsys):
    magic = tmp_path / "magic"
    (tmp_path / "empty").mkdir()
    assert run_main(monkeypatch, capsys, "convert", bert_folder, magic)[0] == 0
    before = {path.name: path.read_bytes() for path in magic.iterdir() if path.is_file()}
    for arguments, message in (
        ([bert_folder, bert_folder], "bert holds something else than an exported model; take another folder"),
        ([magic, bert_folder, "--to", "bert"], "bert holds something else than an exported model"),
        ([magic, magic, "--to", "bert"], "magic holds a MAGIC model; take another folder"),
        ([magic, tmp_path / "new"], "is a MAGIC model already"),
        ([magic, tmp_path / "new", "--to", "gpt2"], "cannot convert to 'gpt2'"),
        ([magic, tmp_path / "new", "--to", "roberta"], "convert to bert"),
        ([bert_folder, tmp_path / "new", "--to", "bert"], "a MAGIC model is one of"),
        ([bert_folder, tmp_path / "new", "--tokenizer", tmp_path / "empty"], "empty holds no tokenizer"),
        ([tmp_path / "empty", tmp_path / "new"], "has no config.json"),
        ([tmp_path / "nowhere", tmp_path / "new"], "nowhere; give a model's folder or its name on the Hub"),
        ([tmp_path / "empty", tmp_path / "new", "--tokenizer", magic], "has no config.json"),
    ):
        code, _, err = run_main(monkeypatch, capsys, "convert", *arguments)
        assert code == 2
        assert message in err.strip().splitlines()[-1]
    assert before == {path.name: path.read_bytes() for path in magic.iterdir() if path.is_file()}
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "magic", "empty"}


def test_a_checkpoint_without_tokenizer_needs_one_named(bert_folder, tmp_path, monkeypatch, capsys):
    save_bare_bert(tmp_path / "bare")
    code, _, err = run_main(monkeypatch, capsys, "convert", tmp_path / "bare", tmp_path / "magic")
    assert code == 2
    assert "bare holds no tokenizer; name one with --tokenizer" in err
    arguments = ["convert", tmp_path / "bare", tmp_path / "magic", "--tokenizer", bert_folder]
    assert run_main(monkeypatch, capsys, *arguments)[0] == 0
    card = (tmp_path / "magic" / "README.md").read_text()
    assert "license" not in card.split("---")[1]
