"""Parts of a folder that is to be verified: what cannot be read is a finding and no error."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_hub import MIXED, export_child, export_tokenizer, save_bert
from toy_verify import edit, manifest_of
from transformers import BertConfig, BertForMaskedLM

from modeling_magic import MagicForMaskedLM
from training.hub.export import export_model
from training.hub.verified_folder import DIFFERS, NOT_CHECKED, NOT_RECORDED, OK, VerifiedFolder, check, compare
from training.runs.folders import MODEL_FOLDER, RESULT_NAME, RUN_NAME
from training.supernet.loading import SUPERNET_FOLDER


@pytest.fixture
def exported(supernet, tmp_path):
    tokenizer = export_tokenizer()
    return export_model(export_child(supernet, tokenizer), tokenizer, tmp_path / "model", manifest_of(MIXED))


def test_cells_hold_neither_control_characters_nor_lines_nor_long_texts():
    one = check("a\x1b[31m", "x\ny", "z" * 1000, OK, "\u202e note")
    assert one.what == "a?[31m"
    assert one.recorded == "x y"
    assert len(one.found) == 100
    assert one.note == "? note"


def test_values_are_compared_as_they_are_and_not_as_they_are_shown():
    assert compare("n", 1000, 1000).verdict == OK
    assert compare("n", 1000, 1001, "why").note == "why"
    assert compare("n", "x" * 200, "x" * 199 + "y").verdict == DIFFERS
    assert compare("n", None, 3).verdict == NOT_RECORDED
    assert compare("n", 3, None).verdict == NOT_CHECKED
    assert compare("n", 12345678, 12345678).found == "12,345,678"


def test_parameters_are_those_of_the_model_whatever_the_files_hold_twice(exported):
    model = MagicForMaskedLM.from_pretrained(exported)
    assert VerifiedFolder(exported).num_parameters == model.num_parameters()
    tensors = load_file(exported / "model.safetensors")
    tensors["lm_head.decoder.weight"] = tensors["magic.embeddings.word_embeddings.weight"].clone()
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    assert VerifiedFolder(exported).num_parameters == model.num_parameters()
    assert not VerifiedFolder(exported).misfits()


def test_tensors_that_only_the_model_or_the_files_have_do_not_fit(exported):
    tensors = load_file(exported / "model.safetensors")
    tensors["more"] = torch.zeros(3)
    tensors["lm_head.bias"] = torch.zeros(4)
    lost = tensors.pop("lm_head.dense.bias")
    save_file(tensors, exported / "model.safetensors", metadata={"format": "pt"})
    folder = VerifiedFolder(exported)
    assert folder.misfits() == ["lm_head.bias", "lm_head.dense.bias", "more"]
    expected = MagicForMaskedLM.from_pretrained(exported, ignore_mismatched_sizes=True).num_parameters()
    assert folder.num_parameters == expected - 100 + 4 + 3 - len(lost)


def test_a_model_of_another_family_is_loaded_by_its_own_class(tmp_path):
    folder = VerifiedFolder(save_bert(tmp_path / "bert"))
    assert type(folder.model).__name__ == "BertForPreTraining"
    assert (folder.is_magic, folder.config, folder.child) == (False, None, None)
    assert folder.num_parameters == folder.model.num_parameters()


def test_more_layers_than_there_are_tensors_are_not_built(tmp_path, monkeypatch):
    BertForMaskedLM(
        BertConfig(vocab_size=10, hidden_size=8, num_hidden_layers=1, num_attention_heads=1)
    ).save_pretrained(tmp_path)
    edit(tmp_path / "config.json", '"num_hidden_layers": 1', '"num_hidden_layers": 1000000000')
    monkeypatch.setattr(BertForMaskedLM, "__init__", lambda *_: pytest.fail("built"))
    assert VerifiedFolder(tmp_path).model is None


def test_code_of_the_folder_is_never_run(exported, tmp_path, monkeypatch):
    for name in ("modeling_magic.py", "configuration_magic.py"):
        (exported / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("asked"))
    assert VerifiedFolder(exported).model is not None
    # A family that no class here knows, and one that transformers knows with code of its own beside it.
    for family, expected in (("unknown-family", type(None)), ("bert", BertForMaskedLM)):
        values = json.loads((exported / "config.json").read_text())
        values |= {
            "model_type": family,
            "architectures": ["BertForMaskedLM"],
            "auto_map": {"AutoConfig": "modeling_magic.X"},
        }
        (exported / "config.json").write_text(json.dumps({**values, "num_attention_heads": 4}))
        assert isinstance(VerifiedFolder(exported).model, expected)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "content",
    ["", "[]", "3", "{", '{"model_type": "magic"', '{"model_type": "magic", "candidate_operators": 3}', "[" * 10**5],
)
def test_a_damaged_configuration_is_a_fault(exported, content):
    (exported / "config.json").write_text(content)
    folder = VerifiedFolder(exported)
    assert folder.faults["config.json"]
    assert (folder.config, folder.model) == (None, None)


@pytest.mark.parametrize("content", [b"", b"x", b"\xff" * 100, b"\x08" + b"\0" * 7 + b"{}      "])
def test_damaged_weights_and_cards_are_faults(exported, content):
    (exported / "model.safetensors").write_bytes(content)
    (exported / "README.md").write_bytes(b"\xff\xfe\xff")
    folder = VerifiedFolder(exported)
    assert not folder.num_parameters
    assert folder.card is None
    assert "UTF-8" in folder.faults["README.md"]


def test_hidden_files_and_links_to_nowhere_are_no_part_of_it(exported):
    before = set(VerifiedFolder(exported).files)
    for name in (".git/HEAD", "__pycache__/x.pyc", ".DS_Store"):
        (exported / name).parent.mkdir(exist_ok=True)
        (exported / name).write_text("x")
    (exported / "nowhere").symlink_to("/nowhere")
    assert set(VerifiedFolder(exported).files) == before


def test_runs_put_their_models_where_they_are_looked_for():
    from training.hub import model_folders, verified_folder

    names = (model_folders._RUN, model_folders._SUPERNET, model_folders._MODEL)
    assert names == (RUN_NAME, SUPERNET_FOLDER, MODEL_FOLDER)
    assert (verified_folder.SUPERNET_NAME, verified_folder.RESULT_NAME) == (SUPERNET_FOLDER, RESULT_NAME)
