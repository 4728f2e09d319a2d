"""The modules on top of a MAGIC encoder: the pooler, the heads, and helpers for their losses.

This file is exported next to the weights, together with `modeling_magic.py`.
"""

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_magic import MagicConfig
from .kernels_magic import MagicDropout, on_plain_cpu


class MagicPooler(nn.Module):
    """BERT's pooler: tanh of a linear map of the first token."""

    def __init__(self, config: MagicConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns (batch, hidden) from (batch, seq_len, hidden)."""
        return torch.tanh(self.dense(hidden_states[:, 0]))


class MagicLMHead(nn.Module):
    """BERT's masked-LM head: dense, activation, norm and a decoder tied to the word embeddings."""

    def __init__(self, config: MagicConfig):
        super().__init__()
        width = config.embedding_size or config.hidden_size
        self.dense = nn.Linear(config.hidden_size, width)
        self.activation = ACT2FN[config.lm_head_activation or config.hidden_act]
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(width, config.vocab_size)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns logits (..., vocab_size) from hidden states (..., hidden)."""
        return self.decoder(self.LayerNorm(self.activation(self.dense(hidden_states))))


class MagicDiscriminatorHead(nn.Module):
    """ELECTRA's discriminator: one logit per token, positive if the token was replaced."""

    def __init__(self, config: MagicConfig):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense_prediction = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns (batch, seq_len) from (batch, seq_len, hidden)."""
        return self.dense_prediction(self.activation(self.dense(hidden_states))).squeeze(-1)


def classifier_dropout(config: MagicConfig) -> MagicDropout:
    """Returns the dropout of the classification heads."""
    given = config.classifier_dropout
    return MagicDropout(config.hidden_dropout_prob if given is None else given)


class MagicClassificationHead(nn.Module):
    """Classifies a sequence by its first token: dense, activation, dropout, projection.

    These are BERT's pooler and classifier. RoBERTa and ELECTRA, which classify without a pooler, have an additional
    dropout before the dense layer: `input_dropout`.
    """

    def __init__(self, config: MagicConfig, num_outputs: int, input_dropout: bool = False):
        super().__init__()
        self.input_dropout = classifier_dropout(config) if input_dropout else nn.Identity()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.classifier_activation]
        self.dropout = classifier_dropout(config)
        self.out_proj = nn.Linear(config.hidden_size, num_outputs)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Returns (batch, num_outputs) from (batch, seq_len, hidden)."""
        first = self.input_dropout(hidden_states[:, 0])
        return self.out_proj(self.dropout(self.activation(self.dense(first))))


def mean_loss(losses: torch.Tensor, num_items_in_batch: torch.Tensor | int | None) -> torch.Tensor:
    """Returns the mean of losses, or their sum divided by the number of labels in the whole accumulated batch.

    If the Trainer passes that number, it does not divide by the number of micro-batches.
    """
    return losses.mean() if num_items_in_batch is None else losses.sum() / num_items_in_batch


def check_classes(labels: torch.Tensor, num_labels: int) -> None:
    """Raises a ValueError if a label is neither a class nor -100; only on a CPU."""
    # On other devices, the check would wait for the device in every step.
    if not on_plain_cpu(labels):
        return
    wrong = labels[(labels >= num_labels) | ((labels < 0) & (labels != -100))]
    if wrong.numel():
        raise ValueError(
            f"a label is {int(wrong[0])} but the head has {num_labels} classes, 0 to {num_labels - 1}; load the model "
            f"with num_labels=..., or correct the labels (-100 is ignored)"
        )


__all__ = [
    "MagicClassificationHead",
    "MagicDiscriminatorHead",
    "MagicLMHead",
    "MagicPooler",
    "check_classes",
    "classifier_dropout",
    "mean_loss",
]
