"""What search.json says of the files beside it."""

import json
from hashlib import sha256

import pytest
from toy_hub import MIXED, SEARCH, export_child, export_tokenizer
from toy_verify import manifest_of

from training.hub.contents import (
    differing_keys,
    files_in,
    record_sha256,
    recorded_hashes,
    recorded_json,
    recorded_sha256,
    with_contents,
)
from training.hub.export import CODE_FILES, export_model


@pytest.fixture
def folder(supernet, tmp_path):
    tokenizer = export_tokenizer()
    return export_model(
        export_child(supernet, tokenizer),
        tokenizer,
        tmp_path / "model",
        manifest_of(MIXED, SEARCH),
        files={"a/b": "c"},
    )


def test_an_export_records_a_hash_of_every_file_but_the_card(folder):
    record = json.loads((folder / "search.json").read_text())
    hashes = recorded_hashes(record)
    assert set(hashes) == set(files_in(folder)) - {"README.md", "search.json", "config.json", "tokenizer_config.json"}
    assert {"model.safetensors", "tokenizer.json", "architecture.png", "a/b", *CODE_FILES} <= set(hashes)
    for name, recorded in hashes.items():
        assert recorded == sha256((folder / name).read_bytes()).hexdigest()
    for name in ("config.json", "tokenizer_config.json"):
        assert recorded_json(record)[name] == json.loads((folder / name).read_text())


def test_the_record_is_written_after_all_that_it_speaks_of(supernet, tmp_path, monkeypatch):
    """The last file of a folder that is renamed as a whole: what is there has a record of all of it."""
    tokenizer, written = export_tokenizer(), []
    monkeypatch.setattr(
        "training.hub.export.write_json", lambda path, value: written.append({*files_in(path.parent), path.name})
    )
    folder = export_model(export_child(supernet, tokenizer), tokenizer, tmp_path / "model", {})
    assert written == [{*files_in(folder), "search.json"}]


def test_the_hash_of_a_record_is_of_what_it_says(folder):
    record = json.loads((folder / "search.json").read_text())
    assert recorded_sha256(record) == record_sha256(record)
    turned = json.loads(json.dumps(record, indent=4, sort_keys=True))
    assert record_sha256(turned) == recorded_sha256(record)
    for change in ({"seed": 2}, {"architecture": ["FFN"]}):
        assert record_sha256({**record, **change}) != recorded_sha256(record)
    record["contents"]["sha256"]["model.safetensors"] = "0" * 64
    assert record_sha256(record) != recorded_sha256(record)


def test_keys_that_are_numbers_have_the_hash_that_they_read_back_with(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    record = with_contents({"labels": {2: "b", 10: "a"}, "chain": ("FFN",)}, tmp_path)
    assert record_sha256(json.loads(json.dumps(record))) == recorded_sha256(record)


def test_a_later_export_replaces_what_an_older_one_says_of_its_files(supernet, folder, tmp_path):
    record = json.loads((folder / "search.json").read_text())
    tokenizer = export_tokenizer()
    child = export_child(supernet, tokenizer)
    child.lm_head.bias.data += 1
    record["num_parameters"], record["architecture"] = 7, ["FFN"]
    again = json.loads((export_model(child, tokenizer, tmp_path / "again", record) / "search.json").read_text())
    weights = sha256((tmp_path / "again" / "model.safetensors").read_bytes()).hexdigest()
    assert recorded_hashes(again)["model.safetensors"] == weights != recorded_hashes(record)["model.safetensors"]
    assert recorded_sha256(again) == record_sha256(again)
    assert (again["num_parameters"], again["architecture"]) == (child.num_parameters(), list(MIXED))


def test_keys_differ_by_value_and_by_being_there():
    recorded = {"hidden_size": 32, "transformers_version": "5.0", "dtype": None, "old": 1}
    found = {"hidden_size": 64, "transformers_version": "6.0", "new": 1, "old": 1}
    assert differing_keys("config.json", recorded, found) == ["dtype", "hidden_size", "new"]
    assert differing_keys("tokenizer_config.json", {"is_local": True}, {"unk_token": "x"}) == ["unk_token"]


@pytest.mark.parametrize("record", [{}, {"contents": None}, {"contents": {"sha256": [1]}}, {"contents": "x"}])
def test_a_record_of_another_form_has_no_hashes(record):
    assert (recorded_hashes(record), recorded_json(record), recorded_sha256(record)) == ({}, {}, None)
