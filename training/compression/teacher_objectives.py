"""What a compressed encoder learns from the checkpoint: one small class for each kind of head.

Each class defines which outputs of the teacher are kept on disk, how a child's outputs are compared with them in
training, and the second score that judges children in addition to this loss.
"""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cosine_similarity, cross_entropy, mse_loss
from transformers import PreTrainedTokenizerBase
from transformers.modeling_outputs import (
    BaseModelOutput,
    MaskedLMOutput,
    QuestionAnsweringModelOutput,
    TokenClassifierOutput,
)
from transformers.utils import ModelOutput

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..distillation.teacher import Record
from ..objectives import distillation_losses, multi_label_distillation_losses, teacher_distribution
from .source import Pooling, Source


Batch = dict[str, Any]
# The teacher's outputs for a batch, as tensors whose rows are in reading order.
Rows = dict[str, Tensor]
# The key of the teacher's outputs in a batch.
TARGET = "teacher"


class Objective(ABC):
    """How a child is compared with the checkpoint.

    An item is the unit of a loss: a sequence, a token or a masked position. Losses and scores are means over items.

    Attributes:
        loss_name: name of the loss in tables.
        score_name: name of the second score in tables.
    """

    loss_name: ClassVar[str]
    score_name: ClassVar[str]

    def describe(self) -> dict[str, Any]:
        """Returns as JSON what the teacher's records depend on in addition to weights and sequences."""
        return {"objective": type(self).__name__}

    def mask(self, batch: Batch) -> Batch:
        """Returns a batch of text as both teacher and child see it; a sequence is always masked in the same way."""
        return batch

    def counts(self, batch: Batch) -> Tensor:
        """Returns the number of items of each sequence of a batch, (batch,)."""
        return torch.ones(len(batch["input_ids"]), dtype=torch.long)

    def record_lengths(self, batch: Batch) -> Tensor:
        """Returns the number of output rows of each sequence, (batch,): the number of items, except for spans."""
        return self.counts(batch)

    @abstractmethod
    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns a model's outputs for a batch, (rows, width), in float32, from the result of its forward pass."""

    @abstractmethod
    def head(self, model: MagicPreTrainedModel, states: Tensor, batch: Batch) -> ModelOutput:
        """Returns the result of the forward pass, given H_N, (batch, seq_len, hidden)."""

    def target(self, outputs: Tensor) -> Rows:
        """Returns the part of the teacher's outputs to keep; they are (rows, width), as `read` returns them."""
        return {"outputs": outputs}

    def pack(self, rows: Rows) -> Record:
        """Converts the kept outputs to the format on disk."""
        return {name: tensor.cpu().numpy() for name, tensor in rows.items()}

    def unpack(self, record: Record) -> Rows:
        """Inverts `pack`."""
        return {name: torch.from_numpy(array) for name, array in record.items()}

    @abstractmethod
    def losses(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns the loss of each item, (items,), 0 if a child's output is the teacher's."""

    @abstractmethod
    def scores(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns the second score of each item, (items,); higher is better."""

    def label_losses(self, own: Tensor, labels: Tensor) -> Tensor:
        """Returns the loss of each item against its label, (items,), 0 if it has none; see `sentences.collate`."""
        raise NotImplementedError(f"{type(self).__name__} does not support labels")

    # ---- As a judge of children (`supernet.runners.Judge`) ----

    def num_items(self, batch: Batch) -> int:
        """Returns the number of items of a batch."""
        return int(self.counts(batch).sum())

    def prepare(self, batch: Batch) -> Batch:
        """Returns the batch unchanged."""
        return batch

    def sums(self, model: MagicPreTrainedModel, states: Tensor, batch: Batch) -> Tensor:
        """Returns the summed loss and the summed second score, (2,)."""
        own = self.read(self.head(model, states, batch), batch)
        target = batch[TARGET]
        return torch.stack([self.losses(own, target, batch).sum(), self.scores(own, target, batch).sum()])


class SentenceObjective(Objective):
    """Embeddings of sentences: 1 - cosine to the teacher's.

    The second score measures how similarly the two see a batch: Pearson's correlation between the cosines of each
    sentence to the others of its batch, in the child's embeddings and in the teacher's.
    """

    loss_name = "1 - cosine"
    score_name = "similarity correlation"

    def __init__(self, pooling: Pooling):
        """Takes the pooling that turns states into an embedding."""
        self.pooling = pooling

    def describe(self) -> dict[str, Any]:
        """Also returns the pooling."""
        return {**super().describe(), "pooling": repr(self.pooling)}

    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns the embeddings, (batch, width)."""
        return self.pooling(outputs.last_hidden_state, batch.get("attention_mask")).float()

    def head(self, model: MagicPreTrainedModel, states: Tensor, batch: Batch) -> ModelOutput:
        """Returns the states, from which embeddings are made."""
        return BaseModelOutput(last_hidden_state=states)

    def losses(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns 1 - cosine of each sentence."""
        return 1 - cosine_similarity(own, target["outputs"], dim=-1)

    def scores(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns for each sentence the correlation of its cosines to the others; 0 with fewer than two others."""
        if len(own) < 3:
            return own.new_zeros(len(own))
        sides = [torch.nn.functional.normalize(rows, dim=-1) for rows in (own, target["outputs"])]
        others = ~torch.eye(len(own), dtype=torch.bool, device=own.device)
        cosines = [(side @ side.T)[others].view(len(own), -1) for side in sides]
        centred = [rows - rows.mean(dim=-1, keepdim=True) for rows in cosines]
        return cosine_similarity(centred[0], centred[1], dim=-1)


class SequenceObjective(Objective):
    """Classes or numbers of a sequence: KL of the distributions, or squared error; the second score is agreement."""

    loss_name = "KL"
    score_name = "agreement"

    def __init__(self, problem_type: str, temperature: float = 1.0):
        """Takes the problem type of transformers: "regression", "multi_label_classification" or another."""
        self.problem_type, self.temperature = problem_type, temperature

    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns the logits, (batch, num_labels)."""
        return outputs.logits.float()

    def head(self, model: Any, states: Tensor, batch: Batch) -> ModelOutput:
        """Runs the classifier."""
        return TokenClassifierOutput(logits=model.classifier(states))

    def losses(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns KL, the squared error or the binary cross-entropy minus its minimum, for each sequence."""
        logits = target["outputs"]
        if self.problem_type == "regression":
            return mse_loss(own, logits, reduction="none").mean(dim=-1)
        if self.problem_type == "multi_label_classification":
            return multi_label_distillation_losses(own, logits, self.temperature)
        log_probs = (logits / self.temperature).log_softmax(dim=-1)
        return distillation_losses(own, log_probs, self.temperature)

    def label_losses(self, own: Tensor, labels: Tensor) -> Tensor:
        """Returns the cross-entropy, the squared error or the binary cross-entropy of each sequence."""
        is_known = ~labels[:, 0].isnan()
        losses, labels = own.new_zeros(len(own)), labels[is_known].to(own.device, own.dtype)
        own = own[is_known]
        if self.problem_type == "regression":
            known = mse_loss(own, labels, reduction="none").mean(dim=-1)
        elif self.problem_type == "multi_label_classification":
            known = binary_cross_entropy_with_logits(own, labels, reduction="none").mean(dim=-1)
        else:
            known = cross_entropy(own, labels[:, 0].long(), reduction="none")
        return losses.masked_scatter(is_known, known)

    def scores(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns 1 if both predict the same class, the share of equal labels, or for numbers the negative error."""
        logits = target["outputs"]
        if self.problem_type == "regression":
            return -(own - logits).abs().mean(dim=-1)
        if self.problem_type == "multi_label_classification":
            return ((own > 0) == (logits > 0)).float().mean(dim=-1)
        return (own.argmax(dim=-1) == logits.argmax(dim=-1)).float()


class TokenObjective(SequenceObjective):
    """Classes of tokens: KL at each real token; the second score is agreement."""

    def __init__(self, temperature: float = 1.0):
        """Takes the temperature of both distributions."""
        super().__init__("single_label_classification", temperature)

    def counts(self, batch: Batch) -> Tensor:
        """Returns the number of tokens of each sequence."""
        return _tokens(batch).sum(dim=1).cpu()

    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns the logits of the tokens, (number of tokens, num_labels)."""
        return outputs.logits[_tokens(batch)].float()

    def head(self, model: Any, states: Tensor, batch: Batch) -> ModelOutput:
        """Runs the classifier."""
        return TokenClassifierOutput(logits=model.classifier(states))


class SpanObjective(Objective):
    """Spans of answers: the mean KL of the distributions of start and end over the tokens of a sequence.

    The second score is the share of the two ends that child and teacher put at the same token. Items are sequences;
    their rows, which differ in number, are concatenated.
    """

    loss_name = "KL"
    score_name = "agreement"

    def __init__(self, temperature: float = 1.0):
        """Takes the temperature of both distributions."""
        self.temperature = temperature

    def record_lengths(self, batch: Batch) -> Tensor:
        """Returns the number of tokens of each sequence, (batch,)."""
        return _tokens(batch).sum(dim=1).cpu()

    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns the logits of start and end at each token, (number of tokens, 2)."""
        return torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)[_tokens(batch)].float()

    def head(self, model: Any, states: Tensor, batch: Batch) -> ModelOutput:
        """Runs the question-answering head."""
        start_logits, end_logits = model.qa_outputs(states).unbind(dim=-1)
        return QuestionAnsweringModelOutput(start_logits=start_logits, end_logits=end_logits)

    def losses(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns the loss of each sequence, (batch,)."""
        own, other = (self._padded(rows, batch) for rows in (own, target["outputs"]))
        log_probs = (other / self.temperature).log_softmax(dim=-1)
        return distillation_losses(own, log_probs, self.temperature).mean(dim=-1)

    def scores(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns the share of the two ends that agree, (batch,)."""
        ends = [self._padded(rows, batch).argmax(dim=-1) for rows in (own, target["outputs"])]
        return (ends[0] == ends[1]).float().mean(dim=-1)

    def _padded(self, rows: Tensor, batch: Batch) -> Tensor:
        """Returns logits, (batch, 2, seq_len), with the smallest value at padding."""
        tokens = _tokens(batch)
        padded = rows.new_full((*tokens.shape, 2), torch.finfo(rows.dtype).min)
        padded[tokens] = rows
        return padded.transpose(1, 2)


class MaskedLMObjective(Objective):
    """A masked LM: KL to the teacher's distribution at masked positions; the second score is agreement.

    Agreement means the same most likely token. The masked tokens of a sequence are determined by the sequence, so the
    teacher runs on it only once. Of its distribution, the most likely tokens are kept, and the total probability of
    all others.
    """

    loss_name = "KL"
    score_name = "agreement"

    def __init__(self, tokenizer: PreTrainedTokenizerBase, mlm_probability: float, top_k: int, seed: int):
        """Takes the share of tokens to mask, how many of the most likely ones to keep, and the seed of the masks."""
        self.mlm_probability, self.top_k, self.seed = mlm_probability, top_k, seed
        self._mask_token = tokenizer.mask_token_id
        self._special = torch.tensor(tokenizer.all_special_ids)

    def describe(self) -> dict[str, Any]:
        """Also returns how tokens are masked."""
        own = {"mlm_probability": self.mlm_probability, "top_k": self.top_k, "seed": self.seed}
        return {**super().describe(), **own}

    def mask(self, batch: Batch) -> Batch:
        """Returns the batch with `labels`, and with [MASK] at the positions that have one.

        At least one token of each sequence is masked, if it has any that is not special.
        """
        input_ids, tokens = batch["input_ids"], _tokens(batch)
        labels = torch.full_like(input_ids, -100)
        maskable = tokens & ~torch.isin(input_ids, self._special)
        for row, ids in enumerate(input_ids):
            places = maskable[row].nonzero().squeeze(1).numpy()
            rng = np.random.default_rng([self.seed, *ids[tokens[row]].tolist()])
            chosen = rng.permutation(places)[: max(1, round(self.mlm_probability * len(places)))]
            labels[row, chosen] = ids[chosen]
        return {**batch, "input_ids": input_ids.masked_fill(labels != -100, self._mask_token), "labels": labels}

    def counts(self, batch: Batch) -> Tensor:
        """Returns the number of masked tokens of each sequence."""
        return (batch["labels"] != -100).sum(dim=1).cpu()

    def read(self, outputs: Any, batch: Batch) -> Tensor:
        """Returns the logits at masked positions, (number of positions, vocab_size)."""
        logits = outputs.logits
        # With `sparse_prediction` the model computes only these.
        return (logits if logits.dim() == 2 else logits[batch["labels"] != -100]).float()

    def head(self, model: Any, states: Tensor, batch: Batch) -> ModelOutput:
        """Runs the masked-LM head at the masked positions."""
        return MaskedLMOutput(logits=model.lm_head(states[batch["labels"] != -100]))

    def target(self, outputs: Tensor) -> Rows:
        """Returns the logs of the largest probabilities, their tokens, and the log of the sum of all others."""
        log_probs, tokens, rest = teacher_distribution(outputs, 1.0, min(self.top_k, outputs.shape[-1] - 1))
        assert tokens is not None
        assert rest is not None
        return {"log_probs": log_probs, "tokens": tokens.int(), "log_rest": rest}

    def losses(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns the KL at each masked position."""
        return distillation_losses(own, target["log_probs"], 1.0, target["tokens"].long(), target["log_rest"])

    def scores(self, own: Tensor, target: Rows, batch: Batch) -> Tensor:
        """Returns 1 if both have the same most likely token."""
        return (own.argmax(dim=-1) == target["tokens"][:, 0]).float()


def _tokens(batch: Batch) -> Tensor:
    """Returns (batch, seq_len) bool, false at padding."""
    mask = batch.get("attention_mask")
    return torch.ones_like(batch["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def objective_of(
    source: Source, *, temperature: float = 1.0, mlm_probability: float = 0.15, top_k: int = 64, seed: int = 0
) -> Objective:
    """Returns the objective of a checkpoint's kind.

    Args:
        source: the checkpoint.
        temperature: temperature of the distributions over classes.
        mlm_probability: share of the tokens to mask, for a masked LM.
        top_k: number of most likely tokens to keep of a masked LM's distribution.
        seed: seed of the masks.
    """
    if source.kind == "sentence":
        assert source.pooling is not None
        return SentenceObjective(source.pooling)
    if source.kind == "masked_lm":
        return MaskedLMObjective(source.tokenizer, mlm_probability, top_k, seed)
    if source.kind == "token":
        return TokenObjective(temperature)
    if source.kind == "span":
        return SpanObjective(temperature)
    config = source.model.config
    default = "regression" if config.num_labels == 1 else "single_label_classification"
    return SequenceObjective(config.problem_type or default, temperature)
