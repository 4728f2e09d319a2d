"""BERT, RoBERTa and ELECTRA models as MAGIC chains, and such chains as plain transformers models.

Block i of these encoders is two layers of a chain: its attention is layer 2i, its feed-forward network layer 2i + 1.
The arithmetic and its order are the same on both sides, so the outputs are, too.
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
        model: the result, of the source's dtype, mode and attention implementation; it shares no tensor with it.
        dropped: names of the source's weights that the result has no place for.
    """

    model: Model
    dropped: tuple[str, ...]


# ---- Key tables: modules of transformers' classes and what MAGIC calls them ----


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


# Where two classes have the same target, the first is what that target is converted back to.
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
# BERT's pooler and next-sentence head, which checkpoints of other heads carry along.
_DROPPABLE = re.compile(r"((bert|roberta|magic)\.)?pooler\.dense\.(weight|bias)|cls\.seq_relationship\.(weight|bias)")
# Classes with a head whose first layer may be the pooler.
_WITH_POOLER = (MagicForSequenceClassification, MagicForMultipleChoice)
_POOLER_KEYS = {"pooler.dense.weight", "pooler.dense.bias"}

# Fields of MagicConfig for what transformers' classes hard-code.
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
_MAGIC_CLASSES = {head.target.__name__: head.target for heads in _HEADS.values() for head in heads.values()}


def _modules(family: str, class_name: str, architecture: Sequence[str]) -> dict[str, str]:
    """Returns all modules of a transformers class, each with the name that MAGIC has for it."""
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
    """Returns a BERT, RoBERTa or ELECTRA model as a chain of MHA and FFN in turn, with equal outputs.

    Every head of these is converted but causal language models and BERT's next-sentence prediction, which is dropped
    where it stands beside a masked-LM head. `position_ids` of old checkpoints, a constant, count for no weight.

    Args:
        source: a model in memory, a folder or a name on the Hub; the class is then the configuration's
            `architectures`. Weights are never unpickled into anything but tensors.

    Raises:
        ValueError: a model of another kind, a decoder, relative positions, or weights that are missing, unknown, of
            another shape or not readable.
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
    """Returns the configuration of a model and the name of its class, "" where it names none."""
    if isinstance(source, PreTrainedModel):
        return source.config.to_dict(), type(source).__name__
    try:
        values, _ = PreTrainedConfig.get_config_dict(source)
    except OSError as error:
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
        raise ValueError(f"{source} is a MAGIC model already; there is nothing to convert")
    if family not in _HEADS:
        raise ValueError(f"{source} has the model_type {family!r}; those of {', '.join(_HEADS)} can be converted")
    for field in ("is_decoder", "add_cross_attention"):
        if values.get(field):
            raise ValueError(f"{field} is true in {source}; a MAGIC model is an encoder, so give one without it")
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
    # What ElectraConfig says of itself where a checkpoint is silent.
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
        # This class alone does not read the field.
        values["classifier_dropout"] = None
    return MagicConfig(**values)


def _load(source: str | Path, kind: type[PreTrainedModel]) -> tuple[PreTrainedModel, list[str]]:
    """Returns the model in `source` and the names of what its class has no use for."""
    try:
        with _quiet():
            loaded: Any = kind.from_pretrained(
                source, output_loading_info=True, ignore_mismatched_sizes=True, weights_only=True
            )
    except (SafetensorError, UnpicklingError) as error:
        raise ValueError(
            f"the weights in {source} are not readable ({_first_line(error)}); fetch them again"
        ) from None
    model, info = loaded
    missing, unexpected = set(info["missing_keys"]), set(info["unexpected_keys"])
    if missing == _POOLER_KEYS:
        # Its random weights are no part of the checkpoint.
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
    """Returns a model of `kind` with the source's weights, each under the name that `modules` has for its module."""
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
        # The decoder computes with a bias of its own; ELECTRA has that one only.
        state.setdefault("lm_head.bias", state["lm_head.decoder.bias"])
    mismatched = {name for name, tensor in state.items() if tensor.shape != shapes[name]}
    _refuse_keys(f"the {type(source).__name__}", shapes.keys() - state.keys(), unknown, mismatched)
    if config.tie_word_embeddings:
        for name, tied_to in (kind._tied_weights_keys or {}).items():
            if not torch.equal(state.pop(name), state[tied_to]):
                raise ValueError(
                    f"tie_word_embeddings is true but the decoder of the {type(source).__name__} has weights of its "
                    f"own; set it to false in the configuration"
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
    # Else the name is that of what was loaded, and nothing was.
    model.name_or_path = model.config.name_or_path = ""
    return Conversion(model.to(source.device).train(source.training), tuple(sorted(lost)))


@contextmanager
def _quiet() -> Iterator[None]:
    """Holds back the progress bars and load reports of transformers: what they tell is returned or raised here."""
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
    """Returns a child that is a BERT, RoBERTa or ELECTRA in all but name as a plain transformers model.

    The weights are the same bits, and the result saves and loads without any code of this project.

    Args:
        model: a child whose layers are MHA and FFN in turn, all MHA with the same number of heads and hidden_size
            inside, all FFN of one inner size.
        to: `"bert"`, `"roberta"` (positions that leave out padding) or `"electra"` (factorised embeddings, a
            discriminator).

    Raises:
        ValueError: a layer, a field or a head that the wanted class does not have.
    """
    if to not in _HEADS:
        raise ValueError(f"cannot convert to {to!r}; choose one of {', '.join(_HEADS)}")
    config = model.config
    if config.model_type != MagicConfig.model_type:
        raise ValueError(f"the {type(model).__name__} is no MAGIC model; convert it with convert_to_magic")
    kind = type(model).__name__
    if (obstacle := _obstacle(config, kind, to)) is not None:
        others = [family for family in _HEADS if _obstacle(config, kind, family) is None]
        remedy = f"convert to {' or '.join(others)}" if others else f"none of {', '.join(_HEADS)} is like that"
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
    """Returns the heads of every MHA and the inner size of every FFN; raises a ValueError where `to` has no such."""
    if config.is_supernet:
        raise ValueError("the model is a super-net; convert one of its children: model.extract_child(architecture)")
    specs = [parse_operator(layer[0]) for layer in config.candidate_operators]
    names = [layer[0] for layer in config.candidate_operators]
    sizes = [operator_inner_size(spec, config) for spec in specs]
    for index, (name, spec, size) in enumerate(zip(names, specs, sizes, strict=True)):
        kind = "FFN" if index % 2 else "MHA"
        if spec.kind != kind:
            raise ValueError(f"layer {index} is {name}; {to} has MHA and FFN in turn, so an {kind} there")
        if kind == "MHA" and size != config.hidden_size:
            raise ValueError(f"layer {index} is {name}, {size} wide inside; {to} has {config.hidden_size} there")
        if (spec.size, size) != (specs[index % 2].size, sizes[index % 2]):
            raise ValueError(f"layer {index} is {name} but layer {index % 2} {names[index % 2]}; {to} has one for all")
    if len(specs) % 2:
        raise ValueError(f"layer {len(specs) - 1}, {names[-1]}, is the last; {to} ends in an FFN")
    return specs[0].size, sizes[1]


def _obstacle(config: MagicConfig, kind: str, to: str) -> str | None:
    """Returns why no class of the family `to` computes what a MAGIC class does, layers apart; `None` if one does."""
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
        # None is what an activation of the masked-LM head may be: the same as elsewhere.
        own, wanted = (config.hidden_act if value is None else value for value in (own, wanted))
        if own != wanted:
            return f"{field} is {own!r} but {to} has {wanted!r} built in"
    return None


# ---- Either ----


def load_magic(source: str | Path) -> MagicPreTrainedModel:
    """Returns the MAGIC model in a folder or on the Hub, of the class that it was saved as, by this package's code.

    Raises:
        ValueError: it is no MAGIC model, or its weights are incomplete or not readable.
    """
    values, class_name = _read_config(source)
    if values.get("model_type") != MagicConfig.model_type or class_name not in _MAGIC_CLASSES:
        raise ValueError(
            f"{source} holds a {class_name or 'model'} of the model_type {values.get('model_type')!r}; a MAGIC model "
            f"is one of {', '.join(_MAGIC_CLASSES)}"
        )
    return cast(MagicPreTrainedModel, _load(source, _MAGIC_CLASSES[class_name])[0])


def load_chain(source: str | Path | PreTrainedModel) -> MagicPreTrainedModel:
    """Returns a source of either kind, what `convert_to_magic` takes or a MAGIC child, as a MAGIC child."""
    chain: PreTrainedModel
    if _read_config(source)[0].get("model_type") != MagicConfig.model_type:
        chain = convert_to_magic(source).model
    else:
        chain = source if isinstance(source, PreTrainedModel) else load_magic(source)
    if chain.config.is_supernet:
        raise ValueError("the checkpoint is a super-net; give one of its children: model.extract_child(architecture)")
    return cast(MagicPreTrainedModel, chain)


def chain_config(source: str | Path | PreTrainedModel) -> MagicConfig:
    """Returns the configuration that `load_chain` would give the model, without reading weights."""
    values, class_name = _read_config(source)
    if values.get("model_type") == MagicConfig.model_type:
        return MagicConfig.from_dict(values)
    family = _check_family(values, class_name, source)
    kind = getattr(transformers, f"{class_name[: len(family)]}Config")
    return _magic_config(kind.from_dict(values), class_name, add_pooling_layer=False)


__all__ = ["Conversion", "chain_config", "convert_from_magic", "convert_to_magic", "load_chain", "load_magic"]
