"""Folders of sentence-transformers as they are written and read; what is refused is in compression/test_source.py."""

import json

from toy_sources import edit_json, save_checkpoint, save_sentence_checkpoint

from training.hub.export import write_files
from training.hub.sentence_folders import (
    SentenceModules,
    cross_encoder_files,
    embedding_files,
    is_cross_encoder,
    read_modules,
    transformer_settings,
)


def test_what_is_written_reads_back(tmp_path):
    source = save_sentence_checkpoint(tmp_path / "source", max_seq_length=48, do_lower_case=True)
    edit_json(source / "config_sentence_transformers.json", prompts={"query": "q: "})
    modules = read_modules(source, "source")
    assert modules == SentenceModules("", "1_Pooling", "2_Normalize")
    (tmp_path / "copy").mkdir()
    write_files(tmp_path / "copy", embedding_files(source, modules, 32, 40))
    assert read_modules(tmp_path / "copy", "copy") == modules
    assert transformer_settings(tmp_path / "copy") == {"max_seq_length": 40, "do_lower_case": True}
    for name in ("1_Pooling/config.json", "config_sentence_transformers.json"):
        assert json.loads((tmp_path / "copy" / name).read_text()) == json.loads((source / name).read_text())


def test_a_folder_that_says_nothing_is_one_of_means_of_length_one(tmp_path):
    source = save_checkpoint(tmp_path / "source", "BertModel")
    assert read_modules(source, "source") is None
    files = embedding_files(source, None, 32, 40)
    assert json.loads(files["1_Pooling/config.json"])["pooling_mode_mean_tokens"] is True
    assert [entry["type"].rpartition(".")[2] for entry in json.loads(files["modules.json"])] == [
        "Transformer",
        "Pooling",
        "Normalize",
    ]


def test_a_cross_encoder_has_no_modules_of_embeddings(tmp_path):
    source = save_sentence_checkpoint(tmp_path / "source")
    assert not is_cross_encoder(source)
    edit_json(source / "config_sentence_transformers.json", model_type="CrossEncoder")
    assert is_cross_encoder(source)
    assert read_modules(source, "source") is None
    assert cross_encoder_files(source).keys() == {"modules.json", "config_sentence_transformers.json"}
