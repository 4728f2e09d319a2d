"""Budgets of a compression as users write them, `0.4x` of the checkpoint or absolute, and the children within them."""

import re
from dataclasses import dataclass

from modeling_magic import MagicConfig

from ..space.budgets import AdditiveCost, Budget, BudgetedSpace, InfeasibleBudgetError, Limit, format_value
from ..space.budgets import summarize_cost as summarize
from ..space.costs import additive_cost
from ..space.search_space import SearchSpace, format_architecture
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
        latency: of the children, where a latency is limited.

    Raises:
        ValueError: a budget cannot be read, is that of the checkpoint or above, or is below the smallest child.
    """
    members = []
    for field, (cost_name, short) in LIMITS.items():
        for text in getattr(settings, field):
            cost = latency if cost_name == "latency_ms" else cost_of(source, cost_name, settings)
            assert cost is not None
            members.append(_member(f"{short}-{text}", text, field, cost, source, space))
    if not members:
        raise ValueError("no budget is given; say how small the encoder is to be, such as --max-latency 0.4x")
    return sorted(members, key=lambda member: (-member.share, member.name))


def cost_of(config: MagicConfig, name: str, settings: CompressSettings) -> AdditiveCost:
    """Returns parameters, or FLOPs ("electra") of `latency_length` tokens, of a checkpoint's children without head."""
    operators = {operator for layer in config.candidate_operators for operator in layer}
    return additive_cost(config, name, seq_len=settings.latency_length, head="none", operators=sorted(operators))


def _member(name: str, text: str, field: str, cost: AdditiveCost, source: MagicConfig, space: SearchSpace) -> Member:
    own = cost(source.chain)
    largest = _read(text, field, own)
    flag = f"--{field.replace('_', '-')}"
    if largest >= own:
        raise ValueError(f"{flag} is {text}, the checkpoint itself has {format_value(own)}; give less, such as 0.5x")
    smallest = summarize(space, cost)
    if largest < smallest.smallest:
        raise ValueError(
            f"{flag} is {text}, {format_value(largest)}; the smallest child, "
            f"{format_architecture(smallest.smallest_child)}, has {format_value(smallest.smallest)}, "
            f"{smallest.smallest / own:.2f}x of the checkpoint; give more"
        )
    return Member(name, Limit(cost, maximum=largest), largest / own)


def _read(text: str, field: str, own: float) -> float:
    flag = f"--{field.replace('_', '-')}"
    if match := _RELATIVE.fullmatch(text.strip()):
        return float(match["share"]) * own
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < float("inf"):
        raise ValueError(f"{flag} is {text!r}; give a share of the checkpoint, such as 0.4x, or a number above 0")
    return value


def trained_children(members: list[Member], space: SearchSpace) -> list[BudgetedSpace]:
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


__all__ = ["InfeasibleBudgetError", "Member", "cost_of", "members_of", "trained_children"]
