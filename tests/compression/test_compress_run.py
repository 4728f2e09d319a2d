"""Whole compressions of toys: what they end with, what is refused before they begin, and what a stop leaves."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from toy_compress import Kill, at_call, save_source, shorten, toy_settings, write_sentences
from toy_sources import edit_json
from transformers import AutoModel, AutoTokenizer

from training.compression import calibration, compress_run, judging, workbench
from training.compression.compress_run import compress, read_tasks
from training.compression.distill import Compute
from training.compression.settings import CompressSettings
from training.compression.source import load_source
from training.compression.task_scores import Task
from training.compression.teacher_trainers import ChildTrainer
from training.distillation.teacher import TeacherCache
from training.supernet.journal import Journal


TESTS = Path(__file__).parents[1]


def make_short(monkeypatch) -> None:
    # Put back afterwards.
    for owner, name in ((judging, "check_packages"), (judging, "_NUM_ROUNDS"), (workbench, "_SAVE_STEPS")):
        monkeypatch.setattr(owner, name, getattr(owner, name))
    shorten()


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    make_short(monkeypatch)


@pytest.fixture(autouse=True, scope="module")
def _own_cache(tmp_path_factory):
    # Other tests run the same teacher on the same text in other batches, which differ in their last bits.
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setenv("MAGIC_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that has ended: its folder's parent, settings and result."""
    folder = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as monkeypatch:
        make_short(monkeypatch)
        settings = toy_settings(folder, steps=7)
        return folder, settings, compress(settings, folder / "out", progress=False)


def without_times(result: dict[str, Any]) -> dict[str, Any]:
    """A result but for what is measured anew: latencies, and the columns and texts that hold them."""
    models = [{name: value for name, value in row.items() if "padded" not in name} for row in result["models"]]
    return {**result, "models": models, "latency": None, "table": None}


def files_of(folder: Path) -> dict[str, bytes]:
    """The weights and configurations of a run, and what was chosen."""
    names = ("*.safetensors", "config.json", "choices.json", "visits.json", "errors.json")
    return {str(path.relative_to(folder)): path.read_bytes() for name in names for path in folder.rglob(name)}


def stop() -> None:
    raise Kill


# ---- What it ends with ----


def test_the_folder_holds_the_model_the_table_and_the_result(run):
    folder, _, result = run
    out = folder / "out"
    assert json.loads((out / "result.json").read_text()) == result
    assert (out / "table.md").read_text().startswith(result["table"])
    assert result["verdicts"][0] in (out / "table.md").read_text()
    assert (out / "figure.svg").read_text().startswith("<?xml")
    assert result["kind"] == "sentence"
    assert result["precision"] == "no"
    assert [member["name"] for member in result["members"]] == ["flops-0.6x"]
    roles = [row["role"] for row in result["models"]]
    assert roles[:2] == ["checkpoint", "found"]
    assert {"block_drop", "sublayer_drop", "evenly_spaced_blocks", "one_width", "random"} <= set(roles)
    for row in result["models"][1:]:
        assert row["flops"] <= 0.6 * result["models"][0]["flops"]
    manifest = json.loads((out / "model" / "search.json").read_text())
    assert manifest["compression"]["verdict"] == result["verdicts"][0]
    assert f"| budget | {manifest['budget']} |" in (out / "model" / "README.md").read_text()
    assert manifest["budget"] == "at most 0.60 of the checkpoint's FLOPs"
    leftovers = [path for path in out.rglob("*") if path.name.startswith("checkpoint-") or ".tmp" in path.name]
    assert not leftovers


def test_the_exported_folder_is_the_distilled_model(run):
    folder, _, _ = run
    out = folder / "out"
    source = load_source(str(folder / "source"))
    distilled = type(source.model).from_pretrained(out / "models" / "flops-0.6x" / "found" / "model").eval()
    exported = AutoModel.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    batch = tokenizer(["A man is playing.", "No."], padding=True, return_tensors="pt")
    with torch.no_grad():
        states = [model(**batch).last_hidden_state for model in (distilled, exported)]
    assert torch.equal(*states)
    # Trained without dropout; what is written has the checkpoint's.
    assert (distilled.config.hidden_dropout_prob, exported.config.hidden_dropout_prob) == (0, 0.1)


def test_controls_have_the_compute_that_the_winner_and_its_search_have_cost(run):
    folder, settings, result = run
    out = folder / "out"
    source = load_source(str(folder / "source"))
    chosen = json.loads((out / "choices.json").read_text())["flops-0.6x"]
    visits = json.loads((out / "supernet" / "visits.json").read_text())
    encoded = AutoTokenizer.from_pretrained(folder / "source")((folder / "text.txt").read_text().splitlines())
    # Of all sentences; those that are trained on have nearly the same, and the length is a whole number.
    lengths = list(map(len, encoded["input_ids"]))
    compute = Compute(source.model.config, settings, sum(lengths) / len(lengths))
    space = compress_run.checkpoint_space(source.model.config)
    winner = chosen["found"]["architecture"]
    spent = 7 * compute.step(winner) + compute.calibration(space.candidates) + compute.supernet(visits)
    spent += compute.judging(chosen["passes"], 20)
    rows = {row["role"]: row for row in result["models"]}
    assert rows["found"]["steps"] == 7
    for role, child in chosen["controls"].items():
        assert abs(rows[role]["steps"] * compute.step(child) - spent) <= compute.step(child) / 2


def test_a_run_that_has_ended_returns_its_result_and_reads_nothing(run, monkeypatch):
    folder, settings, result = run
    for name in ("load_source", "read_sentences", "read_tasks"):
        monkeypatch.setattr(compress_run, name, lambda *_, **__: pytest.fail("read"))
    assert compress(settings, folder / "out", progress=False) == result


def test_another_run_has_the_teachers_outputs_already(run, tmp_path, monkeypatch):
    _, settings, _ = run
    put = []
    monkeypatch.setattr(TeacherCache, "put", lambda *_: put.append(1))
    with monkeypatch.context() as stopping:
        stopping.setattr(compress_run, "_choose_all", lambda *_: stop())
        with pytest.raises(Kill):
            compress(settings, tmp_path / "again", progress=False)
    assert not put


def test_the_callers_threads_are_left_as_they_were(run, tmp_path, monkeypatch):
    folder, _, _ = run
    before, during = torch.get_num_threads(), []
    monkeypatch.setattr(compress_run, "load_source", lambda *_: during.append(torch.get_num_threads()) or stop())
    with pytest.raises(Kill):
        compress(toy_settings(folder, num_threads=before + 1), tmp_path / "out", progress=False)
    assert (during, torch.get_num_threads()) == ([before + 1], before)


def test_the_callers_next_accelerator_has_a_precision_of_its_own(run, tmp_path, monkeypatch):
    folder, _, _ = run
    monkeypatch.setattr(
        compress_run, "_compress", lambda run, bench, *_: {"precision": bench.accelerator.mixed_precision}
    )
    result = compress(toy_settings(folder, precision="bf16"), tmp_path / "out", progress=False)
    assert result == {"precision": "bf16"}
    assert Accelerator(mixed_precision="no").mixed_precision == "no"


# ---- What is refused before any work ----


def refused(monkeypatch, settings: CompressSettings, output: Path, message: str, reads: bool = False) -> None:
    """Checks that a run is refused in one line with this message in it, and before text is read."""
    if not reads:
        monkeypatch.setattr(compress_run, "read_sentences", lambda *_, **__: pytest.fail("the text was read"))
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        compress(settings, output, progress=False)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_flops": ()}, "no budget is given; set how small the encoder must be, for example --max-latency 0.4x"),
        ({"max_flops": ("1.5x",)}, "--max-flops is 1.5x; give less than the checkpoint's own cost, such as 0.5x"),
        ({"max_flops": ("1",)}, "the smallest child, FFNx6 alone, has"),
        ({"max_params": ("2e9",)}, "but the checkpoint has"),
        ({"text": ()}, "no text is given; pass unlabelled text like the text that the encoder will see with --text"),
        ({"checkpoint": "/no/such/folder"}, "no model /no/such/folder; give a model's folder or its name on the Hub"),
        ({"kind": "token"}, "which has no trained head for the kind 'token'; choose 'sentence'"),
        ({"convolutions": ("MHA2",)}, "convolutions has MHA2, which is not a convolution"),
        ({"convolutions": ("CONV4",)}, "operator 'CONV4' has an even kernel 4"),
        (
            {"alignment": "checkpoint", "alignment_every_n_layers": 9},
            "is 9 but the checkpoint has 4 layers, so none",
        ),
        ({"eval": ("dev.tsv",)}, "--eval is 'dev.tsv'; write NAME=FILE, such as stsb=dev.tsv"),
        ({"eval": ("docstring",)}, "--eval is 'docstring'; write NAME=FILE, such as stsb=dev.tsv"),
        ({"eval": ("=dev.tsv",)}, "--eval is '=dev.tsv'; write NAME=FILE, such as stsb=dev.tsv"),
        ({"eval": ("stsb=",)}, "--eval is 'stsb='; write NAME=FILE, such as stsb=dev.tsv"),
        ({"eval": ("stsb=/no/such.tsv",)}, "/no/such.tsv"),
        ({"eval": ("glue=dev.tsv",)}, "--eval glue: a sentence model has no such task"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(run, tmp_path, monkeypatch, changes, message):
    folder, _, _ = run
    refused(monkeypatch, toy_settings(folder, **changes), tmp_path / "out", message)
    assert not (tmp_path / "out").exists()


def test_a_task_is_named_once(run, tmp_path, monkeypatch):
    folder, _, _ = run
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "dev.tsv").write_text("sentence1\tsentence2\tscore\na\tb\t1\nc\td\t2\n")
    settings = toy_settings(folder, eval=tuple(f"sts={tmp_path / name / 'dev.tsv'}" for name in ("one", "two")))
    message = "--eval names sts (dev.tsv) twice; give each task once, and each file its own name"
    refused(monkeypatch, settings, tmp_path / "out", message)


def test_another_family_and_a_super_net_are_refused(run, tmp_path, monkeypatch):
    folder, _, _ = run
    other = save_source(tmp_path / "gpt")
    edit_json(other / "config.json", model_type="gpt2", architectures=["GPT2Model"])
    refused(monkeypatch, toy_settings(folder, checkpoint=str(other)), tmp_path / "out", "gpt2")
    supernet = folder / "out" / "supernet" / "model"
    AutoTokenizer.from_pretrained(folder / "source").save_pretrained(tmp_path / "supernet")
    for path in supernet.iterdir():
        (tmp_path / "supernet" / path.name).write_bytes(path.read_bytes())
    message = "is a super-net; export one of its children with `magic-nas export` and give that"
    refused(monkeypatch, toy_settings(folder, checkpoint=str(tmp_path / "supernet")), tmp_path / "out", message)


def test_a_squad_file_for_a_model_that_cannot_have_windows_is_refused(tmp_path, monkeypatch):
    paragraph = {"context": "A man plays.", "qas": [{"id": "q", "question": "Who?", "answers": []}]}
    content = {"data": [{"title": "T", "paragraphs": [paragraph]}]}
    (tmp_path / "s.json").write_text(json.dumps(content))
    settings = toy_settings(tmp_path, "BertForQuestionAnswering", eval=(f"squad={tmp_path / 's.json'}",))
    edit_json(tmp_path / "source" / "tokenizer_config.json", padding_side="left")
    refused(monkeypatch, settings, tmp_path / "out", "pads or truncates on the left")


def test_a_damaged_card_of_the_checkpoint_is_named_before_the_search(run, tmp_path, monkeypatch):
    folder, _, _ = run
    source = shutil.copytree(folder / "source", tmp_path / "source")
    (source / "README.md").write_text("---\nlicense: [mit\n---\n")
    settings = toy_settings(folder, checkpoint=str(source))
    refused(monkeypatch, settings, tmp_path / "out", "cannot be read")


def test_docstrings_are_a_task_without_a_file(run, monkeypatch):
    folder, settings, _ = run
    monkeypatch.setattr(compress_run, "docstring_retrieval", lambda: Task("docstrings", "sentence", None, "", ()))
    source = load_source(str(folder / "source"))
    assert [task.title for task in read_tasks(("docstrings",), source)] == ["docstrings"]
    twice = replace(settings, eval=("docstrings", " docstrings "))
    with pytest.raises(ValueError, match="--eval names docstrings twice"):
        read_tasks(twice.eval, source)


def test_text_without_its_column_is_refused(run, tmp_path, monkeypatch):
    folder, _, _ = run
    rows = (folder / "text.txt").read_text().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join(json.dumps({"sentence": row}) for row in rows))
    given = {"text": (str(tmp_path / "rows.jsonl"),)}
    refused(monkeypatch, toy_settings(folder, **given), tmp_path / "out", "has no column 'text'", reads=True)
    monkeypatch.setattr(compress_run, "open_run", lambda *_: stop())
    with pytest.raises(Kill):
        compress(toy_settings(folder, **given, text_column="sentence"), tmp_path / "out", progress=False)


def test_the_folder_of_another_run_is_left_alone(run, tmp_path, monkeypatch):
    folder, _, _ = run
    before = files_of(folder / "out")
    monkeypatch.setattr(compress_run, "load_source", lambda *_: pytest.fail("loaded"))
    message = "holds another run (steps is 7 there, 8 here); use another --output-dir"
    refused(monkeypatch, toy_settings(folder, steps=8), folder / "out", message)
    assert files_of(folder / "out") == before


# ---- What a stop leaves ----

# Where a run is stopped, one after another: an object, its function, at which call, and whether before or after it.
STOPS: list[tuple[Any, str, int, bool]] = [
    (TeacherCache, "flush", 1, False),
    (TeacherCache, "flush", 2, False),
    (calibration, "add_gradients", 2, False),
    (workbench, "local_errors", 1, False),
    (workbench, "write_json", 1, False),
    (workbench.CheckpointTrainer, "training_step", 5, False),
    (workbench.CheckpointTrainer, "begin_checkpoint", 1, True),
    (workbench, "keep_trained", 1, False),
    (Journal, "append", 3, True),
    (compress_run, "write_json", 1, False),
    (ChildTrainer, "training_step", 4, False),
    (compress_run, "distill", 2, True),
    (compress_run, "judge_models", 1, False),
    (compress_run, "judge_models", 1, True),
    (compress_run, "export_compressed", 1, True),
    (compress_run, "write_figure", 1, True),
]


@pytest.mark.slow
def test_a_run_that_was_stopped_anywhere_ends_with_the_same(run, tmp_path, monkeypatch):
    folder, settings, result = run
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "cache"))
    for owner, name, number, after in STOPS:
        with monkeypatch.context() as stopping:
            stopping.setattr(owner, name, at_call(number, getattr(owner, name), stop, after))
            with pytest.raises(Kill):
                compress(settings, tmp_path / "out", progress=False)
    found = compress(settings, tmp_path / "out", progress=False)
    assert without_times(found) == without_times(result)
    assert files_of(tmp_path / "out") == files_of(folder / "out")


def test_a_run_that_has_begun_keeps_its_folder(run, tmp_path, monkeypatch):
    folder, settings, _ = run
    with monkeypatch.context() as stopping:
        stopping.setattr(workbench, "start_operators", lambda *_, **__: stop())
        with pytest.raises(Kill):
            compress(settings, tmp_path / "out", progress=False)
    message = "holds another run (steps is 7 there, 9 here)"
    refused(monkeypatch, toy_settings(folder, steps=9), tmp_path / "out", message)


@pytest.mark.parametrize(
    "failing",
    [
        "export_compressed",
        pytest.param("judge_models", marks=pytest.mark.slow),
        pytest.param("draw_compression", marks=pytest.mark.slow),
    ],
)
def test_a_late_failure_loses_nothing_that_was_trained(run, tmp_path, monkeypatch, failing):
    folder, settings, result = run
    # As if its last part were not there yet.
    monkeypatch.setattr(ChildTrainer, "training_step", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(workbench, "_make_start", lambda *_: pytest.fail("calibrated"))
    subprocess.run(["cp", "-r", folder / "out", tmp_path / "out"], check=True)
    (tmp_path / "out" / "result.json").unlink()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(compress_run, failing, fail)
        with pytest.raises(OSError, match="No space left on device"):
            compress(settings, tmp_path / "out", progress=False)
    assert not (tmp_path / "out" / "result.json").exists()
    assert without_times(compress(settings, tmp_path / "out", progress=False)) == without_times(result)


def test_what_a_kill_left_half_written_is_cleared(run, tmp_path, monkeypatch):
    folder, settings, _ = run
    torn = [tmp_path / "out" / path for path in (".start-x", "supernet/.model-y", "models/flops-0.6x/found/.model-z")]
    subprocess.run(["cp", "-r", folder / "out", tmp_path / "out"], check=True)
    (tmp_path / "out" / "result.json").unlink()
    for path in torn:
        path.mkdir()
        (path / "model.safetensors").write_text("half")
    monkeypatch.setattr(compress_run, "_members", lambda *_: stop())
    with pytest.raises(Kill):
        compress(settings, tmp_path / "out", progress=False)
    assert not any(path.exists() for path in torn)


def environment(cache: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return {**os.environ, "PYTHONPATH": paths, "MAGIC_CACHE": str(cache)}


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["BertModel", "BertForMaskedLM"])
def test_a_run_that_was_killed_anywhere_ends_with_the_same(tmp_path, class_name):
    points = ["os.fsync 3", "os.fsync 9", "pathlib.Path.replace 4", "torch.Tensor.backward 4", "os.fsync 14"]
    points += ["torch.save 1", "torch.save 4", "torch.Tensor.backward 9", "os.fsync 11", "torch.save 5"]
    points += ["torch.Tensor.backward 7", "pathlib.Path.replace 6", "os.fsync 20", "os.fsync 7"]
    settings = toy_settings(tmp_path, class_name)
    command = [sys.executable, str(TESTS / "toy_compress.py"), str(tmp_path), class_name, *points]
    run = subprocess.run(command, capture_output=True, text=True, env=environment(tmp_path / "cache"), timeout=600)
    assert run.returncode == 0, run.stderr
    expected = compress(settings, tmp_path / "whole", progress=False)
    found = json.loads((tmp_path / "out" / "result.json").read_text())
    assert without_times(found) == without_times(expected)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


# ---- All kinds, in full ----

AUTO_CLASSES = {
    "BertModel": "AutoModel",
    "RobertaModel": "AutoModel",
    "BertForMaskedLM": "AutoModelForMaskedLM",
    "RobertaForSequenceClassification": "AutoModelForSequenceClassification",
    "ElectraForTokenClassification": "AutoModelForTokenClassification",
    "BertForQuestionAnswering": "AutoModelForQuestionAnswering",
}


@pytest.mark.slow
@pytest.mark.parametrize("class_name", AUTO_CLASSES)
def test_a_checkpoint_of_each_kind_is_compressed_and_what_comes_out_again(tmp_path, class_name):
    settings = toy_settings(tmp_path, class_name)
    result = compress(settings, tmp_path / "out", progress=False)
    teacher = result["models"][0]
    assert teacher["loss"] == pytest.approx(0, abs=1e-6)
    check_export(tmp_path / "out", class_name, tmp_path)
    # By its folder as by its run's.
    for number, checkpoint in enumerate((tmp_path / "out", tmp_path / "out" / "model")):
        again = toy_settings(tmp_path, checkpoint=str(checkpoint), max_flops=("0.8x",), steps=2)
        twice = compress(again, tmp_path / f"again{number}", progress=False)
        assert twice["kind"] == result["kind"]
        assert tuple(twice["models"][0]["architecture"]) == tuple(result["models"][1]["architecture"])
        check_export(tmp_path / f"again{number}", class_name, tmp_path)


def check_export(out: Path, class_name: str, folder: Path) -> None:
    """The exported folder loads as the checkpoint did, and gives what the distilled model gives."""
    loader = getattr(transformers, AUTO_CLASSES[class_name])
    exported = loader.from_pretrained(out / "model").eval()
    source = load_source(str(folder / "source"))
    (member,) = (out / "models").iterdir()
    distilled = type(source.model).from_pretrained(member / "found" / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    batch = tokenizer(["A man is playing.", "No."], padding=True, return_tensors="pt")
    given = {name: batch[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad():
        for one, two in zip(distilled(**given).to_tuple(), exported(**given).to_tuple(), strict=True):
            assert torch.equal(one, two)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"id2label": {0: "score"}, "label2id": {"score": 0}},
        {"problem_type": "multi_label_classification"},
    ],
    ids=["regression", "several labels"],
)
def test_numbers_and_several_labels_are_compressed(tmp_path, changes):
    save_source(tmp_path / "source", "BertForSequenceClassification", **changes)
    write_sentences(tmp_path / "text.txt", tmp_path / "source")
    result = compress(toy_settings(tmp_path), tmp_path / "out", progress=False)
    teacher, found = result["models"][:2]
    assert teacher["loss"] == pytest.approx(0, abs=1e-6)
    assert 0 < found["loss"] < 10
    config = json.loads((tmp_path / "out" / "model" / "config.json").read_text())
    assert config.get("problem_type") == changes.get("problem_type")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"max_flops": ("0.6x", "0.4x"), "equal_steps": True},
        {"searcher": "additive", "controls": ()},
        {"sampler": "uniform", "alignment": "checkpoint", "alignment_every_n_layers": 2, "states_weight": 0.5},
        {"max_flops": (), "max_latency": ("0.7x",)},
        {"max_flops": (), "max_params": ("0.7x",), "convolutions": ("CONV3",), "score_weight": 0.1},
        {"precision": "bf16", "output_maps": "copy", "importance": "norm", "calibration_steps": 0},
        {"batch_size": 300},
    ],
    ids=lambda changes: " ".join(changes),
)
def test_every_way_to_search_ends_with_a_model(tmp_path, changes, caplog):
    settings = toy_settings(tmp_path, **changes)
    with caplog.at_level("INFO"):
        result = compress(settings, tmp_path / "out", progress=False)
    names = [member["name"] for member in result["members"]]
    folders = [tmp_path / "out" / "model" / name for name in names] if len(names) > 1 else [tmp_path / "out" / "model"]
    for folder in folders:
        assert AutoModel.from_pretrained(folder).num_parameters() > 0
    assert len(result["verdicts"]) == len(names)
    is_additive = settings.searcher == "additive"
    assert ("with calibrated weights" in caplog.text, "with shared weights" in caplog.text) == (
        is_additive,
        not is_additive,
    )
    if is_additive:
        assert not (tmp_path / "out" / "supernet").exists()
    if not settings.controls:
        roles = [row["role"] for row in result["models"]]
        assert roles == ["checkpoint", "found", "block_drop", "sublayer_drop"]
    if settings.equal_steps:
        steps = {(row["member"], row["role"]): row["steps"] for row in result["models"]}
        assert steps["flops-0.6x", "block_drop_equal_steps"] == steps["flops-0.4x", "sublayer_drop_equal_steps"] == 5


@pytest.mark.slow
def test_sentence_transformers_embeds_as_the_distilled_model(run):
    from sentence_transformers import SentenceTransformer

    from training.compression.predictor import Predictor, forward_of

    folder, _, _ = run
    source = load_source(str(folder / "source"))
    model = type(source.model).from_pretrained(folder / "out" / "models" / "flops-0.6x" / "found" / "model").eval()
    texts = ["A man is playing a guitar.", "No."]
    expected = Predictor(source, forward_of(model)).embed(texts)
    found = SentenceTransformer(str(folder / "out" / "model"), device="cpu").encode(texts)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-5)


# ---- Two processes ----


def compress_as_one_of_two(folder: Path) -> None:
    shorten()
    result = compress(toy_settings(folder), folder / "out", progress=False)
    (folder / f"{os.environ['RANK']}.json").write_text(json.dumps(result))


@pytest.mark.slow
def test_two_processes_share_a_run(tmp_path):
    toy_settings(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    variables = environment(tmp_path / "cache")
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=variables, timeout=600)
    assert run.returncode == 0, run.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == json.loads((tmp_path / "out" / "result.json").read_text())
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").num_parameters() > 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    compress_as_one_of_two(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
