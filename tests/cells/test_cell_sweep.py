"""Methods compared on cells: equal compute, the tables, and what is refused before anything is trained."""

import csv
import itertools
import json
import math
import multiprocessing
import os
import re
import signal
from pathlib import Path
from statistics import mean

import pytest
from datasets import Dataset
from scipy.stats import kendalltau
from test_cell_run import ARGUMENTS
from toy_cells import png, toy_pixels, write_images, write_table
from toy_cli import run_main

from training.analysis.ranking import method_tau, tau_among_equals
from training.analysis.sweep_plan import supernet_settings
from training.cells.cell_run import RankingCurve, training_cost
from training.cells.cell_space import (
    CONV1,
    CONV3,
    SKIP,
    cell_space,
    format_cell,
    parse_cell,
    used_operators,
)
from training.cells.cell_sweep import method_steps, run_cells
from training.cells.published import load_published
from training.cells.settings import CellSettings, CellSweepSettings


METHODS = {
    "SPOS": {"sampler": "uniform", "alignment": "none"},
    "MAGIC-AT": {"sampler": "gradual", "alignment": "anchor"},
}

SIZES = ["parameters", "parameters in use", "FLOPs"]


@pytest.fixture
def settings(tmp_path) -> CellSweepSettings:
    supernet = CellSettings(
        images=str(write_images(tmp_path / "images", 64)),
        channels=4,
        num_validation_images=16,
        num_curve_points=2,
        num_curve_children=10,
        training_arguments=ARGUMENTS,
    )
    table = str(write_table(tmp_path / "table.csv"))
    return CellSweepSettings(
        supernet=supernet,
        table=table,
        metric="accuracy",
        num_children=40,
        methods=METHODS,
        seeds=(0, 1),
        num_repeats=2,
        num_resamples=50,
    )


def changed(settings, **changes):
    return CellSweepSettings(**{**vars(settings), **changes})


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def convolutions(child):
    return 10 * child.count(CONV3) + child.count(CONV1)


def test_methods_are_held_against_the_table(tmp_path, settings):
    result = run_cells(settings, tmp_path / "sweep")
    truth = load_published(settings.table, "accuracy").means
    by_method = {}
    for method in METHODS:
        for seed in (0, 1):
            lines = (tmp_path / "sweep" / "supernets" / f"{method}-{seed}" / "scores.jsonl").read_text().splitlines()
            records = [record for record in map(json.loads, lines) if "architecture" in record]
            scores = {tuple(r["architecture"].split(",")): -r["val_loss"] for r in records}
            assert len(scores) == 40
            by_method.setdefault(method, []).append(scores)
    worth = {child: truth[child] for child in by_method["SPOS"][0]}
    for row in result["methods"][:2]:
        own = by_method[row["method"]]
        taus = [kendalltau([one[child] for child in worth], list(worth.values())).statistic for one in own]
        assert row["tau"] == pytest.approx(mean(taus))
        assert row["winner"] == pytest.approx(mean(worth[max(one, key=one.get)] for one in own))
        assert (row["tau_low"], row["tau_high"]) == method_tau(worth, own, 50).interval
        # Only convolutions have parameters, and each of their kinds has a number of its own.
        equals = [
            tau_among_equals(worth, one, lambda child: 10 * child.count(CONV3) + child.count(CONV1)) for one in own
        ]
        assert row["tau_equal_parameters"] == pytest.approx(mean(equals))
    assert [row["method"] for row in result["methods"]] == ["SPOS", "MAGIC-AT", *SIZES]
    # Convolutions are worth something in the made-up table.
    assert result["methods"][2]["tau"] > 0.4
    assert (tmp_path / "sweep" / "curve.png").is_file()
    assert [row["method"] for row in rows_of(tmp_path / "sweep" / "methods.csv")] == [
        "SPOS",
        "MAGIC-AT",
        *SIZES,
    ]
    assert len(rows_of(tmp_path / "sweep" / "supernets.csv")) == 4
    assert len(rows_of(tmp_path / "sweep" / "curve.csv")) == 8
    assert {parse_cell(row["winner"]) for row in rows_of(tmp_path / "sweep" / "supernets.csv")} <= worth.keys()
    children = rows_of(tmp_path / "sweep" / "children.csv")
    assert {parse_cell(row["arch"]): float(row["accuracy"]) for row in children} == worth
    assert [float(row["accuracy"]) for row in children] == sorted(worth.values(), reverse=True)
    for row in children:
        for method, own in by_method.items():
            assert [-float(row[f"val_loss {method}-{seed}"]) for seed in (0, 1)] == [
                one[parse_cell(row["arch"])] for one in own
            ]
    rows = result["interference"]
    assert [(row["method"], row["seed"]) for row in rows if row["m"] == 1] == [
        (method, seed) for seed in (0, 1) for method in METHODS
    ]
    assert [float(row["cosine"]) for row in rows_of(tmp_path / "sweep/interference.csv")] == [
        row["cosine"] for row in rows
    ]
    both = [row["cosine"] for row in rows if row["method"] == "SPOS" and row["m"] == 2]
    (line,) = [line for line in result["table"].splitlines()[-2:] if line.startswith("| SPOS | ")]
    assert f"| {mean(both):.3f} (" in line
    # An operator on an edge that leads nowhere has parameters, but they are not in use.
    sizes = {row["method"]: row["tau_equal_parameters"] for row in result["methods"]}
    assert sizes["parameters"] is None
    assert math.isfinite(sizes["parameters in use"])
    assert math.isfinite(sizes["FLOPs"])
    in_use = {child: sum({CONV3: 9, CONV1: 1}.get(one, 0) for one in used_operators(child)) for child in worth}
    assert result["methods"][3]["tau"] == pytest.approx(
        kendalltau([in_use[child] for child in worth], list(worth.values())).statistic
    )
    for line in ("| SPOS | 2 |", "MAGIC-AT minus SPOS: ", "| method | m = 1 | m = 2 |"):
        assert line in result["table"]
    assert run_cells(settings, tmp_path / "sweep") == result


def test_a_better_half_of_one_worth_costs_no_other_figures(settings, tmp_path):
    path = tmp_path / "level.csv"
    lines = Path(settings.table).read_text().splitlines()
    path.write_text(
        "\n".join([lines[0], *(f"{line.split(',')[0]},{min(i, 9)}" for i, line in enumerate(lines[1:21]))])
    )
    given = {
        "table": str(path),
        "num_children": 20,
        "methods": {"SPOS": METHODS["SPOS"]},
        "seeds": (0,),
        "num_repeats": 0,
    }
    row = run_cells(changed(settings, **given), tmp_path / "level")["methods"][0]
    assert math.isnan(row["tau_better_half"])
    assert math.isfinite(row["tau"])


def test_a_truth_that_ranks_nothing_is_refused_before_images_are_read(settings, tmp_path):
    path = tmp_path / "same.csv"
    lines = Path(settings.table).read_text().splitlines()
    path.write_text("\n".join([lines[0], *(f"{line.split(',')[0]},90" for line in lines[1:])]))
    with pytest.raises(ValueError, match=r"truth is 90\.0 for all 40 children, so there is no ranking"):
        run_cells(changed(settings, table=str(path)), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_ties_count_against_what_is_ranked_first(settings, tmp_path):
    """Of cells of one size, the first of the parameters is the worst."""
    path = tmp_path / "ties.csv"
    children = [child for child in cell_space((CONV3, SKIP)).children() if child.count(CONV3) in (1, 5)]
    rows = [f"{format_cell(child)},{10 * child.count(CONV3) + number}" for number, child in enumerate(children)]
    path.write_text("\n".join(["arch,accuracy", *rows]))
    settings = changed(settings, table=str(path), num_children=12, methods={"SPOS": METHODS["SPOS"]}, num_repeats=0)
    result = run_cells(changed(settings, seeds=(0,)), tmp_path / "ties")
    assert result["methods"][1]["method"] == "parameters"
    large = [row for row in rows if row.count(CONV3) == 5]
    assert result["methods"][1]["winner"] == min(float(row.split(",")[1]) for row in large)


def test_alignment_is_paid_for_with_steps(settings):
    steps = method_steps(settings, num_train=48)
    assert steps["SPOS"] == 12
    assert steps["MAGIC-AT"] < 12
    own = supernet_settings(settings.supernet, METHODS["MAGIC-AT"], 0)
    costs = [training_cost(own, 48, number) for number in (steps["MAGIC-AT"], steps["MAGIC-AT"] + 1)]
    wanted = training_cost(supernet_settings(settings.supernet, METHODS["SPOS"], 0), 48, 12)
    assert min(costs, key=lambda cost: abs(cost - wanted)) == costs[0]
    own = {**METHODS, "longer": {"sampler": "uniform", "alignment": "none", "max_steps": 99}}
    unequal = changed(settings, equal_compute=False, methods=own)
    assert method_steps(unequal, 48) == {"SPOS": 12, "MAGIC-AT": 12, "longer": 99}


def sweep_and_die(settings, folder):
    """Killed at step 9 of the third super-net, the first checkpoint of which is of step 4."""
    measure, steps = RankingCurve.on_step_end, itertools.count()

    def killed(self, args, state, control, **kwargs):
        if next(steps) == 2 * 12 + 8:
            os.kill(os.getpid(), signal.SIGKILL)
        return measure(self, args, state, control, **kwargs)

    RankingCurve.on_step_end = killed
    run_cells(settings, folder)


@pytest.mark.slow
def test_a_sweep_that_was_killed_goes_on(tmp_path, settings):
    # Methods of as many steps, so that the moment is known.
    settings = changed(settings, equal_compute=False)
    process = multiprocessing.get_context("fork").Process(target=sweep_and_die, args=(settings, tmp_path / "parts"))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert len(list((tmp_path / "parts" / "supernets").glob("*/result.json"))) == 2
    assert list((tmp_path / "parts" / "supernets").glob("*/checkpoint-8"))
    whole, parts = (run_cells(settings, tmp_path / name) for name in ("whole", "parts"))
    assert parts["methods"] == whole["methods"]
    assert parts["curve"] == whole["curve"]
    assert parts["interference"] == whole["interference"]


@pytest.mark.slow
def test_a_super_net_that_has_diverged_costs_no_others(tmp_path, settings, caplog):
    diverged = {**METHODS, "far too fast": {"sampler": "uniform", "alignment": "none", "learning_rate": 1e30}}
    settings = changed(settings, methods=diverged, num_repeats=1, seeds=(0,))
    result = run_cells(settings, tmp_path / "sweep")
    rows = {row["method"]: row for row in result["methods"]}
    assert rows["far too fast"]["num_ranking"] == 0
    assert rows["SPOS"]["num_ranking"] == 1
    assert math.isnan(rows["far too fast"]["tau"])
    assert math.isnan(rows["far too fast"]["winner"])
    assert "| far too fast | 0 of 1, the others diverged |" in result["table"]
    assert [row["first"] for row in result["comparisons"]] == ["MAGIC-AT"]
    assert "all children have the same loss; it has diverged and is not ranked" in caplog.text
    assert {row["method"] for row in result["interference"]} == METHODS.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"table": ""}, "table is empty; give it with --table"),
        ({"methods": {}}, "methods is empty"),
        (
            {"num_children": 61},
            "num_children is 61, but only 60 cells of .* have the operators .*; give a smaller",
        ),
        ({"methods": {"a": {"seed": 1}}}, "a sets the seed"),
        (
            {"methods": {"a": {"sampler": "gradual", "num_substitutions_from": 7}}},
            "num_substitutions_from is 7; choose 1 to 6",
        ),
        (
            {"methods": {"a": {"sampler": "uniform", "num_substitutions": 2}}},
            "num_substitutions has no effect on the sampler 'uniform'; set sampler to gradual",
        ),
        ({"methods": {"a": {"shrink": True}}}, "a shrinks its super-nets"),
        ({"methods": {"a": {"max_steps": 3}}}, "equal_compute sets the steps of a"),
        ({"methods": {"a b": {}, "a  b": {}}}, "have the same folder"),
        ({"methods": {"a": {"shrink_num_children": 9}}}, "shrink_num_children has no effect without shrink"),
        ({"methods": {"a": {"num_best_candidates": 9}}}, "num_best_candidates is given, but a super-net of cells is"),
        ({"methods": {"a": {"max_params": 3}}}, "max_params is 3, but budgets are not supported for cells"),
    ],
)
def test_what_contradicts_itself_is_refused_before_anything_is_read(tmp_path, settings, changes, message):
    with pytest.raises(ValueError, match=message):
        run_cells(changed(settings, **changes), tmp_path / "sweep")
    assert not (tmp_path / "sweep").exists()


def test_seeds_have_one_place(tmp_path, settings):
    seeded = CellSettings(**{**vars(settings.supernet), "training_arguments": {**ARGUMENTS, "seed": 3}})
    with pytest.raises(ValueError, match="training_arguments sets the seed"):
        run_cells(changed(settings, supernet=seeded), tmp_path / "sweep")


def stopped(*_, **__):
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("stopping", "message"),
    [("cell_sweep._judge", "was compared with another table"), ("cell_run.RankingCurve.on_epoch_end", "the table")],
)
def test_another_table_is_not_taken_for_the_one_before(tmp_path, settings, monkeypatch, stopping, message):
    """Neither by a finished super-net nor by one that was stopped in its training."""
    settings = changed(settings, methods={"SPOS": METHODS["SPOS"]}, seeds=(0,))
    monkeypatch.setattr(f"training.cells.{stopping}", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cells(settings, tmp_path / "sweep")
    monkeypatch.undo()
    table = Path(settings.table)
    table.write_text(re.sub(r",8\d", ",70", table.read_text()))
    with pytest.raises(ValueError, match=message):
        run_cells(settings, tmp_path / "sweep")


@pytest.mark.parametrize(
    ("stopping", "message"),
    [("cell_sweep._judge", "was trained on other images"), ("cell_run.RankingCurve.on_epoch_end", "the images")],
)
def test_other_images_are_not_taken_for_those_before(tmp_path, settings, monkeypatch, stopping, message):
    settings = changed(settings, methods={"SPOS": METHODS["SPOS"]}, seeds=(0,))
    monkeypatch.setattr(f"training.cells.{stopping}", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_cells(settings, tmp_path / "sweep")
    monkeypatch.undo()
    pixels, labels = toy_pixels(64)
    rows = {"image": list(map(png, pixels)), "label": (1 - labels).tolist()}
    Dataset.from_dict(rows).to_parquet(Path(settings.supernet.images) / "train.parquet")
    with pytest.raises(ValueError, match=message):
        run_cells(settings, tmp_path / "sweep")


def test_the_command_prints_the_table(tmp_path, settings, monkeypatch, capsys):
    words = [
        "analyze",
        "cells",
        "-o",
        tmp_path / "sweep",
        "--images",
        settings.supernet.images,
        "--table",
        settings.table,
    ]
    words += [
        "--metric",
        "accuracy",
        "--channels",
        "4",
        "--num-children",
        "20",
        "--seed",
        "0",
        "--set",
        "num_validation_images=16",
    ]
    words += ["--set", "num_resamples=20", "--set", "num_curve_points=0", "--set", "num_repeats=0"]
    words += [f"--set=training_arguments.{name}={value}" for name, value in ARGUMENTS.items()]
    words += ["--set", "methods={SPOS: {sampler: uniform, alignment: none}}"]
    code, out, err = run_main(monkeypatch, capsys, *words)
    assert code == 0, err
    assert "| SPOS | 1 | 12 |" in out
    assert f"figure and tables: {tmp_path / 'sweep'}" in out


def test_damaged_images_are_named_in_one_line(tmp_path, settings, monkeypatch, capsys):
    path = tmp_path / "images" / "train.parquet"
    path.write_bytes(path.read_bytes()[:300])
    words = [
        "--images",
        settings.supernet.images,
        "--table",
        settings.table,
        "--metric",
        "accuracy",
        "--num-children",
        "20",
    ]
    code, _, err = run_main(monkeypatch, capsys, "analyze", "cells", "-o", tmp_path / "sweep", *words)
    assert code != 0
    assert "truncated or damaged" in err
    assert "Traceback" not in err
