"""Search of a super-net's children under a budget, with controls that show whether the search was worth it.

In addition to the children that the searcher asks for, `search_children` evaluates the same number of uniform random
children within the budget, and the BERT pattern nearest in cost. The winner is the best evaluated child within the
budget. Whether the search did better than its controls is a separate question, which `Comparison` answers.
"""

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from scipy.stats import hypergeom, mannwhitneyu
from scipy.stats import t as student_t
from tqdm import tqdm

from ..bars import progress_bar
from ..displays import html_paragraphs, html_table
from ..space.budgets import AdditiveCost, Budget, BudgetedSpace
from ..space.search_space import Architecture, SearchSpace, format_architecture
from ..supernet.journal import RankedChild
from ..tables import counted, counted_children
from .pareto import COST_LABELS
from .searchers import RandomSearcher, Searcher, rank_key


Evaluate = Callable[[Sequence[Architecture]], Iterable[RankedChild]]
"""Returns the losses of children: an `Evaluator`, or a function that looks them up."""

FoundBy = Literal["search", "random", "both", "bert_pattern"]

# One in twenty intervals misses the difference; one in a hundred searches without structure is wrongly called better.
_INTERVAL_LEVEL = 0.95
_CHILDREN_LEVEL = 0.01
# Minimum number of children that count as the best if a tenth of all is fewer: eight of eight is rare by chance.
_MIN_NUM_BEST = 8
# Children of the random control evaluated at a time; the evaluator shares bottoms among them.
_CONTROL_BATCH_SIZE = 200
# Maximum number of distinct partial costs of BERT patterns that are kept.
_MAX_PATTERN_SUMS = 20_000


@dataclass(frozen=True)
class Comparison:
    """Whether a search, or the child that it found, is better than a control.

    Attributes:
        difference: validation loss minus that of the control, negative is better; NaN if one of them is not finite.
        interval: interval of the difference, paired over validation batches; `None` if the spread is unknown.
        p_values: "batches" for the interval, two-sided; "children" for the search against random children, one-sided.
        better: whether the difference exceeds what chance explains.
        text: the comparison in one sentence.
    """

    difference: float
    interval: tuple[float, float] | None
    p_values: Mapping[str, float]
    better: bool
    text: str


@dataclass(frozen=True, repr=False)
class SearchResult:
    """The result of a search, and what it is compared with.

    Attributes:
        winner: the best evaluated child within the budget, including the controls.
        found_by: where the winner comes from; "both" if the search and the random control found it, "bert_pattern" if
            neither did.
        searched: the children that the searcher asked for, in order.
        random: uniform random children within the budget, as many as `searched`.
        bert_pattern: the child with alternating attention and feed-forward layers that is nearest in
            `bert_pattern_cost` to the best of the others; it may be outside the budget. `None` if the space has no
            such child.
        better_than_random: compares the best of `searched` with the best of `random`, and all children of both.
        better_than_bert: compares the best of `searched` and `random` with the BERT pattern.
        budget: limits on the cost of a child.
        bert_pattern_cost: the cost in which the BERT pattern is nearest.
        stopped: a sentence if the searcher ran out of children before all evaluations were used, else empty.
    """

    winner: RankedChild
    found_by: FoundBy
    searched: tuple[RankedChild, ...]
    random: tuple[RankedChild, ...]
    bert_pattern: RankedChild | None
    better_than_random: Comparison
    better_than_bert: Comparison | None
    budget: Budget
    bert_pattern_cost: AdditiveCost
    stopped: str = ""

    @property
    def costs(self) -> dict[str, AdditiveCost]:
        """The costs that the budget limits and the cost used for the BERT pattern, by name."""
        return {cost.name: cost for cost in (*(limit.cost for limit in self.budget.limits), self.bert_pattern_cost)}

    @property
    def summary(self) -> str:
        """The winner and how it compares with the controls, in sentences."""
        finders = {
            "search": "the search",
            "random": "the random control, not the search",
            "both": "both the search and the random control",
            "bert_pattern": "neither the search nor the random control (it is the BERT pattern)",
        }
        child = self.winner.architecture
        costs = [f"{COST_LABELS.get(name, name)} {cost(child):,}" for name, cost in self.costs.items()]
        within = f"within the budget: {self.budget}" if self.budget.limits else "without a budget"
        bert = "The space has no child with alternating attention and feed-forward layers to compare with."
        return "\n".join(
            (
                f"Winner: {format_architecture(self.winner.architecture)}",
                f"Its validation loss is {self.winner.val_loss:.4f} ({', '.join(costs)}).",
                f"It was found by {finders[self.found_by]}, {within}.",
                self.better_than_random.text,
                self.better_than_bert.text if self.better_than_bert else bert,
                *([self.stopped] if self.stopped else []),
            )
        )

    @property
    def verdict(self) -> str:
        """Whether the search is better than its controls, in one sentence without figures."""
        random = "better" if self.better_than_random.better else "no better"
        if self.better_than_bert is None:
            return f"The search is {random} than random search."
        bert = "better" if self.better_than_bert.better else "no better"
        return (
            f"The search is {random} than random search, and the best child is {bert} than the nearest BERT pattern."
        )

    def to_json(self) -> dict[str, Any]:
        """Returns everything except the losses of single batches as JSON types; non-finite numbers become None."""
        return {
            "winner": self._child_json(self.winner),
            "found_by": self.found_by,
            "budget": {
                "text": str(self.budget),
                "limits": [
                    {"cost": limit.cost.name, "minimum": limit.minimum, "maximum": limit.maximum}
                    for limit in self.budget.limits
                ],
            },
            "better_than_random": _comparison_json(self.better_than_random),
            "better_than_bert": _comparison_json(self.better_than_bert) if self.better_than_bert else None,
            "bert_pattern": self._child_json(self.bert_pattern) if self.bert_pattern else None,
            "bert_pattern_cost": self.bert_pattern_cost.name,
            "searched": [self._child_json(child) for child in self.searched],
            "random": [self._child_json(child) for child in self.random],
            "stopped": self.stopped,
            "summary": self.summary,
        }

    def __repr__(self) -> str:
        winner = format_architecture(self.winner.architecture)
        return f"SearchResult(winner={winner!r}, val_loss={self.winner.val_loss:.4f}, found_by={self.found_by!r})"

    def _repr_html_(self) -> str:
        """Returns winner and controls as a table, and the comparison in sentences, for a notebook."""
        children = {
            "winner": self.winner,
            "best of the search": min(self.searched, key=rank_key, default=None),
            "best of random search": min(self.random, key=rank_key, default=None),
            "BERT pattern": self.bert_pattern,
        }
        rows = [
            (
                name,
                child.architecture,
                f"{child.val_loss:.4f}",
                *(f"{cost(child.architecture):,}" for cost in self.costs.values()),
            )
            for name, child in children.items()
            if child is not None
        ]
        # The table contains the first two lines of the summary.
        return html_table(("", "operators", "val_loss", *self.costs), rows) + html_paragraphs(
            self.summary.splitlines()[2:]
        )

    def _child_json(self, child: RankedChild) -> dict[str, Any]:
        return {
            "architecture": list(child.architecture),
            "val_loss": _finite(child.val_loss),
            "val_accuracy": _finite(child.val_accuracy),
            "costs": {name: cost(child.architecture) for name, cost in self.costs.items()},
            "within_budget": self.budget.allows(child.architecture),
        }


def _comparison_json(comparison: Comparison) -> dict[str, Any]:
    return {
        "difference": _finite(comparison.difference),
        "interval": comparison.interval and list(comparison.interval),
        "p_values": {name: _finite(value) for name, value in comparison.p_values.items()},
        "better": comparison.better,
        "text": comparison.text,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def search_children(
    evaluate: Evaluate,
    space: SearchSpace,
    budget: Budget,
    searcher: Searcher,
    num_evaluations: int,
    seed: int = 0,
    bert_pattern_cost: AdditiveCost | None = None,
    progress: bool = False,
) -> SearchResult:
    """Returns the best child found within the budget, with a random control of the same size and the BERT pattern.

    The same arguments ask for the same children in the same order. A stopped search is therefore resumed by running it
    again with a new searcher and an evaluator that keeps a journal: recorded children are not evaluated again, and the
    result is that of an uninterrupted search.

    Args:
        evaluate: an `Evaluator`, or any function that takes architectures and returns their `RankedChild` in any
            order.
        space: the search space of the super-net.
        budget: limits on the cost of a child.
        searcher: one of `training.search.searchers`, made for the same space and budget, or a custom searcher.
        num_evaluations: number of children that the searcher may ask for. The random control has as many as it asked
            for, or all children within the budget if these are fewer.
        seed: seed of the random control, which has its own generator, whatever the searcher's seed is.
        bert_pattern_cost: the cost in which the BERT pattern is nearest, such as
            `additive_cost(config, "num_parameters")`. Default: the first cost that the budget limits.
        progress: whether to show a progress bar with the lowest loss so far.

    Raises:
        InfeasibleBudgetError: no child is within the budget; this is raised before anything is evaluated.
        ValueError: `num_evaluations` is below 1, the searcher asks for a child outside the space or the budget, or no
            evaluated child within the budget has a finite loss.
    """
    if num_evaluations < 1:
        raise ValueError(f"num_evaluations is {num_evaluations}; it must be at least 1")
    cost = bert_pattern_cost or _first_cost(budget)
    for layer in space.candidates:
        cost.layer_counts(layer)
    within = BudgetedSpace(space, budget)
    within.check()
    with progress_bar(total=2 * num_evaluations, desc="search", unit="child", disable=not progress) as bar:
        searched, is_exhausted = _run(evaluate, searcher, num_evaluations, within, bar)
        bar.total = 2 * len(searched)
        # Seeding with this text keeps the generator independent of a searcher with the same seed.
        control = RandomSearcher(within, random.Random(f"random control {seed}").getrandbits(64), _CONTROL_BATCH_SIZE)
        drawn, _ = _run(evaluate, control, len(searched), within, bar)
    best = best_within([*searched, *drawn], budget)
    if best is None:
        raise ValueError(
            f"none of the {counted_children(len(searched))} that the searcher asked for and the {len(drawn)} random "
            "ones has a finite validation loss; check the super-net's training, or evaluate more children"
        )
    pattern = nearest_bert_child(space, cost, best.architecture)
    bert = _answers(evaluate, [pattern])[0] if pattern else None
    winner = best_within([best, bert] if bert else [best], budget) or best
    return SearchResult(
        winner=winner,
        found_by=_found_by(winner, searched, drawn),
        searched=tuple(searched),
        random=tuple(drawn),
        bert_pattern=bert,
        better_than_random=compare_with_random(searched, drawn),
        better_than_bert=_compare_with_bert(best, bert, [*searched, *drawn], budget) if bert else None,
        budget=budget,
        bert_pattern_cost=cost,
        stopped=_stopped(len(searched), num_evaluations, within) if is_exhausted else "",
    )


def _stopped(num_searched: int, num_evaluations: int, within: BudgetedSpace) -> str:
    """Returns a sentence that the searcher stopped before all evaluations were used, with the reason if known."""
    asked = f"The searcher stopped early: it asked for {num_searched:,} of {counted_children(num_evaluations)}"
    if within.is_exact and num_searched >= within.size:
        return f"{asked}, the only ones within the budget."
    return f"{asked} and found no more; another seed or searcher may find more."


def _first_cost(budget: Budget) -> AdditiveCost:
    if not budget.limits:
        raise ValueError(
            "bert_pattern_cost is missing, and the budget has no limit whose cost could be used instead; "
            "give one, such as additive_cost(config, 'num_parameters')"
        )
    return budget.limits[0].cost


def _run(
    evaluate: Evaluate, searcher: Searcher, num_evaluations: int, within: BudgetedSpace, bar: "tqdm[Any]"
) -> tuple[list[RankedChild], bool]:
    """Returns the distinct children that a searcher asks for, and whether it ran out of children too early.

    Asking for the same child again uses up an evaluation too.
    """
    found: dict[Architecture, RankedChild] = {}
    num_asked = 0
    while num_asked < num_evaluations:
        asked = [_checked(child, within) for child in searcher.ask()[: num_evaluations - num_asked]]
        if not asked:
            return list(found.values()), True
        ranked = _answers(evaluate, asked)
        searcher.tell(ranked)
        num_asked += len(asked)
        found.update((child.architecture, child) for child in ranked)
        bar.update(len(asked))
        bar.set_postfix(best=f"{min(found.values(), key=rank_key).val_loss:.4f}")
    return list(found.values()), False


def _checked(child: Sequence[str], within: BudgetedSpace) -> Architecture:
    architecture = tuple(child)
    try:
        within.space.check(architecture)
    except ValueError as error:
        raise ValueError(
            f"the searcher asked for {format_architecture(architecture)}, outside the search space: {error}"
        ) from None
    if architecture not in within:
        costs = ", ".join(f"{limit.cost.name} {limit.cost(architecture):,}" for limit in within.budget.limits)
        raise ValueError(
            f"the searcher asked for {format_architecture(architecture)} with {costs}, outside the budget "
            f"{within.budget}; draw children from BudgetedSpace(space, budget)"
        )
    return architecture


def _answers(evaluate: Evaluate, asked: Sequence[Architecture]) -> list[RankedChild]:
    """Returns the distinct requested children in the order of the request, whatever the order of the answers."""
    asked = list(dict.fromkeys(asked))
    answers = {child.architecture: child for child in evaluate(asked)}
    missing = [child for child in asked if child not in answers]
    if missing:
        raise ValueError(
            f"the evaluator returned nothing for {format_architecture(missing[0])}; it must return every child it gets"
        )
    return [answers[child] for child in asked]


def _found_by(winner: RankedChild, searched: Sequence[RankedChild], drawn: Sequence[RankedChild]) -> FoundBy:
    by_search, by_random = (
        any(child.architecture == winner.architecture for child in children) for children in (searched, drawn)
    )
    if by_search:
        return "both" if by_random else "search"
    return "random" if by_random else "bert_pattern"


def best_within(children: Iterable[RankedChild], budget: Budget) -> RankedChild | None:
    """Returns the child with the lowest finite loss within a budget, or `None`; nothing is evaluated.

    The children of a journal can thus be searched for the best one under another budget. Among equal losses, the
    architecture that sorts first wins.
    """
    allowed = (child for child in children if math.isfinite(child.val_loss) and budget.allows(child.architecture))
    return min(allowed, key=rank_key, default=None)


def nearest_bert_child(space: SearchSpace, cost: AdditiveCost, architecture: Architecture) -> Architecture | None:
    """Returns the child with alternating attention and feed-forward layers that is nearest in cost to another child.

    The first layer is attention, as in BERT. Of two equally near children the cheaper one is returned; at equal cost,
    the one whose operators come first among the candidates. The result is `None` if a layer lacks such an operator. In
    a space with very many distinct costs, only a fine grid of them is considered.

    Args:
        space: the space to look in.
        cost: the cost in which children are compared.
        architecture: the child whose cost is to be approximated.
    """
    reached: dict[int, Architecture] = {cost.fixed: ()}
    for layer, candidates in enumerate(space.candidates):
        names = [name for name in candidates if name.startswith("FFN" if layer % 2 else "MHA")]
        longer: dict[int, Architecture] = {}
        for total, child in reached.items():
            for name, count in zip(names, cost.layer_counts(names), strict=True):
                longer.setdefault(total + count, (*child, name))
        reached = _thinned(longer)
    goal = cost.count(architecture)
    nearest = min(reached, key=lambda total: (abs(total - goal), total), default=None)
    return None if nearest is None else reached[nearest]


def _thinned(reached: dict[int, Architecture]) -> dict[int, Architecture]:
    """Returns one child per cell of a grid of sums if there are more sums than cells, else all."""
    if len(reached) <= _MAX_PATTERN_SUMS:
        return reached
    width = (max(reached) - min(reached)) // _MAX_PATTERN_SUMS + 1
    kept = {total // width: total for total in sorted(reached, reverse=True)}
    return {total: reached[total] for total in kept.values()}


def compare_with_random(searched: Sequence[RankedChild], drawn: Sequence[RankedChild]) -> Comparison:
    """Returns whether a search did better than the same number of random children.

    There are two conditions, since each alone can be fooled. The best of the search must be below the best of the
    random children by more than the spread over validation batches. But of the best children of two samples from one
    distribution, one is always lower, often by more than that spread. The children of the search, all of them or those
    among the best, must therefore also be better than the random ones by more than chance explains
    (`_children_p_value`).

    Args:
        searched: the distinct children of the search.
        drawn: distinct uniform random children.
    """
    best, control = min(searched, key=rank_key), min(drawn, key=rank_key)
    difference, interval, p_batches = _paired(best, control)
    p_children = _children_p_value(searched, drawn)
    better = interval is not None and interval[1] < 0 and p_children < _CHILDREN_LEVEL
    verdict = "The search is better than random" if better else "The search is no better than random"
    random_ones = counted(len(drawn), "random child", "random children")
    losses = f"its best val_loss is {best.val_loss:.4f}, that of {random_ones} {control.val_loss:.4f}"
    differ = "differ from" if p_children < _CHILDREN_LEVEL else "could be"
    children = f"taken together its children {differ} random draws (p = {p_children:.2g})"
    text = f"{verdict}: {losses}, {_spread_text(difference, interval, best)}; {children}."
    return Comparison(difference, interval, {"batches": p_batches, "children": p_children}, better, text)


def compare_with_child(best: RankedChild, control: RankedChild, num_candidates: int, name: str) -> Comparison:
    """Returns whether a child that was chosen as the best of several is better than one that was not chosen.

    The lowest of many losses is low partly by luck. The interval of the paired difference therefore has a level that
    holds for all candidates at once (Bonferroni): if all candidates were compared with the control, any of them would
    be wrongly called better only one time in twenty.

    Args:
        best: the chosen child.
        control: the child to compare with.
        num_candidates: number of children from which `best` was chosen.
        name: name of the control in the text.
    """
    if best.architecture == control.architecture:
        return Comparison(0.0, None, {"batches": 1.0}, False, f"The best child is {name} itself.")
    difference, interval, p_value = _paired(best, control, num_candidates)
    better = interval is not None and interval[1] < 0
    verdict = f"The best child is better than {name}" if better else f"The best child is no better than {name}"
    losses = f"val_loss {best.val_loss:.4f} against {control.val_loss:.4f}"
    spread = _spread_text(
        difference, interval, best, f", allowing for the choice among {counted_children(num_candidates)}"
    )
    return Comparison(difference, interval, {"batches": p_value}, better, f"{verdict}: {losses}, {spread}.")


def _compare_with_bert(
    best: RankedChild, bert: RankedChild, candidates: Iterable[RankedChild], budget: Budget
) -> Comparison:
    outside = "" if budget.allows(bert.architecture) else ", outside the budget"
    name = f"the nearest BERT pattern, {format_architecture(bert.architecture)}{outside}"
    return compare_with_child(best, bert, len({child.architecture for child in candidates}), name)


def _paired(
    first: RankedChild, second: RankedChild, num_comparisons: int = 1
) -> tuple[float, tuple[float, float] | None, float]:
    """Returns the difference of two losses, its interval over batches, and the p-value for several comparisons.

    A loss is a sum over batches divided by the number of masked tokens, which is the same for both children. The
    difference is thus the sum of the batches' differences divided by that number, and has the spread of such a sum.
    The spread is estimated from how far each batch's difference is from its share of the sum: a smaller batch, as the
    last one often is, has a smaller difference without any spread. The share of a batch is its part of both children's
    losses, since the number of tokens per batch is unknown.
    """
    difference = first.val_loss - second.val_loss
    fewer, num_batches = sorted((len(first.batch_losses), len(second.batch_losses)))
    if 0 < fewer < num_batches:
        raise ValueError(
            f"one child was validated on {fewer} batches and another on {num_batches}; "
            "compare children of the same validation batches"
        )
    # Losses of zero, which only made-up ones have, do not reveal the number of tokens.
    larger = max(first, second, key=lambda child: abs(child.val_loss))
    if fewer < 2 or not math.isfinite(difference) or not larger.val_loss:
        return (difference if math.isfinite(difference) else math.nan), None, math.nan
    num_tokens = math.fsum(larger.batch_losses) / larger.val_loss
    pairs = list(zip(first.batch_losses, second.batch_losses, strict=True))
    differences, sums = [a - b for a, b in pairs], [a + b for a, b in pairs]
    total, whole = math.fsum(differences), math.fsum(sums)
    # Losses below zero, which no cross-entropy has, do not reveal the size of a batch.
    shares = [part / whole for part in sums] if min(sums) > 0 else [1 / num_batches] * num_batches
    residuals = [value - share * total for value, share in zip(differences, shares, strict=True)]
    error = math.sqrt(math.fsum(r * r for r in residuals) * num_batches / (num_batches - 1)) / num_tokens
    level = (1 - _INTERVAL_LEVEL) / num_comparisons
    half = float(student_t.isf(level / 2, num_batches - 1)) * error
    if not error:
        return difference, (difference, difference), 0.0 if difference else 1.0
    p_value = 2 * float(student_t.sf(abs(difference) / error, num_batches - 1)) * num_comparisons
    return difference, (difference - half, difference + half), min(1.0, p_value)


def _spread_text(
    difference: float, interval: tuple[float, float] | None, child: RankedChild, allowance: str = ""
) -> str:
    if interval is None:
        return "and the spread is unknown, since it takes finite losses on at least two validation batches"
    low, high = interval
    return (
        f"a difference of {difference:+.4f} (95% interval {low:+.4f} to {high:+.4f}, paired over "
        f"{len(child.batch_losses)} validation batches{allowance})"
    )


def _children_p_value(searched: Sequence[RankedChild], drawn: Sequence[RankedChild]) -> float:
    """Returns the probability that random draws instead of the search would be at least as much better than random.

    If losses do not depend on operators, the children of both are samples from one distribution, even those of a
    search that uses earlier losses. Two statistics are computed, and the smaller p-value is doubled to account for
    that. The Mann-Whitney U detects that most children are better. The number of searched children among the best
    tenth (hypergeometric) also works when a search for low loss and low cost asks for bad children on purpose.

    Children in both lists carry no information and are excluded. In the best tenth, random children come first among
    equal losses.
    """
    in_both = {child.architecture for child in searched} & {child.architecture for child in drawn}
    control, tested = (
        [
            child.val_loss if math.isfinite(child.val_loss) else math.inf
            for child in children
            if child.architecture not in in_both
        ]
        for children in (drawn, searched)
    )
    if not control or not tested:
        return 1.0
    p_all = float(mannwhitneyu(tested, control, alternative="less").pvalue)
    # Sorting is stable: random children stay ahead at equal losses.
    ranked = sorted([(loss, False) for loss in control] + [(loss, True) for loss in tested], key=lambda pair: pair[0])
    num_best = min(len(ranked), max(_MIN_NUM_BEST, len(ranked) // 10))
    num_tested = sum(is_tested for _, is_tested in ranked[:num_best])
    p_best = float(hypergeom.sf(num_tested - 1, len(ranked), len(tested), num_best))
    return min(1.0, 2 * p_all, 2 * p_best)
