"""Warm start: initialises a super-net with the weights of a pre-trained encoder, for operators that both have."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from .configuration_magic import MagicConfig, operator_inner_size, parse_operator
from .conversion import chain_config, load_chain
from .modeling_magic import MagicPreTrainedModel


_OPERATOR_KEY = re.compile(r"(?P<prefix>encoder\.layer\.(?P<layer>[0-9]+)\.operators\.)(?P<operator>[^.]+)")
_ROW_BY_ROW = ("embeddings.position_embeddings.weight", "embeddings.token_type_embeddings.weight")


class InitReport(NamedTuple):
    """The effects of a warm start on a super-net.

    Attributes:
        copied: modules that now have the checkpoint's weights; an operator is `encoder.layer.<n>.operators.<name>`.
        random: modules that keep their previous weights.
        notes: unused modules of the checkpoint, tables of which only some rows fit, and fields that differ.
    """

    copied: tuple[str, ...]
    random: tuple[str, ...]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        lines = [f"copied: {_by_operator(self.copied)}", f"left random: {_by_operator(self.random)}", *self.notes]
        return "\n".join(lines)


def check_initialization(config: MagicConfig, source: str | Path | PreTrainedModel, vocabulary: bool = True) -> None:
    """Raises a ValueError if the sizes of `source` do not fit a super-net of this configuration.

    Args:
        config: the configuration of the super-net.
        source: see `initialize_from`; for a folder or a name, only the configuration is read.
        vocabulary: whether to check the vocabulary size, which depends on the tokenizer and may not be known yet.
    """
    given = chain_config(source)
    name = f"the {type(source).__name__}" if isinstance(source, PreTrainedModel) else str(source)
    if vocabulary and given.vocab_size != config.vocab_size:
        raise ValueError(
            f"{name} has a vocabulary of {given.vocab_size} but the super-net has one of {config.vocab_size}; use the "
            f"tokenizer of the checkpoint: --tokenizer {name}"
        )
    for field in ("hidden_size", "embedding_size"):
        theirs, ours = (getattr(side, field) or side.hidden_size for side in (given, config))
        if theirs != ours:
            raise ValueError(
                f"{name} has the {field} {theirs} but the super-net has {ours}; use a preset with {field} {theirs}"
            )


def initialize_from(supernet: MagicPreTrainedModel, source: str | Path | PreTrainedModel) -> InitReport:
    """Copies the weights of a checkpoint into a super-net, by position in the chain, and reports the result.

    Layer n of the checkpoint's chain (block i of a BERT is layers 2i and 2i + 1) gives its weights to the operator of
    layer n with the same kind, heads or kernel, and inner size, whatever its name. All other operators, and layers
    beyond the checkpoint's last, stay unchanged. Embeddings are copied row by row (the position table from position 0,
    wherever that is in the table), and heads if their shapes agree.

    Args:
        supernet: the super-net; it is changed in place.
        source: a BERT, RoBERTa or ELECTRA model that `convert_to_magic` accepts, or a MAGIC child, in memory, in a
            folder or on the Hub.

    Raises:
        ValueError: see `convert_to_magic`; or the vocabulary, hidden_size or embedding_size differs, or the source is
            a super-net.
    """
    check_initialization(supernet.config, source)
    chain = load_chain(source)
    own = {_bare(name): parameter for name, parameter in supernet.named_parameters()}
    given = {_bare(name): tensor for name, tensor in chain.state_dict().items()}
    if "lm_head.decoder.bias" in given:
        # The bias that the decoder computes with, in case the checkpoint does not tie the two.
        given["lm_head.bias"] = given["lm_head.decoder.bias"]
    fitting = _fitting_operators(supernet.config, chain.config)
    copied: dict[str, None] = {}
    random: dict[str, None] = {}
    used: set[str] = set()
    notes: list[str] = []
    for name, parameter in own.items():
        source_name = name
        if match := _OPERATOR_KEY.match(name):
            operator = fitting.get((int(match["layer"]), match["operator"]))
            source_name = f"{match['prefix']}{operator}{name[match.end() :]}"
        rows, tensor = parameter.detach(), given.get(source_name)
        if tensor is not None and name in _ROW_BY_ROW:
            rows, tensor = _common_rows(name, rows, tensor, supernet.config, chain.config, notes)
        if tensor is not None and tensor.shape == rows.shape:
            rows.copy_(tensor)
            copied[_module_of(name)] = None
            used.add(_module_of(source_name))
        else:
            random[_module_of(name)] = None
    theirs = dict.fromkeys(_module_of(_bare(name)) for name, _ in chain.named_parameters())
    if unused := [name for name in theirs if name not in used]:
        notes.append(f"not used from the checkpoint: {_by_operator(unused)}")
    for field in ("hidden_act", "layer_norm_eps", "padding_aware_positions"):
        here, there = getattr(supernet.config, field), getattr(chain.config, field)
        if here != there:
            notes.append(f"{field} is {here!r} here and {there!r} in the checkpoint")
    return InitReport(tuple(copied), tuple(random), tuple(notes))


def _fitting_operators(config: MagicConfig, given: MagicConfig) -> dict[tuple[int, str], str]:
    """Returns the super-net's operators that the chain has in the same layer, mapped to their names in the chain."""

    def shape(name: str, of: MagicConfig) -> tuple[str, int, int]:
        spec = parse_operator(name)
        return spec.kind, spec.size, operator_inner_size(spec, of)

    fitting = {}
    # Layers beyond the end of the shorter chain have no counterpart.
    for index, (candidates, (theirs,)) in enumerate(
        zip(config.candidate_operators, given.candidate_operators, strict=False)
    ):
        for ours in candidates:
            if shape(ours, config) == shape(theirs, given):
                fitting[index, ours] = theirs
    return fitting


def _common_rows(
    name: str,
    rows: torch.Tensor,
    given: torch.Tensor,
    config: MagicConfig,
    given_config: MagicConfig,
    notes: list[str],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the rows of a table and the checkpoint's rows to copy there, starting with row 0."""
    if "position" in name:
        rows, given = rows[config.first_position :], given[given_config.first_position :]
    common = min(len(rows), len(given))
    if common < len(rows):
        notes.append(f"{_module_of(name)}: the checkpoint has {common} of {len(rows)} rows; the others stay random")
    return rows[:common], given[:common]


def _bare(name: str) -> str:
    return name.removeprefix("magic.")


def _module_of(name: str) -> str:
    """Returns the module of a parameter; for a parameter of an operator, the whole operator."""
    match = _OPERATOR_KEY.match(name)
    return match[0] if match else name.rpartition(".")[0]


def _by_operator(modules: Sequence[str]) -> str:
    """Returns the names of modules as text, with equal operators grouped: FFN in layers 1, 3, 5."""
    others: list[str] = []
    layers: dict[str, list[str]] = {}
    for module in modules:
        if match := _OPERATOR_KEY.match(module):
            layers.setdefault(match["operator"], []).append(match["layer"])
        else:
            others.append(module)
    operators = [f"{name} in layer{'s' * (len(where) > 1)} {', '.join(where)}" for name, where in layers.items()]
    return "; ".join([", ".join(others)] * bool(others) + operators) or "nothing"


__all__ = ["InitReport", "check_initialization", "initialize_from"]
