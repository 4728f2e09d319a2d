"""What a run is asked to do: recipes, flags over them, and the checks of both."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import TrainingArguments

from modeling_magic import MagicConfig

from .arguments import MagicTrainingArguments
from .budgets import AdditiveCost, Budget, Limit
from .costs import additive_cost
from .latency import LatencyTable


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from and how it is cut into blocks; the keys of `data` in a recipe."""

    source: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False
    max_documents: int | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    block_size: int = 128
    validation_fraction: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class PretrainSettings:
    """What a super-net run does; the keys of a recipe for `magic-nas pretrain`.

    Attributes:
        preset: sizes and candidate operators of the super-net.
        init_from: a BERT, RoBERTa, ELECTRA or MAGIC checkpoint, a folder or a name on the Hub, whose weights the
            super-net starts from where it has the same operators; left out, it starts from random ones.
    """

    preset: str = "magic-tiny"
    init_from: str | None = None
    mlm_probability: float = 0.15
    data: DataSettings = field(default_factory=DataSettings)
    training_arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RetrainSettings:
    """What the training of one child does; the keys of a recipe for `magic-nas retrain`.

    Attributes:
        preset: sizes of the model; its operators are replaced by the architecture's.
        architecture: one operator name a layer, as text.
        inherit: folder of a super-net whose weights the child starts from; left out, it starts from random ones.
    """

    preset: str = "magic-tiny"
    architecture: str = ""
    inherit: str | None = None
    mlm_probability: float = 0.15
    num_validation_sequences: int = 256
    data: DataSettings = field(default_factory=DataSettings)
    training_arguments: dict[str, Any] = field(default_factory=dict)


SEARCHERS = ("evolution", "random", "pareto")
PRECISIONS = ("no", "bf16", "fp16")


@dataclass(frozen=True)
class BudgetSettings:
    """What an encoder may cost; the keys of `budget` in a recipe. A limit that is left out does not bind.

    Attributes:
        max_params: parameters of the masked LM, embeddings included.
        max_flops: FLOPs of a forward pass over `sequence_length` tokens as ELECTRA counts, masked-LM head included.
        max_latency_ms: milliseconds by `latency_table`, for the batch and the length that it was measured with.
        max_activation_mb: MiB that training keeps for the backward pass of one sequence of `sequence_length` tokens.
        latency_table: a file that `magic-nas benchmark` wrote.
        sequence_length: tokens for which FLOPs and activations are counted; left out, 128 or the model's longest.
    """

    max_params: int | None = None
    min_params: int | None = None
    max_flops: float | None = None
    min_flops: float | None = None
    max_latency_ms: float | None = None
    min_latency_ms: float | None = None
    max_activation_mb: float | None = None
    latency_table: str | None = None
    sequence_length: int | None = None


@dataclass(frozen=True)
class SearchSettings:
    """What a search does; the keys of a recipe for `magic-nas search`.

    Attributes:
        supernet: a finished super-net run, or the folder of a super-net.
        searcher: "evolution", "random" or "pareto" (loss against the costs that the budget names, else parameters).
        num_evaluations: children that the searcher evaluates; as many random ones are evaluated beside them.
        population_size: children of a generation.
        num_validation_sequences: held-out sequences that every child is validated on.
        batch_size: sequences of a validation batch.
        precision: "no" for float32, "bf16" or "fp16".
        full_space: search all operators of a super-net, those that shrinking has deleted too.
        journal: file of the evaluations, which several searches may share; left out, journal.jsonl in the folder.
        data: the text; left out, that of the super-net's run.
    """

    supernet: str = ""
    searcher: str = "evolution"
    num_evaluations: int = 500
    population_size: int = 50
    num_validation_sequences: int = 256
    batch_size: int = 16
    mlm_probability: float = 0.15
    precision: str = "no"
    seed: int = 0
    full_space: bool = False
    journal: str | None = None
    budget: BudgetSettings = field(default_factory=BudgetSettings)
    data: DataSettings = field(default_factory=DataSettings)


# The limit of each cost, as a recipe and the command line name it.
_LIMITS = {
    "num_parameters": ("min_params", "max_params"),
    "flops": ("min_flops", "max_flops"),
    "latency_ms": ("min_latency_ms", "max_latency_ms"),
    "activation_mb": (None, "max_activation_mb"),
}


def costs_of(config: MagicConfig, settings: BudgetSettings) -> list[AdditiveCost]:
    """Returns the costs of the children of `config`: parameters, FLOPs, and latency and activations where asked for.

    Raises:
        ValueError: a latency is limited without a table, or the table is of another model.
    """
    sequence_length = settings.sequence_length or min(128, config.max_sequence_length)
    costs = [additive_cost(config, name, seq_len=sequence_length) for name in ("num_parameters", "flops")]
    if settings.latency_table is not None:
        table = LatencyTable.load(settings.latency_table)
        table.check(config)
        costs.append(table.cost())
    elif settings.max_latency_ms is not None or settings.min_latency_ms is not None:
        raise ValueError("a latency needs a table of this device: magic-nas benchmark, then --latency-table FILE")
    if settings.max_activation_mb is not None:
        costs.append(additive_cost(config, "activation_mb", seq_len=sequence_length))
    return costs


def budget_of(config: MagicConfig, settings: BudgetSettings) -> Budget:
    """Returns the limits of `settings` on the children of `config`.

    Raises:
        ValueError: as `costs_of` does, or a limit is no cost, such as a negative one.
    """
    limits = []
    for cost in costs_of(config, settings):
        lowest, highest = _LIMITS[cost.name]
        minimum = None if lowest is None else getattr(settings, lowest)
        maximum = getattr(settings, highest)
        if minimum is not None or maximum is not None:
            limits.append(Limit(cost, minimum, maximum))
    return Budget(tuple(limits))


def budget_settings(values: dict[str, Any]) -> BudgetSettings:
    """Returns the limits that a mapping of their keys to numbers names; every key and its type are checked."""
    return BudgetSettings(**_checked("budget", values, BudgetSettings))


_SECTIONS: dict[str, type] = {"data": DataSettings, "budget": BudgetSettings}


def load_recipe(name_or_path: str | None) -> dict[str, Any]:
    """Returns what a recipe says: one of hub_configs/recipes by name, or a YAML file.

    Raises:
        ValueError: there is no such recipe, or it is no YAML mapping.
    """
    if name_or_path is None:
        return {}
    packaged = files("hub_configs").joinpath("recipes", f"{name_or_path}.yaml")
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        names = sorted(item.name.removesuffix(".yaml") for item in files("hub_configs").joinpath("recipes").iterdir())
        raise ValueError(f"there is no recipe {name_or_path!r}; choose one of {', '.join(names)}, or give a YAML file")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{name_or_path} is not a recipe: a YAML mapping is expected")
    return recipe


def settings_from(kind: type, recipe: dict[str, Any], changes: dict[str, Any] | None = None) -> Any:
    """Returns settings of `kind` from a recipe, `changes` winning over it; every key and its type are checked.

    Args:
        kind: a dataclass of settings, such as PretrainSettings, RetrainSettings or SearchSettings.
        recipe: as `load_recipe` returns it.
        changes: keys as in a recipe; sections such as `data` are merged key by key, `None` changes nothing.
    """
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    merged = {**recipe, **changes}
    for section in sections_of(kind):
        over = {key: value for key, value in mapping_of(section, changes).items() if value is not None}
        merged[section] = {**mapping_of(section, recipe), **over}
    merged = _checked("recipe", merged, kind)
    for section in sections_of(kind):
        if section == "training_arguments":
            arguments = MagicTrainingArguments if issubclass(kind, PretrainSettings) else TrainingArguments
            merged[section] = _checked(section, merged[section], arguments)
        else:
            merged[section] = _SECTIONS[section](**_checked(section, merged[section], _SECTIONS[section]))
    settings = kind(**merged)
    _check_values(settings)
    return settings


def sections_of(kind: type) -> list[str]:
    """Returns the keys of a recipe for settings of `kind` that hold further keys."""
    return [item.name for item in fields(kind) if item.name in (*_SECTIONS, "training_arguments")]


def _check_values(settings: Any) -> None:
    mlm_probability = getattr(settings, "mlm_probability", None)
    if mlm_probability is not None and not 0 < mlm_probability < 1:
        raise ValueError(f"mlm_probability is {mlm_probability}; it must be between 0 and 1")
    if isinstance(settings, SearchSettings):
        _check_choice("searcher", settings.searcher, SEARCHERS)
        _check_choice("precision", settings.precision, PRECISIONS)
        _check_positive(settings, ("num_evaluations", "population_size", "num_validation_sequences", "batch_size"))
        return
    training_arguments = getattr(settings, "training_arguments", {})
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if (value := training_arguments.get(name, 1)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if isinstance(settings, RetrainSettings):
        _check_positive(settings, ("num_validation_sequences",))


def _check_positive(settings: Any, names: Sequence[str]) -> None:
    for name in names:
        if (value := getattr(settings, name)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")


def _check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise ValueError(f"{name} is {value!r}; choose one of: {', '.join(choices)}")


def mapping_of(section: str, values: dict[str, Any]) -> dict[str, Any]:
    """Returns a section of a recipe, empty where it is not there; raises a ValueError where it is no mapping."""
    found = values.get(section) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{section} is {found!r} in the recipe; it must be a mapping of keys to values")
    return found


def _checked(section: str, values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Returns `values` with numbers as numbers; raises a ValueError where `kind` has no such field or another type."""
    hints = get_type_hints(kind)
    known = [item.name for item in fields(kind) if item.name != "output_dir"]
    checked = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(str(key), known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"unknown key {key!r} in {section}; {remedy}")
        checked[key] = _of_type(key, value, hints[key])
    return checked


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def _of_type(key: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the annotated type of a field wants it; types that no recipe spells are left unchecked."""
    wanted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if not set(wanted) <= set(_NAMES):
        return value
    if isinstance(value, str) and str not in wanted and {int, float} & set(wanted):
        # YAML takes 1e-3 for text: a number has a point there.
        try:
            value = float(value)
        except ValueError:
            pass
    if isinstance(value, float) and int in wanted and float not in wanted and value.is_integer():
        value = int(value)
    fits = type(value) in wanted or (type(value) is int and float in wanted)
    if not fits:
        raise ValueError(f"{key} is {value!r}; it must be {' or '.join(_NAMES[name] for name in wanted)}")
    return value
