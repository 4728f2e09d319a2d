"""Gradients of an operator that cells share, against autograd on each child alone."""

import torch
from toy_cells import toy_batch, toy_cells

from training.cells.cell_interference import SHARED_EDGE, interference_curve, shared_gradients
from training.cells.cell_space import CONV1, CONV3, SKIP, cell_space, used_operators


CHILDREN = [(SKIP, CONV1, SKIP, CONV3, SKIP, SKIP), (CONV3, CONV1, SKIP, CONV3, SKIP, CONV3)]


def test_gradients_are_those_of_each_child():
    model, batch = toy_cells(), toy_batch()
    rows = shared_gradients(model, batch, CHILDREN, CONV3)
    assert all(parameter.grad is None for parameter in model.parameters())
    weights = [cell.edges[SHARED_EDGE][CONV3][1].weight for cell in model.cells]
    for row, child in zip(rows, CHILDREN, strict=True):
        model.zero_grad()
        model(**batch, architecture=child).loss.backward()
        torch.testing.assert_close(row, torch.cat([weight.grad.flatten() for weight in weights]), rtol=1e-4, atol=1e-6)


def test_children_of_one_function_are_not_compared(monkeypatch):
    """Edges that lead nowhere make children the same function, whose cosine would always be 1."""
    seen = []

    def recorded(model, batch, children, operator=CONV3):
        seen.append(children)
        return torch.eye(len(children))

    monkeypatch.setattr("training.cells.cell_interference.shared_gradients", recorded)
    interference_curve(toy_cells(), [toy_batch()], cell_space(), num_repeats=40)
    assert len(seen) == 40 * 5
    assert all(len(set(map(used_operators, children))) == len(children) for children in seen)


def test_a_curve_has_a_cosine_for_each_number_of_edges():
    model, batches = toy_cells(), [toy_batch(6), toy_batch(4)]
    curve = interference_curve(model, batches, cell_space(), num_repeats=3)
    assert list(curve) == [1, 2, 3, 4, 5]
    assert all(-1 <= estimate.mean <= 1 for estimate in curve.values())
    assert interference_curve(model, batches, cell_space(), num_repeats=3) == curve
