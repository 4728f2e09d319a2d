"""Search spaces of chain-styled super-nets, and architectures as text.

A child is an `Architecture`: one operator name per layer, starting with the first layer. Layers are counted from 0, as
in the parameter names of the model. This module and its imports need only the standard library.
"""

import math
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, product
from typing import Any

from ..displays import html_paragraphs, html_table, operator_boxes
from ..tables import counted, counted_children


Architecture = tuple[str, ...]


class ShownArchitecture(Architecture):
    """An architecture that a notebook shows as coloured operators, from the bottom up; equal to the plain tuple."""

    __slots__ = ()

    def _repr_html_(self) -> str:
        return operator_boxes(self)


_SEPARATOR = re.compile(r"\s*([,()*])\s*")
_GROUP = re.compile(r"(?<![^,])\(([^()]+)\)\*([1-9]\d{0,2})(?![^,])")
_OPERATOR = re.compile(r"[A-Za-z]\w*")


def parse_architecture(text: str | Sequence[str]) -> Architecture:
    """The architecture from text, operator names separated by commas, or from a sequence of names.

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
                "separate names with commas, such as 'MHA12,FFN,CONV3' or '(MHA12,FFN)*12' (up to 999 times)"
            )
    return ShownArchitecture(names)


def format_architecture(architecture: Sequence[str]) -> str:
    """The architecture as text that `parse_architecture` reads back."""
    return ",".join(architecture)


@dataclass(frozen=True)
class SearchSpace:
    """The children of a super-net: every choice of one candidate operator per layer (section 3.1).

    A space is immutable; shrinking creates a new one with `without`.

    Args:
        candidates: the names of the candidate operators, layer by layer; lists are accepted and stored as tuples.
    """

    candidates: tuple[tuple[str, ...], ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "candidates", _checked_candidates(self.candidates))

    @classmethod
    def from_config(cls, candidate_operators: Any) -> "SearchSpace":
        """The space spanned by `MagicConfig.candidate_operators`, a list of names per layer."""
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
        """Number of remaining operators, over all layers."""
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
        """Raise a ValueError that names the first layer whose operator is not in the space."""
        self._check_length(architecture)
        for layer, operator in enumerate(architecture):
            self._check_operator(layer, operator)

    def _check_length(self, architecture: Sequence[str]) -> None:
        if len(architecture) != self.num_layers:
            raise ValueError(
                f"the architecture {format_architecture(architecture)!r} has {len(architecture)} layers, but "
                f"the search space has {self.num_layers}; name one operator per layer"
            )

    def _check_operator(self, layer: int, operator: str) -> None:
        if not 0 <= layer < self.num_layers:
            raise ValueError(f"there is no layer {layer}; the search space has layers 0 to {self.num_layers - 1}")
        if operator not in self.candidates[layer]:
            candidates = ", ".join(self.candidates[layer])
            raise ValueError(f"layer {layer} has no operator {operator!r}; candidates: {candidates}")

    def distance(self, first: Sequence[str], second: Sequence[str]) -> int:
        """Number of layers in which two children differ; operators deleted by shrinking count as well."""
        self._check_length(first)
        self._check_length(second)
        return sum(a != b for a, b in zip(first, second, strict=True))

    def without(self, layer: int, operator: str) -> "SearchSpace":
        """The space without one operator of a layer, never its last one: a step of shrinking (section 5.1)."""
        self._check_operator(layer, operator)
        remaining = tuple(name for name in self.candidates[layer] if name != operator)
        if not remaining:
            raise ValueError(f"layer {layer} cannot lose its last operator; candidates: {operator}")
        return SearchSpace((*self.candidates[:layer], remaining, *self.candidates[layer + 1 :]))

    def sample(self, rng: random.Random) -> Architecture:
        """A uniformly drawn child: each layer's operator is uniform and independent of the other layers."""
        return ShownArchitecture(rng.choice(layer) for layer in self.candidates)

    def sample_distinct(self, number: int, rng: random.Random) -> list[Architecture]:
        """Distinct uniform children in the order drawn; all children, in the order of `children`, if no more exist."""
        if self.size <= number:
            return list(self.children())
        drawn: dict[Architecture, None] = {}
        while len(drawn) < number:
            drawn[self.sample(rng)] = None
        return list(drawn)

    @property
    def operator_names(self) -> list[str]:
        """The distinct operators in the order of their first occurrence."""
        return list(dict.fromkeys(name for layer in self.candidates for name in layer))

    def children(self) -> Iterator[Architecture]:
        """Every child once, the last layer changing fastest; check `size` before iterating over all of them."""
        return product(*self.candidates)

    def __repr__(self) -> str:
        return f"SearchSpace({self.num_layers} layers, {self.size:,} children)"

    def _repr_html_(self) -> str:
        """A notebook's view: the candidates, equal neighbouring layers in one row; for a single child, its layers."""
        if self.size == 1:
            return ShownArchitecture(next(self.children()))._repr_html_()
        numbers = iter(range(self.num_layers))
        rows = []
        for candidates, layers in groupby(self.candidates):
            first, *rest = [next(numbers) for _ in layers]
            rows.append((f"{first} to {rest[-1]}" if rest else f"{first}", candidates))
        title = f"{counted(self.num_layers, 'layer')}, {counted_children(self.size)}"
        return html_paragraphs([title]) + html_table(("layer", "candidates"), rows)


def _checked_candidates(candidates: Any) -> tuple[tuple[str, ...], ...]:
    if not isinstance(candidates, (list, tuple)) or not candidates:
        raise ValueError(f"a search space must be a list of operator names for each layer, not {candidates!r}")
    for layer, names in enumerate(candidates):
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) and name for name in names):
            raise ValueError(f"the candidates of layer {layer} must be a list of operator names, not {names!r}")
        if not names:
            raise ValueError(f"layer {layer} has no candidates; give it at least one operator")
        if len(set(names)) < len(names):
            raise ValueError(f"layer {layer} lists an operator twice; candidates: {', '.join(names)}")
    return tuple(tuple(names) for names in candidates)


def compact_architecture(architecture: Sequence[str] | Architecture) -> str:
    """Returns the architecture as text, with a repeated pair of operators written as a group: (MHA4,FFN)*3."""
    pair, rest = tuple(architecture[:2]), len(architecture) // 2
    if rest > 1 and tuple(architecture) == pair * rest and len(set(pair)) == 2:
        return f"({format_architecture(pair)})*{rest}"
    return format_architecture(architecture)
