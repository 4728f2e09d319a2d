"""The checkpoint that a compression begins with: what it is for, read from its folder, and its model as a chain.

Weights are never unpickled into anything but tensors, and no code from a folder is run.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub.errors import StrictDataclassError
from tokenizers.normalizers import Lowercase
from tokenizers.normalizers import Sequence as NormalizerSequence
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from modeling_magic import MagicConfig, MagicModel, MagicPreTrainedModel, parse_operator
from modeling_magic.conversion import chain_config, load_chain

from ..data.fitting import num_rows
from ..hub.model_folders import fetch_folder, model_in
from ..hub.sentence_folders import (
    MODULES_NAME,
    SentenceModules,
    json_of,
    read_modules,
    sentence_config,
    transformer_settings,
)
from ..pretrained import pretrained_tokenizer
from ..space.search_space import compact_architecture
from ..tables import first_line
from .settings import KINDS


_KIND_OF_HEAD = {
    "Model": "sentence",
    "ForMaskedLM": "masked_lm",
    "ForSequenceClassification": "sequence",
    "ForTokenClassification": "token",
    "ForQuestionAnswering": "span",
}
# The pooling flags of older releases of sentence-transformers, in the order in which they concatenate.
_POOLING_FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_MODES = tuple(_POOLING_FLAGS.values())


# ---- Sentence embeddings ----


@dataclass(frozen=True)
class Pooling:
    """How hidden states become a sentence embedding, as sentence-transformers computes it.

    Attributes:
        mode: one of `POOLING_MODES`, or several joined by "+", whose results are concatenated.
        normalize: whether the embedding is scaled to length 1.
    """

    mode: str
    normalize: bool

    def __post_init__(self) -> None:
        unknown = [mode for mode in self.mode.split("+") if mode not in POOLING_MODES]
        if unknown:
            raise ValueError(f"unknown pooling {unknown[0]!r}; choose among {', '.join(POOLING_MODES)}")

    def __call__(self, states: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Returns the embeddings, (batch, hidden times the number of modes), in float32 or wider.

        Args:
            states: hidden states, (batch, seq_len, hidden).
            attention_mask: (batch, seq_len), 1 = token, 0 = padding, on either side; `None` if all are tokens.
        """
        states = states.to(torch.promote_types(states.dtype, torch.float32))
        mask = states.new_ones(states.shape[:2]) if attention_mask is None else attention_mask.to(states)
        pooled = torch.cat([_pool(mode, states, mask) for mode in self.mode.split("+")], dim=-1)
        return nn.functional.normalize(pooled, dim=-1) if self.normalize else pooled

    def width(self, hidden_size: int) -> int:
        """Returns the number of components of an embedding."""
        return hidden_size * len(self.mode.split("+"))


def _pool(mode: str, states: Tensor, mask: Tensor) -> Tensor:
    first = mask.argmax(dim=1)
    if mode in ("cls", "lasttoken"):
        # argmax finds the first of equal values.
        position = first if mode == "cls" else mask.shape[1] - 1 - mask.flip(1).argmax(dim=1)
        return states[torch.arange(len(states), device=states.device), position]
    if mode == "max":
        return states.masked_fill(mask.unsqueeze(-1) == 0, float("-inf")).amax(dim=1)
    if mode == "weightedmean":
        # Weights count from the first token.
        mask = mask * (torch.arange(1, mask.shape[1] + 1, device=states.device) - first.unsqueeze(1))
    total = mask.sum(dim=1, keepdim=True).clamp(min=1e-9)
    summed = (states * mask.unsqueeze(-1)).sum(dim=1)
    return summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)


def _read_pooling(folder: Path, modules: SentenceModules, hidden_size: int, name: str) -> Pooling:
    values = json_of(folder / modules.pooling / "config.json")
    width = values.get("embedding_dimension", values.get("word_embedding_dimension", hidden_size))
    if width != hidden_size:
        raise ValueError(
            f"the Pooling of {name} takes states of width {width}, but its encoder has width {hidden_size}"
        )
    modes = values.get("pooling_mode") or [mode for flag, mode in _POOLING_FLAGS.items() if values.get(flag)]
    modes = [modes] if isinstance(modes, str) else modes or ["mean"]
    return Pooling("+".join(modes), modules.normalize is not None)


# ---- The checkpoint ----


@dataclass(frozen=True)
class Source:
    """A checkpoint to compress, with everything that its outputs depend on.

    Attributes:
        name: the folder or the name on the Hub, as it was given.
        kind: one of `KINDS`.
        model: the checkpoint as a chain, in evaluation mode, frozen, in float32: a `MagicModel` without pooler for
            the kind "sentence", else the class with the head of its kind.
        tokenizer: the checkpoint's tokenizer.
        max_length: largest number of tokens per input.
        pooling: how embeddings are pooled, for the kind "sentence" only.
        folder: the folder with its files.
        notes: what was inferred, one line each, to show before any work.
    """

    name: str
    kind: str
    model: MagicPreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    pooling: Pooling | None
    folder: Path
    notes: tuple[str, ...]

    @property
    def modules(self) -> SentenceModules | None:
        """The modules of sentence-transformers for its embeddings; `None` if it has none or is of another kind."""
        return read_modules(self.folder, self.name) if self.kind == "sentence" else None

    @property
    def model_folder(self) -> Path:
        """The folder with the encoder's files: the folder itself, or one inside it."""
        return self.folder / self.modules.transformer if self.modules is not None else self.folder


def load_source(name_or_path: str, kind: str | None = None) -> Source:
    """Returns a checkpoint of BERT, RoBERTa, ELECTRA or MAGIC, ready to be compressed.

    Its kind is read from its folder: modules.json of sentence-transformers means sentence embeddings, otherwise the
    class in `architectures` decides. An encoder without a head is taken for sentence embeddings, by the mean of its
    last states, scaled to length 1.

    Args:
        name_or_path: a model's folder, the folder of a finished run, or a name on the Hub.
        kind: one of `KINDS`: the checkpoint's own, or "sentence" for the encoder under any head. `None` infers it.

    Raises:
        ValueError: (one line) the checkpoint cannot be found or cannot be compressed, it has no trained head for the
            kind, the kind cannot be inferred, a classifier has no names for its labels, weights are incomplete or
            unreadable, or the tokenizer is missing or does not match the model.
    """
    name = str(name_or_path)
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; choose one of {', '.join(KINDS)}")
    try:
        return _load_source(_find_folder(name), name, kind)
    # A value of another type than any library writes.
    except (AttributeError, KeyError, TypeError) as error:
        reason = f"{type(error).__name__}: {first_line(error)}"
        raise ValueError(f"a configuration file of {name} is damaged ({reason}); fetch the folder again") from error


def _load_source(folder: Path, name: str, kind: str | None) -> Source:
    modules = read_modules(folder, name)
    inside = folder / modules.transformer if modules is not None else folder
    config, class_name = _read_config(inside, name)
    kind, reason = _infer_kind(name, class_name, modules is not None, kind)
    if kind in ("sequence", "token"):
        _check_labels(config, name)
    tokenizer = read_tokenizer(inside, name, config, kind)
    max_length, bound = _max_length(inside, tokenizer, config)
    pooling = None
    if kind == "sentence":
        pooling = Pooling("mean", normalize=True)
        if modules is not None:
            pooling = _read_pooling(folder, modules, config.hidden_size, name)
    model, loading_notes = _load_model(inside, name, kind)
    notes = [
        f"kind: {kind}, because {reason}",
        *_model_notes(model.config, tokenizer),
        f"inputs: up to {max_length} tokens, by {bound}",
        *_kind_notes(kind, config, pooling, modules is not None),
        *loading_notes,
    ]
    if modules is not None:
        notes += _prompt_notes(sentence_config(folder))
    return Source(name, kind, model, tokenizer, max_length, pooling, folder, tuple(notes))


def _find_folder(name: str) -> Path:
    """Returns the local folder of a checkpoint, fetched from the Hub if the name is not a local one."""
    folder = Path(model_in(name)).expanduser()
    return folder if folder.is_dir() else fetch_folder(name)


def _read_config(folder: Path, name: str) -> tuple[MagicConfig, str]:
    """Returns the configuration of the chain and the name of the checkpoint's class."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{name} has no config.json; give a model's folder or its name on the Hub")
    values = json_of(folder / "config.json")
    try:
        config = chain_config(folder)
    except (ValueError, StrictDataclassError) as error:
        raise ValueError(_named(error, folder, name)) from None
    if config.is_supernet:
        raise ValueError(f"{name} is a super-net; export one of its children with `magic-nas export` and give that")
    return config, (values.get("architectures") or [""])[0]


def _named(error: Exception, folder: Path, name: str) -> str:
    """Returns an error's text in one line, with the checkpoint's name in place of its folder."""
    return " ".join(str(error).split()).replace(str(folder), name)


def _infer_kind(name: str, class_name: str, has_modules: bool, asked: str | None) -> tuple[str, str]:
    """Returns the kind of a checkpoint and the reason for it."""
    if has_modules and asked in (None, "sentence"):
        return "sentence", f"{MODULES_NAME} belongs to a sentence-transformers model"
    head = re.search(r"(Model|For[A-Z]\w*)$", class_name)
    own = _KIND_OF_HEAD.get(head[0]) if head else None
    if class_name == "BertForPreTraining":
        own = "masked_lm"
    if asked is None and own is None:
        raise ValueError(
            f"{name} has the class {class_name or 'unknown'}, which does not show what the model is for; set --kind: "
            f"'sentence' takes the encoder alone"
        )
    if asked in (None, own):
        what = "is an encoder without a head" if own == "sentence" else "has that head"
        return cast(str, own), f"its class, {class_name}, {what}"
    if asked == "sentence":
        return "sentence", f"it was requested; only the encoder of the {class_name} is used"
    kinds = " or ".join(repr(one) for one in dict.fromkeys([own, "sentence"]) if one)
    raise ValueError(
        f"{name} has the class {class_name}, which has no trained head for the kind {asked!r}; choose {kinds}"
    )


def _check_labels(config: MagicConfig, name: str) -> None:
    labels = _labels(config)
    if len(labels) > 1 and labels == [f"LABEL_{index}" for index in range(len(labels))]:
        example = ", ".join(f'"{index}": "..."' for index in range(min(len(labels), 2)))
        raise ValueError(
            f"{name} is a classifier without names for its labels; write them into its config.json, one for each of "
            f'the {len(labels)}: "id2label": {{{example}}}'
        )


def _labels(config: MagicConfig) -> list[str]:
    id2label = cast(Mapping[int, str], config.id2label)
    return [id2label[index] for index in sorted(id2label)]


# ---- Tokenizer and lengths ----


def read_tokenizer(folder: Path, name: str, config: MagicConfig, kind: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a checkpoint's folder, unchanged by previous calls.

    Args:
        folder: folder of the encoder.
        name: name of the checkpoint, for errors.
        config: configuration of the chain.
        kind: one of `KINDS`.

    Raises:
        ValueError: it is missing, does not load, lacks a token that the kind needs, or does not match the model.
    """
    tokenizer = pretrained_tokenizer(folder)
    # A folder without a vocabulary gives a tokenizer with special tokens only.
    remedy = "save the tokenizer that the model was trained with into its folder"
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        raise ValueError(f"{name} has no tokenizer; {remedy}")
    if num_rows(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer of {name} has ids up to {num_rows(tokenizer) - 1} but the model has rows for "
            f"{config.vocab_size} tokens; "
            f"{remedy}"
        )
    needed = ("pad_token", "mask_token") if kind == "masked_lm" else ("pad_token",)
    if missing := [token for token in needed if getattr(tokenizer, token) is None]:
        raise ValueError(f"the tokenizer of {name} has no {missing[0]}; {remedy}")
    # Positions are counted from the pad token's id.
    if config.padding_aware_positions and tokenizer.pad_token_id != config.pad_token_id:
        raise ValueError(
            f"the pad token of the tokenizer of {name} has the id {tokenizer.pad_token_id} but the model's is "
            f"{config.pad_token_id}; {remedy}"
        )
    if transformer_settings(folder).get("do_lower_case"):
        _lower_case(tokenizer, name)
    return tokenizer


def _lower_case(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Makes the tokenizer lower-case its input first, as sentence-transformers does if its settings ask for it."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(
            f"do_lower_case is set for {name}, which needs a fast tokenizer (of the library tokenizers); save one "
            f"into its folder"
        )
    backend = tokenizer.backend_tokenizer
    backend.normalizer = NormalizerSequence([Lowercase(), *filter(None, [backend.normalizer])])


def _max_length(folder: Path, tokenizer: PreTrainedTokenizerBase, config: MagicConfig) -> tuple[int, str]:
    """Returns the largest number of tokens per input, and what sets this limit."""
    stated = transformer_settings(folder).get("max_seq_length")
    lengths = {
        f"its {config.max_sequence_length} positions": config.max_sequence_length,
        "its tokenizer": tokenizer.model_max_length,
    }
    if stated is not None:
        # sentence-transformers truncates there, whatever the tokenizer's limit.
        lengths.pop("its tokenizer")
        lengths["max_seq_length of sentence-transformers"] = stated
    bound = min(lengths, key=lambda key: lengths[key])
    return int(lengths[bound]), bound


# ---- Weights ----


def _load_model(folder: Path, name: str, kind: str) -> tuple[MagicPreTrainedModel, list[str]]:
    """Returns the chain, frozen, and notes on what differs from the folder."""
    try:
        model = load_chain(folder)
    except ValueError as error:
        raise ValueError(_named(error, folder, name)) from None
    except (OSError, RuntimeError) as error:
        reason = first_line(error).replace(str(folder), name)
        raise ValueError(f"the weights of {name} cannot be read ({reason}); fetch them again") from None
    notes = []
    if kind == "sentence":
        model = cast(MagicModel, model.base_model)
        model.pooler, model.config.add_pooling_layer = None, False
    if model.dtype != torch.float32:
        notes.append(f"precision: {str(model.dtype).removeprefix('torch.')} weights, computed in float32")
        model = model.float()
        model.config.dtype = torch.float32
    return model.eval().requires_grad_(False), notes


# ---- Notes ----


def _model_notes(config: MagicConfig, tokenizer: PreTrainedTokenizerBase) -> list[str]:
    heads = sorted({spec.size for spec in map(parse_operator, config.chain) if spec.kind == "MHA"})
    returned = "token types" if "token_type_ids" in tokenizer.model_input_names else "no token types"
    return [
        f"encoder: {config.num_hidden_layers} layers x {config.hidden_size}, {_listed(heads)} heads, "
        f"{compact_architecture(config.chain)}",
        f"vocabulary: {len(tokenizer)} tokens, {config.vocab_size} rows; the tokenizer returns {returned}, the model "
        f"has {config.type_vocab_size}",
    ]


def _listed(values: Sequence[Any]) -> str:
    return " and ".join(map(str, values)) or "no"


def _kind_notes(kind: str, config: MagicConfig, pooling: Pooling | None, has_modules: bool) -> list[str]:
    if pooling is not None:
        scaled = "scaled to length 1" if pooling.normalize else "not scaled"
        by = "according to its folder" if has_modules else "since its folder does not specify it"
        width = pooling.width(config.hidden_size)
        return [f"embedding: {pooling.mode} of the last states, width {width}, {scaled}, {by}"]
    if kind in ("sequence", "token"):
        labels = _labels(config)
        shown = ", ".join(labels[:8]) + (", ..." if len(labels) > 8 else "")
        return [f"labels: {len(labels)}, {shown}" if len(labels) > 1 else "labels: one number"]
    return []


def _prompt_notes(values: Mapping[str, Any]) -> list[str]:
    named = [name for name, text in (values.get("prompts") or {}).items() if text]
    if not named:
        return []
    default = values.get("default_prompt_name")
    return [
        f"prompts: {', '.join(named)}, kept in the export; texts are embedded without them"
        + (f", although {default} is the default" if default in named else "")
    ]
