"""The text of `magic-nas describe`: what a search space or one child costs."""

from collections.abc import Sequence
from decimal import Decimal

from modeling_magic import MagicConfig

from ..tables import counted, counted_children
from .budgets import AdditiveCost, Budget, BudgetedSpace, format_value, summarize_cost
from .costs import additive_cost, operator_flops, operator_parameters
from .search_space import Architecture, SearchSpace, compact_architecture, parse_architecture


def describe_space(
    config: MagicConfig,
    sequence_length: int = 128,
    architecture: str | None = None,
    budget: Budget | None = None,
    costs: Sequence[AdditiveCost] = (),
) -> str:
    """Returns a description of a search space, or of one child with its sizes: size, operators, costs, budget.

    Costs and counts are exact and cover all children, not a sample. If a space is too wide for that, the text says so.

    Args:
        config: the configuration of a super-net or a child.
        sequence_length: the number of tokens for which FLOPs are counted.
        architecture: a child, as text; its operators must fit the sizes but need not be in the space.
        budget: a budget to report on: how many children meet it, or what would have to change if none does.
        costs: costs to show in addition to parameters and FLOPs, such as a latency.
    """
    sequence_length = min(sequence_length, config.max_sequence_length)
    space = SearchSpace.from_config(config.candidate_operators)
    child = parse_architecture(architecture) if architecture else None
    if child is None and space.size == 1:
        child = next(space.children())
    shown_space = space if child is None else SearchSpace(tuple((operator,) for operator in child))
    names = shown_space.operator_names
    shown = [
        additive_cost(config, "num_parameters", operators=names),
        additive_cost(config, "flops", seq_len=sequence_length, operators=names),
        *costs,
    ]
    lines = [
        f"{counted(space.num_layers, 'layer')}, {counted(space.num_operators, 'operator')}, "
        f"{counted_children(space.size)} "
        f"({Decimal(space.size):.2g})",
        f"hidden size {config.hidden_size}, {config.vocab_size:,} tokens, {config.max_position_embeddings} positions",
        "",
        *_operator_lines(config, space, sequence_length),
        "",
        *(_space_lines(space, shown) if child is None else _child_lines(child, shown)),
        f"(parameters include the masked-LM head; FLOPs of {sequence_length} tokens, all through the masked-LM head; "
        f"a multiply-add counts as 2)",
    ]
    if budget is not None and budget.limits:
        lines += ["", *(_budget_lines(space, budget) if child is None else _verdict_lines(child, budget))]
    return "\n".join(lines)


def _operator_lines(config: MagicConfig, space: SearchSpace, sequence_length: int) -> list[str]:
    lines = [f"operator     parameters     FLOPs at {sequence_length} tokens     layers"]
    for name in space.operator_names:
        layers = sum(name in layer for layer in space.candidates)
        flops = operator_flops(name, config, sequence_length)
        lines.append(f"{name:<12} {operator_parameters(name, config):>10,}     {flops:>20.3e}     {layers:>6}")
    return lines


def _space_lines(space: SearchSpace, costs: Sequence[AdditiveCost]) -> list[str]:
    summaries = [summarize_cost(space, cost) for cost in costs]
    lines = [f"{'cost':<16} {'smallest':>14} {'median':>14} {'largest':>14}"]
    for cost, summary in zip(costs, summaries, strict=True):
        values = (summary.smallest, summary.median, summary.largest)
        lines.append(f"{cost.name:<16} " + " ".join(f"{_short(value):>14}" for value in values))
    sampled = [cost.name for cost, summary in zip(costs, summaries, strict=True) if not summary.median_is_exact]
    if sampled:
        lines.append(
            f"(median of a large random sample: {', '.join(sampled)}; the space is too wide to count all children)"
        )
    return [
        *lines,
        f"fewest parameters: {compact_architecture(summaries[0].smallest_child)}",
        f"most parameters:   {compact_architecture(summaries[0].largest_child)}",
    ]


def _child_lines(child: Architecture, costs: Sequence[AdditiveCost]) -> list[str]:
    return [
        f"the child: {compact_architecture(child)}",
        *(f"{cost.name:<16} {_short(cost(child)):>14}" for cost in costs),
    ]


def _short(value: float) -> str:
    if value >= 1e9:
        return f"{value:.3e}"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _budget_lines(space: SearchSpace, budget: Budget) -> list[str]:
    within = BudgetedSpace(space, budget)
    if within.size:
        share = f"{100 * within.size / space.size:.4g}%"
        return [f"budget: {budget}", f"within it: {within.size_text} of {counted_children(space.size)} ({share})"]
    return [f"budget: {budget}", "no child meets it", *(f"  {near}" for near in within.nearest())]


def _verdict_lines(child: Architecture, budget: Budget) -> list[str]:
    lines = [f"budget: {budget}"]
    for limit in budget.limits:
        verdict = "met" if limit.allows(child) else "not met"
        lines.append(f"  {limit}: {verdict}, the value is {format_value(limit.cost(child))}")
    return lines
