"""Files of an export that are not the exported ones any longer, each named for what it is."""

import shutil
from pathlib import Path

import pytest
from toy_finetune import toy_tokenizer
from toy_hub import MIXED
from toy_verify import edit, edit_record, flip_byte, untouched_export, verdicts, without_contents
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments

from training.hub.export import CODE_FILES, export_model
from training.hub.file_checks import check_files, check_record
from training.hub.verified_folder import DIFFERS, NOT_RECORDED, OK, VerifiedFolder


@pytest.fixture(scope="module")
def exported(tiny_config, tmp_path_factory):
    return untouched_export(tmp_path_factory.mktemp("files") / "model", tiny_config())


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


def checks_of(folder: Path):
    return [check_record(VerifiedFolder(folder)), *check_files(VerifiedFolder(folder))]


def wrong(folder: Path) -> dict[str, str]:
    """The notes of what differs, by its name."""
    return {one.what: one.note for one in checks_of(folder) if one.verdict == DIFFERS}


def test_an_untouched_export_is_as_recorded(exported):
    found = checks_of(exported)
    assert {one.verdict for one in found} == {OK}
    assert {one.what for one in found} >= {"search.json", "config.json", "weights: model.safetensors"}
    code = [one for one in found if one.what.startswith("code: ")]
    assert [one.note for one in code] == ["as in the installed magic-nas"] * len(CODE_FILES)


def append(path: Path) -> None:
    with path.open("a") as file:
        file.write("\n")


@pytest.mark.parametrize(
    ("name", "damage", "what"),
    [
        ("model.safetensors", flip_byte, "weights: model.safetensors"),
        ("model.safetensors", lambda path: path.write_bytes(path.read_bytes()[:-100]), "weights: model.safetensors"),
        ("model.safetensors", Path.unlink, "weights: model.safetensors"),
        ("modeling_magic.py", append, "code: modeling_magic.py"),
        ("kernels_magic.py", Path.unlink, "code: kernels_magic.py"),
        ("tokenizer.json", append, "tokenizer: tokenizer.json"),
        ("tokenizer_config.json", lambda path: edit(path, "[MASK]", "[mask]"), "tokenizer: tokenizer_config.json"),
        ("tokenizer_config.json", Path.unlink, "tokenizer: tokenizer_config.json"),
        ("config.json", lambda path: edit(path, '"CONV5"', '"CONV3"'), "config.json"),
        ("config.json", lambda path: edit(path, '"gelu"', '"relu"'), "config.json"),
        ("config.json", lambda path: path.write_text("{"), "config.json"),
        ("config.json", Path.unlink, "config.json"),
        ("architecture.png", flip_byte, "architecture.png"),
        ("search.json", lambda path: edit(path, '"steps": 800', '"steps": 900'), "search.json"),
        ("search.json", lambda path: path.write_text("[1]"), "search.json"),
        ("search.json", Path.unlink, "search.json"),
    ],
)
def test_what_was_changed_is_named_and_nothing_else(folder, name, damage, what):
    damage(folder / name)
    assert list(wrong(folder)) == [what]


def test_a_changed_key_of_a_configuration_is_named_with_both_values(folder):
    edit(folder / "config.json", '"hidden_act": "gelu"', '"hidden_act": "relu"')
    (changed,) = [one for one in checks_of(folder) if one.verdict == DIFFERS]
    assert (changed.recorded, changed.found) == ("hidden_act gelu", "hidden_act relu")


def test_a_hash_that_was_made_to_fit_is_found_by_that_of_the_record(folder):
    flip_byte(folder / "model.safetensors")
    found = VerifiedFolder(folder).files["model.safetensors"]
    from training.files import file_sha256

    edit_record(folder, lambda record: record["contents"]["sha256"].update({"model.safetensors": file_sha256(found)}))
    assert list(wrong(folder)) == ["search.json"]


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("pytorch_model.bin", "weights: pytorch_model.bin"),
        ("model.safetensors.index.json", "weights: model.safetensors.index.json"),
        ("adapter_config.json", "adapter_config.json"),
        ("evil.py", "code: evil.py"),
        ("vocab.txt", "tokenizer: vocab.txt"),
        ("modules.json", "modules.json"),
        ("sub/evil.py", "code: sub/evil.py"),
        ("onnx/evil.py", "code: onnx/evil.py"),
        (".x/evil.py", "code: .x/evil.py"),
        (".x/pytorch_model.bin", "weights: .x/pytorch_model.bin"),
        ("model.pkl", "weights: model.pkl"),
        ("evil.so", "code: evil.so"),
    ],
)
def test_a_file_more_that_something_is_loaded_from_differs(folder, name, what):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("{}")
    assert list(wrong(folder)) == [what]


def test_files_that_nothing_is_loaded_from_are_listed(folder):
    for name in ("LICENSE", "onnx/model.onnx", "onnx/config.json", ".gitattributes"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    further = checks_of(folder)[-1]
    assert (further.what, further.verdict) == ("further files", NOT_RECORDED)
    assert further.found == "LICENSE, onnx/config.json, onnx/model.onnx"
    assert not wrong(folder)


def test_the_code_beside_an_onnx_file_is_that_of_the_model(folder):
    (folder / "onnx").mkdir()
    code = folder / "onnx" / "configuration_magic.py"
    shutil.copy(folder / "configuration_magic.py", code)
    assert verdicts(checks_of(folder))["code: onnx/configuration_magic.py"] == OK
    append(code)
    assert wrong(folder) == {"code: onnx/configuration_magic.py": ""}


def test_what_a_training_leaves_is_named_as_what_it_is(folder):
    (folder / "training_args.bin").write_bytes(b"x")
    found = {one.what: one for one in checks_of(folder)}["weights: training_args.bin"]
    assert (found.verdict, found.found) == (NOT_RECORDED, "a file that can run code")


def test_what_could_run_is_named_in_a_folder_without_a_record(folder):
    (folder / "search.json").unlink()
    edit(folder / "README.md", "`search.json` beside the weights", "Nothing")
    for name in ("evil.py", "model.pkl", "pytorch_model.bin"):
        (folder / name).write_text("x")
    edit(
        folder / "config.json",
        '"auto_map": {',
        '"auto_map": {"AutoModelForX": "evil.Evil", "AutoTokenizer": "evil.Tokens",',
    )
    found = verdicts(checks_of(folder))
    named = {"code: evil.py", "weights: model.pkl", "weights: pytorch_model.bin"}
    named |= {"auto_map: AutoModelForX", "auto_map: AutoTokenizer"}
    assert {found[what] for what in named} == {NOT_RECORDED}
    assert "auto_map: AutoModel" not in found


def test_a_record_from_which_a_part_was_removed_differs(folder):
    edit_record(folder, lambda record: record["contents"]["json"].pop("config.json"))
    assert list(wrong(folder)) == ["search.json", "config.json"]
    edit_record(folder, lambda record: record["contents"].pop("record_sha256"))
    assert list(wrong(folder)) == ["search.json", "config.json"]


def test_names_on_record_that_lead_out_of_the_folder_are_missing(folder, tmp_path):
    (tmp_path / "secret").write_text("x")
    edit_record(folder, lambda record: record["contents"]["sha256"].update({"../secret": "0" * 64, "/etc/passwd": 3}))
    found = {one.what: one.found for one in checks_of(folder) if one.verdict == DIFFERS}
    assert found["../secret"] == found["/etc/passwd"] == "missing"


# ---- What was done honestly ----


def test_a_model_and_a_tokenizer_that_are_saved_again_are_the_same(folder):
    AutoModelForMaskedLM.from_pretrained(folder).save_pretrained(folder)
    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)
    edit(folder / "config.json", '"transformers_version": "', '"transformers_version": "9')
    assert not wrong(folder)


def test_a_training_in_the_folder_is_told_as_that(folder):
    model = AutoModelForMaskedLM.from_pretrained(folder)
    model.lm_head.bias.data += 1
    model.save_pretrained(folder)
    what = "weights: model.safetensors"
    assert wrong(folder) == {what: "the weights are not the exported ones"}
    args = TrainingArguments(str(folder), report_to="none", use_cpu=True)
    Trainer(model, args, processing_class=AutoTokenizer.from_pretrained(folder)).save_model()
    assert wrong(folder) == {
        what: "the weights are not the exported ones; training_args.bin shows that a training ran in this folder"
    }


def test_code_of_the_installed_package_is_no_stranger(folder):
    """What another release exported and this one saved again."""
    edit_record(folder, lambda record: record["contents"]["sha256"].update({"modeling_magic.py": "0" * 64}))
    (code,) = [one for one in checks_of(folder) if one.what == "code: modeling_magic.py"]
    assert (code.verdict, code.note) == (OK, "not the exported one, but as in the installed magic-nas")


def test_code_of_another_release_is_as_recorded(folder):
    append(folder / "modeling_magic.py")
    from training.files import file_sha256

    now = file_sha256(folder / "modeling_magic.py")
    edit_record(folder, lambda record: record["contents"]["sha256"].update({"modeling_magic.py": now}))
    (code,) = [one for one in checks_of(folder) if one.what == "code: modeling_magic.py"]
    assert (code.verdict, code.note) == (OK, "of a version other than the installed magic-nas")


def test_without_hashes_the_code_is_compared_with_the_installed_one(folder):
    without_contents(folder)
    append(folder / "heads_magic.py")
    found = checks_of(folder)
    assert {one.what for one in found if one.verdict != NOT_RECORDED} == {"hashes of the files"}
    shown = {one.what: one.found for one in found}
    assert shown["code: heads_magic.py"] == "of a version other than the installed magic-nas"
    assert shown["code: modeling_magic.py"] == "as in the installed magic-nas"
    (folder / "config.json").write_text("{")
    assert list(wrong(folder)) == ["hashes of the files", "config.json"]


def test_a_folder_without_a_record_is_no_export_unless_its_card_names_one(folder):
    (folder / "search.json").unlink()
    edit(folder / "README.md", "`search.json` beside the weights", "Nothing")
    assert verdicts(checks_of(folder))["search.json"] == NOT_RECORDED


def test_slow_tokenizers_and_sentence_files_are_on_record(supernet, tmp_path):
    tokenizer = toy_tokenizer()
    files = {"modules.json": "[]\n", "1_Pooling/config.json": "{}\n"}
    child = supernet.extract_child(MIXED)
    child.resize_token_embeddings(len(tokenizer))
    folder = export_model(child, tokenizer, tmp_path / "model", {}, files=files)
    assert {one.verdict for one in checks_of(folder)} == {OK}
    for name in files:
        (folder / name).write_text('{"a": 1}')
    assert sorted(wrong(folder)) == ["1_Pooling/config.json", "modules.json"]
