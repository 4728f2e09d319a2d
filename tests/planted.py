"""Children with made-up losses, for tests of searches: with structure, without it, and with noise in each batch."""

import math
import random
from collections.abc import Callable, Sequence
from itertools import pairwise

from training.space.budgets import AdditiveCost, Budget, Limit
from training.space.search_space import Architecture, SearchSpace
from training.supernet.journal import RankedChild


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
# Batches differ in their numbers of masked tokens, as real ones do.
NUM_TOKENS = (100, 83, 117, 96, 105, 121, 90, 64)


def planted_space(num_layers: int) -> SearchSpace:
    return SearchSpace((OPERATORS,) * num_layers)


def planted_cost(name: str = "num_parameters", **operators: int) -> AdditiveCost:
    return AdditiveCost(name, 1000, operators or {"MHA4": 6611, "FFN": 13001, "CONV3": 3347, "CONV5": 3389}, 1)


def budget_below(share: float, space: SearchSpace, cost: AdditiveCost | None = None) -> Budget:
    """At most `share` of the way from the cheapest to the dearest child."""
    cost = cost or planted_cost()
    low, high = (sum(extreme(cost.layer_counts(layer)) for layer in space.candidates) for extreme in (min, max))
    return Budget((Limit(cost, maximum=cost.fixed + low + round(share * (high - low))),))


def planted_losses(
    seed: int,
    num_layers: int,
    structure: float = 0.0,
    interactions: float = 0.0,
    noise: float = 0.0,
    batch_noise: float = 0.0,
) -> Callable[[Sequence[Architecture]], list[RankedChild]]:
    """An evaluator whose losses are made of four parts, each of the given standard deviation over the children.

    Args:
        seed: of the whole table of losses.
        num_layers: of the children.
        structure: a sum over layers of a value of the operator there.
        interactions: a sum over neighbouring layers of a value of both operators.
        noise: a value of the child alone, the same in all batches.
        batch_noise: a value of the child and the batch.
    """
    table = random.Random(f"table {seed}")
    single = [{name: table.gauss(0, 1) for name in OPERATORS} for _ in range(num_layers)]
    double = [{(a, b): table.gauss(0, 1) for a in OPERATORS for b in OPERATORS} for _ in range(num_layers - 1)]
    batches = [table.gauss(0, 0.3) for _ in NUM_TOKENS]

    def evaluate(architectures: Sequence[Architecture]) -> list[RankedChild]:
        return [ranked(architecture) for architecture in dict.fromkeys(architectures)]

    def ranked(architecture: Architecture) -> RankedChild:
        rng = random.Random(f"{seed} {architecture}")
        layers = sum(values[name] for values, name in zip(single, architecture, strict=True))
        pairs = zip(double, pairwise(architecture), strict=True)
        loss = (
            10
            + structure * layers / math.sqrt(num_layers)
            + interactions * sum(values[pair] for values, pair in pairs) / math.sqrt(num_layers - 1)
            + noise * rng.gauss(0, 1)
        )
        sums = tuple(
            tokens * (loss + of_batch + batch_noise * rng.gauss(0, 1))
            for tokens, of_batch in zip(NUM_TOKENS, batches, strict=True)
        )
        return RankedChild(architecture, sum(sums) / sum(NUM_TOKENS), 0.5, sums)

    return evaluate
