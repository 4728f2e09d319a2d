"""Operations that a MAGIC model computes differently from torch: dropout, depth-wise convolution, packed batches.

This file is exported next to the weights, together with `modeling_magic.py`, and needs only torch.
"""

from typing import NamedTuple

import torch
from torch import nn


def on_plain_cpu(hidden_states: torch.Tensor) -> bool:
    """Whether to use our own kernels for dropout and depth-wise convolution, because torch's are slow.

    Other devices have fast kernels, and compilers, exporters and tracers need the standard operations.
    """
    return hidden_states.device.type == "cpu" and not torch.compiler.is_compiling() and not torch.jit.is_tracing()


def dropout(hidden_states: torch.Tensor, p: float, training: bool) -> torch.Tensor:
    """Returns `hidden_states` with elements zeroed with probability `p` and the others scaled by 1 / (1 - p).

    On a CPU, the mask comes from 16-bit random integers, four per draw, in half the time of `F.dropout`. The
    probability is then a multiple of 2**-16, and the scale matches it, so the expectation is exact.
    """
    if not training or p == 0.0:
        return hidden_states
    if not on_plain_cpu(hidden_states):
        return nn.functional.dropout(hidden_states, p, training=True)
    dropped_values = min(max(round(p * 2**16), 1), 2**16 - 1)
    num_draws = -(-hidden_states.numel() // 4)
    draws = torch.randint(-(2**63), 2**63 - 1, (num_draws,), dtype=torch.int64, device=hidden_states.device)
    bits = draws.view(torch.int16)
    keep = bits[: hidden_states.numel()].view(hidden_states.shape) >= dropped_values - 2**15
    return hidden_states * keep.to(hidden_states.dtype).mul_(2**16 / (2**16 - dropped_values))


class MagicDropout(nn.Dropout):
    """Like `nn.Dropout`, in half the time on a CPU (see `dropout`)."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns the masked and scaled hidden states, of the same shape."""
        return dropout(hidden_states, self.p, self.training)


class _ShiftedDepthwiseConv(torch.autograd.Function):
    """Depth-wise convolution over (batch, seq_len, channels) as a sum of shifted products.

    `nn.Conv1d(groups=channels)` needs the channels first and takes about three times as long on a CPU. `packing` tells
    which tokens belong to one sequence; with `None`, each row is a sequence. Only first derivatives are supported.
    """

    @staticmethod
    def _shifts(kernel_size: int, seq_len: int, packing: "Packing | None"):
        # (tap, positions the products are added to, positions they read, which of them cross the border between two
        # sequences): position t reads t + tap - kernel_size // 2, and everything beyond the ends is zero.
        for tap in range(kernel_size):
            shift = tap - kernel_size // 2
            if abs(shift) < seq_len:
                yield (
                    tap,
                    slice(max(0, -shift), seq_len - max(0, shift)),
                    slice(max(0, shift), seq_len + min(0, shift)),
                    packing.crossing(abs(shift)) if packing is not None and shift else None,
                )

    @staticmethod
    def _add_products(output, hidden_states, filters, crossing):
        kept = None if crossing is None else output[:, crossing]
        output.addcmul_(hidden_states, filters)
        if kept is not None:
            output[:, crossing] = kept

    @staticmethod
    def forward(hidden_states, weight, bias, packing):
        output = bias.expand_as(hidden_states).clone()
        shifts = _ShiftedDepthwiseConv._shifts(weight.shape[-1], hidden_states.shape[1], packing)
        for tap, to, source, crossing in shifts:
            _ShiftedDepthwiseConv._add_products(output[:, to], hidden_states[:, source], weight[:, 0, tap], crossing)
        return output

    @staticmethod
    def setup_context(ctx, inputs, output):
        hidden_states, weight, _, ctx.packing = inputs
        ctx.save_for_backward(hidden_states, weight)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad_output):
        hidden_states, weight = ctx.saved_tensors
        grad_input, grad_weight = torch.zeros_like(hidden_states), torch.zeros_like(weight)
        shifts = _ShiftedDepthwiseConv._shifts(weight.shape[-1], hidden_states.shape[1], ctx.packing)
        for tap, to, source, crossing in shifts:
            _ShiftedDepthwiseConv._add_products(grad_input[:, source], grad_output[:, to], weight[:, 0, tap], crossing)
            products = grad_output[:, to] * hidden_states[:, source]
            if crossing is not None:
                products[:, crossing] = 0
            grad_weight[:, 0, tap] = products.sum((0, 1))
        return grad_input, grad_weight, grad_output.sum((0, 1)), None


class DepthwiseConv1d(nn.Conv1d):
    """One filter of odd `kernel_size` per channel over (batch, seq_len, channels), with zeros beyond the ends."""

    bias: nn.Parameter

    def __init__(self, channels: int, kernel_size: int):
        super().__init__(channels, channels, kernel_size, groups=channels, padding=kernel_size // 2)

    def forward(self, hidden_states: torch.Tensor, packing: "Packing | None" = None) -> torch.Tensor:
        """Returns the convolved states, (batch, seq_len, channels), of the same dtype; packed if the input is."""
        if on_plain_cpu(hidden_states) and not (packing is None and self._torch_is_fast(hidden_states)):
            # Half precision, from the model or autocast, is slower than single in elementwise operations.
            dtype = torch.promote_types(hidden_states.dtype, torch.float32)
            states, weight, bias = (tensor.to(dtype) for tensor in (hidden_states, self.weight, self.bias))
            return _ShiftedDepthwiseConv.apply(states, weight, bias, packing).to(hidden_states.dtype)
        padded = hidden_states if packing is None else packing.unpack(hidden_states)
        output = super().forward(padded.transpose(1, 2)).transpose(1, 2)
        return output if packing is None else packing.pack(output)

    @staticmethod
    def _torch_is_fast(hidden_states: torch.Tensor) -> bool:
        # The only dtype and instruction set for which torch's kernel is faster than shifted products.
        return hidden_states.dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512"


class Packing(NamedTuple):
    """The positions of a padded batch's real tokens, concatenated in one row, (1, number of real tokens, hidden).

    Attributes:
        tokens: (batch, seq_len), true for real tokens.
        lengths: the number of real tokens of each sequence.
        sequences: (number of real tokens,), the sequence of each token.
    """

    tokens: torch.Tensor
    lengths: list[int]
    sequences: torch.Tensor

    @classmethod
    def of(cls, attention_mask: torch.Tensor) -> "Packing | None":
        """Returns the packing of a (batch, seq_len) mask; `None` without padding or with an empty row or a hole."""
        tokens = attention_mask.bool()
        starts = tokens[:, 0].long() + (tokens[:, 1:] & ~tokens[:, :-1]).sum(dim=1)
        # A convolution sees a zero at a hole between tokens; if packed, it would see the next token.
        if tokens.all() or (starts != 1).any():
            return None
        return cls(tokens, tokens.sum(dim=1).tolist(), tokens.nonzero()[:, 0])

    def crossing(self, distance: int) -> torch.Tensor:
        """Returns all n whose packed tokens n and n + `distance` (at least 1) belong to different sequences."""
        return (self.sequences[distance:] != self.sequences[:-distance]).nonzero().squeeze(1)

    def pack(self, padded: torch.Tensor) -> torch.Tensor:
        """Returns (1, number of real tokens, width) from (batch, seq_len, width)."""
        return padded[self.tokens].unsqueeze(0)

    def unpack(self, packed: torch.Tensor) -> torch.Tensor:
        """Returns (batch, seq_len, width), zero at padding, from (1, number of real tokens, width)."""
        padded = packed.new_zeros(*self.tokens.shape, packed.shape[-1])
        padded[self.tokens] = packed[0]
        return padded


__all__ = ["DepthwiseConv1d", "MagicDropout", "Packing", "dropout", "on_plain_cpu"]
