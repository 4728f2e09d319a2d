"""Regression in the user's units, trained as if the labels had mean 0 and standard deviation 1.

With labels such as 1 to 5, a new head, whose outputs are near 0, has large errors and gradients at first: AdamW needs
many steps only to move its bias there. Therefore the output layer is trained on standardised labels. The model still
returns values in the labels' units throughout, so losses, metrics and a teacher's outputs are in these units, too.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import cast

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel


logger = logging.getLogger(__name__)


@contextmanager
def standardized_labels(model: PreTrainedModel, labels: Sequence[float]) -> Iterator[None]:
    """Trains a model with one output as if on standardised labels; in the end its weights are in the labels' units.

    Inside the block, the output layer's result is multiplied by the labels' standard deviation and their mean is
    added, and its gradient is that of the squared error of standardised labels. If the block ends without an error,
    the layer's weight and bias are changed so that the model returns the same values without this. Checkpoints written
    inside hold the layer for standardised labels.

    Args:
        model: the model; its last linear layer outside the encoder gives the number. A model without such a layer is
            trained on the labels as they are.
        labels: labels of the training rows.
    """
    layer = _output_layer(model)
    if layer is None:
        logger.info(f"{type(model).__name__} does not end in a linear layer, so its labels are not standardised")
        yield
        return
    values = np.asarray(labels, dtype=np.float64)
    mean = float(values.mean())
    # Constant labels have a standard deviation of 0.
    scale = float(values.std()) or 1.0

    def to_units(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        # In bfloat16, as in mixed precision, 2005 and 2008 are the same number.
        result = output.float() * scale + mean
        if result.requires_grad:
            result.register_hook(lambda gradient: gradient / scale**2)
        return result

    hook = layer.register_forward_hook(to_units)
    try:
        yield
    finally:
        hook.remove()
    with torch.no_grad():
        layer.weight.mul_(scale)
        layer.bias.mul_(scale).add_(mean)


def _output_layer(model: PreTrainedModel) -> nn.Linear | None:
    inside = set(model.base_model.modules()) if model.base_model is not model else set()
    last = [module for module in model.modules() if isinstance(module, nn.Linear) and module not in inside][-1:]
    fits = last and last[0].out_features == 1 and cast(Tensor | None, last[0].bias) is not None
    return last[0] if fits else None
