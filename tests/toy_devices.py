"""The devices that tests of tests/gpu run on, and a child and a batch for all of them.

The CPU takes the same path, as far as it has what is tested, so that the tests themselves are run everywhere.
"""

from typing import Any

import pytest
import torch
from torch import nn
from toy import toy_config

from modeling_magic import MagicForMaskedLM


needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
CUDA = pytest.param("cuda", marks=[pytest.mark.gpu, needs_cuda])
on_devices = pytest.mark.parametrize("device", ["cpu", CUDA])
# Of 16 dimensions a head, which the kernels of every attention function take.
MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
SIZES: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 128}


def child_of(attn_implementation: str = "sdpa", **changes: Any) -> MagicForMaskedLM:
    """A child of every kind of operator without dropout, every weight off its initial value."""
    torch.manual_seed(0)
    given = {**SIZES, "attn_implementation": attn_implementation, **changes}
    child = MagicForMaskedLM(toy_config(0.0, **given)).extract_child(MIXED)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in child.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
    return child


def batch_of(*lengths: int) -> dict[str, torch.Tensor]:
    """Random sequences of these lengths, padded, each token to be predicted."""
    generator = torch.Generator().manual_seed(2)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()
    ids = torch.randint(5, 100, mask.shape, generator=generator) * mask
    return {"input_ids": ids, "attention_mask": mask, "labels": torch.where(mask.bool(), ids, -100)}


def on(device: str, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A batch on a device."""
    return {name: tensor.to(device) for name, tensor in batch.items()}


def loss_logits_and_gradient(
    model: nn.Module, batch: dict[str, torch.Tensor], dtype: torch.dtype | None = None
) -> list[torch.Tensor]:
    """The three of a training step, flat, of real tokens alone, in float32 on the CPU; `dtype` is that of autocast."""
    device = next(model.parameters()).device.type
    model.train().zero_grad()
    with torch.autocast(device, dtype=dtype, enabled=dtype is not None):
        output = model(**batch)
    output.loss.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    logits = output.logits[batch["labels"] != -100]
    return [tensor.detach().float().cpu().flatten() for tensor in (output.loss, logits, gradient)]


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """The length of the difference over the length of what is expected."""
    return ((actual - expected).norm() / expected.norm()).item()
