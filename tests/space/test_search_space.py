"""Search spaces: text, membership, distance and deletions, over arbitrary spaces."""

import json
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from toy_spaces import MIXED, OPERATORS, seeds, spaces

from training.space.search_space import SearchSpace, compact_architecture, format_architecture, parse_architecture


# Architectures as text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("MHA4,FFN,CONV3", ("MHA4", "FFN", "CONV3")),
        (" MHA4 , FFNx3200 ", ("MHA4", "FFNx3200")),
        ("(MHA12, FFN) * 2", ("MHA12", "FFN", "MHA12", "FFN")),
        ("CONV3,(FFN)*2,MHA4", ("CONV3", "FFN", "FFN", "MHA4")),
        (["MHA4", "FFN"], ("MHA4", "FFN")),
    ],
)
def test_parse_architecture(text, expected):
    assert parse_architecture(text) == expected


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("", "''"),
        ("MHA4,,FFN", "''"),
        ("MHA4 FFN", "'MHA4 FFN'"),
        ("(MHA4,FFN)x2", "'(MHA4'"),
        ("(MHA4,FFN)*0", "'(MHA4'"),
        ("(MHA4,FFN)*1000", "'(MHA4'"),
        ("(MHA4)*2FFN", "'(MHA4)*2FFN'"),
        ("FFN(MHA4)*2", "'FFN(MHA4)*2'"),
        (["MHA4", "4"], "'4'"),
        ([], "empty"),
    ],
)
def test_parse_architecture_names_what_it_cannot_read(text, part):
    with pytest.raises(ValueError, match="such as 'MHA12,FFN") as error:
        parse_architecture(text)
    assert part in str(error.value)


@given(spaces, seeds)
def test_architecture_survives_its_text(space, seed):
    child = space.sample(random.Random(seed))
    assert parse_architecture(format_architecture(child)) == child


def test_a_repeated_pair_is_written_as_a_group():
    assert compact_architecture(("MHA4", "FFN") * 3) == "(MHA4,FFN)*3"
    assert compact_architecture(("MHA4", "FFN")) == "MHA4,FFN"
    assert compact_architecture(("FFN",) * 4) == "FFN,FFN,FFN,FFN"


@given(spaces, seeds)
def test_architecture_survives_its_compact_text(space, seed):
    child = space.sample(random.Random(seed))
    assert parse_architecture(compact_architecture(child * 3)) == child * 3


# Spaces


def test_counts_are_exact():
    space = SearchSpace((OPERATORS,) * 26)
    assert space.size == 4**26 == 4503599627370496
    assert (space.num_layers, space.num_operators) == (26, 104)


def test_lists_are_stored_as_tuples():
    space = SearchSpace.from_config([["MHA12", "FFN"], ["CONV3"]])
    assert space == SearchSpace((("MHA12", "FFN"), ("CONV3",)))
    assert space in {space}


@given(spaces)
def test_space_survives_json(space):
    assert SearchSpace.from_json(json.loads(json.dumps(space.to_json()))) == space


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([], r"for each layer, not \[\]"),
        ("MHA12", "for each layer, not 'MHA12'"),
        ([["FFN"], []], "layer 1 has no candidates; give it at least one"),
        ([["FFN", "FFN"]], "layer 0 lists an operator twice; candidates: FFN, FFN"),
        ([["FFN"], "MHA12"], "layer 1 must be a list of operator names, not 'MHA12'"),
        ([["FFN", 3]], r"layer 0 must be a list of operator names, not \['FFN', 3\]"),
        ([[""]], r"layer 0 must be a list of operator names, not \[''\]"),
    ],
)
def test_malformed_spaces_are_refused(layers, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace.from_json(layers)


def test_children_come_in_lexicographic_order():
    space = SearchSpace((("FFN", "CONV3"), ("MHA12",), ("MHA12", "FFN")))
    assert [format_architecture(child) for child in space.children()] == [
        "FFN,MHA12,MHA12",
        "FFN,MHA12,FFN",
        "CONV3,MHA12,MHA12",
        "CONV3,MHA12,FFN",
    ]


@given(spaces)
def test_children_are_the_members(space):
    children = list(space.children())
    assert len(set(children)) == len(children) == space.size
    assert all(child in space for child in children)


def test_membership():
    assert ("MHA12", "FFN", "FFN") in MIXED
    assert ("CONV5", "FFN", "FFN") not in MIXED
    assert ("MHA12", "FFN") not in MIXED
    assert ["MHA12", "FFN", "FFN"] not in MIXED


def test_check_names_layer_operator_and_candidates():
    MIXED.check(("MHA12", "FFN", "FFN"))
    with pytest.raises(ValueError, match="layer 1 has no operator 'MHA12'; candidates: FFN, CONV5, CONV3"):
        MIXED.check(("MHA12", "MHA12", "FFN"))
    with pytest.raises(ValueError, match="'MHA12,FFN' has 2 layers, but the search space has 3"):
        MIXED.check(("MHA12", "FFN"))


def test_distance_counts_differing_layers():
    child = ("MHA12", "FFN", "FFN")
    assert MIXED.distance(child, child) == 0
    assert MIXED.distance(child, ("CONV3", "FFN", "MHA12")) == 2
    assert MIXED.without(0, "MHA12").distance(child, ("CONV3", "FFN", "MHA12")) == 2
    with pytest.raises(ValueError, match="'FFN' has 1 layers, but the search space has 3"):
        MIXED.distance(child, ("FFN",))


def test_without_deletes_one_operator():
    assert MIXED.without(1, "CONV5").candidates == (MIXED.candidates[0], ("FFN", "CONV3"), MIXED.candidates[2])


@pytest.mark.parametrize(
    ("layer", "operator", "message"),
    [
        (0, "MHA12", "layer 0 cannot lose its last operator; candidates: MHA12"),
        (1, "CONV5", "layer 1 has no operator 'CONV5'; candidates: FFN, CONV3"),
        (2, "FFN", "no layer 2; the search space has layers 0 to 1"),
        (-1, "FFN", "no layer -1; the search space has layers 0 to 1"),
    ],
)
def test_without_refuses(layer, operator, message):
    with pytest.raises(ValueError, match=message):
        SearchSpace((("MHA12",), ("FFN", "CONV3"))).without(layer, operator)


@given(spaces, seeds)
def test_shrinking_never_empties_a_layer(space, seed):
    rng = random.Random(seed)
    deletions = 0
    while space.size > 1:
        layer = rng.choice([layer for layer, candidates in enumerate(space.candidates) if len(candidates) > 1])
        before, space = space, space.without(layer, rng.choice(space.candidates[layer]))
        deletions += 1
        assert space.num_operators == before.num_operators - 1
        assert min(map(len, space.candidates)) >= 1
    assert space.num_operators == space.num_layers


@given(spaces, seeds, st.integers(1, 30))
def test_distinct_children_are_the_first_uniform_ones(space, seed, number):
    children = space.sample_distinct(number, random.Random(seed))
    assert len(set(children)) == len(children) == min(number, space.size)
    assert all(child in space for child in children)
    if space.size > number:
        rng, drawn = random.Random(seed), []
        while len(drawn) < number:
            if (child := space.sample(rng)) not in drawn:
                drawn.append(child)
        assert children == drawn


def test_operator_names_come_once_in_the_order_of_layers():
    assert SearchSpace((("FFN", "MHA4"), ("MHA4", "CONV3"), ("FFN",))).operator_names == ["FFN", "MHA4", "CONV3"]


def test_a_notebook_shows_layers_that_are_alike_in_one_row():
    space = SearchSpace((("MHA4", "FFN"), ("MHA4", "FFN"), ("CONV3",)))
    shown = space._repr_html_()
    assert shown.startswith("<p>3 layers, 4 children</p>")
    assert [shown.count(cell) for cell in ("<td>0 to 1</td>", "<td>2</td>", ">FFN<")] == [1, 1, 1]
    one = SearchSpace((("MHA4",), ("<script>",)))._repr_html_()
    assert "<table>" not in one
    assert "<script" not in one
    assert one.index(">MHA4<") < one.index(">&lt;script&gt;<")


def test_an_architecture_is_a_tuple_that_a_notebook_shows():
    space = SearchSpace((("MHA4", "<script>"), ("FFN", "CONV3")))
    drawn, parsed = space.sample(random.Random(0)), parse_architecture("MHA4,FFN")
    for architecture in (drawn, parsed):
        assert {architecture: 1}[tuple(architecture)] == 1
        assert repr(architecture) == repr(tuple(architecture))
        assert pickle.loads(pickle.dumps(architecture)) == architecture
        assert json.dumps(architecture) == json.dumps(list(architecture))
    assert parsed._repr_html_().index(">MHA4<") < parsed._repr_html_().index(">FFN<")
    shown = SearchSpace((("<script>",),)).sample(random.Random(0))._repr_html_()
    assert "&lt;script&gt;" in shown
    assert "<script" not in shown
