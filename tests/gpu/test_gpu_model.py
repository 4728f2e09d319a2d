"""A child on an accelerator against the same child in float32 on the CPU, where all is written out or tested.

A tolerance is in units of rounding: 2**-24 of float32, 2**-11 of float16, 2**-8 of bfloat16 is the most that it
changes a number by, in proportion. The errors of a chain of four operators and a head add up like a random walk: the
whole is off by a few units; gradients pass the chain twice.
"""

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from toy_devices import CUDA, batch_of, child_of, loss_logits_and_gradient, needs_cuda, on, on_devices, relative_error
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from modeling_magic.modeling_magic import DepthwiseConv1d, Packing, dropout


UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
HALVES = [pytest.param(torch.bfloat16, id="bf16"), pytest.param(torch.float16, id="fp16")]
# Of loss, logits and gradient, in units.
FEW_UNITS = (4, 8, 16)


def assert_units(actual: list[torch.Tensor], expected: list[torch.Tensor], dtype: torch.dtype, factor: float = 1):
    errors = [relative_error(own, true) / UNIT[dtype] for own, true in zip(actual, expected, strict=True)]
    assert all(error < factor * most for error, most in zip(errors, FEW_UNITS, strict=True)), errors


# ---- Precision ----


@on_devices
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_float32_is_that_of_the_cpu(device, attn_implementation):
    batch = batch_of(14, 9, 5)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    actual = loss_logits_and_gradient(child_of(attn_implementation).to(device), on(device, batch))
    # Sums of hundreds of products in another order.
    assert_units(actual, expected, torch.float32, factor=16)


@on_devices
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_autocast_is_float32_but_for_its_rounding(device, dtype, attn_implementation):
    batch = batch_of(14, 9, 5)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    actual = loss_logits_and_gradient(child_of(attn_implementation).to(device), on(device, batch), dtype)
    assert_units(actual, expected, dtype)
    # Autocast was on.
    assert relative_error(actual[1], expected[1]) > UNIT[dtype] / 16


@on_devices
@pytest.mark.parametrize("dtype", HALVES)
def test_weights_of_half_precision(device, dtype):
    batch = batch_of(14, 9, 5)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    actual = loss_logits_and_gradient(child_of().to(device, dtype), on(device, batch))
    # Each weight is rounded as well, and so is every sum.
    assert_units(actual, expected, dtype, factor=2)


# ---- Attention ----


@on_devices
@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(SDPBackend.MATH, id="math"),
        pytest.param(SDPBackend.FLASH_ATTENTION, id="flash"),
        pytest.param(SDPBackend.EFFICIENT_ATTENTION, id="efficient"),
        pytest.param(SDPBackend.CUDNN_ATTENTION, id="cudnn"),
    ],
)
def test_each_kernel_of_sdpa(device, backend):
    """Without padding, since not all of them take a mask."""
    if device == "cpu" and backend in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION):
        pytest.skip("a kernel of CUDA alone")
    batch = batch_of(16, 16)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    del batch["attention_mask"]
    try:
        with sdpa_kernel(backend):
            actual = loss_logits_and_gradient(child_of().to(device), on(device, batch), torch.bfloat16)
    except RuntimeError as error:
        # cuDNN has kernels for some cards and shapes only; sdpa takes another one then.
        if backend == SDPBackend.CUDNN_ATTENTION and "No available kernel" in str(error):
            pytest.skip("cuDNN has no kernel for this card")
        raise
    assert_units(actual, expected, torch.bfloat16)


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "package", "is_available"),
    [
        ("flash_attention_2", "flash_attn", is_flash_attn_2_available),
        ("flash_attention_3", "flash_attn_interface", is_flash_attn_3_available),
    ],
)
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("lengths", [(16, 16), (14, 9, 5)], ids=["full", "padded"])
@pytest.mark.parametrize("unpad", [False, True], ids=["as it is", "unpadded"])
def test_flash_attention(name, package, is_available, dtype, lengths, unpad):
    if not is_available():
        pytest.skip(f"needs the package {package}")
    batch = batch_of(*lengths)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    child = child_of(dtype=dtype, unpad_inputs=unpad).to("cuda")
    child.set_attn_implementation(name)
    assert child.config._attn_implementation == name
    assert_units(loss_logits_and_gradient(child, on("cuda", batch), dtype), expected, dtype)


# ---- Dropout and convolution: kernels of ours on a CPU, of torch elsewhere ----


@on_devices
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bf16"])
def test_dropout_has_one_rate_and_one_scale(device, dtype):
    torch.manual_seed(0)
    ones = torch.ones(1000, 999, device=device, dtype=dtype)
    dropped = dropout(ones, 0.1, training=True)
    share = (dropped == 0).float().mean().item()
    # Six standard deviations of a mean of 999,000 draws; the rate of the CPU is a multiple of 2**-16.
    assert abs(share - 0.1) < 6 * (0.09 / ones.numel()) ** 0.5 + 2**-17
    (kept,) = dropped[dropped != 0].unique().tolist()
    assert kept == pytest.approx(1 / 0.9, rel=2**-16 + UNIT[dtype])
    assert torch.equal(dropout(ones, 0.1, training=False), ones)


@on_devices
def test_dropout_is_drawn_from_the_generator_of_the_device(device):
    ones = torch.ones(64, 64, device=device)
    torch.manual_seed(0)
    first, second = (dropout(ones, 0.5, training=True) for _ in range(2))
    torch.manual_seed(0)
    assert torch.equal(dropout(ones, 0.5, training=True), first)
    assert not torch.equal(first, second)


@on_devices
@pytest.mark.parametrize("dtype", [pytest.param(torch.float32, id="float32"), *HALVES])
@pytest.mark.parametrize("lengths", [None, (9, 2, 5)], ids=["rows", "packed"])
@pytest.mark.parametrize("kernel_size", [3, 7])
def test_depthwise_convolution_is_that_of_double_precision(device, dtype, lengths, kernel_size):
    torch.manual_seed(0)
    convolution = DepthwiseConv1d(24, kernel_size)
    true = nn.Conv1d(24, 24, kernel_size, padding=kernel_size // 2, groups=24).double()
    true.load_state_dict(convolution.state_dict())
    states = torch.randn(1, 16, 24, dtype=torch.double)
    exact = states.clone().requires_grad_()
    parts = exact.split(lengths or [16], dim=1)
    expected = torch.cat([true(part.transpose(1, 2)).transpose(1, 2) for part in parts], dim=1)
    own = states.to(device, dtype).requires_grad_()
    packing = Packing.of(batch_of(*lengths)["attention_mask"].to(device)) if lengths else None
    convolution.to(device, dtype)
    actual = convolution(own, packing)
    assert (actual.dtype, actual.device.type) == (dtype, device)
    actual.float().square().sum().backward()
    expected.square().sum().backward()
    for found, reference in (
        (actual, expected),
        (own.grad, exact.grad),
        (convolution.weight.grad, true.weight.grad),
        (convolution.bias.grad, true.bias.grad),
    ):
        # Inputs, weights and outputs are rounded, and the outputs' error comes back in the gradient.
        assert relative_error(found.detach().double().cpu(), reference.detach()) < 8 * UNIT[dtype]


# ---- Real tokens only ----


@on_devices
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_unpadded_is_padded(device, dtype):
    batch = batch_of(14, 9, 5)
    expected = loss_logits_and_gradient(child_of("eager"), batch)
    child, rows = child_of(unpad_inputs=True).to(device), []
    child.magic.encoder.layer[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape))
    actual = loss_logits_and_gradient(child, on(device, batch), dtype)
    assert rows == [(1, 28, 64)]
    assert_units(actual, expected, dtype or torch.float32, factor=1 if dtype else 16)


# ---- Compiled ----


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16], ids=["float32", "bf16"])
def test_compiled_child_is_the_child(device, dtype):
    """In one graph, with the backward pass, and for a second shape."""
    child = child_of().to(device)
    torch._dynamo.reset()
    # Torch's own compiler takes minutes of a CPU; there the graph alone is tested.
    compiled = torch.compile(child, fullgraph=True, backend="inductor" if device == "cuda" else "eager")
    for lengths in ((14, 9, 5), (20, 20)):
        batch = batch_of(*lengths)
        expected = loss_logits_and_gradient(child_of("eager"), batch)
        actual = loss_logits_and_gradient(compiled, on(device, batch), dtype)
        assert_units(actual, expected, dtype or torch.float32, factor=1 if dtype else 16)
