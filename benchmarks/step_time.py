"""Times training steps against their references, interleaved on one thread, and writes a Markdown table.

    python benchmarks/step_time.py [--pairs 9] [--output benchmarks/results/NAME.md] [--only mlm supernet magic-a]

Each comparison runs the two sides in turn, in alternating order, within one process. A ratio is the median over the
pairs of (time of the reference / time of ours), or of (ours / reference) if the target is an upper bound. Absolute
times mean little on a shared machine, but ratios of interleaved runs are meaningful.
"""

import argparse
import platform
import random
import resource
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from interleaved import HEADER, Step, ratios, row
from transformers import BertConfig, BertForMaskedLM

from modeling_magic import MagicConfig, MagicForMaskedLM
from training import MagicTrainer, MagicTrainingArguments, SearchSpace
from training.space.samplers import GradualSampler
from training.space.search_space import Architecture
from training.supernet.anchors import Anchor


BATCH_SIZE, SEQ_LEN, HIDDEN = 16, 128, 256
OPERATORS = ["MHA4", "FFN", "CONV3", "CONV5"]


def batch(vocab_size: int) -> dict[str, torch.Tensor]:
    """Returns random sequences, the same for both sides, with 15% of the tokens to predict."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size, (BATCH_SIZE, SEQ_LEN), generator=generator)
    masked = torch.rand(BATCH_SIZE, SEQ_LEN, generator=generator) < 0.15
    return {"input_ids": ids, "labels": torch.where(masked, ids, -100)}


def magic(candidates: list[list[str]], vocab_size: int, **changes) -> MagicForMaskedLM:
    """Returns a super-net, or a child if each layer has one operator, with the head on masked positions only."""
    sizes: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 4 * HIDDEN,
        "max_position_embeddings": SEQ_LEN,
    }
    torch.manual_seed(0)
    return MagicForMaskedLM(
        MagicConfig(candidate_operators=candidates, vocab_size=vocab_size, sparse_prediction=True, **sizes, **changes)
    ).train()


def training_step(model: torch.nn.Module, inputs: dict, architecture: Architecture | None = None) -> Step:
    """Returns a step: forward, backward and fused AdamW, the Trainer's default."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    arguments = {**inputs, **({"architecture": architecture} if architecture else {})}

    def step() -> None:
        model(**arguments).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def masked_lm(pairs: int) -> list[str]:
    """MHA,FFN x 6 against transformers' BertForMaskedLM with sdpa: tokens per second, higher is better."""
    rows = []
    for vocab_size, target in ((8192, 1.45), (30522, 2.1)):
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=vocab_size,
            hidden_size=HIDDEN,
            intermediate_size=4 * HIDDEN,
            num_hidden_layers=6,
            num_attention_heads=4,
            max_position_embeddings=SEQ_LEN,
        )
        config._attn_implementation = "sdpa"
        bert = BertForMaskedLM(config).train()
        chain = magic([["MHA4"], ["FFN"]] * 6, vocab_size)
        inputs = batch(vocab_size)
        values = ratios(training_step(bert, inputs), training_step(chain, inputs), pairs)
        rows.append(row(f"masked-LM step, {vocab_size:,} tokens: BertForMaskedLM / ours", values, f">= {target}"))
    return rows


def child_in_supernet(pairs: int) -> list[str]:
    """A sampled child inside the super-net against the same child alone: time, lower is better."""
    inputs = batch(8192)
    supernet = magic([OPERATORS] * 26, 8192)
    child = SearchSpace.from_config(supernet.config.candidate_operators).sample(random.Random(0))
    alone = supernet.extract_child(child)
    values = ratios(training_step(alone, inputs), training_step(supernet, inputs, child), pairs)
    values = [1 / value for value in values]
    return [row("child in the super-net (26 x 4) / the same child alone", values, "<= 1.03")]


def activation_bytes(where: str) -> int:
    """Returns the bytes that autograd keeps for one backward pass of a child, in the super-net or alone."""
    supernet = magic([OPERATORS] * 26, 8192)
    child = SearchSpace.from_config(supernet.config.candidate_operators).sample(random.Random(0))
    model = supernet if where == "inside" else supernet.extract_child(child)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(0)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(**batch(8192), architecture=child).loss
    # The graph keeps all tensors alive until here, so no address is used for two of them.
    del loss
    return sum(kept.values())


def activation_memory(pairs: int) -> list[str]:
    """Activations kept for the backward pass, in the super-net and alone, which should be equal."""
    inside, alone = activation_bytes("inside"), activation_bytes("alone")
    return [row(f"activations kept: super-net / alone ({inside / 2**20:.1f} MiB)", [inside / alone] * 2, "1")]


def magic_a(pairs: int) -> list[str]:
    """MAGIC-A against SPOS on the same children at 26 layers, dropout 0.1: time, lower is better."""
    rows = []
    for fraction, target in ((1.0, "<= 1.30"), (0.5, "<= 1.17")):
        inputs = batch(8192)
        supernet = magic([OPERATORS] * 26, 8192)
        with TemporaryDirectory() as folder:
            trainer = MagicTrainer(
                model=supernet,
                args=MagicTrainingArguments(
                    folder,
                    report_to="none",
                    alignment="anchor",
                    alignment_batch_fraction=fraction,
                    dataloader_pin_memory=False,
                ),
                train_dataset=[0],
                eval_dataset=[0],
            )
        space = trainer.full_space
        trainer.create_optimizer()
        trainer.current_gradient_accumulation_steps = 1
        num_items = (inputs["labels"] != -100).sum()
        sampler = GradualSampler(space, seed=0)
        anchor = Anchor(space.sample(random.Random(1)), 0.0)

        def step(anchor: Anchor | None, trainer=trainer, inputs=inputs, num_items=num_items) -> None:
            trainer.anchor = anchor
            trainer.training_step(trainer.model, inputs, num_items)
            trainer.optimizer.step()
            trainer.optimizer.zero_grad(set_to_none=True)

        # Children come from a MAGIC-T walk and are the same for both sides of a pair.
        values = []
        for _ in range(pairs):
            trainer.architecture = sampler.next()
            spos, magic_a_step = partial(step, None), partial(step, anchor)
            values += [1 / value for value in ratios(spos, magic_a_step, 1, warmup=1)]
        part = "whole batch" if fraction == 1 else "half of the batch"
        rows.append(row(f"MAGIC-A ({part} aligned) / SPOS, 26 layers", values, target))
    return rows


COMPARISONS = {
    "mlm": masked_lm,
    "supernet": child_in_supernet,
    "memory": activation_memory,
    "magic-a": magic_a,
}


def main() -> None:
    """Runs the chosen comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument("--only", nargs="+", choices=COMPARISONS, default=list(COMPARISONS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Step time",
        "",
        f"`python benchmarks/step_time.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, hidden {HIDDEN}, batch {BATCH_SIZE} x {SEQ_LEN}, dropout 0.1, fused AdamW. Interleaved pairs.",
        "",
        HEADER,
    ]
    print("\n".join(lines))
    for name in arguments.only:
        rows = COMPARISONS[name](arguments.pairs)
        lines += rows
        print("\n".join(rows), flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of the process: {peak:.0f} MiB")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
