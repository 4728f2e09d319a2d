"""Gradients of shared operators and their cosines, held to a formula, to torch.autograd and to the trainer's loss."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp
from torch import nn
from toy import collate, toy_config, toy_data, toy_trainer

from modeling_magic import MagicForMaskedLM
from training.analysis.interference import (
    AlignmentTarget,
    ChildFamily,
    Estimate,
    GradientMeter,
    by_kind,
    cosine_matrix,
    layers_that_differ,
    mean_off_diagonal,
    same_and_other_kind,
)
from training.space.search_space import SearchSpace
from training.supernet.anchors import Anchor


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
CHILDREN = [("FFN", operator, "CONV3", "MHA4") for operator in OPERATORS]
ANCHOR = ("CONV5", "MHA4", "FFN", "CONV3")


def batch(start: int = 0, stop: int = 8) -> dict[str, torch.Tensor]:
    return collate(toy_data(stop)[start:])


def padded_batch() -> dict[str, torch.Tensor]:
    inputs = batch()
    mask = torch.ones_like(inputs["input_ids"])
    mask[::2, 8:] = 0
    return {
        "input_ids": inputs["input_ids"] * mask,
        "labels": inputs["labels"].masked_fill(mask == 0, -100),
        "attention_mask": mask,
    }


def operator_of(model: MagicForMaskedLM, layer: int, name: str) -> nn.Module:
    return model.get_submodule(f"magic.encoder.layer.{layer}.operators.{name}")


def gradient_alone(model: MagicForMaskedLM, inputs, child, layer: int) -> torch.Tensor:
    """The gradient of a child's own model, run by itself: nothing is shared, all weights are differentiated."""
    alone = model.extract_child(child).eval()
    alone(**inputs).loss.backward()
    parameters = operator_of(alone, layer, child[layer]).parameters()
    return torch.cat([weight.grad.flatten() for weight in parameters if weight.grad is not None])


# ---- Exactness ----


@pytest.mark.parametrize("inputs", [batch(), padded_batch()], ids=["packed", "padded"])
@pytest.mark.parametrize("layer", range(4))
def test_gradients_are_those_of_each_child_alone(supernet, inputs, layer):
    rng, space = random.Random(layer), SearchSpace.from_config(supernet.config.candidate_operators)
    family = ChildFamily(space, layer, layers_that_differ(space, layer), rng)
    for num_differing in (1, 2, 3):
        children = family.children(num_differing)
        measured = GradientMeter(supernet, [inputs], None).gradients(children, layer)
        for child, gradient, loss in zip(children, measured.gradients, measured.losses, strict=True):
            expected = gradient_alone(supernet, inputs, child, layer)
            assert torch.allclose(gradient, expected, atol=1e-6, rtol=0)
            assert gradient.abs().max() > 1e-4
            assert loss == pytest.approx(supernet(**inputs, architecture=child).loss.item(), abs=1e-5)


def test_dropout_is_off_and_nothing_is_touched(tiny_config):
    torch.manual_seed(0)
    model = MagicForMaskedLM(tiny_config(0.5)).train()
    model.magic.encoder.layer[2].eval()
    frozen = model.lm_head.dense.weight.requires_grad_(False)
    for weight in model.parameters():
        weight.grad = torch.ones_like(weight) if weight.requires_grad else None
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    modes = [module.training for module in model.modules()]
    alignment = AlignmentTarget((ANCHOR,), every_n_layers=2)
    # Two micro-batches, since what is left of the first must not change the second.
    inputs = [batch(), batch(8, 16)]
    first = GradientMeter(model, inputs, alignment).gradients(CHILDREN, 0).gradients
    torch.manual_seed(7)
    with torch.no_grad():
        second = GradientMeter(model, inputs, alignment).gradients(CHILDREN, 0).gradients
    assert torch.equal(first, second)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(weight.grad is None or bool((weight.grad == 1).all()) for weight in model.parameters())
    assert [weight for weight in model.parameters() if not weight.requires_grad] == [frozen]


def test_a_model_is_left_as_it_was_after_an_error(supernet):
    supernet.train()
    operator_of(supernet, 3, "MHA4").dense.weight.data.fill_(float("nan"))
    with pytest.raises(ValueError, match="loss of the child FFN,MHA4,CONV3,MHA4 is nan"):
        GradientMeter(supernet, [batch()]).gradients(CHILDREN, 0)
    assert all(module.training for module in supernet.modules())
    assert all(weight.requires_grad for weight in supernet.parameters())


class Linear(nn.Module):
    """An operator that is a matrix and nothing else."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(size, size) / size**0.5)

    def forward(self, states, *masks, **kwargs):
        return states @ self.weight.T, None


@pytest.mark.parametrize(("layer", "differing"), [(0, 1), (1, 3), (2, 0)])
def test_cosine_of_a_linear_supernet_is_the_formula(tiny_config, layer, differing):
    # With H = W_N ... W_1 H_0 and logits V H, the gradient of W_g is the sum over masked tokens of
    # (W_N ... W_(g+1))^T V^T (softmax - label) times (W_(g-1) ... W_1 H_0)^T.
    torch.manual_seed(3)
    model = MagicForMaskedLM(tiny_config()).eval()
    for own in model.magic.encoder.layer:
        own.operators = nn.ModuleDict({name: Linear(32) for name in OPERATORS})
    model.lm_head = nn.Linear(32, 100, bias=False)
    inputs = batch()
    children = []
    for name in OPERATORS:
        child = ["MHA4"] * 4
        child[differing] = name
        children.append(tuple(child))
    embedded = model.magic.embeddings(inputs["input_ids"]).flatten(0, 1).double()
    labels = inputs["labels"].flatten()
    masked = labels != -100
    factors = []
    with torch.no_grad():
        for child in children:
            weights = [operator_of(model, index, name).weight.double() for index, name in enumerate(child)]
            head = model.lm_head.weight.double()
            below, above = embedded[masked], head
            for weight in weights[:layer]:
                below = below @ weight.T
            for weight in reversed(weights[layer + 1 :]):
                above = above @ weight
            errors = torch.softmax(below @ weights[layer].T @ above.T, dim=-1)
            errors -= nn.functional.one_hot(labels[masked], 100)
            factors.append((errors @ above, below))

    def inner(first, second):
        # <sum_t a_t b_t^T, sum_s c_s d_s^T> = sum_ts (a_t . c_s) (b_t . d_s)
        return ((first[0] @ second[0].T) * (first[1] @ second[1].T)).sum()

    expected = [
        [(inner(first, second) / (inner(first, first) * inner(second, second)).sqrt()).item() for second in factors]
        for first in factors
    ]
    found = cosine_matrix(GradientMeter(model, [inputs]).gradients(children, layer).gradients)
    assert np.allclose(found, expected, atol=1e-5)
    assert mean_off_diagonal(found) < 0.95


# ---- Alignment and accumulation ----


@pytest.mark.parametrize("alignment", ["anchor", "average"])
@pytest.mark.parametrize(
    "inputs", [[batch()], [batch(), batch(8, 24)], [padded_batch()]], ids=["one", "accumulated", "padded"]
)
def test_aligned_gradients_are_those_of_training(tmp_path, alignment, inputs):
    # The loss of Eq. (2) as MagicTrainer computes it, micro-batch by micro-batch.
    trainer = toy_trainer(
        tmp_path, toy_config(0.0), alignment=alignment, alignment_warmup_steps=0, alignment_weight=0.7
    )
    trainer._plan_run(10, [0])
    targets = [ANCHOR, ("MHA4", "MHA4", "CONV5", "FFN"), ("FFN", "CONV3", "CONV5", "MHA4")]
    trainer.anchor = Anchor(ANCHOR, 0.5)
    trainer._average_children = targets
    target = AlignmentTarget((ANCHOR,) if alignment == "anchor" else tuple(targets), 0.7, 2)
    num_items = sum(int((own["labels"] != -100).sum()) for own in inputs)
    trainer.current_gradient_accumulation_steps = len(inputs)
    measured = GradientMeter(trainer.model, inputs, target).gradients(CHILDREN, 0)
    plain = GradientMeter(trainer.model, inputs).gradients(CHILDREN, 0)
    trainer.model.train()
    for child, gradient, loss in zip(CHILDREN, measured.gradients, measured.losses, strict=True):
        trainer.architecture = child
        trainer.model.zero_grad()
        losses = [
            trainer.compute_loss(trainer.model, dict(own), num_items_in_batch=torch.tensor(num_items))
            for own in inputs
        ]
        sum(losses).backward()
        weights = operator_of(trainer.model, 0, "FFN").parameters()
        expected = torch.cat([weight.grad.flatten() for weight in weights])
        assert torch.allclose(gradient, expected, atol=1e-6, rtol=0)
        assert loss == pytest.approx(sum(own.item() for own in losses), abs=1e-5)
    assert (measured.gradients - plain.gradients).abs().max() > 1e-4


def test_micro_batches_are_one_batch(supernet):
    whole, parts = [batch(0, 16)], [batch(0, 8), batch(8, 16)]
    first, second = (GradientMeter(supernet, own).gradients(CHILDREN, 0) for own in (whole, parts))
    assert torch.allclose(first.gradients, second.gradients, atol=1e-6, rtol=0)
    assert first.losses == pytest.approx(second.losses, abs=1e-5)


# ---- What is shared ----


def test_layers_run_once_for_all_that_share_them(supernet):
    meter = GradientMeter(supernet, [batch(0, 8), batch(8, 16)])
    # Layer 0 is common to four children; the other three layers are each child's own.
    measured = meter.gradients(CHILDREN, 0)
    assert (measured.num_forward_layers, measured.num_backward_layers) == (1 + 4 * 3, 4 * 4)
    top = [("FFN", "CONV3", "MHA4", operator) for operator in OPERATORS]
    measured = meter.gradients(top, 2)
    assert (measured.num_forward_layers, measured.num_backward_layers) == (3 + 4, 4 * 2)
    below = [(operator, "CONV3", "MHA4", "FFN") for operator in OPERATORS]
    measured = meter.gradients(below, 2)
    assert (measured.num_forward_layers, measured.num_backward_layers) == (16, 4 * 2)


def test_counted_layers_are_those_that_run(supernet):
    ran = []
    for index, layer in enumerate(supernet.magic.encoder.layer):
        layer.register_forward_hook(lambda *_, index=index: ran.append(index))
    measured = GradientMeter(supernet, [batch()]).gradients(CHILDREN, 0)
    assert len(ran) == measured.num_forward_layers
    assert ran.count(0) == 1


def test_nothing_but_the_shared_operator_is_differentiated(supernet):
    meter = GradientMeter(supernet, [batch()], AlignmentTarget((ANCHOR,), every_n_layers=1))
    asked = []

    def look(*_):
        asked.append({name for name, weight in supernet.named_parameters() if weight.requires_grad})

    for layer in supernet.magic.encoder.layer:
        layer.register_forward_hook(look)
    meter.gradients(CHILDREN, 0)
    shared = "magic.encoder.layer.0.operators.FFN."
    assert asked
    assert all(
        names == {name for name, _ in supernet.named_parameters() if name.startswith(shared)} for names in asked
    )
    # All of them were trained before, and are again.
    assert all(weight.requires_grad for weight in supernet.parameters())


# ---- Cosines and their means ----


@given(st.integers(2, 6), st.integers(1, 9), st.integers(0, 99))
def test_cosines_are_those_of_numpy(num_children, size, seed):
    rows = np.random.default_rng(seed).normal(size=(num_children, size))
    found = cosine_matrix(torch.tensor(rows * np.array([[10.0**power] for power in range(num_children)])))
    assert np.allclose(found, np.corrcoef(np.hstack([rows, -rows])), atol=1e-9)
    assert np.array_equal(found, found.T)
    assert (np.diag(found) == 1).all()


@pytest.mark.parametrize(("value", "problem"), [(0.0, "is zero"), (float("inf"), "is not finite")])
def test_a_gradient_without_direction_is_named(value, problem):
    rows = torch.ones(3, 5)
    rows[1] = value
    with pytest.raises(ValueError, match=f"gradient of child 1 {problem}"):
        cosine_matrix(rows)


def test_means_by_kind():
    operators = ["MHA4", "MHA8", "FFN", "CONV3"]
    cosines = np.array([[1, 0.9, 0.2, 0.3], [0.9, 1, 0.4, 0.5], [0.2, 0.4, 1, 0.6], [0.3, 0.5, 0.6, 1]])
    means = by_kind(operators, cosines)
    assert means == pytest.approx(
        {("CONV", "FFN"): 0.6, ("CONV", "MHA"): 0.4, ("FFN", "MHA"): 0.3, ("MHA", "MHA"): 0.9}
    )
    assert same_and_other_kind(operators, cosines) == pytest.approx((0.9, (0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 5))
    assert same_and_other_kind(operators[1:], cosines[1:, 1:]) is None
    assert mean_off_diagonal(cosines) == pytest.approx((0.9 + 0.2 + 0.3 + 0.4 + 0.5 + 0.6) / 6)


@given(st.lists(st.floats(-1, 1), min_size=2, max_size=12).filter(lambda values: np.std(values) > 1e-3))
def test_intervals_are_student_t(values):
    estimate = Estimate.of(values)
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((np.mean(values), *interval))


def test_one_repeat_has_no_interval_and_none_has_no_mean():
    assert Estimate.of([0.5]) == Estimate(0.5, None, None)
    for values in ([], [0.5, math.nan]):
        with pytest.raises(ValueError, match="finite"):
            Estimate.of(values)


# ---- Which children ----


spaces = st.lists(
    st.lists(st.sampled_from(["MHA2", "MHA4", "FFN", "CONV3", "CONV5"]), min_size=1, max_size=5, unique=True),
    min_size=2,
    max_size=6,
).map(SearchSpace.from_config)


@given(spaces, st.integers(0, 5), st.integers(0, 999))
def test_children_differ_in_exactly_the_layers_asked_for(space, layer, seed):
    layer %= space.num_layers
    choice = [index for index, own in enumerate(space.candidates) if len(own) > 1 and index != layer]
    if not choice:
        with pytest.raises(ValueError, match="has a choice"):
            layers_that_differ(space, layer)
        return
    layers = layers_that_differ(space, layer)
    assert sorted(layers) == choice
    family = ChildFamily(space, layer, layers, random.Random(seed))
    smaller = None
    for number in range(1, len(layers) + 1):
        children = family.children(number)
        assert len(children) == min(len(space.candidates[index]) for index in layers[:number]) >= 2
        assert len({child[layer] for child in children}) == 1
        for index, child in enumerate(children):
            assert child in space
            for other in children[:index]:
                assert [own for own in range(space.num_layers) if child[own] != other[own]] == sorted(layers[:number])
            if smaller is not None:
                # Nested: one more layer differs, what differed before is as it was.
                assert all(child[own] == smaller[index][own] for own in layers[: number - 1])
        smaller = children
    assert [child[layers[0]] for child in family.children(1)] == list(space.candidates[layers[0]])


def test_layers_above_come_first():
    space = SearchSpace.from_config([list(OPERATORS)] * 6)
    assert layers_that_differ(space, 2) == [3, 4, 5, 1, 0]
    assert layers_that_differ(space, 5) == [4, 3, 2, 1, 0]
    assert layers_that_differ(space, 0, first=3) == [3, 4, 5, 2, 1]


def test_an_operator_is_held_where_it_is_named():
    space = SearchSpace.from_config([list(OPERATORS)] * 4)
    drawn = {ChildFamily(space, 1, [2], random.Random(seed)).children(1)[0][1] for seed in range(40)}
    assert drawn == set(OPERATORS)
    families = [ChildFamily(space, 1, [2], random.Random(seed), "CONV5") for seed in range(5)]
    assert {family.children(1)[0][1] for family in families} == {"CONV5"}


# ---- Bad input ----


def test_bad_children_are_named(supernet):
    meter = GradientMeter(supernet, [batch()])
    for children, layer, message in [
        (CHILDREN[:1], 0, "got 1 children"),
        (CHILDREN, 1, r"differ in layer 1 \(CONV3, CONV5, FFN, MHA4\)"),
        (CHILDREN, 4, "layer is 4; the super-net has the layers 0 to 3"),
        ([*CHILDREN, CHILDREN[0]], 0, "given twice"),
        ([("FFN",), ("MHA4",)], 0, "1 operators but the model has 4 layers"),
        ([CHILDREN[0], ("FFN", "CONV9", "CONV3", "MHA4")], 0, "layer 1 has no operator 'CONV9'"),
    ]:
        with pytest.raises(ValueError, match=message):
            meter.gradients(children, layer)


def test_bad_models_and_batches_are_named(supernet):
    with pytest.raises(ValueError, match="holds one child"):
        GradientMeter(supernet.extract_child(CHILDREN[0]), [batch()])
    with pytest.raises(ValueError, match="a Linear is not a super-net"):
        GradientMeter(nn.Linear(2, 2), [batch()])
    nothing = {**batch(), "labels": torch.full((8, 12), -100)}
    with pytest.raises(ValueError, match="no masked token to predict"):
        GradientMeter(supernet, [nothing])
    for alignment, message in [
        (AlignmentTarget(()), "no child to align to"),
        (AlignmentTarget((ANCHOR,), every_n_layers=5), "alignment_every_n_layers is 5"),
        (AlignmentTarget((ANCHOR,), weight=-1), "alignment_weight is -1"),
        (AlignmentTarget((("FFN",),)), "1 operators but the model has 4 layers"),
    ]:
        with pytest.raises(ValueError, match=message):
            GradientMeter(supernet, [batch()], alignment)


def test_bad_layers_are_named():
    space = SearchSpace.from_config([list(OPERATORS), list(OPERATORS), ["FFN"], list(OPERATORS)])
    for arguments, message in [
        ((4, None), "shared_layer is 4; the super-net has the layers 0 to 3"),
        ((0, 7), "first_differing_layer is 7"),
        ((0, -1), "first_differing_layer is -1"),
        ((1, 1), "set first_differing_layer to a layer other"),
        ((1, 2), "layer 2 has only one operator, FFN"),
    ]:
        with pytest.raises(ValueError, match=message):
            layers_that_differ(space, *arguments)
    with pytest.raises(ValueError, match="one layer"):
        layers_that_differ(SearchSpace.from_config([list(OPERATORS)]), 0)
    layers = layers_that_differ(space, 0)
    with pytest.raises(ValueError, match="layer 0 has no operator 'MHA8'"):
        ChildFamily(space, 0, layers, random.Random(0), "MHA8")
    for number in (0, 3):
        with pytest.raises(ValueError, match=f"num_differing_layers is {number}; it must be from 1 to 2,"):
            ChildFamily(space, 0, layers, random.Random(0)).children(number)
