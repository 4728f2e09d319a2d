"""Times the gradients of a shared operator in 6 children of 12 layers, and the live cosine of training.

    python benchmarks/interference.py [--pairs 7] [--only matrix live] [--output benchmarks/results/NAME.md]

The super-net has the operators of the preset magic-analysis at an eighth of its width. Both sides run in turn, in
alternating order, within one process. A ratio is the median over the pairs.
"""

import argparse
import platform
import random
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from interleaved import ratios

from modeling_magic import MagicConfig, MagicForMaskedLM
from training import GradientMeter, SearchSpace
from training.analysis.interference import ChildFamily, layers_that_differ
from training.space.search_space import Architecture
from training.supernet.evaluation import Batch
from training.supernet.gradient_watch import GradientWatch


# The hidden size is 768 / 8 = 96, and inner sizes are an eighth as well.
OPERATORS = ("MHA6x192", "MHA8x192", "FFN", "FFNx400", "CONV3x384", "CONV5x384")
NUM_LAYERS = 12


def supernet(vocab_size: int) -> MagicForMaskedLM:
    """Returns the super-net of magic-analysis at an eighth of its width, with new weights and a sparse head."""
    torch.manual_seed(0)
    config = MagicConfig(
        candidate_operators=[list(OPERATORS)] * NUM_LAYERS,
        vocab_size=vocab_size,
        hidden_size=96,
        intermediate_size=384,
        max_position_embeddings=128,
        sparse_prediction=True,
    )
    return MagicForMaskedLM(config).eval()


def batch(num_sequences: int, seq_len: int, vocab_size: int) -> Batch:
    """Returns random sequences, with 15% of the tokens to predict."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size, (num_sequences, seq_len), generator=generator)
    return {"input_ids": ids, "labels": torch.where(torch.rand(ids.shape, generator=generator) < 0.15, ids, -100)}


def gradient_of(model: MagicForMaskedLM, inputs: Batch, child: Architecture, layer: int, whole: bool) -> torch.Tensor:
    """Returns the gradient of o_g from passes of this child alone, which differentiate all weights or only o_g's."""
    operator = model.get_submodule(f"magic.encoder.layer.{layer}.operators.{child[layer]}")
    weights = list(operator.parameters())
    loss = model(**inputs, architecture=child).loss
    if not whole:
        return torch.cat([gradient.flatten() for gradient in torch.autograd.grad(loss, weights)])
    loss.backward()
    gradient = torch.cat([weight.grad.flatten() for weight in weights if weight.grad is not None])
    model.zero_grad(set_to_none=True)
    return gradient


def matrix(arguments: argparse.Namespace) -> list[str]:
    """Times six children with the meter against six separate passes, for o_g at three depths."""
    lines = [
        "| o_g | children differ in | vocabulary | layers forward: separate, ours | layers backward: separate, ours "
        "| separate / ours | range | passes cut at o_g / ours | largest difference |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    space = SearchSpace((OPERATORS,) * NUM_LAYERS)
    cases = ((0, 1, 4096), (0, 1, 30522), (0, 11, 4096), (5, 1, 4096), (10, 1, 4096))
    for layer, num_differing_layers, vocab_size in cases:
        model, inputs = supernet(vocab_size), batch(8, 64, vocab_size)
        family = ChildFamily(space, layer, layers_that_differ(space, layer), random.Random(0), "FFN")
        children = family.children(num_differing_layers)
        # This is both the warm-up and the check.
        ours = GradientMeter(model, [inputs]).gradients(children, layer)
        alone = torch.stack([gradient_of(model, inputs, child, layer, whole=True) for child in children])
        difference = (ours.gradients - alone).abs().max().item()
        gains = [_gains(model, inputs, children, layer, whole, arguments.pairs) for whole in (True, False)]
        separate = len(children) * NUM_LAYERS
        where = f"layer {layer + 1}" if num_differing_layers == 1 else f"layers 1 to {num_differing_layers}"
        lines.append(
            f"| layer {layer} | {where} | {vocab_size:,} | {separate}, {ours.num_forward_layers} "
            f"| {separate}, {ours.num_backward_layers} | {statistics.median(gains[0]):.2f} "
            f"| {min(gains[0]):.2f} to {max(gains[0]):.2f} | {statistics.median(gains[1]):.2f} | {difference:.0e} |"
        )
    return lines


def _gains(
    model: MagicForMaskedLM, inputs: Batch, children: Sequence[Architecture], layer: int, whole: bool, pairs: int
) -> list[float]:
    return ratios(
        lambda: [gradient_of(model, inputs, child, layer, whole) for child in children],
        lambda: GradientMeter(model, [inputs]).gradients(children, layer),
        pairs,
        warmup=1,
    )


def live(arguments: argparse.Namespace) -> list[str]:
    """Times a training step that compares its gradients with those of the previous step against one that does not."""
    model = supernet(4096).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    lines = [
        "| batch | extra time of a step that compares and stores | range | stored |",
        "| --- | --- | --- | --- |",
    ]
    rng, space = random.Random(0), SearchSpace((OPERATORS,) * NUM_LAYERS)
    for num_sequences, seq_len in ((8, 64), (32, 128)):
        inputs, watch = batch(num_sequences, seq_len, 4096), GradientWatch(1)
        child = space.sample(rng)
        path = zip(model.magic.encoder.layer, child, strict=True)
        weights = [list(layer.operators[operator].parameters()) for layer, operator in path]
        done = [0]

        def step(watched: bool, inputs=inputs, watch=watch, child=child, weights=weights, done=done) -> None:
            model(**inputs, architecture=child).loss.backward()
            if watched:
                done[0] += 1
                watch.begin_step(child)
                watch.add_gradients(done[0], child, weights)
                if done[0] % 10 == 0:
                    watch.scalars()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        slowdowns = [
            100 * (1 / gain - 1) for gain in ratios(lambda: step(False), lambda: step(True), 3 * arguments.pairs)
        ]
        lines.append(
            f"| {num_sequences} x {seq_len} | {statistics.median(slowdowns):+.1f}% "
            f"| {min(slowdowns):+.1f}% to {max(slowdowns):+.1f}% | {watch.kept_bytes / 2**20:.1f} MiB |"
        )
    return lines


PARTS = {"matrix": matrix, "live": live}


def main() -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Interference",
        "",
        f"`python benchmarks/interference.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, new weights, {NUM_LAYERS} layers x {len(OPERATORS)}, hidden 96, 8 x 64 tokens unless stated "
        f"otherwise, 15% of the tokens to predict. Separate: a forward and a backward pass for each of the 6 "
        f"children. On both sides the head runs on masked positions only. Interleaved pairs.",
    ]
    print("\n".join(lines))
    for name in arguments.only:
        part = ["", *PARTS[name](arguments)]
        lines += part
        print("\n".join(part), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
