"""MAGIC configuration: the operator grammar and the encoder or super-net that it spells."""

import difflib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


# The identity: a layer that a child does without.
SKIP = "SKIP"

OPERATOR_GRAMMAR = (
    "MHA<heads>, FFN or CONV<odd kernel>, each with an optional x<inner size>, as in MHA12 or FFNx3200, or SKIP"
)
_OPERATOR_PATTERN = re.compile(r"(?P<kind>MHA|FFN|CONV)(?P<size>[1-9][0-9]*)?(?:x(?P<inner_size>[1-9][0-9]*))?")

_OWN_PATTERN = re.compile(r"(?P<kind>[A-Z]+)(?P<size>[1-9][0-9]*)?(?:x(?P<inner_size>[1-9][0-9]*))?")
_KIND_PATTERN = re.compile(r"[A-Z]{2,12}")
_KINDS = ("MHA", "FFN", "CONV", SKIP)
# The classes of kinds that a program has registered.
_OWN_OPERATORS: dict[str, type] = {}

# A configuration may come from anywhere. What is above these is a mistake, or made to take all memory.
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
    """One candidate operator, read from its name.

    Attributes:
        kind: `"MHA"` (multi-head attention), `"FFN"` (feed-forward), `"CONV"` (depth-wise separable convolution),
            `"SKIP"` (the identity) or one that `register_operator` has added.
        size: number of heads of an MHA, kernel width of a CONV, 0 for an FFN, a SKIP and a name without one.
        inner_size: width between the projections, `None` for the default of the kind (see `operator_inner_size`).
    """

    kind: str
    size: int
    inner_size: int | None


def register_operator(kind: str, operator: type) -> None:
    """Adds a kind of operator to the grammar of this process: `kind` with an optional size and inner size.

    A model with such an operator is loaded by programs that have registered it; the code that an exported folder
    carries does not know it.

    Args:
        kind: capital letters, such as "GLU"; the names are then GLU, GLU4, GLUx256 and GLU4x256.
        operator: a module class that is called as `operator(config, size, inner_size)`. Its `forward` takes hidden
            states (batch, seq_len, hidden), attention mask, padding mask (batch, seq_len, 1), packing and keyword
            arguments, and returns the normed output and `None`. Its static method
            `macs(config, size, inner_size, seq_len)` returns the multiply-adds of a token.

    Raises:
        ValueError: the kind is no such word, or it is taken by another class; or the class counts no multiply-adds.
    """
    if not _KIND_PATTERN.fullmatch(kind):
        raise ValueError(f"the kind of operator {kind!r} is not a word of 2 to 12 capital letters, such as GLU")
    if kind in _KINDS or _OWN_OPERATORS.get(kind, operator) is not operator:
        raise ValueError(f"the kind of operator {kind} exists already; take another name")
    if not callable(getattr(operator, "macs", None)):
        raise ValueError(f"{operator.__name__} has no static method macs(config, size, inner_size, seq_len); add it")
    _OWN_OPERATORS[kind] = operator


def own_operator(kind: str) -> Any:
    """Returns the class of a registered kind, `None` for the kinds of this package."""
    return _OWN_OPERATORS.get(kind)


def parse_operator(name: str) -> OperatorSpec:
    """Reads an operator name such as `MHA12`, `FFNx3200`, `CONV3` or `SKIP`.

    Raises:
        ValueError: the name does not follow the grammar, a number of it is above `MAX_WIDTH`, or a kernel is even (it
            would have no middle token).
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
        raise ValueError(f"operator {name!r} has an even kernel {size}; take an odd one, such as {size + 1}")
    return OperatorSpec(match["kind"], size, int(match["inner_size"]) if match["inner_size"] else None)


def operator_inner_size(spec: OperatorSpec, config: "MagicConfig") -> int:
    """Width between the projections of an operator: what its name says, else the default of its kind.

    The defaults are `intermediate_size` for FFN and `hidden_size` for all others, as in BERT (5.1). A SKIP has no
    projections: 0.
    """
    if spec.kind == SKIP:
        return 0
    if spec.inner_size is not None:
        return spec.inner_size
    return config.intermediate_size if spec.kind == "FFN" else config.hidden_size


def without_skips(architecture: Iterable[str]) -> tuple[str, ...]:
    """Returns the operators of a child as it is extracted: those of `architecture` that are not SKIP."""
    return tuple(operator for operator in architecture if operator != SKIP)


CONFIG_VERSION = 1


@strict
class MagicConfig(PreTrainedConfig):
    """Configuration of a MAGIC encoder or of the super-net that encoders are searched in.

    A layer with several names in `candidate_operators` makes a weight-sharing super-net, one name in every layer makes
    a child: an ordinary encoder. Both are built by the same classes with the same parameter names. `SKIP` is an
    operator of super-nets alone: a child that is extracted has one layer less for each.

    Attributes:
        candidate_operators: the candidate operator names of each layer, from the bottom up; by default the BERT-base
            pattern, MHA12 and FFN in turn, 24 layers.
        hidden_size: width of the hidden states that all layers exchange.
        intermediate_size: inner width of an FFN whose name gives none.
        unpad_inputs: compute real tokens only, packed end to end. Outputs at padded positions are then 0; hidden
            states and attentions, where they are asked for, are still computed with the padding.
        sparse_prediction: where labels are given, compute the masked-LM head on the labelled positions only; the
            logits are then (number of labelled positions, vocab_size).
        add_pooling_layer: whether MagicModel ends in BERT's pooler (tanh of a linear map of the first token). The
            heads that classify a sequence start from it, as BERT's do, and MagicModel has it back from them.
        embedding_size: width of the embedding tables; where it is not `hidden_size`, a projection follows them and the
            masked-LM head goes back to it, as in ELECTRA-small. `None` is `hidden_size`.
        padding_aware_positions: count positions from `pad_token_id` + 1 and over the tokens that are not padding only,
            as RoBERTa does.
        lm_head_activation: activation in the masked-LM head; `None` is `hidden_act`.
        classifier_activation: activation in the heads that classify a sequence, `"tanh"` as in BERT and RoBERTa or
            `"gelu"` as in ELECTRA.
        classifier_dropout: dropout in the classification heads; `None` is `hidden_dropout_prob`.
        classifier_input_dropout: a dropout more in the head that classifies a sequence, before its first layer, as in
            RoBERTa and ELECTRA. That layer is then no pooler: it is new for every task.
        num_hidden_layers: derived, the length of `candidate_operators`.
        num_attention_heads: derived, the most heads of any attention operator, 1 where there is none; no field.
        config_version: version of this format; one from a later release is refused, since what it means is not known.

    Raises:
        ValueError: an operator that the grammar does not know, heads that do not divide the inner size, an empty
            layer, an operator twice in a layer, a `num_hidden_layers` that contradicts the operators, a key that
            looks like a misspelt field, or a number that is out of range, such as more than 1,000 layers, a width
            above 65,536 or a pad token that the vocabulary has not.

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
        """As `PreTrainedConfig.from_dict`; far too many layers are refused before each is looked at.

        Raises:
            ValueError: as for the class.
        """
        _check_num_layers(config_dict.get("candidate_operators"))
        return super().from_dict(config_dict, **kwargs)

    def __post_init__(self, **kwargs):
        if self.num_hidden_layers is None:
            self.num_hidden_layers = len(self.candidate_operators)
        # A saved configuration, which alone names its model_type, may hold what other libraries have set on it.
        if "model_type" not in kwargs:
            self._refuse_misspelt(kwargs)
        if self.config_version > CONFIG_VERSION:
            raise ValueError(
                f"the configuration is of version {self.config_version}, this code knows up to {CONFIG_VERSION}; take "
                f"a newer release, or the code that was published with the model: trust_remote_code=True"
            )
        self.validate_sizes()
        self.validate_candidate_operators()
        num_labels = kwargs.get("num_labels")
        # transformers makes a name for each of them.
        if isinstance(num_labels, int) and not 0 <= num_labels <= MAX_LABELS:
            raise ValueError(f"num_labels is {num_labels}; it must be from 0 to {MAX_LABELS:,}")
        super().__post_init__(**kwargs)

    @property
    def max_sequence_length(self) -> int:
        """The longest sequence that has a position for every token."""
        return self.max_position_embeddings - self.first_position

    @property
    def first_position(self) -> int:
        """Position of the first token: 0, or `pad_token_id` + 1 with `padding_aware_positions`."""
        return self.pad_token_id + 1 if self.padding_aware_positions and self.pad_token_id is not None else 0

    @property
    def pooler_classifies(self) -> bool:
        """Whether the head that classifies a sequence has the encoder's pooler for its first layer, as in BERT."""
        return self.add_pooling_layer and not self.classifier_input_dropout

    @property
    def is_supernet(self) -> bool:
        """Whether some layer offers a choice of operators, or SKIP, which no child has."""
        return any(len(layer) > 1 or SKIP in layer for layer in self.candidate_operators)

    @property
    def chain(self) -> tuple[str, ...]:
        """The operators of a child, one a layer; of a super-net, the first one of each layer."""
        return tuple(layer[0] for layer in self.candidate_operators)

    @property
    def num_attention_heads(self) -> int:
        """The most heads of any attention operator, 1 where there is none.

        For what reads it of every configuration, often to divide by it. It follows from `candidate_operators`: it is
        not saved, and can be set to no other value.
        """
        specs = [parse_operator(name) for layer in self.candidate_operators for name in layer]
        return max((spec.size for spec in specs if spec.kind == "MHA"), default=1)

    @num_attention_heads.setter
    def num_attention_heads(self, value: int) -> None:
        if value != self.num_attention_heads:
            raise ValueError(
                f"num_attention_heads is {value} but the operators have {self.num_attention_heads}; leave "
                f"num_attention_heads out, and say the heads of each operator in candidate_operators, such as MHA12"
            )

    def child_config(self, architecture: Sequence[str]) -> "MagicConfig":
        """Returns a copy of this configuration for one child, which has no layer where it skips one.

        Args:
            architecture: one operator name a layer.

        Raises:
            ValueError: all of them are SKIP, so that no layer is left.
        """
        chain = without_skips(architecture)
        if not chain:
            raise ValueError(
                f"the child is {SKIP} in all of its {len(architecture)} layers, so that it would have none; give at "
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
        """Part of `@strict`-powered validation: sizes and tokens are in range, the activation known."""
        for name, largest in _LARGEST.items():
            value = getattr(self, name)
            if value is not None and not 1 <= value <= largest:
                bound = "at least 1" if value < 1 else f"at most {largest:,}"
                raise ValueError(f"{name} is {value}; it must be {bound}")
        for name in ("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"):
            if (value := getattr(self, name)) is not None and not 0 <= value < 1:
                raise ValueError(f"{name} is {value}; a probability is at least 0 and below 1")
        for name in ("hidden_act", "lm_head_activation", "classifier_activation"):
            if (value := getattr(self, name)) is not None and value not in ACT2FN:
                raise ValueError(f"{name} is {value!r}; transformers knows {', '.join(sorted(ACT2FN))}")
        for name, allowed in (("initializer_range", "from 0"), ("layer_norm_eps", "above 0")):
            value = getattr(self, name)
            if not 0 <= value < math.inf or (value == 0 and name == "layer_norm_eps"):
                raise ValueError(f"{name} is {value}; it must be a number {allowed}")
        self._check_tokens()

    def _check_tokens(self) -> None:
        if self.pad_token_id is not None and not 0 <= self.pad_token_id < self.vocab_size:
            raise ValueError(
                f"pad_token_id is {self.pad_token_id}; it must be one of the vocabulary, 0 to {self.vocab_size - 1}"
            )
        for name in ("bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            for token in value if isinstance(value, list) else [value]:
                if token is not None and token < 0:
                    raise ValueError(f"{name} is {value}; a token is at least 0")
        if self.padding_aware_positions and self.pad_token_id is None:
            raise ValueError("padding_aware_positions needs a pad_token_id; set it, or leave positions as they are")
        if self.max_sequence_length < 1:
            raise ValueError(
                f"max_position_embeddings is {self.max_position_embeddings}, all of it below the position of the "
                f"first token, {self.first_position}; padding_aware_positions needs at least {self.first_position + 1}"
            )

    def validate_candidate_operators(self):
        """Part of `@strict`-powered validation: every layer offers operators that fit the sizes."""
        if not self.candidate_operators:
            raise ValueError("candidate_operators is empty; give at least one layer, such as [['MHA12', 'FFN']]")
        _check_num_layers(self.candidate_operators)
        if self.num_hidden_layers != len(self.candidate_operators):
            raise ValueError(
                f"num_hidden_layers is {self.num_hidden_layers} but candidate_operators has "
                f"{len(self.candidate_operators)} layers; leave num_hidden_layers out"
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
                f"take a divisor of {inner_size} or give an inner size, such as MHA{spec.size}x{spec.size * 64}"
            )

    def _refuse_misspelt(self, unknown: dict) -> None:
        # transformers keeps every unknown key as an attribute, so that a typing error would pass in silence. Keys that
        # resemble no field (those of other libraries and of later versions) are left to it.
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
