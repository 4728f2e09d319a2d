"""The super-net of cells against a plain implementation, and what a child of it costs."""

import random

import pytest
import torch
from torch.nn.functional import avg_pool2d, batch_norm, conv2d, cross_entropy
from torch.utils.flop_counter import FlopCounterMode
from toy_cells import toy_batch, toy_cells

from training.cells.cell_model import CellConfig, CellSupernet, count_cell_flops, count_cell_parameters
from training.cells.cell_space import CONV1, CONV3, EDGES, NONE, OPERATORS, POOL, SKIP, cell_space


MIXED = (CONV3, SKIP, CONV1, POOL, CONV3, NONE)


def by_hand(model: CellSupernet, images: torch.Tensor, child) -> torch.Tensor:
    """The logits of a child, from the weights alone."""
    weights = dict(model.named_parameters())

    def norm(x, name=None):
        affine = (weights[f"{name}.weight"], weights[f"{name}.bias"]) if name else (None, None)
        return batch_norm(x, None, None, *affine, training=True)

    def edge(x, cell, number, operator):
        if operator in (CONV1, CONV3):
            weight = weights[f"cells.{cell}.edges.{number}.{operator}.1.weight"]
            return norm(conv2d(x.relu(), weight, padding=weight.shape[-1] // 2))
        if operator == POOL:
            return avg_pool2d(x, 3, 1, 1, count_include_pad=False)
        return x if operator == SKIP else 0 * x

    x = norm(conv2d(images, weights["stem.0.weight"], padding=1), "stem.1")
    per_stage = model.config.cells_per_stage
    for cell in range(3 * per_stage):
        if cell and cell % per_stage == 0:
            block = f"reductions.{cell // per_stage - 1}"
            first = norm(conv2d(x.relu(), weights[f"{block}.first.1.weight"], stride=2, padding=1), f"{block}.first.2")
            second = norm(conv2d(first.relu(), weights[f"{block}.second.1.weight"], padding=1), f"{block}.second.2")
            x = second + conv2d(avg_pool2d(x, 2), weights[f"{block}.shortcut.1.weight"])
        nodes = [x, 0, 0, 0]
        for number, ((source, target), operator) in enumerate(zip(EDGES, child, strict=True)):
            nodes[target] = nodes[target] + (
                edge(nodes[source], cell, number, operator) if torch.is_tensor(nodes[source]) else 0
            )
        x = nodes[3]
    pooled = norm(x, "norm").relu().mean(dim=(2, 3))
    return pooled @ weights["classifier.weight"].T + weights["classifier.bias"]


@pytest.mark.parametrize("cells_per_stage", [1, 2])
def test_children_are_what_the_weights_say(cells_per_stage):
    model, batch, rng = toy_cells(cells_per_stage), toy_batch(), random.Random(0)
    for child in [MIXED, (NONE,) * 6, (SKIP,) * 6, *(cell_space().sample(rng) for _ in range(8))]:
        # Batch norm takes the batch's statistics in both modes.
        for mode in (True, False):
            output = model.train(mode)(**batch, architecture=child)
            expected = by_hand(model, batch["images"], child)
            torch.testing.assert_close(output.logits, expected, rtol=1e-4, atol=1e-5)
            assert output.loss.item() == pytest.approx(cross_entropy(expected, batch["labels"]).item(), rel=1e-4)


def test_a_child_of_its_own_gives_the_same():
    model, batch = toy_cells(), toy_batch()
    child = model.extract_child(MIXED)
    assert not child.config.is_supernet
    assert torch.equal(child(batch["images"]).logits, model(batch["images"], architecture=MIXED).logits)
    assert sum(p.numel() for p in child.parameters()) == count_cell_parameters(model.config, MIXED)


def test_the_operators_of_the_child_alone_have_gradients():
    model = toy_cells()
    model(**toy_batch(), architecture=MIXED).loss.backward()
    # Nothing leaves node 2, since the edge from it to the output is none.
    running = {(edge, operator) for edge, operator in enumerate(MIXED) if operator in (CONV1, CONV3)} - {(2, CONV1)}
    for edge in range(6):
        for operator in (CONV1, CONV3):
            has_gradient = [
                parameter.grad is not None
                for cell in model.cells
                for parameter in cell.edges[edge][operator].parameters()
            ]
            assert set(has_gradient) == {(edge, operator) in running}


def test_a_path_has_the_gradient_of_the_child_alone():
    model, batch = toy_cells(), toy_batch()
    child = model.extract_child(MIXED)
    child(**batch).loss.backward()
    model(**batch, architecture=MIXED).loss.backward()
    own = dict(model.named_parameters())
    for name, parameter in child.named_parameters():
        if parameter.grad is not None:
            assert torch.equal(parameter.grad, own[name].grad), name


def test_states_are_those_that_are_asked_for():
    model, batch = toy_cells(2), toy_batch()
    output = model(**batch, architecture=MIXED, output_hidden_states=[0, 3, 6])
    assert [None if state is None else tuple(state.shape[1:]) for state in output.hidden_states] == [
        (4, 8, 8), None, None, (8, 4, 4), None, None, (16, 2, 2),
    ]  # fmt: skip
    assert torch.equal(model.classify(output.hidden_states[6]), output.logits)
    (state,) = model.states(batch["images"], MIXED, [3])
    assert torch.equal(state, output.hidden_states[3])


@pytest.mark.parametrize("child", [MIXED, (NONE,) * 6, (CONV3,) * 6, (CONV1, NONE, SKIP, NONE, CONV3, POOL)])
def test_costs_are_those_of_torch(child):
    config = CellConfig(4, 2, 10, cell_space().to_json())
    torch.manual_seed(0)
    model = CellSupernet(config).extract_child(child)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(1, 3, 16, 16))
    # An operator whose output leads nowhere is run as well.
    assert count_cell_flops(config, child, 16) == counter.get_total_flops()
    assert count_cell_parameters(config, child) == sum(p.numel() for p in model.parameters())


def test_sizes_are_those_that_the_benchmark_publishes():
    """Of 16 channels and five cells: 1.531546M parameters and 220.11969M multiplications with convolutions alone."""
    config = CellConfig(16, 5)
    # The benchmark's children have weights in the batch norm of each convolution.
    affine = 6 * 5 * 2 * (16 + 32 + 64)
    assert count_cell_parameters(config, (CONV3,) * 6) + affine == 1_531_546
    assert count_cell_flops(config, (CONV3,) * 6) / 2e6 == pytest.approx(220.11969, abs=1e-4)
    assert count_cell_parameters(config, (SKIP,) * 6) == 73_306
    assert count_cell_flops(config, (SKIP,) * 6) / 2e6 == pytest.approx(7.78304, abs=1e-4)


def test_a_saved_super_net_loads(tmp_path):
    model, batch = toy_cells(2), toy_batch()
    model.save_pretrained(tmp_path)
    again = CellSupernet.from_pretrained(tmp_path)
    assert again.config.candidate_operators == [list(OPERATORS)] * 6
    assert torch.equal(
        again(batch["images"], architecture=MIXED).logits, model(batch["images"], architecture=MIXED).logits
    )


def test_what_cannot_be_run_is_refused():
    model, images = toy_cells(), toy_batch()["images"]
    with pytest.raises(ValueError, match="the model is a super-net; give the child to run"):
        model(images)
    with pytest.raises(ValueError, match="layer 0 has no operator 'FFN'"):
        model(images, architecture=("FFN",) * 6)
    with pytest.raises(ValueError, match="candidate_operators has 2 edges; a cell has 6"):
        CellConfig(candidate_operators=[[SKIP], [NONE]])
    with pytest.raises(ValueError, match="channels is 0; it must be at least 1"):
        CellConfig(channels=0)
