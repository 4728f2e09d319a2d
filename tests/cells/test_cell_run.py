"""One super-net of cells: its curve, its scores, what it costs, and going on after a stop."""

import json
from statistics import mean

import pytest
from scipy.stats import kendalltau
from toy_cells import toy_images, write_table

from training.cells.cell_model import CellSupernet, count_cell_flops
from training.cells.cell_run import (
    CURVE_NAME,
    RankingCurve,
    cell_arguments,
    cell_batches,
    cell_config,
    scored_children,
    train_cells,
    training_cost,
)
from training.cells.cell_runner import CellRunner
from training.cells.cell_space import cell_space
from training.cells.images import ImageCollator
from training.cells.published import load_published
from training.cells.settings import CellSettings
from training.supernet.evaluation import Evaluator, validation_batches
from training.supernet.loading import SUPERNET_FOLDER


ARGUMENTS = {
    "max_steps": 12,
    "per_device_train_batch_size": 8,
    "per_device_eval_batch_size": 8,
    "alignment_warmup_steps": 3,
    "anchor_eval_steps": 4,
    "save_strategy": "steps",
    "save_steps": 4,
    "disable_tqdm": True,
}


def settings(**changes) -> CellSettings:
    given = {"channels": 4, "num_validation_images": 16, "num_curve_points": 3, "num_curve_children": 10}
    arguments = {**ARGUMENTS, **changes.pop("training_arguments", {})}
    return CellSettings(**{**given, **changes}, training_arguments=arguments)


@pytest.fixture
def truth(tmp_path):
    return load_published(write_table(tmp_path / "table.csv"), "accuracy")


def test_a_run_has_a_curve_and_scores(tmp_path, truth):
    data, folder = toy_images(), tmp_path / "run"
    result = train_cells(settings(), data, truth, folder)
    assert [point["step"] for point in result["curve"]] == [4, 8, 12]
    assert json.loads((folder / CURVE_NAME).read_text()) == result["curve"]
    ranked = scored_children(folder, cell_batches(data, cell_arguments(settings(), folder)), list(truth.values))
    assert {child.architecture for child in ranked} == truth.values.keys()
    model = CellSupernet.from_pretrained(folder / SUPERNET_FOLDER)
    again = Evaluator(model, validation_batches(data.validation, ImageCollator(0), 8), runner=CellRunner(model))
    assert again(sorted(truth.values))[5].val_loss == pytest.approx(ranked[5].val_loss, rel=1e-5)
    assert train_cells(settings(), data, truth, folder) == result
    with pytest.raises(ValueError, match="channels"):
        train_cells(settings(channels=8), data, truth, folder)


def test_the_last_point_is_tau_of_the_scores(tmp_path, truth):
    data, folder = toy_images(), tmp_path / "run"
    result = train_cells(settings(num_curve_children=60), data, truth, folder)
    ranked = scored_children(folder, cell_batches(data, cell_arguments(settings(), folder)), list(truth.values))
    worth = [truth.means[child.architecture] for child in ranked]
    tau = kendalltau([-child.val_loss for child in ranked], worth).statistic
    assert result["curve"][-1]["tau_loss"] == pytest.approx(tau, abs=0.01)


def test_a_run_that_was_stopped_has_the_same_curve(tmp_path, truth, monkeypatch):
    data = toy_images()
    whole = train_cells(settings(), data, truth, tmp_path / "whole")

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 9:
            raise KeyboardInterrupt
        return measure(self, args, state, control, **kwargs)

    measure = RankingCurve.on_step_end
    monkeypatch.setattr(RankingCurve, "on_step_end", stop)
    with pytest.raises(KeyboardInterrupt):
        train_cells(settings(), data, truth, tmp_path / "parts")
    monkeypatch.undo()
    parts = train_cells(settings(), data, truth, tmp_path / "parts")
    assert parts["curve"] == whole["curve"]
    assert parts["visits"] == whole["visits"]


def test_defaults_hold_where_nothing_is_said(tmp_path):
    args = cell_arguments(CellSettings(num_validation_images=77), tmp_path)
    assert (args.learning_rate, args.weight_decay, args.per_device_train_batch_size) == (0.1, 5e-4, 128)
    assert args.num_validation_sequences == 77
    assert cell_arguments(CellSettings(training_arguments={"learning_rate": 0.5}), tmp_path).learning_rate == 0.5


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"alignment": "none"}, 3 * 8 * 100),
        # From step 4 on one more forward pass; the anchor is looked at after steps 3 and 4, 8, ..., 100.
        ({"alignment": "anchor"}, 3 * 8 * 100 + 97 * 8 + (26 + 25) * 16),
        # No more images than there are, and no more children.
        ({"alignment": "anchor", "num_validation_sequences": 99}, 3 * 8 * 100 + 97 * 8 + (26 + 25) * 16),
        (
            {"alignment": "top_percent", "anchor_rank_steps": 50, "anchor_pool_size": 99_999},
            3 * 8 * 100 + 50 * 8 + 2 * 15_625 * 16,
        ),
        # Only the second of three cells, so the third is not run.
        ({"alignment": "anchor", "alignment_every_n_layers": 2}, 3 * 8 * 100 + 97 * 8 * 2 / 3 + (26 + 25) * 16),
        ({"alignment": "average", "num_average_children": 3}, 3 * 8 * 100 + 97 * 8 * 3),
    ],
)
def test_the_cost_of_a_training_counts_forward_passes(change, expected):
    assert training_cost(settings(training_arguments=change), num_train=32, num_steps=100) == pytest.approx(expected)


def test_steps_of_the_sandwich_rule_cost_more():
    own, uniform = (
        training_cost(settings(training_arguments={"sampler": sampler}), num_train=32, num_steps=100)
        for sampler in ("sandwich", "uniform")
    )
    config, space = cell_config(settings()), cell_space(settings().operators)
    flops = {child: count_cell_flops(config, child) for child in space.children()}
    expected = (max(flops.values()) + min(flops.values()) + 2 * mean(flops.values())) / (4 * mean(flops.values()))
    assert expected > 1.1
    assert own / uniform == pytest.approx(expected, rel=0.02)


def test_a_space_without_none_has_4096_cells():
    four = ("skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3")
    assert cell_space(CellSettings(operators=four).operators).size == 4096


def test_a_curve_has_no_points_of_a_run_that_was_given_up(tmp_path, truth, monkeypatch):
    data = toy_images()
    fresh = train_cells(settings(), data, truth, tmp_path / "fresh")

    def stop(self, args, state, control, **kwargs):
        measure(self, args, state, control, **kwargs)
        if state.global_step == 5:
            raise KeyboardInterrupt

    measure = RankingCurve.on_step_end
    monkeypatch.setattr(RankingCurve, "on_step_end", stop)
    faster = settings(training_arguments={"learning_rate": 0.5, "save_strategy": "no"})
    with pytest.raises(KeyboardInterrupt):
        train_cells(faster, data, truth, tmp_path / "run")
    assert json.loads((tmp_path / "run" / CURVE_NAME).read_text())
    monkeypatch.undo()
    assert train_cells(settings(), data, truth, tmp_path / "run")["curve"] == fresh["curve"]


@pytest.mark.parametrize("name", ["optim", "adam_beta2", "label_smoothing_factor"])
def test_what_sgd_on_labels_has_no_use_for_is_refused(tmp_path, name):
    value = "sgd" if name == "optim" else 0.5
    with pytest.raises(ValueError, match=f"{name} is given, but cells are trained with SGD on plain labels"):
        cell_arguments(CellSettings(training_arguments={name: value}), tmp_path)
