"""Children that share edges of the first cell are validated as each of them is alone."""

import random

import pytest
import torch
from torch.nn.functional import cross_entropy
from toy_cells import toy_batch, toy_cells

from training.cells.cell_runner import CellRunner
from training.cells.cell_space import CONV3, NONE, SKIP, cell_space
from training.supernet.evaluation import Evaluator, count_layer_evaluations, evaluate_child, rank_children


@pytest.mark.parametrize("cells_per_stage", [1, 2])
def test_shared_edges_change_nothing(cells_per_stage):
    model, batches = toy_cells(cells_per_stage), [toy_batch(6), toy_batch(4)]
    children = cell_space((NONE, SKIP, CONV3)).sample_distinct(40, random.Random(0))
    evaluate = Evaluator(model, batches, runner=CellRunner(model))
    for ranked in evaluate(children):
        logits = [model(batch["images"], architecture=ranked.architecture).logits for batch in batches]
        losses = [
            cross_entropy(own, batch["labels"], reduction="sum") for own, batch in zip(logits, batches, strict=True)
        ]
        right = [(own.argmax(1) == batch["labels"]).sum() for own, batch in zip(logits, batches, strict=True)]
        assert ranked.val_loss == pytest.approx(sum(losses).item() / 10, rel=1e-5)
        assert ranked.val_accuracy == sum(right).item() / 10
        alone = evaluate_child(model, batches, ranked.architecture, runner=CellRunner(model))
        assert alone == pytest.approx((ranked.val_loss, ranked.val_accuracy), rel=1e-5)
    assert evaluate.num_layer_evaluations == count_layer_evaluations(children) < 6 * len(children)


def test_without_memory_for_states_the_losses_are_the_same():
    model, batches = toy_cells(), [toy_batch()]
    children = cell_space().sample_distinct(12, random.Random(1))
    whole, none = (
        Evaluator(model, batches, runner=CellRunner(model), max_kept_bytes=kept)(children) for kept in (2**30, 0)
    )
    assert whole == none
    assert rank_children(model, batches, children, runner=CellRunner(model)) == sorted(
        whole, key=lambda c: (c.val_loss, c.architecture)
    )


def test_memory_is_counted():
    model = toy_cells()
    assert CellRunner(model).state_bytes([toy_batch(6)]) == 4 * 6 * 8 * 8 * 4 * 4


def test_an_extracted_child_is_validated_by_itself():
    model, batch = toy_cells(), toy_batch()
    child = model.extract_child((CONV3,) * 6)
    with torch.no_grad():
        expected = child(**batch).loss.item()
    assert evaluate_child(child, [batch], runner=CellRunner(child))[0] == pytest.approx(expected, rel=1e-5)
