"""Converts BERT, RoBERTa and ELECTRA models to MAGIC chains, and such chains to plain transformers models.

Block i of these encoders corresponds to two layers of a chain: its attention is layer 2i, its feed-forward network
layer 2i + 1. The arithmetic and its order are the same on both sides, so the outputs are equal.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, Generic, NamedTuple, TypeVar, cast

import torch
import transformers
from safetensors import SafetensorError
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import logging

from .configuration_magic import MagicConfig, operator_inner_size, parse_operator
from .modeling_magic import (
    MagicForMaskedLM,
    MagicForMultipleChoice,
    MagicForPreTraining,
    MagicForQuestionAnswering,
    MagicForSequenceClassification,
    MagicForTokenClassification,
    MagicModel,
    MagicPreTrainedModel,
)


Model = TypeVar("Model", bound=PreTrainedModel)


class Conversion(NamedTuple, Generic[Model]):
    """A converted model.

    Attributes:
        model: the result, with the source's dtype, mode and attention implementation; it shares no tensor with it.
        dropped: the names of the source's weights that have no counterpart in the result.
    """

    model: Model
    dropped: tuple[str, ...]


# ---- Key tables: modules of transformers' classes and their names in MAGIC ----


class _Head(NamedTuple):
    target: type[MagicPreTrainedModel]
    modules: dict[str, str]


_EMBEDDINGS = {
    "embeddings.word_embeddings": "embeddings.word_embeddings",
    "embeddings.position_embeddings": "embeddings.position_embeddings",
    "embeddings.token_type_embeddings": "embeddings.token_type_embeddings",
    "embeddings.LayerNorm": "embeddings.LayerNorm",
    "embeddings_project": "embeddings.projection",
    "pooler.dense": "pooler.dense",
}
_ATTENTION = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "dense",
    "attention.output.LayerNorm": "LayerNorm",
}
_FEED_FORWARD = {
    "intermediate.dense": "intermediate",
    "output.dense": "dense",
    "output.LayerNorm": "LayerNorm",
}
_BERT_LM_HEAD = {
    "cls.predictions.transform.dense": "lm_head.dense",
    "cls.predictions.transform.LayerNorm": "lm_head.LayerNorm",
    "cls.predictions.decoder": "lm_head.decoder",
    "cls.predictions": "lm_head",
}
_CLASSIFIER = {"classifier.dense": "classifier.dense", "classifier.out_proj": "classifier.out_proj"}
_TOKEN_CLASSIFIER = _Head(MagicForTokenClassification, {"classifier": "classifier"})
_QUESTION_ANSWERING = _Head(MagicForQuestionAnswering, {"qa_outputs": "qa_outputs"})


def _pooled_classifier(family: str) -> dict[str, str]:
    return {f"{family}.pooler.dense": "classifier.dense", "classifier": "classifier.out_proj"}


# If two classes have the same target, the target is converted back to the first.
_HEADS: dict[str, dict[str, _Head]] = {
    "bert": {
        "BertModel": _Head(MagicModel, {}),
        "BertForMaskedLM": _Head(MagicForMaskedLM, _BERT_LM_HEAD),
        "BertForPreTraining": _Head(MagicForMaskedLM, _BERT_LM_HEAD),
        "BertForSequenceClassification": _Head(MagicForSequenceClassification, _pooled_classifier("bert")),
        "BertForTokenClassification": _TOKEN_CLASSIFIER,
        "BertForQuestionAnswering": _QUESTION_ANSWERING,
        "BertForMultipleChoice": _Head(MagicForMultipleChoice, _pooled_classifier("bert")),
    },
    "roberta": {
        "RobertaModel": _Head(MagicModel, {}),
        "RobertaForMaskedLM": _Head(
            MagicForMaskedLM,
            {
                "lm_head.dense": "lm_head.dense",
                "lm_head.layer_norm": "lm_head.LayerNorm",
                "lm_head.decoder": "lm_head.decoder",
                "lm_head": "lm_head",
            },
        ),
        "RobertaForSequenceClassification": _Head(MagicForSequenceClassification, _CLASSIFIER),
        "RobertaForTokenClassification": _TOKEN_CLASSIFIER,
        "RobertaForQuestionAnswering": _QUESTION_ANSWERING,
        "RobertaForMultipleChoice": _Head(MagicForMultipleChoice, _pooled_classifier("roberta")),
    },
    "electra": {
        "ElectraModel": _Head(MagicModel, {}),
        "ElectraForPreTraining": _Head(
            MagicForPreTraining,
            {
                "discriminator_predictions.dense": "discriminator.dense",
                "discriminator_predictions.dense_prediction": "discriminator.dense_prediction",
            },
        ),
        "ElectraForMaskedLM": _Head(
            MagicForMaskedLM,
            {
                "generator_predictions.dense": "lm_head.dense",
                "generator_predictions.LayerNorm": "lm_head.LayerNorm",
                "generator_lm_head": "lm_head.decoder",
            },
        ),
        "ElectraForSequenceClassification": _Head(MagicForSequenceClassification, _CLASSIFIER),
        "ElectraForTokenClassification": _TOKEN_CLASSIFIER,
        "ElectraForQuestionAnswering": _QUESTION_ANSWERING,
        "ElectraForMultipleChoice": _Head(
            MagicForMultipleChoice,
            {"sequence_summary.summary": "classifier.dense", "classifier": "classifier.out_proj"},
        ),
    },
}
# BERT's pooler and next-sentence head, which checkpoints for other heads often contain.
_DROPPABLE = re.compile(r"((bert|roberta|magic)\.)?pooler\.dense\.(weight|bias)|cls\.seq_relationship\.(weight|bias)")
# Classes whose head may have the pooler as its first layer.
_WITH_POOLER = (MagicForSequenceClassification, MagicForMultipleChoice)
_POOLER_KEYS = {"pooler.dense.weight", "pooler.dense.bias"}

# Fields of MagicConfig for properties that transformers' classes hard-code.
_HARD_CODED: dict[str, dict[str, Any]] = {
    "bert": {
        "padding_aware_positions": False,
        "lm_head_activation": None,
        "classifier_activation": "tanh",
        "classifier_input_dropout": False,
    },
    "roberta": {
        "padding_aware_positions": True,
        "lm_head_activation": "gelu",
        "classifier_activation": "tanh",
        "classifier_input_dropout": True,
    },
    "electra": {
        "padding_aware_positions": False,
        "lm_head_activation": "gelu",
        "classifier_activation": "gelu",
        "classifier_input_dropout": True,
    },
}
_COPIED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "hidden_act",
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "classifier_dropout",
    "max_position_embeddings",
    "type_vocab_size",
    "initializer_range",
    "layer_norm_eps",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "id2label",
    "label2id",
    "problem_type",
)
# The model types that convert to MAGIC and back.
FAMILIES = tuple(_HEADS)
_MAGIC_CLASSES = {head.target.__name__: head.target for heads in _HEADS.values() for head in heads.values()}


def _modules(family: str, class_name: str, architecture: Sequence[str]) -> dict[str, str]:
    """Returns all modules of a transformers class, mapped to their names in MAGIC."""
    is_base = class_name.endswith("Model")
    left, right = ("", "") if is_base else (f"{family}.", "magic.")
    table = {f"{left}{theirs}": f"{right}{ours}" for theirs, ours in _EMBEDDINGS.items()}
    for index, operator in enumerate(architecture):
        block = _FEED_FORWARD if index % 2 else _ATTENTION
        for theirs, ours in block.items():
            table[f"{left}encoder.layer.{index // 2}.{theirs}"] = (
                f"{right}encoder.layer.{index}.operators.{operator}.{ours}"
            )
    return {**table, **_HEADS[family][class_name].modules}


# ---- Into MAGIC ----


def convert_to_magic(source: str | Path | PreTrainedModel) -> Conversion[MagicPreTrainedModel]:
    """Returns a BERT, RoBERTa or ELECTRA model as a chain of alternating MHA and FFN, with equal outputs.

    All of their heads can be converted except for causal language models and BERT's next-sentence prediction, which is
    dropped if there is a masked-LM head next to it. The `position_ids` of old checkpoints are constant and do not
    count as a weight.

    Args:
        source: a model in memory, or a folder or a name on the Hub, whose class is taken from `architectures` in the
            configuration. Weights are never unpickled into anything but tensors.

    Raises:
        ValueError: the model is of another kind, is a decoder or has relative positions, or weights are missing,
            unknown, unreadable or of another shape.
    """
    dropped: list[str] = []
    values, class_name = _read_config(source)
    family = _check_family(values, class_name, source)
    if isinstance(source, PreTrainedModel):
        model = source
    else:
        model, dropped = _load(source, getattr(transformers, class_name))
    has_place = _HEADS[family][class_name].target in (MagicModel, *_WITH_POOLER)
    has_pooler = getattr(model.base_model, "pooler", None) is not None
    config = _magic_config(model.config, class_name, has_pooler and has_place)
    modules = _modules(family, class_name, [layer[0] for layer in config.candidate_operators])
    return _transfer(model, _HEADS[family][class_name].target, config, modules, dropped)


def _read_config(source: str | Path | PreTrainedModel) -> tuple[dict[str, Any], str]:
    """Returns the configuration of a model and the name of its class, or "" if it names none."""
    if isinstance(source, PreTrainedModel):
        return source.config.to_dict(), type(source).__name__
    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
        if Path(source, "config.json").is_file():
            raise ValueError(f"config.json in {source} is damaged ({_first_line(error)}); restore it") from None
        raise ValueError(
            f"no model {source}; give a model's folder or its name on the Hub ({_first_line(error)})"
        ) from None
    if not values:
        raise ValueError(f"{source} has no config.json; give a model's folder or its name on the Hub")
    return values, (values.get("architectures") or [""])[0]


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _check_family(values: Mapping[str, Any], class_name: str, model: str | Path | PreTrainedModel) -> str:
    """Returns the model type of a convertible configuration; raises a ValueError for any other."""
    source = f"the {class_name}" if isinstance(model, PreTrainedModel) else str(model)
    family = values.get("model_type")
    if family == MagicConfig.model_type:
        raise ValueError(f"{source} is already a MAGIC model; there is nothing to convert")
    if family not in _HEADS:
        raise ValueError(f"{source} has the model_type {family!r}; only {', '.join(_HEADS)} can be converted")
    for field in ("is_decoder", "add_cross_attention"):
        if values.get(field):
            raise ValueError(f"{field} is true in {source}; MAGIC models are encoders, so give a model without it")
    positions = values.get("position_embedding_type") or "absolute"
    if positions != "absolute":
        raise ValueError(f"position_embedding_type is {positions!r} in {source}; only 'absolute' can be converted")
    known = ", ".join(_HEADS[family])
    if not class_name:
        raise ValueError(f"{source} names no class in `architectures`; load it with one of {known} and convert that")
    if class_name not in _HEADS[family]:
        raise ValueError(f"{source} is of the class {class_name}; load it with one of {known} and convert that")
    if class_name == "ElectraForMultipleChoice":
        _check_summary(values, source)
    return family


def _check_summary(values: Mapping[str, Any], source: str) -> None:
    # The defaults of ElectraConfig, for checkpoints without these fields.
    wanted = {"summary_type": "first", "summary_use_proj": True, "summary_proj_to_labels": False}
    for field, value in wanted.items():
        if values.get(field, value) != value:
            raise ValueError(f"{field} is {values[field]!r} in {source}; only {value!r} can be converted")


def _magic_config(config: PreTrainedConfig, class_name: str, add_pooling_layer: bool) -> MagicConfig:
    family = config.model_type
    values = {field: getattr(config, field) for field in _COPIED_FIELDS} | _HARD_CODED[family]
    values["candidate_operators"] = [[f"MHA{config.num_attention_heads}"], ["FFN"]] * config.num_hidden_layers
    values["add_pooling_layer"] = add_pooling_layer
    if family == "electra" and config.embedding_size != config.hidden_size:
        values["embedding_size"] = config.embedding_size
    if class_name == "ElectraForMultipleChoice":
        values["classifier_activation"] = config.summary_activation or "linear"
        values["classifier_dropout"] = config.summary_last_dropout
    elif class_name == "RobertaForMultipleChoice":
        # This is the only class that does not read the field.
        values["classifier_dropout"] = None
    return MagicConfig(**values)


def _load(source: str | Path, kind: type[PreTrainedModel]) -> tuple[PreTrainedModel, list[str]]:
    """Returns the model in `source` and the names of the weights that its class does not use."""
    try:
        with _quiet():
            loaded: Any = kind.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True
            )
    except (SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"the weights in {source} are not readable ({_first_line(error)}); download them again"
        ) from None
    model, info = loaded
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if missing == _POOLER_KEYS:
        # Its random weights are not part of the checkpoint.
        model.pooler, missing = None, set()
    dropped = {name for name in unexpected if _DROPPABLE.fullmatch(name)}
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    _refuse_keys(f"{source}, read as {kind.__name__},", missing, unexpected - dropped, mismatched)
    return model, sorted(dropped)


def _refuse_keys(source: str, missing: set[str], unknown: set[str], mismatched: set[str]) -> None:
    faults = {
        "lacks": missing,
        "has unknown": unknown,
        "has weights of another shape than its configuration": mismatched,
    }
    if any(faults.values()):
        found = "; ".join(f"{fault}: {', '.join(sorted(keys))}" for fault, keys in faults.items() if keys)
        raise ValueError(f"{source} {found}; load it with the class that fits its weights and convert that")


def _transfer(
    source: PreTrainedModel,
    kind: type[Model],
    config: PreTrainedConfig,
    modules: Mapping[str, str],
    dropped: Sequence[str],
    **options: Any,
) -> Conversion[Model]:
    """Returns a model of `kind` with the source's weights, renamed according to `modules`."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in kind(config, **options).state_dict().items()}
    state: dict[str, torch.Tensor] = {}
    lost, unknown = list(dropped), set()
    for name, tensor in source.state_dict().items():
        module, _, parameter = name.rpartition(".")
        new_name = f"{modules.get(module, module)}.{parameter}"
        if module in modules and new_name in shapes:
            state[new_name] = tensor.detach().clone()
        elif _DROPPABLE.fullmatch(name):
            lost.append(name)
        elif name != "lm_head.bias":
            unknown.add(name)
    if "lm_head.bias" in shapes and "lm_head.decoder.bias" in state:
        # The decoder computes with its own bias, the only one that ELECTRA has.
        state.setdefault("lm_head.bias", state["lm_head.decoder.bias"])
    mismatched = {name for name, tensor in state.items() if tensor.shape != shapes[name]}
    _refuse_keys(f"the {type(source).__name__}", shapes.keys() - state.keys(), unknown, mismatched)
    if config.tie_word_embeddings:
        for name, tied_to in (kind._tied_weights_keys or {}).items():
            if not torch.equal(state.pop(name), state[tied_to]):
                raise ValueError(
                    f"tie_word_embeddings is true but the decoder of the {type(source).__name__} has its own weights; "
                    f"set it to false in the configuration"
                )
    with _quiet():
        model: Any = kind.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=source.dtype,
            attn_implementation=source.config._attn_implementation,
            **options,
        )
    # Otherwise the name would be that of the loaded model, but nothing was loaded.
    model.name_or_path = model.config.name_or_path = ""
    return Conversion(model.to(source.device).train(source.training), tuple(sorted(lost)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppresses the progress bars and load reports of transformers; the results are returned or raised here."""
    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


# ---- Out of MAGIC ----


def convert_from_magic(model: MagicPreTrainedModel, to: str = "bert") -> Conversion[PreTrainedModel]:
    """Returns a child with the structure of a BERT, RoBERTa or ELECTRA as a plain transformers model.

    The weights are bit-identical, and the result saves and loads without any code of this project.

    Args:
        model: a child of alternating MHA and FFN layers; all MHA must have the same number of heads and the inner size
            hidden_size, and all FFN the same inner size.
        to: `"bert"`, `"roberta"` (positions that do not count padding) or `"electra"` (factorised embeddings, a
            discriminator).

    Raises:
        ValueError: the target class does not have such a layer, field or head.
    """
    if to not in _HEADS:
        raise ValueError(f"cannot convert to {to!r}; choose one of {', '.join(_HEADS)}")
    config = model.config
    if config.model_type != MagicConfig.model_type:
        raise ValueError(f"the {type(model).__name__} is not a MAGIC model; convert it with convert_to_magic")
    kind = type(model).__name__
    if (obstacle := _obstacle(config, kind, to)) is not None:
        others = [family for family in _HEADS if _obstacle(config, kind, family) is None]
        remedy = f"convert to {' or '.join(others)}" if others else f"none of {', '.join(_HEADS)} matches it"
        raise ValueError(f"{obstacle}; {remedy}")
    class_name = next(name for name, head in _HEADS[to].items() if head.target.__name__ == kind)
    heads, intermediate_size = _block_sizes(config, to)
    values = {field: getattr(config, field) for field in _COPIED_FIELDS}
    values |= {
        "num_hidden_layers": len(config.candidate_operators) // 2,
        "num_attention_heads": heads,
        "intermediate_size": intermediate_size,
    }
    options: dict[str, Any] = {}
    if to == "electra":
        dropout = config.classifier_dropout
        values |= {
            "embedding_size": config.embedding_size or config.hidden_size,
            "summary_activation": config.classifier_activation,
            "summary_last_dropout": config.hidden_dropout_prob if dropout is None else dropout,
        }
    elif kind == "MagicModel":
        options["add_pooling_layer"] = model.pooler is not None
    new_config = getattr(transformers, f"{class_name[: len(to)]}Config")(**values)
    modules = _modules(to, class_name, [layer[0] for layer in config.candidate_operators])
    theirs = {ours: theirs for theirs, ours in modules.items()}
    return _transfer(model, getattr(transformers, class_name), new_config, theirs, (), **options)


def _block_sizes(config: MagicConfig, to: str) -> tuple[int, int]:
    """Returns the heads of every MHA and the inner size of every FFN; raises a ValueError if they do not fit `to`."""
    if config.is_supernet:
        raise ValueError("the model is a super-net; convert one of its children: model.extract_child(architecture)")
    specs = [parse_operator(layer[0]) for layer in config.candidate_operators]
    names = [layer[0] for layer in config.candidate_operators]
    sizes = [operator_inner_size(spec, config) for spec in specs]
    for index, (name, spec, size) in enumerate(zip(names, specs, sizes, strict=True)):
        kind = "FFN" if index % 2 else "MHA"
        if spec.kind != kind:
            raise ValueError(f"layer {index} is {name}; {to} alternates MHA and FFN, with an {kind} there")
        if kind == "MHA" and size != config.hidden_size:
            raise ValueError(f"layer {index} is {name}, with inner size {size}; {to} has {config.hidden_size} there")
        if (spec.size, size) != (specs[index % 2].size, sizes[index % 2]):
            raise ValueError(
                f"layer {index} is {name} but layer {index % 2} is {names[index % 2]}; {to} has the same in all blocks"
            )
    if len(specs) % 2:
        raise ValueError(f"layer {len(specs) - 1}, {names[-1]}, is the last; {to} ends in an FFN")
    return specs[0].size, sizes[1]


def _obstacle(config: MagicConfig, kind: str, to: str) -> str | None:
    """Returns why no class of the family `to` matches a MAGIC class apart from the layers; `None` if one does."""
    if kind not in {head.target.__name__ for head in _HEADS[to].values()}:
        return f"{to} has no class for the head of {kind}"
    if to != "electra" and config.embedding_size not in (None, config.hidden_size):
        return f"embedding_size is {config.embedding_size}, but in {to} it is the hidden_size, {config.hidden_size}"
    fields = ["padding_aware_positions"]
    if kind == "MagicForMaskedLM":
        fields.append("lm_head_activation")
    elif kind == "MagicForSequenceClassification" or (kind == "MagicForMultipleChoice" and to != "electra"):
        fields.append("classifier_activation")
    for field in fields:
        own, wanted = getattr(config, field), _HARD_CODED[to][field]
        # The activation of the masked-LM head may be None: the same as elsewhere.
        own, wanted = (config.hidden_act if value is None else value for value in (own, wanted))
        if own != wanted:
            return f"{field} is {own!r} but {to} has {wanted!r} built in"
    return None


# ---- Either ----


def load_magic(source: str | Path) -> MagicPreTrainedModel:
    """Loads the MAGIC model in a folder or on the Hub with this package's code, as the class that it was saved as.

    Raises:
        ValueError: it is not a MAGIC model, or its weights are incomplete or unreadable.
    """
    values, class_name = _read_config(source)
    if values.get("model_type") != MagicConfig.model_type or class_name not in _MAGIC_CLASSES:
        raise ValueError(
            f"{source} contains a {class_name or 'model'} of the model_type {values.get('model_type')!r}; a MAGIC "
            f"model is one of {', '.join(_MAGIC_CLASSES)}"
        )
    return cast(MagicPreTrainedModel, _load(source, _MAGIC_CLASSES[class_name])[0])


def load_chain(source: str | Path | PreTrainedModel) -> MagicPreTrainedModel:
    """Returns a MAGIC child from a source that is already one, or that `convert_to_magic` can convert."""
    chain: PreTrainedModel
    if _read_config(source)[0].get("model_type") != MagicConfig.model_type:
        chain = convert_to_magic(source).model
    else:
        chain = source if isinstance(source, PreTrainedModel) else load_magic(source)
    if chain.config.is_supernet:
        raise ValueError("the checkpoint is a super-net; give one of its children: model.extract_child(architecture)")
    return cast(MagicPreTrainedModel, chain)


def chain_config(source: str | Path | PreTrainedModel) -> MagicConfig:
    """Returns the configuration of the model that `load_chain` would return, without reading weights."""
    values, class_name = _read_config(source)
    if values.get("model_type") == MagicConfig.model_type:
        return MagicConfig.from_dict(values)
    family = _check_family(values, class_name, source)
    kind = getattr(transformers, f"{class_name[: len(family)]}Config")
    return _magic_config(kind.from_dict(values), class_name, add_pooling_layer=False)


__all__ = ["Conversion", "chain_config", "convert_from_magic", "convert_to_magic", "load_chain", "load_magic"]
