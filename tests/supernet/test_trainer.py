"""MagicTrainer: sampling, Eq. (2), accumulation, the anchor, shrinking, logging and resumption."""

import copy
import json
import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import PLAIN, RESUMABLE, collate, toy_config, toy_data, toy_trainer
from transformers import BertTokenizer, TrainerCallback

from modeling_magic import MagicForMaskedLM
from training.data.text import PreparedData
from training.objectives import alignment_loss
from training.resuming import last_complete_checkpoint
from training.space.budgets import AdditiveCost, InfeasibleBudgetError
from training.space.costs import count_flops, count_parameters
from training.space.samplers import GradualSampler, UniformSampler
from training.space.search_space import Architecture, SearchSpace
from training.supernet.anchors import Anchor, anchor_of_top_percent, target_states
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.journal import RankedChild
from training.supernet.setup import check_search, fit_to_text
from training.supernet.shrinking import sample_children
from training.supernet.trainer import MagicTrainer


TOY = Path(__file__).resolve().parents[1] / "toy.py"
FIRST = ("MHA4", "CONV3", "FFN", "CONV5")
SECOND = ("MHA4", "CONV5", "FFN", "CONV5")


class Recorder(TrainerCallback):
    """Keeps the children that a run trained."""

    def __init__(self, trainer: MagicTrainer):
        self.trainer = trainer
        self.children: list[Architecture] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.children.append(self.trainer.architecture)


def recorded(trainer: MagicTrainer) -> Recorder:
    recorder = Recorder(trainer)
    trainer.add_callback(recorder)
    return recorder


def same_weights(first: nn.Module, second: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ---- Sampling ----


def test_one_child_for_each_optimizer_step_and_it_changes_by_k(tmp_path):
    trainer = toy_trainer(tmp_path, gradient_accumulation_steps=4, num_substitutions=2, max_steps=10)
    recorder = recorded(trainer)
    trainer.train()
    assert len(recorder.children) == 10
    distances = [trainer.full_space.distance(a, b) for a, b in pairwise(recorder.children)]
    assert distances == [2] * 9
    for layer, visits in enumerate(trainer.visits):
        for operator, count in visits.items():
            assert count == sum(child[layer] == operator for child in recorder.children)


@pytest.mark.parametrize("sampler", ["uniform", "gradual", "fair", "sandwich"])
def test_every_sampler_trains(tmp_path, sampler):
    trainer = toy_trainer(tmp_path, sampler=sampler, max_steps=9)
    recorder = recorded(trainer)
    trainer.train()
    assert trainer.sampler.kind == sampler
    if sampler == "fair":
        for layer in range(4):
            assert {child[layer] for child in recorder.children[:4]} == set(trainer.full_space.candidates[layer])


def test_operators_off_the_path_keep_weights_and_optimizer_state(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=30, weight_decay=0.1, sampler="uniform")
    snapshots = []

    class Snapshot(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **kwargs):
            optimizer = trainer.optimizer
            snapshots.append(
                {
                    name: (parameter.detach().clone(), copy.deepcopy(optimizer.state.get(parameter, {})))
                    for name, parameter in trainer.model.named_parameters()
                }
            )

        def on_step_end(self, args, state, control, **kwargs):
            before = snapshots.pop()
            changed = unchanged = 0
            for name, parameter in trainer.model.named_parameters():
                weight, old = before[name]
                if ".operators." not in name:
                    continue
                layer, operator = name.split("layer.")[1].split(".operators.")
                if trainer.architecture[int(layer)] == operator.split(".")[0]:
                    changed += not torch.equal(weight, parameter)
                    continue
                unchanged += 1
                assert torch.equal(weight, parameter), name
                new = trainer.optimizer.state.get(parameter, {})
                assert old.keys() == new.keys()
                assert all(torch.equal(old[key], new[key]) for key in old), name
            assert changed
            assert unchanged

    trainer.add_callback(Snapshot())
    trainer.train()


# ---- The loss ----


def one_step(trainer: MagicTrainer, batches, child=FIRST, anchor=SECOND) -> dict[str, torch.Tensor]:
    """Gradients of one accumulated step, computed by the trainer's own training_step."""
    trainer.create_optimizer()
    trainer.architecture = child
    trainer.anchor = Anchor(anchor, 0.5)
    trainer.current_gradient_accumulation_steps = len(batches)
    num_items = sum((batch["labels"] != -100).sum() for batch in batches)
    trainer.model.zero_grad()
    for batch in batches:
        trainer.training_step(trainer.model, batch, num_items)
    return {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("alignment", ["none", "anchor"])
def test_accumulation_of_eight_equals_one_batch(tmp_path, alignment):
    data = toy_data(16)
    # The prediction loss must be right with any number of masked tokens in a micro-batch.
    assert len({(example["labels"] != -100).sum().item() for example in data}) > 2
    whole = one_step(toy_trainer(tmp_path, toy_config(0.0), alignment=alignment), [collate(data)])
    parts = [collate(data[start : start + 2]) for start in range(0, 16, 2)]
    accumulated = one_step(toy_trainer(tmp_path, toy_config(0.0), alignment=alignment), parts)
    assert whole.keys() == accumulated.keys()
    for name, gradient in whole.items():
        torch.testing.assert_close(accumulated[name], gradient, rtol=1e-4, atol=1e-7)


def test_runs_of_one_times_eight_and_eight_times_one_are_equal(tmp_path):
    data = toy_data(64)
    settings = {"max_steps": 6, "alignment_warmup_steps": 1, "anchor_eval_steps": 1, "optim": "sgd"}
    batches = [{"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size} for size in (8, 1)]
    runs = [toy_trainer(tmp_path, toy_config(0.0), data, **batch, **settings) for batch in batches]
    for trainer in runs:
        trainer.train()
        assert trainer.anchor is not None
    for one, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=2e-7)
    for one, other in zip(runs[0].state.log_history, runs[1].state.log_history, strict=True):
        for name in ("loss_pred", "loss_align"):
            if name in one:
                assert one[name] == pytest.approx(other[name], rel=1e-4)
    assert any(entry.get("loss_align") for entry in runs[0].state.log_history)


@pytest.mark.parametrize("child", [FIRST, ("FFN", "FFN", "FFN", "FFN")])
@pytest.mark.parametrize("anchor", [SECOND, ("MHA4", "CONV3", "FFN", "FFN"), FIRST])
def test_loss_is_equation_2(tmp_path, child, anchor):
    """Against both forward passes written out, the shared bottom included: dropout is off."""
    trainer = toy_trainer(tmp_path, toy_config(0.0), alignment_weight=0.7)
    batch = collate(toy_data(8))
    gradients = one_step(trainer, [batch], child, anchor)
    model = trainer.model
    model.zero_grad()
    output = model(**batch, architecture=child, output_hidden_states=True)
    with torch.no_grad():
        target = model(input_ids=batch["input_ids"], architecture=anchor, output_hidden_states=True).hidden_states
    loss = output.loss + 0.7 * alignment_loss(output.hidden_states[2::2], target[2::2])
    loss.backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-4, atol=1e-7)


def test_anchor_is_computed_without_dropout(tmp_path):
    trainer = toy_trainer(tmp_path, toy_config(0.3))
    trainer.model.train()
    inputs = {"input_ids": collate(toy_data(8))["input_ids"]}
    states = target_states(trainer.model.magic, inputs, SECOND, [2, 4])
    assert trainer.model.magic.training
    expected = trainer.model.eval()(**inputs, architecture=SECOND, output_hidden_states=True).hidden_states
    assert torch.equal(states[0], expected[2])
    assert torch.equal(states[1], expected[4])
    assert not states[0].requires_grad


def test_average_alignment_aims_at_the_mean_of_the_children(tmp_path):
    trainer = toy_trainer(tmp_path, toy_config(0.0), alignment="average", num_average_children=3)
    batch = collate(toy_data(8))
    trainer._average_children = [FIRST, SECOND, ("FFN",) * 4]
    # An anchor of an earlier run with another alignment plays no part.
    trainer.anchor = Anchor(SECOND, 0.9)
    trainer.architecture, trainer.current_gradient_accumulation_steps = FIRST, 1
    model = trainer.model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=(batch["labels"] != -100).sum())
    states = [
        model(input_ids=batch["input_ids"], architecture=child, output_hidden_states=True).hidden_states[2::2]
        for child in trainer._average_children
    ]
    target = [torch.stack(layer).mean(0) for layer in zip(*states, strict=True)]
    expected = model(**batch, architecture=FIRST).loss + 0.5 * alignment_loss(states[0], target)
    torch.testing.assert_close(loss, expected)


def test_another_loss_and_other_targets_take_the_place_of_the_papers(tmp_path):
    trainer = toy_trainer(tmp_path, toy_config(0.0))
    trainer.current_gradient_accumulation_steps = 1
    trainer.architecture, trainer.anchor = FIRST, Anchor(SECOND, 0.0)
    trainer._alignment_plan = trainer._alignment_plan.of(trainer.args, 4, epoch_steps=0)
    trainer.state.global_step = 100
    batch = collate(toy_data(4))
    asked = []

    def prediction_loss(model, inputs, num_items_in_batch):
        outputs = model(**inputs)
        return outputs.logits.square().mean(), outputs

    def alignment_targets(inputs, aligned, shared, bottom):
        asked.append((sorted(inputs), aligned, shared, None if bottom is None else bottom.shape))
        return [torch.zeros(4, 12, 32) for _ in aligned]

    trainer.prediction_loss, trainer.alignment_targets = prediction_loss, alignment_targets
    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, batch)
    outputs = trainer.model(**batch, architecture=FIRST, output_hidden_states=True)
    expected = outputs.logits.square().mean()
    # H_2 and H_4; the first layer is that of the anchor, too.
    for layer in (2, 4):
        expected = expected + trainer.args.alignment_weight * outputs.hidden_states[layer].square().mean()
    torch.testing.assert_close(loss, expected)
    assert asked == [(["input_ids", "labels"], [2, 4], 1, (4, 12, 32))]


def test_children_are_validated_by_the_judge_that_is_given(tmp_path):
    class Judge:
        def num_items(self, batch):
            return len(batch["input_ids"])

        def prepare(self, batch):
            return None

        def sums(self, model, states, prepared):
            return torch.stack([states.square().sum(), states[:, 0, 0].sum()])

    trainer = toy_trainer(tmp_path, max_steps=8)
    plain = trainer._validate(FIRST)
    trainer.judge = Judge()
    (batch,) = trainer.validation_batches
    states = trainer.model.eval().magic(batch["input_ids"], architecture=FIRST).last_hidden_state
    expected = [states.square().sum().item() / 8, states[:, 0, 0].mean().item()]
    found = trainer._validate(FIRST)
    assert [found.val_loss, found.val_accuracy] == pytest.approx(expected, rel=1e-5)
    assert trainer._rank([FIRST])[0].val_loss == pytest.approx(found.val_loss, rel=1e-6)
    assert plain.val_loss != found.val_loss


def test_part_of_the_batch_is_aligned(tmp_path):
    trainer = toy_trainer(tmp_path, toy_config(0.0), alignment_batch_fraction=0.5)
    batch = collate(toy_data(8))
    trainer.architecture, trainer.anchor = FIRST, Anchor(SECOND, 0.0)
    trainer.current_gradient_accumulation_steps = 1
    model = trainer.model.train()
    loss = trainer.compute_loss(model, batch, num_items_in_batch=(batch["labels"] != -100).sum())
    half = batch["input_ids"][:4]
    child, target = (
        model(half, architecture=a, output_hidden_states=True).hidden_states[2::2] for a in (FIRST, SECOND)
    )
    torch.testing.assert_close(loss, model(**batch, architecture=FIRST).loss + 0.5 * alignment_loss(child, target))


def test_no_alignment_before_the_warm_start_ends(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=12, alignment_warmup_steps=6, logging_steps=1, anchor_eval_steps=2)
    trainer.train()
    align = [entry["loss_align"] for entry in trainer.state.log_history if "loss_align" in entry]
    assert align[:6] == [0.0] * 6
    assert all(value > 0 for value in align[6:])


def test_a_warm_start_as_long_as_the_run_is_warned_of(tmp_path, caplog):
    toy_trainer(tmp_path, max_steps=3, alignment_warmup_steps=3).train()
    assert "nothing will be aligned: the warm start takes 3 of 3 steps; train longer" in caplog.text


def test_an_anchor_that_comes_too_late_is_warned_of(tmp_path, caplog):
    settings = {"alignment_warmup_steps": 0, "max_steps": 4, "logging_steps": 1}
    trainer = toy_trainer(tmp_path, anchor_eval_steps=4, **settings)
    trainer.train()
    assert "nothing will be aligned: the first anchor is set after 4 of 4 steps; train longer" in caplog.text
    assert not any(entry.get("loss_align") for entry in trainer.state.log_history)
    caplog.clear()
    trainer = toy_trainer(tmp_path, anchor_eval_steps=3, **settings)
    trainer.train()
    assert "nothing will be aligned" not in caplog.text
    assert any(entry.get("loss_align") for entry in trainer.state.log_history)


def test_warm_start_in_epochs(tmp_path):
    trainer = toy_trainer(
        tmp_path, max_steps=12, alignment_warmup_steps=None, alignment_warmup_epochs=0.5, logging_steps=1
    )
    trainer.train()
    # 64 sequences in batches of 8: half an epoch is four steps.
    align = [entry["loss_align"] for entry in trainer.state.log_history if "loss_align" in entry]
    assert [value > 0 for value in align] == [False] * 4 + [True] * 8


# ---- The anchor ----


def test_a_better_child_replaces_the_anchor_and_a_worse_does_not():
    anchor = Anchor(FIRST, 0.5)
    assert anchor.challenge(SECOND, 0.6) == Anchor(SECOND, 0.6)
    assert anchor.challenge(SECOND, 0.5) is anchor
    assert anchor.challenge(SECOND, float("nan")) is anchor


def test_anchor_and_challenger_are_compared_with_the_same_weights(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    accuracies = {FIRST: 0.4, SECOND: 0.3}
    monkeypatch.setattr(trainer, "_validate", lambda child: RankedChild(child, 1.0, accuracies[child]))
    trainer.architecture = SECOND
    trainer._challenge_anchor(1)
    assert trainer.anchor == Anchor(SECOND, 0.3)
    trainer.architecture = FIRST
    trainer._challenge_anchor(2)
    assert trainer.anchor == Anchor(FIRST, 0.4)
    # The super-net has improved: the anchor's accuracy is measured anew before a child may replace it.
    accuracies |= {FIRST: 0.9, SECOND: 0.8}
    trainer.architecture = SECOND
    trainer._challenge_anchor(3)
    assert trainer.anchor == Anchor(FIRST, 0.9)
    assert [entry["step"] for entry in trainer.anchor_history] == [1, 2]


def test_an_anchor_is_put_together_block_by_block(tmp_path, monkeypatch):
    config = toy_config(candidate_operators=[["FFN", "CONV3"]] * 5)
    trainer = toy_trainer(
        tmp_path, config, alignment_every_n_layers=2, anchor_challenger="block", anchor_eval_steps=10
    )
    weights = (1, 1, -1, -1, 1)

    def validate(child):
        return RankedChild(child, 0.0, sum(weights[layer] for layer in range(5) if child[layer] == "CONV3"))

    monkeypatch.setattr(trainer, "_validate", validate)
    trainer.architecture = ("FFN",) * 5
    trainer._challenge_anchor(10)
    # As a whole this child is better than the anchor, and each block of it is judged by itself.
    trainer.architecture = ("CONV3",) * 5
    found = []
    for step in (20, 30, 40):
        trainer._challenge_anchor(step)
        found.append(trainer.anchor.architecture)
    third = ("FFN",) * 4 + ("CONV3",)
    assert found == [third, ("CONV3", "CONV3", "FFN", "FFN", "CONV3"), ("CONV3", "CONV3", "FFN", "FFN", "CONV3")]


def test_blocks_without_an_anchor_are_refused(tmp_path):
    with pytest.raises(ValueError, match="anchor_challenger is 'block', but with alignment 'average'"):
        toy_trainer(tmp_path, alignment="average", anchor_challenger="block")


def ranked(number: int) -> list[RankedChild]:
    return [RankedChild((f"FFNx{index + 1}",), float(index), 1.0 - index / 1000) for index in range(number)]


def test_anchor_of_the_top_percent():
    children = ranked(101)
    assert anchor_of_top_percent(children, None, 0, 10).architecture == ("FFNx1",)
    assert anchor_of_top_percent(children[::-1], None, 30, 10) == Anchor(("FFNx31",), 0.97)
    assert anchor_of_top_percent(children, None, 100, 10).architecture == ("FFNx101",)
    # r = 10: the old anchor stays from 20% to 40% and goes beyond.
    for rank in (20, 30, 40):
        assert anchor_of_top_percent(children, (f"FFNx{rank + 1}",), 30, 10).architecture == (f"FFNx{rank + 1}",)
    for rank in (19, 41):
        assert anchor_of_top_percent(children, (f"FFNx{rank + 1}",), 30, 10).architecture == ("FFNx31",)
    assert anchor_of_top_percent(ranked(1), None, 30, 10).architecture == ("FFNx1",)


def test_top_percent_picks_an_anchor_at_each_epochs_end(tmp_path):
    trainer = toy_trainer(
        tmp_path, max_steps=17, alignment="top_percent", anchor_pool_size=20, logging_steps=1, anchor_top_percent=50
    )
    trainer.train()
    assert trainer.anchor_history[0]["step"] == 8
    align = [entry["loss_align"] for entry in trainer.state.log_history if "loss_align" in entry]
    assert [value > 0 for value in align] == [False] * 8 + [True] * 9


def test_top_percent_picks_an_anchor_within_an_epoch(tmp_path, monkeypatch):
    settings = {"alignment": "top_percent", "anchor_pool_size": 20, "logging_steps": 1, "alignment_warmup_steps": 1}
    trainer = toy_trainer(tmp_path, max_steps=7, anchor_rank_steps=3, **settings)
    steps, rank = [], trainer._rank_for_anchor
    monkeypatch.setattr(trainer, "_rank_for_anchor", lambda step: (steps.append(step), rank(step)))
    trainer.train()
    assert steps == [3, 6]
    align = [entry["loss_align"] for entry in trainer.state.log_history if "loss_align" in entry]
    assert [value > 0 for value in align] == [False] * 3 + [True] * 4


def test_a_training_that_ends_before_its_first_anchor_says_so(tmp_path, caplog):
    settings = {"alignment": "top_percent", "alignment_warmup_steps": 1, "anchor_pool_size": 2}
    toy_trainer(tmp_path, max_steps=8, **settings).train()
    assert "nothing will be aligned: the anchor is picked every 8 steps, but the run has only 8;" in caplog.text
    caplog.clear()
    toy_trainer(tmp_path, max_steps=9, **settings).train()
    assert "nothing will be aligned" not in caplog.text


# ---- Shrinking ----


def test_shrinking_ends_in_one_child_which_is_the_one_found(tmp_path):
    trainer = toy_trainer(
        tmp_path, max_steps=30, shrink=True, shrink_every_n_steps=5, shrink_operators_per_round=5, logging_steps=1
    )
    recorder = recorded(trainer)
    trainer.train()
    assert [entry["step"] for entry in trainer.shrink_history] == [5, 10, 15]
    assert [len(entry["deleted"]) for entry in trainer.shrink_history] == [5, 5, 2]
    assert trainer.space.size == 1
    only = next(trainer.space.children())
    assert trainer.best_child().architecture == only
    assert trainer.anchor.architecture == only
    assert set(recorder.children[15:]) == {only}
    for entry in trainer.shrink_history:
        left = SearchSpace.from_json(entry["space"])
        assert all(child in left for child in recorder.children[entry["step"] :])
        scores = {(layer, name): score for layer, name, score in entry["scores"]}
        deleted = [scores[layer, name] for layer, name in entry["deleted"]]
        assert deleted == sorted(deleted, reverse=True)
    assert [entry["num_operators"] for entry in trainer.state.log_history if "num_operators" in entry][-1] == 4


def test_an_anchor_that_loses_an_operator_is_replaced(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path)
    trainer.anchor = Anchor(FIRST, 0.9)
    trainer.space = trainer.space.without(1, FIRST[1])
    ranked_children = [
        RankedChild(FIRST, 1.0, 0.9),
        RankedChild(SECOND, 2.0, 0.4),
        RankedChild(("FFN",) * 4, 1.5, 0.6),
    ]
    trainer._replace_anchor(trainer.anchor, ranked_children, 5)
    assert trainer.anchor == Anchor(("FFN",) * 4, 0.6)
    # None of the validated children is left: the anchor's own operators stay where they can.
    trainer._replace_anchor(Anchor(FIRST, 0.9), ranked_children[:1], 6)
    assert trainer.anchor.architecture == (FIRST[0], "MHA4", *FIRST[2:])
    assert trainer.anchor.architecture in trainer.space
    assert [entry["step"] for entry in trainer.anchor_history] == [5, 6]


def test_rounds_end_epochs_where_no_steps_are_given(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=24, shrink=True, shrink_operators_per_round=4)
    trainer.train()
    assert [entry["step"] for entry in trainer.shrink_history] == [8, 16, 24]


def test_a_run_too_short_to_end_in_one_child_says_so(tmp_path, caplog):
    trainer = toy_trainer(tmp_path, max_steps=6, shrink=True, shrink_every_n_steps=3, shrink_operators_per_round=2)
    trainer.train()
    assert "6 steps allow 2 rounds, which leave 8 operators too many; train longer" in caplog.text
    assert trainer.space.size > 1
    assert trainer.best_child().architecture in trainer.space


@pytest.mark.parametrize("sampling", ["fair", "nested", "chain"])
def test_children_of_a_round_are_drawn_as_asked_for(tmp_path, monkeypatch, sampling):
    settings = {"max_steps": 8, "shrink": True, "shrink_every_n_steps": 4, "seed": 0}
    trainer = toy_trainer(tmp_path, shrink_sampling=sampling, **settings)
    pools, rank = [], trainer._rank
    monkeypatch.setattr(trainer, "_rank", lambda pool: pools.append(pool) or rank(pool))
    space = trainer.full_space
    trainer.train()
    pools = [pool for pool in pools if len(pool) > 4]
    for entry, pool in zip(trainer.shrink_history, pools, strict=True):
        assert pool == sample_children(space, 8, entry["step"], sampling)
        space = SearchSpace.from_json(entry["space"])


# ---- The budget ----


def parameters(child: Architecture) -> int:
    return count_parameters(toy_config(), child, head="mlm")


def flops(child: Architecture) -> int:
    return count_flops(toy_config(), child, seq_len=64)


CHILDREN = list(SearchSpace.from_config(toy_config().candidate_operators).children())
BY_PARAMETERS = sorted(map(parameters, CHILDREN))
BY_FLOPS = sorted(map(flops, CHILDREN))
FEWEST, MOST = BY_PARAMETERS[0], BY_PARAMETERS[-1]
BUDGETS: list[dict] = [
    {"max_params": FEWEST},
    {"max_params": BY_PARAMETERS[20]},
    {"min_params": MOST},
    {"min_params": BY_PARAMETERS[100], "max_params": BY_PARAMETERS[100]},
    {"max_params": BY_PARAMETERS[120], "min_flops": BY_FLOPS[100], "max_flops": BY_FLOPS[110]},
]


def allowed(budget: dict, child: Architecture) -> bool:
    """What the arguments say, counted without the code of budgets."""
    within_parameters = budget.get("min_params", 0) <= parameters(child) <= budget.get("max_params", math.inf)
    return within_parameters and budget.get("min_flops", 0) <= flops(child) <= budget.get("max_flops", math.inf)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("sign", [1, -1])
def test_the_budget_stays_reachable_and_ends_in_a_child_within(tmp_path, monkeypatch, budget, sign):
    """Planted losses: the costlier a child, the better it is, or the worse; one of the two leads out of the budget."""
    settings = {"shrink": True, "shrink_every_n_steps": 2, "shrink_operators_per_round": 3, "max_steps": 8}
    trainer = toy_trainer(tmp_path, alignment="none", num_probe_children=0, **settings, **budget)
    monkeypatch.setattr(
        trainer,
        "_rank",
        lambda pool: sorted((RankedChild(child, sign * parameters(child), 0.5) for child in pool), key=losses),
    )
    trainer.train()
    assert [len(entry["deleted"]) for entry in trainer.shrink_history] == [3, 3, 3, 3]
    for entry in trainer.shrink_history:
        assert any(allowed(budget, child) for child in SearchSpace.from_json(entry["space"]).children())
    assert trainer.space.size == 1
    assert allowed(budget, next(trainer.space.children()))
    assert trainer.best_child().architecture in trainer.space


def losses(child: RankedChild) -> float:
    return child.val_loss


@pytest.mark.parametrize("budget", BUDGETS)
def test_the_best_child_comes_from_all_children_within_the_budget(tmp_path, monkeypatch, budget):
    trainer = toy_trainer(tmp_path, num_best_candidates=256, **budget)
    pools: list[list[Architecture]] = []
    monkeypatch.setattr(trainer, "_rank", lambda pool: pools.append(pool) or [RankedChild(pool[0], 1.0, 0.5)])
    within = {child for child in CHILDREN if allowed(budget, child)}
    beyond = next(child for child in CHILDREN if child not in within)
    trainer.anchor = Anchor(beyond, 0.9)
    trainer.best_child()
    assert set(pools[0]) == within
    # More children than are asked for: as many are drawn, and an anchor within the budget is one more.
    if len(within) > 3:
        trainer.anchor = Anchor(max(within), 0.9)
        trainer.args.num_best_candidates = 3
        trainer.best_child()
        assert len(pools[1]) == 4
        assert set(pools[1]) <= within
        assert pools[1][-1] == max(within)


def test_without_a_budget_children_are_drawn_as_ever(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path, max_steps=6, seed=3, alignment="average")
    recorder = recorded(trainer)
    trainer.train()
    sampler = GradualSampler(trainer.full_space, seed=3)
    assert recorder.children == [sampler.next() for _ in range(6)]
    rng = random.Random("average-3")
    assert trainer._average_children == [trainer.full_space.sample(rng) for _ in range(24)][-4:]
    monkeypatch.setattr(trainer, "_rank", lambda pool: pool)
    rng = random.Random("best-3")
    expected = [trainer.full_space.sample(rng) for _ in range(100)]
    assert trainer._pool_within(100, random.Random("best-3")) == expected


def test_a_budget_that_no_child_meets_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    args = MagicTrainingArguments(str(tmp_path), report_to="none", alignment_every_n_layers=2, max_params=FEWEST - 1)
    with pytest.raises(InfeasibleBudgetError, match=f"num_parameters <= {FEWEST - 1:,}.*{FEWEST:,}, above"):
        check_search(toy_config(), args)
    # Before the text is read its vocabulary is not known, and so the embeddings' parameters are not.
    check_search(toy_config(), args, vocabulary=False)
    monkeypatch.setattr("transformers.Trainer.__init__", lambda *_, **__: pytest.fail("was built"))
    with pytest.raises(InfeasibleBudgetError, match="move a limit to a reachable value"):
        MagicTrainer(model=MagicForMaskedLM(toy_config()), args=args, eval_dataset=toy_data(8))


def test_a_latency_limit_is_by_the_table(tmp_path, monkeypatch, caplog):
    milliseconds = {"MHA4": 4.0, "FFN": 2.0, "CONV3": 1.0, "CONV5": 3.0}
    read = []

    class Table:
        trusted = True

        def check(self, config):
            read.append(config.num_hidden_layers)

        def summary(self):
            return "Held-out error: 3%."

        def cost(self):
            whole = {name: round(1e6 * value) for name, value in milliseconds.items()}
            return AdditiveCost("latency_ms", 500_000, whole, unit=1e-6)

    monkeypatch.setattr("training.space.latency.LatencyTable.load", lambda path: read.append(path) or Table())
    caplog.set_level("INFO", "training")
    trainer = toy_trainer(tmp_path, max_latency_ms=5.5, latency_table="table.json")
    assert read[:2] == ["table.json", 4]
    assert "table.json: Held-out error: 3%." in caplog.text
    pool = trainer._pool_within(100, random.Random(0))
    within = {child for child in CHILDREN if 0.5 + sum(milliseconds[name] for name in child) <= 5.5}
    assert set(pool) == within
    with pytest.raises(InfeasibleBudgetError, match="latency_ms <= 4"):
        toy_trainer(tmp_path, max_latency_ms=4, latency_table="table.json")


def test_resuming_under_a_budget_is_exact_and_another_one_may_be_out_of_reach(tmp_path):
    settings = {**RESUMABLE, "max_steps": 24, "save_total_limit": None, "max_params": FEWEST}
    whole = toy_trainer(tmp_path, **settings)
    whole.train()
    assert parameters(next(whole.space.children())) == FEWEST
    resumed = toy_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-16"))
    assert same_weights(whole.model, resumed.model)
    assert json.dumps(whole.nas_state()) == json.dumps(resumed.nas_state())
    other = toy_trainer(tmp_path, **{**settings, "max_params": None, "min_params": MOST})
    with pytest.raises(InfeasibleBudgetError, match="num_parameters >= "):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-24"))


# ---- Logging ----


def test_logs_hold_both_losses_and_what_is_sampled(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=20, logging_steps=5, num_substitutions=3)
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 4
    for entry in entries:
        assert entry["loss"] == pytest.approx(entry["loss_pred"] + 0.5 * entry["loss_align"], rel=1e-4)
        assert entry["num_operators"] == 16
    assert [entry["num_changed_layers"] for entry in entries[1:]] == [3.0] * 3
    assert 0 <= entries[-1]["anchor_accuracy"] <= 1
    assert trainer.state.total_flos > 0


def test_logs_after_a_resumption_are_those_of_a_run_never_stopped(tmp_path):
    """A checkpoint between two logs."""
    settings = {"max_steps": 12, "logging_steps": 6, "save_strategy": "steps", "save_steps": 4}
    whole = toy_trainer(tmp_path, **settings)
    whole.train()
    resumed = toy_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    entries, others = ([entry for entry in own.state.log_history if "loss" in entry] for own in (whole, resumed))
    assert [entry["step"] for entry in entries] == [6, 12]
    assert entries == others
    assert entries[0]["num_changed_layers"] == 5 / 6


def test_training_again_searches_again(tmp_path):
    settings = {"max_steps": 12, "shrink": True, "shrink_every_n_steps": 3, "alignment": "none"}
    trainer = toy_trainer(tmp_path, **settings)
    trainer.train()
    assert trainer.space.size == 1
    first = [entry["step"] for entry in trainer.shrink_history]
    trainer.train()
    assert [entry["step"] for entry in trainer.shrink_history] == first
    assert sum(trainer.visits[0].values()) == 12


def test_validation_masks_of_any_collator_are_fixed(tmp_path, monkeypatch):
    def random_masks(examples):
        batch = collate(examples)
        masked = torch.rand(batch["labels"].shape) < 0.5
        return {**batch, "labels": batch["input_ids"].masked_fill(~masked, -100)}

    slices = []
    for _ in range(2):
        trainer = toy_trainer(tmp_path)
        trainer.data_collator = random_masks
        torch.rand(len(slices))
        before = torch.random.get_rng_state()
        with monkeypatch.context() as patch:
            patch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("seeded the generators of a GPU"))
            slices.append(trainer.validation_batches[0]["labels"])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*slices)


def test_columns_that_the_model_does_not_take_are_left_out(tmp_path):
    rows = [{**row, "source": "a package"} for row in toy_data()]
    trainer = toy_trainer(tmp_path, data=rows, max_steps=4)
    trainer.train()
    assert trainer.anchor is not None


def test_training_leaves_the_configuration_as_it_was(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=2)
    trainer.train()
    assert trainer.model.config.sparse_prediction is False


def test_evaluation_loss_is_that_of_the_best_child(tmp_path):
    trainer = toy_trainer(tmp_path, max_steps=4)
    trainer.train()
    metrics = trainer.evaluate()
    batch = collate(toy_data()[:16])
    expected = trainer.model.eval()(**batch, architecture=trainer.anchor.architecture).loss.item()
    assert metrics["eval_loss"] == pytest.approx(expected, rel=1e-4)


def test_trackers_get_the_losses(tmp_path):
    tensorboard = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    trainer = toy_trainer(tmp_path, report_to="tensorboard")
    trainer.train()
    events = tensorboard.EventAccumulator(str(next(tmp_path.rglob("events*")).parent)).Reload()
    assert {"train/loss_pred", "train/loss_align", "train/num_operators"} <= set(events.Tags()["scalars"])


# ---- Checkpoints ----


def test_a_training_that_starts_over_repeats_no_history(tmp_path):
    """With auto_find_batch_size, a resumed training reads its saved state once for each batch size."""
    trainer = toy_trainer(tmp_path)
    state = trainer.nas_state()
    trainer.load_nas_state(state)
    trainer.anchor_history.append({"step": 5})
    trainer.shrink_history.append({"step": 5})
    assert state["anchor_history"] == state["shrink_history"] == []
    saved = trainer.nas_state()
    trainer.anchor_history.append({"step": 6})
    assert saved["anchor_history"] == [{"step": 5}]


def test_resumed_run_equals_one_never_stopped(tmp_path):
    """The process is killed with SIGKILL in the middle of the run, between two checkpoints."""
    whole = toy_trainer(tmp_path / "whole", **RESUMABLE)
    children = recorded(whole)
    whole.train()
    killed = subprocess.run([sys.executable, TOY, "21", tmp_path / "killed"], capture_output=True)
    assert killed.returncode == -9, killed.stderr.decode()
    assert last_complete_checkpoint(tmp_path / "killed").endswith("checkpoint-16")
    resumed = toy_trainer(tmp_path / "killed", **RESUMABLE)
    rest = recorded(resumed)
    resumed.train(resume_from_checkpoint=True)
    assert rest.children == children.children[16:]
    assert same_weights(whole.model, resumed.model)
    assert json.dumps(whole.nas_state()) == json.dumps(resumed.nas_state())
    health = resumed.nas_state()["health"]
    assert [sum(layer.values()) for layer in health["visits"]] == [40] * 4
    assert sum(norm["steps"] for layer in health["gradient_norms"] for norm in layer.values()) == 4 * 40
    assert sum(health["distances"]) == 39
    # From before the kill and after it.
    assert any(min(probe["steps"]) < 16 < max(probe["steps"]) for probe in health["probes"])
    assert whole.shrink_history
    first, second = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert first.keys() == second.keys()
    for index, state in first.items():
        assert all(torch.equal(state[key], second[index][key]) for key in state)
    logged = [entry for entry in whole.state.log_history if entry["step"] > 20 and "loss_pred" in entry]
    again = [entry for entry in resumed.state.log_history if entry["step"] > 20 and "loss_pred" in entry]
    assert logged == again


@pytest.mark.parametrize("step", [8, 16])
def test_resuming_at_an_epochs_end_is_exact(tmp_path, step):
    """64 sequences in batches of 8: the checkpoint is the last step of an epoch, and that of a shrinking round."""
    settings = {**RESUMABLE, "shrink_every_n_steps": None, "max_steps": 24, "alignment": "top_percent"}
    settings |= {"anchor_pool_size": 10, "save_total_limit": None}
    whole = toy_trainer(tmp_path, **settings)
    whole.train()
    resumed = toy_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert same_weights(whole.model, resumed.model)
    assert json.dumps(whole.nas_state()) == json.dumps(resumed.nas_state())


def test_resuming_at_the_end_trains_no_further(tmp_path):
    """A run killed after its last checkpoint: Trainer alone would take one step more."""
    settings = {**RESUMABLE, "max_steps": 12, "save_steps": 12, "lr_scheduler_type": "constant"}
    whole = toy_trainer(tmp_path, **settings)
    whole.train()
    resumed = toy_trainer(tmp_path, **settings)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 12
    assert same_weights(whole.model, resumed.model)
    assert json.dumps(whole.nas_state()) == json.dumps(resumed.nas_state())


def test_resuming_with_another_schedule_is_refused(tmp_path):
    toy_trainer(tmp_path, **{**RESUMABLE, "max_steps": 8}).train()
    with pytest.raises(ValueError, match=r"was shrunk after the steps \[6\], which does not match the schedule"):
        toy_trainer(tmp_path, **{**RESUMABLE, "shrink_every_n_steps": 4}).train(resume_from_checkpoint=True)


def test_a_stale_state_file_does_not_pass_for_a_whole_checkpoint(tmp_path, monkeypatch):
    """Resumed from checkpoint-8, the run fails while it writes checkpoint-16 anew."""
    settings = {**RESUMABLE, "max_steps": 16, "save_total_limit": None}
    toy_trainer(tmp_path, **settings).train()
    again = toy_trainer(tmp_path, **settings)
    monkeypatch.setattr(
        again, "_save_optimizer_and_scheduler", lambda folder: (_ for _ in ()).throw(OSError(28, "No space left"))
    )
    with pytest.raises(OSError, match="No space left"):
        again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


def test_same_seed_same_bits_and_another_seed_other_children(tmp_path):
    trainers, recorders = [], []
    for seed in (0, 0, 1):
        trainers.append(toy_trainer(tmp_path, seed=seed))
        recorders.append(recorded(trainers[-1]))
        trainers[-1].train()
    assert recorders[0].children == recorders[1].children != recorders[2].children
    assert same_weights(trainers[0].model, trainers[1].model)


def test_a_checkpoint_cut_short_is_passed_over(tmp_path):
    trainer = toy_trainer(tmp_path, **{**RESUMABLE, "max_steps": 16})
    trainer.train()
    newest = tmp_path / "checkpoint-16"
    state = newest / "trainer_state.json"
    state.write_text(state.read_text()[:100])
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    state.unlink()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")
    assert last_complete_checkpoint(tmp_path / "nowhere") is None


def test_checkpoints_of_something_else_are_refused(tmp_path):
    toy_trainer(tmp_path, **{**RESUMABLE, "max_steps": 8}).train()
    other = toy_config(candidate_operators=[["MHA4", "FFN"]] * 4)
    weights = {name: p.clone() for name, p in toy_trainer(tmp_path, other).model.named_parameters()}
    trainer = toy_trainer(tmp_path, other)
    with pytest.raises(ValueError, match=r"another search space \(4 layers, 256 children; .*16 children"):
        trainer.train(resume_from_checkpoint=True)
    assert all(torch.equal(weights[name], p) for name, p in trainer.model.named_parameters())
    with pytest.raises(ValueError, match="sampler 'gradual'; this sampler is 'uniform'"):
        toy_trainer(tmp_path, sampler="uniform").train(resume_from_checkpoint=True)
    with pytest.raises(ValueError, match=r"no complete checkpoint in .*nowhere; train without resuming"):
        toy_trainer(tmp_path / "nowhere").train(resume_from_checkpoint=True)
    (tmp_path / "checkpoint-8" / "nas_state.json").unlink()
    with pytest.raises(ValueError, match=r"checkpoint-8 is not complete \(nas_state.json is missing\)"):
        toy_trainer(tmp_path).train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))


def test_a_full_disk_leaves_the_older_checkpoint(tmp_path, monkeypatch):
    trainer = toy_trainer(tmp_path, **{**RESUMABLE, "max_steps": 16, "save_total_limit": 1})
    save = trainer._save_optimizer_and_scheduler

    def no_space(folder):
        if folder.endswith("checkpoint-16"):
            raise OSError(28, "No space left on device")
        save(folder)

    monkeypatch.setattr(trainer, "_save_optimizer_and_scheduler", no_space)
    with pytest.raises(OSError, match="No space left"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path) == str(tmp_path / "checkpoint-8")


# ---- Several processes, precision ----


def run_on_two_processes(mode: str, folder: Path) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(TOY), mode, str(folder)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]


@pytest.mark.slow
def test_two_processes_draw_decide_and_hold_the_same(tmp_path):
    run_on_two_processes("shrinking", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    weights = [first.pop("weights"), second.pop("weights")]
    assert all(torch.equal(own, other) for own, other in zip(*weights, strict=True))
    assert first == second
    assert first["anchor"]
    assert first["shrink_history"]


@pytest.mark.slow
def test_two_processes_of_four_sequences_are_one_of_eight(tmp_path):
    """Both losses are scaled right across processes: the weights are those of one process with the whole batch."""
    run_on_two_processes("plain", tmp_path)
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = toy_trainer(tmp_path / "alone", toy_config(0.0), **PLAIN)
    alone.train()
    assert alone.anchor is not None
    assert first["architecture"] == second["architecture"] == list(alone.architecture)
    health = alone.health.to_json()
    assert first["health"]["visits"] == health["visits"]
    assert first["health"]["distances"] == health["distances"]
    for expected_norms, norms in zip(health["gradient_norms"], first["health"]["gradient_norms"], strict=True):
        for operator, norm in norms.items():
            assert norm["mean"] == pytest.approx(expected_norms[operator]["mean"], rel=1e-4)
    for expected, own, other in zip(alone.model.parameters(), first["weights"], second["weights"], strict=True):
        assert torch.equal(own, other)
        torch.testing.assert_close(own, expected.detach(), rtol=0, atol=1e-6)


def test_mixed_precision_trains(tmp_path):
    trainer = toy_trainer(
        tmp_path, bf16=True, use_cpu=True, max_steps=6, alignment_warmup_steps=1, anchor_eval_steps=1
    )
    trainer.train()
    entry = next(entry for entry in reversed(trainer.state.log_history) if "loss_pred" in entry)
    assert math.isfinite(entry["loss_pred"])
    assert entry["loss_align"] > 0
    dtypes = []
    operator = trainer.model.magic.encoder.layer[0].operators["FFN"]
    operator.dense.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    trainer._validate(("FFN",) * 4)
    assert set(dtypes) == {torch.bfloat16}
    dtypes.clear()
    trainer.anchor = Anchor(("FFN",) * 4, 0.5)
    states = [torch.zeros(2, 12, 32)] * 5
    trainer._alignment_loss({"input_ids": torch.full((2, 12), 5)}, states, [2, 4], shared=0)
    assert dtypes == [torch.bfloat16]


def test_starved_operators_are_looked_for_in_training(tmp_path, monkeypatch, caplog):
    class WithoutOne(UniformSampler):
        def next(self):
            child = super().next()
            return (*child[:2], "CONV3" if child[2] == "FFN" else child[2], child[3])

    monkeypatch.setattr("training.supernet.search_trainer.LOOK_EVERY", 60)
    monkeypatch.setattr(
        "training.supernet.trainer.search_sampler", lambda space, config, args: WithoutOne(space, args.seed)
    )
    trainer = toy_trainer(tmp_path / "long", max_steps=190, alignment="none", num_probe_children=0)
    trainer.train()
    expected = [{"step": 180, "layer": 2, "operator": "FFN", "problem": "starved"}]
    assert trainer.health.warnings == expected
    assert "FFN in layer 2" in caplog.text
    # The last step looks too, whatever its number.
    shorter = toy_trainer(tmp_path / "short", max_steps=179, alignment="none", num_probe_children=0)
    shorter.train()
    assert shorter.health.warnings == [{**expected[0], "step": 179}]


def test_a_wrong_latency_table_is_found_before_the_text_is_read(tmp_path):
    args = toy_trainer(tmp_path).args
    args.latency_table, args.max_latency_ms = str(tmp_path / "none.json"), 5.0
    with pytest.raises(ValueError, match=r"none\.json is not a usable latency table"):
        check_search(toy_config(), args, vocabulary=False)


@pytest.mark.parametrize("name", ["health", "candidate_operators"])
def test_a_checkpoint_of_another_version_is_named(tmp_path, name):
    trainer = toy_trainer(tmp_path)
    state = trainer.nas_state()
    del state[name]
    with pytest.raises(ValueError, match=f"another version of this package: it lacks {name}; choose another"):
        trainer.load_nas_state(state)


# ---- Wrong input ----


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_substitutions": 5}, "num_substitutions is 5; choose 1 to 4, the number of layers"),
        ({"sampler": "spos"}, "sampler is 'spos'; choose one of: uniform, gradual, fair, sandwich"),
        ({"alignment": "teacher"}, "alignment is 'teacher'; choose one of: none, anchor, top_percent, average"),
        ({"alignment_every_n_layers": 5}, "alignment_every_n_layers is 5 but the super-net has 4 layers"),
        ({"alignment_batch_fraction": 0}, "alignment_batch_fraction is 0; it must be above 0 and at most 1"),
        ({"alignment_warmup_steps": -5}, "alignment_warmup_steps is -5; it must be at least 0"),
        (
            {"alignment_batch_fraction": 0.1, "per_device_train_batch_size": 8},
            "alignment_batch_fraction 0.1 of a batch of 8 is less than one sequence",
        ),
        ({"alignment_weight": -1}, "alignment_weight is -1; it must be at least 0"),
        ({"anchor_top_percent": 101}, "anchor_top_percent is 101; it must be from 0 to 100"),
        ({"shrink_num_children": 0}, "shrink_num_children is 0; it must be at least 1"),
        ({"shrink_every_n_steps": 0}, "shrink_every_n_steps is 0; it must be at least 1"),
        ({"anchor_eval_steps": 0}, "anchor_eval_steps is 0; it must be at least 1"),
        ({"anchor_rank_steps": 0}, "anchor_rank_steps is 0; it must be at least 1"),
        ({"num_probe_children": -1}, "num_probe_children is -1; it must be at least 0"),
        ({"probe_every_n_steps": 0}, "probe_every_n_steps is 0; it must be at least 1"),
        ({"num_best_candidates": 0}, "num_best_candidates is 0; it must be at least 1"),
        ({"shrink_sampling": "pairs"}, "shrink_sampling is 'pairs'; choose one of: fair, nested, chain"),
        ({"max_params": 0}, "max_params is 0; it must be above 0"),
        ({"max_flops": float("nan")}, "max_flops is nan; it must be above 0"),
        ({"min_flops": 3e8, "max_flops": 2e8}, r"min_flops is 300000000.0, above max_flops, 200000000.0; swap them"),
        ({"max_latency_ms": 5}, "latency is limited but no latency_table is given"),
        ({"latency_table": "t.json"}, "latency_table is t.json but latency is not limited; set max_latency_ms"),
    ],
)
def test_wrong_arguments_name_value_and_remedy(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, **arguments)


def test_a_child_is_no_supernet_and_validation_needs_data(tmp_path):
    args = MagicTrainingArguments(str(tmp_path), report_to="none", alignment="anchor")
    child = MagicForMaskedLM(toy_config(candidate_operators=[["FFN"]] * 4))
    with pytest.raises(
        ValueError, match="one operator in every layer; a super-net needs a layer with several candidates"
    ):
        MagicTrainer(model=child, args=args, train_dataset=toy_data())
    with pytest.raises(ValueError, match="pass eval_dataset, or set alignment='none'"):
        MagicTrainer(model=MagicForMaskedLM(toy_config()), args=args, train_dataset=toy_data())


def test_streams_have_no_epochs(tmp_path):
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self):
            return iter(toy_data())

    arguments = {"alignment": "none", "shrink": True, "max_steps": 3}
    trainer = toy_trainer(tmp_path, **arguments)
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match="a streamed data set has no epochs; set shrink_every_n_steps"):
        trainer.train()
    trainer = toy_trainer(
        tmp_path, **{**arguments, "shrink": False, "alignment": "anchor", "alignment_warmup_steps": None}
    )
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match="a streamed data set has no epochs; set alignment_warmup_steps"):
        trainer.train()
    trainer = toy_trainer(tmp_path, alignment="top_percent", max_steps=3)
    trainer.train_dataset = Stream()
    with pytest.raises(ValueError, match="no epochs after which to pick the anchor; set anchor_rank_steps"):
        trainer.train()
    trainer = toy_trainer(tmp_path, alignment="top_percent", max_steps=3, anchor_rank_steps=2)
    trainer.train_dataset = Stream()
    trainer.train()
    assert trainer.anchor_history[0]["step"] == 2


def test_a_vocabulary_with_gaps_has_a_row_for_its_largest_id():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = BertTokenizer(vocab={**{word: index for index, word in enumerate(words)}, "fox": 40})
    data = PreparedData(tokenizer, [], [], {"block_size": 8})
    assert fit_to_text(toy_config(), data).vocab_size == 41


def drawn_children(trainer) -> list:
    children = []

    class Recorder(TrainerCallback):
        def on_step_end(self, *args, **kwargs):
            children.append(trainer.architecture)

    trainer.add_callback(Recorder())
    return children


def test_k_falls_from_all_layers_to_its_end(tmp_path):
    trainer = toy_trainer(tmp_path, alignment="none", max_steps=25, num_substitutions_from=4, num_substitutions=1)
    children = drawn_children(trainer)
    trainer.train()
    distances = [sum(a != b for a, b in zip(*pair, strict=True)) for pair in pairwise(children)]
    assert distances == [round(4 - 3 * step / 24) for step in range(1, 25)]


def test_k_falls_alike_after_a_stop(tmp_path):
    given = {"max_steps": 24, "num_substitutions_from": 4, "save_strategy": "steps", "save_steps": 10}
    whole = toy_trainer(tmp_path, **given)
    children = drawn_children(whole)
    whole.train()
    again = toy_trainer(tmp_path, **given)
    rest = drawn_children(again)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-10"))
    assert rest == children[10:]


def test_lambda_goes_linearly_to_its_end(tmp_path):
    trainer = toy_trainer(tmp_path, toy_config(0.0), alignment_weight=0.8, alignment_weight_end=0.2, max_steps=13)
    weights = []
    for step in (0, 6, 12):
        trainer.state.max_steps, trainer.state.global_step = 13, step
        weights.append(trainer.alignment_weight())
    assert weights == pytest.approx([0.8, 0.5, 0.2])
    # The gradient of a step in the middle is that of lambda there.
    gradients = {}
    for weight, given in (("falling", {"alignment_weight_end": 0.2}), ("fixed", {"alignment_weight": 0.5})):
        other = toy_trainer(tmp_path, toy_config(0.0), **{"alignment_weight": 0.8, "max_steps": 13, **given})
        other.state.max_steps, other.state.global_step = 13, 6
        gradients[weight] = one_step(other, [collate(toy_data(8))], FIRST, SECOND)
    for name, gradient in gradients["fixed"].items():
        torch.testing.assert_close(gradient, gradients["falling"][name])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_substitutions_from": 5}, "num_substitutions_from is 5; choose 1 to 4, the number of layers"),
        (
            {"num_substitutions_from": 2, "sampler": "fair"},
            "the sampler 'fair' does not change a fixed number of operators",
        ),
        ({"alignment_weight_end": 0.1, "alignment": "none"}, "alignment_weight_end is 0.1, but nothing is aligned"),
    ],
)
def test_schedules_of_what_is_not_there_are_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        toy_trainer(tmp_path, **arguments)
