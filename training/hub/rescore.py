"""The loss of an exported masked LM on held-out text, measured again in the same way as the recorded one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from modeling_magic import MagicForMaskedLM

from ..data.text import MaskingCollator, held_out_texts, pack_blocks
from ..files import from_json
from ..pretrained import pretrained_tokenizer


# How far a new score may be from the recorded one. For a model of six layers, summing float32 in another order changed
# the loss by 6e-7, float16 (with a mantissa as long as that of TF32 on a GPU) by 3e-5, and bfloat16 by 5e-4. The
# change is larger for deeper models, and tables show three decimals.
_EXACT, _SIXTEEN_BITS = 0.0005, 0.01


@dataclass(frozen=True)
class JudgedOn:
    """The conditions that the loss of a masked LM depends on, in addition to its weights and the text.

    Attributes:
        mlm_probability: share of the tokens that are masked.
        batch_size: sequences in a batch. The masks depend on the contents of a batch.
        num_sequences: number of sequences from the beginning of the held-out text, `None` for all.
        mask_seed: seed of the masks.
        precision: accelerate's name for the precision; "no" is float32.
    """

    mlm_probability: float
    batch_size: int
    num_sequences: int | None
    mask_seed: int
    precision: str

    def __post_init__(self) -> None:
        if not 0 < self.mlm_probability < 1 or self.batch_size < 1 or (self.num_sequences or 1) < 1:
            raise ValueError(f"{self} is invalid: mlm_probability must be between 0 and 1, numbers at least 1")

    @property
    def tolerance(self) -> float:
        """How far loss and accuracy of the same model may be from the recorded ones."""
        return _EXACT if self.precision == "no" else _SIXTEEN_BITS


class TextScore(NamedTuple):
    """Means over the masked tokens: the loss in nats, and the share that is predicted correctly."""

    loss: float
    accuracy: float


def read_judged_on(record: Mapping[str, Any]) -> JudgedOn | None:
    """Returns how the model of a search.json was evaluated, `None` if an earlier release did not record it.

    Args:
        record: the record of the training or the search.

    Raises:
        ValueError: the record is not in the form that this package writes.
    """
    value = record.get("judged_on")
    return None if value is None else from_json(JudgedOn, value, "judged_on")


def rescore(folder: Path, text: str, corpus: Mapping[str, Any], judged_on: JudgedOn) -> TextScore:
    """Returns loss and accuracy of the model in a folder on the held-out documents of a text, in float32 on the CPU.

    Args:
        folder: the folder of a `MagicForMaskedLM`, with its tokenizer.
        text: the present location of the text.
        corpus: the record of the text.
        judged_on: how the model was evaluated.

    Raises:
        ValueError: it is not the recorded text, or the model or its tokenizer does not load.
    """
    documents = held_out_texts(text, corpus)
    model: Any
    try:
        tokenizer = pretrained_tokenizer(folder, local_files_only=True)
        model = MagicForMaskedLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True)
    # tokenizers and safetensors raise exceptions without a common base class for a damaged file.
    except Exception as error:
        raise ValueError(f"the model does not load ({' '.join(str(error).split())})") from None
    blocks = pack_blocks(documents, tokenizer, corpus["block_size"], tokenizer.model_max_length)
    rows = list(blocks.take(len(blocks) if judged_on.num_sequences is None else judged_on.num_sequences))
    collator = MaskingCollator(tokenizer, mlm_probability=judged_on.mlm_probability, seed=judged_on.mask_seed)
    starts = range(0, len(rows), judged_on.batch_size)
    return _score(model, [collator(rows[start : start + judged_on.batch_size]) for start in starts])


@torch.no_grad()
def _score(model: Any, batches: list[dict[str, torch.Tensor]]) -> TextScore:
    model.eval().config.sparse_prediction = True
    loss, correct, tokens = 0.0, 0, 0
    for batch in batches:
        labels = batch["labels"][batch["labels"] != -100]
        logits = model(**batch).logits
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(dim=-1) == labels).sum())
        tokens += len(labels)
    return TextScore(loss / max(tokens, 1), correct / max(tokens, 1))
