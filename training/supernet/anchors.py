"""The anchor of alignment (sections 4 and 5.2): how it is chosen, and the hidden states that others are pulled to."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from modeling_magic import MagicModel

from ..space.search_space import Architecture
from .journal import RankedChild


@dataclass(frozen=True)
class Anchor:
    """The child that others are aligned to, and its most recently measured validation accuracy (section 4)."""

    architecture: Architecture
    val_accuracy: float

    def challenge(self, architecture: Architecture, val_accuracy: float) -> "Anchor":
        """Returns the anchor for the next step: the challenger if Val(challenger) > Val(anchor), else this one."""
        return Anchor(architecture, val_accuracy) if val_accuracy > self.val_accuracy else self


def anchor_of_top_percent(
    ranked: Sequence[RankedChild], previous: Architecture | None, percent: float, hysteresis: float
) -> Anchor:
    """Returns the child at the top `percent` of validated children as the anchor (5.2).

    The previous anchor is kept while its rank is within `percent` +- `hysteresis`, since the exact child at a rank
    changes from epoch to epoch.

    Args:
        ranked: children validated with the same weights, including the previous anchor, in any order.
        previous: the current anchor.
        percent: rank of the anchor; 0 is the best child, 100 the worst.
        hysteresis: the paper's r, in percent.
    """
    by_accuracy = sorted(ranked, key=lambda child: (-child.val_accuracy, child.architecture))
    last = max(len(by_accuracy) - 1, 1)
    for index, child in enumerate(by_accuracy):
        if child.architecture == previous and abs(100 * index / last - percent) <= hysteresis:
            return Anchor(child.architecture, child.val_accuracy)
    chosen = by_accuracy[round(percent / 100 * (len(by_accuracy) - 1))]
    return Anchor(chosen.architecture, chosen.val_accuracy)


@torch.no_grad()
def target_states(
    encoder: MagicModel,
    inputs: dict[str, Tensor],
    architecture: Architecture,
    layers: Sequence[int],
    start: int = 0,
    bottom: Tensor | None = None,
) -> list[Tensor]:
    """Returns the anchor's side of Eq. (1): H_n of `architecture` at `layers`, each (batch, seq_len, hidden).

    They are computed without gradient or dropout, and layers above the last requested one are not computed. The
    encoder is left in training mode.

    Args:
        encoder: encoder of the super-net, not wrapped.
        inputs: `input_ids` and, if present, `attention_mask`, `token_type_ids` and `position_ids`.
        architecture: the anchor, or one of the children that are averaged (3.2).
        layers: indices n of H_n, ascending; H_0 is the output of the embeddings.
        start: the layer whose output is already known.
        bottom: H_start. If omitted, the embeddings are computed and `start` is ignored.
    """
    encoder.eval()
    try:
        if bottom is None:
            start = 0
            bottom = encoder.embeddings(
                inputs.get("input_ids"), inputs.get("token_type_ids"), inputs.get("position_ids")
            )
        masks = encoder.attention_masks(bottom, inputs.get("attention_mask"))
        states = {start: bottom}
        for layer in range(start, layers[-1]):
            operator = architecture[layer]
            states[layer + 1] = encoder.encoder.layer[layer](states[layer], *masks, operator=operator)
            if layer not in layers:
                del states[layer]
    finally:
        encoder.train()
    return [states[layer] for layer in layers]
