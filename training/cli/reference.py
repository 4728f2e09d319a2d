"""The reference of all options, made from the fields that describe them."""

from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

from ..analysis.settings import InterferenceSettings, RankingSettings, StandaloneSettings, SweepSettings
from ..finetuning.settings import FinetuneSettings, SquadSettings
from ..options import Option, Settings, default_of, hints_of, is_section, option_of, options_of, sections_of
from ..retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from ..search.settings import SearchSettings
from ..space.settings import LatencySettings
from ..supernet.settings import BlockwiseSettings, PretrainSettings
from ..tables import markdown_table


# All that a recipe or the flags of a command may be read into, in the order of the page.
ALL_SETTINGS: tuple[type[Settings], ...] = (
    PretrainSettings,
    BlockwiseSettings,
    SearchSettings,
    RetrainSettings,
    RtdSettings,
    DistillSettings,
    FinetuneSettings,
    SquadSettings,
    InterferenceSettings,
    StandaloneSettings,
    RankingSettings,
    SweepSettings,
    LatencySettings,
)
_HEAD = """\
# Options

Every key of every command, made from the code by `magic-nas options`. Keys stand in a recipe (`--config FILE`), in
`--set KEY=VALUE` and as fields of the settings classes of `training`. Keys with a dot stand in a section of that name;
after `--set` the section may be left out where no other key has the name. Where a flag is named, it does the same.
"""


def options_page(command: str = "") -> str:
    """Returns the options of a command as Markdown, or those of all commands.

    Args:
        command: what follows `magic-nas`; the commands that begin with it are shown.

    Raises:
        ValueError: there is no such command, or it has no recipe.
    """
    words = command.split()
    shown = [kind for kind in ALL_SETTINGS if kind.command.split()[: len(words)] == words]
    if not shown:
        known = ", ".join(kind.command for kind in ALL_SETTINGS)
        raise ValueError(f"`magic-nas {command}` takes no recipe; choose one of: {known}")
    parts = [_section(kind) for kind in shown]
    return "\n".join([_HEAD, *parts] if not words else parts).rstrip()


def _section(kind: type[Settings]) -> str:
    summary = (kind.__doc__ or "").split("\n\n")[0].split(";")[0].rstrip(".")
    parts = [f"## magic-nas {kind.command}\n", f"{summary}: `{kind.__name__}`.\n"]
    parts.append(markdown_table(("key", "type", "default", "meaning"), _rows(kind)) + "\n")
    if "training_arguments" in sections_of(kind):
        parts.append(
            "`training_arguments` takes all arguments of transformers' `TrainingArguments` besides, such as "
            "`warmup_steps` or `weight_decay`.\n"
        )
    return "\n".join(parts)


def _rows(kind: type, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    for item, facts in options_of(kind):
        hint = hints_of(kind)[item.name]
        if facts.is_inline:
            yield from _rows(hint, prefix)
        elif is_section(hint):
            yield from _rows(hint, f"{prefix}{item.name}.")
        elif item.name == "training_arguments":
            yield from _argument_rows(kind, facts, f"{prefix}{item.name}.")
        else:
            yield _row(f"{prefix}{item.name}", hint, facts, default_of(item))


def _argument_rows(kind: Any, facts: Option, prefix: str) -> Iterator[tuple[str, str, str, str]]:
    """Yields the training arguments of our own, and those of transformers that have flags."""
    arguments = kind.arguments_class()
    for item in fields(arguments):
        name, hint = item.name, hints_of(arguments)[item.name]
        if (own := option_of(item)) is not None:
            yield _row(f"{prefix}{name}", hint, own, default_of(item))
        elif (argument := facts.arguments.get(name)) is not None:
            yield _row(f"{prefix}{name}", argument.kind, argument.facts, argument.default)


def _row(key: str, hint: Any, facts: Option, default: Any) -> tuple[str, str, str, str]:
    notes = [facts.unit and f"In {facts.unit}.", facts.bounds and f"Must be {facts.bounds}."]
    if facts.choices:
        notes.append(f"One of {', '.join(facts.choices)}.")
    meaning = " ".join([facts.help, *filter(None, notes)])
    meaning = f"{meaning} `{facts.flag}`" if facts.flag else meaning
    return f"`{key}`", _type_name(hint), _shown(default), meaning


def _shown(default: Any) -> str:
    if default is MISSING or default in (None, "", (), {}):
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    return f"[{', '.join(map(str, default))}]" if isinstance(default, tuple) else str(default)


def _type_name(hint: Any) -> str:
    text = getattr(hint, "__name__", str(hint)) if not hasattr(hint, "__args__") else str(hint)
    for old, new in (("typing.", ""), (" | None", ""), ("tuple[", "list["), (", ...]", "]")):
        text = text.replace(old, new)
    return text
