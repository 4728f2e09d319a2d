"""Calibration: gradients and steps of each operator alone, memory of one at a time, and errors as numpy has them."""

import weakref
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from toy_compression import CHAIN, real, toy_batches, toy_supernet, toy_teacher

from modeling_magic import MagicModel
from training.compression.calibration import add_gradients, calibrate, local_errors


# With padding, and without a mask.
PADDED, WHOLE = toy_batches([9, 4, 2, 7], [12, 12])
PLACES = [(0, "MHA2x16"), (0, "CONV3"), (1, "FFNx8"), (3, "FFNx32"), (2, "MHA1x8")]


@pytest.fixture(scope="module")
def teacher() -> MagicModel:
    return toy_teacher()


@pytest.fixture
def supernet(teacher) -> MagicModel:
    return toy_supernet(teacher)


def operator_at(supernet: Any, place: tuple[int, str]) -> Any:
    return supernet.encoder.layer[place[0]].operators[place[1]]


def states_of(teacher: MagicModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    with torch.no_grad():
        return teacher(**batch, output_hidden_states=True).hidden_states


def output_alone(operator: Any, states: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """What an operator makes of each sequence on its own, without padding, end to end."""
    lengths = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).sum(dim=1).tolist()
    return torch.cat([operator(states[row : row + 1, :length])[0][0] for row, length in enumerate(lengths)])


def loss_alone(operator: Any, teacher: MagicModel, layer: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    states = states_of(teacher, batch)
    target = real(states[layer + 1], batch)
    spread = ((target - target.mean(axis=0)) ** 2).mean()
    output = output_alone(operator, states[layer], batch)
    return (output - torch.tensor(target).float()).square().mean() / spread


def bf16():
    return torch.autocast("cpu", torch.bfloat16)


# ---- Gradients and steps ----


@pytest.mark.parametrize("batch", [PADDED, WHOLE])
def test_gradients_are_those_of_each_operator_alone(teacher, supernet, batch):
    add_gradients(supernet, teacher, PLACES, batch, nullcontext)
    for place in PLACES:
        operator = operator_at(supernet, place)
        parameters = list(operator.parameters())
        found = [parameter.grad for parameter in parameters]
        expected = torch.autograd.grad(loss_alone(operator, teacher, place[0], batch), parameters)
        torch.testing.assert_close(found, list(expected), rtol=1e-3, atol=1e-6)
    trained = {parameter for place in PLACES for parameter in operator_at(supernet, place).parameters()}
    assert all(parameter.grad is None for parameter in supernet.parameters() if parameter not in trained)
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_gradients_add_up_over_batches(teacher, supernet):
    parameter = operator_at(supernet, PLACES[0]).query.weight
    alone = []
    for batch in (PADDED, WHOLE):
        supernet.zero_grad()
        add_gradients(supernet, teacher, PLACES, batch, nullcontext)
        alone.append(parameter.grad.clone())
    add_gradients(supernet, teacher, PLACES, PADDED, nullcontext)
    torch.testing.assert_close(parameter.grad, sum(alone))


def test_a_mask_of_ones_is_no_mask(teacher, supernet):
    masked = {**WHOLE, "attention_mask": torch.ones_like(WHOLE["input_ids"])}
    gradients = []
    for batch in (WHOLE, masked):
        supernet.zero_grad()
        add_gradients(supernet, teacher, PLACES, batch, nullcontext)
        gradients.append([parameter.grad for parameter in supernet.parameters() if parameter.grad is not None])
    torch.testing.assert_close(*gradients)


class Kept:
    """How many bytes autograd keeps, and the most it has kept at a time."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor: torch.Tensor) -> Any:
        box = _Box(tensor)
        self.now += tensor.nbytes
        self.most = max(self.most, self.now)
        weakref.finalize(box, self._free, tensor.nbytes)
        return box

    def _free(self, number: int) -> None:
        self.now -= number


class _Box:
    def __init__(self, tensor: torch.Tensor):
        self.tensor = tensor


def most_kept(supernet: MagicModel, teacher: MagicModel, places: list[tuple[int, str]]) -> int:
    kept = Kept()
    with torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda box: box.tensor):
        add_gradients(supernet, teacher, places, WHOLE, nullcontext)
    assert kept.now == 0
    return kept.most


def test_the_activations_of_one_operator_are_kept_at_a_time(teacher, supernet):
    alone = [most_kept(supernet, teacher, [place]) for place in PLACES]
    assert min(alone) > 0
    assert most_kept(supernet, teacher, PLACES) == max(alone)


@pytest.mark.parametrize("num_steps", [1, 3])
def test_steps_are_those_of_adamw_with_a_linear_decay(teacher, supernet, num_steps):
    batches = [PADDED, WHOLE, PADDED, WHOLE]
    place = PLACES[2]
    reference = operator_at(toy_supernet(teacher), place)
    optimizer = torch.optim.AdamW(reference.parameters(), lr=1.0, weight_decay=0.0)
    for step, batch in enumerate(batches[:num_steps]):
        optimizer.param_groups[0]["lr"] = 0.01 * (num_steps - step) / num_steps
        optimizer.zero_grad()
        loss_alone(reference, teacher, place[0], batch).backward()
        optimizer.step()
    calibrate(supernet, teacher, PLACES, batches, num_steps, 0.01, nullcontext)
    torch.testing.assert_close(operator_at(supernet, place).state_dict(), reference.state_dict(), rtol=1e-3, atol=1e-4)


def test_what_is_calibrated_changes_and_nothing_else(teacher, supernet):
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    errors = local_errors(supernet, teacher, [PADDED, WHOLE], nullcontext)
    calibrate(supernet, teacher, PLACES, [PADDED, WHOLE] * 10, 20, 0.01, nullcontext)
    prefixes = tuple(f"encoder.layer.{layer}.operators.{name}." for layer, name in PLACES)
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(tensor, before[name]) is not name.startswith(prefixes), name
    after = local_errors(supernet, teacher, [PADDED, WHOLE], nullcontext)
    for layer, name in PLACES:
        assert after[layer][name] < 0.8 * errors[layer][name]
    assert all(parameter.grad is None for parameter in supernet.parameters())


@pytest.mark.parametrize(("places", "num_steps"), [(PLACES, 0), ([], 5)])
def test_without_steps_or_operators_no_text_is_read(teacher, supernet, places, num_steps):
    calibrate(supernet, teacher, places, iter(()), num_steps, 0.01, nullcontext)


# ---- Errors ----


def test_errors_are_distances_to_the_teachers_states_over_their_spread(teacher, supernet):
    batches = [PADDED, WHOLE]
    states = [
        np.concatenate([real(layer, batch) for layer, batch in zip(pair, batches, strict=True)])
        for pair in zip(*(states_of(teacher, batch) for batch in batches), strict=True)
    ]
    found = local_errors(supernet, teacher, batches, nullcontext)
    assert [tuple(layer) for layer in found] == [tuple(names) for names in supernet.config.candidate_operators]
    for layer, of_layer in enumerate(found):
        target = states[layer + 1]
        spread = ((target - target.mean(axis=0)) ** 2).sum()
        assert of_layer[CHAIN[layer]] == 0
        assert of_layer["SKIP"] == pytest.approx(((states[layer] - target) ** 2).sum() / spread, rel=1e-5)
        for name in set(of_layer) - {"SKIP", CHAIN[layer]}:
            operator = operator_at(supernet, (layer, name))
            with torch.no_grad():
                outputs = [output_alone(operator, states_of(teacher, batch)[layer], batch) for batch in batches]
            output = torch.cat(outputs).double().numpy()
            assert of_layer[name] == pytest.approx(((output - target) ** 2).sum() / spread, rel=1e-4)


def test_errors_do_not_depend_on_how_the_text_is_cut_into_batches(teacher, supernet):
    rows = [{name: tensor[row : row + 1] for name, tensor in PADDED.items()} for row in range(4)]
    whole, apart = (local_errors(supernet, teacher, batches, nullcontext) for batches in ([PADDED], rows))
    for one, other in zip(whole, apart, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-9)


def test_the_mean_of_the_states_has_the_error_one(teacher, supernet):
    operator = operator_at(supernet, (1, "FFNx8"))
    target = np.concatenate([real(states_of(teacher, batch)[2], batch) for batch in (PADDED, WHOLE)])
    with torch.no_grad():
        operator.LayerNorm.weight.zero_()
        operator.LayerNorm.bias.copy_(torch.tensor(target.mean(axis=0)))
    found = local_errors(supernet, teacher, [PADDED, WHOLE], nullcontext)
    assert found[1]["FFNx8"] == pytest.approx(1, rel=1e-5)


def test_errors_of_half_precision_are_taken_in_single(teacher, supernet):
    exact = local_errors(supernet, teacher, [PADDED], nullcontext)
    found = local_errors(supernet, teacher, [PADDED], bf16)
    for layer, of_layer in enumerate(found):
        assert of_layer[CHAIN[layer]] == 0
        assert of_layer == pytest.approx(exact[layer], rel=0.05, abs=1e-3)
    add_gradients(supernet, teacher, PLACES, PADDED, bf16)
    weight = operator_at(supernet, PLACES[0]).dense.weight
    half = weight.grad.clone()
    assert half.dtype == torch.float32
    supernet.zero_grad()
    add_gradients(supernet, teacher, PLACES, PADDED, nullcontext)
    assert 0 < (half - weight.grad).norm() < 0.05 * weight.grad.norm()
