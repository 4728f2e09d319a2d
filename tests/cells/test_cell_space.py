"""Cells as children of a space, and as the benchmark writes them."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.cells.cell_space import EDGES, NONE, OPERATORS, cell_space, format_cell, parse_cell, running_edges


def test_a_space_has_all_cells():
    assert cell_space().size == 15_625
    assert cell_space(OPERATORS[1:]).size == 4_096
    assert cell_space().num_layers == len(EDGES) == 6


def test_a_cell_reads_edge_by_edge():
    text = "|avg_pool_3x3~0|+|nor_conv_1x1~0|skip_connect~1|+|none~0|nor_conv_3x3~1|skip_connect~2|"
    child = parse_cell(text)
    assert child == ("avg_pool_3x3", "nor_conv_1x1", "skip_connect", "none", "nor_conv_3x3", "skip_connect")
    assert dict(zip(EDGES, child, strict=True))[1, 3] == "nor_conv_3x3"
    assert format_cell(child) == text


@given(st.tuples(*[st.sampled_from(OPERATORS)] * 6))
def test_what_is_written_is_read(child):
    assert parse_cell(format_cell(child)) == child
    assert child in cell_space()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is not a cell; write it as"),
        ("|none~0|+|none~0|none~1|", "is not a cell"),
        ("|none~1|+|none~0|none~1|+|none~0|none~1|none~2|", "has the wrong edges"),
        ("|none~0|+|none~0|none~1|+|none~0|none~1|conv~2|", "has the operator 'conv'; a cell has none, skip_connect"),
    ],
)
def test_what_is_no_cell_is_refused(text, message):
    with pytest.raises(ValueError, match=message):
        parse_cell(text)


def test_another_operator_is_refused():
    with pytest.raises(ValueError, match="'FFN' is not an operator of a cell; choose from none, "):
        cell_space(["FFN"])


@given(st.tuples(*[st.sampled_from(OPERATORS)] * 6))
def test_edges_run_that_are_on_a_way_through_the_cell(child):
    there = {edge for edge, operator in zip(EDGES, child, strict=True) if operator != NONE}
    ways = [way for way in ([0, 3], [0, 1, 3], [0, 2, 3], [0, 1, 2, 3]) if set(pairwise(way)) <= there]
    on_a_way = {edge for way in ways for edge in pairwise(way)}
    assert dict(zip(EDGES, running_edges(child), strict=True)) == {edge: edge in on_a_way for edge in EDGES}
