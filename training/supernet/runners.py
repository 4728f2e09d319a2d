"""Runners that pass validation batches through the children of a super-net, and judges that score the children."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, Self, cast

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from modeling_magic import MagicModel
from modeling_magic.modeling_magic import MagicPreTrainedModel, Packing

from ..space.search_space import Architecture


Batch = dict[str, Tensor]

# The keys of a batch that the embeddings read.
_EMBEDDED = ("input_ids", "token_type_ids", "position_ids", "inputs_embeds")


class ChildRunner(ABC):
    """Runs children on validation batches layer by layer, so that shared bottoms need to be run only once.

    It is used without gradients, with the model in evaluation mode.

    Args:
        model: a super-net, or a child, whose `resolve_architecture` checks what it can run.
    """

    def __init__(self, model: Any):
        self.model = model

    @abstractmethod
    def num_items(self, batch: Batch) -> int:
        """Returns the number of items in a batch, over which losses and second scores are means."""

    @abstractmethod
    def prepare(self, batch: Batch) -> Any:
        """Returns a batch in the form that `embed`, `run_layer` and `sums` take, on the device, for all children."""

    @abstractmethod
    def embed(self, prepared: Any) -> Any:
        """Returns the states below the first layer."""

    @abstractmethod
    def run_layer(self, prepared: Any, states: Any, layer: int, operator: str) -> Any:
        """Returns the states above a layer, without changing those below it."""

    @abstractmethod
    def sums(self, prepared: Any, states: Any, child: Architecture) -> Tensor:
        """Returns the summed loss and the summed second score of a batch, (2,), from the states above all layers."""

    @abstractmethod
    def state_bytes(self, batches: Sequence[Batch]) -> int:
        """Returns the maximum memory that the states of all batches take at one depth."""

    def sums_of_batch(self, batch: Batch, child: Sequence[str] | None) -> Tensor:
        """Returns the sums of one child in one pass; `None` is the only child of a model that is not a super-net."""
        prepared, chain = self.prepare(batch), tuple(self.model.resolve_architecture(child))
        states = self.embed(prepared)
        for layer, operator in enumerate(chain):
            states = self.run_layer(prepared, states, layer, operator)
        return self.sums(prepared, states, chain)


# ---- Chains ----


class Judge(Protocol):
    """Measures a child on a validation batch: a loss, lower is better, and a second score, higher is better."""

    def num_items(self, batch: Batch) -> int:
        """Returns the number of items (masked tokens, sentences) in a batch, over which both sums become means."""

    def prepare(self, batch: Batch) -> Any:
        """Returns what the batch is judged by, on the device: computed once and the same for all children."""

    def sums(self, model: Any, states: Tensor, prepared: Any) -> Tensor:
        """Returns the summed loss and the summed second score, (2,), from H_N, (batch, seq_len, hidden)."""


class MaskedLMJudge:
    """Cross-entropy and accuracy at the masked positions (5.1), with the model's own masked-LM head."""

    def num_items(self, batch: Batch) -> int:
        """Returns the number of masked tokens."""
        return int((batch["labels"] != -100).sum())

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns the positions of the masked tokens in the flat batch, and the tokens themselves."""
        labels = batch["labels"].flatten()
        # Computed once, since it waits for the device.
        positions = (labels != -100).nonzero().squeeze(1)
        return positions, labels[positions]

    def sums(self, model: Any, states: Tensor, prepared: tuple[Tensor, Tensor]) -> Tensor:
        """Returns the summed cross-entropy and the number of correct predictions."""
        positions, labels = prepared
        logits = model.lm_head(states.flatten(0, 1)[positions]).float()
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return torch.stack([loss, (logits.argmax(dim=-1) == labels).sum().float()])


class _Inputs(NamedTuple):
    """A validation batch in the form that the layers and the judge take, the same for all children."""

    embedded: tuple[Tensor | None, ...]
    masks: tuple[Tensor | BlockMask | None, Tensor | None]
    packing: Packing | None
    prepared: Any

    @classmethod
    def of(cls, model: MagicPreTrainedModel, batch: Batch, judge: Judge) -> Self:
        batch = send_to_device(batch, model.device)
        embedded, mask = tuple(batch.get(name) for name in _EMBEDDED), batch.get("attention_mask")
        packing = None
        if mask is not None and mask.dim() == 2 and model.config.unpad_inputs:
            packing = Packing.of(mask)
        encoder = cast(MagicModel, model.base_model)
        masks = (None, None) if packing else encoder.attention_masks(encoder.embeddings(*embedded), mask)
        return cls(embedded, masks, packing, judge.prepare(batch))


class ChainRunner(ChildRunner):
    """Runs children of a chain-styled super-net: the embeddings, the layers, and a judge of the states above them."""

    def __init__(self, model: MagicPreTrainedModel, judge: Judge | None = None):
        """Takes a super-net, or a child, and a judge to use instead of masked-LM loss and accuracy."""
        super().__init__(model)
        self._encoder = cast(MagicModel, model.base_model)
        self._judge = judge or MaskedLMJudge()

    def num_items(self, batch: Batch) -> int:
        """Returns the number of items that the judge counts: masked tokens, or sentences."""
        return self._judge.num_items(batch)

    def prepare(self, batch: Batch) -> _Inputs:
        """Returns the inputs of the embeddings, the masks, and what the judge needs."""
        return _Inputs.of(self.model, batch, self._judge)

    def embed(self, prepared: _Inputs) -> Tensor:
        """Returns H_0, without padding if the model unpads."""
        states = self._encoder.embeddings(*prepared.embedded)
        return states if prepared.packing is None else prepared.packing.pack(states)

    def run_layer(self, prepared: _Inputs, states: Tensor, layer: int, operator: str) -> Tensor:
        """Returns H_n from H_(n - 1)."""
        run = self._encoder.encoder.layer[layer]
        return run(states, *prepared.masks, operator=operator, packing=prepared.packing)

    def sums(self, prepared: _Inputs, states: Tensor, child: Architecture) -> Tensor:
        """Returns the judge's sums for H_N."""
        if prepared.packing is not None:
            states = prepared.packing.unpack(states)
        return self._judge.sums(self.model, states, prepared.prepared)

    def state_bytes(self, batches: Sequence[Batch]) -> int:
        """Returns the bytes of H_n; with autocast, states are in single or half precision."""
        token_bytes = self.model.config.hidden_size * max(self.model.dtype.itemsize, torch.float32.itemsize)
        return token_bytes * sum(_first_embedded(batch).shape[:2].numel() for batch in batches)

    def sums_of_batch(self, batch: Batch, child: Sequence[str] | None) -> Tensor:
        """Returns the sums of one child from one call of the encoder, without shared bottoms."""
        batch = send_to_device(batch, self.model.device)
        inputs = {name: batch[name] for name in _EMBEDDED if name in batch}
        outputs = self._encoder(**inputs, attention_mask=batch.get("attention_mask"), architecture=child)
        return self._judge.sums(self.model, outputs.last_hidden_state, self._judge.prepare(batch))


def _first_embedded(batch: Mapping[str, Tensor]) -> Tensor:
    return next(batch[name] for name in ("input_ids", "inputs_embeds") if name in batch)
