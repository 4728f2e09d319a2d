"""What trainings cost, by hand, and the distillation of one child."""

import json
from typing import Any

import pytest
import torch
from toy_compress import CLASSES, Kill, at_call, toy_bench

from modeling_magic import MagicConfig
from training.compression import workbench
from training.compression.distill import DISTILLED_NAME, Compute, distill
from training.compression.settings import CompressSettings
from training.compression.spaces import checkpoint_space
from training.compression.teacher_trainers import ChildTrainer
from training.compression.workbench import start_supernet
from training.space.costs import count_flops, operator_flops


SMALLER = ("MHA2x16", "SKIP", "MHA4", "FFNx24")


def stop() -> None:
    raise Kill


# ---- Compute ----


def config_of() -> MagicConfig:
    sizes: Any = {"hidden_size": 32, "intermediate_size": 48, "max_position_embeddings": 64}
    return MagicConfig(candidate_operators=[["MHA4"], ["FFN"]] * 2, **sizes)


def compute_of(num_processes: int = 1, length: float = 10.2, **changes) -> Compute:
    return Compute(config_of(), CompressSettings(batch_size=8, calibration_steps=5, **changes), length, num_processes)


def flops(*names: str) -> int:
    return sum(operator_flops(name, config_of(), 10) for name in names if name != "SKIP")


def test_a_childs_cost_is_that_of_its_operators():
    compute = compute_of()
    whole = count_flops(config_of(), SMALLER, 10, head="none") - count_flops(config_of(), (), 10, head="none")
    assert compute.child(SMALLER) == flops(*SMALLER) == whole
    assert compute.step(SMALLER) == 3 * 8 * flops(*SMALLER)
    assert compute_of(num_processes=2).step(SMALLER) == 2 * 3 * 8 * flops(*SMALLER)
    assert compute.operator("SKIP") == 0


def test_a_teacher_in_every_step_is_counted():
    teacher = flops("MHA4", "FFN", "MHA4", "FFN")
    assert compute_of(states_weight=0.5).step(SMALLER) == 8 * (3 * flops(*SMALLER) + teacher)
    visits = [{"MHA4": 2, "SKIP": 1}, {"FFN": 3}, {"MHA4": 3}, {"FFN": 1, "FFNx24": 2}]
    trained = flops("MHA4", "MHA4", *["FFN"] * 3, *["MHA4"] * 3, "FFN", "FFNx24", "FFNx24")
    assert compute_of().supernet(visits) == 3 * 8 * trained
    assert compute_of(alignment="checkpoint").supernet(visits) == 8 * (3 * trained + 3 * teacher)


def test_calibration_is_a_pass_of_the_teacher_and_a_step_of_each_new_operator():
    candidates = checkpoint_space(config_of()).candidates
    new = [name for layer, own in zip(candidates, config_of().chain, strict=True) for name in layer if name != own]
    assert "SKIP" in new
    expected = 5 * 8 * (flops("MHA4", "FFN", "MHA4", "FFN") + 3 * flops(*new))
    assert compute_of().calibration(candidates) == expected


def test_judging_is_a_pass_of_each_operator_over_the_sentences():
    passes = {"MHA4": 3, "FFNx24": 2, "SKIP": 9}
    assert compute_of().judging(passes, 20) == 20 * flops(*["MHA4"] * 3, *["FFNx24"] * 2)


def test_a_control_has_the_steps_that_the_compute_is_worth():
    compute = compute_of()
    assert compute.equal_steps(SMALLER, 100 * compute.step(SMALLER)) == 100
    cheap = ("FFNx24", "SKIP", "SKIP", "SKIP")
    given = 100 * compute.step(SMALLER)
    steps = compute.equal_steps(cheap, given)
    assert steps > 100
    assert abs(steps * compute.step(cheap) - given) <= compute.step(cheap) / 2
    assert compute.equal_steps(SMALLER, 1) == 1


@pytest.mark.parametrize(("length", "expected"), [(0.4, 2), (33.4, 33), (1000, 64)])
def test_the_length_is_one_that_the_model_takes(length, expected):
    wanted = operator_flops("MHA4", config_of(), expected)
    assert compute_of(length=length).operator("MHA4") == wanted


# ---- One child ----


@pytest.fixture(scope="module", params=CLASSES)
def bench(request, tmp_path_factory):
    bench = toy_bench(tmp_path_factory.mktemp(request.param), CLASSES[request.param], num_sentences=100)
    bench.run_teacher(progress=False)
    return bench


def test_a_child_is_distilled_from_the_calibrated_weights_and_once(bench, tmp_path, monkeypatch):
    began = []
    train = ChildTrainer.train
    monkeypatch.setattr(
        ChildTrainer,
        "train",
        lambda self, **given: (
            began.append({k: v.clone() for k, v in self.model.state_dict().items()}) or train(self, **given)
        ),
    )
    model = distill(bench, SMALLER, 4, tmp_path, progress=False)
    expected = start_supernet(bench, progress=False).extract_child(SMALLER).state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in began[0].items())
    assert type(model) is type(bench.teacher)
    assert model.config.chain == ("MHA2x16", "MHA4", "FFNx24")
    assert not model.training
    record = json.loads((tmp_path / DISTILLED_NAME).read_text())
    assert (record["architecture"], record["steps"]) == (list(SMALLER), 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["distilled.json", "model"]
    trained = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, expected[name])}
    assert trained
    assert not any("embeddings." in name for name in trained)
    again = distill(bench, SMALLER, 4, tmp_path, progress=False)
    assert len(began) == 1
    for (name, one), (_, two) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


@pytest.mark.parametrize("name", ["written_at_once", "write_json"])
def test_a_child_that_was_distilled_but_not_put_on_record(tmp_path, monkeypatch, name):
    """Stopped before its model is written, and before the record."""
    bench = toy_bench(tmp_path, num_sentences=100)
    bench.run_teacher(progress=False)
    expected = distill(bench, SMALLER, 3, tmp_path / "whole", progress=False)
    with monkeypatch.context() as stopping:
        stopping.setattr(workbench, name, at_call(1, getattr(workbench, name), stop))
        with pytest.raises(Kill):
            distill(bench, SMALLER, 3, tmp_path / "parts", progress=False)
    monkeypatch.setattr(ChildTrainer, "training_step", lambda *_, **__: pytest.fail("a step was made"))
    model = distill(bench, SMALLER, 3, tmp_path / "parts", progress=False)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), expected.parameters(), strict=True))
