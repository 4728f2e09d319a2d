"""Validation of children with the weights of one super-net."""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor
from tqdm.auto import tqdm

from modeling_magic import MagicForMaskedLM

from .search_space import Architecture


Batch = dict[str, Tensor]


@dataclass(frozen=True)
class RankedChild:
    """A child with what search and analysis rank it by.

    Attributes:
        architecture: one operator name a layer.
        val_loss: mean masked-LM cross-entropy over the masked validation tokens, lower is better.
        val_accuracy: share of the masked validation tokens predicted right, higher is better: Val of section 4.
    """

    architecture: Architecture
    val_loss: float
    val_accuracy: float


def validation_batches(
    dataset: Any, collator: Callable[[list[Any]], Batch], batch_size: int, num_sequences: int | None = None
) -> list[Batch]:
    """Returns the fixed validation slice: the first `num_sequences` examples, collated once, masks included.

    Args:
        dataset: examples in a fixed order, a map-style or an iterable data set.
        collator: makes a batch with `labels`; it is called here only, so that every child sees the same masks.
        batch_size: sequences in a batch; the last one may be smaller.
        num_sequences: `None` takes all.

    Raises:
        ValueError: the data set is empty.
    """
    examples: list[Any] = []
    for example in dataset:
        if num_sequences is not None and len(examples) >= num_sequences:
            break
        examples.append(example)
    if not examples:
        raise ValueError("the validation set is empty; give more text or a larger share of held-out documents")
    return [collator(examples[start : start + batch_size]) for start in range(0, len(examples), batch_size)]


@torch.no_grad()
def evaluate_child(
    model: MagicForMaskedLM,
    batches: Sequence[Batch],
    architecture: Sequence[str] | None = None,
    accelerator: Accelerator | None = None,
) -> tuple[float, float]:
    """Returns validation loss and accuracy of one child, each a mean over the masked tokens of all batches.

    The model is run without dropout and left in the mode it was in; logits are computed at masked positions only.

    Args:
        model: a super-net, or a child of its own.
        batches: collated batches with `labels`, -100 where nothing is predicted; every rank passes all of them.
        architecture: the child; may be left out where the model holds only one.
        accelerator: spreads the batches over its processes; every process returns the same numbers.

    Raises:
        ValueError: there is nothing to predict.
    """
    rank, world_size = (accelerator.process_index, accelerator.num_processes) if accelerator else (0, 1)
    was_training = model.training
    model.eval()
    try:
        sums = torch.zeros(3, dtype=torch.float64)
        # In the precision of training, since the model's parts are called here and not the model that was prepared.
        with accelerator.autocast() if accelerator else nullcontext():
            for batch in batches[rank::world_size]:
                sums += _sums_of_batch(model, batch, architecture).cpu().double()
    finally:
        model.train(was_training)
    if accelerator is not None and world_size > 1:
        sums = accelerator.reduce(sums.to(accelerator.device), reduction="sum")
    loss, correct, tokens = sums.tolist()
    if not tokens:
        raise ValueError("no token of the validation batches is to be predicted; give more text or mask more tokens")
    return loss / tokens, correct / tokens


def _sums_of_batch(model: MagicForMaskedLM, batch: Batch, architecture: Sequence[str] | None) -> Tensor:
    inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
    labels = inputs.pop("labels")
    hidden_states = model.magic(**inputs, architecture=architecture).last_hidden_state
    labelled = labels != -100
    logits, labels = model.lm_head(hidden_states[labelled]).float(), labels[labelled]
    loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
    correct = (logits.argmax(dim=-1) == labels).sum()
    return torch.stack([loss, correct.float(), torch.tensor(float(labels.numel()), device=loss.device)])


def rank_children(
    model: MagicForMaskedLM,
    batches: Sequence[Batch],
    architectures: Iterable[Architecture],
    accelerator: Accelerator | None = None,
    progress: bool = False,
) -> list[RankedChild]:
    """Returns the distinct children among `architectures`, each evaluated once, the lowest validation loss first."""
    distinct = list(dict.fromkeys(architectures))
    bar = tqdm(distinct, desc="children", leave=False, disable=not progress)
    ranked = [RankedChild(child, *evaluate_child(model, batches, child, accelerator)) for child in bar]
    return sorted(ranked, key=lambda child: (child.val_loss != child.val_loss, child.val_loss, child.architecture))
