"""Recipes: YAML files with the options of a command, the flags that override them, and the resulting settings."""

import re
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from ..options import Settings, build, check_keys, hints_of, options_of, own_keys, sections_of


# A recipe has a few dozen values, three levels deep; nested aliases could expand to billions.
_MOST_VALUES = 10_000
_MOST_LEVELS = 50
_TOO_DEEP = f"it is nested deeper than {_MOST_LEVELS} levels"


class _Loader(yaml.SafeLoader):
    """YAML's safe loader, but with 1e-3 as a number and duplicate keys as an error."""

    _level = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Returns the next node; raises an error if it is nested too deeply."""
        self._level += 1
        if self._level > _MOST_LEVELS:
            raise ValueError(_TOO_DEEP)
        node = super().compose_node(parent, index)
        self._level -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """Returns a mapping; raises an error if a key occurs twice."""
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key.value!r} occurs twice", key.start_mark
                    )
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _whole_number(loader: _Loader, node: yaml.ScalarNode) -> int:
    return int(str(loader.construct_scalar(node)).replace("_", ""))


# The plain values of YAML 1.2. In 1.1 `no` is false, 010 is 8, 1:30 is 90, 1e-3 is text and 2020-01-01 is a date.
_Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in (
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", r"[-+]?\d[\d_]*", "-+0123456789"),
    (
        "float",
        r"[-+]?(?:\d[\d_]*(?:\.[\d_]*)?|\.\d[\d_]*)(?:[eE][-+]?\d+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"^(?:{_pattern})$"), list(_first))
_Loader.add_constructor("tag:yaml.org,2002:int", _whole_number)


def read_yaml(text: str) -> Any:
    """Returns the contents of a YAML text.

    Raises:
        ValueError: it is not YAML, a key occurs twice in a mapping, or it is nested too deeply or too large.
    """
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        _check_size(node, {})
        return loader.construct_document(node)
    except (yaml.YAMLError, ArithmeticError, LookupError, AttributeError, TypeError) as error:
        raise ValueError(" ".join(str(error).split())) from None
    finally:
        loader.dispose()


def _check_size(node: yaml.Node, known: dict[int, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns the number of values in a node and their depth, with every alias expanded."""
    if id(node) in known:
        if (size := known[id(node)]) is None:
            raise ValueError("an alias refers to a node that contains it")
        return size
    known[id(node)] = None
    inner: Iterable[yaml.Node] = ()
    if isinstance(node, yaml.MappingNode):
        inner = (part for pair in node.value for part in pair)
    elif isinstance(node, yaml.SequenceNode):
        inner = node.value
    values, levels = 1, 1
    for part in inner:
        own_values, own_levels = _check_size(part, known)
        values, levels = values + own_values, max(levels, own_levels + 1)
    if values > _MOST_VALUES:
        raise ValueError(f"it has more than {_MOST_VALUES:,} values with aliases expanded")
    if levels > _MOST_LEVELS:
        raise ValueError(_TOO_DEEP)
    known[id(node)] = values, levels
    return values, levels


def load_recipe(name_or_path: str | None) -> dict[str, Any]:
    """Returns the contents of a recipe: one of hub_configs/recipes by name, or a YAML file.

    Raises:
        ValueError: the recipe does not exist, or it is not a YAML mapping.
    """
    if name_or_path is None:
        return {}
    packaged = files("hub_configs").joinpath("recipes", f"{name_or_path}.yaml")
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        raise ValueError(
            f"recipe {name_or_path!r} does not exist; choose one of {', '.join(recipe_names())}, or give a YAML file"
        )
    try:
        recipe = read_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{name_or_path} is not a recipe: {error}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{name_or_path} is not a recipe: a YAML mapping is expected")
    return recipe


def recipe_names() -> list[str]:
    """Returns the names of the recipes in the package."""
    folder = files("hub_configs").joinpath("recipes")
    return sorted(item.name.removesuffix(".yaml") for item in folder.iterdir() if item.name.endswith(".yaml"))


def settings_from(kind: type[Settings], recipe: Mapping[str, Any], changes: Mapping[str, Any] | None = None) -> Any:
    """Returns settings of `kind` from a recipe, overridden by `changes`; every key and value is checked.

    Args:
        kind: a class of settings, such as PretrainSettings.
        recipe: a recipe, as returned by `load_recipe`; its `command`, if present, must be that of `kind`.
        changes: keys as in a recipe; sections such as `data` are merged key by key.

    Raises:
        ValueError: the recipe is for another command, a key is unknown, or a value is invalid.
    """
    check_command(kind, recipe)
    recipe = _flat(kind, recipe)
    changes = changes or {}
    merged = {**recipe, **changes}
    check_keys(merged, own_keys(kind), "recipe")
    for section in sections_of(kind).keys() & changes.keys():
        merged[section] = {**mapping_of(section, recipe), **mapping_of(section, changes)}
    return build(kind, _nested(kind, merged), "recipe")


def _flat(kind: type, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recipe without its command, with the keys of inline sections at the top level."""
    flat = {key: value for key, value in recipe.items() if key != "command"}
    for item, facts in options_of(kind):
        if facts.is_inline and item.name in flat:
            inner = mapping_of(item.name, flat)
            del flat[item.name]
            flat = {**inner, **flat}
    return flat


def _nested(kind: type, values: dict[str, Any]) -> dict[str, Any]:
    """Returns values with the keys of inline sections moved into their sections."""
    for item, facts in options_of(kind):
        if facts.is_inline:
            inner = own_keys(hints_of(kind)[item.name])
            values[item.name] = {key: values.pop(key) for key in sorted(values.keys() & inner)}
    return values


def check_command(kind: type[Settings], recipe: Mapping[str, Any]) -> None:
    """Raises a ValueError if a recipe is for a command other than that of `kind`."""
    command = recipe.get("command") or kind.command
    if command != kind.command:
        raise ValueError(
            f"the recipe is for `magic-nas {command}`, not for `magic-nas {kind.command}`; use another recipe, or "
            f"the command that it names"
        )


def mapping_of(section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a section of a recipe, empty if it is missing; raises a ValueError if it is not a mapping."""
    found = values.get(section) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{section} is {found!r} in the recipe; it must be a mapping of keys to values")
    return found
