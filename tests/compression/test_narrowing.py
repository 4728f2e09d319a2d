"""Narrower operators against numpy: moments, order of parts, output maps; and what an exact start is."""

from typing import Any

import numpy as np
import pytest
import torch
from toy import toy_config
from toy_compression import CHAIN, real, toy_batches, toy_supernet, toy_teacher

from modeling_magic import MagicModel
from modeling_magic.modeling_magic import MagicAttention, MagicConvolution, MagicFeedForward
from training.compression.narrowing import (
    InnerMoments,
    fit_output,
    inner_moments,
    narrow_operator,
    rank_parts,
    start_near_identity,
    start_operators,
)


# More tokens than neurons, and padding in the first two batches.
BATCHES = toy_batches([9, 4, 2, 7], [1, 12, 3], [20, 20, 20, 20])


def operator_of(model: Any, layer: int) -> Any:
    return next(iter(model.encoder.layer[layer].operators.values()))


def inner_states(model: MagicModel, layer: int, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """z of a layer as the papers have it, (batch, seq_len, inner), from the hidden states below it."""
    with torch.no_grad():
        below = model(**batch, output_hidden_states=True).hidden_states[layer]
        operator = operator_of(model, layer)
        if isinstance(operator, MagicFeedForward):
            return torch.nn.functional.gelu(below @ operator.intermediate.weight.T + operator.intermediate.bias)
        heads = []
        for head in range(operator.query.out_features // operator.head_size):
            rows = slice(head * operator.head_size, (head + 1) * operator.head_size)
            query, key, value = (
                below @ part.weight[rows].T + part.bias[rows]
                for part in (operator.query, operator.key, operator.value)
            )
            scores = query @ key.transpose(1, 2) / operator.head_size**0.5
            if "attention_mask" in batch:
                scores = scores.masked_fill(batch["attention_mask"].unsqueeze(1) == 0, -torch.inf)
            heads.append(scores.softmax(dim=-1) @ value)
        return torch.cat(heads, dim=-1)


def states_of(model: MagicModel, layer: int, batches=BATCHES) -> np.ndarray:
    """z of all real tokens, (tokens, inner)."""
    return np.concatenate([real(inner_states(model, layer, batch), batch) for batch in batches])


def moments_of(states: np.ndarray) -> InnerMoments:
    return InnerMoments(torch.tensor(states.mean(axis=0)), torch.tensor(np.cov(states.T, bias=True)))


@pytest.fixture(scope="module")
def teacher() -> MagicModel:
    return toy_teacher()


@pytest.fixture(scope="module")
def moments(teacher) -> list[InnerMoments]:
    return inner_moments(teacher, BATCHES)


# ---- Moments ----


def assert_moments_are(found: InnerMoments, states: np.ndarray) -> None:
    np.testing.assert_allclose(found.mean, states.mean(axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.covariance, np.cov(states.T, bias=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.power, (states**2).mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layer", range(4))
def test_moments_are_those_of_the_real_tokens(teacher, moments, layer):
    assert len(moments) == 4
    assert_moments_are(moments[layer], states_of(teacher, layer))


def test_a_wide_state_is_multiplied_strip_by_strip():
    """Wider than two strips, and no multiple of one."""
    model = toy_teacher(("FFNx600",))
    (found,) = inner_moments(model, BATCHES)
    assert_moments_are(found, states_of(model, 0))


@pytest.mark.parametrize("mean", [300.0, 3e4])
def test_a_variance_far_below_the_square_of_the_mean_is_exact(mean):
    """As after a training so short that all tokens look alike: the difference of the two would be only rounding."""
    model = toy_teacher(("MHA4",))
    operator = operator_of(model, 0)
    with torch.no_grad():
        operator.value.bias.fill_(mean)
    (found,) = inner_moments(model, BATCHES)
    # The states are rounded as well, to a step of 2e-3 at 3e4.
    with torch.no_grad():
        operator.value.bias.zero_()
    expected = np.cov(states_of(model, 0).T, bias=True)
    np.testing.assert_allclose(found.covariance, expected, rtol=0.02, atol=0.02 * expected.max())
    assert sorted(rank_parts(operator, found)) == [0, 1, 2, 3]


def test_moments_of_packed_batches_are_the_same(teacher, moments):
    teacher.config.unpad_inputs = True
    try:
        packed = inner_moments(teacher, BATCHES)
    finally:
        teacher.config.unpad_inputs = False
    for one, other in zip(packed, moments, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_no_hook_stays_on_the_checkpoint(teacher, moments):
    assert not any(module._forward_pre_hooks for module in teacher.modules())


# ---- The output map ----


def least_squares(states: np.ndarray, weight: np.ndarray, bias: np.ndarray, kept: list[int], ridge: float = 0.0):
    """Weight and bias with which the kept part comes nearest to the old output, and the squared error on the text."""
    design = np.concatenate([states[:, kept], np.ones((len(states), 1))], axis=1)
    target = states @ weight.T + bias
    pull = np.sqrt(len(states) * ridge) * np.eye(len(kept), len(kept) + 1)
    solution = np.linalg.lstsq(
        np.concatenate([design, pull]), np.concatenate([target, pull[:, :-1] @ weight[:, kept].T]), rcond=None
    )[0]
    return solution[:-1].T, solution[-1], float(((design @ solution - target) ** 2).sum())


KEPT = {0: [8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7], 1: [40, 3, 17, 9, 63, 21]}


@pytest.mark.parametrize("layer", KEPT)
def test_a_fitted_map_is_that_of_least_squares(teacher, layer):
    states, dense, kept = states_of(teacher, layer), operator_of(teacher, layer).dense, KEPT[layer]
    old_weight, old_bias = dense.weight.detach().double().numpy(), dense.bias.detach().double().numpy()
    moments = moments_of(states)
    weight, bias = fit_output(dense.weight.detach(), dense.bias.detach(), moments, torch.tensor(kept))
    expected_weight, expected_bias, _ = least_squares(states, old_weight, old_bias, kept, moments.ridge)
    np.testing.assert_allclose(weight, expected_weight, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(bias, expected_bias, rtol=1e-6, atol=1e-8)

    def error(weight: np.ndarray, bias: np.ndarray) -> float:
        return float(((states[:, kept] @ weight.T + bias - states @ old_weight.T - old_bias) ** 2).sum())

    least = least_squares(states, old_weight, old_bias, kept)[2]
    # The ridge is slight.
    assert least <= error(weight.numpy(), bias.numpy()) <= 1.001 * least
    assert error(weight.numpy(), bias.numpy()) < 0.9 * error(old_weight[:, kept], old_bias)


def test_with_all_of_the_state_the_old_map_is_returned(teacher, moments):
    for layer, of_layer in enumerate(moments):
        dense = operator_of(teacher, layer).dense
        order = torch.randperm(dense.in_features, generator=torch.Generator().manual_seed(0))
        weight, bias = fit_output(dense.weight.detach(), dense.bias.detach(), of_layer, order)
        torch.testing.assert_close(weight.float(), dense.weight[:, order], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(bias.float(), dense.bias, rtol=1e-5, atol=1e-6)


def test_what_never_changes_goes_into_the_bias():
    states = np.zeros((7, 3))
    states[:, 1], states[:, 2] = 2.0, np.arange(7)
    weight, bias = torch.tensor([[5.0, 3.0, 1.0]]), torch.tensor([4.0])
    new_weight, new_bias = fit_output(weight, bias, moments_of(states), torch.tensor([0, 2]))
    torch.testing.assert_close(new_weight, torch.tensor([[5.0, 1.0]], dtype=torch.double))
    assert float(new_bias) == pytest.approx(4 + 3 * 2)
    still = InnerMoments(torch.ones(3), torch.zeros(3, 3))
    new_weight, new_bias = fit_output(weight, bias, still, torch.tensor([0, 2]))
    torch.testing.assert_close(new_weight, torch.tensor([[5.0, 1.0]], dtype=torch.double))
    assert float(new_bias) == pytest.approx(7)


# ---- The order of parts ----


def attention(num_heads: int, head_size: int, dense: torch.Tensor) -> MagicAttention:
    operator = MagicAttention(
        toy_config(hidden_size=len(dense), candidate_operators=[["FFN"]]), num_heads, num_heads * head_size
    )
    with torch.no_grad():
        operator.dense.weight.copy_(dense)
    return operator


@pytest.mark.parametrize("layer", [0, 2])
def test_heads_are_taken_one_by_one_each_the_best_beside_those_before(teacher, layer):
    states, operator = states_of(teacher, layer), operator_of(teacher, layer)
    weight, bias = (parameter.detach().double().numpy() for parameter in (operator.dense.weight, operator.dense.bias))
    expected: list[int] = []
    while len(expected) < 4:
        errors = {
            head: least_squares(states, weight, bias, [8 * part + i for part in (*expected, head) for i in range(8)])[
                2
            ]
            for head in set(range(4)) - set(expected)
        }
        expected.append(min(errors, key=errors.__getitem__))
    assert rank_parts(operator, moments_of(states)) == expected


def test_a_head_that_says_what_another_says_comes_last():
    """Heads 0 and 1 have the largest weights and the same state; of the others 3 is louder than 2, and 4 is mute."""
    rng = np.random.default_rng(0)
    states = rng.standard_normal((500, 10))
    states[:, 2:4] = states[:, 0:2] + 1e-3 * rng.standard_normal((500, 2))
    dense = torch.eye(10) * torch.tensor([4.0, 4, 4, 4, 1, 1, 2, 2, 0, 0])
    dense[0:2, 2:4] = 4 * torch.eye(2)
    operator = attention(5, 2, dense)
    found = rank_parts(operator, moments_of(states))
    assert found[1:3] == [3, 2]
    assert {found[0], found[3]} == {0, 1}
    assert found[4] == 4


def test_a_quiet_head_with_large_weights_is_of_little_importance():
    states = np.random.default_rng(0).standard_normal((500, 6)) * [0.01, 0.01, 1, 1, 3, 3]
    operator = attention(3, 2, torch.eye(6) * torch.tensor([9.0, 9, 1, 1, 1, 1]))
    assert rank_parts(operator, moments_of(states)) == [2, 1, 0]


def test_neurons_are_taken_by_their_mean_square_and_the_norm_of_their_column(teacher, moments):
    states, operator = states_of(teacher, 1), operator_of(teacher, 1)
    importance = (states**2).mean(axis=0) * (operator.dense.weight.detach().double().numpy() ** 2).sum(axis=0)
    assert rank_parts(operator, moments[1]) == np.argsort(-importance).tolist()


@pytest.mark.parametrize("layer", [0, 1])
def test_by_norm_the_weights_alone_count(teacher, moments, layer):
    operator = operator_of(teacher, layer)
    into = (operator.intermediate if layer else operator.value).weight.detach().double().numpy()
    out = operator.dense.weight.detach().double().numpy()
    of_components = [(into[i] @ into[i]) * (out[:, i] @ out[:, i]) for i in range(len(into))]
    size = 1 if layer else 8
    importance = np.array(of_components).reshape(-1, size).sum(axis=1)
    assert rank_parts(operator, moments[layer], "norm") == np.argsort(-importance).tolist()
    assert rank_parts(operator, moments[layer], "norm") != rank_parts(operator, moments[layer])


def test_an_unknown_importance_is_refused(teacher, moments):
    with pytest.raises(ValueError, match=r"\Aimportance is 'size'; choose one of: output, norm\Z"):
        rank_parts(operator_of(teacher, 0), moments[0], "size")


def test_ranking_and_fitting_leave_moments_as_they_are(teacher):
    found = moments_of(states_of(teacher, 0))
    before = found.covariance.clone()
    dense = operator_of(teacher, 0).dense
    rank_parts(operator_of(teacher, 0), found)
    fit_output(dense.weight.detach(), dense.bias.detach(), found, torch.arange(8))
    assert torch.equal(found.covariance, before)


# ---- Operators ----


def narrow_to(operator: Any, num_parts: int, ranked: list[int], moments: InnerMoments | None) -> Any:
    config = toy_config(0.0)
    is_attention = isinstance(operator, MagicAttention)
    target = MagicAttention(config, num_parts, 8 * num_parts) if is_attention else MagicFeedForward(config, num_parts)
    narrow_operator(operator, target, ranked, moments)
    return target.eval()


def run(operator: Any) -> torch.Tensor:
    states = torch.randn(3, 5, 32, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return operator(states)[0]


@pytest.mark.parametrize(("layer", "num_parts"), [(0, 1), (0, 2), (0, 3), (1, 1), (1, 20)])
def test_a_copied_part_is_the_operator_whose_other_parts_are_silent(teacher, layer, num_parts):
    operator = operator_of(teacher, layer)
    ranked = [2, 0, 3, 1] if layer == 0 else torch.randperm(64).tolist()
    narrow = narrow_to(operator, num_parts, ranked, None)
    weight = operator.dense.weight.detach().clone()
    size = 8 if layer == 0 else 1
    try:
        for part in ranked[num_parts:]:
            operator.dense.weight.data[:, part * size : (part + 1) * size] = 0
        torch.testing.assert_close(run(narrow), run(operator), rtol=1e-4, atol=1e-5)
    finally:
        operator.dense.weight.data.copy_(weight)


@pytest.mark.parametrize("layer", [0, 1])
def test_narrow_operators_are_parts_of_wider_ones(teacher, moments, layer):
    operator = operator_of(teacher, layer)
    ranked = rank_parts(operator, moments[layer])
    sizes = (1, 2, 3, 4) if layer == 0 else (8, 16, 32, 64)
    rows = []
    for num_parts in sizes:
        narrow = narrow_to(operator, num_parts, ranked, moments[layer])
        into = narrow.intermediate if layer else narrow.value
        rows.append({tuple(row) for row in into.weight.tolist()})
        assert len(rows[-1]) == num_parts * (1 if layer else 8)
    assert rows[0] < rows[1] < rows[2] < rows[3]


@pytest.mark.parametrize("layer", [0, 1])
def test_a_narrow_operator_has_the_fitted_map_of_its_parts(teacher, moments, layer):
    operator = operator_of(teacher, layer)
    ranked = rank_parts(operator, moments[layer])[:2]
    narrow = narrow_to(operator, 2, ranked, moments[layer])
    size = 1 if layer else 8
    kept = torch.tensor([part * size + i for part in sorted(ranked) for i in range(size)])
    weight, bias = fit_output(operator.dense.weight.detach(), operator.dense.bias.detach(), moments[layer], kept)
    torch.testing.assert_close(narrow.dense.weight.detach(), weight.float())
    torch.testing.assert_close(narrow.dense.bias.detach(), bias.float())
    into = narrow.intermediate if layer else narrow.value
    own = operator.intermediate if layer else operator.value
    assert torch.equal(into.weight, own.weight[kept])


@pytest.mark.parametrize("fits", [False, True])
@pytest.mark.parametrize(("layer", "num_parts"), [(0, 4), (1, 64)])
def test_an_operator_of_full_width_does_what_the_old_one_does(teacher, moments, layer, num_parts, fits):
    operator = operator_of(teacher, layer)
    ranked = rank_parts(operator, moments[layer])
    assert ranked != sorted(ranked)
    narrow = narrow_to(operator, num_parts, ranked, moments[layer] if fits else None)
    torch.testing.assert_close(run(narrow), run(operator), rtol=1e-4, atol=1e-5)


def test_a_convolution_begins_as_the_norm_of_what_it_stands_in_for(teacher):
    torch.manual_seed(0)
    convolution = MagicConvolution(toy_config(0.0), 3, 32).eval()
    start_near_identity(convolution, operator_of(teacher, 0))
    states = torch.randn(2, 6, 32)
    with torch.no_grad():
        norm = operator_of(teacher, 0).LayerNorm
        torch.testing.assert_close(convolution(states)[0], norm(states))
        # Near the identity on states that come out of such a norm: what is added to them is nothing.
        normed = torch.nn.functional.layer_norm(states, (32,))
        centred = (convolution(normed)[0] - norm.bias) / norm.weight
    torch.testing.assert_close(centred, normed, rtol=1e-3, atol=1e-3)


# ---- All operators ----


def test_every_new_operator_is_started_and_no_other(teacher, moments):
    supernet = toy_supernet(teacher)
    before = {name: tensor.clone() for name, tensor in supernet.state_dict().items()}
    places = start_operators(supernet, teacher, moments)
    assert places == [
        (layer, name)
        for layer in range(4)
        for name in (("MHA2x16", "MHA1x8", "CONV3"), ("FFNx32", "FFNx16", "FFNx8"))[layer % 2]
    ]
    changed = {name for name, tensor in supernet.state_dict().items() if not torch.equal(tensor, before[name])}
    started = {f"encoder.layer.{layer}.operators.{name}." for layer, name in places}
    assert {name[: name.index(".", len("encoder.layer.0.operators.")) + 1] for name in changed} == started
    batch = BATCHES[0]
    with torch.no_grad():
        own = supernet(**batch, architecture=CHAIN).last_hidden_state
        torch.testing.assert_close(own, teacher(**batch).last_hidden_state)


@pytest.mark.parametrize("fits", [False, True])
def test_a_super_net_of_the_checkpoints_widths_starts_exact(teacher, moments, fits):
    candidates = [["MHA4", "MHA4x32", "SKIP"], ["FFN", "FFNx64", "SKIP"]] * 2
    supernet = toy_supernet(teacher, candidates)
    assert start_operators(supernet, teacher, moments, fits_output=fits) == [
        (layer, ("MHA4x32", "FFNx64")[layer % 2]) for layer in range(4)
    ]
    for batch in BATCHES[:2]:
        with torch.no_grad():
            found = supernet(**batch, architecture=("MHA4x32", "FFNx64") * 2).last_hidden_state
            expected = teacher(**batch).last_hidden_state
        np.testing.assert_allclose(real(found, batch), real(expected, batch), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("importance", "fits"), [("output", True), ("norm", False)])
def test_importance_and_output_maps_are_those_that_are_asked_for(teacher, moments, importance, fits):
    supernet = toy_supernet(teacher)
    start_operators(supernet, teacher, moments, importance, fits)
    for layer, name, num_parts in ((2, "MHA2x16", 2), (3, "FFNx16", 16)):
        own = operator_of(teacher, layer)
        ranked = rank_parts(own, moments[layer], importance)
        expected = narrow_to(own, num_parts, ranked, moments[layer] if fits else None)
        operator: Any = supernet.encoder.layer[layer].operators[name]
        torch.testing.assert_close(operator.state_dict(), expected.state_dict())


def test_a_chain_of_convolutions_has_nothing_to_start():
    teacher = toy_teacher(("CONV3", "CONV5"))
    supernet = toy_supernet(teacher, [["CONV3", "SKIP"], ["CONV5", "SKIP"]])
    assert start_operators(supernet, teacher, inner_moments(teacher, BATCHES)) == []
