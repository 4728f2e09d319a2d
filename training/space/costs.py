"""Parameters, FLOPs and activation memory of a child in closed form. No model is built; a child takes microseconds.

FLOPs are counted by one of several named conventions, because published figures follow different ones:

- "electra": one multiply-add is two operations, and biases, activations, softmax, norms, dropout and residual sums are
  counted as in ELECTRA's flops_computation.py. Word embeddings are lookups. With the masked-LM head over every
  position, BERT-base and RoBERTa-base at 128 tokens have the 2.9e10 and 3.3e10 of the paper's Table 2.
- "electra-dense": like "electra", but a word lookup is a product with one-hot vectors, the default of that script.
- "macs": the multiply-adds of matrix products and convolutions.
- "torch": the count of `torch.utils.flop_counter.FlopCounterMode` with eager attention, twice the "macs". On a CPU the
  counter misses the depth-wise part of CONV, which the model computes there without a convolution kernel.

For an operator registered by a program, the multiply-adds that its class reports and its parameters are counted. SKIP
costs nothing in any convention or other cost: an extracted child has no layer for it.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain

import torch

from modeling_magic.configuration_magic import (
    SKIP,
    MagicConfig,
    operator_inner_size,
    own_operator,
    parse_operator,
)

from ..internals import attention_implementation
from .budgets import AdditiveCost
from .search_space import Architecture


COSTS = ("num_parameters", "flops", "activation_mb")
CONVENTIONS = ("electra", "electra-dense", "macs", "torch")

# Operations per element, as in ELECTRA's script.
_DROPOUT_FLOPS = 4
_LAYER_NORM_FLOPS = 5
_ACTIVATION_FLOPS = 8
_SOFTMAX_FLOPS = 5

_FLOAT_BYTES = 4
_INT_BYTES = 8
# How many tensors of its size autograd keeps for an activation and the product after it. If the derivative is computed
# from the output, which the product keeps anyway, the input is not kept.
_ACTIVATION_TENSORS = {
    "gelu": 2,
    "gelu_new": 5,
    "gelu_python": 4,
    "gelu_pytorch_tanh": 2,
    "quick_gelu": 3,
    "relu": 1,
    "silu": 2,
    "swish": 2,
    "tanh": 1,
}


def operator_parameters(name: str, config: MagicConfig) -> int:
    """The number of parameters of one operator, including its norm."""
    kind, size, inner = _read_operator(name, config)
    if kind == SKIP:
        return 0
    if (own := own_operator(kind)) is not None:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in own(config, size, inner).parameters())
    hidden = config.hidden_size
    projection_in = hidden * inner + inner
    projection_out_and_norm = inner * hidden + hidden + 2 * hidden
    if kind == "MHA":
        return 3 * projection_in + projection_out_and_norm
    depthwise = size * inner + inner if kind == "CONV" else 0
    return projection_in + depthwise + projection_out_and_norm


def count_parameters(
    config: MagicConfig, architecture: Sequence[str], *, embeddings: bool = True, head: str = "none"
) -> int:
    """The number of parameters of a child's model; a decoder tied to the word embeddings counts once.

    Args:
        config: the sizes; its `candidate_operators` are not used.
        architecture: one operator name per layer.
        embeddings: whether to count the embeddings of words (hence also a tied decoder), positions and types, and
            their norm.
        head: "none" for MagicModel, with the pooler if the configuration has one; "mlm" for MagicForMaskedLM.
    """
    if head not in ("none", "mlm"):
        raise ValueError(f"unknown head {head!r}; choose one of: none, mlm")
    operators = sum(times * operator_parameters(name, config) for name, times in Counter(architecture).items())
    outside = _mlm_head_parameters(config) if head == "mlm" else _pooler_parameters(config)
    return operators + outside + (_embedding_parameters(config) if embeddings else 0)


def bert_pattern(num_layers: int, attention: str, feed_forward: str) -> Architecture:
    """The architecture of BERT: alternating attention and feed-forward operators; BERT-base has 24 such layers."""
    if num_layers < 2 or num_layers % 2:
        raise ValueError(f"the BERT pattern cannot have {num_layers} layers; choose an even number of at least 2")
    return (attention, feed_forward) * (num_layers // 2)


def nearest_bert_pattern(
    config: MagicConfig, num_parameters: int, attention: str = "MHA4", feed_forward: str = "FFN", *, head: str = "mlm"
) -> Architecture:
    """The BERT pattern whose number of parameters is nearest to `num_parameters`; the smaller one in case of a tie.

    Args:
        config: the sizes.
        num_parameters: the target, counted as by `count_parameters` with the same `head`, embeddings included.
        attention: the operator of the even layers.
        feed_forward: the operator of the odd layers.
        head: see `count_parameters`.
    """
    smallest = bert_pattern(2, attention, feed_forward)
    per_pair = operator_parameters(attention, config) + operator_parameters(feed_forward, config)
    missing = max(0, num_parameters - count_parameters(config, smallest, head=head))
    more_pairs, remainder = divmod(missing, per_pair)
    if 2 * remainder > per_pair:
        more_pairs += 1
    return smallest * (1 + more_pairs)


def operator_flops(name: str, config: MagicConfig, seq_len: int = 128, convention: str = "electra") -> int:
    """FLOPs of the forward pass of one operator over one sequence of `seq_len` tokens."""
    _check_counting(config, seq_len, convention)
    operator = _read_operator(name, config)
    if operator[0] == SKIP:
        return 0
    if (own := own_operator(operator[0])) is not None:
        return seq_len * _in_convention(convention, own.macs(config, *operator[1:], seq_len), 0)
    macs = _operator_macs(operator, config.hidden_size, seq_len)
    elementwise = _operator_elementwise(operator, config.hidden_size, seq_len)
    return seq_len * _in_convention(convention, macs, elementwise)


def count_flops(
    config: MagicConfig,
    architecture: Sequence[str],
    seq_len: int = 128,
    convention: str = "electra",
    head: str = "mlm",
) -> int:
    """FLOPs of the forward pass of a child over one sequence of `seq_len` tokens.

    Args:
        config: the sizes; its `candidate_operators` are not used.
        architecture: one operator name per layer.
        seq_len: the number of tokens, without padding.
        convention: one of `CONVENTIONS`, explained at the top of this file.
        head: "mlm" for the masked-LM head over every position, "rtd" for ELECTRA's replaced-token head over every
            position, "none" for the encoder alone, without a pooler.
    """
    return _encoder_flops(config, architecture, seq_len, convention) + seq_len * _head_flops(config, convention, head)


def training_flops(
    config: MagicConfig,
    architecture: Sequence[str],
    seq_len: int,
    num_tokens: int,
    masked_fraction: float = 0.15,
    head: str = "mlm",
) -> int:
    """FLOPs ("electra") of training on `num_tokens` tokens, for comparing re-trainings of children at equal compute.

    A backward pass counts as two forward passes. The masked-LM head runs on the masked positions only.

    Args:
        config: the sizes.
        architecture: one operator name per layer.
        seq_len: the number of tokens of a sequence.
        num_tokens: the total over all training steps, including masked tokens.
        masked_fraction: the fraction of tokens that the masked-LM head predicts, 0 to 1.
        head: see `count_flops`; the replaced-token head runs on every position.
    """
    if num_tokens < 0:
        raise ValueError(f"num_tokens is {num_tokens}; it must be at least 0")
    if not 0 <= masked_fraction <= 1:
        raise ValueError(f"masked_fraction is {masked_fraction}; it must be from 0 to 1")
    predicted_tokens = round(masked_fraction * num_tokens) if head == "mlm" else num_tokens
    encoder = _encoder_flops(config, architecture, seq_len, "electra") * num_tokens // seq_len
    return 3 * (encoder + predicted_tokens * _head_flops(config, "electra", head))


def operator_activation_bytes(name: str, config: MagicConfig, seq_len: int, batch_size: int = 1) -> int:
    """Bytes that one operator keeps for the backward pass, including its input; see `activation_bytes`."""
    _check_activations(config, seq_len, batch_size)
    kind, size, inner = _read_operator(name, config)
    if kind == SKIP:
        return 0
    if own_operator(kind) is not None:
        raise ValueError(f"the memory that {name} keeps for the backward pass is unknown; omit the activation limit")
    tokens, hidden = batch_size * seq_len, config.hidden_size
    # The input, the input of the norm, the norm's mean and deviation, and the dropout mask.
    around = tokens * (2 * hidden + 2) + _dropout_mask(config, tokens * hidden)
    if kind != "MHA":
        convolved = inner if kind == "CONV" else 0
        return _FLOAT_BYTES * (around + tokens * (_ACTIVATION_TENSORS[config.hidden_act] * inner + convolved))
    # Queries, keys, values and context. Of the attention weights, sdpa keeps only the normaliser.
    weights = tokens * seq_len * size
    if config.attention_probs_dropout_prob:
        attention = 3 * weights
    else:
        attention = weights if attention_implementation(config) == "eager" else tokens * size
    return _FLOAT_BYTES * (around + 4 * tokens * inner + attention)


def activation_bytes(config: MagicConfig, architecture: Sequence[str], seq_len: int = 128, batch_size: int = 1) -> int:
    """Bytes that autograd keeps for a child's encoder between the forward and the backward pass.

    Each storage that holds a tensor saved for the backward pass counts once; parameters do not count. The forward pass
    is a training pass on a CPU in float32, without a padding mask and without gradient checkpointing. It covers the
    embeddings, including token ids, and the operators, but not the head, the pooler or H_N, which the head would keep.
    The attention implementation is the model's own choice: eager with dropout on the attention weights, otherwise the
    one that the configuration names, or sdpa if it names none. Peak memory is higher, due to temporary tensors.

    Args:
        config: the sizes and dropout probabilities; its `candidate_operators` are not used.
        architecture: one operator name per layer.
        seq_len: the number of tokens of a sequence.
        batch_size: the number of sequences.

    Raises:
        ValueError: `seq_len` or `batch_size` is out of range, or the memory of the activation function is unknown.
    """
    counts = Counter(architecture).items()
    operators = sum(times * operator_activation_bytes(name, config, seq_len, batch_size) for name, times in counts)
    return _embedding_activation_bytes(config, seq_len, batch_size) + operators


def additive_cost(
    config: MagicConfig,
    name: str,
    *,
    seq_len: int = 128,
    convention: str = "electra",
    head: str = "mlm",
    operators: Iterable[str] | None = None,
) -> AdditiveCost:
    """Returns a cost of the children of a super-net in the form that budgets and searchers use.

    Args:
        config: the sizes and, unless `operators` is given, the operators.
        name: "num_parameters", embeddings included; "flops"; or "activation_mb", the `activation_bytes` of one
            sequence in units of 2**20 bytes.
        seq_len: the number of tokens, for "flops" and "activation_mb".
        convention: one of `CONVENTIONS`, for "flops".
        head: see `count_parameters` for "num_parameters" and `count_flops` for "flops"; unused for "activation_mb".
        operators: the names of the operators; by default the candidates of all layers.
    """
    names = dict.fromkeys(operators if operators is not None else chain.from_iterable(config.candidate_operators))
    if name == "num_parameters":
        outside = count_parameters(config, (), head=head)
        return AdditiveCost(name, outside, {operator: operator_parameters(operator, config) for operator in names})
    if name == "flops":
        outside = count_flops(config, (), seq_len, convention, head)
        each = {operator: operator_flops(operator, config, seq_len, convention) for operator in names}
        return AdditiveCost(name, outside, each)
    if name == "activation_mb":
        outside = activation_bytes(config, (), seq_len)
        each = {operator: operator_activation_bytes(operator, config, seq_len) for operator in names}
        return AdditiveCost(name, outside, each, unit=2**-20)
    raise ValueError(f"unknown cost {name!r}; choose one of: {', '.join(COSTS)}")


def _read_operator(name: str, config: MagicConfig) -> tuple[str, int, int]:
    """Kind, size (heads or kernel, 0 for an FFN and a SKIP) and inner size of an operator."""
    spec = parse_operator(name)
    size, inner = spec.size, operator_inner_size(spec, config)
    if spec.kind == "MHA" and inner % size:
        raise ValueError(f"{name} has {size} heads, which do not divide its inner size {inner}; choose a divisor")
    return spec.kind, size, inner


def _embedding_parameters(config: MagicConfig) -> int:
    rows = config.vocab_size + config.max_position_embeddings + config.type_vocab_size
    width, hidden = _embedding_width(config), config.hidden_size
    projection = width * hidden + hidden if width != hidden else 0
    return (rows + 2) * width + projection  # 2: scale and shift of the norm


def _embedding_width(config: MagicConfig) -> int:
    return config.embedding_size or config.hidden_size


def _pooler_parameters(config: MagicConfig) -> int:
    return config.hidden_size * (config.hidden_size + 1) if config.add_pooling_layer else 0


def _mlm_head_parameters(config: MagicConfig) -> int:
    width, vocab = _embedding_width(config), config.vocab_size
    transform = config.hidden_size * width + width + 2 * width
    # An untied decoder has its own bias in addition to the head's.
    untied = 0 if config.tie_word_embeddings else vocab * width + vocab
    return transform + vocab + untied


def _embedding_activation_bytes(config: MagicConfig, seq_len: int, batch_size: int) -> int:
    _check_activations(config, seq_len, batch_size)
    tokens, width = batch_size * seq_len, _embedding_width(config)
    # Ids of words, of positions (per batch or per sequence), and of the one type.
    ids = tokens + (tokens if config.padding_aware_positions else seq_len) + 1
    norm = tokens * (width + 2)
    projection = tokens * width if width != config.hidden_size else 0
    return _INT_BYTES * ids + _FLOAT_BYTES * (norm + _dropout_mask(config, tokens * width) + projection)


def _dropout_mask(config: MagicConfig, num_elements: int) -> int:
    return num_elements if config.hidden_dropout_prob else 0


def _check_activations(config: MagicConfig, seq_len: int, batch_size: int) -> None:
    _check_length(config, seq_len)
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; it must be at least 1")
    if config.hidden_act not in _ACTIVATION_TENSORS:
        raise ValueError(
            f"the memory of the activation {config.hidden_act!r} is unknown; known: {', '.join(_ACTIVATION_TENSORS)}"
        )


def _check_counting(config: MagicConfig, seq_len: int, convention: str) -> None:
    if convention not in CONVENTIONS:
        raise ValueError(f"unknown convention {convention!r}; choose one of: {', '.join(CONVENTIONS)}")
    _check_length(config, seq_len)


def _check_length(config: MagicConfig, seq_len: int) -> None:
    if not 1 <= seq_len <= config.max_position_embeddings:
        raise ValueError(f"seq_len is {seq_len}; max_position_embeddings allows 1 to {config.max_position_embeddings}")


def _in_convention(convention: str, macs: int, elementwise: int) -> int:
    if convention == "macs":
        return macs
    return 2 * macs + (0 if convention == "torch" else elementwise)


def _operator_macs(operator: tuple[str, int, int], hidden: int, seq_len: int) -> int:
    """Multiply-adds per token."""
    kind, size, inner = operator
    if kind == "MHA":
        return 4 * hidden * inner + 2 * inner * seq_len
    depthwise = size * inner if kind == "CONV" else 0
    return 2 * hidden * inner + depthwise


def _operator_elementwise(operator: tuple[str, int, int], hidden: int, seq_len: int) -> int:
    """Operations per token besides the products: biases, activation or softmax, dropout, residual sum and norm."""
    kind, size, inner = operator
    bias_dropout_residual = (1 + _DROPOUT_FLOPS + 1) * hidden
    if kind == "MHA":
        scale_softmax_dropout = (1 + _SOFTMAX_FLOPS + _DROPOUT_FLOPS) * seq_len * size
        # ELECTRA's script counts the norm after the attention once per token, not once per element. This is kept so
        # that figures are comparable; the difference is below a thousandth of the operator.
        return 3 * inner + scale_softmax_dropout + bias_dropout_residual + _LAYER_NORM_FLOPS
    bias_activation = (1 + _ACTIVATION_FLOPS) * inner
    depthwise_bias = inner if kind == "CONV" else 0
    return bias_activation + depthwise_bias + bias_dropout_residual + _LAYER_NORM_FLOPS * hidden


def _embedding_flops(config: MagicConfig, seq_len: int, convention: str) -> int:
    """FLOPs per token; ELECTRA's script counts positions and types as products even if words are looked up."""
    width, hidden = _embedding_width(config), config.hidden_size
    projection = 0 if width == hidden else _in_convention(convention, macs=width * hidden, elementwise=hidden)
    if not convention.startswith("electra"):
        return projection
    rows = seq_len + config.type_vocab_size + (config.vocab_size if convention == "electra-dense" else 0)
    return (2 * rows + 2 + _LAYER_NORM_FLOPS + _DROPOUT_FLOPS) * width + projection


def _head_flops(config: MagicConfig, convention: str, head: str) -> int:
    """FLOPs per predicted token."""
    hidden, width, vocab = config.hidden_size, _embedding_width(config), config.vocab_size
    if head == "none":
        return 0
    if head == "rtd":
        elementwise = (1 + _ACTIVATION_FLOPS) * hidden
        return _in_convention(convention, macs=hidden * hidden + hidden, elementwise=elementwise)
    if head == "mlm":
        elementwise = (1 + _ACTIVATION_FLOPS + _LAYER_NORM_FLOPS) * width + (_SOFTMAX_FLOPS + 2) * vocab
        return _in_convention(convention, macs=hidden * width + width * vocab, elementwise=elementwise)
    raise ValueError(f"unknown head {head!r}; choose one of: none, mlm, rtd")


def _encoder_flops(config: MagicConfig, architecture: Sequence[str], seq_len: int, convention: str) -> int:
    """FLOPs of the embeddings and operators over one sequence."""
    _check_counting(config, seq_len, convention)
    embeddings = seq_len * _embedding_flops(config, seq_len, convention)
    counts = Counter(architecture).items()
    return embeddings + sum(times * operator_flops(name, config, seq_len, convention) for name, times in counts)
