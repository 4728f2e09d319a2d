"""Options: fields of settings, each declared once with its help text, unit, bounds, choices and flag.

`Settings` is the base class of the settings of all commands. Recipes, flags, `--set` and Python callers all set the
same fields, which are checked when the settings are created.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints


# The largest seed of NumPy's generator, which `set_seed` of transformers sets.
MOST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Option:
    """Properties of a field in addition to its name, type and default.

    Attributes:
        help: the meaning, as shown by `--help` and in the tables of the documentation.
        unit: the unit of a number.
        at_least: the smallest allowed value; like all bounds, it applies to each element of a list.
        above: an exclusive lower bound.
        at_most: the largest allowed value.
        below: an exclusive upper bound.
        choices: the only allowed values.
        flag: the flag on the command line; `None` for options that can only be set with `--set`.
        is_path: whether a flag's value is a path, which settings store in full.
        splits: whether a flag's value may contain several elements separated by commas.
        is_filled: whether a list must have at least one element.
        is_distinct: whether the elements of a list must be distinct.
        is_inline: whether the keys of a section are at the top level of the recipe.
        arguments: the training arguments of this section that have flags, by name.
    """

    help: str
    unit: str = ""
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    flag: str | None = None
    is_path: bool = False
    splits: bool = False
    is_filled: bool = False
    is_distinct: bool = False
    is_inline: bool = False
    arguments: Mapping[str, "Argument"] = field(default_factory=dict)

    @property
    def bounds(self) -> str:
        """The bounds in words, such as "from 0 to 1"; empty if there are none."""
        if self.at_least is not None and (self.at_most is not None or self.below is not None):
            high = _number(self.at_most) if self.at_most is not None else f"below {self.below:g}"
            return f"from {self.at_least:g} to {high}"
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self.below:g}"
        parts = [("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)]
        return " and ".join(f"{words} {bound:g}" for words, bound in parts if bound is not None)

    @property
    def names_choices(self) -> bool:
        """Whether the help text itself has all choices."""
        return all(choice in self.help for choice in self.choices)

    def allows(self, value: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


def _number(bound: float) -> str:
    return f"{bound:,}" if isinstance(bound, int) else f"{bound:g}"


@dataclass(frozen=True)
class Argument:
    """A training argument with its own flag.

    Attributes:
        kind: the type of the argument.
        default: the default value, or its description.
        facts: the other properties of the argument.
    """

    kind: Any
    default: Any
    facts: Option


class _Help(str):
    """A help text with a reference to its option.

    Parsers such as HfArgumentParser pass all metadata of a field to argparse, which would reject our own keys.
    """

    facts: Option


def option(default: Any = MISSING, *, default_factory: Any = MISSING, **facts: Any) -> Any:
    """Returns a dataclass field that is an option; `facts` are the attributes of `Option`."""
    text = _Help(facts["help"])
    text.facts = Option(**facts)
    return field(default=default, default_factory=default_factory, metadata={"help": text})


def option_of(item: Field) -> Option | None:
    """Returns the option of a field; `None` if the field is not an option."""
    text = item.metadata.get("help")
    return text.facts if isinstance(text, _Help) else None


class Settings:
    """Base class of the settings of a command. Creating an instance checks every field.

    Attributes:
        command: the name after `magic-nas` on the command line, which also identifies recipes and run folders.
        growing: the fields that a later call in the same folder may change, because it adds to the existing results.
    """

    command: ClassVar[str] = ""
    growing: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self)

    def without_effect(self) -> dict[str, str]:
        """Returns the reason for each option that the other options leave without an effect, by its name."""
        return {}

    def warnings(self) -> list[str]:
        """Returns a line for each option that was set although it has no effect."""
        kind: Any = type(self)
        defaults = {item.name: default_of(item) for item in fields(kind)}
        return [
            f"{name} has no effect {reason}"
            for name, reason in self.without_effect().items()
            if getattr(self, name) != defaults[name]
        ]

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the class that `training_arguments` are passed to."""
        # Imported late, because help texts must not wait for transformers.
        from transformers import TrainingArguments

        return TrainingArguments


# ---- Fields and sections ----


def options_of(kind: type) -> Iterator[tuple[Field, Option]]:
    """Yields the fields of a class that are options, in order."""
    for item in fields(kind):
        if (facts := option_of(item)) is not None:
            yield item, facts


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Returns the type of each field."""
    return get_type_hints(kind)


def is_section(hint: Any) -> bool:
    """Whether a field of this type contains further options."""
    return isinstance(hint, type) and is_dataclass(hint)


def sections_of(kind: type) -> dict[str, type]:
    """Returns the keys of a recipe that contain further keys, with their classes; inline sections are expanded."""
    found: dict[str, type] = {}
    for item, facts in options_of(kind):
        hint = hints_of(kind)[item.name]
        if facts.is_inline:
            found |= sections_of(hint)
        elif is_section(hint):
            found[item.name] = hint
        elif item.name == "training_arguments":
            found[item.name] = kind.arguments_class()  # type: ignore[attr-defined]
    return found


def own_keys(kind: type) -> set[str]:
    """Returns the top-level keys of a recipe for `kind`, including those of inline sections."""
    keys: set[str] = set()
    for item, facts in options_of(kind):
        keys |= own_keys(hints_of(kind)[item.name]) if facts.is_inline else {item.name}
    return keys


def shown_value(value: Any) -> str:
    """Returns a default as shown in help texts; empty if there is none."""
    if value is MISSING or value in (None, "", (), {}):
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, tuple):
        return ", ".join(map(shown_value, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


def default_of(item: Field) -> Any:
    """Returns the default of a field."""
    return item.default_factory() if item.default_factory is not MISSING else item.default


# ---- Checks ----


def check_options(settings: Any) -> None:
    """Checks the options of a dataclass and converts its values to the types of its fields.

    As the field requires, a whole float becomes an integer, an integer a float, a list a tuple, a single value a list
    of one, and a mapping the section that it describes.

    Raises:
        ValueError: a value has another type, is out of bounds, or is not one of the choices.
    """
    kind: Any = type(settings)
    for item, facts in options_of(kind):
        value = getattr(settings, item.name)
        hint = hints_of(kind)[item.name]
        checked = read_value(item.name, value, hint)
        _check_value(item.name, checked, facts)
        checked = _with_floats(checked, hint)
        if checked is not value:
            # Settings may be frozen, but nobody else has seen them yet.
            object.__setattr__(settings, item.name, checked)
        if item.name == "training_arguments":
            object.__setattr__(settings, item.name, _training_arguments(checked, kind.arguments_class()))


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Returns an instance of `kind` from a mapping of its keys; `where` names the mapping in errors.

    Raises:
        ValueError: a key is unknown, or a value is invalid.
    """
    return kind(**known_values(kind, values, where))


def known_values(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns values converted to the types of the fields of `kind`.

    Raises:
        ValueError: a key is unknown, or a value has another type.
    """
    check_keys(values, {item.name for item in fields(kind)} - {"output_dir"}, where)
    return {key: read_value(key, value, hints_of(kind)[key]) for key, value in values.items()}


def check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises a ValueError if a mapping has an unknown key; `where` names the mapping."""
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {where}; {_remedy(str(key), known, where)}")


def _remedy(key: str, known: set[str], where: str) -> str:
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {close[0]!r}?"
    if len(known) > 40:
        listed = "transformers documents them" if where == "training_arguments" else "`magic-nas options` lists them"
        return f"none of the {len(known)} keys is similar; {listed}"
    return f"known keys: {', '.join(sorted(known))}"


# Training arguments that count something and that `Trainer` does not check.
_COUNTS = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_accumulation_steps",
)


def _training_arguments(values: dict[str, Any], kind: type) -> dict[str, Any]:
    checked = known_values(kind, values, "training_arguments")
    for name in _COUNTS:
        if (count := checked.get(name)) is not None and count < 1:
            raise ValueError(f"{name} is {count}; it must be at least 1")
    for name in ("seed", "data_seed"):
        if not 0 <= (checked.get(name) or 0) <= MOST_SEED:
            raise ValueError(f"{name} is {checked[name]}; it must be from 0 to {_number(MOST_SEED)}")
    return checked


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def read_value(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` converted to the annotated type of a field; types that recipes cannot express are not checked.

    Raises:
        ValueError: the value has another type.
    """
    wanted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in wanted:
        return None
    lists = [one for one in wanted if get_origin(one) is tuple]
    if lists:
        return _read_list(name, value, get_args(lists[0])[0])
    if is_section(hint):
        return value if isinstance(value, hint) else build(hint, _mapping(name, value), name)
    mappings = [one for one in wanted if get_origin(one) is dict]
    if mappings and (isinstance(value, dict) or len(wanted) == 1):
        # YAML reads a key such as 1 as a number.
        inner = get_args(mappings[0])[1]
        return {str(key): read_value(f"{name}.{key}", own, inner) for key, own in _mapping(name, value).items()}
    plain = [one for one in wanted if one not in mappings]
    return _read_plain(name, value, plain) if set(plain) <= set(_NAMES) else value


def _read_list(name: str, value: Any, hint: Any) -> tuple[Any, ...]:
    if isinstance(value, dict | set) or value is None:
        raise ValueError(f"{name} is {value!r}; it must be a list")
    elements = value if isinstance(value, list | tuple) else [value]
    return tuple(read_value(f"{name}[{place}]", element, hint) for place, element in enumerate(elements))


def _with_floats(value: Any, hint: Any) -> Any:
    """Returns a whole number as a float if the field is a float, so that 2 and 2.0 are the same setting."""
    wanted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if isinstance(value, tuple):
        inner = next(get_args(one)[0] for one in wanted if get_origin(one) is tuple)
        return tuple(_with_floats(element, inner) for element in value)
    return float(value) if type(value) is int and float in wanted and int not in wanted else value


def _mapping(name: str, value: Any) -> dict[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError(f"{name} is {value!r}; it must be a mapping of keys to values")
    return value


def _read_plain(name: str, value: Any, wanted: Sequence[Any]) -> Any:
    if isinstance(value, Real) and type(value) not in (bool, int, float):
        # For example, a numpy number.
        value = int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, float) and int in wanted and float not in wanted and value.is_integer():
        value = int(value)
    if type(value) not in wanted and not (type(value) is int and float in wanted):
        raise ValueError(f"{name} is {value!r}; it must be {' or '.join(_NAMES[kind] for kind in wanted)}")
    return value


def _check_value(name: str, value: Any, facts: Option) -> None:
    if isinstance(value, tuple):
        if facts.is_filled and not value:
            raise ValueError(f"{name} is empty; give at least one")
        if facts.is_distinct and any(element in value[:place] for place, element in enumerate(value)):
            raise ValueError(f"{name} is {list(value)}; name each once")
        for element in value:
            _check_value(name, element, facts)
        return
    if facts.choices and value is not None and value not in facts.choices:
        raise ValueError(f"{name} is {value!r}; choose one of: {', '.join(facts.choices)}")
    if type(value) in (int, float) and not facts.allows(value):
        raise ValueError(f"{name} is {value}; it must be {facts.bounds or 'a finite number'}")
