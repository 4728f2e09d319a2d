"""Builds a budget from its settings: the costs that are limited, and the limits."""

from typing import TYPE_CHECKING

from modeling_magic import MagicConfig

from .budgets import AdditiveCost, Budget, Limit
from .costs import additive_cost
from .settings import BudgetSettings


if TYPE_CHECKING:
    from .latency import LatencyTable


# For each cost, the part of its limits' names after min_ and max_.
_LIMITS = {"num_parameters": "params", "flops": "flops", "latency_ms": "latency_ms", "activation_mb": "activation_mb"}


def costs_of(config: MagicConfig, settings: BudgetSettings) -> list[AdditiveCost]:
    """Returns the costs of the children of `config`: parameters, FLOPs, and latency and activations if requested.

    Raises:
        ValueError: the latency table belongs to another model, or latency is limited and the table has warnings.
    """
    sequence_length = settings.sequence_length or min(128, config.max_sequence_length)
    costs = [additive_cost(config, name, seq_len=sequence_length) for name in ("num_parameters", "flops")]
    if settings.latency_table is not None:
        # Describing a space does not need scipy, which is only installed for searches.
        from .latency import LatencyTable

        table = LatencyTable.load(settings.latency_table)
        table.check(config)
        _check_trust(table, settings)
        costs.append(table.cost())
    if settings.max_activation_mb is not None:
        costs.append(additive_cost(config, "activation_mb", seq_len=sequence_length))
    return costs


def _check_trust(table: "LatencyTable", settings: BudgetSettings) -> None:
    """Raises an error if latency is limited by a table that has warnings, unless the settings accept it."""
    is_limited = settings.max_latency_ms is not None or settings.min_latency_ms is not None
    if is_limited and not table.trusted and not settings.accept_noisy_latency:
        raise ValueError(
            f"{settings.latency_table} is unreliable: {'; '.join(table.warnings)}; measure again on an idle device "
            f"with `magic-nas benchmark`, or accept it with --accept-noisy-latency"
        )


def budget_of(config: MagicConfig, settings: BudgetSettings) -> Budget:
    """Returns the limits that `settings` set on the children of `config`.

    Args:
        config: the super-net's configuration.
        settings: the budget settings, or the training arguments of a super-net, which include them.

    Raises:
        ValueError: see `costs_of`.
    """
    limits = []
    for cost in costs_of(config, settings):
        minimum, maximum = (getattr(settings, f"{side}_{_LIMITS[cost.name]}", None) for side in ("min", "max"))
        if minimum is not None or maximum is not None:
            limits.append(Limit(cost, minimum, maximum))
    return Budget(tuple(limits))
