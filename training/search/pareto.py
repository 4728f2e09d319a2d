"""Children that a search has evaluated, with their costs, and those that no other child beats: the Pareto front."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ..space.search_space import Architecture
from ..supernet.journal import RankedChild


Source = Literal["search", "random", "BERT pattern"]
# The front in the loss and all costs together; the fronts in the loss and one cost have the cost's name.
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
        architecture: one operator name per layer.
        val_loss: validation loss with the weights of the super-net, lower is better; may be non-finite.
        val_accuracy: share of the masked validation tokens predicted correctly.
        costs: costs by name, lower is better; unknown costs are missing.
        source: the part of the search that requested the evaluation.
        order: number of the evaluation among those of its source, from 1.
        in_budget: whether the budget allows the child.
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
    """Returns the evaluations of a search and of its controls, each in the order in which they were made.

    Args:
        searched: the children that the searcher asked for.
        random: the children of the uniform random control.
        bert_pattern: the BERT pattern nearest in cost, `None` if the space has none.
        costs: functions that return a child's cost, by the name of the cost.
        allows: returns whether the budget allows a child.
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
    """Returns a cost of the child, `None` if it is unknown or not finite."""
    value = child.costs.get(name)
    return value if value is not None and math.isfinite(value) else None


def pareto_front(children: Iterable[ReportChild], names: Sequence[str]) -> list[ReportChild]:
    """Returns the children that no other child beats in validation loss and the named costs, cheapest first.

    A child is beaten by one that is worse in no respect and better in at least one. Equal children do not beat each
    other, and an architecture appears in the front once. Children whose loss is not finite, or that lack one of the
    costs, are excluded.
    """
    points: dict[Architecture, tuple[tuple[float, ...], ReportChild]] = {}
    for child in children:
        costs = [known_cost(child, name) for name in names]
        if math.isfinite(child.val_loss) and None not in costs:
            values = (*(cost for cost in costs if cost is not None), child.val_loss)
            points.setdefault(child.architecture, (values, child))
    # A point can only be beaten by an earlier one in this order, so points on the front never have to be removed.
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
    """Returns the front in loss and each cost, by the cost's name, and the front in all objectives together."""
    names = cost_names(children)
    fronts = {name: pareto_front(children, [name]) for name in names}
    return {**fronts, ALL_OBJECTIVES: pareto_front(children, names)}


def format_cost(name: str, value: float | None) -> str:
    """Returns a cost rounded for a table, with its unit if the label of the cost does not include it."""
    if value is None or not math.isfinite(value):
        return "unknown"
    if name == "num_parameters" and value >= 1e6:
        return f"{value / 1e6:.2f}M"
    if name == "flops":
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2f}" if abs(value) >= 1 else f"{value:.3g}"
