"""The search around cells: steps of a training by hand, alignment of cells, shrinking, going on after a stop."""

import pytest
import torch
from torch.nn.functional import cross_entropy, mse_loss
from toy_cells import cell_trainer, toy_cells, toy_images

from training.cells.cell_model import CellSupernet, count_cell_flops
from training.cells.cell_space import CONV1, CONV3, NONE, OPERATORS, SKIP, cell_space
from training.cells.images import ImageCollator
from training.supernet.anchors import Anchor


FIRST, SECOND = (CONV3,) * 6, (CONV1, CONV3, SKIP, CONV3, SKIP, CONV1)


def items(number: int):
    data = toy_images()
    return ImageCollator(0)([data.train[index] for index in range(number)])


def begun(folder, child, anchor=None, **arguments):
    """A trainer in the middle of a step."""
    trainer = cell_trainer(folder, alignment_warmup_steps=0, **arguments)
    trainer._plan_run(12, [0] * 4)
    trainer.current_gradient_accumulation_steps = 1
    trainer.architecture, trainer.anchor = child, anchor and Anchor(anchor, 0.5)
    trainer.model.train()
    return trainer


def test_a_step_trains_the_child_that_was_drawn(tmp_path):
    given = {"alignment": "none", "sampler": "uniform", "lr_scheduler_type": "constant", "seed": 2}
    trainer = cell_trainer(tmp_path, max_steps=1, **given)
    before = {name: parameter.clone() for name, parameter in trainer.model.named_parameters()}
    trainer.train()
    child = trainer.architecture
    changed = {
        name
        for name, parameter in trainer.model.named_parameters()
        if name.startswith("cells.") and not torch.equal(before[name], parameter)
    }
    own = {f"cells.{cell}.edges.{edge}.{operator}." for cell in range(3) for edge, operator in enumerate(child)}
    assert changed
    assert all(any(name.startswith(prefix) for prefix in own) for name in changed)


def normalised(states: torch.Tensor) -> torch.Tensor:
    """Mean 0 and variance 1 in each channel."""
    spread = states.var(dim=(0, 2, 3), correction=0, keepdim=True)
    return (states - states.mean(dim=(0, 2, 3), keepdim=True)) / (spread + 1e-5).sqrt()


def test_the_loss_of_a_step_is_that_of_eq_2(tmp_path):
    trainer = begun(tmp_path, FIRST, SECOND, alignment_weight=0.7, alignment_every_n_layers=2)
    batch = items(6)
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(6))
    (state,), (target,) = (trainer.model.states(batch["images"], child, [2]) for child in (FIRST, SECOND))
    logits = trainer.model(batch["images"], architecture=FIRST).logits
    state, target = normalised(state), normalised(target)
    expected = cross_entropy(logits, batch["labels"]) + 0.7 * mse_loss(state, target)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    weights = list(trainer.model.parameters())
    gradients = torch.autograd.grad(loss, weights, allow_unused=True)
    # The target carries no gradient.
    (state,) = trainer.model.states(batch["images"], FIRST, [2])
    logits = trainer.model(batch["images"], architecture=FIRST).logits
    alone = cross_entropy(logits, batch["labels"]) + 0.7 * mse_loss(normalised(state), target.detach())
    for one, other in zip(gradients, torch.autograd.grad(alone, weights, allow_unused=True), strict=True):
        assert (one is None) == (other is None)
        if one is not None:
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_anchor_itself_is_aligned_to_nothing(tmp_path):
    trainer = begun(tmp_path, FIRST, FIRST)
    batch = items(6)
    # Its own states are not run a second time.
    trainer.child_states = lambda *_: pytest.fail("ran the anchor")
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(6))
    assert loss.item() == pytest.approx(trainer.model(**batch, architecture=FIRST).loss.item(), rel=1e-6)


def test_accumulated_batches_weigh_by_their_images(tmp_path):
    trainer, batch = cell_trainer(tmp_path, alignment="none"), items(6)
    trainer.architecture = FIRST
    trainer.model.train()
    parts = [{name: value[part] for name, value in batch.items()} for part in (slice(4), slice(4, None))]
    losses = [trainer.compute_loss(trainer.model, part, num_items_in_batch=torch.tensor(6)) for part in parts]
    alone = [trainer.model(**part, architecture=FIRST).loss.item() for part in parts]
    assert sum(losses).item() == pytest.approx((4 * alone[0] + 2 * alone[1]) / 6, rel=1e-5)


@pytest.mark.parametrize("alignment", ["anchor", "top_percent", "average"])
@pytest.mark.parametrize("sampler", ["gradual", "fair", "sandwich"])
def test_all_ways_train(tmp_path, alignment, sampler):
    trainer = cell_trainer(
        tmp_path, alignment=alignment, sampler=sampler, anchor_pool_size=4, anchor_rank_steps=3, num_average_children=2
    )
    trainer.train()
    assert sum(trainer.visits[0].values()) == 12
    losses = [entry["loss_align"] for entry in trainer.state.log_history if "loss_align" in entry]
    assert losses[-1] > 0
    assert trainer.best_child().architecture in cell_space()


def test_shrinking_ends_in_one_cell(tmp_path):
    trainer = cell_trainer(tmp_path, shrink=True, shrink_every_n_steps=2, shrink_operators_per_round=5)
    trainer.train()
    assert trainer.space.size == 1
    assert trainer.best_child().architecture == next(trainer.space.children())


def test_it_learns(tmp_path):
    trainer = cell_trainer(tmp_path, alignment="none", max_steps=100, sampler="uniform")
    trainer.train()
    assert trainer._validate(FIRST).val_accuracy > 0.9


def test_a_training_that_was_stopped_ends_in_the_same_bits(tmp_path):
    given = {"save_strategy": "steps", "save_steps": 5, "sampler": "gradual"}
    whole = cell_trainer(tmp_path / "whole", **given)
    whole.train()
    cell_trainer(tmp_path / "parts", **given).train()
    (tmp_path / "parts" / "checkpoint-12").rename(tmp_path / "gone")
    again = cell_trainer(tmp_path / "parts", model=toy_cells(), **given)
    again.train(resume_from_checkpoint=str(tmp_path / "parts" / "checkpoint-10"))
    assert again.architecture == whole.architecture
    assert again.anchor == whole.anchor
    for (name, one), other in zip(whole.model.named_parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other), name


def test_figures_are_logged_by_operator(tmp_path):
    trainer = cell_trainer(tmp_path, alignment="none", sampler="fair", interference_every_n_steps=1, max_steps=15)
    trainer.train()
    names = {name for entry in trainer.state.log_history for name in entry}
    assert {f"grad_norm_{CONV3}", f"grad_norm_{CONV1}", "interference/num_shared"} <= names
    assert f"grad_norm_{SKIP}" not in names


def test_an_edge_that_leads_nowhere_has_no_gradient_to_miss(tmp_path):
    dead = (CONV3, NONE, NONE, SKIP, NONE, CONV1)
    operators = [[operator, SKIP] if operator != SKIP else [SKIP, CONV3] for operator in dead]
    trainer = cell_trainer(tmp_path, model=toy_cells(candidate_operators=operators), alignment="none", max_steps=25)
    trainer.sampler.next = lambda: dead
    trainer._begin_search = lambda: None
    trainer.train()
    assert trainer.architecture == dead
    assert trainer.operator_weights(dead) == [[]] * 6
    assert not trainer.health.warnings


def test_flops_are_those_of_the_child(tmp_path):
    trainer = cell_trainer(tmp_path)
    trainer.architecture = SECOND
    batch = items(6)
    assert trainer.floating_point_ops(batch) == 18 * count_cell_flops(trainer.model.config, SECOND, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alignment_every_n_layers": 4}, "alignment_every_n_layers is 4 but there are 3 cells"),
        ({"alignment_batch_fraction": 0.5}, "a part of a batch has other batch-norm statistics"),
        ({"anchor_challenger": "block"}, "anchor_challenger is .block., but the cells of a child are identical"),
        ({"max_params": 1000}, "max_params is 1000, but budgets are not supported for cells"),
        ({"num_substitutions": 7}, "num_substitutions is 7; choose 1 to 6"),
        ({"num_substitutions_from": 7}, "num_substitutions_from is 7; choose 1 to 6"),
    ],
)
def test_what_does_not_fit_cells_is_refused(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        cell_trainer(tmp_path, **arguments)


def test_one_child_is_no_super_net(tmp_path):
    model: CellSupernet = toy_cells(candidate_operators=[[OPERATORS[1]]] * 6)
    with pytest.raises(ValueError, match="each edge has only one operator; a super-net needs an edge with several"):
        cell_trainer(tmp_path, model=model)
