"""Compares the schemes with which shrinking draws children: layers run, bias and variance of the operators' scores.

    python benchmarks/operator_scores.py [--num-draws 200] [--output benchmarks/results/NAME.md]

The expectation of the scores is known. For a super-net of 5 x 4, trained for some hundred steps, every child is
evaluated. 12 x 4 and 26 x 4 have too many children for that, so their losses are synthetic: a sum of terms for single
operators and for pairs of operators in any two layers.
"""

import argparse
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import torch

from modeling_magic import MagicConfig, MagicForMaskedLM
from training import SearchSpace
from training.space.samplers import GradualSampler
from training.space.search_space import Architecture
from training.supernet.evaluation import Batch, count_layer_evaluations, rank_children
from training.supernet.shrinking import Operator, operator_scores, sample_children


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
HEADER = (
    "| losses | children | scheme | layers run | gain over the plain loop | variance of a score, relative to fair "
    "| variance x layers, relative to fair | largest bias, standard errors | worst operators found |\n"
    "| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)
Loss = Callable[[Architecture], float]
Scores = dict[Operator, float]


def batches(num_batches: int, seed: int) -> list[Batch]:
    """Returns sequences in which each token follows from its neighbours, with some of the tokens to predict."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(num_batches):
        starts = torch.randint(0, 95, (16, 1), generator=generator)
        steps = torch.randint(1, 4, (16, 1), generator=generator)
        ids = 5 + (starts + steps * torch.arange(16)) % 95
        labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.2, ids, -100)
        made.append({"input_ids": torch.where(labels == -100, ids, 4), "labels": labels})
    return made


def trained_losses(num_steps: int) -> tuple[SearchSpace, dict[Architecture, float]]:
    """Returns the validation loss of every child of a small super-net that was trained along a MAGIC-T chain."""
    space = SearchSpace((OPERATORS,) * 5)
    torch.manual_seed(0)
    config = MagicConfig(candidate_operators=space.to_json(), vocab_size=100, hidden_size=32, intermediate_size=64)
    model = MagicForMaskedLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    sampler = GradualSampler(space, seed=0)
    for batch in batches(num_steps, seed=1):
        model(**batch, architecture=sampler.next()).loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    ranked = rank_children(model, batches(4, seed=2), space.children())
    return space, {child.architecture: child.val_loss for child in ranked}


def planted(space: SearchSpace, pair_share: float) -> tuple[Loss, Scores]:
    """Returns a loss with `pair_share` of its variance in pairs of layers, and the exact scores of the operators."""
    layers, num_operators = range(space.num_layers), len(OPERATORS)
    rng = random.Random(0)
    single = {(layer, name): rng.gauss(0, 1) for layer in layers for name in OPERATORS}
    scale = math.sqrt(pair_share / (1 - pair_share) * 2 / (space.num_layers - 1))
    pairs = {
        (first, own, second, other): rng.gauss(0, scale)
        for first, second in combinations(layers, 2)
        for own in OPERATORS
        for other in OPERATORS
    }

    def loss(child: Architecture) -> float:
        alone = sum(single[position] for position in enumerate(child))
        return alone + sum(pairs[a, child[a], b, child[b]] for a, b in combinations(layers, 2))

    mean = math.fsum(single.values()) / num_operators + math.fsum(pairs.values()) / num_operators**2
    exact = {}
    for layer, name in single:
        own = [value for (other, _), value in single.items() if other == layer]
        score = mean - math.fsum(own) / num_operators + single[layer, name]
        for (first, a, second, b), value in pairs.items():
            if layer in (first, second):
                held = (a if layer == first else b) == name
                score += value / num_operators * held - value / num_operators**2
        exact[layer, name] = score
    return loss, exact


def compare(what: str, space: SearchSpace, loss: Loss, exact: Scores, num_children: int, num_draws: int) -> list[str]:
    """Returns one row for each scheme, and one for the fair scheme with half the children."""
    rows: list[str] = []
    fair = 0.0, 0.0
    num_worst = max(3, space.num_layers // 4)
    worst = set(sorted(exact, key=exact.__getitem__)[-num_worst:])
    for name, scheme, number in (
        ("fair", "fair", num_children),
        ("nested", "nested", num_children),
        ("chain", "chain", num_children),
        ("fair, half the children", "fair", num_children // 2),
    ):
        layers, draws, found = [], [], []
        for seed in range(num_draws):
            children = sample_children(space, number, seed, scheme)
            layers.append(count_layer_evaluations(children))
            scores = operator_scores(space, ((child, loss(child)) for child in children))
            draws.append(scores)
            found.append(len(worst & set(sorted(scores, key=scores.__getitem__)[-num_worst:])) / num_worst)
        columns = {operator: [scores[operator] for scores in draws] for operator in exact}
        variance = statistics.mean(statistics.variance(values) for values in columns.values())
        bias = max(
            abs(statistics.mean(values) - exact[operator]) / (statistics.stdev(values) / math.sqrt(num_draws))
            for operator, values in columns.items()
        )
        mean_layers = statistics.mean(layers)
        fair = fair if rows else (variance, mean_layers)
        rows.append(
            f"| {what} | {number} | {name} | {mean_layers:,.0f} | {space.num_layers * number / mean_layers:.2f} "
            f"| {variance / fair[0]:.2f} | {variance * mean_layers / (fair[0] * fair[1]):.2f} | {bias:.1f} "
            f"| {100 * statistics.mean(found):.0f}% of {num_worst} |"
        )
    return rows


def main() -> None:
    """Runs all comparisons."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-draws", type=int, default=200)
    parser.add_argument("--num-steps", type=int, default=600)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    lines = [
        "# Scores of operators from children drawn in three ways",
        "",
        f"`python benchmarks/operator_scores.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"{arguments.num_draws} draws each; variances are means over all operators. For unbiased scores, the largest "
        f"bias of a hundred operators is within about 3.5 standard errors. The last column is the share of the "
        f"operators with the highest exact scores that a draw ranks among the highest.",
        "",
        HEADER,
    ]
    print("\n".join(lines))
    space, losses = trained_losses(arguments.num_steps)
    spread = f"{min(losses.values()):.2f} to {max(losses.values()):.2f}"
    exact = operator_scores(space, losses.items())
    what = f"5 x 4, trained ({spread})"
    cases = [(what, space, losses.__getitem__, exact, 64)]
    for num_layers, num_children in ((12, 100), (26, 100), (26, 400)):
        for pair_share in (0.2, 0.5):
            large = SearchSpace((OPERATORS,) * num_layers)
            text = f"{num_layers} x 4, {pair_share:.0%} of the variance in pairs"
            cases.append((text, large, *planted(large, pair_share), num_children))
    for case in cases:
        rows = compare(*case, arguments.num_draws)
        lines += rows
        print("\n".join(rows), flush=True)
    print(f"{time.perf_counter() - start:.0f} seconds")
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
