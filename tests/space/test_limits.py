"""Limits bind the costs that they name, as the functions that count them give these costs."""

import pytest
from toy import toy_config
from toy_timing import SIZES, table_of

from training.space.budgets import BudgetedSpace
from training.space.costs import activation_bytes, count_flops, count_parameters
from training.space.latency import HeldOutChild
from training.space.limits import budget_of, costs_of
from training.space.search_space import SearchSpace
from training.space.settings import BudgetSettings
from training.space.timing import Timing
from training.supernet.arguments import MagicTrainingArguments


CONFIG = toy_config(candidate_operators=[["MHA4", "FFN", "CONV3"], ["FFN", "CONV5"], ["MHA4", "CONV3"]])
MILLISECONDS = {"MHA4": 4.0, "FFN": 2.0, "CONV3": 1.0, "CONV5": 3.0}
CHILDREN = list(SearchSpace.from_config(CONFIG.candidate_operators).children())


@pytest.fixture
def table_file(tmp_path) -> str:
    operators = {name: Timing(own, own, own) for name, own in MILLISECONDS.items()}
    table_of(sizes={**SIZES, "num_hidden_layers": 3}, operators=operators).save(tmp_path / "table.json")
    return str(tmp_path / "table.json")


def values(settings: BudgetSettings) -> dict[str, list[float]]:
    return {cost.name: [cost(child) for child in CHILDREN] for cost in costs_of(CONFIG, settings)}


def test_costs_are_those_that_are_counted(table_file):
    costs = values(BudgetSettings(sequence_length=16, max_activation_mb=1.0, latency_table=table_file))
    assert costs == {
        "num_parameters": [count_parameters(CONFIG, child, head="mlm") for child in CHILDREN],
        "flops": [count_flops(CONFIG, child, 16, head="mlm") for child in CHILDREN],
        # One millisecond outside the layers.
        "latency_ms": [pytest.approx(1 + sum(map(MILLISECONDS.__getitem__, child))) for child in CHILDREN],
        "activation_mb": [
            pytest.approx(activation_bytes(CONFIG, child, seq_len=16, batch_size=1) / 2**20) for child in CHILDREN
        ],
    }


def test_costs_that_nobody_asks_for_are_left_out():
    assert list(values(BudgetSettings())) == ["num_parameters", "flops"]


@pytest.mark.parametrize(("positions", "length"), [(64, 64), (512, 128)])
def test_the_length_is_128_or_the_models_longest(positions, length):
    config = toy_config(max_position_embeddings=positions)
    _, flops = costs_of(config, BudgetSettings())
    child = ("FFN", "MHA4", "CONV3", "FFN")
    assert flops(child) == count_flops(config, child, length, head="mlm")


@pytest.mark.parametrize("names", [("params",), ("flops",), ("params", "flops"), ("params", "flops", "activation_mb")])
def test_a_budget_allows_what_is_within_all_limits(names):
    asked = BudgetSettings(sequence_length=16, max_activation_mb=1e9)
    found = {name.replace("num_parameters", "params"): own for name, own in values(asked).items()}
    # Between the quartiles of each cost, whose ends are some child's.
    windows = {name: (sorted(found[name])[2], sorted(found[name])[-3]) for name in names}
    given = {f"max_{name}": high for name, (_, high) in windows.items()}
    given |= {f"min_{name}": low for name, (low, _) in windows.items() if name != "activation_mb"}
    budget = budget_of(CONFIG, BudgetSettings(sequence_length=16, **given))
    expected = {
        child
        for number, child in enumerate(CHILDREN)
        if all(
            found[name][number] <= high and (name == "activation_mb" or found[name][number] >= low)
            for name, (low, high) in windows.items()
        )
    }
    assert {child for child in CHILDREN if budget.allows(child)} == expected
    assert 0 < len(expected) < len(CHILDREN)
    assert BudgetedSpace(SearchSpace.from_config(CONFIG.candidate_operators), budget).size == len(expected)


def test_a_limit_of_latency_is_by_the_table(table_file):
    assert budget_of(CONFIG, BudgetSettings(latency_table=table_file)).limits == ()
    times = {child: 1 + sum(map(MILLISECONDS.__getitem__, child)) for child in CHILDREN}
    for limits in ({"max_latency_ms": 7.0}, {"min_latency_ms": 6.0}, {"min_latency_ms": 6.0, "max_latency_ms": 8.0}):
        budget = budget_of(CONFIG, BudgetSettings(latency_table=table_file, **limits))
        assert [limit.cost.name for limit in budget.limits] == ["latency_ms"]
        low, high = limits.get("min_latency_ms", 0), limits.get("max_latency_ms", 99)
        assert {child for child in CHILDREN if budget.allows(child)} == {
            child for child, time in times.items() if low <= time <= high
        }


def test_limits_of_a_space_with_skips(tmp_path):
    config = toy_config(candidate_operators=[["MHA4", "SKIP"], ["FFN", "CONV3", "SKIP"], ["SKIP"]])
    children = list(SearchSpace.from_config(config.candidate_operators).children())
    milliseconds = {**MILLISECONDS, "SKIP": 0.0}
    operators = {name: Timing(own, own, own) for name, own in milliseconds.items()}
    table_of(sizes={**SIZES, "num_hidden_layers": 3}, operators=operators).save(tmp_path / "table.json")
    table = str(tmp_path / "table.json")
    most = count_parameters(config, ("MHA4",), head="mlm")
    budget = budget_of(config, BudgetSettings(max_params=most, max_latency_ms=4.0, latency_table=table))
    assert {child for child in children if budget.allows(child)} == {
        child
        for child in children
        if count_parameters(config, child, head="mlm") <= most and 1 + sum(map(milliseconds.get, child)) <= 4
    }
    # An extracted child, which has fewer layers than the table's space, is within the same budget.
    child = ("SKIP", "FFN", "SKIP")
    own = config.child_config(child)
    limits = BudgetSettings(max_params=most, max_latency_ms=3.0, latency_table=table)
    assert budget_of(own, limits).allows(own.chain) == budget_of(config, limits).allows(child) is True


def test_without_limits_everything_is_allowed():
    budget = budget_of(CONFIG, BudgetSettings())
    assert budget.limits == ()
    assert all(map(budget.allows, CHILDREN))


def test_a_table_of_another_model_is_refused(table_file):
    with pytest.raises(ValueError, match="hidden_size is 32 in the table and 64 in the configuration"):
        costs_of(
            toy_config(candidate_operators=CONFIG.candidate_operators, hidden_size=64),
            BudgetSettings(latency_table=table_file),
        )
    with pytest.raises(ValueError, match=r"nowhere.json is not a usable latency table"):
        budget_of(CONFIG, BudgetSettings(latency_table="nowhere.json", max_latency_ms=1.0))


def test_the_arguments_of_a_super_net_are_a_budget(tmp_path):
    largest = max(count_parameters(CONFIG, child, head="mlm") for child in CHILDREN)
    args = MagicTrainingArguments(str(tmp_path), report_to="none", max_params=largest - 1, sequence_length=16)
    expected = budget_of(CONFIG, BudgetSettings(max_params=largest - 1, sequence_length=16))
    assert budget_of(CONFIG, args) == expected
    assert not all(map(expected.allows, CHILDREN))


def test_a_table_that_warns_of_itself_limits_nothing_unless_it_is_accepted(tmp_path):
    operators = {name: Timing(own, own, own) for name, own in MILLISECONDS.items()}
    missed = HeldOutChild(("MHA4",), 5.0, Timing(10.0, 10.0, 10.0))
    table = table_of(sizes={**SIZES, "num_hidden_layers": 3}, operators=operators, held_out=(missed,))
    table.save(tmp_path / "table.json")
    given = {"latency_table": str(tmp_path / "table.json")}
    message = (
        r"table\.json is unreliable: the median error on whole children is 50%.*accept it with --accept-noisy-latency"
    )
    for limit in ("max_latency_ms", "min_latency_ms"):
        with pytest.raises(ValueError, match=message):
            budget_of(CONFIG, BudgetSettings(**given, **{limit: 8.0}))
        accepted = budget_of(CONFIG, BudgetSettings(**given, **{limit: 8.0}, accept_noisy_latency=True))
        assert [limit.cost.name for limit in accepted.limits] == ["latency_ms"]
    # Nothing hangs on the figures here.
    assert [cost.name for cost in costs_of(CONFIG, BudgetSettings(**given))][-1] == "latency_ms"
