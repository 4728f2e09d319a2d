"""Conversion of options to flags, and of flags, `--set` and recipes to settings."""

import difflib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import typer

from ..bars import can_draw, turn_bars_off
from ..options import (
    Option,
    Settings,
    default_of,
    hints_of,
    is_section,
    options_of,
    own_keys,
    sections_of,
    shown_value,
)
from .failures import remember_folder


OutputDir = Annotated[
    Path,
    typer.Option(
        "--output-dir", "-o", callback=remember_folder, help="Folder of the run; a stopped run resumes there."
    ),
]
Recipe = Annotated[
    str | None, typer.Option("--config", "-c", help="A recipe: a name or a YAML file. Flags override it.")
]
Child = Annotated[str | None, typer.Option(help="A child, one operator per layer: MHA4,FFN,... or (MHA4,FFN)*3.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace the model that OUTPUT_DIR holds.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        help="Set any other key, as KEY=VALUE; `magic-nas options COMMAND` lists them. May be given more than once.",
    ),
]
Threads = Annotated[int | None, typer.Option("--num-threads", help="Number of CPU threads for torch.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only warnings and results, without progress bars.")]
Verbose = Annotated[
    bool, typer.Option("--verbose", "-v", help="Also show messages of transformers, datasets and accelerate.")
]


# ---- Flags ----


@dataclass(frozen=True)
class Flag:
    """An option on the command line.

    Attributes:
        path: the keys that lead to it in a recipe.
        name: `--name`, or `--name/--no-name`.
        hint: the type of its field.
        help: its description, with unit, bounds and default.
        facts: the other properties of its field.
    """

    path: tuple[str, ...]
    name: str
    hint: Any
    help: str
    facts: Option

    @property
    def parameter(self) -> inspect.Parameter:
        """The parameter of a command from which typer makes the flag."""
        is_list = get_origin(self.hint) is tuple
        kind: Any = bool if bool in _kinds(self.hint) else list[str] if is_list else str
        text = f"{self.help} May be given more than once." if is_list else self.help
        metavar = None if kind is bool else _metavar(self.hint)
        annotation = Annotated[kind | None, typer.Option(self.name, help=text, metavar=metavar, show_default=False)]
        return _parameter("__".join(self.path), annotation)

    def read(self, value: Any) -> Any:
        """Returns the given value in the form of a recipe; the settings check it."""
        if isinstance(value, list):
            numbers = bool({int, float} & _kinds(self.hint))
            parts = [part.strip() for text in value for part in (text.split(",") if self._splits else [text])]
            return [self._read_text(part) for part in parts] if numbers or Any in _kinds(self.hint) else parts
        return self._read_text(value) if isinstance(value, str) else value

    @property
    def _splits(self) -> bool:
        return self.facts.splits or bool({int, float} & _kinds(self.hint))

    def _read_text(self, text: str) -> Any:
        if self.facts.is_path:
            return str(Path(text).resolve())
        kinds = _kinds(self.hint)
        if str in kinds and not any(get_origin(kind) is dict for kind in kinds):
            return text
        return _number(text) if {int, float} & kinds else read_value_text(self.name, text)


def _number(text: str) -> int | float | str:
    """Returns a number, or the text itself if it is not a number; the settings then reject it."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _kinds(hint: Any) -> set[Any]:
    """Returns the plain types of a field; for a list, those of its elements."""
    if get_origin(hint) in (Union, UnionType):
        return {kind for one in get_args(hint) for kind in _kinds(one)} - {NoneType}
    return _kinds(get_args(hint)[0]) if get_origin(hint) is tuple else {hint}


def _metavar(hint: Any) -> str:
    return next((f"<{kind.__name__}>" for kind in (float, int, str) if kind in _kinds(hint)), "<value>")


def read_value_text(name: str, text: str) -> Any:
    """Returns the value of a text on the command line, read like a value in a recipe."""
    from ..runs.recipes import read_yaml

    try:
        return read_yaml(text)
    except ValueError:
        raise ValueError(f"{name}: {text!r} is not a valid YAML value; quote it") from None


def flags_of(kind: type, path: tuple[str, ...] = ()) -> Iterator[Flag]:
    """Yields the flags of a class of settings, including its sections; its own flags override inline ones."""
    names = {facts.flag for _, facts in options_of(kind)}
    for item, facts in options_of(kind):
        hint, own = hints_of(kind)[item.name], (*path, item.name)
        if facts.is_inline:
            yield from (flag for flag in flags_of(hint, path) if flag.name not in names)
        elif is_section(hint):
            yield from flags_of(hint, own)
        for name, argument in facts.arguments.items():
            text = _help(argument.facts, argument.default)
            yield Flag((*own, name), str(argument.facts.flag), argument.kind, text, argument.facts)
        if facts.flag is not None:
            yield Flag(own, facts.flag, hint, _help(facts, default_of(item)), facts)


def _help(facts: Option, default: Any) -> str:
    notes = [facts.unit, facts.bounds and f"must be {facts.bounds}"]
    if not facts.names_choices:
        notes.append(f"one of {', '.join(facts.choices)}")
    if shown := shown_value(default):
        notes.append(f"default: {shown}")
    known = "; ".join(filter(None, notes))
    return f"{facts.help} ({known})" if known else facts.help


# ---- Commands ----


@dataclass(frozen=True)
class Given:
    """The input of a command: flags, the name of a recipe, and assignments.

    Attributes:
        kinds: the classes of settings that the command can take, the usual one first.
        values: the values of the given flags, by path.
        config: name or file of the recipe.
        assignments: the assignments of `--set`.
    """

    kinds: tuple[type[Settings], ...]
    values: dict[tuple[str, ...], Any]
    config: str | None = None
    assignments: Sequence[str] = ()

    def recipe(self) -> dict[str, Any]:
        """Returns the contents of the recipe, empty if none is given."""
        from ..runs.recipes import load_recipe

        return load_recipe(self.config)

    def kind(self, recipe: dict[str, Any]) -> type[Settings]:
        """Returns the class of settings that a recipe and the flags ask for.

        Raises:
            ValueError: a flag belongs to a class of settings other than that of the recipe.
        """
        by_command = {kind.command: kind for kind in self.kinds}
        usual = self.kinds[0]
        known = own_keys(usual)
        asked = {path[0] for path in self.values} - known
        chosen = by_command.get(str(recipe.get("command"))) or next(
            (kind for kind in self.kinds[1:] if (asked or recipe.keys() - known) & own_keys(kind)), usual
        )
        if foreign := asked - own_keys(chosen):
            flags = ((flag, kind) for kind in self.kinds for flag in flags_of(kind))
            flag, kind = next((flag, kind) for flag, kind in flags if flag.path[0] in foreign)
            raise ValueError(
                f"{flag.name} is for `magic-nas {kind.command}`, but this is `magic-nas {chosen.command}`; remove it, "
                f"or use another recipe"
            )
        return chosen

    def changes(self, kind: type[Settings]) -> dict[str, Any]:
        """Returns flags and assignments as changes to a recipe for `kind`; assignments override flags.

        Raises:
            ValueError: an assignment has no value, or its key is unknown.
        """
        changes: dict[str, Any] = {}
        for path, value in self.values.items():
            _put(changes, path, value)
        for assignment in self.assignments:
            key, equals, text = assignment.partition("=")
            if not equals:
                raise ValueError(f"--set {assignment!r} has no value; write KEY=VALUE")
            _put(changes, path_of(kind, key), read_value_text(f"--set {key}", text))
        return changes

    def settings(self, recipe: dict[str, Any] | None = None) -> Any:
        """Returns the settings that result from the recipe, the flags and the assignments.

        Args:
            recipe: replaces the contents of the given recipe.
        """
        from ..runs.recipes import settings_from

        recipe = self.recipe() if recipe is None else recipe
        kind = self.kind(recipe)
        return settings_from(kind, recipe, self.changes(kind))


def _put(changes: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    *sections, key = path
    for section in sections:
        changes = changes.setdefault(section, {})
        if not isinstance(changes, dict):
            raise ValueError(f"{section} is {changes!r} in --set; it must be a mapping of keys to values")
    changes[key] = value


def path_of(kind: type[Settings], key: str) -> tuple[str, ...]:
    """Returns the path of a key of `--set` in a recipe for `kind`.

    A key without a section is looked up in the recipe itself and then in its sections, in training arguments before
    the text.

    Raises:
        ValueError: the section or the key is unknown.
    """
    sections = sections_of(kind)
    section, _, name = key.rpartition(".")
    if section:
        if section not in sections:
            known = ", ".join(f"{one}.KEY" for one in sections)
            raise ValueError(f"--set {key}: the recipe has no such section; write KEY=VALUE{known and ' or ' + known}")
        return section, name
    own = own_keys(kind)
    if name in own or not sections:
        return (name,)
    of_sections = {one: {item.name for item in fields(inner)} for one, inner in sections.items()}
    for one in reversed(sections):
        if name in of_sections[one]:
            return one, name
    known_keys = {**{known: known for known in own}, **{n: f"{one}.{n}" for one in sections for n in of_sections[one]}}
    close = difflib.get_close_matches(name, known_keys, n=1)
    remedy = (
        f"did you mean {known_keys[close[0]]!r}?" if close else f"`magic-nas options {kind.command}` lists the keys"
    )
    raise ValueError(f"unknown key {name!r} in --set; {remedy}")


def takes(*kinds: type[Settings], recipe: bool = True) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds the flags of classes of settings to a command, which receives them as its parameter `given`.

    Args:
        kinds: the classes, the usual one first.
        recipe: whether the command also takes `--config`, `--set`, `--num-threads`, `--quiet` and `--verbose`, as all
            long commands do; the threads are set before it begins, unless they are a setting of the class itself.
    """
    flags = {flag.path: flag for kind in kinds for flag in flags_of(kind)}
    takes_threads = recipe and ("num_threads",) not in flags

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**values: Any) -> None:
            said = {path: values.pop("__".join(path)) for path in flags}
            given = {path: flags[path].read(value) for path, value in said.items() if value not in (None, [])}
            config, assignments = values.pop("config", None), values.pop("assignments", None)
            if recipe:
                threads = values.pop("num_threads") if takes_threads else None
                start(threads, values.pop("quiet"), values.pop("verbose"))
            command(given=Given(kinds, given, config, tuple(assignments or ())), **values)

        parameters = [*_own_parameters(command), *(flag.parameter for flag in flags.values())]
        if recipe:
            parameters[1:1] = [_parameter("config", Recipe)]
            parameters.append(_parameter("assignments", Assignments))
        if takes_threads:
            parameters.append(_parameter("num_threads", Threads))
        if recipe:
            parameters += [_parameter("quiet", Quiet, False), _parameter("verbose", Verbose, False)]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def starts(threads: bool = False) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Adds `--quiet` and `--verbose` to a command that takes no recipe, and calls `start` before it.

    Args:
        threads: whether to add `--num-threads` as well.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def wrapped(**values: Any) -> None:
            start(values.pop("num_threads") if threads else None, values.pop("quiet"), values.pop("verbose"))
            command(**values)

        parameters = _own_parameters(command)
        if threads:
            parameters.append(_parameter("num_threads", Threads))
        parameters += [_parameter("quiet", Quiet, False), _parameter("verbose", Verbose, False)]
        wrapped.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        wrapped.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return wrapped

    return decorate


def _own_parameters(command: Callable[..., None]) -> list[inspect.Parameter]:
    parameters = inspect.signature(command).parameters
    return [own.replace(kind=inspect.Parameter.KEYWORD_ONLY) for name, own in parameters.items() if name != "given"]


def _parameter(name: str, annotation: Any, default: Any = None) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def start(num_threads: int | None = None, quiet: bool = False, verbose: bool = False) -> None:
    """Sets up a long command: messages on the screen, progress bars, threads and libraries.

    Args:
        num_threads: number of threads for torch; torch's default if not given.
        quiet: whether to show only warnings, and no progress bars.
        verbose: whether to show the messages of libraries as well.

    Raises:
        ValueError: the number of threads is below 1, or both quiet and verbose are set.
    """
    if quiet and verbose:
        raise ValueError("--quiet and --verbose contradict each other; remove one of them")
    logging.basicConfig(level=logging.INFO if verbose else logging.WARNING, format="%(message)s")
    logging.getLogger("training").setLevel(logging.WARNING if quiet else logging.INFO)
    # They have a handler of their own, so the root's would show their messages a second time.
    for library in ("datasets", "huggingface_hub"):
        logging.getLogger(library).propagate = False
    turn_bars_off(quiet)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # The libraries read these when they are imported later.
    if verbose:
        os.environ |= dict.fromkeys(("TRANSFORMERS_VERBOSITY", "DATASETS_VERBOSITY"), "info")
    if quiet or not can_draw():
        os.environ |= dict.fromkeys(("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS"), "1")
    if num_threads is not None:
        set_threads(num_threads)


def set_threads(number: int) -> None:
    """Sets the number of torch's CPU threads.

    Raises:
        ValueError: the number is below 1.
    """
    if number < 1:
        raise ValueError(f"--num-threads is {number}; it must be at least 1")
    import torch

    torch.set_num_threads(number)
