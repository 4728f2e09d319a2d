"""Budgets of a compression as users write them, `0.4x` of the checkpoint or absolute, and the children within them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from modeling_magic import MagicConfig
from modeling_magic.configuration_magic import SKIP

from ..space.budgets import AdditiveCost, Budget, BudgetedSpace, Limit, format_value
from ..space.costs import additive_cost
from ..space.search_space import SearchSpace
from .settings import LIMITS, CompressSettings


_RELATIVE = re.compile(r"(?P<share>[0-9]*\.?[0-9]+)\s*x", re.IGNORECASE)
# How far below its budget a child that the super-net is trained on may be.
_TRAINED_SHARE = 0.7


@dataclass(frozen=True)
class Member:
    """One of the models that are asked for.

    Attributes:
        name: of its folder and its rows, such as `latency-0.4x`.
        limit: what it may cost.
        share: the largest cost over the checkpoint's.
    """

    name: str
    limit: Limit
    share: float

    @property
    def budget(self) -> Budget:
        """The limit as a budget."""
        return Budget((self.limit,))


def members_of(
    settings: CompressSettings, source: MagicConfig, space: SearchSpace, latency: AdditiveCost | None
) -> list[Member]:
    """Returns the models that are asked for, the largest share first.

    Args:
        settings: with the budgets as they were written.
        source: the checkpoint's configuration.
        space: of the children.
        latency: of the children; `None` leaves out the models whose latency is limited.

    Raises:
        ValueError: a budget cannot be read, is that of the checkpoint or above, or is below the smallest child.
    """
    members = []
    for field, (cost_name, short) in LIMITS.items():
        for text in getattr(settings, field):
            cost = latency if cost_name == "latency_ms" else cost_of(source, cost_name, settings, space)
            if cost is None:
                continue
            members.append(_member(f"{short}-{text}", text, field, cost, source, space))
    return sorted(members, key=lambda member: (-member.share, member.name))


def check_budgets(settings: CompressSettings) -> None:
    """Raises a ValueError where no budget is given, or one cannot be read or is no less than the checkpoint."""
    texts = [(field, text) for field in LIMITS for text in getattr(settings, field)]
    if not texts:
        raise ValueError("no budget is given; say how small the encoder is to be, such as --max-latency 0.4x")
    for field, text in texts:
        if _read(text, field, 1.0) >= 1 and _RELATIVE.fullmatch(text.strip()):
            raise ValueError(f"{_flag(field)} is {text}; give less than the checkpoint itself has, such as 0.5x")


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def cost_of(config: MagicConfig, name: str, settings: CompressSettings, space: SearchSpace) -> AdditiveCost:
    """Returns parameters, or FLOPs ("electra") of `latency_length` tokens, of a checkpoint's children without head."""
    seq_len = min(settings.latency_length, config.max_sequence_length)
    return additive_cost(config, name, seq_len=seq_len, head="none", operators=space.operator_names)


def _member(name: str, text: str, field: str, cost: AdditiveCost, source: MagicConfig, space: SearchSpace) -> Member:
    own, flag = cost(source.chain), _flag(field)
    largest = _read(text, field, own)
    if largest >= own:
        raise ValueError(f"{flag} is {text}, the checkpoint itself has {format_value(own)}; give less, such as 0.5x")
    # A child that skips all layers is none.
    smallest = min((cost((operator,)), operator) for operator in space.operator_names if operator != SKIP)
    if largest < smallest[0]:
        raise ValueError(
            f"{flag} is {text}, {format_value(largest)}; the smallest child, {smallest[1]} alone, has "
            f"{format_value(smallest[0])}, {smallest[0] / own:.2f}x of the checkpoint; give more"
        )
    return Member(name, Limit(cost, smallest[0], largest), largest / own)


def _read(text: str, field: str, own: float) -> float:
    flag = _flag(field)
    if match := _RELATIVE.fullmatch(text.strip()):
        return float(match["share"]) * own
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{flag} is {text!r}; give a share of the checkpoint, such as 0.4x, or a number above 0")
    return value


def trained_children(members: Sequence[Member], space: SearchSpace) -> list[BudgetedSpace]:
    """Returns for each member the children that the super-net is trained on: from 0.7 of its budget up to it.

    Where no child is in that window, all within the budget are.
    """
    found = []
    for member in members:
        largest = member.limit.maximum
        assert largest is not None
        window = BudgetedSpace(space, Budget((Limit(member.limit.cost, _TRAINED_SHARE * largest, largest),)))
        found.append(window if window.size else BudgetedSpace(space, member.budget))
    return found
