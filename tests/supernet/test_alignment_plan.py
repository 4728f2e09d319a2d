"""The plan of alignment against its rules played step by step, and against what the trainer does."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_config, toy_trainer

from training.supernet.alignment_plan import AlignmentPlan
from training.supernet.supernet_options import ALIGNMENTS, SupernetOptions


def options(**changes: Any) -> SupernetOptions:
    given = {"alignment": "anchor", "alignment_warmup_steps": 0, "alignment_every_n_layers": 2, **changes}
    return SupernetOptions(**given)


def played(args: SupernetOptions, epoch_steps: int, num_steps: int) -> tuple[list[int], list[int]]:
    """The steps that align, and those after which the anchor is looked at, by the rules as the paper has them."""
    warmup = args.alignment_warmup_steps
    if warmup is None:
        warmup = round(args.alignment_warmup_epochs * epoch_steps)
    has_anchor, aligned, looks = False, [], []
    for done in range(num_steps):
        # What a step does depends on the steps that were done before it.
        if done >= warmup and (args.alignment == "average" or (args.alignment != "none" and has_anchor)):
            aligned.append(done + 1)
        number = done + 1
        if args.alignment == "anchor":
            is_due = number % args.anchor_eval_steps == 0 or (number == warmup and not has_anchor)
        else:
            is_due = args.alignment == "top_percent" and number % (args.anchor_rank_steps or epoch_steps) == 0
        if is_due:
            has_anchor = True
            looks.append(number)
    return aligned, looks


@st.composite
def runs(draw) -> tuple[SupernetOptions, int, int]:
    args = options(
        alignment=draw(st.sampled_from(ALIGNMENTS)),
        alignment_warmup_steps=draw(st.none() | st.integers(0, 12)),
        alignment_warmup_epochs=draw(st.sampled_from([0.0, 0.5, 1.0, 1.5, 3.0])),
        anchor_eval_steps=draw(st.integers(1, 9)),
        anchor_rank_steps=draw(st.none() | st.integers(1, 9)),
    )
    return args, draw(st.integers(1, 9)), draw(st.integers(0, 30))


@settings(max_examples=1000)
@given(runs())
def test_the_plan_is_what_its_rules_come_to_step_by_step(run):
    args, epoch_steps, num_steps = run
    plan = AlignmentPlan.of(args, 4, epoch_steps)
    aligned, looks = played(args, epoch_steps, num_steps)
    # Step by step, as the trainer asks it.
    has_anchor, asked, seen = False, [], []
    for step in range(1, num_steps + 1):
        if plan.aligns(step, has_anchor):
            asked.append(step)
        if plan.anchor_is_due(step, has_anchor):
            has_anchor = True
            seen.append(step)
    assert asked == aligned
    assert seen == looks
    # At once, as its cost is foretold.
    assert plan.num_anchor_looks(num_steps) == len(looks)
    assert plan.num_aligned_steps(num_steps) == len(aligned)
    if aligned:
        assert plan.first_step == aligned[0]
        # Once begun, alignment does not stop.
        assert aligned == list(range(aligned[0], num_steps + 1))
    if args.alignment == "none":
        assert plan.first_step is None
        assert plan.warnings(num_steps) == []
    else:
        assert bool(plan.warnings(num_steps)) == (not aligned)


@pytest.mark.parametrize("alignment", ALIGNMENTS)
@pytest.mark.parametrize(("num_layers", "every"), [(4, 2), (4, 4), (5, 2), (26, 4), (3, 1), (3, 4)])
def test_every_nth_layer_is_aligned(alignment, num_layers, every):
    plan = AlignmentPlan.of(options(alignment=alignment, alignment_every_n_layers=every), num_layers, 8)
    expected = [layer for layer in range(1, num_layers + 1) if layer % every == 0]
    assert list(plan.aligned_layers) == ([] if alignment == "none" else expected)


@pytest.mark.parametrize(
    ("changes", "num_steps", "message"),
    [
        ({"alignment": "average", "alignment_warmup_steps": 9}, 9, "warm start takes 9 of 9 steps; .*warmup_steps"),
        ({"alignment_warmup_steps": 9, "anchor_eval_steps": 3}, 8, "warm start takes 9 of 8 steps"),
        ({"anchor_eval_steps": 7}, 7, "the first anchor is set after 7 of 7 steps; .*set anchor_eval_steps lower"),
        (
            {"alignment": "top_percent"},
            8,
            "picked every 8 steps, but the run has only 8; .*set anchor_rank_steps lower",
        ),
    ],
)
def test_a_run_that_aligns_nothing_is_warned_of(changes, num_steps, message):
    plan = AlignmentPlan.of(options(**changes), 4, 8)
    (warning,) = plan.warnings(num_steps)
    assert warning.startswith("nothing will be aligned: ")
    assert re.search(message, warning)
    assert plan.warnings(num_steps + 2) == []


def test_two_reasons_are_two_warnings():
    plan = AlignmentPlan.of(options(alignment="top_percent", alignment_warmup_steps=9), 4, 8)
    assert len(plan.warnings(8)) == 2


def test_a_stream_needs_steps_where_there_are_no_epochs():
    by_epochs = {"alignment_warmup_steps": None}
    for alignment in ("anchor", "average", "top_percent"):
        with pytest.raises(ValueError, match="a streamed data set has no epochs; set alignment_warmup_steps"):
            AlignmentPlan.of(options(alignment=alignment, anchor_rank_steps=5, **by_epochs), 4, None)
        # A warm start of no epochs needs none.
        args = options(alignment=alignment, anchor_rank_steps=5, alignment_warmup_epochs=0, **by_epochs)
        assert AlignmentPlan.of(args, 4, None).warmup_steps == 0
    with pytest.raises(ValueError, match="no epochs after which to pick the anchor; set anchor_rank_steps"):
        AlignmentPlan.of(options(alignment="top_percent"), 4, None)
    assert AlignmentPlan.of(options(alignment="none", **by_epochs), 4, None).aligned_layers == ()


def test_bottoms_are_shared_without_dropout_and_with_an_anchor():
    for alignment, hidden, attention in [("anchor", 0.1, 0.0), ("anchor", 0.0, 0.1), ("average", 0.0, 0.0)]:
        config = toy_config(hidden_dropout_prob=hidden, attention_probs_dropout_prob=attention)
        assert not AlignmentPlan.of(options(alignment=alignment), 4, 8).shares_bottoms(config)
    for alignment in ("anchor", "top_percent"):
        assert AlignmentPlan.of(options(alignment=alignment), 4, 8).shares_bottoms(toy_config(0.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"alignment": "anchor", "alignment_warmup_steps": 6, "anchor_eval_steps": 4},
        {"alignment": "anchor", "alignment_warmup_steps": 2, "anchor_eval_steps": 5},
        {"alignment": "anchor", "alignment_warmup_steps": 0, "anchor_eval_steps": 3},
        {"alignment": "top_percent", "alignment_warmup_steps": 3, "anchor_pool_size": 4},
        {"alignment": "top_percent", "alignment_warmup_steps": 7, "anchor_rank_steps": 5, "anchor_pool_size": 4},
        {"alignment": "average", "alignment_warmup_steps": None, "alignment_warmup_epochs": 0.5},
        {"alignment": "none"},
    ],
)
def test_the_trainer_keeps_to_the_plan(tmp_path, monkeypatch, changes):
    trainer = toy_trainer(tmp_path, max_steps=12, logging_steps=1, probe_every_n_steps=13, **changes)
    looks = []
    for name in ("_challenge_anchor", "_rank_for_anchor"):
        look = getattr(trainer, name)
        monkeypatch.setattr(trainer, name, lambda step, look=look: (looks.append(step), look(step)))
    trainer.train()
    aligned = [entry["step"] for entry in trainer.state.log_history if entry.get("loss_align")]
    # 64 sequences in batches of 8.
    assert (aligned, looks) == played(trainer.args, 8, 12)
