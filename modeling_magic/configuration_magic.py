"""MAGIC configuration: the operator grammar, and the configuration of an encoder or super-net."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


# The identity: a layer that a child skips.
SKIP = "SKIP"

OPERATOR_GRAMMAR = (
    "MHA<heads>, FFN or CONV<odd kernel>, each with an optional x<inner size>, as in MHA12 or FFNx3200, or SKIP"
)
_OPERATOR_PATTERN = re.compile(r"(?P<kind>MHA|FFN|CONV)(?P<size>[1-9][0-9]*)?(?:x(?P<inner_size>[1-9][0-9]*))?")

_OWN_PATTERN = re.compile(r"(?P<kind>[A-Z]+)(?P<size>[1-9][0-9]*)?(?:x(?P<inner_size>[1-9][0-9]*))?")
_KIND_PATTERN = re.compile(r"[A-Z]{2,12}")
_KINDS = ("MHA", "FFN", "CONV", SKIP)
# The classes of registered kinds.
_OWN_OPERATORS: dict[str, type] = {}

# A configuration may come from anywhere. Values above these limits are mistakes, or meant to exhaust the memory.
MAX_WIDTH = 2**16
MAX_LAYERS = 1_000
MAX_CANDIDATES = 1_000
MAX_LABELS = 2**20
_LARGEST = {
    "vocab_size": 2**24,
    "hidden_size": MAX_WIDTH,
    "intermediate_size": MAX_WIDTH,
    "max_position_embeddings": 2**20,
    "type_vocab_size": MAX_WIDTH,
    "embedding_size": MAX_WIDTH,
}
_LONGEST_NAME = 40


def _check_num_layers(candidate_operators) -> None:
    if isinstance(candidate_operators, list) and len(candidate_operators) > MAX_LAYERS:
        raise ValueError(
            f"candidate_operators has {len(candidate_operators):,} layers; it may have at most {MAX_LAYERS:,}"
        )


@dataclass(frozen=True)
class OperatorSpec:
    """A candidate operator, parsed from its name.

    Attributes:
        kind: `"MHA"` (multi-head attention), `"FFN"` (feed-forward), `"CONV"` (depth-wise separable convolution),
            `"SKIP"` (the identity) or a kind added by `register_operator`.
        size: the number of heads of an MHA or the kernel width of a CONV; 0 for an FFN, a SKIP, and names without one.
        inner_size: the width between the projections; `None` for the default of the kind (see `operator_inner_size`).
    """

    kind: str
    size: int
    inner_size: int | None


def register_operator(kind: str, operator: type) -> None:
    """Adds a kind of operator to the grammar of this process: `kind` with an optional size and inner size.

    A model with such an operator can only be loaded by programs that have registered it; the code in an exported
    folder does not know it.

    Args:
        kind: capital letters, such as "GLU"; operator names are then GLU, GLU4, GLUx256 and GLU4x256.
        operator: a module class that is called as `operator(config, size, inner_size)`. Its `forward` takes hidden
            states (batch, seq_len, hidden), an attention mask, a padding mask (batch, seq_len, 1), packing and keyword
            arguments, and returns the normed output and `None`. Its static method
            `macs(config, size, inner_size, seq_len)` returns the multiply-adds per token.

    Raises:
        ValueError: the kind is not such a word, it belongs to another class, or the class has no method `macs`.
    """
    if not _KIND_PATTERN.fullmatch(kind):
        raise ValueError(f"the kind of operator {kind!r} is not a word of 2 to 12 capital letters, such as GLU")
    if kind in _KINDS or _OWN_OPERATORS.get(kind, operator) is not operator:
        raise ValueError(f"the kind of operator {kind} already exists; choose another name")
    if not callable(getattr(operator, "macs", None)):
        raise ValueError(f"{operator.__name__} has no static method macs(config, size, inner_size, seq_len); add it")
    _OWN_OPERATORS[kind] = operator


def own_operator(kind: str) -> Any:
    """Returns the class of a registered kind; `None` for the kinds of this package."""
    return _OWN_OPERATORS.get(kind)


def parse_operator(name: str) -> OperatorSpec:
    """Parses an operator name such as `MHA12`, `FFNx3200`, `CONV3` or `SKIP`.

    Raises:
        ValueError: the name does not follow the grammar, one of its numbers is above `MAX_WIDTH`, or its kernel is
            even (and would have no middle token).
    """
    if name == SKIP:
        return OperatorSpec(SKIP, 0, None)
    if len(name) > _LONGEST_NAME:
        raise ValueError(
            f"operator {name[:_LONGEST_NAME]!r}... has {len(name):,} characters; an operator is {OPERATOR_GRAMMAR}, "
            f"its numbers at most {MAX_WIDTH:,}"
        )
    match = _OWN_PATTERN.fullmatch(name)
    if match is None or match["kind"] not in _OWN_OPERATORS:
        match = _OPERATOR_PATTERN.fullmatch(name)
    kind = match["kind"] if match else None
    if match is None or (kind in _KINDS and (match["size"] is None) != (kind == "FFN")):
        also = f", or one of the registered kinds {', '.join(_OWN_OPERATORS)}" if _OWN_OPERATORS else ""
        raise ValueError(f"unknown operator {name!r}; an operator is {OPERATOR_GRAMMAR}{also}")
    size = int(match["size"] or 0)
    for number in (size, int(match["inner_size"] or 0)):
        if number > MAX_WIDTH:
            raise ValueError(f"operator {name!r} has the number {number:,}; it must be at most {MAX_WIDTH:,}")
    if kind == "CONV" and size % 2 == 0:
        raise ValueError(f"operator {name!r} has an even kernel {size}; choose an odd one, such as {size + 1}")
    return OperatorSpec(match["kind"], size, int(match["inner_size"]) if match["inner_size"] else None)


def operator_inner_size(spec: OperatorSpec, config: "MagicConfig") -> int:
    """The width between the projections of an operator, as given by its name, or the default of its kind.

    The default is `intermediate_size` for an FFN and `hidden_size` for all others, as in BERT (5.1). It is 0 for a
    SKIP, which has no projections.
    """
    if spec.kind == SKIP:
        return 0
    if spec.inner_size is not None:
        return spec.inner_size
    return config.intermediate_size if spec.kind == "FFN" else config.hidden_size


def without_skips(architecture: Iterable[str]) -> tuple[str, ...]:
    """Returns the operators of the extracted child: those of `architecture` that are not SKIP."""
    return tuple(operator for operator in architecture if operator != SKIP)


CONFIG_VERSION = 1


@strict
class MagicConfig(PreTrainedConfig):
    """Configuration of a MAGIC encoder or of a super-net to search encoders in.

    If a layer has several names in `candidate_operators`, the model is a weight-sharing super-net. If every layer has
    one name, it is a child: an ordinary encoder. Both are built by the same classes with the same parameter names.
    `SKIP` exists only in super-nets; an extracted child has one layer less for each.

    Attributes:
        candidate_operators: the names of the candidate operators of each layer, from the bottom up. The default is the
            BERT-base pattern, alternating MHA12 and FFN, with 24 layers.
        hidden_size: the width of the hidden states between layers.
        intermediate_size: the inner width of an FFN whose name gives none.
        unpad_inputs: whether to compute only real tokens, packed into one row. Outputs at padded positions are then 0.
            If hidden states or attentions are requested, the model still computes with padding.
        sparse_prediction: whether to compute the masked-LM head only on the labelled positions if labels are given;
            the logits are then (number of labelled positions, vocab_size).
        add_pooling_layer: whether MagicModel ends in BERT's pooler (tanh of a linear map of the first token). The
            heads that classify a sequence start from it, as in BERT, and MagicModel gets it back from them.
        embedding_size: the width of the embedding tables. If it differs from `hidden_size`, a projection follows them
            and the masked-LM head maps back to it, as in ELECTRA-small. `None` for `hidden_size`.
        padding_aware_positions: whether to count positions from `pad_token_id` + 1 and only over tokens that are not
            padding, as in RoBERTa.
        lm_head_activation: the activation in the masked-LM head; `None` for `hidden_act`.
        classifier_activation: the activation in the heads that classify a sequence, `"tanh"` as in BERT and RoBERTa or
            `"gelu"` as in ELECTRA.
        classifier_dropout: the dropout in the classification heads; `None` for `hidden_dropout_prob`.
        classifier_input_dropout: whether the head that classifies a sequence has an additional dropout before its
            first layer, as in RoBERTa and ELECTRA. That layer is then not a pooler, but new for every task.
        num_hidden_layers: the length of `candidate_operators`; derived.
        num_attention_heads: the largest number of heads of any attention operator, 1 without attention; derived, and
            not a field.
        config_version: the version of this format; versions of later releases are rejected.

    Raises:
        ValueError: an operator is not in the grammar, its heads do not divide its inner size, a layer is empty or has
            an operator twice, `num_hidden_layers` contradicts the operators, a key looks like a misspelt field, or a
            number is out of range, such as more than 1,000 layers, a width above 65,536 or a pad token outside the
            vocabulary.

    Example:
    ```python
    >>> from modeling_magic import MagicConfig, MagicForMaskedLM

    >>> supernet = MagicForMaskedLM(MagicConfig(candidate_operators=[["MHA12", "FFN", "CONV3", "CONV5"]] * 26))
    >>> encoder = MagicForMaskedLM(MagicConfig(candidate_operators=[["MHA12"], ["FFN"]] * 12))
    ```
    """

    model_type = "magic"

    vocab_size: int = 30522
    hidden_size: int = 768
    candidate_operators: list[list[str]] = field(default_factory=lambda: [["MHA12"], ["FFN"]] * 12)
    num_hidden_layers: int | None = None
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.1
    attention_probs_dropout_prob: float | int = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-12
    pad_token_id: int | None = 0
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    tie_word_embeddings: bool = True
    add_pooling_layer: bool = False
    embedding_size: int | None = None
    padding_aware_positions: bool = False
    lm_head_activation: str | None = None
    classifier_activation: str = "tanh"
    classifier_dropout: float | int | None = None
    classifier_input_dropout: bool = False
    sparse_prediction: bool = False
    unpad_inputs: bool = False
    config_version: int = CONFIG_VERSION

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """Like `PreTrainedConfig.from_dict`, but rejects too many layers before it examines each of them.

        Raises:
            ValueError: see the class.
        """
        _check_num_layers(config_dict.get("candidate_operators"))
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.candidate_operators)
        # Only a saved configuration has a model_type; it may contain attributes set by other libraries.
        if "model_type" not in kwargs:
            self._refuse_misspelt(kwargs)
        if self.config_version > CONFIG_VERSION:
            raise ValueError(
                f"the configuration has version {self.config_version}, but this code knows up to {CONFIG_VERSION}; "
                f"use a newer release, or the code published with the model: trust_remote_code=True"
            )
        self.validate_sizes()
        self.validate_candidate_operators()
        num_labels = kwargs.get("num_labels")
        # transformers creates a name for each label.
        if isinstance(num_labels, int) and not 0 <= num_labels <= MAX_LABELS:
            raise ValueError(f"num_labels is {num_labels}; it must be from 0 to {MAX_LABELS:,}")
        super().__post_init__(**kwargs)

    @property
    def max_sequence_length(self) -> int:
        """The longest sequence that has a position for every token."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """The position of the first token: 0, or `pad_token_id` + 1 with `padding_aware_positions`."""
        return self.pad_token_id + 1 if self.padding_aware_positions and self.pad_token_id is not None else 0

    @property
    def pooler_classifies(self) -> bool:
        """Whether the first layer of the head that classifies a sequence is the encoder's pooler, as in BERT."""
        return self.add_pooling_layer and not self.classifier_input_dropout

    @property
    def is_supernet(self) -> bool:
        """Whether some layer has several candidates, or SKIP, which no child has."""
        return any(len(layer) > 1 or SKIP in layer for layer in self.candidate_operators)

    @property
    def chain(self) -> tuple[str, ...]:
        """The operators of a child, one per layer; for a super-net, the first one of each layer."""
        return tuple(layer[0] for layer in self.candidate_operators)

    @property
    def num_attention_heads(self) -> int:
        """The largest number of heads of any attention operator; 1 without attention.

        It exists for code that reads it from every configuration, often to divide by it. It is derived from
        `candidate_operators`, is not saved, and cannot be set to another value.
        """
        specs = [parse_operator(name) for layer in self.candidate_operators for name in layer]
        return max((spec.size for spec in specs if spec.kind == "MHA"), default=1)

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        if value != self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {value} but the operators have {self.num_attention_heads}; omit "
                f"num_attention_heads, and set the heads of each operator in candidate_operators, such as MHA12"
            )

    def child_config(self, architecture: Sequence[str]) -> "MagicConfig":
        """Returns a copy of this configuration for one child, without the layers that it skips.

        Args:
            architecture: one operator name per layer.

        Raises:
            ValueError: all operators are SKIP, so no layer is left.
        """
        chain = without_skips(architecture)
        if not chain:
            raise ValueError(
                f"the child is {SKIP} in all of its {len(architecture)} layers, so it would have no layer; give at "
                f"least one layer another operator"
            )
        values = self.to_dict()
        values.pop("transformers_version", None)
        values["candidate_operators"] = [[operator] for operator in chain]
        values["num_hidden_layers"] = len(chain)
        child = type(self)(**values)
        child._attn_implementation = self._attn_implementation
        return child

    def validate_sizes(self):
        """Part of the `@strict` validation: sizes and tokens must be in range, and activations known."""
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= largest:
                bound = "at least 1" if value < 1 else f"at most {largest:,}"
                raise ValueError(f"{name} is {value}; it must be {bound}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 0 and below 1")
        for name in ("hidden_act", "lm_head_activation", "classifier_activation"):
            if (value := getattr(self, name)) is not None and value not in ACT2FN:
                raise ValueError(f"{name} is {value!r}; transformers knows {', '.join(sorted(ACT2FN))}")
        for name, allowed in (("initializer_range", "of at least 0"), ("layer_norm_eps", "above 0")):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name == "layer_norm_eps"):
                raise ValueError(f"{name} is {value}; it must be a number {allowed}")
        self._check_tokens()

    def _check_tokens(self) -> None:
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}; it must be in the vocabulary, 0 to {self.vocab_size - 1}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and token < 0:
                    raise ValueError(f"{name} is {value}; it must be at least 0")
        if self.padding_aware_positions and self.pad_token_id is None:
            raise ValueError("padding_aware_positions needs a pad_token_id; set one, or keep the default positions")
        if self.max_sequence_length < 1:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}, which leaves no position for the first "
                f"token, {self.first_position}; padding_aware_positions needs at least {self.first_position + 1}"
            )

    def validate_candidate_operators(self):
        """Part of the `@strict` validation: every layer must have operators that fit the sizes."""
        if not self.candidate_operators:
            raise ValueError("candidate_operators is empty; give at least one layer, such as [['MHA12', 'FFN']]")
        _check_num_layers(self.candidate_operators)
        if self.num_hidden_layers != len(self.candidate_operators):
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers} but candidate_operators has "
                f"{len(self.candidate_operators)} layers; omit num_hidden_layers"
            )
        for index, layer in enumerate(self.candidate_operators):
            if not layer:
                raise ValueError(f"layer {index} has no candidate operator; give it at least one")
            if len(layer) > MAX_CANDIDATES:
                raise ValueError(f"layer {index} has {len(layer):,} operators; it may have at most {MAX_CANDIDATES:,}")
            if len(set(layer)) != len(layer):
                raise ValueError(f"layer {index} names an operator twice: {', '.join(layer)}; name each once")
            for name in layer:
                self._check_operator(index, name)

    def _check_operator(self, index: int, name: str) -> None:
        try:
            spec = parse_operator(name)
        except ValueError as error:
            raise ValueError(f"layer {index}: {error}") from None
        inner_size = operator_inner_size(spec, self)
        if spec.kind == "MHA" and inner_size % spec.size:
            raise ValueError(
                f"layer {index}: {name} has {spec.size} heads, which do not divide its inner size {inner_size}; "
                f"choose a divisor of {inner_size} or give an inner size, such as MHA{spec.size}x{spec.size * 64}"
            )

    def _refuse_misspelt(self, unknown: dict) -> None:
        # transformers keeps every unknown key as an attribute, so a typing error would go unnoticed. Keys that
        # resemble no field (those of other libraries and of later versions) are passed on to it.
        known = [item.name for item in fields(self)]
        for key in unknown:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.85)
            if close and not key.startswith("_") and not hasattr(type(self), key):
                raise ValueError(f"unknown configuration key {key!r}; did you mean {close[0]!r}?")


__all__ = [
    "SKIP",
    "MagicConfig",
    "OperatorSpec",
    "operator_inner_size",
    "own_operator",
    "parse_operator",
    "register_operator",
    "without_skips",
]
