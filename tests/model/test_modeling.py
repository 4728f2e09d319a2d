"""The model against transformers' BertModel, against its own extracted children, and under padding."""

import io
import json
import math
import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from accelerate import cpu_offload
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForMaskedLM,
)

from modeling_magic import (
    MagicConfig,
    MagicForMaskedLM,
    MagicModel,
    OperatorSpec,
    configuration_magic,
    operator_inner_size,
    parse_operator,
    register_operator,
)
from modeling_magic.modeling_magic import AUTO_MAP, DepthwiseConv1d, Packing, dropout
from training.space.costs import additive_cost


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
OPERATORS = ["MHA4", "FFN", "CONV3", "CONV5"]
SKIPPING = ("SKIP", "CONV3", "SKIP", "MHA4")


def shake(model: nn.Module) -> None:
    """Moves every parameter off its initial value, where swapped norms and biases would go unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))


def padded_batch(vocab_size: int = 100) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(2)
    lengths = torch.tensor([14, 9, 5])
    mask = (torch.arange(14) < lengths[:, None]).long()
    ids = torch.randint(5, vocab_size, (3, 14), generator=generator) * mask
    return {
        "input_ids": ids,
        "attention_mask": mask,
        "token_type_ids": torch.randint(0, 2, (3, 14), generator=generator),
    }


BERT_NAMES = {
    "attention.self.query": "{mha}.query",
    "attention.self.key": "{mha}.key",
    "attention.self.value": "{mha}.value",
    "attention.output.dense": "{mha}.dense",
    "attention.output.LayerNorm": "{mha}.LayerNorm",
    "intermediate.dense": "{ffn}.intermediate",
    "output.dense": "{ffn}.dense",
    "output.LayerNorm": "{ffn}.LayerNorm",
}


def bert_and_chain(attn_implementation: str, num_layers: int = 3):
    """A random BertForMaskedLM and the MHA,FFN chain that holds its weights."""
    sizes: dict[str, Any] = {
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "attn_implementation": attn_implementation,
    }
    bert = BertForMaskedLM(BertConfig(**sizes, num_hidden_layers=num_layers, num_attention_heads=4)).eval()
    shake(bert)
    chain = MagicForMaskedLM(MagicConfig(**sizes, candidate_operators=[["MHA4"], ["FFN"]] * num_layers)).eval()
    state = {}
    for name, tensor in bert.state_dict().items():
        name = name.removeprefix("bert.")
        if name.startswith("encoder.layer."):
            _, _, index, rest = name.split(".", 3)
            module, leaf = rest.rsplit(".", 1)
            target = BERT_NAMES[module].format(
                mha=f"magic.encoder.layer.{2 * int(index)}.operators.MHA4",
                ffn=f"magic.encoder.layer.{2 * int(index) + 1}.operators.FFN",
            )
            state[f"{target}.{leaf}"] = tensor
        elif name.startswith("embeddings."):
            state[f"magic.{name}"] = tensor
        else:
            state[name.replace("cls.predictions.", "lm_head.").replace("transform.", "")] = tensor
    chain.load_state_dict(state)
    return bert, chain


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_chain_equals_bert(attn_implementation):
    bert, chain = bert_and_chain(attn_implementation)
    batch = padded_batch()
    labels = torch.where(torch.arange(14) % 3 == 0, batch["input_ids"], -100)
    with torch.no_grad():
        expected = bert(**batch, labels=labels, output_hidden_states=True)
        actual = chain(**batch, labels=labels, output_hidden_states=True)
    real = batch["attention_mask"].bool()
    assert len(actual.hidden_states) == 7
    for depth, hidden_states in enumerate(expected.hidden_states):
        torch.testing.assert_close(actual.hidden_states[2 * depth][real], hidden_states[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.logits[real], expected.logits[real], rtol=0, atol=1e-5)
    torch.testing.assert_close(actual.loss, expected.loss, rtol=0, atol=1e-5)


def test_chain_has_the_gradients_of_bert():
    bert, chain = bert_and_chain("sdpa")
    batch = padded_batch()
    labels = torch.where(torch.arange(14) % 3 == 0, batch["input_ids"], -100)
    chain.config.sparse_prediction = True
    bert(**batch, labels=labels).loss.backward()
    chain(**batch, labels=labels).loss.backward()
    torch.testing.assert_close(
        chain.magic.embeddings.word_embeddings.weight.grad, bert.bert.embeddings.word_embeddings.weight.grad
    )
    torch.testing.assert_close(
        chain.magic.encoder.layer[0].operators["MHA4"].query.weight.grad,
        bert.bert.encoder.layer[0].attention.self.query.weight.grad,
    )
    torch.testing.assert_close(
        chain.magic.embeddings.token_type_embeddings.weight.grad,
        bert.bert.embeddings.token_type_embeddings.weight.grad,
    )


def test_pooler_is_berts(tiny_config):
    model = MagicModel(tiny_config(candidate_operators=[["FFN"]], add_pooling_layer=True)).eval()
    output = model(padded_batch()["input_ids"])
    first = output.last_hidden_state[:, 0]
    torch.testing.assert_close(output.pooler_output, torch.tanh(first @ model.pooler.dense.weight.T))
    assert MagicModel(tiny_config())(padded_batch()["input_ids"], architecture=MIXED).pooler_output is None


@given(st.lists(st.sampled_from([*OPERATORS, "SKIP"]), min_size=4, max_size=4).filter(lambda names: len({*names}) > 1))
def test_child_inside_equals_extracted_child(operators):
    candidates = [[*OPERATORS, "SKIP"]] * 4
    config = MagicConfig(candidate_operators=candidates, vocab_size=100, hidden_size=32, intermediate_size=64)
    torch.manual_seed(0)
    supernet = MagicForMaskedLM(config).eval()
    shake(supernet)
    child = supernet.extract_child(operators)
    chain = [name for name in operators if name != "SKIP"]
    assert child.config.candidate_operators == [[name] for name in chain]
    batch = padded_batch()
    inside = supernet(**batch, architecture=operators, output_hidden_states=True)
    alone = child(**batch, output_hidden_states=True)
    assert torch.equal(inside.logits, alone.logits)
    depths = [0, *(depth for depth, name in enumerate(operators, 1) if name != "SKIP")]
    for depth, states in zip(depths, alone.hidden_states, strict=True):
        assert torch.equal(inside.hidden_states[depth], states)


def test_extracted_child_holds_copies_of_its_tensors_only(supernet):
    before = torch.random.get_rng_state()
    child = supernet.extract_child(MIXED)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert child.config.candidate_operators == [[name] for name in MIXED]
    own, theirs = supernet.state_dict(), child.state_dict()
    used = {f"magic.encoder.layer.{layer}.operators.{name}." for layer, name in enumerate(MIXED)}
    for name in own:
        on_path = ".operators." not in name or any(name.startswith(prefix) for prefix in used)
        assert (name in theirs) == on_path
    for name, tensor in theirs.items():
        assert torch.equal(tensor, own[name])
        assert tensor.data_ptr() != own[name].data_ptr()
    assert child.lm_head.decoder.weight is child.magic.embeddings.word_embeddings.weight
    assert child.lm_head.decoder.bias is child.lm_head.bias
    assert supernet.config.is_supernet
    assert not child.config.is_supernet


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", [MIXED, ("CONV5",) * 4, ("CONV3", "CONV5", "MHA4", "CONV5")])
def test_padding_changes_no_real_token(tiny_config, attn_implementation, architecture):
    torch.manual_seed(0)
    model = MagicForMaskedLM(tiny_config(attn_implementation=attn_implementation)).eval()
    shake(model)
    ids = torch.randint(5, 100, (2, 10))
    alone = model(ids, architecture=architecture).logits
    for extra in (1, 7, 30):
        # Pad tokens of any id: what stands there must not matter.
        padded = torch.cat([ids, torch.randint(0, 100, (2, extra))], dim=1)
        mask = torch.cat([torch.ones(2, 10), torch.zeros(2, extra)], dim=1).long()
        logits = model(padded, attention_mask=mask, architecture=architecture).logits
        torch.testing.assert_close(logits[:, :10], alone, rtol=0, atol=2e-5)


def test_eager_equals_sdpa(tiny_config):
    batch = padded_batch()
    outputs = {}
    for implementation in ("eager", "sdpa"):
        torch.manual_seed(0)
        model = MagicForMaskedLM(tiny_config(attn_implementation=implementation)).eval()
        assert model.config._attn_implementation == implementation
        outputs[implementation] = model(**batch, architecture=("MHA4",) * 4).logits[batch["attention_mask"].bool()]
    torch.testing.assert_close(outputs["eager"], outputs["sdpa"], rtol=0, atol=1e-5)


def test_hidden_states_and_attentions_on_demand(tiny_config):
    model = MagicForMaskedLM(tiny_config(attn_implementation="eager")).eval()
    batch = padded_batch()
    output = model(**batch, architecture=("MHA4", "CONV3", "MHA4", "FFN"), output_attentions=True)
    assert [weights.shape for weights in output.attentions] == [(3, 4, 14, 14)] * 2
    torch.testing.assert_close(output.attentions[0].sum(-1), torch.ones(3, 4, 14))
    assert output.hidden_states is None
    chosen = model(**batch, architecture=MIXED, output_hidden_states=[2, 4]).hidden_states
    everything = model(**batch, architecture=MIXED, output_hidden_states=True).hidden_states
    assert torch.equal(chosen[2], everything[2])
    assert torch.equal(chosen[4], everything[4])
    assert chosen[1] is None


def test_sparse_prediction_is_the_dense_loss_on_the_labelled_positions(supernet):
    batch = padded_batch()
    labels = torch.where(torch.arange(14) % 4 == 1, batch["input_ids"], -100)
    dense = supernet(**batch, labels=labels, architecture=MIXED)
    supernet.config.sparse_prediction = True
    sparse = supernet(**batch, labels=labels, architecture=MIXED)
    assert dense.logits.shape == (3, 14, 100)
    torch.testing.assert_close(sparse.logits, dense.logits[labels != -100])
    torch.testing.assert_close(sparse.loss, dense.loss)
    halved = supernet(**batch, labels=labels, architecture=MIXED, num_items_in_batch=2 * (labels != -100).sum()).loss
    torch.testing.assert_close(2 * halved, dense.loss)
    assert supernet(**batch, architecture=MIXED).logits.shape == (3, 14, 100)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("seq_len", [1, 2, 6])
def test_depthwise_convolution_equals_torchs(kernel_size, seq_len):
    torch.manual_seed(0)
    convolution = DepthwiseConv1d(6, kernel_size).double()
    states = torch.randn(2, seq_len, 6, dtype=torch.double, requires_grad=True)
    expected = nn.functional.conv1d(
        states.transpose(1, 2), convolution.weight, convolution.bias, padding=kernel_size // 2, groups=6
    ).transpose(1, 2)
    actual = convolution(states)
    torch.testing.assert_close(actual, expected)
    weights = [states, convolution.weight, convolution.bias]
    for own, theirs in zip(
        torch.autograd.grad(actual.sin().sum(), weights),
        torch.autograd.grad(expected.sin().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs)
    assert torch.autograd.gradcheck(convolution, (states,))


def packed_row(lengths: list[int], width: int = 6) -> tuple[Packing, torch.Tensor]:
    """The packing of sequences of these lengths, and random double states of their tokens in one row."""
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    packing = Packing.of(mask.long())
    assert packing is not None
    return packing, torch.randn(1, sum(lengths), width, dtype=torch.double, requires_grad=True)


@pytest.mark.parametrize("kernel_size", [1, 3, 5, 7])
@pytest.mark.parametrize("lengths", [[4, 6], [1, 2, 7, 1], [3, 1, 1, 2]])
def test_packed_depthwise_convolution_equals_torchs_on_each_sequence(kernel_size, lengths):
    torch.manual_seed(0)
    convolution = DepthwiseConv1d(6, kernel_size).double()
    packing, states = packed_row(lengths)
    # A call of the plain convolution for each sequence, with its channels first.
    expected = [nn.Conv1d.forward(convolution, own.transpose(1, 2)) for own in states.split(lengths, dim=1)]
    expected = torch.cat(expected, dim=2).transpose(1, 2)
    actual = convolution(states, packing)
    torch.testing.assert_close(actual, expected)
    weights = [states, convolution.weight, convolution.bias]
    for own, theirs in zip(
        torch.autograd.grad(actual.sin().sum(), weights),
        torch.autograd.grad(expected.sin().sum(), weights),
        strict=True,
    ):
        torch.testing.assert_close(own, theirs)
    assert torch.autograd.gradcheck(lambda states: convolution(states, packing), (states,))
    assert torch.equal(actual, packing.pack(convolution(packing.unpack(states))))


def test_nothing_passes_from_one_packed_sequence_to_the_next():
    torch.manual_seed(0)
    convolution = DepthwiseConv1d(6, 5).double()
    packing, states = packed_row([4, 6, 3])
    broken = states.detach().clone()
    broken[:, 4:10] = torch.inf
    broken.requires_grad_()
    output = convolution(broken, packing)
    others = [0, 1, 2, 3, 10, 11, 12]
    assert torch.equal(output[:, others], convolution(states, packing)[:, others])
    output[:, others].sum().backward()
    assert broken.grad.isfinite().all()


@pytest.mark.parametrize("capability", ["AVX2", "AVX512"])
@pytest.mark.parametrize("is_packed", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_depthwise_convolution_under_autocast(monkeypatch, dtype, is_packed, capability):
    # Which of two ways is taken depends on the processor.
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    torch.manual_seed(0)
    convolution = DepthwiseConv1d(6, 5)
    packing, states = packed_row([9, 2, 5])
    states = states.detach().to(dtype).requires_grad_()
    exact = states.detach().float().requires_grad_()
    parts = exact.split(packing.lengths if is_packed else [16], dim=1)
    expected = torch.cat([nn.Conv1d.forward(convolution, own.transpose(1, 2)) for own in parts], dim=2).transpose(1, 2)
    with torch.autocast("cpu", dtype=dtype):
        actual = convolution(states, packing if is_packed else None)
    assert actual.dtype == dtype
    torch.testing.assert_close(actual.float(), expected, rtol=0.02, atol=0.02)
    weights = (convolution.weight, convolution.bias)
    own = torch.autograd.grad(actual.float().sin().sum(), (states, *weights))
    theirs = torch.autograd.grad(expected.sin().sum(), (exact, *weights))
    assert [gradient.dtype for gradient in own] == [dtype, torch.float32, torch.float32]
    for gradient, reference in zip(own, theirs, strict=True):
        torch.testing.assert_close(gradient.float(), reference, rtol=0.03, atol=0.1)


def test_dropout_keeps_the_expectation_and_the_rate():
    torch.manual_seed(0)
    ones = torch.ones(1000, 999, requires_grad=True)
    dropped = dropout(ones, 0.1, training=True)
    zeros = (dropped == 0).float().mean().item()
    # Six standard deviations of a Bernoulli mean over 999,000 draws.
    assert abs(zeros - 0.1) < 6 * (0.09 / 999_000) ** 0.5
    assert dropped[dropped != 0].unique().numel() == 1
    assert abs(dropped.mean().item() - 1) < 0.003
    dropped.sum().backward()
    assert torch.equal(ones.grad, dropped.detach())
    neighbours = (dropped[:, :-1] == 0) & (dropped[:, 1:] == 0)
    assert abs(neighbours.float().mean().item() - 0.01) < 1e-3
    assert dropout(ones, 0.1, training=False) is ones
    assert dropout(ones, 0.0, training=True) is ones


def test_dropout_is_drawn_from_torchs_generator():
    states = torch.ones(50, 7)
    torch.manual_seed(3)
    first = dropout(states, 0.5, training=True)
    torch.manual_seed(3)
    assert torch.equal(dropout(states, 0.5, training=True), first)


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
def test_attention_dropout_acts_in_training_only(tiny_config, attn_implementation):
    config = tiny_config(attn_implementation=attn_implementation, hidden_dropout_prob=0.0)
    model = MagicForMaskedLM(config).train()
    batch = padded_batch()
    first, second = (model(**batch, architecture=("MHA4",) * 4).logits for _ in range(2))
    assert not torch.equal(first, second)
    model.eval()
    first, second = (model(**batch, architecture=("MHA4",) * 4).logits for _ in range(2))
    assert torch.equal(first, second)


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("architecture", [MIXED, SKIPPING])
def test_activation_checkpointing_gives_the_same_gradients(tiny_config, use_reentrant, architecture):
    batch = padded_batch()
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(0)
        model = MagicForMaskedLM(tiny_config(candidate_operators=[[*OPERATORS, "SKIP"]] * 4)).train()
        if checkpointed:
            model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": use_reentrant})
        torch.manual_seed(1)
        model(**batch, labels=batch["input_ids"], architecture=architecture).loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.grad is not None])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_operators_off_the_path_have_no_gradient(supernet):
    batch = padded_batch()
    supernet(**batch, labels=batch["input_ids"], architecture=MIXED).loss.backward()
    for name, parameter in supernet.named_parameters():
        if ".operators." in name:
            layer, operator = name.split("layer.")[1].split(".operators.")
            on_path = MIXED[int(layer)] == operator.split(".")[0]
            assert (parameter.grad is not None) == on_path, name


def test_initialisation(tiny_config):
    torch.manual_seed(0)
    model = MagicForMaskedLM(tiny_config(hidden_size=256, candidate_operators=[["MHA4", "FFN", "CONV3"]]))
    operators = model.magic.encoder.layer[0].operators
    assert operators["FFN"].dense.weight.std().item() == pytest.approx(0.02, rel=0.1)
    # A filter of three taps keeps the size of what it reads.
    assert operators["CONV3"].depthwise.weight.std().item() == pytest.approx(3**-0.5, rel=0.1)
    assert not model.lm_head.bias.any()
    assert not operators["CONV3"].depthwise.bias.any()


def test_a_bare_model_is_extracted_with_the_pooler_that_it_has(tiny_config):
    base = MagicForMaskedLM(tiny_config(add_pooling_layer=True)).magic
    assert base.extract_child(MIXED).pooler is None
    pooled = MagicModel(tiny_config(), add_pooling_layer=True)
    assert torch.equal(pooled.extract_child(MIXED).pooler.dense.weight, pooled.pooler.dense.weight)


def test_offloaded_weights_are_fetched(supernet):
    child = supernet.extract_child(MIXED)
    ids = padded_batch()["input_ids"]
    expected = child(ids).logits
    offloaded = cpu_offload(child, execution_device=torch.device("cpu"))
    assert torch.equal(offloaded(ids).logits, expected)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(supernet, dtype):
    child = supernet.extract_child(MIXED)
    batch = padded_batch()
    real = batch["attention_mask"].bool()
    expected = child(**batch).logits[real]
    half = supernet.extract_child(MIXED).to(dtype).train()
    output = half(**batch, labels=batch["input_ids"])
    assert output.logits.dtype == dtype
    output.loss.backward()
    assert half.magic.encoder.layer[1].operators["CONV3"].depthwise.weight.grad.isfinite().all()
    torch.testing.assert_close(half.eval()(**batch).logits[real].float(), expected, rtol=0, atol=0.05)


def test_exported_child_runs_on_other_shapes(supernet):
    child = supernet.extract_child(MIXED)
    sizes = {0: torch.export.Dim("batch", max=64), 1: torch.export.Dim("length", min=2, max=64)}
    example = {"input_ids": padded_batch()["input_ids"], "attention_mask": padded_batch()["attention_mask"]}
    exported = torch.export.export(child, (), example, dynamic_shapes=dict.fromkeys(example, sizes)).module()
    ids = torch.randint(5, 100, (2, 30))
    mask = torch.ones_like(ids)
    mask[1, 11:] = 0
    actual = exported(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(actual, child(ids, attention_mask=mask).logits[mask.bool()], rtol=0, atol=1e-5)


def test_resized_embeddings_stay_tied_and_keep_the_old_logits(supernet):
    child = supernet.extract_child(MIXED)
    ids = padded_batch()["input_ids"]
    before = child(ids).logits
    child.resize_token_embeddings(110)
    assert torch.equal(child(ids).logits[..., :100], before)
    assert child.lm_head.decoder.weight is child.magic.embeddings.word_embeddings.weight
    assert child.lm_head.bias.shape == (110,)


def test_save_and_load(supernet, tmp_path):
    supernet.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert isinstance(loaded, MagicForMaskedLM)
    for name, tensor in supernet.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    assert MagicModel.from_pretrained(tmp_path).config.candidate_operators == supernet.config.candidate_operators


def test_what_save_pretrained_writes_holds_the_code(supernet, tmp_path):
    """So does what `Trainer.save_model` and `push_to_hub` write, whatever the model was loaded from."""
    child = supernet.extract_child(("MHA4", "CONV3", "FFN", "CONV5"))
    child.save_pretrained(tmp_path / "child")
    assert "auto_map" not in child.config.to_dict()
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "child", num_labels=3)
    assert type(classifier).__module__ == "modeling_magic.modeling_magic"
    classifier.save_pretrained(tmp_path / "classifier")
    for name in ("child", "classifier"):
        assert {path.name for path in (tmp_path / name).glob("*.py")} == {
            "configuration_magic.py",
            "heads_magic.py",
            "kernels_magic.py",
            "modeling_magic.py",
        }
        assert json.loads((tmp_path / name / "config.json").read_text())["auto_map"] == AUTO_MAP


def test_compiled_child_equals_eager(supernet):
    child = supernet.extract_child(MIXED).eval()
    ids = padded_batch()["input_ids"]
    compiled = torch.compile(child, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids).logits, child(ids).logits, rtol=0, atol=1e-5)


def test_weights_are_plain_tensors(supernet):
    buffer = io.BytesIO()
    torch.save(supernet.state_dict(), buffer)
    buffer.seek(0)
    assert torch.load(buffer, weights_only=True).keys() == supernet.state_dict().keys()
    assert not dict(supernet.named_buffers())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"candidate_operators": [["MHA4"], ["CONF3"]]}, "layer 1: unknown operator 'CONF3'.*CONV<odd kernel>"),
        ({"candidate_operators": [["MHA5"]]}, "5 heads, which do not divide its inner size 32.*divisor of 32"),
        ({"candidate_operators": [["CONV4"]]}, "even kernel 4; choose an odd one, such as 5"),
        ({"candidate_operators": [["FFN"], []]}, "layer 1 has no candidate operator"),
        ({"candidate_operators": [["FFN", "FFN"]]}, "layer 0 names an operator twice"),
        ({"candidate_operators": []}, "candidate_operators is empty"),
        ({"num_hidden_layers": 3}, "num_hidden_layers is 3 but candidate_operators has 4 layers"),
        ({"num_attention_heads": 12}, "num_attention_heads is 12 but the operators have 4; omit num_attention_heads"),
        ({"hidden_dropout_prob": 1.0}, "hidden_dropout_prob is 1.0; it must be at least 0 and below 1"),
        ({"config_version": 2}, "configuration has version 2, but this code knows up to 1; use a newer release"),
        ({"hidden_size": 0}, "hidden_size is 0; it must be at least 1"),
        ({"hidden_act": "gelou"}, "hidden_act is 'gelou'; transformers knows"),
        ({"intermediat_size": 64}, "unknown configuration key 'intermediat_size'; did you mean 'intermediate_size'"),
    ],
)
def test_bad_configurations_name_value_and_remedy(tiny_config, changes, message):
    with pytest.raises(ValueError, match=message):
        tiny_config(**changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_hidden_layers": 10**6}, "num_hidden_layers is 1000000 but candidate_operators has 4 layers"),
        ({"candidate_operators": [["FFN"]] * 5_000}, "has 5,000 layers; it may have at most 1,000"),
        ({"candidate_operators": [["FFN"] * 5_000]}, "layer 0 has 5,000 operators; it may have at most 1,000"),
        ({"candidate_operators": [["MHA999999999"]]}, "layer 0: .* has the number 999,999,999; .* at most 65,536"),
        ({"candidate_operators": [["FFNx" + "9" * 5_000]]}, "layer 0: operator 'FFNx9.* has 5,004 characters"),
        ({"hidden_size": 10**9}, "hidden_size is 1000000000; it must be at most 65,536"),
        ({"embedding_size": 10**9}, "embedding_size is 1000000000; it must be at most 65,536"),
        ({"intermediate_size": 10**9}, "intermediate_size is 1000000000; it must be at most 65,536"),
        ({"vocab_size": 10**12}, "vocab_size is 1000000000000; it must be at most 16,777,216"),
        ({"type_vocab_size": 10**9}, "type_vocab_size is 1000000000; it must be at most 65,536"),
        ({"max_position_embeddings": 10**12}, "max_position_embeddings is 1000000000000; it must be at most"),
        ({"pad_token_id": -1}, "pad_token_id is -1; it must be in the vocabulary, 0 to "),
        ({"pad_token_id": 10**6}, "pad_token_id is 1000000; it must be in the vocabulary, 0 to "),
        ({"bos_token_id": -5}, "bos_token_id is -5; it must be at least 0"),
        ({"num_labels": 10**9}, "num_labels is 1000000000; it must be from 0 to 1,048,576"),
        ({"num_labels": -1}, "num_labels is -1; it must be from 0 to 1,048,576"),
        ({"layer_norm_eps": math.nan}, "layer_norm_eps is nan; it must be a number above 0"),
        ({"initializer_range": -1.0}, "initializer_range is -1.0; it must be a number of at least 0"),
        ({"padding_aware_positions": True, "pad_token_id": 64}, "which leaves no position for the first token, 65"),
    ],
)
def test_configurations_out_of_range_are_refused_at_once(tiny_config, tmp_path, changes, message):
    """A configuration may be a stranger's: what is refused has taken neither the time nor the memory that it names."""
    values = {**tiny_config(vocab_size=100, max_position_embeddings=64).to_dict(), **changes}
    if "candidate_operators" in changes:
        values.pop("num_hidden_layers")
    (tmp_path / "config.json").write_text(json.dumps(values))
    start = time.process_time()
    with pytest.raises(ValueError, match=message):
        MagicConfig.from_pretrained(tmp_path)
    assert time.process_time() - start < 1


def test_far_too_many_layers_are_refused_before_each_is_looked_at():
    with pytest.raises(ValueError, match="candidate_operators has 1,000,000 layers; it may have at most 1,000"):
        # Wrong layers too: none was looked at.
        MagicConfig.from_dict({"candidate_operators": [3] * 10**6})


def test_heads_are_the_most_of_any_operator_and_not_saved(tiny_config, tmp_path):
    config = tiny_config(candidate_operators=[["MHA2"], ["FFN", "MHA8"], ["CONV3"]], num_attention_heads=8)
    assert config.num_attention_heads == 8
    assert "num_attention_heads" not in config.to_dict()
    assert config.child_config(["MHA2", "FFN", "CONV3"]).num_attention_heads == 2
    # What divides by it gets the whole width.
    assert tiny_config(candidate_operators=[["CONV3"], ["FFN", "SKIP"]]).num_attention_heads == 1
    with pytest.raises(ValueError, match="num_attention_heads is 4 but the operators have 8"):
        config.num_attention_heads = 4
    config.save_pretrained(tmp_path)
    values = json.loads((tmp_path / "config.json").read_text())
    # As another library may have written it beside the operators.
    (tmp_path / "config.json").write_text(json.dumps({**values, "num_attention_heads": 8}))
    assert MagicConfig.from_pretrained(tmp_path).num_attention_heads == 8


def test_what_was_saved_loads(tiny_config, tmp_path):
    config = tiny_config()
    config.layer_norm_epsilon = 1.0
    config.save_pretrained(tmp_path)
    assert MagicConfig.from_pretrained(tmp_path).layer_norm_epsilon == 1.0
    assert config.child_config(MIXED).layer_norm_epsilon == 1.0


@pytest.mark.parametrize(
    "name",
    ["", "MHA", "FFN3", "CONV", "MHA0", "MHA4x", "mha4", "FFNx0", "CONV3 ", "XMHA4", "SKIP2", "SKIPx3", "skip"],
)
def test_names_outside_the_grammar_are_refused(name):
    with pytest.raises(ValueError, match=r"unknown operator .* MHA<heads>, FFN or CONV<odd kernel>, .*, or SKIP"):
        parse_operator(name)


def test_wrong_architectures_name_value_and_remedy(supernet):
    ids = padded_batch()["input_ids"]
    with pytest.raises(ValueError, match="super-net of 4 layers; choose the child"):
        supernet(ids)
    with pytest.raises(ValueError, match="3 operators but the model has 4 layers"):
        supernet(ids, architecture=MIXED[:3])
    with pytest.raises(ValueError, match="layer 2 has no operator 'CONV7'; candidates: MHA4, FFN, CONV3, CONV5"):
        supernet.extract_child(("MHA4", "FFN", "CONV7", "FFN"))


def test_wrong_inputs_name_value_and_remedy(supernet):
    ids = torch.ones(1, 65, dtype=torch.long)
    with pytest.raises(ValueError, match="65 tokens but the model has 64 positions; truncate"):
        supernet(ids, architecture=MIXED)
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        supernet(architecture=MIXED)
    with pytest.raises(ValueError, match=r"attention_mask has 4 dimensions.*CONV"):
        supernet(ids[:, :8], attention_mask=torch.ones(1, 1, 8, 8), architecture=MIXED)


# ---- SKIP ----


@pytest.fixture
def skipping_supernet(tiny_config) -> MagicForMaskedLM:
    """A super-net that offers SKIP in every layer, its parameters off their start."""
    torch.manual_seed(0)
    supernet = MagicForMaskedLM(tiny_config(candidate_operators=[["SKIP", *OPERATORS]] * 4)).eval()
    shake(supernet)
    return supernet


def test_skip_has_no_size(tiny_config):
    spec = parse_operator("SKIP")
    assert spec == OperatorSpec("SKIP", 0, None)
    assert operator_inner_size(spec, tiny_config()) == 0


def test_skip_is_the_identity_without_weights(skipping_supernet):
    skip = skipping_supernet.magic.encoder.layer[0].operators["SKIP"]
    assert not skip.state_dict()
    batch = padded_batch()
    states = skipping_supernet.magic.embeddings(batch["input_ids"])
    masks = skipping_supernet.magic.attention_masks(states, batch["attention_mask"])
    assert skip(states)[0] is states
    assert skip(states, *masks)[0] is states
    packing = Packing.of(batch["attention_mask"])
    packed = packing.pack(states)
    assert skip(packed, packing=packing)[0] is packed
    nowhere = skipping_supernet.magic(batch["input_ids"], architecture=("SKIP",) * 4)
    assert torch.equal(nowhere.last_hidden_state, states)


def test_skip_hands_on_its_hidden_state_and_attends_to_nothing(skipping_supernet):
    skipping_supernet.set_attn_implementation("eager")
    output = skipping_supernet(
        **padded_batch(), architecture=SKIPPING, output_hidden_states=True, output_attentions=True
    )
    states = output.hidden_states
    assert len(states) == 5
    assert [torch.equal(before, after) for before, after in pairwise(states)] == [True, False, True, False]
    assert [weights.shape for weights in output.attentions] == [(3, 4, 14, 14)]


@pytest.mark.parametrize("extracted", [False, True])
def test_a_child_that_skips_runs_unpadded(skipping_supernet, extracted):
    batch = padded_batch()
    real = batch["attention_mask"].bool()
    model, chosen = skipping_supernet, {"architecture": SKIPPING}
    if extracted:
        model, chosen = skipping_supernet.extract_child(SKIPPING), {}
    expected = model(**batch, **chosen).logits[real]
    model.config.unpad_inputs = True
    torch.testing.assert_close(model(**batch, **chosen).logits[real], expected, rtol=0, atol=1e-5)


def test_a_child_that_skips_has_the_form_of_any_other(supernet, skipping_supernet):
    child = skipping_supernet.extract_child(SKIPPING)
    # The same child of a super-net of two layers that knows no SKIP.
    config = MagicConfig(
        **{**supernet.config.to_dict(), "candidate_operators": [OPERATORS] * 2, "num_hidden_layers": 2}
    )
    config._attn_implementation = supernet.config._attn_implementation
    other = MagicForMaskedLM(config).extract_child(("CONV3", "MHA4"))
    assert child.config.to_dict() == other.config.to_dict()
    assert child.config.num_hidden_layers == 2
    own, theirs = child.state_dict(), skipping_supernet.state_dict()
    assert own.keys() == other.state_dict().keys()
    for layer, operator, source in ((0, "CONV3", 1), (1, "MHA4", 3)):
        prefix = f"magic.encoder.layer.{layer}.operators.{operator}."
        names = [name for name in own if name.startswith(prefix)]
        assert names
        for name in names:
            found = theirs[name.replace(f"layer.{layer}.", f"layer.{source}.")]
            assert torch.equal(own[name], found)
            assert own[name].data_ptr() != found.data_ptr()


def test_a_child_of_nothing_but_skip_is_refused(skipping_supernet):
    for extract in (skipping_supernet.extract_child, skipping_supernet.config.child_config):
        with pytest.raises(
            ValueError, match=r"SKIP in all of its 4 layers.* give at least one layer another operator"
        ):
            extract(["SKIP"] * 4)


def test_a_supernet_with_nothing_but_skip_in_a_layer_loads(tiny_config, tmp_path):
    torch.manual_seed(0)
    shrunk = MagicForMaskedLM(tiny_config(candidate_operators=[["MHA4"], ["SKIP"], ["FFN"]])).eval()
    assert shrunk.config.is_supernet
    shrunk.save_pretrained(tmp_path)
    loaded, info = AutoModelForMaskedLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    ids = padded_batch()["input_ids"]
    with pytest.raises(ValueError, match="super-net of 3 layers; choose the child"):
        loaded(ids)
    expected = shrunk(ids, architecture=shrunk.config.chain).logits
    assert torch.equal(loaded(ids, architecture=loaded.config.chain).logits, expected)
    child = loaded.extract_child(loaded.config.chain)
    assert not child.config.is_supernet
    assert child.config.chain == ("MHA4", "FFN")
    assert torch.equal(child(ids).logits, expected)


def test_skip_gives_the_other_layers_their_gradients(skipping_supernet):
    batch = padded_batch()
    child = skipping_supernet.extract_child(SKIPPING)
    skipping_supernet(**batch, labels=batch["input_ids"], architecture=SKIPPING).loss.backward()
    child(**batch, labels=batch["input_ids"]).loss.backward()
    inside = [parameter.grad for parameter in skipping_supernet.parameters() if parameter.grad is not None]
    alone = [parameter.grad for parameter in child.parameters()]
    assert all(torch.equal(own, theirs) for own, theirs in zip(inside, alone, strict=True))


def test_a_child_that_skips_is_compiled_and_exported(skipping_supernet):
    ids = padded_batch()["input_ids"]
    expected = skipping_supernet(ids, architecture=SKIPPING).logits
    compiled = torch.compile(skipping_supernet, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(ids, architecture=SKIPPING).logits, expected, rtol=0, atol=1e-5)
    inputs = {"input_ids": ids, "architecture": SKIPPING}
    exported = torch.export.export(skipping_supernet, (), inputs).module()
    torch.testing.assert_close(exported(**inputs).logits, expected, rtol=0, atol=1e-5)


# ---- Real tokens only ----


@pytest.mark.parametrize("attn_implementation", ["eager", "sdpa"])
@pytest.mark.parametrize("architecture", [MIXED, ("CONV5",) * 4, ("MHA4",) * 4])
@pytest.mark.parametrize("side", ["left", "right"])
def test_unpadded_equals_padded(tiny_config, attn_implementation, architecture, side):
    torch.manual_seed(0)
    supernet = MagicForMaskedLM(tiny_config(attn_implementation=attn_implementation))
    shake(supernet)
    child = supernet.extract_child(architecture).eval()
    batch = padded_batch()
    if side == "left":
        batch = {name: value.flip(1) for name, value in batch.items()}
    real = batch["attention_mask"].bool()
    expected = child(**batch).logits[real]
    rows = []
    handle = child.magic.encoder.layer[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape))
    child.config.unpad_inputs = True
    torch.testing.assert_close(child(**batch).logits[real], expected, rtol=0, atol=1e-5)
    assert rows == [(1, 28, 32)]
    assert not child.magic(**batch).last_hidden_state[~real].any()
    handle.remove()


def test_padding_stays_where_packing_would_change_something(tiny_config):
    child = MagicForMaskedLM(tiny_config(unpad_inputs=True)).extract_child(MIXED)
    batch = padded_batch()
    rows = []
    child.magic.encoder.layer[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    states = child(**batch, output_hidden_states=True).hidden_states
    assert states[1].shape == (3, 14, 32)
    child(batch["input_ids"])
    batch["attention_mask"][0, 5] = 0
    child(**batch)
    assert rows == [3, 3, 3]


@pytest.mark.parametrize("checkpointing", [False, True])
def test_unpadded_training_has_the_gradients_of_padded(tiny_config, checkpointing):
    torch.manual_seed(0)
    supernet = MagicForMaskedLM(tiny_config(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0))
    shake(supernet)
    child = supernet.extract_child(MIXED).train()
    if checkpointing:
        child.activation_checkpointing_enable()
    batch = padded_batch()
    labels = batch["input_ids"].masked_fill(~batch["attention_mask"].bool(), -100)
    gradients, rows = [], []
    child.magic.encoder.layer[0].register_forward_pre_hook(lambda _, inputs: rows.append(inputs[0].shape[0]))
    for child.config.unpad_inputs in (False, True):
        child.zero_grad()
        child(**batch, labels=labels).loss.backward()
        gradients.append({name: weight.grad.clone() for name, weight in child.named_parameters()})
    # Three padded sequences, then all their tokens in one row.
    assert rows == [3, 1]
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


# ---- Operators that a program registers ----


class Scaled(torch.nn.Module):
    """As many multiply-adds as features."""

    def __init__(self, config, size, inner_size):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.full((config.hidden_size,), float(size or inner_size)))

    def forward(self, hidden_states, attention_mask=None, padding_mask=None, packing=None, **kwargs):
        return hidden_states * self.scale, None

    @staticmethod
    def macs(config, size, inner_size, seq_len):
        return config.hidden_size


@pytest.fixture
def scaled(monkeypatch):
    monkeypatch.setattr(configuration_magic, "_OWN_OPERATORS", {})
    register_operator("SCALE", Scaled)


@pytest.mark.usefixtures("scaled")
def test_a_registered_operator_is_read_and_run_as_any_other(tiny_config):
    assert parse_operator("SCALE2x8") == OperatorSpec("SCALE", 2, 8)
    assert parse_operator("SCALE") == OperatorSpec("SCALE", 0, None)
    # Those of the package are what they were.
    assert parse_operator("CONV3x16") == OperatorSpec("CONV", 3, 16)
    config = tiny_config(candidate_operators=[["SCALE2", "FFN"], ["SCALEx3", "MHA4"]])
    model = MagicModel(config).eval()
    ids = torch.arange(5, 11).view(1, 6)
    states = model(ids, architecture=["SCALE2", "SCALEx3"]).last_hidden_state
    torch.testing.assert_close(states, 6 * model.embeddings(ids))
    # Twice, the class is the same; another class of that name is refused.
    register_operator("SCALE", Scaled)
    with pytest.raises(ValueError, match=r"unknown operator 'GLU'; .* or one of the registered kinds SCALE"):
        parse_operator("GLU")


@pytest.mark.parametrize(
    ("kind", "operator", "message"),
    [
        ("SCALE", torch.nn.Linear, "the kind of operator SCALE already exists"),
        ("MHA", Scaled, "the kind of operator MHA already exists"),
        ("Scale", Scaled, "'Scale' is not a word of 2 to 12 capital letters"),
        ("GLU2", Scaled, "'GLU2' is not a word"),
        ("GLU", torch.nn.Linear, "Linear has no static method macs"),
    ],
)
@pytest.mark.usefixtures("scaled")
def test_what_cannot_be_registered_is_refused(kind, operator, message):
    with pytest.raises(ValueError, match=message):
        register_operator(kind, operator)


@pytest.mark.usefixtures("scaled")
def test_what_a_registered_operator_keeps_is_not_known(tiny_config):
    config = tiny_config(candidate_operators=[["SCALE2", "FFN"]])
    with pytest.raises(ValueError, match="the memory that SCALE2 keeps for the backward pass is unknown"):
        additive_cost(config, "activation_mb", seq_len=8)
    assert additive_cost(config, "num_parameters").operators["SCALE2"] == config.hidden_size
