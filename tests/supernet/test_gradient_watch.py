"""The live cosine: gradients of consecutive children on the operators that both share, in a real training."""

import math
import random

import pytest
import torch
from torch import nn
from toy import PLAIN, RESUMABLE, toy_config, toy_trainer
from transformers import TrainerCallback

from modeling_magic.configuration_magic import parse_operator
from training.supernet.gradient_watch import KEPT_DTYPE, GradientWatch
from training.supernet.trainer import MagicTrainer


def kind_of(operator: str) -> str:
    return parse_operator(operator).kind


class Operator(nn.Module):
    """Weights with a gradient set by hand."""

    def __init__(self, *gradient: float):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(gradient)))
        self.weight.grad = torch.tensor(gradient)


def step(watch: GradientWatch, number: int, chain: dict[str, tuple[float, ...]]) -> None:
    """One step of a child that has these operators, from the bottom up, with these gradients."""
    watch.begin_step(tuple(chain))
    watch.add_gradients(number, tuple(chain), [list(Operator(*own).parameters()) for own in chain.values()])


def test_cosines_by_hand():
    watch = GradientWatch(1, kind_of)
    step(watch, 1, {"FFN": (1.0, 0.0), "MHA4": (1.0, 1.0), "CONV3": (3.0, 4.0)})
    assert watch.scalars() == {}
    # The scale of a step's gradients plays no part.
    step(watch, 2, {"FFN": (2.0, 0.0), "MHA2": (1.0, 1.0), "CONV3": (4.0, 3.0)})
    figures = watch.scalars()
    assert figures == pytest.approx(
        {
            "interference/cosine": (1 + 24 / 25) / 2,
            "interference/cosine_CONV": 24 / 25,
            "interference/cosine_FFN": 1.0,
            "interference/num_shared": 2,
        }
    )
    assert watch.scalars() == {}


def test_the_same_operator_in_another_layer_is_not_shared():
    watch = GradientWatch(1, kind_of)
    step(watch, 1, {"FFN": (1.0,), "MHA4": (1.0,)})
    assert watch.scalars() == {}
    step(watch, 2, {"MHA4": (1.0,), "FFN": (1.0,)})
    # Children that share nothing count: uniform ones of few layers often do not.
    step(watch, 3, {"MHA4": (1.0,), "CONV3": (1.0,)})
    assert watch.scalars() == {"interference/cosine": 1, "interference/cosine_MHA": 1, "interference/num_shared": 0.5}
    step(watch, 4, {"FFN": (1.0,), "MHA4": (1.0,)})
    assert watch.scalars() == {"interference/num_shared": 0}


@pytest.mark.parametrize("bad", [0.0, math.inf, math.nan])
def test_a_gradient_without_direction_is_counted_and_left_out(bad):
    watch = GradientWatch(1, kind_of)
    step(watch, 1, {"FFN": (1.0, 0.0), "MHA4": (bad, 0.0)})
    step(watch, 2, {"FFN": (-1.0, 0.0), "MHA4": (1.0, 0.0)})
    figures = watch.scalars()
    assert figures.pop("interference/num_undefined") == 1
    assert figures == {"interference/cosine": -1, "interference/cosine_FFN": -1, "interference/num_shared": 2}
    step(watch, 3, {"CONV3": (1.0, 0.0), "MHA4": (bad, 0.0)})
    figures = watch.scalars()
    assert figures == {"interference/num_shared": 1, "interference/num_undefined": 1}


def test_only_the_step_before_one_that_is_due_keeps_gradients():
    watch, chain = GradientWatch(4), {"FFN": (1.0, 1.0), "MHA4": (1.0, 2.0)}
    kept = []
    for number in range(1, 10):
        step(watch, number, chain)
        kept.append(watch.kept_bytes)
    assert kept == [0, 0, 8, 0, 0, 0, 8, 0, 0]
    assert len(watch._waiting) == 2
    # What the next child does not share is freed before it runs.
    watch = GradientWatch(1, kind_of)
    step(watch, 1, chain)
    assert watch.kept_bytes == 8
    watch.begin_step(("FFN", "CONV3"))
    assert watch.kept_bytes == 4


def test_a_run_that_goes_on_elsewhere_compares_nothing_at_first():
    # As when one trainer is resumed from an earlier checkpoint.
    watch, chain = GradientWatch(1, kind_of), {"FFN": (1.0,)}
    for number in (1, 2, 7, 8):
        step(watch, number, chain)
    assert len(watch._waiting) == 2


def test_zero_switches_it_off_and_less_is_refused():
    watch, chain = GradientWatch(0), {"FFN": (1.0,)}
    for number in range(1, 5):
        step(watch, number, chain)
        assert watch.kept_bytes == 0
    assert watch.scalars() == {}
    with pytest.raises(ValueError, match="interference_every_n_steps is -1"):
        GradientWatch(-1)


def test_kept_gradients_are_copies():
    # Also where they have the kept type already, as in a model of that precision.
    watch, weight = GradientWatch(1), nn.Parameter(torch.zeros(2, dtype=KEPT_DTYPE))
    weight.grad = torch.tensor([1.0, 0.0], dtype=KEPT_DTYPE)
    watch.add_gradients(1, ("FFN",), [[weight]])
    weight.grad.copy_(torch.tensor([0.0, 1.0]))
    watch.add_gradients(2, ("FFN",), [[weight]])
    assert watch.scalars()["interference/cosine"] == 0


def test_frozen_operators_are_left_out():
    watch, chain = GradientWatch(1), ("FFN", "MHA4")
    frozen = nn.Parameter(torch.zeros(2), requires_grad=False)
    for number in (1, 2):
        watch.add_gradients(number, chain, [[Operator(1.0, 0.0).weight], [frozen]])
    assert watch.scalars()["interference/num_shared"] == 1


# ---- In training ----


class Gradients(TrainerCallback):
    """Keeps each step's gradients, to check by them what the trainer logs."""

    def __init__(self, trainer: MagicTrainer):
        self.trainer = trainer
        self.seen: dict[int, dict[tuple[int, str], torch.Tensor]] = {}

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        path = zip(self.trainer.model.magic.encoder.layer, self.trainer.architecture, strict=True)
        weights = [list(layer.operators[operator].parameters()) for layer, operator in path]
        flat = [torch.cat([weight.grad.flatten() for weight in own]).clone() for own in weights]
        self.seen[state.global_step + 1] = dict(zip(enumerate(self.trainer.architecture), flat, strict=True))


def watched(folder, **arguments) -> MagicTrainer:
    return toy_trainer(folder, **{"interference_every_n_steps": 1, **arguments})


def expected(seen: dict[int, dict], number: int) -> float:
    """The mean cosine of a step with the one before, in double precision."""
    now, before = seen[number], seen[number - 1]
    shared = [operator for operator in now if operator in before]
    cosines = [
        nn.functional.cosine_similarity(now[operator].double(), before[operator].double(), dim=0).item()
        for operator in shared
    ]
    return sum(cosines) / len(cosines)


def logged(trainer) -> dict[int, float]:
    return {
        entry["step"]: entry["interference/cosine"]
        for entry in trainer.state.log_history
        if "interference/cosine" in entry
    }


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.05])
def test_logs_are_the_cosines_of_the_gradients(tmp_path, max_grad_norm):
    trainer = watched(tmp_path, logging_steps=1, max_steps=8, max_grad_norm=max_grad_norm)
    gradients = Gradients(trainer)
    trainer.add_callback(gradients)
    trainer.train()
    found = logged(trainer)
    # The first step has none before it.
    assert sorted(found) == list(range(2, 9))
    for number, cosine in found.items():
        assert cosine == pytest.approx(expected(gradients.seen, number), abs=2e-3)
    entry = trainer.state.log_history[4]
    assert entry["interference/num_shared"] == 3
    kinds = {name for own in trainer.state.log_history for name in own if name.startswith("interference/cosine_")}
    assert kinds == {"interference/cosine_MHA", "interference/cosine_FFN", "interference/cosine_CONV"}


def test_accumulated_gradients_are_compared(tmp_path):
    whole = watched(tmp_path / "whole", config=toy_config(0.0), logging_steps=1, **{**PLAIN, "max_steps": 5})
    whole.train()
    arguments = {**PLAIN, "max_steps": 5, "gradient_accumulation_steps": 4, "per_device_train_batch_size": 4}
    parts = watched(tmp_path / "parts", config=toy_config(0.0), logging_steps=1, **arguments)
    parts.train()
    assert sorted(logged(whole)) == [2, 3, 4, 5]
    assert logged(whole) == pytest.approx(logged(parts), abs=1e-4)


def test_the_first_pair_after_a_stop_is_skipped(tmp_path):
    arguments = {**RESUMABLE, "max_steps": 16, "logging_steps": 1}
    whole = watched(tmp_path / "whole", **arguments)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 8

    stopped = watched(tmp_path / "parts", callbacks=[Stop()], **arguments)
    stopped.train()
    resumed = watched(tmp_path / "parts", **arguments)
    resumed.train(resume_from_checkpoint=True)
    assert 9 in logged(whole)
    new = {number: cosine for number, cosine in logged(resumed).items() if number > 8}
    assert sorted(new) == list(range(10, 17))
    assert new == pytest.approx({number: logged(whole)[number] for number in new}, abs=1e-6)


def test_watching_changes_no_training(tmp_path):
    trained = []
    for build in (watched, toy_trainer):
        trainer = build(tmp_path / build.__name__, max_steps=6)
        trainer.train()
        trained.append(trainer.model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


def test_bfloat16_keeps_the_cosine():
    generator = torch.Generator().manual_seed(0)
    rng = random.Random(0)
    for _ in range(20):
        first, second = torch.randn(2, 4096, generator=generator) * 10.0 ** rng.randint(-8, 4)
        second = rng.random() * first + rng.random() * second
        watch = GradientWatch(1)
        step(watch, 1, {"FFN": tuple(first.tolist())})
        step(watch, 2, {"FFN": tuple(second.tolist())})
        exact = nn.functional.cosine_similarity(first.double(), second.double(), dim=0).item()
        assert watch.scalars()["interference/cosine"] == pytest.approx(exact, abs=2e-4)
