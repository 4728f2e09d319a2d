"""Search spaces of chain-styled super-nets and the samplers that pick the child of each training step.

A child is an `Architecture`: one operator name per layer, the first layer first. Layers are counted from 0, as in the
parameter names of the model. This module needs the standard library only.
"""

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, ClassVar


Architecture = tuple[str, ...]

_SEPARATOR = re.compile(r"\s*([,()*])\s*")
_GROUP = re.compile(r"(?<![^,])\(([^()]+)\)\*([1-9]\d{0,2})(?![^,])")
_OPERATOR = re.compile(r"[A-Za-z]\w*")


def parse_architecture(text: str | Sequence[str]) -> Architecture:
    """The architecture written as operator names with commas between them, or given as a sequence of names.

    `(MHA12,FFN)*12` stands for the group twelve times; groups do not nest. Spaces around names do not matter.
    """
    names = list(text)
    if isinstance(text, str):
        compact = _SEPARATOR.sub(r"\1", text.strip())
        names = _GROUP.sub(lambda group: ",".join([group[1]] * int(group[2])), compact).split(",")
    if not names:
        raise ValueError("the architecture is empty; name one operator per layer, such as 'MHA12,FFN'")
    for name in names:
        if not isinstance(name, str) or not _OPERATOR.fullmatch(name):
            raise ValueError(
                f"{name!r} in the architecture {text!r} is not an operator name; "
                "write names with commas between them, such as 'MHA12,FFN,CONV3' or '(MHA12,FFN)*12' (up to 999 times)"
            )
    return tuple(names)


def format_architecture(architecture: Sequence[str]) -> str:
    """The architecture as text that `parse_architecture` reads back."""
    return ",".join(architecture)


@dataclass(frozen=True)
class SearchSpace:
    """The children of a super-net: every choice of one candidate operator per layer (section 3.1).

    Immutable: shrinking makes a new space with `without`.

    Args:
        candidates: names of the candidate operators, layer by layer; lists are taken too and stored as tuples.
    """

    candidates: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", _checked_candidates(self.candidates))

    @classmethod
    def from_config(cls, candidate_operators: Any) -> "SearchSpace":
        """The space that `MagicConfig.candidate_operators`, a list of names per layer, spans."""
        return cls(candidate_operators)

    @classmethod
    def from_json(cls, layers: Any) -> "SearchSpace":
        """The space that `to_json` wrote."""
        return cls(layers)

    def to_json(self) -> list[list[str]]:
        """The candidates as lists of names."""
        return [list(layer) for layer in self.candidates]

    @property
    def num_layers(self) -> int:
        """Number of layers of every child."""
        return len(self.candidates)

    @property
    def num_operators(self) -> int:
        """Number of operators left, over all layers."""
        return sum(len(layer) for layer in self.candidates)

    @property
    def size(self) -> int:
        """Number of children, exact."""
        return math.prod(len(layer) for layer in self.candidates)

    def __contains__(self, architecture: object) -> bool:
        if not isinstance(architecture, tuple) or len(architecture) != self.num_layers:
            return False
        return all(operator in layer for operator, layer in zip(architecture, self.candidates, strict=True))

    def check(self, architecture: Sequence[str]) -> None:
        """Raise a ValueError that names the first layer in which the architecture leaves the space."""
        self._check_length(architecture)
        for layer, operator in enumerate(architecture):
            self._check_operator(layer, operator)

    def _check_length(self, architecture: Sequence[str]) -> None:
        if len(architecture) != self.num_layers:
            raise ValueError(
                f"the architecture {format_architecture(architecture)!r} has {len(architecture)} layers, "
                f"the search space has {self.num_layers}; name one operator per layer"
            )

    def _check_operator(self, layer: int, operator: str) -> None:
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"there is no layer {layer}; the search space has layers 0 to {self.num_layers - 1}")
        if operator not in self.candidates[layer]:
            candidates = ", ".join(self.candidates[layer])
            raise ValueError(f"layer {layer} has no operator {operator!r}; candidates: {candidates}")

    def distance(self, first: Sequence[str], second: Sequence[str]) -> int:
        """Number of layers in which two children differ; operators that shrinking has deleted count as well."""
        self._check_length(first)
        self._check_length(second)
        return sum(a != b for a, b in zip(first, second, strict=True))

    def without(self, layer: int, operator: str) -> "SearchSpace":
        """The space with one operator of a layer deleted, never the last: a step of shrinking (section 5.1)."""
        self._check_operator(layer, operator)
        remaining = tuple(name for name in self.candidates[layer] if name != operator)
        if not remaining:
            raise ValueError(f"layer {layer} cannot lose its last operator; candidates: {operator}")
        return SearchSpace((*self.candidates[:layer], remaining, *self.candidates[layer + 1 :]))

    def sample(self, rng: random.Random) -> Architecture:
        """A uniformly drawn child: each layer's operator is uniform and independent of the other layers'."""
        return tuple(rng.choice(layer) for layer in self.candidates)

    def children(self) -> Iterator[Architecture]:
        """Every child once, the last layer changing fastest; look at `size` before walking them all."""
        return product(*self.candidates)


def _checked_candidates(candidates: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(candidates, (list, tuple)) or not candidates:
        raise ValueError(f"a search space is a list of operator names for each layer, not {candidates!r}")
    for layer, names in enumerate(candidates):
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"the candidates of layer {layer} must be a list of operator names, not {names!r}")
        if not names:
            raise ValueError(f"layer {layer} has no candidates; give it at least one operator")
        if len(set(names)) < len(names):
            raise ValueError(f"layer {layer} lists an operator twice; candidates: {', '.join(names)}")
    return tuple(tuple(names) for names in candidates)


class UniformSampler:
    """Every child drawn uniformly and independently of the ones before: SPOS, the baseline of the paper.

    The other samplers keep its shape: `next`, `restrict` after shrinking, and a state that JSON can hold.

    Args:
        space: the children to draw from.
        seed: of the sampler's own generator; with the same seed every rank draws the same children.
    """

    kind: ClassVar[str] = "uniform"

    def __init__(self, space: SearchSpace, seed: int) -> None:
        self.space = space
        self._rng = random.Random(seed)

    def next(self) -> Architecture:
        """The child of the next training step."""
        return self.space.sample(self._rng)

    def restrict(self, space: SearchSpace) -> None:
        """Go on in what shrinking has left of the space."""
        if space.num_layers != self.space.num_layers:
            raise ValueError(f"cannot restrict a space of {self.space.num_layers} layers to {space.num_layers} layers")
        for layer, operators in enumerate(space.candidates):
            for operator in operators:
                self.space._check_operator(layer, operator)
        self.space = space

    def state_dict(self) -> dict[str, Any]:
        """What continues the same sequence of children, in types that JSON keeps."""
        version, internal_state, gauss_next = self._rng.getstate()
        return {"kind": self.kind, "rng": [version, list(internal_state), gauss_next]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the sequence of children that `state_dict` was taken from, over the same space."""
        if state.get("kind") != self.kind:
            raise ValueError(f"the state is of the sampler {state.get('kind')!r}, this sampler is {self.kind!r}")
        expected = self.state_dict().keys()
        if state.keys() != expected:
            raise ValueError(f"the state of the sampler {self.kind!r} has {sorted(state)}, not {sorted(expected)}")
        try:
            version, internal_state, gauss_next = state["rng"]
            self._rng.setstate((version, tuple(internal_state), gauss_next))
        except (TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"the generator's state cannot be read: {error}") from error


class GradualSampler(UniformSampler):
    """A walk that substitutes exactly k operators of the child before it: MAGIC-T (section 4).

    The first child is uniform. Each next one differs in k layers, drawn uniformly among the layers that still have a
    choice, and gets another operator there, uniformly. k drops to the number of such layers when shrinking leaves
    fewer; with none the child stays.

    Every child of the walk is uniform over the space, as in SPOS, and the uniform law is the stationary one: the step
    from a to b is as likely as the step back, and a symmetric transition matrix keeps the uniform law. `restrict`
    keeps it too. A single walk also reaches every child in the long run, with two exceptions among the layers that
    have a choice: k is even and all of them have two operators, or k counts them all and several have two operators.

    Args:
        space: the children to walk among.
        seed: of the sampler's own generator.
        num_substitutions: k, from 1 (the paper's) to the number of layers.
    """

    kind = "gradual"

    def __init__(self, space: SearchSpace, seed: int, num_substitutions: int = 1) -> None:
        super().__init__(space, seed)
        if not 1 <= num_substitutions <= space.num_layers:
            raise ValueError(
                f"num_substitutions is {num_substitutions}; choose 1 to {space.num_layers}, the number of layers"
            )
        self.num_substitutions = num_substitutions
        self._child: Architecture | None = None

    def next(self) -> Architecture:
        """The child of the next training step."""
        self._child = super().next() if self._child is None else self._substitute(self._child)
        return self._child

    def _substitute(self, child: Architecture) -> Architecture:
        free_layers = [layer for layer, candidates in enumerate(self.space.candidates) if len(candidates) > 1]
        operators = list(child)
        for layer in self._rng.sample(free_layers, min(self.num_substitutions, len(free_layers))):
            others = [name for name in self.space.candidates[layer] if name != child[layer]]
            operators[layer] = self._rng.choice(others)
        return tuple(operators)

    def restrict(self, space: SearchSpace) -> None:
        """Go on in what shrinking has left; deleted operators of the child give way to uniformly drawn ones."""
        super().restrict(space)
        if self._child is not None:
            self._child = tuple(
                operator if operator in candidates else self._rng.choice(candidates)
                for operator, candidates in zip(self._child, space.candidates, strict=True)
            )

    def state_dict(self) -> dict[str, Any]:
        """The uniform sampler's state, k and the child that the next one starts from."""
        child = None if self._child is None else list(self._child)
        return {**super().state_dict(), "num_substitutions": self.num_substitutions, "child": child}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the walk that `state_dict` was taken from, with the same k over the same space."""
        super().load_state_dict(state)
        if state["num_substitutions"] != self.num_substitutions:
            raise ValueError(
                f"the state is of a walk with num_substitutions {state['num_substitutions']}, "
                f"this one has {self.num_substitutions}; continue with the same number"
            )
        child = None if state["child"] is None else tuple(state["child"])
        if child is not None:
            self.space.check(child)
        self._child = child


class FairSampler(UniformSampler):
    """Strict fairness (FairNAS): an operator comes again only after the other ones of its layer had their turn.

    Each layer goes through random permutations of its own operators, one after another and independent of the other
    layers. Where every layer has C operators, each round of C steps visits each operator of each layer exactly once. A
    layer with fewer operators starts its next permutation as soon as one ends. After any number of steps the visits to
    two operators of a layer differ by at most one; after a multiple of the layer's number of operators they are equal.
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
        """Go on in what shrinking has left, with a new round in every layer."""
        super().restrict(space)
        self._waiting = [[] for _ in space.candidates]

    def state_dict(self) -> dict[str, Any]:
        """The uniform sampler's state and the operators that still wait for their turn, layer by layer."""
        return {**super().state_dict(), "waiting": [list(waiting) for waiting in self._waiting]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue the rounds that `state_dict` was taken from, over the same space."""
        super().load_state_dict(state)
        if len(state["waiting"]) != self.space.num_layers:
            raise ValueError(f"the state has {len(state['waiting'])} layers, the space {self.space.num_layers}")
        for layer, waiting in enumerate(state["waiting"]):
            for operator in waiting:
                self.space._check_operator(layer, operator)
        self._waiting = [list(waiting) for waiting in state["waiting"]]


class SandwichSampler(UniformSampler):
    """Rounds of four: the costliest child, the cheapest child and two uniform ones (the sandwich rule of BigNAS).

    Args:
        space: the children to draw from.
        seed: of the sampler's own generator.
        cost: cost of an operator by its name, such as its parameters; among equals the first candidate is taken.
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
        """Go on in what shrinking has left, with a new round."""
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
            raise ValueError("the sampler 'sandwich' needs the cost of an operator; pass cost")
        return SandwichSampler(space, seed, cost)
    raise ValueError(f"unknown sampler {name!r}; choose one of: uniform, gradual, fair, sandwich")
