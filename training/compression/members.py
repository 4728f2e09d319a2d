"""The models that a compression makes: budgets as users write them, such as `0.4x` of the checkpoint or absolute."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from modeling_magic import MagicConfig
from modeling_magic.configuration_magic import SKIP

from ..space.budgets import AdditiveCost, Budget, BudgetedSpace, Limit, format_value
from ..space.costs import additive_cost
from ..space.search_space import SearchSpace
from .settings import LIMITS, CompressSettings
from .spaces import near_budget


_RELATIVE = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)x", re.IGNORECASE)
# Units of costs, in words.
_UNITS = {"latency_ms": "ms", "num_parameters": "parameters", "flops": "FLOPs"}
_IN_WORDS = {**_UNITS, "latency_ms": "latency"}
# The super-net is trained on children whose layers cost at least this share of what a budget leaves for them.
_TRAINED_SHARE = 0.7


@dataclass(frozen=True)
class Member:
    """One of the models that a compression makes.

    Attributes:
        name: name of its folder and its rows, such as `latency-0.4x`.
        limit: the largest cost, and the cost of the smallest child; only a child without any layer is below that.
        share: the largest cost divided by the checkpoint's.
    """

    name: str
    limit: Limit
    share: float

    @property
    def budget(self) -> Budget:
        """The limit as a budget."""
        return Budget((self.limit,))

    @property
    def in_words(self) -> str:
        """The budget as a card states it, such as "at most 0.40 of the checkpoint's latency"."""
        return f"at most {self.share:.2f} of the checkpoint's {_IN_WORDS[self.limit.cost.name]}"


class _Amount(NamedTuple):
    """A budget as it was written: a multiple of the checkpoint's cost, or a number in the cost's unit."""

    is_relative: bool
    value: float

    def of(self, own: float) -> float:
        """Returns the largest cost, given the checkpoint's cost `own`."""
        return self.value * own if self.is_relative else self.value


def check_budgets(settings: CompressSettings) -> None:
    """Refuses budgets that are invalid for any checkpoint.

    Raises:
        ValueError: no budget is given, or one cannot be read, is 1x or more, or is given twice.
    """
    if not any(getattr(settings, option) for option in LIMITS):
        raise ValueError("no budget is given; set how small the encoder must be, for example --max-latency 0.4x")
    for option in LIMITS:
        amounts: dict[_Amount, str] = {}
        for text in getattr(settings, option):
            amount = _read(option, text)
            if amount.is_relative and amount.value >= 1:
                raise ValueError(f"{_flag(option)} is {text}; give less than the checkpoint's own cost, such as 0.5x")
            if amount in amounts:
                raise ValueError(_twice(option, amounts[amount], text))
            amounts[amount] = text


def members_of(
    settings: CompressSettings, source: MagicConfig, space: SearchSpace, latency: AdditiveCost | None
) -> list[Member]:
    """Returns the models to make, the largest share of the checkpoint's cost first.

    Args:
        settings: settings with the budgets as they were written.
        source: the checkpoint's configuration.
        space: the checkpoint's children, in which every layer can be skipped.
        latency: latency of the children; with `None`, models with a limited latency are omitted.

    Raises:
        ValueError: a budget cannot be read, is not below the checkpoint's cost, is below the smallest child's, or
            allows the same children as another.
    """
    members = []
    for option, (cost_name, _) in LIMITS.items():
        texts = getattr(settings, option)
        cost = latency if cost_name == "latency_ms" else cost_of(source, cost_name, settings, space)
        if cost is None or not texts:
            continue
        of_option: dict[float, str] = {}
        for text in texts:
            member = _member(option, text, cost, source, space)
            largest = member.limit.counts[1]
            if largest in of_option:
                raise ValueError(_twice(option, of_option[largest], text))
            of_option[largest] = text
            members.append(member)
    return sorted(members, key=lambda member: (-member.share, member.name))


def cost_of(config: MagicConfig, name: str, settings: CompressSettings, space: SearchSpace) -> AdditiveCost:
    """Returns parameters, or FLOPs ("electra") of `latency_length` tokens, of a checkpoint's children without head."""
    seq_len = min(settings.latency_length, config.max_sequence_length)
    return additive_cost(config, name, seq_len=seq_len, head="none", operators=space.operator_names)


def _member(option: str, text: str, cost: AdditiveCost, source: MagicConfig, space: SearchSpace) -> Member:
    own = cost(source.chain)
    largest = _read(option, text).of(own)
    if largest >= own:
        raise ValueError(
            f"{_flag(option)} is {text}, but the checkpoint has {_with_unit(own, cost)}; give less, such as 0.5x"
        )
    # A child needs one layer, and may skip all others.
    smallest, operator = min((cost((operator,)), operator) for operator in space.operator_names if operator != SKIP)
    if largest < smallest:
        raise ValueError(
            f"{_flag(option)} is {text}, {_with_unit(largest, cost)}, but the smallest child, {operator} alone, has "
            f"{_with_unit(smallest, cost)}, {_rounded_up(smallest / own)}x of the checkpoint; give that or more"
        )
    name = f"{LIMITS[option][1]}-{_compact(text)}"
    # A share is rarely a whole number of parameters.
    return Member(name, Limit(cost, smallest, cost.value(cost.largest_count(largest))), largest / own)


def _with_unit(value: float, cost: AdditiveCost) -> str:
    number = f"{value:.4g}" if cost.name == "latency_ms" else format_value(round(value))
    return f"{number} {_UNITS[cost.name]}"


def _rounded_up(share: float) -> float:
    """Rounds a share up to two decimals, so that the smallest child stays within it."""
    return math.ceil(share * 100) / 100


def _read(option: str, text: str) -> _Amount:
    match = _RELATIVE.fullmatch(_compact(text))
    try:
        value = float(match[1] if match else text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(
            f"{_flag(option)} is {text!r}; give a share of the checkpoint, such as 0.4x, or a number above 0"
        )
    return _Amount(match is not None, value)


def _compact(text: str) -> str:
    return "".join(text.split()).lower()


def _flag(option: str) -> str:
    return f"--{option.replace('_', '-')}"


def _twice(option: str, first: str, second: str) -> str:
    return f"{_flag(option)} has {first} and {second}, which are the same budget; give each budget once"


def trained_children(members: Sequence[Member], space: SearchSpace) -> list[BudgetedSpace]:
    """Returns for each member the children that the super-net is trained on, of nearly the budget's size."""
    return [near_budget(space, member.budget, _TRAINED_SHARE) for member in members]
