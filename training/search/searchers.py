"""Searchers: which children of a budgeted space to evaluate next, given the losses of earlier ones.

A searcher has two methods. `ask()` returns the next children, all within the budget and none asked for before; an
empty list ends the search. `tell(ranked)` takes their losses. All random choices come from the searcher's own
generator, so the same seed and the same losses give the same children: a stopped search is simply run again, and the
journal returns what was already evaluated. `compare.search_children` runs searchers; any object with these two methods
can be used.
"""

import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2, binary_tournament
from pymoo.core.crossover import Crossover
from pymoo.core.mating import Mating
from pymoo.core.mutation import Mutation
from pymoo.core.population import Population
from pymoo.core.problem import Problem
from pymoo.core.sampling import Sampling
from pymoo.core.termination import NoTermination
from pymoo.operators.selection.tournament import TournamentSelection

from ..space.budgets import AdditiveCost, BudgetedSpace, WideBudgetError
from ..space.search_space import Architecture, SearchSpace
from ..supernet.journal import RankedChild


# Draws after which a parent, or a pair of parents, is assumed to have no new child.
_DRAWS_PER_PARENTS = 4
# Draws from the whole space, each new with probability 1/2 or more, after which the remaining children are listed.
_DRAWS_BEFORE_LISTING = 64
# A space with at most this many children is filtered child by child; a larger one is split by a layer's operators.
_FILTERED_SIZE = 256


class Searcher(Protocol):
    """Interface of a searcher; a custom searcher needs only these two methods."""

    def ask(self) -> Sequence[Architecture]:
        """Returns the next children to evaluate, all within the budget; an empty list ends the search."""

    def tell(self, ranked: Sequence[RankedChild], /) -> None:
        """Takes the losses of the children that were asked for, or of the first of them if the search ends there."""


def rank_key(child: RankedChild) -> tuple[bool, float, Architecture]:
    """Returns a sort key that puts the best child first: finite losses before others, lower losses, architecture."""
    is_finite = math.isfinite(child.val_loss)
    return not is_finite, child.val_loss if is_finite else 0.0, child.architecture


class RandomSearcher:
    """Uniform random search within the budget, without repeats, until all children have been asked for.

    Args:
        space: the children within the budget.
        seed: seed of the searcher's own generator.
        batch_size: number of children asked for at a time.
    """

    def __init__(self, space: BudgetedSpace, seed: int, batch_size: int = 50) -> None:
        _check_at_least_one(batch_size=batch_size)
        space.check()
        self.space = space
        self.batch_size = batch_size
        self._new = _NewChildren(space, random.Random(seed))

    def __repr__(self) -> str:
        return f"RandomSearcher({self.space!r})"

    def ask(self) -> list[Architecture]:
        """Returns the next children; an empty list when all within the budget have been asked for."""
        return self._new.draw_many(self.batch_size)

    def tell(self, ranked: Sequence[RankedChild]) -> None:
        """Takes evaluated children, so that they are not asked for again; random search ignores their losses."""
        self._new.learn(ranked)


class EvolutionSearcher:
    """Evolution within the budget: crossover and mutation of the best children, as in SPOS, with aging.

    The first `population_size` children are uniform within the budget. In each later generation, half of the children
    come from crossover and half from mutation of the `num_parents` best children. A crossover is a uniform draw among
    the children within the budget that take each layer from one of two parents. A mutation frees each layer of a
    parent with `mutation_probability` and draws uniformly among the children within the budget that keep the other
    layers. If a crossover finds no new child, a mutation is tried instead; if that fails too, a child is drawn
    uniformly among all that have not been asked for.

    SPOS draws until a child is within the budget and new; here every draw is within the budget, and the number of
    draws is bounded.

    Args:
        space: the children within the budget.
        seed: seed of the searcher's own generator.
        population_size: size of the first generation, and the number of children alive later.
        generation_size: size of each later generation. Small generations learn from one another sooner; large ones
            share more of their bottoms in the evaluator.
        num_parents: number of best children that become parents.
        mutation_probability: probability of each layer to be freed; at least one layer is.
        regularized: whether the oldest children die (Real et al., 2019), so that parents are the best of the
            `population_size` children that were evaluated last. Without it parents are the best of all children, as in
            SPOS, and a lucky child stays a parent forever; on planted scores with a random part this gave worse
            children.
    """

    def __init__(
        self,
        space: BudgetedSpace,
        seed: int,
        population_size: int = 50,
        generation_size: int = 10,
        num_parents: int = 10,
        mutation_probability: float = 0.1,
        regularized: bool = True,
    ) -> None:
        _check_at_least_one(population_size=population_size, generation_size=generation_size, num_parents=num_parents)
        if not 0 < mutation_probability <= 1:
            raise ValueError(f"mutation_probability is {mutation_probability}; it must be above 0 and at most 1")
        space.check()
        self.space = space
        self.population_size = population_size
        self.num_parents = num_parents
        self.mutation_probability = mutation_probability
        self.generation_size = generation_size
        self._rng = random.Random(seed)
        self._new = _NewChildren(space, self._rng)
        self._population: deque[RankedChild] = deque(maxlen=population_size if regularized else None)

    def __repr__(self) -> str:
        return f"EvolutionSearcher({self.space!r})"

    def ask(self) -> list[Architecture]:
        """Returns the next generation; an empty list when all children within the budget have been asked for."""
        if not self._population:
            return self._new.draw_many(self.population_size)
        parents = [child.architecture for child in sorted(self._population, key=rank_key)[: self.num_parents]]
        num_crossovers = self.generation_size // 2 if len(parents) > 1 else 0
        generation = (
            (index < num_crossovers and self._cross(parents)) or self._mutate(parents) or self._new.draw()
            for index in range(self.generation_size)
        )
        return [child for child in generation if child is not None]

    def tell(self, ranked: Sequence[RankedChild]) -> None:
        """Takes the losses of children; a child with a non-finite loss becomes a parent only after all others."""
        self._population.extend(self._new.learn(ranked))

    def _cross(self, parents: Sequence[Architecture]) -> Architecture | None:
        between = self._new.between(*self._rng.sample(parents, 2))
        return self._new.draw_from(between) if between else None

    def _mutate(self, parents: Sequence[Architecture]) -> Architecture | None:
        return self._new.mutate(self._rng.choice(parents), self.mutation_probability)


class ParetoSearcher:
    """NSGA-II within the budget: minimizes validation loss and one or several costs.

    pymoo selects parents by tournament and survivors by rank and crowding. Children come from the crossover and then
    the mutation of `EvolutionSearcher`. A child with a non-finite loss counts as violating a constraint, so it never
    ranks above one with a finite loss.

    Args:
        space: the children within the budget.
        seed: seed of the searcher's own generator and of pymoo's.
        objectives: costs to minimize in addition to the validation loss.
        population_size: size of the first generation, and the number of survivors.
        generation_size: size of each later generation.
    """

    def __init__(
        self,
        space: BudgetedSpace,
        seed: int,
        objectives: Sequence[AdditiveCost],
        population_size: int = 50,
        generation_size: int = 10,
    ) -> None:
        _check_at_least_one(population_size=population_size, generation_size=generation_size)
        if not objectives:
            raise ValueError("objectives is empty; give at least one cost besides the loss, or use EvolutionSearcher")
        space.check()
        self.space = space
        self.objectives = tuple(objectives)
        self.generation_size = generation_size
        rng = random.Random(seed)
        self._new = _NewChildren(space, rng)
        self._codes = _Codes(space.space)
        mating = Mating(
            TournamentSelection(func_comp=binary_tournament),
            _PymooCrossover(self._new, self._codes),
            _PymooMutation(self._new, self._codes),
        )
        sampling = _PymooSampling(self._new, self._codes)
        self._algorithm = NSGA2(population_size, sampling=sampling, mating=mating, eliminate_duplicates=False)
        problem = Problem(n_var=space.space.num_layers, n_obj=1 + len(objectives), n_ieq_constr=1)
        self._algorithm.setup(problem, seed=rng.getrandbits(32), termination=NoTermination())

    def __repr__(self) -> str:
        return f"ParetoSearcher({self.space!r})"

    def ask(self) -> list[Architecture]:
        """Returns the next generation; an empty list when all children within the budget have been asked for."""
        if not self._new.num_left:
            return []
        self._algorithm.n_offsprings = min(self.generation_size, self._new.num_left)
        asked = [self._codes.decode(individual.X) for individual in self._algorithm.ask()]
        return [child for child in asked if child not in self._new.repeated]

    def tell(self, ranked: Sequence[RankedChild]) -> None:
        """Takes the losses of children and lets NSGA-II choose the survivors."""
        ranked = self._new.learn(ranked)
        if not ranked:
            return
        is_finite = np.isfinite([child.val_loss for child in ranked])
        losses = np.where(is_finite, [child.val_loss for child in ranked], 0.0)
        costs = [[cost(child.architecture) for cost in self.objectives] for child in ranked]
        population = Population.new(
            X=np.array([self._codes.encode(child.architecture) for child in ranked]),
            F=np.column_stack([losses, np.array(costs, dtype=float)]),
            G=np.where(is_finite, 0.0, 1.0)[:, None],
        )
        self._algorithm.tell(infills=population)


class _Codes:
    """Converts architectures to integers, the index of each operator among its layer's candidates, and back."""

    def __init__(self, space: SearchSpace) -> None:
        self._candidates = space.candidates
        self._places = [{name: place for place, name in enumerate(layer)} for layer in space.candidates]

    def encode(self, architecture: Architecture) -> list[int]:
        return [places[name] for places, name in zip(self._places, architecture, strict=True)]

    def decode(self, row: np.ndarray) -> Architecture:
        return tuple(layer[place] for layer, place in zip(self._candidates, row, strict=True))


class _PymooSampling(Sampling):
    def __init__(self, new: "_NewChildren", codes: _Codes) -> None:
        super().__init__()
        self._new, self._codes = new, codes

    def _do(self, problem: Problem, n_samples: int, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.array([self._codes.encode(child) for child in self._new.draw_many(n_samples)])


class _PymooCrossover(Crossover):
    def __init__(self, new: "_NewChildren", codes: _Codes) -> None:
        super().__init__(n_parents=2, n_offsprings=1)
        self._new, self._codes = new, codes

    def _do(self, problem: Problem, parents: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        # Parents have the shape (2, matings, layers), their children (1, matings, layers).
        return np.array([[self._cross(first, second) for first, second in zip(*parents, strict=True)]])

    def _cross(self, first: np.ndarray, second: np.ndarray) -> list[int]:
        parents = self._codes.decode(first), self._codes.decode(second)
        between = self._new.between(*parents)
        return self._codes.encode(between.sample(self._new.rng) if between else parents[0])


class _PymooMutation(Mutation):
    """Mutates children into ones that have not been asked for, as long as there are any."""

    def __init__(self, new: "_NewChildren", codes: _Codes) -> None:
        super().__init__()
        self._new, self._codes = new, codes

    def _do(self, problem: Problem, rows: np.ndarray, *args: Any, **kwargs: Any) -> np.ndarray:
        return np.array([self._codes.encode(self._mutate(self._codes.decode(row))) for row in rows])

    def _mutate(self, child: Architecture) -> Architecture:
        mutated = self._new.mutate(child, 1 / len(child)) or self._new.draw()
        if mutated is None:
            # Fewer children were left than their estimated number says; `ask` removes the parent again.
            self._new.repeated.add(child)
            return child
        return mutated


class _NewChildren:
    """Counts, draws and breeds the children within the budget that have not been asked for yet.

    Attributes:
        repeated: children that were bred again because no new one was left.
    """

    def __init__(self, space: BudgetedSpace, rng: random.Random) -> None:
        self.space = space
        self.rng = rng
        self.repeated: set[Architecture] = set()
        self._taken: set[Architecture] = set()
        self._remaining: list[Architecture] | None = None

    @property
    def num_left(self) -> int:
        return self.space.size - len(self._taken)

    def learn(self, ranked: Sequence[RankedChild]) -> list[RankedChild]:
        """Returns the children in `ranked` within the budget; they no longer count as new, whoever asked for them."""
        within = [child for child in ranked if child.architecture in self.space]
        self._taken.update(child.architecture for child in within)
        return within

    def draw(self) -> Architecture | None:
        """Returns a uniformly drawn child, or `None` if none is left."""
        # As long as half of the children are left, a draw finds one of them with probability 1/2.
        if 2 * len(self._taken) < self.space.size and (child := self.draw_from(self.space, _DRAWS_BEFORE_LISTING)):
            return child
        if self._remaining is None:
            self._remaining = [child for child in _children_of(self.space) if child not in self._taken]
            self.rng.shuffle(self._remaining)
        while self._remaining:
            if self._take(child := self._remaining.pop()):
                return child
        return None

    def draw_many(self, num_children: int) -> list[Architecture]:
        """Returns `num_children` uniformly drawn children, or all that are left."""
        drawn = (self.draw() for _ in range(min(num_children, self.num_left)))
        return [child for child in drawn if child is not None]

    def draw_from(self, space: BudgetedSpace, num_draws: int = _DRAWS_PER_PARENTS) -> Architecture | None:
        """Returns a new child of a part of the space, or `None` if `num_draws` draws find none."""
        for _ in range(num_draws):
            if self._take(child := space.sample(self.rng)):
                return child
        return None

    def between(self, first: Architecture, second: Architecture) -> BudgetedSpace | None:
        """Returns the children within the budget that take each layer from one of two parents.

        Returns `None` if only the parents themselves are known to be within it.
        """
        return self._part(tuple((a,) if a == b else (a, b) for a, b in zip(first, second, strict=True)))

    def mutate(self, parent: Architecture, probability: float) -> Architecture | None:
        """Returns a new child, each layer freed with the given probability, or `None` if a few tries find none."""
        candidates = self.space.space.candidates
        choices = [layer for layer, names in enumerate(candidates) if len(names) > 1]
        for _ in range(_DRAWS_PER_PARENTS if choices else 0):
            free = {layer for layer in choices if self.rng.random() < probability} or {self.rng.choice(choices)}
            layers = tuple(candidates[layer] if layer in free else (name,) for layer, name in enumerate(parent))
            part = self._part(layers)
            if part and (child := self.draw_from(part, 1)):
                return child
        return None

    def _part(self, layers: tuple[tuple[str, ...], ...]) -> BudgetedSpace | None:
        try:
            return self.space.restricted(SearchSpace(layers))
        except WideBudgetError:
            return None

    def _take(self, child: Architecture) -> bool:
        is_new = child not in self._taken
        self._taken.add(child)
        return is_new


def _children_of(space: BudgetedSpace) -> Iterator[Architecture]:
    """Yields every child within the budget once, skipping parts of the space without any."""
    if space.space.size <= _FILTERED_SIZE:
        yield from (child for child in space.space.children() if child in space)
    elif space.size:
        layer = next(layer for layer, names in enumerate(space.space.candidates) if len(names) > 1)
        before, names, after = (
            space.space.candidates[:layer],
            space.space.candidates[layer],
            space.space.candidates[layer + 1 :],
        )
        for name in names:
            yield from _children_of(space.restricted(SearchSpace((*before, (name,), *after))))


def _check_at_least_one(**values: int) -> None:
    for name, value in values.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
