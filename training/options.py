"""Options: fields of settings, each described once with its help, unit, bounds, choices and flag, and checked alike.

`Settings` is the base of all that a command is asked to do. A recipe, a flag, `--set` and a Python caller end in the
same fields, which are checked when the settings are made.
"""

import difflib
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, ClassVar, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Option:
    """What is known of a field beside its name, its type and its default.

    Attributes:
        help: what it means, as `--help` and the tables of the documentation have it.
        unit: of a number.
        at_least: the smallest value allowed; of a list, of each element, as all bounds.
        above: what every value is above.
        at_most: the largest value allowed.
        below: what every value is below.
        choices: the only values allowed.
        flag: its flag on the command line; `None` for those that `--set` alone reaches.
        is_path: a flag's value is a path, which settings hold in full.
        splits: a flag's value may hold several elements with commas between them.
        is_filled: a list holds an element at least.
        is_distinct: a list holds no element twice.
        is_inline: the keys of a section stand in the recipe itself.
        arguments: of a section of training arguments, those that have flags, by name.
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
        """The bounds in words, such as "from 0 to 1"; empty where there are none."""
        if self.at_least is not None and (self.at_most is not None or self.below is not None):
            high = f"{self.at_most:g}" if self.at_most is not None else f"below {self.below:g}"
            return f"from {self.at_least:g} to {high}"
        if self.above is not None and self.below is not None:
            return f"between {self.above:g} and {self.below:g}"
        parts = [("at least", self.at_least), ("above", self.above), ("at most", self.at_most), ("below", self.below)]
        return " and ".join(f"{words} {bound:g}" for words, bound in parts if bound is not None)

    def allows(self, value: float) -> bool:
        """Whether a number is finite and within the bounds."""
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclass(frozen=True)
class Argument:
    """A training argument that has a flag of its own.

    Attributes:
        kind: its type.
        default: what it is where it is not given, or that in words.
        facts: what else is known of it.
    """

    kind: Any
    default: Any
    facts: Option


class _Help(str):
    """A help text that knows the option that it is of.

    Parsers such as HfArgumentParser hand a field's metadata to argparse whole, which takes no key of ours.
    """

    facts: Option


def option(default: Any = MISSING, *, default_factory: Any = MISSING, **facts: Any) -> Any:
    """Returns a dataclass field that is an option; `facts` are those of `Option`."""
    text = _Help(facts["help"])
    text.facts = Option(**facts)
    return field(default=default, default_factory=default_factory, metadata={"help": text})


def option_of(item: Field) -> Option | None:
    """Returns what is known of a field, `None` where the field is not an option."""
    text = item.metadata.get("help")
    return text.facts if isinstance(text, _Help) else None


class Settings:
    """Base of the dataclasses that say what a command does. Making one checks every field.

    Attributes:
        command: what follows `magic-nas` on the command line, by which recipes and run folders name it.
        growing: fields that a later call may change in the same folder, as it adds to what is there.
    """

    command: ClassVar[str] = ""
    growing: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self)

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the class that `training_arguments` are given to."""
        # Later than the help text, which must not wait for transformers.
        from transformers import TrainingArguments

        return TrainingArguments


# ---- What there is ----


def options_of(kind: type) -> Iterator[tuple[Field, Option]]:
    """Yields the fields of a class that are options, in their order."""
    for item in fields(kind):
        if (facts := option_of(item)) is not None:
            yield item, facts


@cache
def hints_of(kind: Any) -> dict[str, Any]:
    """Returns the type of each field."""
    return get_type_hints(kind)


def is_section(hint: Any) -> bool:
    """Whether a field of this type holds further options."""
    return isinstance(hint, type) and is_dataclass(hint)


def sections_of(kind: type) -> dict[str, type]:
    """Returns the keys of a recipe that hold further keys, with the class of each; inline ones give theirs."""
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
    """Returns the keys of a recipe for `kind`, those of its inline sections included and those of others not."""
    keys: set[str] = set()
    for item, facts in options_of(kind):
        keys |= own_keys(hints_of(kind)[item.name]) if facts.is_inline else {item.name}
    return keys


def shown_value(value: Any) -> str:
    """Returns a default as help texts show it; empty where there is none."""
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
    """Checks the options of a dataclass and puts its values into the types of its fields.

    A whole float becomes an integer where one is wanted, an integer a float, a list a tuple, a lone value a list of
    one, a mapping the section that it spells.

    Raises:
        ValueError: a value is of another type, out of its bounds or none of the choices.
    """
    kind: Any = type(settings)
    for item, facts in options_of(kind):
        value = getattr(settings, item.name)
        hint = hints_of(kind)[item.name]
        checked = read_value(item.name, value, hint)
        _check_value(item.name, checked, facts)
        checked = _with_floats(checked, hint)
        if checked is not value:
            # Settings may be frozen; until here nobody has seen them.
            object.__setattr__(settings, item.name, checked)
        if item.name == "training_arguments":
            object.__setattr__(settings, item.name, _training_arguments(checked, kind.arguments_class()))


def build(kind: type, values: Mapping[str, Any], where: str) -> Any:
    """Returns `kind` made from a mapping of its keys; `where` names the mapping in errors.

    Raises:
        ValueError: there is no such key, or a value is refused.
    """
    return kind(**known_values(kind, values, where))


def known_values(kind: type, values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Returns values as the fields of `kind` want them.

    Raises:
        ValueError: there is no such key, or a value is of another type.
    """
    check_keys(values, {item.name for item in fields(kind)} - {"output_dir"}, where)
    return {key: read_value(key, value, hints_of(kind)[key]) for key, value in values.items()}


def check_keys(values: Mapping[str, Any], known: set[str], where: str) -> None:
    """Raises a ValueError where a mapping has a key that is not known; `where` names the mapping."""
    for key in values:
        if key not in known:
            raise ValueError(f"unknown key {key!r} in {where}; {_remedy(str(key), known)}")


def _remedy(key: str, known: set[str]) -> str:
    if close := difflib.get_close_matches(key, known, n=1):
        return f"did you mean {close[0]!r}?"
    if len(known) > 40:
        return f"none of the {len(known)} keys is like it; `magic-nas options COMMAND` lists them"
    return f"known keys: {', '.join(sorted(known))}"


def _training_arguments(values: dict[str, Any], kind: type) -> dict[str, Any]:
    checked = known_values(kind, values, "training_arguments")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if checked.get(name, 1) < 1:
            raise ValueError(f"{name} is {checked[name]}; it must be at least 1")
    return checked


_NAMES = {bool: "true or false", int: "a whole number", float: "a number", str: "text", NoneType: "null"}


def read_value(name: str, value: Any, hint: Any) -> Any:
    """Returns `value` as the annotated type of a field wants it; types that no recipe spells are left unchecked.

    Raises:
        ValueError: it is of another type.
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
    """Returns a whole number as a float where a field wants one, so that 2 and 2.0 are one setting."""
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
        # A number of numpy's, say.
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
