"""Rows of models against what each part measures on its own; what fails on the way is left out."""

import logging
from pathlib import Path

import pytest
import torch
from toy_compress import CLASSES, toy_bench
from toy_sources import toy_child

from training.compression import judging
from training.compression.judging import Distilled, Key, judge_models
from training.compression.predictor import Predictor
from training.compression.task_scores import read_task
from training.compression.workbench import Workbench
from training.space.costs import count_flops, count_parameters
from training.supernet.evaluation import evaluate_child


def bench_of(folder: Path, kind: str = "sentence", **changes) -> Workbench:
    bench = toy_bench(folder, CLASSES[kind], num_sentences=100, **changes)
    bench.judged_outputs.fill(bench.validation)
    return bench


def models_of(bench: Workbench) -> dict[str, dict[str, Distilled]]:
    found, dropped = (toy_child(bench.teacher, chain) for chain in (("MHA2x16", "FFNx24", "FFN"), ("MHA4", "FFN")))
    return {"small": {"found": Distilled(found, 5), "block_drop": Distilled(dropped, 9)}}


def write_pairs(path: Path, bench: Workbench) -> Path:
    texts = Path(bench.settings.text[0]).read_text().splitlines()
    rows = [f"{texts[row]}\t{texts[row + 1]}\t{row % 4}" for row in range(20)]
    path.write_text("\n".join(["sentence1\tsentence2\tscore", *rows]))
    return path


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(judging, "_NUM_ROUNDS", 2)


@pytest.fixture
def without_int8(monkeypatch):
    def missing(int8: bool) -> None:
        raise ValueError("not here")

    monkeypatch.setattr(judging, "check_packages", missing)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_row_holds_what_each_part_measures(tmp_path, without_int8, kind):
    bench = bench_of(tmp_path, kind, latency_length=1000)
    models = models_of(bench)
    rows, measured = judge_models(bench, models, [], progress=False)
    assert [(row.member, row.role, row.steps) for row in rows] == [
        ("", "checkpoint", 0),
        ("small", "found", 5),
        ("small", "block_drop", 9),
    ]
    own = [bench.teacher, *(distilled.model for distilled in models["small"].values())]
    longest = bench.teacher.config.max_sequence_length
    for row, model in zip(rows, own, strict=True):
        config = model.config
        assert row.architecture == config.chain
        assert row.num_parameters == count_parameters(config, config.chain)
        assert row.flops == count_flops(config, config.chain, longest, head="none")
        expected = evaluate_child(model, bench.judged_batches(), judge=bench.objective)
        assert (row.loss, row.score) == expected
        name = str(Key(row.member, row.role))
        for mode in ("padded", "unpadded"):
            ratio = measured.ratios[mode][name]
            assert getattr(row, mode) == (ratio.median, ratio.low, ratio.high)
    assert rows[0].loss == pytest.approx(0, abs=1e-6)
    assert rows[0].padded == (1, 1, 1)


def test_latency_is_measured_on_held_out_sentences_as_they_come(tmp_path):
    bench = bench_of(tmp_path, latency_batch_size=9)
    batches = judging._timed_batches(bench)
    assert [len(batch["input_ids"]) for batch in batches] == [9, 9, 9, 9]
    rows = bench.validation[:36]
    for number, ids in enumerate(rows["input_ids"]):
        batch, place = batches[number // 9], number % 9
        assert batch["attention_mask"][place].sum() == len(ids)
        assert batch["input_ids"][place, : len(ids)].tolist() == ids


def test_tasks_are_scored_for_all_models(tmp_path, without_int8):
    bench = bench_of(tmp_path)
    task = read_task("stsb", write_pairs(tmp_path / "dev.tsv", bench), "sentence")
    rows, _ = judge_models(bench, models_of(bench), [task], progress=False)
    values = [row.tasks for row in rows]
    assert all(list(value) == ["stsb (dev.tsv)"] for value in values)
    teacher = Predictor(bench.source, judging.forward_of(bench.teacher)).score(task).value
    assert values[0]["stsb (dev.tsv)"] == teacher
    assert len({value["stsb (dev.tsv)"] for value in values}) == 3


def test_a_task_that_one_model_cannot_be_scored_on_is_left_out(tmp_path, without_int8, caplog):
    bench = bench_of(tmp_path)
    tasks = [read_task(name, write_pairs(tmp_path / f"{name}.tsv", bench), "sentence") for name in ("sts", "stsb")]
    models = models_of(bench)
    with torch.no_grad():
        models["small"]["block_drop"].model.encoder.layer[0].operators["MHA4"].query.weight.fill_(float("nan"))
    rows, _ = judge_models(bench, models, tasks, progress=False)
    assert [row.tasks for row in rows] == [{}, {}, {}]
    assert "stsb (stsb.tsv) is skipped, since small: block_drop cannot be scored on it: " in caplog.text


def test_int8_is_left_out_without_the_packages(tmp_path, without_int8, caplog):
    with caplog.at_level(logging.INFO):
        judge_models(bench_of(tmp_path), {}, [], progress=False)
    assert "int8 is skipped: not here" in caplog.text


def test_a_model_that_cannot_be_exported_is_there_all_the_same(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(judging, "check_packages", lambda int8: None)

    def failing(*_):
        raise RuntimeError("an operator is not known\nand a long trace")

    monkeypatch.setattr(judging, "export_onnx", failing)
    bench = bench_of(tmp_path)
    rows, _ = judge_models(bench, models_of(bench), [], progress=False)
    assert [row.role for row in rows] == ["checkpoint", "found", "block_drop"]
    assert "small: found, int8 is skipped, since the export failed: an operator is not known" in caplog.text
    assert "trace" not in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("class_name", ["BertModel", "RobertaForTokenClassification", "BertForMaskedLM"])
def test_teacher_and_winner_are_judged_in_int8(tmp_path, class_name):
    bench = toy_bench(tmp_path, class_name, num_sentences=100)
    bench.judged_outputs.fill(bench.validation)
    rows, measured = judge_models(bench, models_of(bench), [], progress=False)
    assert [row.role for row in rows] == ["checkpoint", "checkpoint, int8", "found", "block_drop", "found, int8"]
    by_role = {row.role: row for row in rows}
    for role in ("checkpoint", "found"):
        one, two = by_role[role], by_role[f"{role}, int8"]
        assert (one.architecture, one.num_parameters, one.steps) == (two.architecture, two.num_parameters, two.steps)
        assert two.loss == pytest.approx(one.loss, abs=0.05)
        assert two.padded is not None
        assert two.unpadded is None
    assert by_role["checkpoint, int8"].loss > 0
    assert set(measured.ratios["padded"]) == {str(Key(row.member, row.role)) for row in rows}
