"""Budgets as they are written: what is read, what is refused in one line, and the children that are let in."""

from typing import Any

import pytest
from toy import toy_config
from toy_compression import CHAIN, children_within

from training.compression.members import Member, check_budgets, cost_of, members_of, trained_children
from training.compression.settings import CompressSettings
from training.compression.spaces import checkpoint_space
from training.space.budgets import AdditiveCost
from training.space.costs import count_flops, count_parameters


CONFIG = toy_config(candidate_operators=[[name] for name in CHAIN])
SPACE = checkpoint_space(CONFIG)
# In millionths of a millisecond: 1 outside the layers, 4 for an attention and 8 for a feed-forward layer of one's own.
LATENCY = AdditiveCost(
    "latency_ms",
    1_000_000,
    {
        **dict.fromkeys(SPACE.operator_names, 2_000_000),
        "MHA4": 4_000_000,
        "FFN": 8_000_000,
        "FFNx8": 1_500_000,
        "SKIP": 0,
    },
    1e-6,
)
OWN_LATENCY = 25.0
OWN_PARAMS = count_parameters(CONFIG, CHAIN)


def members(**budgets: Any) -> list[Member]:
    return members_of(CompressSettings(**budgets), CONFIG, SPACE, LATENCY)


def refusal(**budgets: Any) -> str:
    """What the user is told, one line, by the first check that refuses."""
    settings = CompressSettings(**budgets)

    def check() -> None:
        check_budgets(settings)
        members_of(settings, CONFIG, SPACE, LATENCY)

    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        check()
    return str(error.value)


# ---- What is read ----


@pytest.mark.parametrize("text", ["0.4x", "0.4X", " .4 x ", "0.40x", "10", "10.0", "1e1"])
def test_a_budget_is_a_share_of_the_checkpoint_or_a_number(text):
    (member,) = members(max_latency=[text])
    assert member.limit.cost is LATENCY
    assert member.limit.maximum == pytest.approx(0.4 * OWN_LATENCY)
    assert member.share == pytest.approx(0.4)
    assert member.in_words == "at most 0.40 of the checkpoint's latency"


def test_a_share_of_the_parameters_is_printed_as_a_whole_number():
    (member,) = members(max_params=["0.777x"])
    assert member.limit.maximum == int(0.777 * OWN_PARAMS) != 0.777 * OWN_PARAMS
    assert str(member.limit).endswith(f" <= num_parameters <= {int(0.777 * OWN_PARAMS):,}")


def test_names_of_members_are_names_of_folders():
    found = members(max_latency=[" 0.5 X", "4.5"], max_params=["0.9x"], max_flops=["1e6"])
    assert {member.name for member in found} == {"latency-0.5x", "latency-4.5", "params-0.9x", "flops-1e6"}


def test_the_largest_share_comes_first_whatever_it_is_of():
    found = members(max_latency=["0.2x", "0.8x"], max_params=[f"{round(0.7 * OWN_PARAMS)}"], max_flops=["0.5x"])
    assert [round(member.share, 3) for member in found] == [0.8, 0.7, 0.5, 0.2]


def test_latency_is_left_out_until_it_is_measured():
    settings = CompressSettings(max_latency=("0.4x",), max_params=("0.8x",))
    assert [member.name for member in members_of(settings, CONFIG, SPACE, None)] == ["params-0.8x"]


def test_costs_are_those_of_an_encoder_without_a_head():
    settings = CompressSettings(max_params=("0.8x",), latency_length=4000)
    child = ("MHA2x16", "SKIP", "SKIP", "FFNx8")
    bare = ("MHA2x16", "FFNx8")
    assert cost_of(CONFIG, "num_parameters", settings, SPACE)(child) == count_parameters(CONFIG, bare)
    # No more tokens than the model takes.
    assert cost_of(CONFIG, "flops", settings, SPACE)(child) == count_flops(CONFIG, bare, 64, head="none")


@pytest.mark.parametrize("option", ["max_latency", "max_params", "max_flops"])
@pytest.mark.parametrize("text", ["0.99x", "0.7x", "0.6x"])
def test_a_budget_lets_in_what_costs_no_more_but_never_the_child_of_no_layers(option, text):
    (member,) = members(**{option: [text]})
    cost = member.limit.cost
    share = float(text[:-1])
    within = {
        child
        for child in SPACE.children()
        if cost(child) <= share * cost(CHAIN) and any(name != "SKIP" for name in child)
    }
    assert 1 < len(within) < SPACE.size - 1
    assert set(children_within(SPACE, member.budget)) == within


# ---- What is refused ----


@pytest.mark.parametrize("option", ["max_latency", "max_params", "max_flops"])
@pytest.mark.parametrize("text", ["40%", "NaN", "nanx", "-3", "-0.4x", "0", "0x", "inf", "x", "0.4y", "", "1,5"])
def test_unreadable_budgets_are_refused_before_anything_is_measured(option, text):
    flag = option.replace("_", "-")
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        check_budgets(CompressSettings(**{option: (text,)}))
    assert str(error.value) == (
        f"--{flag} is {text!r}; give a share of the checkpoint, such as 0.4x, or a number above 0"
    )


def test_no_budget_is_refused():
    assert refusal() == "no budget is given; set how small the encoder must be, for example --max-latency 0.4x"


@pytest.mark.parametrize("text", ["1x", "1.0x", "2.5x"])
def test_the_checkpoint_itself_is_refused(text):
    assert refusal(max_flops=[text]) == (
        f"--max-flops is {text}; give less than the checkpoint's own cost, such as 0.5x"
    )


@pytest.mark.parametrize("more", [0, 1])
def test_absolute_budgets_of_the_checkpoint_or_above_are_refused(more):
    text = f"{OWN_PARAMS + more}"
    assert refusal(max_params=[text]) == (
        f"--max-params is {text}, but the checkpoint has {OWN_PARAMS:,} parameters; give less, such as 0.5x"
    )
    assert refusal(max_latency=[f"{OWN_LATENCY + more}"]) == (
        f"--max-latency is {OWN_LATENCY + more}, but the checkpoint has 25 ms; give less, such as 0.5x"
    )


def test_a_budget_below_the_smallest_child_is_refused_with_its_name():
    assert refusal(max_latency=["0.05x"]) == (
        "--max-latency is 0.05x, 1.25 ms, but the smallest child, FFNx8 alone, has 2.5 ms, 0.1x of the checkpoint; "
        "give that or more"
    )
    message = refusal(max_params=["100"])
    smallest = count_parameters(CONFIG, ("FFNx8",))
    assert message.startswith("--max-params is 100, 100 parameters, but the smallest child, FFNx8 alone, has ")
    assert f"has {smallest:,} parameters" in message
    share = message.split(", ")[-1].partition("x")[0]
    (member,) = members(max_params=[f"{share}x"])
    assert member.budget.allows(("SKIP", "FFNx8", "SKIP", "SKIP"))


def test_a_budget_of_the_smallest_child_itself_is_met():
    (member,) = members(max_params=[f"{count_parameters(CONFIG, ('FFNx8',))}"])
    assert {"".join(child).replace("SKIP", "") for child in children_within(SPACE, member.budget)} == {"FFNx8"}


def test_budgets_that_are_written_twice_are_refused_before_anything_is_measured():
    with pytest.raises(
        ValueError, match=r"\A--max-latency has 0.4x and .40X, which are the same budget; give each budget once\Z"
    ):
        check_budgets(CompressSettings(max_latency=("0.4x", "0.5x", ".40X")))
    check_budgets(CompressSettings(max_latency=("0.4x", "0.4"), max_flops=("0.4x",)))


@pytest.mark.parametrize(
    ("texts", "first", "second"),
    [
        (["0.4x", "0.5x", "0.40X"], "0.4x", "0.40X"),
        (["10", "1e1"], "10", "1e1"),
        # One of them is known to be the other only when the checkpoint is.
        (["0.4x", "10"], "0.4x", "10"),
    ],
)
def test_a_budget_that_is_given_twice_is_refused(texts, first, second):
    assert refusal(max_latency=texts) == (
        f"--max-latency has {first} and {second}, which are the same budget; give each budget once"
    )


def test_budgets_of_two_kinds_may_be_equal():
    assert len(members(max_latency=["0.6x"], max_params=["0.6x"], max_flops=["0.6x"])) == 3


# ---- What the super-net is trained on ----


def test_the_super_net_is_trained_on_children_of_nearly_the_budgets_size():
    found = members(max_latency=["0.4x", "0.7x"], max_params=["0.7x"])
    for member, trained in zip(found, trained_children(found, SPACE), strict=True):
        cost, fixed = member.limit.cost, member.limit.cost(())
        least = fixed + 0.7 * (member.limit.maximum - fixed)
        expected = {child for child in children_within(SPACE, member.budget) if cost(child) >= least}
        assert expected
        assert set(trained.children()) == expected


def test_the_super_net_is_never_trained_on_the_child_of_no_layers():
    # Nearly all of its parameters are outside of the layers, so that 0.7 of the budget is less than those.
    config = toy_config(candidate_operators=[[name] for name in CHAIN], vocab_size=50_000)
    found = members_of(CompressSettings(max_params=("0.999x",)), config, SPACE, None)
    (trained,) = trained_children(found, SPACE)
    assert 0.7 * found[0].limit.maximum < found[0].limit.cost(())
    assert all(set(child) != {"SKIP"} for child in trained.children())
