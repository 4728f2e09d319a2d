"""The space around a checkpoint, its drops, and the children of one width or of a budget's size."""

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_config
from toy_compression import CHAIN, UNEVEN, at_most, children_within, toy_cost

from modeling_magic import MagicConfig
from training.compression.spaces import (
    block_drops,
    checkpoint_space,
    drops_only,
    evenly_spaced_blocks,
    has_blocks,
    narrower,
    near_budget,
    uniform_children,
)
from training.space.search_space import SearchSpace


def config_of(chain: tuple[str, ...], **sizes: int) -> MagicConfig:
    return toy_config(candidate_operators=[[name] for name in chain], **sizes)


# ---- Candidates ----


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("MHA12", ["MHA6x192", "MHA3x96"]),
        ("MHA6x192", ["MHA3x96"]),
        ("MHA3x96", []),
        ("MHA1", []),
        ("FFN", ["FFNx768", "FFNx384", "FFNx192"]),
        ("FFNx24", ["FFNx12", "FFNx6", "FFNx3"]),
        ("FFNx12", ["FFNx6", "FFNx3"]),
        ("FFNx9", []),
        ("CONV5", []),
    ],
)
def test_narrower_forms_are_whole_shares(name, expected):
    assert narrower(name, config_of((name,), hidden_size=384, intermediate_size=1536)) == expected


def test_layers_offer_their_own_operator_first_and_skip_last():
    config = config_of(("MHA12", "FFN", "CONV3"), hidden_size=384, intermediate_size=1536)
    assert checkpoint_space(config, ("CONV5", "CONV3")).candidates == (
        ("MHA12", "MHA6x192", "MHA3x96", "CONV5", "CONV3", "SKIP"),
        ("FFN", "FFNx768", "FFNx384", "FFNx192", "SKIP"),
        ("CONV3", "SKIP"),
    )


def test_a_compressed_chain_is_compressed_again():
    config = config_of(UNEVEN)
    space = checkpoint_space(config)
    assert space.candidates == (
        ("MHA2x16", "MHA1x8", "SKIP"),
        ("FFNx24", "FFNx12", "FFNx6", "FFNx3", "SKIP"),
        ("FFN", "FFNx32", "FFNx16", "FFNx8", "SKIP"),
    )
    # All of them are operators of a model of these sizes.
    config_of(UNEVEN).child_config(("MHA1x8", "FFNx3", "FFNx8"))


@pytest.mark.parametrize("name", ["FFNx16", "MHA2", "SKIP"])
def test_only_convolutions_are_convolutions(name):
    with pytest.raises(
        ValueError, match=rf"\Aconvolutions has {name}, which is not a convolution; give operators such as CONV5\Z"
    ):
        checkpoint_space(config_of(CHAIN), (name,))


# ---- Drops ----


@pytest.mark.parametrize(
    ("chain", "expected"),
    [
        (("MHA4", "FFN") * 2, True),
        (("MHA4", "FFN", "MHA2x16", "FFNx24", "CONV3", "FFN"), True),
        (("MHA4", "FFN"), False),
        (UNEVEN, False),
        (("MHA4", "FFN", "FFN", "FFN"), False),
        (("FFN", "MHA4") * 2, False),
        (("MHA4", "MHA4", "FFN", "FFN"), False),
    ],
)
def test_blocks_are_attention_and_feed_forward_in_turn(chain, expected):
    assert has_blocks(chain) is expected


def test_block_drops_are_the_children_whose_blocks_are_whole_or_gone():
    chain = ("MHA4", "FFN", "MHA2x16", "FFNx24", "MHA4", "FFN")
    skipped = ("SKIP", "SKIP")
    every = list(product(*[(chain[2 * block :][:2], skipped) for block in range(3)]))
    for num_dropped in range(4):
        drops = list(block_drops(chain, num_dropped))
        assert len(drops) == len(set(drops))
        assert set(drops) == {sum(blocks, ()) for blocks in every if blocks.count(skipped) == num_dropped}


def kept_blocks(child: tuple[str, ...]) -> list[int]:
    assert all((a == "SKIP") == (b == "SKIP") for a, b in zip(child[::2], child[1::2], strict=True))
    return [layer // 2 for layer in range(0, len(child), 2) if child[layer] != "SKIP"]


def test_of_six_blocks_every_second_one_stays_within_a_half():
    space = checkpoint_space(config_of(("MHA4", "FFN") * 6))
    cost = toy_cost(space, fixed=0)
    child = evenly_spaced_blocks(("MHA4", "FFN") * 6, at_most(cost, cost(("MHA4", "FFN") * 3)))
    assert child is not None
    assert kept_blocks(child) == [0, 2, 4]


@given(num_blocks=st.integers(2, 26), data=st.data())
def test_evenly_spaced_blocks_are_as_many_as_fit_and_nearly_equally_far_apart(num_blocks, data):
    chain = ("MHA4", "FFN") * num_blocks
    cost = toy_cost(SearchSpace((("MHA4", "FFN", "SKIP"),)), fixed=0)
    num_kept = data.draw(st.integers(1, num_blocks - 1))
    child = evenly_spaced_blocks(chain, at_most(cost, cost(("MHA4", "FFN") * num_kept) + 1))
    assert child is not None
    places = kept_blocks(child)
    assert len(places) == num_kept
    assert places[0] == 0
    gaps = [after - before for before, after in zip(places, [*places[1:], num_blocks], strict=True)]
    # Rounding moves either end of a gap by a half at most.
    assert max(gaps) - min(gaps) <= 2
    assert all(abs(gap - num_blocks / num_kept) <= 1 for gap in gaps)


def test_no_block_stays_where_one_alone_is_too_much():
    cost = toy_cost(SearchSpace((("MHA4", "FFN", "SKIP"),)))
    assert evenly_spaced_blocks(CHAIN, at_most(cost, cost(("MHA4",)))) is None


def test_drops_keep_or_skip_each_layer():
    space = checkpoint_space(config_of(UNEVEN))
    assert drops_only(space, UNEVEN).candidates == (("MHA2x16", "SKIP"), ("FFNx24", "SKIP"), ("FFN", "SKIP"))
    fixed_first = SearchSpace((("MHA2x16", "MHA1x8"), *space.candidates[1:]))
    assert drops_only(fixed_first, UNEVEN).candidates[0] == ("MHA2x16",)


# ---- Other parts ----


@pytest.mark.parametrize("chain", [CHAIN, UNEVEN])
def test_uniform_children_have_one_operator_in_all_layers_with_the_same_candidates(chain):
    space = checkpoint_space(config_of(chain), ("CONV3",))

    def is_uniform(child: tuple[str, ...]) -> bool:
        layers = list(zip(child, space.candidates, strict=True))
        return "SKIP" not in child and all(a == b for a, of_a in layers for b, of_b in layers if of_a == of_b)

    children = list(uniform_children(space))
    assert len(children) == len(set(children))
    assert set(children) == set(filter(is_uniform, space.children()))
    assert children[0] == chain


SPACE = checkpoint_space(config_of(UNEVEN))


@settings(max_examples=30)
@given(fixed=st.sampled_from([0, 7, 10_000]), extra=st.integers(0, 250), share=st.sampled_from([0.0, 0.7, 0.9, 1.0]))
def test_children_near_a_budget_spend_a_share_of_what_it_leaves_for_layers(fixed, extra, share):
    cost = toy_cost(SPACE, fixed=fixed)
    smallest = cost.operators["FFNx3"]
    budget = at_most(cost, fixed + smallest + extra)
    within = children_within(SPACE, budget)
    near = [child for child in within if cost(child) - fixed >= share * (smallest + extra) - 1e-9]
    assert set(near_budget(SPACE, budget, share).children()) == set(near or within)
    assert ("SKIP",) * 3 not in set(near_budget(SPACE, budget, share).children())
