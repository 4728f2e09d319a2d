"""The health of a super-net: visits, distances, gradient norms, starved operators, probe children and the figure."""

import json
import logging
import math
import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binom
from toy import collate, toy_config, toy_data, toy_trainer
from transformers import TrainerCallback

from training.space.samplers import UniformSampler, make_sampler
from training.space.search_space import Architecture, SearchSpace
from training.supernet import health
from training.supernet.evaluation import evaluate_child
from training.supernet.figures import draw_health
from training.supernet.health import GradientNorm, SupernetHealth, starved_operators, visit_spread
from training.supernet.journal import RankedChild


SPACE = SearchSpace((("MHA4", "FFN", "CONV3", "CONV5"),) * 4)


class BiasedSampler(UniformSampler):
    """Draws one operator of layer 2 seldom."""

    def __init__(self, space: SearchSpace, seed: int, probability: float):
        super().__init__(space, seed)
        self._probability = probability

    def next(self) -> Architecture:
        child = list(super().next())
        others = [name for name in self.space.candidates[2] if name != "FFN"]
        child[2] = "FFN" if self._rng.random() < self._probability else self._rng.choice(others)
        return tuple(child)


def first_alarm(sampler: UniformSampler, num_steps: int, shrink_every: int | None = None) -> tuple | None:
    """The step of the first alarm and what was starved; looks every `health.LOOK_EVERY` steps."""
    space, rng = sampler.space, random.Random(0)
    record = SupernetHealth(space)
    previous: Architecture = ()
    for step in range(1, num_steps + 1):
        child = sampler.next()
        record.add_child(child, previous, sampler.space)
        previous = child
        if shrink_every and step % shrink_every == 0 and sampler.space.size > 1:
            wide = [layer for layer, names in enumerate(sampler.space.candidates) if len(names) > 1]
            layer = rng.choice(wide)
            sampler.restrict(sampler.space.without(layer, rng.choice(sampler.space.candidates[layer])))
        if step % health.LOOK_EVERY == 0:
            counts = (record.visits, record.fair_visits, record.changes)
            if starved := starved_operators(sampler.space, *counts):
                return step, starved
    return None


# ---- Visits and distances ----


@given(
    children=st.lists(st.tuples(*[st.sampled_from(layer) for layer in SPACE.candidates]), min_size=1, max_size=30),
)
def test_visits_changes_and_distances_are_counts(children):
    record, previous = SupernetHealth(SPACE), ()
    for child in children:
        expected = SPACE.distance(previous, child) if previous else 0
        assert record.add_child(child, previous, SPACE) == expected
        previous = child
    distances = [SPACE.distance(a, b) for a, b in pairwise(children)]
    assert record.distances == [distances.count(distance) for distance in range(5)]
    for layer, names in enumerate(SPACE.candidates):
        assert record.visits[layer] == {name: sum(child[layer] == name for child in children) for name in names}
        assert record.fair_visits[layer] == dict.fromkeys(names, len(children) / 4)
        assert record.changes[layer] == sum(a[layer] != b[layer] for a, b in pairwise(children))


def test_fair_visits_end_with_an_operator():
    record, small = SupernetHealth(SPACE), SPACE.without(0, "FFN").without(0, "CONV3")
    for _ in range(8):
        record.add_child(("MHA4",) * 4, ("MHA4",) * 4, SPACE)
    for _ in range(8):
        record.add_child(("MHA4",) * 4, ("MHA4",) * 4, small)
    assert record.fair_visits[0] == {"MHA4": 6, "FFN": 2, "CONV3": 2, "CONV5": 6}
    assert record.fair_visits[1] == dict.fromkeys(SPACE.candidates[1], 4)


# ---- Starved operators ----


@pytest.mark.parametrize("probability", [0.0, 0.02, 0.05])
def test_a_biased_sampler_is_found_out(probability):
    for seed in range(5):
        alarm = first_alarm(BiasedSampler(SPACE, seed, probability), 1000)
        assert alarm is not None
        assert alarm[1] == [(2, "FFN")]


@pytest.mark.parametrize("sampler", ["uniform", "gradual", "fair", "sandwich"])
@pytest.mark.parametrize("num_operators", [2, 4])
@pytest.mark.parametrize("shrink_every", [None, 60])
def test_the_four_samplers_raise_no_alarm(sampler, num_operators, shrink_every):
    space = SearchSpace((SPACE.candidates[0][:num_operators],) * 8)
    for seed in range(12):
        drawn = make_sampler(sampler, space, seed, cost=len)
        assert first_alarm(drawn, 1000, shrink_every) is None


def test_a_walk_that_stays_long_is_judged_by_its_stays():
    """A MAGIC-T walk over 26 layers stays in an operator for 26 steps: one that it has not met yet is not starved."""
    space = SearchSpace((SPACE.candidates[0],) * 26)
    unmet = 0
    for seed in range(10):
        sampler, record, previous = make_sampler("gradual", space, seed), SupernetHealth(space), ()
        for _ in range(200):
            child = sampler.next()
            record.add_child(child, previous, space)
            previous = child
        unmet += sum(count == 0 for layer in record.visits for count in layer.values())
        counts = (record.visits, record.fair_visits)
        assert starved_operators(space, *counts, record.changes) == []
        # Were every step a draw of its own, they would be.
        assert starved_operators(space, *counts, [199] * 26) != []
    assert unmet > 0


@given(
    num_steps=st.integers(1, 3000),
    share=st.floats(0, 0.25),
    num_operators=st.integers(2, 6),
    num_layers=st.integers(1, 26),
)
@settings(deadline=None)
def test_an_alarm_is_significant_by_the_binomial_law_too(num_steps, share, num_operators, num_layers):
    """Draws independent of one another: so few visits are improbable for an operator with half of its fair share."""
    names = tuple("ABCDEF"[:num_operators])
    count = round(share * num_steps)
    space = SearchSpace((names,) * num_layers)
    others = [1] * num_layers
    visits = [{name: num_steps for name in names} for _ in range(num_layers)]
    visits[-1] = {**{name: (num_steps - count) // (num_operators - 1) for name in names[1:]}, names[0]: count}
    fair = [dict.fromkeys(names, num_steps / num_operators)] * num_layers
    changes = [*others[:-1], num_steps - 1]
    tail = binom.cdf(count, num_steps, 1 / (2 * num_operators))
    alarm = starved_operators(space, visits, fair, changes) == [(num_layers - 1, "A")]
    if alarm:
        assert tail < health.FALSE_ALARM_RATE / space.num_operators
    if tail < (health.FALSE_ALARM_RATE / space.num_operators) ** 2:
        assert alarm


@pytest.mark.parametrize(("num_operators", "leaving"), [(2, 0.1), (4, 0.04), (4, 0.75), (6, 0.3)])
def test_spread_is_the_variance_of_the_walk(num_operators, leaving):
    """Against the covariances of the chain's indicator, by powers of its transition matrix."""
    chain = np.full((num_operators, num_operators), leaving / (num_operators - 1))
    np.fill_diagonal(chain, 1 - leaving)
    num_steps, share = 4000, 1 / num_operators
    variance, power = num_steps * share * (1 - share), np.eye(num_operators)
    for lag in range(1, num_steps):
        power = power @ chain
        variance += 2 * (num_steps - lag) * share * (power[0, 0] - share)
    independent = num_steps * share * (1 - share)
    assert visit_spread(1 / leaving, num_operators) == pytest.approx(variance / independent, rel=0.01)


def test_the_more_operators_the_rarer_the_count_must_be():
    """Eleven expected with half of the fair share, none counted: once in 60,000."""
    visits = {"A": 0, "B": 66}
    for num_layers in (1, 26):
        space = SearchSpace((("A", "B"),) * num_layers)
        counts = ([visits] * num_layers, [{"A": 22.0, "B": 44.0}] * num_layers, [65] * num_layers)
        assert bool(starved_operators(space, *counts)) == (num_layers == 1)


def test_strict_fairness_never_spreads_less_than_one():
    assert visit_spread(1.0, 2) == 1
    assert visit_spread(1.0, 1) == 1


def test_a_starved_operator_is_warned_of_once(caplog):
    record, previous, sampler = SupernetHealth(SPACE), (), BiasedSampler(SPACE, 0, 0.0)
    for step in range(1, 601):
        child = sampler.next()
        record.add_child(child, previous, SPACE)
        previous = child
        if step % 100 == 0:
            record.look(step, SPACE)
    assert [(entry["layer"], entry["operator"], entry["problem"]) for entry in record.warnings] == [
        (2, "FFN", "starved")
    ]
    assert caplog.text.count("starved: FFN in layer 2 (0 visits)") == 1
    assert "sampler=fair" in caplog.text
    # Nor after a resumption.
    resumed = SupernetHealth.from_json(SPACE, json.loads(json.dumps(record.to_json())))
    resumed.look(700, SPACE)
    assert resumed.warnings == record.warnings
    assert caplog.text.count("starved: ") == 1


# ---- Gradient norms ----


def norms_by_hand(trainer, batch, child) -> dict[tuple[int, str], float]:
    loss = trainer.model.train()(**batch, architecture=child).loss
    norms = {}
    for layer, operator in enumerate(child):
        weights = list(trainer.model.magic.encoder.layer[layer].operators[operator].parameters())
        gradients = torch.autograd.grad(loss, weights, retain_graph=True)
        norms[layer, operator] = torch.cat([gradient.flatten() for gradient in gradients]).norm().item()
    return norms


@pytest.mark.parametrize("arguments", [{}, {"max_grad_norm": 0.01}, {"max_grad_norm": 0}, {"bf16": True}])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_norms_are_those_of_autograd_before_clipping(tmp_path, arguments, accumulation):
    """The whole data set is one step's batch: its order plays no part."""
    data = toy_data(8)
    settings = {"max_steps": 1, "alignment": "none", "use_cpu": True, **arguments}
    settings |= {"per_device_train_batch_size": 8 // accumulation, "gradient_accumulation_steps": accumulation}
    expected_of = toy_trainer(tmp_path, toy_config(0.0), data)
    trainer = toy_trainer(tmp_path, toy_config(0.0), data, **settings)
    trainer.train()
    expected = norms_by_hand(expected_of, collate(data), trainer.architecture)
    assert trainer.state.log_history
    for layer, norms in enumerate(trainer.health.to_json()["gradient_norms"]):
        for operator, norm in norms.items():
            if (layer, operator) in expected:
                tolerance = 0.05 if arguments.get("bf16") else 1e-4
                assert norm["latest"] == pytest.approx(expected[layer, operator], rel=tolerance)
                assert (norm["steps"], norm["mean"]) == (1, norm["latest"])
            else:
                assert (norm["steps"], norm["latest"]) == (0, None)


def test_mean_and_latest_over_a_run(tmp_path):
    """Against the gradients that each parameter has at the end of each backward pass."""
    trainer = toy_trainer(tmp_path, max_steps=12, max_grad_norm=0.05, logging_steps=5)
    layers = trainer.model.magic.encoder.layer
    gradients: dict[torch.nn.Parameter, torch.Tensor] = {}
    for weight in trainer.model.parameters():
        weight.register_post_accumulate_grad_hook(lambda weight: gradients.update({weight: weight.grad.clone()}))
    norms: dict[tuple[int, str], list[float]] = {}

    class Collect(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for layer, operator in enumerate(trainer.architecture):
                own = [gradients[weight].flatten() for weight in layers[layer].operators[operator].parameters()]
                norms.setdefault((layer, operator), []).append(torch.cat(own).norm().item())
            gradients.clear()

    trainer.add_callback(Collect())
    trainer.train()
    record = trainer.health.to_json()["gradient_norms"]
    for (layer, operator), values in norms.items():
        own = record[layer][operator]
        assert own["steps"] == len(values) == trainer.visits[layer][operator]
        assert own["mean"] == pytest.approx(sum(values) / len(values), rel=1e-4)
        assert own["latest"] == pytest.approx(values[-1], rel=1e-4)


def test_a_step_waits_for_no_device():
    """A tensor on the device meta has no values: to read one is an error."""
    weights = []
    for _ in range(4):
        weight = torch.nn.Parameter(torch.zeros(3, device="meta"))
        weight.grad = torch.zeros(3, device="meta")
        weights.append([weight])
    record = SupernetHealth(SPACE)
    record.add_gradients(1, ("FFN",) * 4, weights, torch.zeros((), device="meta"), 1.0)
    with pytest.raises((NotImplementedError, RuntimeError)):
        record.to_json()


def test_steps_whose_gradients_overflow_are_counted_apart():
    norm = GradientNorm()
    for value in (1.0, math.inf, 3.0, math.nan):
        norm.add(value)
    assert (norm.steps, norm.mean, norm.latest, norm.not_finite) == (2, 2.0, 3.0, 2)
    assert json.loads(json.dumps(norm.__dict__, allow_nan=False))["mean"] == 2.0


def test_only_trainings_in_a_row_are_complained_of():
    for bad in (0.0, math.nan):
        norm = GradientNorm()
        for _ in range(3):
            for value in (*[bad] * (health.ALARM_AFTER - 1), 1.0):
                norm.add(value)
                assert norm.complaint() is None
        for _ in range(health.ALARM_AFTER):
            assert norm.complaint() is None
            norm.add(bad)
        assert norm.complaint() is not None


@pytest.mark.parametrize(("gradient", "problem"), [(0.0, "zero gradient"), (math.inf, "gradient not finite")])
def test_operators_without_a_gradient_are_warned_of_once(gradient, problem, caplog):
    record, child = SupernetHealth(SPACE), ("FFN", "FFN", "CONV3", "MHA4")
    good, bad = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    good.grad, bad.grad = torch.ones(2), torch.full((2,), gradient)
    for step in range(1, 31):
        # Layer 1's FFN has no gradient; where it is not trained, all goes well.
        well = step % 2 == 0
        own = child if not well else (child[0], "CONV5", *child[2:])
        total = torch.tensor(1.0 if well else math.sqrt(6) if gradient == 0 else math.inf)
        weights = [[good], [good] if well else [bad], [good], [good]]
        record.add_gradients(step, own, weights, total, 0.5)
        if step in (19, 20, 30):
            record.look(step, SPACE)
        if step == 18:
            record.to_json()
            assert not record.warnings
    assert record.warnings == [{"step": 19, "layer": 1, "operator": "FFN", "problem": problem}]
    assert caplog.text.count(problem) == 1


def test_a_skipped_layer_has_no_gradient_to_miss():
    """Trained as often as others, without a weight: nothing is frozen."""
    space = SearchSpace((("FFN", "SKIP"), ("FFN", "SKIP")))
    record = SupernetHealth(space)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    for step in range(1, 31):
        record.add_gradients(step, ("FFN", "SKIP"), [[weight], []], torch.tensor(1.0), 0.0)
    record.look(30, space)
    assert not [warning for warning in record.warnings if warning["operator"] == "SKIP"]


def test_frozen_operators_are_warned_of(tmp_path, caplog):
    trainer = toy_trainer(tmp_path, max_steps=44, sampler="fair", alignment="none", num_probe_children=0)
    for weight in trainer.model.magic.encoder.layer[1].operators["CONV3"].parameters():
        weight.requires_grad_(False)
    trainer.train()
    assert [(entry["layer"], entry["operator"], entry["problem"]) for entry in trainer.health.warnings] == [
        (1, "CONV3", "zero gradient")
    ]
    assert "zero gradient: CONV3 in layer 1" in caplog.text
    assert trainer.health.gradient_norms[1]["CONV3"].mean == 0


def test_healthy_runs_give_no_warning(tmp_path, caplog):
    with caplog.at_level(logging.WARNING, logger="training.supernet.health"):
        trainer = toy_trainer(tmp_path, max_steps=30)
        trainer.train()
    assert trainer.health.warnings == []
    assert caplog.text == ""


def test_when_norms_are_read_does_not_matter():
    records = [SupernetHealth(SPACE) for _ in range(2)]
    generator = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        weight = torch.nn.Parameter(torch.zeros(5))
        weight.grad = torch.randn(5, generator=generator)
        for index, record in enumerate(records):
            record.add_gradients(step, ("FFN",) * 4, [[weight]] * 4, torch.tensor(2.0), 0.5)
            if index:
                record.to_json()
    assert records[0].to_json() == records[1].to_json()


# ---- Probe children ----


def test_probes_are_validated_about_ten_times_until_shrinking_removes_them(tmp_path):
    settings = {"max_steps": 30, "shrink": True, "shrink_every_n_steps": 12, "shrink_operators_per_round": 2}
    trainer = toy_trainer(tmp_path, num_probe_children=3, **settings)
    losses = {}

    class Validate(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for probe in trainer.health.probes:
                loss, _ = evaluate_child(trainer.model, trainer.validation_batches, probe.architecture)
                losses[probe.architecture, state.global_step] = loss

    trainer.add_callback(Validate())
    trainer.train()
    left_at = [
        next(
            (
                entry["step"]
                for entry in trainer.shrink_history
                if probe.architecture not in SearchSpace.from_json(entry["space"])
            ),
            31,
        )
        for probe in trainer.health.probes
    ]
    assert min(left_at) < 31
    for probe, end in zip(trainer.health.probes, left_at, strict=True):
        assert probe.steps == [step for step in range(3, 31, 3) if step < end]
        for step, loss in zip(probe.steps, probe.val_losses, strict=True):
            assert loss == pytest.approx(losses[probe.architecture, step], rel=1e-5)


def test_probes_follow_from_the_seed_and_their_number(tmp_path):
    def probes(**arguments) -> list[Architecture]:
        return [probe.architecture for probe in toy_trainer(tmp_path, **arguments).health.probes]

    assert len(probes()) == 4
    assert probes() == probes() != probes(seed=1)
    assert probes(num_probe_children=2) == probes()[:2]
    assert probes(num_probe_children=0) == []


def test_probes_can_be_set_by_steps_and_need_validation_data(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=9, probe_every_n_steps=4)
    trainer.train()
    assert {tuple(probe.steps) for probe in trainer.health.probes} == {(4, 8)}
    for several in (None, {"first": toy_data(8), "second": toy_data(8)}):
        trainer = toy_trainer(tmp_path, max_steps=9, alignment="none")
        trainer.eval_dataset = several
        trainer.train()
        assert not any(probe.steps for probe in trainer.health.probes)


def test_a_diverged_probe_is_none():
    child = ("FFN",) * 4
    record = SupernetHealth(SPACE, [child])
    record.add_probes(3, [RankedChild(child, math.nan, 0.0)])
    assert record.to_json()["probes"] == [{"architecture": child, "steps": [3], "val_losses": [None]}]
    assert "probe_loss_mean" not in record.scalars(SPACE)


def test_health_changes_neither_children_nor_weights(tmp_path):
    trainers = []
    for number in (0, 4):
        trainers.append(toy_trainer(tmp_path, max_steps=12, num_probe_children=number, probe_every_n_steps=2))
        trainers[-1].train()
    weights = [list(trainer.model.parameters()) for trainer in trainers]
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))
    assert trainers[0].visits == trainers[1].visits


# ---- Logs, checkpoints, figure ----


def test_logs_hold_a_few_scalars(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=12, logging_steps=4, probe_every_n_steps=4)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    for entry in entries:
        norms = [value for name, value in entry.items() if name.startswith("grad_norm_")]
        assert norms
        assert all(0 < norm <= 5 for norm in norms)
        assert 0 <= entry["min_visit_share"] <= 1
        assert entry["probe_loss_mean"] <= entry["probe_loss_max"]
    assert entries[-1]["probe_loss_max"] == max(probe.val_losses[-1] for probe in trainer.health.probes)
    counts = [count for layer in trainer.visits for count in layer.values()]
    assert entries[-1]["min_visit_share"] == pytest.approx(min(counts) / 3)


def test_json_restores_all_of_it(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=12, probe_every_n_steps=4)
    trainer.train()
    record = json.loads(json.dumps(trainer.health.to_json(), allow_nan=False))
    again = SupernetHealth.from_json(trainer.full_space, record)
    assert json.loads(json.dumps(again.to_json())) == record
    # Whoever goes on with one changes nothing of the other.
    again.add_child(("FFN",) * 4, ("MHA4",) * 4, trainer.full_space)
    again.add_probes(13, [RankedChild(again.probes[0].architecture, 1.0, 0.0)])
    assert json.loads(json.dumps(trainer.health.to_json())) == record


def test_figure_is_drawn(tmp_path):
    probes = [("FFN",) * 4, ("MHA4",) * 4]
    record, previous, sampler = SupernetHealth(SPACE, probes), (), UniformSampler(SPACE, 0)
    for step in range(1, 20):
        child = sampler.next()
        record.add_child(child, previous, SPACE)
        previous = child
        for layer, operator in enumerate(child):
            record.gradient_norms[layer][operator].add(step)
        record.add_probes(step, [RankedChild(probe, math.nan if step == 3 else 1 / step, 0.5) for probe in probes])
    record.warnings = [{"step": 3, "layer": 1, "operator": "FFN", "problem": "starved"}]
    search = {
        "health": record.to_json(),
        "candidate_operators": SPACE.to_json(),
        "anchor_history": [{"step": 3}],
        "shrink_history": [{"step": 8}],
    }
    path = draw_health(json.loads(json.dumps(search)), tmp_path / "health.png")
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    # Before the first step there is nothing to show, and that is no error.
    empty = {**search, "health": SupernetHealth(SPACE).to_json(), "anchor_history": [], "shrink_history": []}
    assert draw_health(empty, tmp_path / "empty.png").read_bytes() != path.read_bytes()
