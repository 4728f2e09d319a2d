"""What a run is asked to do: recipes, flags over them, and the checks of both."""

import difflib
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import yaml
from transformers import TrainingArguments

from .arguments import MagicTrainingArguments


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
        kind: PretrainSettings or RetrainSettings.
        recipe: as `load_recipe` returns it.
        changes: keys as in a recipe; `data` and `training_arguments` are merged key by key, `None` changes nothing.
    """
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    merged = {**recipe, **changes}
    for section in ("data", "training_arguments"):
        over = {key: value for key, value in mapping_of(section, changes).items() if value is not None}
        merged[section] = {**mapping_of(section, recipe), **over}
    arguments = MagicTrainingArguments if kind is PretrainSettings else TrainingArguments
    merged = _checked("recipe", merged, kind)
    merged["training_arguments"] = _checked("training_arguments", merged["training_arguments"], arguments)
    settings = kind(**{**merged, "data": DataSettings(**_checked("data", merged["data"], DataSettings))})
    _check_values(settings)
    return settings


def _check_values(settings: Any) -> None:
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if (value := settings.training_arguments.get(name, 1)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    if not 0 < settings.mlm_probability < 1:
        raise ValueError(f"mlm_probability is {settings.mlm_probability}; it must be between 0 and 1")
    if isinstance(settings, RetrainSettings) and settings.num_validation_sequences < 1:
        raise ValueError(f"num_validation_sequences is {settings.num_validation_sequences}; it must be at least 1")


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
