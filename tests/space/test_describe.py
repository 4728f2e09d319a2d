"""The text about a space says what counting every child one by one gives."""

import copy
import re
from statistics import median_low

import pytest

from modeling_magic import MagicConfig
from training.hub.presets import load_preset
from training.space.budgets import AdditiveCost, Budget, Limit
from training.space.costs import additive_cost, count_flops, count_parameters
from training.space.describe import describe_space
from training.space.search_space import SearchSpace, parse_architecture


CONFIG = MagicConfig(
    candidate_operators=[["MHA4", "FFN", "CONV3"], ["FFN", "CONV5"], ["MHA4", "FFN", "CONV3", "CONV5"]],
    vocab_size=101,
    hidden_size=32,
    intermediate_size=64,
    max_position_embeddings=40,
)
SPACE = SearchSpace.from_config(CONFIG.candidate_operators)
LATENCY = AdditiveCost("latency_ms", 250_000, {"MHA4": 900_000, "FFN": 2_000_001, "CONV3": 7, "CONV5": 1}, 1e-6)
PARAMETERS = additive_cost(CONFIG, "num_parameters")
PARAMETERS_WITH_SKIP = additive_cost(CONFIG, "num_parameters", operators=["MHA4", "CONV3", "SKIP"])


def numbers(text: str, first_word: str) -> list[float]:
    """The numbers on the line that begins with a word."""
    (line,) = [line for line in text.splitlines() if re.match(rf"{re.escape(first_word)}\s", line)]
    return [float(number.replace(",", "")) for number in re.findall(r"\d[\d,.e+-]*", line.removeprefix(first_word))]


def test_description_of_the_papers_space():
    text = describe_space(load_preset("magic-base"))
    assert "26 layers, 104 operators, 4,503,599,627,370,496 children (4.5e+15)" in text
    assert "budget" not in text


def test_description_of_bert_base():
    text = describe_space(load_preset("magic-base"), architecture="(MHA12,FFN)*12")
    assert "the child: (MHA12,FFN)*12" in text
    assert numbers(text, "num_parameters") == [109_514_298]
    assert numbers(text, "flops") == [2.864e10]
    assert describe_space(load_preset("bert-base")).splitlines()[4:] != text.splitlines()[4:]
    assert "the child: (MHA12,FFN)*12" in describe_space(load_preset("bert-base"))


def test_smallest_median_and_largest_are_those_of_all_children():
    text = describe_space(CONFIG, 12, costs=[LATENCY])
    parameters = {child: count_parameters(CONFIG, child, head="mlm") for child in SPACE.children()}
    flops = [count_flops(CONFIG, child, 12) for child in SPACE.children()]
    latencies = [round(LATENCY(child), 3) for child in SPACE.children()]
    for name, values in (("num_parameters", parameters.values()), ("flops", flops), ("latency_ms", latencies)):
        assert numbers(text, name) == [min(values), median_low(values), max(values)]
    for words, extreme in (("fewest parameters:", min), ("most parameters:", max)):
        (line,) = [line for line in text.splitlines() if line.startswith(words)]
        child = parse_architecture(line.removeprefix(words).strip())
        assert child in SPACE
        assert parameters[child] == extreme(parameters.values())
    assert "FLOPs of 12 tokens" in text


def test_a_space_with_skips():
    config = MagicConfig(
        **{**CONFIG.to_dict(), "candidate_operators": [["MHA4", "SKIP"], ["SKIP"], ["CONV3", "SKIP"]]}
    )
    space = SearchSpace.from_config(config.candidate_operators)
    text = describe_space(config, 12, budget=Budget((Limit(PARAMETERS_WITH_SKIP, maximum=20_000),)))
    parameters = [count_parameters(config, child, head="mlm") for child in space.children()]
    assert numbers(text, "num_parameters") == [min(parameters), median_low(parameters), max(parameters)]
    assert numbers(text, "SKIP") == [0, 0, 3]
    assert "fewest parameters: SKIP,SKIP,SKIP" in text
    within = sum(number <= 20_000 for number in parameters)
    assert f"within it: {within} of 4 children" in text
    child = describe_space(config, 12, "SKIP,SKIP,CONV3")
    assert numbers(child, "num_parameters") == [count_parameters(config, ("CONV3",), head="mlm")]
    assert numbers(child, "flops") == [count_flops(config, ("CONV3",), 12)]


def test_a_length_beyond_the_positions_is_cut():
    assert describe_space(CONFIG, 1000) == describe_space(CONFIG, 40)


def test_children_within_a_budget():
    budget = Budget((Limit(PARAMETERS, maximum=23_000), Limit(LATENCY, 0.5, 3.0)))
    within = [child for child in SPACE.children() if PARAMETERS(child) <= 23_000 and 0.5 <= LATENCY(child) <= 3.0]
    text = describe_space(CONFIG, 12, budget=budget)
    assert 0 < len(within) < 24
    assert "budget: num_parameters <= 23,000 and 0.5 <= latency_ms <= 3" in text
    assert f"within it: {len(within)} of 24 children ({100 * len(within) / 24:.4g}%)" in text


@pytest.mark.slow
def test_what_is_estimated_of_a_wide_space_says_so():
    operators = ["MHA4", "MHA2", "FFN", "FFNx7", "CONV3", "CONV5x9", "CONV7x11", "SKIP"]
    config = copy.deepcopy(CONFIG)
    config.candidate_operators, config.num_hidden_layers = [operators] * 40, 40
    cost = additive_cost(config, "num_parameters", head="mlm")
    text = describe_space(config, 12, budget=Budget((Limit(cost, maximum=cost(operators[:1] * 40) // 2),)))
    assert re.search(
        r"within it: about \d\.\d\de\+\d+ \(estimated, standard error [\d.e-]+%\) of [\d,]+ children", text
    )


def test_a_budget_that_cannot_be_met():
    smallest = min(map(PARAMETERS, SPACE.children()))
    text = describe_space(CONFIG, 12, budget=Budget((Limit(PARAMETERS, maximum=5000),)))
    assert "budget: num_parameters <= 5,000\nno child meets it\n" in text
    assert f"the nearest value of num_parameters that a child has is {smallest:,}, above the limit" in text


@pytest.mark.parametrize("config", [CONFIG, CONFIG.child_config(("MHA4", "FFN", "CONV5"))])
def test_a_child_and_a_budget(config):
    budget = Budget((Limit(PARAMETERS, maximum=5000), Limit(LATENCY, maximum=4)))
    text = describe_space(config, 12, "MHA4,FFN,CONV5" if config is CONFIG else None, budget, [LATENCY])
    count = count_parameters(CONFIG, ("MHA4", "FFN", "CONV5"), head="mlm")
    assert f"  num_parameters <= 5,000: not met, the value is {count:,}" in text
    assert "  latency_ms <= 4: met, the value is 3.150002" in text
    assert numbers(text, "latency_ms") == [3.15]


def test_a_child_of_operators_outside_the_space():
    child = ("MHA2", "FFNx48")
    text = describe_space(CONFIG, 12, "MHA2,FFNx48", Budget())
    assert numbers(text, "num_parameters") == [count_parameters(CONFIG, child, head="mlm")]
    assert numbers(text, "flops") == [count_flops(CONFIG, child, 12)]
