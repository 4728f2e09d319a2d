"""Closed forms of parameters, FLOPs and activation memory against built models, torch and published figures."""

import random
from itertools import product

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicModel
from training.space.budgets import Budget, BudgetedSpace, InfeasibleBudgetError, Limit
from training.space.costs import (
    CONVENTIONS,
    COSTS,
    activation_bytes,
    additive_cost,
    bert_pattern,
    count_flops,
    count_parameters,
    nearest_bert_pattern,
    operator_activation_bytes,
    operator_flops,
    operator_parameters,
    training_flops,
)
from training.space.search_space import SearchSpace


BERT_BASE = bert_pattern(24, "MHA12", "FFN")
OPERATORS = ("MHA4", "MHA2x24", "FFN", "FFNx80", "CONV3", "CONV5x48", "SKIP")


def small_config(**changes):
    values = {
        "candidate_operators": [list(OPERATORS)] * 2,
        "vocab_size": 101,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 20,
        "attn_implementation": "eager",
    }
    return MagicConfig(**values | changes)


def bert_base_config(**changes):
    return MagicConfig(candidate_operators=[[name] for name in BERT_BASE], **changes)


def roberta_base_config(**changes):
    return bert_base_config(
        vocab_size=50265, max_position_embeddings=514, type_vocab_size=1, pad_token_id=1, **changes
    )


def built_parameters(model_class, config):
    with torch.device("meta"):
        model = model_class(config)
    return sum(parameter.numel() for parameter in model.parameters())


def counted_flops(model, seq_len, **inputs):
    input_ids = torch.zeros(1, seq_len, dtype=torch.long, device=model.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids, **inputs)
    return counter.get_total_flops()


# Parameters


@pytest.mark.parametrize("architecture", list(product(OPERATORS, repeat=2)))
def test_parameters_of_every_child(architecture):
    configs = [small_config(candidate_operators=[[name] for name in architecture])]
    if set(architecture) != {"SKIP"}:
        configs.append(configs[0].child_config(architecture))
    for config in configs:
        assert count_parameters(config, architecture) == built_parameters(MagicModel, config)
        assert count_parameters(config, architecture, head="mlm") == built_parameters(MagicForMaskedLM, config)


@pytest.mark.parametrize("model_class", [MagicModel, MagicForMaskedLM])
def test_parameters_of_every_child_of_a_space_of_five_layers(model_class):
    """Each child's parameters are those of the super-net's own modules that it runs through."""
    candidates = ["MHA4", "FFN", "CONV3", "CONV5"]
    config = small_config(candidate_operators=[candidates] * 5, embedding_size=16)
    with torch.device("meta"):
        supernet = model_class(config)
    in_layers = [
        {
            name: sum(parameter.numel() for parameter in operator.parameters())
            for name, operator in layer.operators.items()
        }
        for layer in supernet.base_model.encoder.layer
    ]
    outside = supernet.num_parameters() - sum(sum(layer.values()) for layer in in_layers)
    head = "mlm" if model_class is MagicForMaskedLM else "none"
    cost = additive_cost(config, "num_parameters", head=head)
    children = list(SearchSpace.from_config(config.candidate_operators).children())
    assert len(children) == 4**5
    for child in children:
        built = outside + sum(layer[operator] for layer, operator in zip(in_layers, child, strict=True))
        assert count_parameters(config, child, head=head) == cost(child) == built
    for child in random.Random(0).sample(children, 5):
        assert cost(child) == built_parameters(model_class, config.child_config(child))


@pytest.mark.parametrize("tie_word_embeddings", [True, False])
@pytest.mark.parametrize("add_pooling_layer", [True, False])
def test_parameters_around_the_layers(tie_word_embeddings, add_pooling_layer):
    config = small_config(
        candidate_operators=[["MHA4"], ["CONV3"]],
        tie_word_embeddings=tie_word_embeddings,
        add_pooling_layer=add_pooling_layer,
        type_vocab_size=3,
    )
    architecture = ("MHA4", "CONV3")
    assert count_parameters(config, architecture) == built_parameters(MagicModel, config)
    assert count_parameters(config, architecture, head="mlm") == built_parameters(MagicForMaskedLM, config)


def test_parameters_without_embeddings():
    config = small_config(candidate_operators=[["FFN"]])
    with torch.device("meta"):
        model = MagicForMaskedLM(config)
    outside = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("magic.embeddings"))
    assert count_parameters(config, ("FFN",), embeddings=False, head="mlm") == outside
    assert count_parameters(config, ("FFN",), embeddings=False) == operator_parameters("FFN", config)


def test_parameters_of_supernet_operators():
    config = small_config()
    with torch.device("meta"):
        model = MagicModel(config)
    for name, operator in model.encoder.layer[0].operators.items():
        assert operator_parameters(name, config) == sum(parameter.numel() for parameter in operator.parameters())


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (bert_base_config(add_pooling_layer=True), 109_482_240),
        (roberta_base_config(add_pooling_layer=True), 124_645_632),
    ],
)
def test_parameters_of_published_models(config, published):
    assert count_parameters(config, BERT_BASE) == published == built_parameters(MagicModel, config)
    assert count_parameters(config, BERT_BASE, head="mlm") == built_parameters(MagicForMaskedLM, config)


# FLOPs


def test_flops_of_bert_base():
    """The first is what ELECTRA's script gives: dense lookups and a replaced-token head over 128 positions."""
    assert count_flops(bert_base_config(), BERT_BASE, 128, "electra-dense", head="rtd") == 28_616_498_688
    assert count_flops(bert_base_config(), BERT_BASE) == 28_644_141_312


def test_flops_of_the_papers_table_2():
    assert f"{count_flops(bert_base_config(), BERT_BASE):.1e}" == "2.9e+10"
    assert f"{count_flops(roberta_base_config(), BERT_BASE):.1e}" == "3.3e+10"


def test_electra_terms_by_hand():
    """Per token at hidden 2 and sequence length 3, written out for an MHA of 1 head, an FFN and a CONV of inner 2."""
    config = small_config(hidden_size=2, intermediate_size=2, candidate_operators=[["FFN"]])
    bias_dropout_residual = 2 + 4 * 2 + 2
    products_mha = 4 * 2 * 2 * 2 + 2 * (2 * 2 * 3)
    scale_softmax_dropout = 3 + 5 * 3 + 4 * 3
    mha = products_mha + 3 * 2 + scale_softmax_dropout + bias_dropout_residual + 5
    ffn = 2 * (2 * 2 * 2) + 2 + 8 * 2 + bias_dropout_residual + 5 * 2
    conv = ffn + 2 * 3 * 2 + 2
    assert [operator_flops(name, config, 3) for name in ("MHA1", "FFN", "CONV3")] == [3 * mha, 3 * ffn, 3 * conv]
    embeddings = 2 * 2 * (3 + 2) + 2 * 2 + 5 * 2 + 4 * 2
    assert count_flops(config, ("FFN",), 3, head="none") == 3 * (ffn + embeddings)
    lookup = 2 * 2 * 101
    assert count_flops(config, ("FFN",), 3, "electra-dense", head="none") == 3 * (ffn + embeddings + lookup)
    mlm = 2 * (2 * 2 + 2 * 101) + 2 + 8 * 2 + 5 * 2 + 5 * 101 + 2 * 101
    assert count_flops(config, ("FFN",), 3) == 3 * (ffn + embeddings + mlm)
    rtd = 2 * (2 * 2 + 2) + 2 + 8 * 2
    assert count_flops(config, ("FFN",), 3, head="rtd") == 3 * (ffn + embeddings + rtd)


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize("seq_len", [1, 12])
def test_torch_counts_the_same_operator(name, seq_len):
    config = small_config()
    with torch.device("meta"):
        operator = MagicModel(config).encoder.layer[0].operators[name].eval()
        hidden_states = torch.zeros(1, seq_len, config.hidden_size)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        operator(hidden_states)
    assert operator_flops(name, config, seq_len, "torch") == counter.get_total_flops()
    assert operator_flops(name, config, seq_len, "macs") * 2 == counter.get_total_flops()


def test_torch_counts_the_same_child():
    config = small_config(candidate_operators=[[name] for name in OPERATORS])
    with torch.device("meta"):
        encoder, masked_lm = MagicModel(config).eval(), MagicForMaskedLM(config).eval()
    assert count_flops(config, OPERATORS, 12, "torch", head="none") == counted_flops(
        encoder, 12, architecture=OPERATORS
    )
    assert count_flops(config, OPERATORS, 12, "torch") == counted_flops(masked_lm, 12, architecture=OPERATORS)


def test_torch_misses_the_depthwise_part_on_a_cpu():
    config = small_config()
    depthwise = 2 * 12 * (3 * 32 + 5 * 48)
    counted = counted_flops(MagicModel(config).eval(), 12, architecture=("CONV3", "CONV5x48"))
    assert count_flops(config, ("CONV3", "CONV5x48"), 12, "torch", head="none") - counted == depthwise


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_skip_costs_nothing(convention):
    config, child, chain = small_config(), ("SKIP", "MHA4", "SKIP", "CONV3"), ("MHA4", "CONV3")
    assert operator_flops("SKIP", config, 12, convention) == 0
    assert count_flops(config, child, 12, convention) == count_flops(config, chain, 12, convention)
    assert training_flops(config, child, 10, 1000) == training_flops(config, chain, 10, 1000)
    assert operator_parameters("SKIP", config) == operator_activation_bytes("SKIP", config, 12, 3) == 0
    for name in COSTS:
        cost = additive_cost(config, name, seq_len=12, convention=convention)
        assert cost.operators["SKIP"] == 0
        assert cost(child) == cost(chain)


def test_training_flops():
    """At full masking three forward passes; the head's share falls with the masked fraction."""
    config, child = small_config(), ("MHA4", "CONV3")
    encoder, whole = count_flops(config, child, 10, head="none"), count_flops(config, child, 10)
    assert training_flops(config, child, 10, 1000, masked_fraction=1.0) == 3 * 100 * whole
    assert training_flops(config, child, 10, 1000, head="none") == 3 * 100 * encoder
    assert training_flops(config, child, 10, 1000, masked_fraction=0.2) == 3 * (100 * encoder + 20 * (whole - encoder))
    assert training_flops(config, child, 10, 1000, masked_fraction=0.0) == 3 * 100 * encoder
    with_rtd = count_flops(config, child, 10, head="rtd")
    assert training_flops(config, child, 10, 1000, head="rtd") == 3 * 100 * with_rtd
    assert training_flops(config, child, 10, 0) == 0


def test_training_flops_of_bert_base_in_the_papers_setting():
    """125,000 steps of 2,048 sequences of 128 tokens (section 5.1), exact beyond the precision of a float."""
    tokens = 125_000 * 2048 * 128
    sequences = 125_000 * 2048
    encoder = count_flops(bert_base_config(), BERT_BASE, head="none")
    head = (count_flops(bert_base_config(), BERT_BASE) - encoder) // 128
    assert training_flops(bert_base_config(), BERT_BASE, 128, tokens) == 3 * (
        encoder * sequences + head * tokens * 15 // 100
    )


# Activation memory


def kept_bytes(config, architecture, seq_len, batch_size):
    """What a forward pass in training saves: the storages of all saved tensors, each once, without parameters."""
    model = MagicModel(config, add_pooling_layer=False).train()
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            # Held here, so that no later tensor gets the address.
            saved[storage.data_ptr()] = storage
        return tensor

    input_ids = torch.randint(1, config.vocab_size, (batch_size, seq_len))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(input_ids, architecture=architecture)
    return sum(storage.nbytes() for storage in saved.values())


@pytest.mark.parametrize("name", [*OPERATORS, "MHA1"])
@pytest.mark.parametrize("hidden_dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention_dropout", [0.0, 0.1])
@pytest.mark.parametrize("attention", ["eager", "sdpa", None])
def test_what_autograd_keeps_of_every_operator(name, hidden_dropout, attention_dropout, attention):
    config = small_config(
        candidate_operators=[[name]],
        hidden_dropout_prob=hidden_dropout,
        attention_probs_dropout_prob=attention_dropout,
        attn_implementation=attention,
    )
    for batch_size, seq_len in ((1, 1), (3, 1), (1, 7), (3, 7)):
        assert activation_bytes(config, (name,), seq_len, batch_size) == kept_bytes(
            config, (name,), seq_len, batch_size
        )


@given(
    st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=6),
    st.integers(1, 16),
    st.integers(1, 3),
    st.sampled_from([0.0, 0.1]),
    st.sampled_from([None, 16]),
    st.booleans(),
)
def test_what_autograd_keeps_of_random_children(child, seq_len, batch_size, dropout, embedding_size, padding_aware):
    config = small_config(
        candidate_operators=[[name] for name in child],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        embedding_size=embedding_size,
        padding_aware_positions=padding_aware,
        attn_implementation="sdpa",
    )
    assert activation_bytes(config, child, seq_len, batch_size) == kept_bytes(config, child, seq_len, batch_size)


@pytest.mark.parametrize("activation", ["gelu_new", "gelu_python", "gelu_pytorch_tanh", "quick_gelu", "relu", "silu"])
@pytest.mark.parametrize("name", ["FFN", "CONV3"])
def test_what_autograd_keeps_of_other_activations(activation, name):
    config = small_config(candidate_operators=[[name]], hidden_act=activation)
    assert activation_bytes(config, (name,), 7, 2) == kept_bytes(config, (name,), 7, 2)


# Costs for budgets


@given(
    st.lists(st.sampled_from(OPERATORS), min_size=1, max_size=8),
    st.sampled_from([None, 16]),
    st.booleans(),
    st.sampled_from(CONVENTIONS),
    st.sampled_from(["none", "mlm", "rtd"]),
    st.integers(1, 20),
)
def test_additive_cost_is_the_count_of_every_child(child, embedding_size, tied, convention, head, seq_len):
    config = small_config(embedding_size=embedding_size, tie_word_embeddings=tied, add_pooling_layer=True)
    flops = additive_cost(config, "flops", seq_len=seq_len, convention=convention, head=head)
    assert flops(child) == count_flops(config, child, seq_len, convention, head)
    activations = additive_cost(config, "activation_mb", seq_len=seq_len)
    assert activations.count(child) == activation_bytes(config, child, seq_len)
    assert activations(child) * 2**20 == activation_bytes(config, child, seq_len)
    if head != "rtd":
        parameters = additive_cost(config, "num_parameters", head=head)
        assert parameters(child) == count_parameters(config, child, head=head)
        assert isinstance(parameters(child), int)


def test_additive_cost_knows_the_candidates_of_all_layers_or_those_given():
    config = small_config(candidate_operators=[["FFN", "MHA4"], ["CONV3", "FFN"]])
    for name in COSTS:
        cost = additive_cost(config, name, seq_len=8)
        assert (cost.name, list(cost.operators)) == (name, ["FFN", "MHA4", "CONV3"])
        assert list(additive_cost(config, name, seq_len=8, operators=["MHA2"]).operators) == ["MHA2"]


def test_a_budget_over_real_costs():
    config = small_config(candidate_operators=[["MHA4", "FFN", "CONV3"]] * 3)
    space = SearchSpace.from_config(config.candidate_operators)
    parameters, flops = (additive_cost(config, name, seq_len=12) for name in ("num_parameters", "flops"))
    most_parameters, most_flops = parameters(("FFN", "MHA4", "CONV3")), flops(("FFN", "CONV3", "CONV3"))
    budget = Budget((Limit(parameters, maximum=most_parameters), Limit(flops, maximum=most_flops)))
    within = [
        child
        for child in space.children()
        if count_parameters(config, child, head="mlm") <= most_parameters
        and count_flops(config, child, 12) <= most_flops
    ]
    assert 0 < BudgetedSpace(space, budget).size == len(within) < space.size


def test_a_budget_over_a_space_with_skips():
    config = small_config(candidate_operators=[["MHA4", "FFN", "SKIP"], ["SKIP"], ["CONV3", "SKIP"], ["FFN", "SKIP"]])
    space = SearchSpace.from_config(config.candidate_operators)
    parameters, flops = (additive_cost(config, name, seq_len=12) for name in ("num_parameters", "flops"))
    nothing = count_parameters(config, (), head="mlm")
    most_flops = flops(("MHA4", "SKIP", "SKIP", "SKIP"))
    within = {
        child
        for child in space.children()
        if nothing < count_parameters(config, child, head="mlm") and count_flops(config, child, 12) <= most_flops
    }
    budget = Budget((Limit(parameters, minimum=nothing + 1), Limit(flops, maximum=most_flops)))
    restricted = BudgetedSpace(space, budget)
    assert 0 < restricted.size == len(within) < space.size
    assert {restricted.sample(random.Random(seed)) for seed in range(200)} == within
    too_small = BudgetedSpace(space, Budget((Limit(parameters, maximum=nothing - 1),)))
    with pytest.raises(
        InfeasibleBudgetError, match=f"nearest value of num_parameters that a child has is {nothing:,}, above"
    ):
        too_small.check()


# The BERT pattern


@pytest.mark.parametrize("head", ["none", "mlm"])
def test_nearest_bert_pattern_is_the_nearest(head):
    config = small_config()
    sizes = {
        pairs: count_parameters(config, bert_pattern(2 * pairs, "MHA4", "FFN"), head=head) for pairs in range(1, 9)
    }
    for target in range(0, sizes[7], 397):
        nearest = min(sizes, key=lambda pairs: (abs(sizes[pairs] - target), pairs))
        assert nearest_bert_pattern(config, target, head=head) == ("MHA4", "FFN") * nearest


def test_nearest_bert_pattern_prefers_the_smaller_of_two():
    config = small_config()
    two, three = (count_parameters(config, bert_pattern(n, "MHA4", "FFN"), head="mlm") for n in (4, 6))
    assert (two + three) % 2 == 0
    assert len(nearest_bert_pattern(config, (two + three) // 2)) == 4
    assert len(nearest_bert_pattern(config, (two + three) // 2 + 1)) == 6


def test_bert_base_is_its_own_nearest_pattern():
    config = bert_base_config()
    size = count_parameters(config, BERT_BASE, head="mlm")
    assert nearest_bert_pattern(config, size, attention="MHA12") == BERT_BASE


# What is refused


@pytest.mark.parametrize("num_layers", [0, 1, 7, -2])
def test_bert_pattern_needs_pairs(num_layers):
    with pytest.raises(ValueError, match=f"cannot have {num_layers} layers; choose an even number of at least 2"):
        bert_pattern(num_layers, "MHA4", "FFN")


@pytest.mark.parametrize("count", [count_parameters, count_flops])
@pytest.mark.parametrize(
    ("architecture", "message"),
    [
        (("MHA4", "GRU"), "unknown operator 'GRU'"),
        (("CONV4",), "'CONV4' has an even kernel 4"),
        (("MHA5",), "MHA5 has 5 heads, which do not divide its inner size 32"),
    ],
)
def test_wrong_operators_are_refused(count, architecture, message):
    with pytest.raises(ValueError, match=message):
        count(small_config(max_position_embeddings=128), architecture)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"convention": "flops"}, f"unknown convention 'flops'; choose one of: {', '.join(CONVENTIONS)}"),
        ({"head": "nsp"}, "unknown head 'nsp'; choose one of: none, mlm, rtd"),
        ({"seq_len": 0}, "seq_len is 0; max_position_embeddings allows 1 to 20"),
        ({"seq_len": 21}, "seq_len is 21; max_position_embeddings allows 1 to 20"),
    ],
)
def test_wrong_arguments_of_count_flops_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        count_flops(small_config(), ("FFN",), **({"seq_len": 8} | arguments))


def test_other_wrong_arguments_are_refused():
    config = small_config()
    with pytest.raises(ValueError, match="unknown head 'rtd'; choose one of: none, mlm"):
        count_parameters(config, ("FFN",), head="rtd")
    with pytest.raises(ValueError, match="masked_fraction is 15; it must be from 0 to 1"):
        training_flops(config, ("FFN",), 8, 800, masked_fraction=15)
    with pytest.raises(ValueError, match="num_tokens is -1; it must be at least 0"):
        training_flops(config, ("FFN",), 8, -1)
    with pytest.raises(ValueError, match="seq_len is 0"):
        training_flops(config, ("FFN",), 0, 800)
    with pytest.raises(ValueError, match="unknown cost 'params'; choose one of: num_parameters, flops, activation_mb"):
        additive_cost(config, "params")
    with pytest.raises(ValueError, match="batch_size is 0; it must be at least 1"):
        activation_bytes(config, ("FFN",), 8, 0)
    with pytest.raises(ValueError, match="seq_len is 21; max_position_embeddings allows 1 to 20"):
        operator_activation_bytes("FFN", config, 21)
    with pytest.raises(ValueError, match="the memory of the activation 'xielu' is unknown; known: gelu, "):
        activation_bytes(small_config(hidden_act="xielu"), ("FFN",), 8)
