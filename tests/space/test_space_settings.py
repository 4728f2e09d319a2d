"""Limits and what latency is measured on are checked when they are made."""

import pytest

from training.space.settings import BudgetSettings, LatencySettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_params": 0}, "max_params is 0; it must be above 0"),
        ({"max_flops": float("inf")}, "max_flops is inf; it must be above 0"),
        ({"max_params": 1.5}, "max_params is 1.5; it must be a whole number or null"),
        ({"min_params": 2, "max_params": 1}, "min_params is 2, above max_params, 1; swap them"),
        ({"min_latency_ms": 2.0, "max_latency_ms": 1.0, "latency_table": "t"}, "min_latency_ms is 2.0, above"),
        ({"min_latency_ms": 2}, "latency is limited but no latency_table is given; measure one"),
        ({"sequence_length": 0}, "sequence_length is 0; it must be at least 1"),
    ],
)
def test_budgets_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        BudgetSettings(**values)


def test_a_table_without_a_limit_is_shown_beside_other_costs():
    assert BudgetSettings(latency_table="t").max_latency_ms is None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"head": "qa"}, "head is 'qa'; choose one of: none, mlm, rtd"),
        ({"dtype": "float64"}, "dtype is 'float64'; choose one of: float32, bfloat16, float16"),
        ({"num_threads": 0}, "num_threads is 0; it must be at least 1"),
        ({"min_run_time": float("nan")}, "min_run_time is nan; it must be above 0"),
    ],
)
def test_measurements_that_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        LatencySettings(**values)


def test_a_measurement_is_told_in_words():
    assert str(LatencySettings(num_threads=2)) == (
        "1 x 128 tokens without padding, head none, float32, cpu, 2 CPU threads"
    )
