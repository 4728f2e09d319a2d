"""The run of an interference analysis: from a super-net's folder to tables and figures, stopped and continued."""

import csv
import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from toy import toy_config
from transformers import AutoTokenizer

from modeling_magic import MagicForMaskedLM
from training.analysis.interference import AlignmentTarget, GradientMeter, cosine_matrix
from training.analysis.interference_run import (
    REPEATS_NAME,
    compare_interference,
    draw_result,
    follow_weights,
    run_interference,
    summarise_repeats,
)
from training.analysis.settings import InterferenceSettings
from training.cli.analyze import compare
from training.data.settings import DataSettings
from training.data.text import MaskingCollator, prepare_data
from training.runs.recipes import settings_from
from training.supernet.evaluation import validation_batches
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings


SENTENCES = "the anchor aligns the child. a layer holds the operators of the super-net. every step trains one child. "
OPERATORS = ["MHA4", "FFN", "CONV3", "CONV5"]
ANCHOR = "FFN,CONV3,CONV5,MHA4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("interference")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 3}" for number in range(200)))
    data = prepare_data(str(folder / "text"), vocab_size=150, block_size=32, cache_dir=folder / "cache")
    config = toy_config(vocab_size=len(data.tokenizer), pad_token_id=data.tokenizer.pad_token_id)
    torch.manual_seed(0)
    MagicForMaskedLM(config).save_pretrained(folder / "supernet")
    data.tokenizer.save_pretrained(folder / "supernet")
    return folder


def settings(folder, supernet="supernet", **changes) -> InterferenceSettings:
    recipe = {"num_repeats": 3, "num_sequences": 6, "micro_batch_size": 4, "alignment_every_n_layers": 2}
    data = {"source": str(folder / "text"), "block_size": 32}
    return followed(folder / supernet, {**recipe, "data": data, **changes})


def followed(supernet, recipe) -> InterferenceSettings:
    recipe = follow_weights(supernet, recipe)
    return InterferenceSettings(**{**recipe, "data": DataSettings(**recipe["data"])})


@pytest.fixture(scope="module")
def finished(folder):
    return run_interference(settings(folder), folder / "finished")


def rows(path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_was_measured(folder, finished):
    output = folder / "finished"
    repeats = json.loads((output / REPEATS_NAME).read_text())["repeats"]
    assert [len(own["matrices"]) for own in repeats] == [3, 3, 3]
    mean = np.mean([own["matrices"][0]["cosines"] for own in repeats], axis=0)
    assert finished["matrix"]["operators"] == OPERATORS
    assert np.allclose(finished["matrix"]["mean"], mean)
    matrix = {(row["first_operator"], row["second_operator"]): row for row in rows(output / "matrix.csv")}
    assert float(matrix["FFN", "CONV5"]["mean"]) == pytest.approx(mean[1, 3])
    assert float(matrix["FFN", "CONV5"]["low"]) < mean[1, 3] < float(matrix["FFN", "CONV5"]["high"])
    pairs = rows(output / "cosines.csv")
    assert len(pairs) == 3 * 3 * 6
    of_two = [float(row["cosine"]) for row in pairs if row["num_differing_layers"] == "2"]
    curve = rows(output / "curve.csv")
    assert [row["num_differing_layers"] for row in curve] == ["1", "2", "3"]
    assert float(curve[1]["mean"]) == pytest.approx(np.mean(of_two))
    fall = finished["curve"][0]["mean"] - finished["curve"][-1]["mean"]
    assert finished["first_minus_last"]["mean"] == pytest.approx(fall)
    assert abs(fall) > 1e-4
    assert {(row["first"], row["second"]) for row in rows(output / "kinds.csv")} == {
        ("CONV", "CONV"), ("CONV", "FFN"), ("CONV", "MHA"), ("FFN", "MHA"),
    }  # fmt: skip
    for name in ("matrix.png", "curve.png"):
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    assert finished["weights"] == json.loads((output / REPEATS_NAME).read_text())["key"]["weights"]
    assert set(finished["versions"]) >= {"torch", "transformers", "magic-nas"}
    assert f"{finished['curve'][0]['mean']:.3f}" in finished["summary"]
    assert json.loads((output / "result.json").read_text()) == finished


def test_a_repeat_can_be_measured_by_hand(folder):
    chosen = settings(folder, alignment="average", num_repeats=1, shared_layer=1, max_differing_layers=2)
    run_interference(chosen, folder / "by_hand")
    (repeat,) = json.loads((folder / "by_hand" / REPEATS_NAME).read_text())["repeats"]
    assert len(repeat["aligned_to"]) == 4
    model = MagicForMaskedLM.from_pretrained(folder / "supernet")
    data = prepare_data(str(folder / "text"), tokenizer=str(folder / "supernet"), block_size=32)
    indices = random.Random("batch-0-0").sample(range(len(data.train)), 6)
    batches = validation_batches([data.train[index] for index in indices], MaskingCollator(data.tokenizer), 4)
    target = AlignmentTarget(tuple(map(tuple, repeat["aligned_to"])), 0.5, 2)
    for matrix in repeat["matrices"]:
        measured = GradientMeter(model, batches, target).gradients(matrix["children"], 1)
        assert np.allclose(cosine_matrix(measured.gradients), matrix["cosines"], atol=1e-6)
        assert matrix["losses"] == pytest.approx(measured.losses, abs=1e-5)


def stop_at(number, monkeypatch) -> list:
    """Stops the analysis at its gradients of this number, once; returns the children asked for, which grow."""
    asked: list = []
    plain = GradientMeter.gradients

    def stopping(self, children, layer):
        asked.append(children)
        if len(asked) == number:
            raise KeyboardInterrupt
        return plain(self, children, layer)

    monkeypatch.setattr(GradientMeter, "gradients", stopping)
    return asked


def test_a_stopped_analysis_goes_on_where_it_was(folder, finished, monkeypatch):
    output = folder / "stopped"
    asked = stop_at(5, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_interference(settings(folder), output)
    assert not (output / "result.json").exists()
    result = run_interference(settings(folder), output)
    # The first repeat, the part of the second that was lost, and then the second and the third.
    assert len(asked) == 3 + 2 + 6
    assert {**result, "versions": None} == {**finished, "versions": None}
    assert (output / "cosines.csv").read_bytes() == (folder / "finished" / "cosines.csv").read_bytes()
    # One that has ended measures nothing.
    assert run_interference(settings(folder), output) == result
    assert len(asked) == 11


def test_repeats_of_other_weights_or_settings_are_refused(folder, finished):
    with pytest.raises(ValueError, match="seed is 0 there, 1 here"):
        run_interference(settings(folder, seed=1), folder / "finished")
    output = folder / "unfinished"
    output.mkdir()
    for name in ("run.json", REPEATS_NAME):
        (output / name).write_bytes((folder / "finished" / name).read_bytes())
    with pytest.raises(ValueError, match="other settings, another super-net"):
        run_interference(settings(folder, seed=1), output)


def test_a_text_that_has_changed_under_its_name_is_refused(folder, tmp_path, monkeypatch):
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 3}" for number in range(200)))
    chosen = settings(folder, num_repeats=2, max_differing_layers=1)
    chosen = replace(chosen, data=replace(chosen.data, source=str(tmp_path / "text")))
    stop_at(2, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run_interference(chosen, tmp_path / "out")
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 4}" for number in range(200)))
    with pytest.raises(ValueError, match="or another text"):
        run_interference(chosen, tmp_path / "out")


def test_repeats_differ_and_the_seed_decides(folder, finished):
    other = run_interference(settings(folder, seed=1, num_repeats=2, max_differing_layers=1), folder / "seed1")
    repeats = json.loads((folder / "finished" / REPEATS_NAME).read_text())["repeats"]
    assert len({own["batch"] for own in repeats}) == 3
    assert len({str(own["matrices"][0]["children"]) for own in repeats}) == 3
    assert other["matrix"]["mean"] != finished["matrix"]["mean"]
    fixed = run_interference(
        settings(folder, operator="CONV5", num_repeats=2, max_differing_layers=1), folder / "fixed"
    )
    assert fixed["shared_operators"] == ["CONV5", "CONV5"]


def test_one_repeat_and_one_layer_have_neither_interval_nor_curve(folder):
    result = run_interference(settings(folder, num_repeats=1, max_differing_layers=1), folder / "one")
    assert result["matrix"]["low"][0][1] is None
    assert result["first_minus_last"] is None
    assert not (folder / "one" / "curve.png").exists()
    assert "no interval" in result["summary"]
    assert rows(folder / "one" / "matrix.csv")[1]["low"] == ""


# ---- From a run and its checkpoints ----


@pytest.fixture(scope="module")
def run(folder):
    chosen = settings_from(
        PretrainSettings,
        {
            "preset": str(folder / "supernet"),
            "mlm_probability": 0.25,
            "data": {"source": str(folder / "text"), "tokenizer": str(folder / "supernet"), "block_size": 32},
            "training_arguments": {
                "sampler": "gradual",
                "alignment": "anchor",
                "max_steps": 8, "save_steps": 4, "save_strategy": "steps", "per_device_train_batch_size": 4,
                "alignment_warmup_steps": 2, "anchor_eval_steps": 2, "num_validation_sequences": 8, "shrink": True,
                "alignment_weight": 0.25, "alignment_every_n_layers": 1,
                "shrink_every_n_steps": 5, "shrink_operators_per_round": 8, "shrink_num_children": 8,
                "disable_tqdm": True, "num_probe_children": 0,
            },
        },
    )  # fmt: skip
    return pretrain(chosen, folder / "run")


def test_a_run_and_its_checkpoints_are_analysed_on_its_own_text(folder, run):
    chosen = {"num_repeats": 1, "num_sequences": 4, "alignment": "anchor", "max_differing_layers": 1}
    recipe = {**chosen, "alignment_every_n_layers": 2}
    outputs = {}
    for name in ("run", "run/checkpoint-4"):
        asked = followed(folder / name, recipe)
        assert asked.data.source == str(folder / "text")
        assert asked.data.block_size == 32
        assert asked.mlm_probability == 0.25
        assert (asked.alignment_weight, asked.alignment_every_n_layers) == (0.25, 2)
        assert followed(folder / name, {**recipe, "mlm_probability": 0.4}).mlm_probability == 0.4
        outputs[name] = run_interference(asked, folder / f"of-{name.replace('/', '-')}")
    assert outputs["run"]["weights"] != outputs["run/checkpoint-4"]["weights"]
    # At step 4 nothing is deleted yet, after step 5 half of the operators are.
    children = [
        json.loads((folder / name / REPEATS_NAME).read_text())["repeats"][0]
        for name in ("of-run-checkpoint-4", "of-run")
    ]
    assert children[0]["aligned_to"] != []
    left = run["space"]
    assert sum(map(len, left)) == 8
    layer = outputs["run"]["matrix"]["layer"]
    assert outputs["run"]["matrix"]["operators"] == left[layer]
    assert outputs["run/checkpoint-4"]["matrix"]["operators"] == OPERATORS
    for repeat in children[1:]:
        drawn = [child for matrix in repeat["matrices"] for child in matrix["children"]]
        assert all(name in left[layer] for child in drawn for layer, name in enumerate(child))
        assert repeat["aligned_to"] == [list(run["anchor_history"][-1]["architecture"])]


# ---- Several super-nets ----


@pytest.mark.slow
def test_analyses_are_compared_on_the_same_children(folder, finished):
    torch.manual_seed(1)
    other = MagicForMaskedLM.from_pretrained(folder / "supernet")
    for weight in other.parameters():
        weight.data += 0.05 * torch.randn_like(weight)
    other.save_pretrained(folder / "other")
    AutoTokenizer.from_pretrained(folder / "supernet").save_pretrained(folder / "other")
    second = run_interference(settings(folder, "other"), folder / "second")
    runs = {"ours": folder / "finished", "other": folder / "second"}
    record = compare_interference(runs, folder / "compared")
    assert json.loads((folder / "compared" / "comparison.json").read_text()) == record
    assert (folder / "compared" / "comparison.png").read_bytes().startswith(b"\x89PNG")
    for point, own, first in zip(record["other"]["more_than_first"], second["curve"], finished["curve"], strict=True):
        assert point["mean"] == pytest.approx(own["mean"] - first["mean"])
        assert point["low"] < point["mean"] < point["high"]
    assert "more_than_first" not in record["ours"]
    run_interference(settings(folder, seed=5, num_repeats=1, max_differing_layers=1), folder / "seed5")
    with pytest.raises(ValueError, match="b and a differ in children or batches"):
        compare_interference({"a": folder / "finished", "b": folder / "seed5"}, folder / "compared")
    # Of three layers above the first the same children are drawn, whatever layer their operator is compared in.
    one = {"first_differing_layer": 1, "max_differing_layers": 1}
    average = {"alignment": "average"}
    two = {**average, "num_average_children": 2}
    for name, changes in {"plain": {}, "layer": {"shared_layer": 2}, "average": average, "two": two}.items():
        run_interference(settings(folder, **one, **changes), folder / name)
    for first, second, message in (
        ("plain", "layer", "shared_layer of layer is 2 but that of plain is 0"),
        ("plain", "average", "alignment of average is average but that of plain is none"),
        ("average", "two", "num_average_children of two is 2 but that of average is 4"),
    ):
        with pytest.raises(ValueError, match=message):
            compare_interference({name: folder / name for name in (first, second)}, folder / "compared")
    with pytest.raises(ValueError, match="no finished analysis"):
        compare_interference({"a": folder / "finished", "b": folder / "text"}, folder / "compared")
    with pytest.raises(ValueError, match="at least two"):
        compare_interference({"a": folder / "finished"}, folder / "compared")
    named = [f"a={folder / 'finished'}", f"a={folder / 'second'}", "b=b"]
    with pytest.raises(ValueError, match="two analyses are named 'a'"):
        compare(analyses=named, output_dir=folder / "compared", quiet=False, verbose=False)


# ---- Figures ----


def texts(figure: Figure) -> list[str]:
    own = [text.get_text() for axes in figure.axes for text in axes.texts]
    labels = [text for axes in figure.axes for text in (axes.get_title(), axes.get_xlabel(), axes.get_ylabel())]
    return [*own, *labels, figure.get_suptitle(), figure.get_supxlabel()]


def test_figures_say_what_they_show(folder, finished):
    figures = draw_result(settings(folder, alignment="anchor", anchor=ANCHOR), finished)
    shown = texts(figures["matrix"])
    mean, high = (finished["matrix"][name][0][1] for name in ("mean", "high"))
    assert shown.count(f"{mean:.2f}\n±{high - mean:.2f}") >= 2
    # No two children have an attention each.
    assert shown.count("no\npair") == 2
    assert any("layer 0" in text and "differ in layer 1" in text for text in shown)
    assert any("Eq. (2)" in text and "3 repeats" in text for text in shown)
    assert any(" training sequences, " in text for text in shown)
    (axes,) = figures["curve"].axes
    assert list(axes.lines[0].get_ydata()) == [point["mean"] for point in finished["curve"]]
    assert "cosine" in axes.get_ylabel()


def test_pairs_of_one_kind_are_compared_with_pairs_of_two():
    def repeat(same: float, other: float) -> dict:
        cosines = [[1, same, other], [same, 1, other], [other, other, 1]]
        children = [["FFN", name] for name in ("CONV3", "CONV5", "FFN")]
        matrix = {"num_differing_layers": 1, "children": children, "losses": [1, 1, 1], "cosines": cosines}
        return {"repeat": 0, "operator": "FFN", "matrices": [matrix]}

    result = summarise_repeats([repeat(0.9, 0.5), repeat(0.8, 0.3)])
    assert result["same_kind"]["mean"] == pytest.approx(0.85)
    assert result["other_kind"]["mean"] == pytest.approx(0.4)
    assert result["same_minus_other"]["mean"] == pytest.approx(0.45)
    assert result["same_minus_other"]["low"] == pytest.approx(0.45 - 12.706 * 0.05, abs=1e-3)


# ---- Bad input ----


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_repeats": 0}, "num_repeats is 0"),
        ({"alignment": "anhcor"}, "alignment is 'anhcor'; choose one of: none, anchor, average"),
        ({"sequences": "test"}, "sequences is 'test'"),
        ({"anchor": ANCHOR}, "alignment is 'none'; set alignment to anchor"),
        ({"alignment": "anchor"}, "records no anchor"),
        ({"alignment": "anchor", "anchor": "FFN"}, "1 operators but the model has 4 layers"),
        ({"alignment": "average", "alignment_every_n_layers": 9}, "alignment_every_n_layers is 9"),
        ({"shared_layer": 4}, "shared_layer is 4"),
        ({"shared_layer": 1, "first_differing_layer": 1}, "do not share its operator"),
        ({"operator": "MHA8"}, "layer 0 has no operator 'MHA8'"),
        ({"max_differing_layers": 4}, "max_differing_layers is 4"),
        ({"device": "abacus"}, "device is 'abacus'"),
    ],
)
def test_what_needs_no_text_is_checked_before_it_is_read(folder, changes, message, monkeypatch):
    monkeypatch.setattr("training.analysis.interference_run.load_data", lambda _: pytest.fail("the text was read"))
    with pytest.raises(ValueError, match=message):
        run_interference(settings(folder, **changes), folder / "bad")
    assert not (folder / "bad").exists()


def test_a_child_alone_and_a_diverged_supernet_are_named(folder):
    model = MagicForMaskedLM.from_pretrained(folder / "supernet")
    model.extract_child(ANCHOR.split(",")).save_pretrained(folder / "child")
    model.magic.embeddings.LayerNorm.weight.data.fill_(float("nan"))
    model.save_pretrained(folder / "diverged")
    for name in ("child", "diverged"):
        for file in (folder / "supernet").glob("tokenizer*"):
            (folder / name / file.name).write_bytes(file.read_bytes())
    with pytest.raises(ValueError, match="holds one child"):
        run_interference(settings(folder, "child"), folder / "bad")
    with pytest.raises(ValueError, match="is nan; its gradient is meaningless"):
        run_interference(settings(folder, "diverged"), folder / "nan")
    assert not (folder / "nan" / "result.json").exists()


def test_too_few_sequences_are_named(folder):
    with pytest.raises(ValueError, match="num_sequences is 100000 but there are"):
        run_interference(settings(folder, num_sequences=100_000), folder / "many")
