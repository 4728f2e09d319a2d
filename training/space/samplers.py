"""How the child of each step is drawn: uniform (SPOS), gradual (MAGIC-T), strictly fair (FairNAS), sandwich."""

import random
from collections.abc import Callable
from typing import Any, ClassVar

from .search_space import Architecture, SearchSpace


class UniformSampler:
    """Draws every child uniformly and independently of the previous ones: SPOS, the baseline of the paper.

    The other samplers have the same interface: `next`, `restrict` after shrinking, and a state that JSON can hold.

    Args:
        space: the children to draw from.
        seed: the seed of the sampler's own generator; with the same seed, all ranks draw the same children.
    """

    kind: ClassVar[str] = "uniform"

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self._rng = random.Random(seed)

    def next(self) -> Architecture:
        """The child of the next training step."""
        return self.space.sample(self._rng)

    def restrict(self, space: SearchSpace) -> None:
        """Continue in the space that shrinking has left."""
        if space.num_layers != self.space.num_layers:
            raise ValueError(f"cannot restrict a space of {self.space.num_layers} layers to {space.num_layers} layers")
        for layer, operators in enumerate(space.candidates):
            for operator in operators:
                self.space._check_operator(layer, operator)
        self.space = space

    def state_dict(self) -> dict[str, Any]:
        """The state that continues the sequence of children, in types that JSON preserves."""
        version, internal_state, gauss_next = self._rng.getstate()
        return {"kind": self.kind, "rng": [version, list(internal_state), gauss_next]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sequence of children that `state_dict` was taken from, over the same space."""
        if state.get("kind") != self.kind:
            raise ValueError(f"the state belongs to the sampler {state.get('kind')!r}; this sampler is {self.kind!r}")
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ValueError(f"the state of the sampler {self.kind!r} has {sorted(state)}, not {sorted(expected)}")
        try:
            version, internal_state, gauss_next = state["rng"]
            self._rng.setstate((version, tuple(internal_state), gauss_next))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the generator's state cannot be read: {error}") from error


class GradualSampler(UniformSampler):
    """A walk that substitutes exactly k operators of the previous child: MAGIC-T (section 4).

    The first child is uniform. Each following child differs in k layers, drawn uniformly from the layers that still
    have a choice, and gets another operator there, also drawn uniformly. If shrinking leaves fewer than k such layers,
    all of them change; if it leaves none, the child stays the same.

    Every child of the walk is uniform over the space, as in SPOS, and the uniform distribution is stationary: the step
    from a to b is as likely as the step back, and a symmetric transition matrix preserves the uniform distribution.
    `restrict` preserves it too. A single walk also reaches every child eventually, with two exceptions among the
    layers that have a choice: k is even and all of them have two operators, or k equals their number and several have
    two operators.

    Args:
        space: the children to walk among.
        seed: the seed of the sampler's own generator.
        num_substitutions: k, from 1 (the paper's value) to the number of layers.
    """

    kind = "gradual"

    def __init__(self, space: SearchSpace, seed: int, num_substitutions: int = 1) -> None:
        super().__init__(space, seed)
        if not 1 <= num_substitutions <= space.num_layers:
            raise ValueError(
                f"num_substitutions is {num_substitutions}; choose 1 to {space.num_layers}, the number of layers"
            )
        self.num_substitutions = num_substitutions
        self._num_changes = num_substitutions
        self._child: Architecture | None = None

    def change(self, num_layers: int) -> None:
        """Sets the number of layers in which the next children differ, for a k that falls during training.

        It is not part of the state, because the scheduler can derive it from the step.

        Raises:
            ValueError: `num_layers` is below 1 or above the number of layers.
        """
        if not 1 <= num_layers <= self.space.num_layers:
            raise ValueError(
                f"num_substitutions_from is {num_layers}; choose 1 to {self.space.num_layers}, the number of layers"
            )
        self._num_changes = num_layers

    def next(self) -> Architecture:
        """The child of the next training step."""
        self._child = super().next() if self._child is None else self._substitute(self._child)
        return self._child

    def _substitute(self, child: Architecture) -> Architecture:
        free_layers = [layer for layer, candidates in enumerate(self.space.candidates) if len(candidates) > 1]
        operators = list(child)
        for layer in self._rng.sample(free_layers, min(self._num_changes, len(free_layers))):
            others = [name for name in self.space.candidates[layer] if name != child[layer]]
            operators[layer] = self._rng.choice(others)
        return tuple(operators)

    def restrict(self, space: SearchSpace) -> None:
        """Continue in the space that shrinking has left; uniform draws replace the child's deleted operators."""
        super().restrict(space)
        if self._child is not None:
            self._child = tuple(
                operator if operator in candidates else self._rng.choice(candidates)
                for operator, candidates in zip(self._child, space.candidates, strict=True)
            )

    def state_dict(self) -> dict[str, Any]:
        """The uniform sampler's state, k, and the child that the walk continues from."""
        child = None if self._child is None else list(self._child)
        return {**super().state_dict(), "num_substitutions": self.num_substitutions, "child": child}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the walk that `state_dict` was taken from, with the same k over the same space."""
        super().load_state_dict(state)
        if state["num_substitutions"] != self.num_substitutions:
            raise ValueError(
                f"the state belongs to a walk with num_substitutions {state['num_substitutions']}, "
                f"but this one has {self.num_substitutions}; continue with the same number"
            )
        child = None if state["child"] is None else tuple(state["child"])
        if child is not None:
            self.space.check(child)
        self._child = child


class FairSampler(UniformSampler):
    """Strict fairness (FairNAS): an operator is used again only after all others of its layer have been used.

    Each layer goes through random permutations of its own operators, one after another and independently of the other
    layers. If every layer has C operators, each round of C steps visits each operator of each layer exactly once. A
    layer with fewer operators starts its next permutation as soon as one ends. After any number of steps, the visits
    to two operators of a layer differ by at most one; after a multiple of the layer's number of operators, they are
    equal.
    """

    kind = "fair"

    def __init__(self, space: SearchSpace, seed: int) -> None:
        super().__init__(space, seed)
        self._waiting: list[list[str]] = [[] for _ in space.candidates]

    def next(self) -> Architecture:
        """The child of the next training step."""
        for waiting, candidates in zip(self._waiting, self.space.candidates, strict=True):
            if not waiting:
                waiting.extend(self._rng.sample(candidates, len(candidates)))
        return tuple(waiting.pop() for waiting in self._waiting)

    def restrict(self, space: SearchSpace) -> None:
        """Continue in the space that shrinking has left, with a new round in every layer."""
        super().restrict(space)
        self._waiting = [[] for _ in space.candidates]

    def state_dict(self) -> dict[str, Any]:
        """The uniform sampler's state and the operators left in the current round, layer by layer."""
        return {**super().state_dict(), "waiting": [list(waiting) for waiting in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the rounds that `state_dict` was taken from, over the same space."""
        super().load_state_dict(state)
        if len(state["waiting"]) != self.space.num_layers:
            raise ValueError(
                f"the state has {len(state['waiting'])} layers, but the space has {self.space.num_layers}"
            )
        for layer, waiting in enumerate(state["waiting"]):
            for operator in waiting:
                self.space._check_operator(layer, operator)
        self._waiting = [list(waiting) for waiting in state["waiting"]]


class SandwichSampler(UniformSampler):
    """Rounds of four: the most expensive child, the cheapest child and two uniform ones (the sandwich rule of BigNAS).

    Args:
        space: the children to draw from.
        seed: the seed of the sampler's own generator.
        cost: the cost of an operator, given its name, such as its parameters; the first candidate wins a tie.
    """

    kind = "sandwich"

    def __init__(self, space: SearchSpace, seed: int, cost: Callable[[str], float]) -> None:
        super().__init__(space, seed)
        self._cost = cost
        self._position = 0

    def next(self) -> Architecture:
        """The child of the next training step."""
        position, self._position = self._position, (self._position + 1) % 4
        if position >= 2:
            return super().next()
        extreme = max if position == 0 else min
        return tuple(extreme(candidates, key=self._cost) for candidates in self.space.candidates)

    def restrict(self, space: SearchSpace) -> None:
        """Continue in the space that shrinking has left, with a new round."""
        super().restrict(space)
        self._position = 0

    def state_dict(self) -> dict[str, Any]:
        """The uniform sampler's state and the position in the round; the cost is not part of it."""
        return {**super().state_dict(), "position": self._position}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the rounds that `state_dict` was taken from, over the same space."""
        super().load_state_dict(state)
        if state["position"] not in range(4):
            raise ValueError(f"the state is at position {state['position']!r} of a round; it must be from 0 to 3")
        self._position = state["position"]


def make_sampler(
    name: str,
    space: SearchSpace,
    seed: int,
    num_substitutions: int = 1,
    cost: Callable[[str], float] | None = None,
) -> UniformSampler:
    """The sampler called "uniform", "gradual" (takes `num_substitutions`), "fair" or "sandwich" (needs `cost`)."""
    if name == "uniform":
        return UniformSampler(space, seed)
    if name == "gradual":
        return GradualSampler(space, seed, num_substitutions)
    if name == "fair":
        return FairSampler(space, seed)
    if name == "sandwich":
        if cost is None:
            raise ValueError("the sampler 'sandwich' needs the cost of the operators; pass cost")
        return SandwichSampler(space, seed, cost)
    raise ValueError(f"unknown sampler {name!r}; choose one of: uniform, gradual, fair, sandwich")
