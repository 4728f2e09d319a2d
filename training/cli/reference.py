"""The reference of all options, generated from the fields that describe them."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from ..analysis.settings import InterferenceSettings, RankingSettings, StandaloneSettings, SweepSettings
from ..cells.settings import CellSweepSettings
from ..compression.settings import CompressSettings
from ..data.settings import DataSettings
from ..finetuning.settings import EvaluateSettings, FinetuneSettings, PredictSettings, SquadSettings
from ..options import (
    Option,
    Settings,
    default_of,
    hints_of,
    is_section,
    option_of,
    options_of,
    sections_of,
    shown_value,
)
from ..retraining.settings import DistillSettings, RetrainSettings, RtdSettings
from ..search.settings import SearchSettings
from ..space.settings import BudgetSettings, LatencySettings
from ..supernet.settings import BlockwiseSettings, PretrainSettings
from ..supernet.supernet_options import SupernetOptions
from ..tables import markdown_table


# All classes of settings that a recipe or the flags of a command are read into, in the order of the page.
ALL_SETTINGS: tuple[type[Settings], ...] = (
    CompressSettings,
    PretrainSettings,
    BlockwiseSettings,
    SearchSettings,
    RetrainSettings,
    RtdSettings,
    DistillSettings,
    FinetuneSettings,
    SquadSettings,
    EvaluateSettings,
    PredictSettings,
    InterferenceSettings,
    StandaloneSettings,
    RankingSettings,
    SweepSettings,
    CellSweepSettings,
    LatencySettings,
)
_HEAD = """\
# Options

The keys of all commands, generated from the code by `magic-nas options`; `magic-nas options COMMAND` shows those of a
single command.

A key can be used in a recipe (`--config FILE`), in `--set KEY=VALUE`, and as a field of the settings classes in
`training`. A key with a dot belongs to the section before the dot; in `--set` the section may be omitted unless
another key has the same name. If a flag is listed, it sets the same key.

Every command that takes a recipe also takes `--num-threads N` for torch, `--quiet` for warnings and results only, and
`--verbose` for the messages of transformers, datasets and accelerate. Without a terminal a progress bar becomes a line
every 30 seconds.
"""
_SHARED = {
    DataSettings: ("data", "Training text"),
    BudgetSettings: ("budget", "What an encoder may cost"),
    SupernetOptions: ("training_arguments", "The training of a super-net"),
}
_OF_TRANSFORMERS = "`training_arguments` also takes the arguments of transformers' `TrainingArguments`.\n"

COLUMNS = ("key", "type", "default", "meaning")


@dataclass(frozen=True)
class _Row:
    """One row of a table; `shared` is the class that describes the key for several commands, if there is one."""

    key: str
    hint: Any
    default: Any
    facts: Option
    shared: type | None

    @property
    def cells(self) -> tuple[str, str, str, str]:
        facts = self.facts
        parts = [facts.help]
        if facts.bounds:
            parts.append(f"Must be {facts.bounds}.")
        if not facts.names_choices:
            parts.append(f"One of {', '.join(facts.choices)}.")
        if facts.flag:
            parts.append(f"`{facts.flag}`")
        shown = shown_value(self.default)
        unit = f" ({facts.unit})" if facts.unit else ""
        return (
            f"`{self.key}`",
            f"{_type_name(self.hint)}{unit}",
            f"[{shown}]" if isinstance(self.default, tuple) and shown else shown,
            " ".join(parts),
        )


def options_page(command: str = "") -> str:
    """Returns the options of a command as Markdown, or those of all commands on one page.

    Args:
        command: the words after `magic-nas`; all commands that begin with them are shown.

    Raises:
        ValueError: the command does not exist, or takes no recipe.
    """
    if not command:
        return _whole_page()
    words = command.split()
    shown = [kind for kind in ALL_SETTINGS if kind.command.split()[: len(words)] == words]
    if not shown:
        known = ", ".join(kind.command for kind in ALL_SETTINGS)
        raise ValueError(f"`magic-nas {command}` takes no recipe; choose one of: {known}")
    return "\n".join(_section(kind, list(_rows(kind))) for kind in shown).rstrip()


def _whole_page() -> str:
    """Returns all options; sections shared by several commands come once, at the end."""
    parts = [_HEAD]
    shared: dict[type, list[_Row]] = {}
    for kind in ALL_SETTINGS:
        rows = list(_rows(kind))
        own = [row for row in rows if row.shared is None]
        for row in rows:
            if row.shared is not None and row.key not in {known.key for known in shared.setdefault(row.shared, [])}:
                shared[row.shared].append(row)
        links = [
            f"[{_SHARED[one][0]}](#{_anchor(_SHARED[one][1])})" for one in _SHARED if one in {r.shared for r in rows}
        ]
        parts.append(_section(kind, own, links))
    for one, (_, title) in _SHARED.items():
        parts += [f"## {title}\n", _table(shared[one]) + "\n"]
    return "\n".join(parts).rstrip()


def _section(kind: type[Settings], rows: list[_Row], links: list[str] | None = None) -> str:
    summary = (kind.__doc__ or "").split("\n\n")[0].split(";")[0].rstrip(".")
    parts = [f"## magic-nas {kind.command}\n", f"{summary}: `{kind.__name__}`.\n", _table(rows) + "\n"]
    if links:
        parts.append(f"Further sections: {', '.join(links)}.\n")
    if "training_arguments" in sections_of(kind):
        parts.append(_OF_TRANSFORMERS)
    return "\n".join(parts)


def _table(rows: list[_Row]) -> str:
    return markdown_table(COLUMNS, [row.cells for row in rows])


def _anchor(title: str) -> str:
    return title.lower().replace(" ", "-")


def _rows(kind: type, prefix: str = "", shared: type | None = None) -> Iterator[_Row]:
    for item, facts in options_of(kind):
        hint = hints_of(kind)[item.name]
        if facts.is_inline:
            yield from _rows(hint, prefix, shared)
        elif is_section(hint):
            yield from _rows(hint, f"{prefix}{item.name}.", hint)
        elif item.name == "training_arguments":
            yield from _argument_rows(kind, facts, f"{prefix}{item.name}.")
        else:
            yield _Row(f"{prefix}{item.name}", hint, default_of(item), facts, shared)


def _argument_rows(kind: Any, facts: Option, prefix: str) -> Iterator[_Row]:
    """Yields our own training arguments, and those of transformers that have flags."""
    arguments = kind.arguments_class()
    for item in fields(arguments):
        if (own := option_of(item)) is not None:
            hint = hints_of(arguments)[item.name]
            yield _Row(f"{prefix}{item.name}", hint, default_of(item), own, SupernetOptions)
        elif (argument := facts.arguments.get(item.name)) is not None:
            yield _Row(f"{prefix}{item.name}", argument.kind, argument.default, argument.facts, None)


def _type_name(hint: Any) -> str:
    text = hint.__name__ if isinstance(hint, type) and not hasattr(hint, "__args__") else str(hint)
    for old, new in (("typing.", ""), (" | None", ""), ("tuple[", "list["), (", ...]", "]")):
        text = text.replace(old, new)
    return text
