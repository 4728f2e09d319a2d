"""What a search refuses before anything is read."""

import pytest

from training.search.settings import SearchSettings
from training.space.settings import BudgetSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"searcher": "grid"}, "searcher is 'grid'; choose one of: evolution, random, pareto"),
        ({"precision": "fp7"}, "precision is 'fp7'; choose one of: no, bf16, fp16"),
        ({"num_evaluations": 0}, "num_evaluations is 0; it must be at least 1"),
        ({"budget": {"max_param": 1}}, "unknown key 'max_param' in budget; did you mean 'max_params'"),
        ({"budget": {"max_latency_ms": 3}}, "latency is limited but no latency_table is given"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        SearchSettings(**values)


def test_a_budget_may_be_a_mapping():
    settings = SearchSettings(budget={"max_params": 8e6})
    assert settings.budget == BudgetSettings(max_params=8_000_000)
    assert type(settings.budget.max_params) is int
