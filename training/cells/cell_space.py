"""Cells of NAS-Bench-201 as children of a search space: a layer for each of six edges, five operators on each (D).

A cell has four nodes. Node 0 is its input and node 3 its output. Each node is the sum over its edges from all previous
nodes. A child lists the operators of the edges in the order of `EDGES`.
"""

import re
from collections.abc import Sequence

from ..space.search_space import Architecture, SearchSpace


EDGES = ((0, 1), (0, 2), (1, 2), (0, 3), (1, 3), (2, 3))
"""The edges of a cell as (from, to), node by node: the layers of the space."""
NONE, SKIP, CONV1, CONV3, POOL = "none", "skip_connect", "nor_conv_1x1", "nor_conv_3x3", "avg_pool_3x3"
OPERATORS = (NONE, SKIP, CONV1, CONV3, POOL)
"""The benchmark's operators: zero, identity, two convolutions (ReLU, convolution, batch norm) and 3 x 3 averaging."""

_NODE = re.compile(r"\|(?:\w+~\d\|)+")


def cell_space(operators: Sequence[str] = OPERATORS) -> SearchSpace:
    """Returns the space of all cells with these operators on every edge: 15,625 children with all five operators.

    Raises:
        ValueError: an operator is not in the benchmark.
    """
    for operator in operators:
        if operator not in OPERATORS:
            raise ValueError(f"{operator!r} is not an operator of a cell; choose from {', '.join(OPERATORS)}")
    return SearchSpace((tuple(operators),) * len(EDGES))


def reached_edges(child: Sequence[str]) -> list[bool]:
    """Returns for each edge whether the input of the cell reaches it and its operator is not `none`."""
    nodes, reached = {0}, []
    for (source, target), operator in zip(EDGES, child, strict=True):
        reached.append(operator != NONE and source in nodes)
        if reached[-1]:
            nodes.add(target)
    return reached


def running_edges(child: Architecture) -> list[bool]:
    """Returns for each edge whether it is on a path from the input of the cell to its output."""
    to_output, running = {EDGES[-1][1]}, []
    for (source, target), is_reached in zip(reversed(EDGES), reversed(reached_edges(child)), strict=True):
        running.append(is_reached and target in to_output)
        if running[-1]:
            to_output.add(source)
    return running[::-1]


def used_operators(child: Architecture) -> Architecture:
    """Returns the same function, with `none` on all edges that are on no path from the input to the output."""
    edges = zip(child, running_edges(child), strict=True)
    return tuple(operator if is_running else NONE for operator, is_running in edges)


def parse_cell(text: str) -> Architecture:
    """Returns the child from its notation in the benchmark, |op~0|+|op~0|op~1|+|op~0|op~1|op~2|.

    Raises:
        ValueError: the text does not have that form, or has an unknown operator.
    """
    nodes = text.strip().split("+")
    if len(nodes) != 3 or not all(map(_NODE.fullmatch, nodes)):
        raise ValueError(f"{text!r} is not a cell; write it as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
    found = [
        (int(source), target, operator)
        for target, node in enumerate(nodes, 1)
        for operator, source in (edge.split("~") for edge in node.strip("|").split("|"))
    ]
    if tuple((source, target) for source, target, _ in found) != EDGES:
        raise ValueError(f"{text!r} has the wrong edges; write a cell as |op~0|+|op~0|op~1|+|op~0|op~1|op~2|")
    child = tuple(operator for _, _, operator in found)
    if unknown := [operator for operator in child if operator not in OPERATORS]:
        raise ValueError(f"{text!r} has the operator {unknown[0]!r}; a cell has {', '.join(OPERATORS)}")
    return child


def format_cell(child: Architecture) -> str:
    """Returns a child in the notation of the benchmark, which `parse_cell` reads."""
    nodes = [
        "".join(f"|{operator}~{source}" for (source, end), operator in zip(EDGES, child, strict=True) if end == target)
        for target in (1, 2, 3)
    ]
    return "+".join(f"{node}|" for node in nodes)
