"""A search of 81 made-up children as a report shows it: with controls, a budget and a winner."""

import math
from dataclasses import replace
from typing import Any

from training.search.pareto import ReportChild, report_children
from training.supernet.journal import RankedChild


NAN = math.nan
BERT = ("MHA4", "FFN", "MHA4", "FFN")
PARAMETERS = {"MHA4": 2_000_000, "FFN": 5_000_000, "CONV3": 1_000_000}
MILLISECONDS = {"MHA4": 1.3, "FFN": 0.9, "CONV3": 0.6}
COSTS = {
    "num_parameters": lambda child: 4_000_000 + sum(PARAMETERS[name] for name in child),
    "latency_ms": lambda child: 0.5 + sum(MILLISECONDS[name] for name in child),
}
LIMIT = 15_000_000
OPERATORS = list(PARAMETERS)


def within(child: tuple[str, ...]) -> bool:
    return COSTS["num_parameters"](child) <= LIMIT


def ranked(number: int, step: int) -> RankedChild:
    """A child of its own for each number below 81, with a loss that has structure and all its digits."""
    child = tuple(OPERATORS[number // 3**layer % 3] for layer in range(4))
    loss = 4 + math.sin(step * number) / 7 - child.count("FFN") / 9
    return RankedChild(child, loss, math.exp(-loss))


SEARCHED = [child for child in (ranked(number, 3) for number in range(0, 81, 2)) if within(child.architecture)]
RANDOM = [child for child in (ranked(number, 3) for number in range(0, 81, 3)) if within(child.architecture)]
BERT_CHILD = RankedChild(BERT, 3.75, 0.02)
CHILDREN = report_children(SEARCHED, RANDOM, BERT_CHILD, COSTS, within)
WINNER = min([*SEARCHED, *RANDOM], key=lambda child: child.val_loss).architecture


def single(**changes: Any) -> ReportChild:
    """One evaluation, with changes."""
    return replace(ReportChild(("FFN",), 3.0, 0.1, {"num_parameters": 10}, "search", 1), **changes)
