"""The command that converts checkpoints, there and back."""

import hashlib
import json
from pathlib import Path

import pytest
from toy_cli import run_main
from toy_hub import assert_same_tensors, save_bare_bert, save_bert
from toy_sources import add_modules, edit_json, save_checkpoint, save_sentence_checkpoint
from transformers import AutoModel, AutoModelForMaskedLM, AutoTokenizer, BertForMaskedLM

from modeling_magic.conversion import convert_to_magic
from training.hub.convert import convert_checkpoint
from training.hub.export import SENTENCE_FILES
from training.hub.publish import check_export


@pytest.fixture
def bert_folder(tmp_path) -> Path:
    return save_bert(tmp_path / "bert")


def test_convert_there_and_back(bert_folder, tmp_path, monkeypatch, capsys):
    magic, back = tmp_path / "magic", tmp_path / "back"
    code, out, err = run_main(monkeypatch, capsys, "convert", bert_folder, magic)
    assert code == 0, err
    assert "omitted: bert.pooler.dense.bias, bert.pooler.dense.weight, cls.seq_relationship." in out
    assert "a new classification head starts without the pooler here; to keep it, convert only the encoder" in out
    manifest = json.loads((magic / "search.json").read_text())
    assert manifest["architecture"] == ["MHA4", "FFN"] * 3
    weights = hashlib.sha256((bert_folder / "model.safetensors").read_bytes()).hexdigest()
    assert manifest["converted_from"] == f"sha256:{weights}"
    card = (magic / "README.md").read_text()
    assert "license: mit" in card
    assert "language: de" in card
    assert weights in card
    assert "search" not in card.partition("## Limits")[0].replace("search.json", "")
    check_export(magic)
    assert (magic / "modeling_magic.py").is_file()
    assert_same_tensors(AutoModelForMaskedLM.from_pretrained(magic), convert_to_magic(bert_folder).model)
    code, out, err = run_main(monkeypatch, capsys, "convert", magic, back, "--to", "bert")
    assert code == 0, err
    assert "omitted: nothing" in out
    assert "pooler" not in out
    assert_same_tensors(AutoModelForMaskedLM.from_pretrained(back), BertForMaskedLM.from_pretrained(bert_folder))
    assert not list(back.glob("*.py"))
    for folder in (magic, back):
        assert (
            AutoTokenizer.from_pretrained(folder)("A man.").input_ids
            == AutoTokenizer.from_pretrained(bert_folder)("A man.").input_ids
        )
    assert {path.name for path in tmp_path.iterdir()} == {"bert", "magic", "back"}


def test_a_folder_with_a_damaged_configuration_is_not_called_missing(tmp_path, monkeypatch, capsys):
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "config.json").write_text('{"model_type": ')
    code, _, err = run_main(monkeypatch, capsys, "convert", tmp_path / "damaged", tmp_path / "new")
    assert code == 2
    assert f"config.json in {tmp_path / 'damaged'} is damaged" in err
    assert len(err.splitlines()) == 1


def test_convert_overwrites_nothing(bert_folder, tmp_path, monkeypatch, capsys):
    magic = tmp_path / "magic"
    (tmp_path / "empty").mkdir()
    assert run_main(monkeypatch, capsys, "convert", bert_folder, magic)[0] == 0
    before = {path.name: path.read_bytes() for path in magic.iterdir() if path.is_file()}
    for arguments, message in (
        ([bert_folder, bert_folder], "bert holds something other than an exported model; use another folder"),
        ([magic, bert_folder, "--to", "bert"], "bert holds something other than an exported model"),
        ([magic, magic, "--to", "bert"], "magic holds a MAGIC model; use another folder"),
        ([magic, tmp_path / "new"], "is already a MAGIC model"),
        ([magic, tmp_path / "new", "--to", "gpt2"], "cannot convert to 'gpt2'"),
        ([bert_folder, tmp_path / "new", "--to", "xyz"], "'xyz'; choose one of magic, bert, roberta, electra"),
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
    assert "license: unknown" in card.split("---")[1]
    check_export(tmp_path / "magic")


# ---- sentence-transformers ----


def texts_of(folder: Path, names=SENTENCE_FILES) -> dict[str, dict]:
    return {name: json.loads((folder / name).read_text()) for name in names if (folder / name).is_file()}


def test_sentence_embeddings_stay_ones_there_and_back(tmp_path):
    source = save_sentence_checkpoint(tmp_path / "source", max_seq_length=48, do_lower_case=False)
    edit_json(source / "config_sentence_transformers.json", prompts={"query": "q: "}, similarity_fn_name="dot")
    magic, left_out = convert_checkpoint(str(source), tmp_path / "magic")
    assert left_out == ()
    check_export(magic)
    assert texts_of(magic) == texts_of(source) | {"2_Normalize/config.json": {}}
    card = (magic / "README.md").read_text()
    for line in (
        "library_name: sentence-transformers",
        "pipeline_tag: sentence-similarity",
        "- sentence-transformers",
        'model = "path/to/magic"\nencoder = SentenceTransformer(model, trust_remote_code=True)',
    ):
        assert line in card
    assert "neural-architecture-search" not in card
    back, left_out = convert_checkpoint(str(magic), tmp_path / "back", "bert")
    assert texts_of(back) == texts_of(magic)
    assert_same_tensors(AutoModel.from_pretrained(back), AutoModel.from_pretrained(source))
    # An older conversion of an encoder without them does not keep them.
    plain = save_checkpoint(tmp_path / "plain", "BertModel")
    convert_checkpoint(str(plain), magic)
    assert texts_of(magic) == {}
    assert "SentenceTransformer" not in (magic / "README.md").read_text()


def test_an_encoder_in_a_folder_of_its_own_is_found(tmp_path):
    source = save_sentence_checkpoint(tmp_path / "source")
    (source / "0_Transformer").mkdir()
    kept = ("modules.json", "1_Pooling", "0_Transformer")
    for path in list(source.iterdir()):
        if path.name not in kept:
            path.rename(source / "0_Transformer" / path.name)
    modules = json.loads((source / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (source / "modules.json").write_text(json.dumps(modules))
    magic, _ = convert_checkpoint(str(source), tmp_path / "magic")
    assert json.loads((magic / "modules.json").read_text())[0]["path"] == ""
    # That of its tokenizer, where its settings name none.
    assert json.loads((magic / "sentence_bert_config.json").read_text())["max_seq_length"] == 64
    assert json.loads((magic / "search.json").read_text())["converted_from"].startswith("sha256:")


def test_modules_that_have_no_place_are_named(tmp_path):
    source = add_modules(save_checkpoint(tmp_path / "source", "BertModel"), "Transformer", "Pooling", "Dense")
    magic, left_out = convert_checkpoint(str(source), tmp_path / "magic")
    assert texts_of(magic) == {}
    (text,) = left_out
    assert text.startswith("the modules for sentence embeddings (")
    assert "has the module sentence_transformers.models.Dense" in text


def test_a_cross_encoder_stays_one(tmp_path):
    source = save_checkpoint(tmp_path / "source", "BertForSequenceClassification")
    (source / "modules.json").write_text(json.dumps([{"idx": 0, "name": "0", "path": "", "type": "x.Transformer"}]))
    edit_json(source / "config_sentence_transformers.json", model_type="CrossEncoder")
    edit_json(source / "config.json", sentence_transformers={"activation_fn": "torch.nn.modules.linear.Identity"})
    for to in ("magic", "bert"):
        source, left_out = convert_checkpoint(str(source), tmp_path / to, to)
        assert left_out == ()
        assert set(texts_of(source)) == {"modules.json", "config_sentence_transformers.json"}
        assert json.loads((source / "config.json").read_text())["sentence_transformers"]["activation_fn"]
