"""Folders of every command against what they say of themselves."""

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from hub_server import WRITER, hub_server, run_client
from toy_hub import MIXED, SEARCH, export_child, export_tokenizer, save_bare_bert, save_bert
from toy_runs import shared_search
from toy_verify import differing, edit, edit_record, flip_byte, manifest_of, verdicts, without_contents

import modeling_magic
from modeling_magic import MagicForMaskedLM
from training.hub.card import HEADS
from training.hub.convert import convert_checkpoint
from training.hub.export import export_model
from training.hub.model_folders import export_folder
from training.hub.verified_folder import DIFFERS, NOT_CHECKED, NOT_RECORDED, OK
from training.hub.verify import verify_export
from training.retraining.rtd import export_pair
from training.retraining.rtd_model import ReplacedTokenModel


@pytest.fixture(scope="module")
def tokenizer():
    return export_tokenizer()


@pytest.fixture(scope="module")
def exported(tiny_config, tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    child = export_child(MagicForMaskedLM(tiny_config()).eval(), tokenizer)
    return export_model(child, tokenizer, tmp_path_factory.mktemp("verify") / "model", manifest_of(MIXED, SEARCH))


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


# ---- Untouched ----


def test_an_untouched_export_is_as_recorded(exported):
    found = verify_export(exported)
    assert not found.differing
    names = [one.what for one in found.checks]
    assert len(set(names)) == len(names)
    checked = verdicts(found.checks)
    assert checked.pop("score on held-out text") == NOT_CHECKED
    assert set(checked.values()) == {OK}
    assert found.summary == (
        f"{exported}, an export: nothing differs, {len(checked)} of {len(names)} checks ok, 1 not checked."
    )
    assert found.table.splitlines()[0] == "| what | recorded | found | verdict |"
    assert len(found.table.splitlines()) == 2 + len(names)


@pytest.mark.parametrize("kind", HEADS)
def test_an_untouched_export_of_every_class_is_as_recorded(kind, tiny_config, tokenizer, tmp_path):
    config = tiny_config(candidate_operators=[[name] for name in MIXED], add_pooling_layer=True, num_labels=3)
    model = getattr(modeling_magic, kind)(config)
    found = verify_export(export_model(model, tokenizer, tmp_path / "model", {}))
    checked = verdicts(found.checks)
    assert checked["parameters: search.json"] == checked["FLOPs: search.json"] == checked["card: FLOPs"] == OK
    assert set(checked.values()) == {OK}


def test_both_models_of_a_training_with_replaced_tokens_are_as_recorded(tiny_config, tokenizer, tmp_path):
    config = tiny_config(candidate_operators=[[name] for name in MIXED])
    pair = ReplacedTokenModel(
        generator=MagicForMaskedLM(config), discriminator=modeling_magic.MagicForPreTraining(config)
    )
    folders = (tmp_path / "model", tmp_path / "generator")
    export_pair(pair, tokenizer, *folders, manifest_of(MIXED), manifest_of(MIXED))
    for folder in folders:
        assert not verify_export(folder).differing
    assert verdicts(verify_export(folders[0]).checks)["score on held-out text"] == NOT_CHECKED


def test_a_fine_tuned_models_scores_need_the_task(exported, tokenizer, tmp_path):
    model = modeling_magic.MagicForSequenceClassification.from_pretrained(exported)
    score = {"data": "SST-2", "split": "validation", "rows": 872, "metric": "accuracy", "value": 0.9}
    folder = export_model(model, tokenizer, tmp_path / "tuned", {"scores": [score], "search": SEARCH})
    checked = verdicts(verify_export(folder).checks)
    assert checked.pop("scores: scores") == NOT_CHECKED
    assert set(checked.values()) == {OK}
    edit(folder / "README.md", "| 0.9000 |", "| 0.9900 |")
    assert differing(folder) == {"card: Results", "card: lines with numbers"}


def test_conversions_are_as_recorded_and_plain_models_have_no_record(tmp_path):
    magic, _ = convert_checkpoint(str(save_bert(tmp_path / "bert")), tmp_path / "magic")
    assert not verify_export(magic).differing
    plain, _ = convert_checkpoint(str(magic), tmp_path / "plain", to="bert")
    found = verify_export(plain)
    assert verdicts(found.checks) == {"search.json": NOT_RECORDED, "parameters: config.json and weights": OK}
    assert found.summary == (
        f"{plain}, a BertForMaskedLM saved by transformers: nothing differs, 1 of 2 checks ok, 1 not recorded."
    )
    edit(plain / "config.json", '"intermediate_size": 80', '"intermediate_size": 81')
    assert differing(plain) == {"parameters: config.json and weights"}
    assert not verify_export(save_bare_bert(tmp_path / "bare")).differing


def test_an_export_to_onnx_says_where_its_record_is(exported, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"x")
    shutil.copy(exported / "config.json", tmp_path)
    shutil.copy(exported / "configuration_magic.py", tmp_path)
    found = verify_export(tmp_path)
    assert not found.differing
    assert "an export to ONNX, which has no record: verify the model folder that it was made from" in found.summary
    assert [one.found for one in found.checks] == ["missing", "as in the installed magic-nas"]


def test_a_super_net_and_what_its_run_found(tmp_path):
    run = shutil.copytree(shared_search()[0], tmp_path / "run")
    found = verify_export(run)
    assert found.folder == run / "supernet"
    assert verdicts(found.checks)["architecture: search space"] == OK
    assert not found.differing
    result = json.loads((run / "result.json").read_text())
    (run / "result.json").write_text(json.dumps({**result, "architecture": ["CONV9"] * 4}))
    assert differing(run) == {"architecture: search space"}
    (run / "result.json").write_text(json.dumps({**result, "candidate_operators": [["FFN"]] * 4}))
    assert differing(run) == {"architecture: search space"}
    flip_byte(run / "supernet" / "model.safetensors", 0)
    assert "parameters: config.json and weights" in differing(run)


def test_the_folder_of_a_run_is_that_of_its_model(exported, tmp_path):
    for run in ("run", "family"):
        (tmp_path / run).mkdir()
        (tmp_path / run / "run.json").write_text("{}")
    shutil.copytree(exported, tmp_path / "run" / "model")
    assert verify_export(tmp_path / "run").folder == tmp_path / "run" / "model"
    for budget in ("params-0.3x", "params-0.5x"):
        shutil.copytree(exported, tmp_path / "family" / "model" / budget)
    with pytest.raises(ValueError, match=r"family is a run with 2 models; give the folder of one: .*params-0.5x"):
        verify_export(tmp_path / "family")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no config\.json; give the folder of a model"):
        verify_export(tmp_path / "empty")
    with pytest.raises(ValueError, match="no model nobody/nothing"):
        verify_export("nobody/nothing")


# ---- Tampered with ----


def test_a_flipped_byte_in_the_weights(folder):
    flip_byte(folder / "model.safetensors")
    found = verify_export(folder)
    assert found.differing == ("weights: model.safetensors",)
    assert repr(found) == found.summary
    assert found._repr_html_().startswith(f"<p>{found.summary}</p><table>")
    assert found.summary.endswith("not as recorded in 1 of 27 checks: weights: model.safetensors.")


def test_weights_that_are_cut_short(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert differing(folder) == {"weights: model.safetensors", "parameters: config.json and weights"}
    without_contents(folder)
    assert differing(folder) == {"hashes of the files", "parameters: config.json and weights"}
    path.unlink()
    # It may be on the Hub alone.
    assert verdicts(verify_export(folder).checks)["parameters: config.json and weights"] == NOT_CHECKED


def test_another_architecture_in_the_configuration(folder):
    edit(folder / "config.json", '"CONV5"', '"CONV3"')
    names = {"parameters: config.json and weights", "architecture: search.json", "card: architecture"}
    assert differing(folder) == {*names, "config.json", "FLOPs: search.json"}
    without_contents(folder)
    assert differing(folder) == {*names, "hashes of the files", "FLOPs: search.json"}


def test_an_architecture_of_the_same_shapes_is_found_as_well(folder):
    """Twice as many heads have the same tensors, but these are named after their operator."""
    config = modeling_magic.MagicConfig.from_pretrained(folder)
    width = modeling_magic.operator_inner_size(modeling_magic.parse_operator("MHA4"), config)
    edit(folder / "config.json", '"MHA4"', f'"MHA8x{width}"')
    without_contents(folder)
    names = {"architecture: search.json", "architecture: search space", "card: architecture"}
    assert differing(folder) >= {*names, "parameters: config.json and weights"}
    (fit,) = [one for one in verify_export(folder).checks if one.what == "parameters: config.json and weights"]
    assert fit.recorded == fit.found
    assert "missing or different in one of the two, such as magic.encoder.layer.0.operators.MHA4" in fit.note


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"num_parameters": 5}, {"parameters: search.json"}),
        ({"num_parameters": "many"}, {"parameters: search.json"}),
        ({"flops": 10**6}, {"FLOPs: search.json"}),
        ({"architecture": ["FFN"] * 4}, {"architecture: search.json"}),
        ({"architecture": "FFN"}, {"architecture: search.json"}),
        ({"search": {**SEARCH, "candidate_operators": [["FFN", "MHA4"]] * 4}}, {"architecture: search space"}),
        ({"search": {**SEARCH, "candidate_operators": 3}}, {"architecture: search space"}),
        ({"note": "more"}, set()),
    ],
)
def test_an_edited_record_is_found_by_its_hash_and_by_what_is_counted(folder, change, what):
    edit_record(folder, lambda record: record.update(change))
    assert differing(folder) >= {"search.json", *what}
    assert not differing(folder) & {"weights: model.safetensors", "config.json", "card: parameters"}


def test_a_missing_record_is_named(folder):
    (folder / "search.json").unlink()
    assert differing(folder) == {"search.json"}
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=r"has no config\.json"):
        verify_export(folder)


def test_a_missing_configuration_is_named(folder):
    (folder / "config.json").unlink()
    assert differing(folder) == {"config.json"}


@pytest.mark.parametrize("contents", [None, [], 3, {}, {"sha256": []}])
def test_hashes_that_were_removed_are_a_difference_and_the_rest_is_counted_again(folder, contents):
    without_contents(folder)
    if contents is not None:
        edit_record(folder, lambda record: record.update(contents=contents))
    checked = verdicts(verify_export(folder).checks)
    assert checked["hashes of the files"] == DIFFERS
    assert checked["parameters: search.json"] == checked["architecture: search.json"] == OK
    flip_byte(folder / "model.safetensors")
    assert differing(folder) == {"hashes of the files"}
    edit(folder / "README.md", "| parameters | 19,", "| parameters | 9,")
    assert differing(folder) == {"hashes of the files", "card: parameters"}


def test_a_child_that_skips_layers_is_in_the_space_that_it_was_found_in(folder):
    search = {**SEARCH, "candidate_operators": [["MHA4", "FFN", "CONV3", "CONV5", "SKIP"]] * 5}
    edit_record(folder, lambda record: record.update(search={**search, "architecture": ["MHA4", "SKIP", *MIXED[1:]]}))
    assert verdicts(verify_export(folder).checks)["architecture: search space"] == OK
    edit_record(folder, lambda record: record["search"].update(architecture=["MHA4", "SKIP", "CONV3", "FFN", "CONV9"]))
    assert verdicts(verify_export(folder).checks)["architecture: search space"] == DIFFERS


def test_whatever_a_record_and_a_card_hold_nothing_breaks(folder):
    """Random values in the place of every part of search.json, and of config.json: findings, and never an error."""
    rng = random.Random(0)
    values = [None, True, -1, 1e308, "x", "\x1b[2J", "\x07", "\u202e", [], [[]], {}, {"a": [{}]}, [None] * 3, 10**400]

    def damage(node):
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = rng.choice(keys)
        if isinstance(node[key], dict | list) and node[key] and rng.random() < 0.7:
            damage(node[key])
        else:
            node[key] = rng.choice(values)

    whole = {name: (folder / name).read_text() for name in ("search.json", "config.json")}
    for _ in range(60):
        name = rng.choice(["search.json", "search.json", "config.json"])
        content = json.loads(whole[name])
        damage(content)
        (folder / name).write_text(json.dumps(content))
        found = verify_export(folder)
        assert all(line.isprintable() for line in [*found.table.splitlines(), found.summary])
        (folder / name).write_text(whole[name])
    assert not differing(folder)


def test_no_file_is_unpickled(folder, monkeypatch):
    monkeypatch.setattr("torch.load", lambda *_, **__: pytest.fail("unpickled"))
    (folder / "model.safetensors").unlink()
    torch.save({"x": torch.zeros(3)}, folder / "pytorch_model.bin")
    assert "weights: pytorch_model.bin" in differing(folder)


# ---- Afterwards ----


def test_an_export_of_weights_that_were_trained_on_claims_no_score_of_the_older_ones(folder, tmp_path):
    assert json.loads((export_folder(folder, tmp_path / "same") / "search.json").read_text())["results"]
    model = MagicForMaskedLM.from_pretrained(folder)
    model.lm_head.bias.data += 1
    model.save_pretrained(folder)
    again = export_folder(folder, tmp_path / "again")
    record = json.loads((again / "search.json").read_text())
    assert record["search"]["seed"] == SEARCH["seed"]
    assert not {"results", "training"} & record.keys()
    assert not verify_export(again).differing


@pytest.mark.slow
def test_a_model_on_the_hub_is_verified_by_its_name(exported, tmp_path):
    code = """
from training import verify_export
from training.hub.publish import push_model
push_model("{folder}", "ada/encoder")
found = verify_export("ada/encoder")
assert not found.differing, found.table
assert {{one.verdict for one in found.checks}} == {{"ok", "not checked"}}, found.table
"""
    with hub_server() as server:
        run_client(code.format(folder=Path(exported)), tmp_path, server.url, token=WRITER)
