"""Children that a search has evaluated, with their costs, and the ones that no other child beats: the Pareto front."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..space.search_space import Architecture
from ..supernet.journal import RankedChild


Source = Literal["search", "random", "BERT pattern"]
# The front in the loss and all costs together, beside the fronts in the loss and one cost, which have the cost's name.
ALL_OBJECTIVES = "all"

COST_LABELS = {
    "num_parameters": "parameters",
    "flops": "FLOPs",
    "latency_ms": "latency (ms)",
    "activation_mb": "activations (MiB)",
}


@dataclass(frozen=True)
class ReportChild:
    """One evaluation of a child, as the report of a search shows it.

    Attributes:
        architecture: one operator name a layer.
        val_loss: validation loss with the weights of the super-net, lower is better; may be not finite.
        val_accuracy: share of the masked validation tokens predicted right.
        costs: by name, lower is better; a cost that is not known is left out.
        source: who asked for it.
        order: number of the evaluation among those of its source, from 1.
        in_budget: whether the budget allows it.
    """

    architecture: Architecture
    val_loss: float
    val_accuracy: float
    costs: Mapping[str, float]
    source: Source
    order: int
    in_budget: bool = True


def report_children(
    searched: Sequence[RankedChild],
    random: Sequence[RankedChild],
    bert_pattern: RankedChild | None,
    costs: Mapping[str, Callable[[Architecture], float]],
    allows: Callable[[Architecture], bool],
) -> list[ReportChild]:
    """Returns the evaluations of a search and of its controls, in the order in which each of them was made.

    Args:
        searched: what the searcher asked for.
        random: the uniform random control.
        bert_pattern: the BERT pattern nearest in cost, `None` where the space has none.
        costs: what gives a child's cost, by the cost's name.
        allows: whether the budget allows a child.
    """
    found: list[tuple[Source, Sequence[RankedChild]]] = [
        ("search", searched),
        ("random", random),
        ("BERT pattern", [] if bert_pattern is None else [bert_pattern]),
    ]
    return [
        ReportChild(
            child.architecture,
            child.val_loss,
            child.val_accuracy,
            {name: cost(child.architecture) for name, cost in costs.items()},
            source,
            order,
            allows(child.architecture),
        )
        for source, ranked in found
        for order, child in enumerate(ranked, start=1)
    ]


def distinct_children(children: Iterable[ReportChild]) -> list[ReportChild]:
    """Returns the first evaluation of each architecture."""
    first: dict[Architecture, ReportChild] = {}
    for child in children:
        first.setdefault(child.architecture, child)
    return list(first.values())


def cost_names(children: Iterable[ReportChild]) -> list[str]:
    """Returns the names of the costs that at least one child has, in the order of their first appearance."""
    return list(dict.fromkeys(name for child in children for name in child.costs))


def known_cost(child: ReportChild, name: str) -> float | None:
    """Returns a cost of the child, `None` where it is not known or not finite."""
    value = child.costs.get(name)
    return value if value is not None and math.isfinite(value) else None


def pareto_front(children: Iterable[ReportChild], names: Sequence[str]) -> list[ReportChild]:
    """Returns the children that no other one beats in validation loss and the named costs, cheapest first.

    A child is beaten by one that is nowhere worse and somewhere better. Equal children do not beat each other, and an
    architecture stands in the front once. Children whose loss is not finite, or that lack one of the costs, are left
    out.
    """
    points: dict[Architecture, tuple[tuple[float, ...], ReportChild]] = {}
    for child in children:
        costs = [known_cost(child, name) for name in names]
        if math.isfinite(child.val_loss) and None not in costs:
            values = (*(cost for cost in costs if cost is not None), child.val_loss)
            points.setdefault(child.architecture, (values, child))
    # Only a point that comes earlier in this order can beat a point, so the front never has to be looked at again.
    ordered = sorted(points.values(), key=lambda point: (point[0], point[1].architecture))
    front = np.empty((len(points), len(names) + 1))
    kept: list[ReportChild] = []
    for values, child in ordered:
        so_far, point = front[: len(kept)], np.array(values)
        if not np.any(np.all(so_far <= point, axis=1) & np.any(so_far < point, axis=1)):
            front[len(kept)] = point
            kept.append(child)
    return kept


def pareto_fronts(children: Sequence[ReportChild]) -> dict[str, list[ReportChild]]:
    """Returns the front in loss and each cost, under the cost's name, and the one in all objectives together."""
    names = cost_names(children)
    fronts = {name: pareto_front(children, [name]) for name in names}
    return {**fronts, ALL_OBJECTIVES: pareto_front(children, names)}


def format_cost(name: str, value: float | None) -> str:
    """Returns a cost rounded for a table, with the unit where the label of the cost does not say it."""
    if value is None or not math.isfinite(value):
        return "not known"
    if name == "num_parameters" and value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if name == "flops":
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
