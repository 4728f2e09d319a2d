"""Training objectives as functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def alignment_loss(
    child_states: Sequence[Tensor], target_states: Sequence[Tensor], attention_mask: Tensor | None = None
) -> Tensor:
    """Returns the sum over aligned layers of the MSE between child and target hidden states, Eq. (1).

    Args:
        child_states: one (batch, seq_len, hidden) tensor for each aligned layer; carries gradients.
        target_states: the anchor's states (section 4) or the average ones of several children (3.2), same shapes.
            Paper silent: the gradient stops here, the caller passes detached tensors.
        attention_mask: (batch, seq_len), 1 = token, 0 = padding; padding is left out of the mean.

    Returns:
        Scalar; mean over tokens and features of this micro-batch, summed over layers.

    Raises:
        ValueError: no layer is aligned, or the two sequences differ in length.
    """
    if not child_states or len(child_states) != len(target_states):
        raise ValueError(
            f"{len(child_states)} layers of the child against {len(target_states)} of the target; give one pair of "
            f"hidden states for each aligned layer, and at least one"
        )
    losses = [
        _masked_mse(child, target, attention_mask) for child, target in zip(child_states, target_states, strict=True)
    ]
    return torch.stack(losses).sum()


def _masked_mse(child: Tensor, target: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.nn.functional.mse_loss(child, target)
    tokens = attention_mask.bool()
    return torch.nn.functional.mse_loss(child[tokens], target[tokens])


def average_states(states_of_children: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Returns the mean over children of their hidden states, layer by layer: the target of section 3.2.

    Args:
        states_of_children: for each child one (batch, seq_len, hidden) tensor for each aligned layer.
    """
    return [torch.stack(layer).mean(dim=0) for layer in zip(*states_of_children, strict=True)]
