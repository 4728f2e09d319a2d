"""Interference between children (section 3): gradients of an operator that they share, and the cosines between them.

The weights are frozen and all children see the same batch, so that what differs is the child alone. Cosines are means
over repeats, each with children, operator and batch of its own; an interval is Student's t for the mean of the
repeats, which are independent of one another. It is not cut off at 1.
"""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations, groupby
from typing import NamedTuple, Self

import numpy as np
import torch
from scipy.stats import t as student_t
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask

from modeling_magic import MagicForMaskedLM
from modeling_magic.configuration_magic import parse_operator

from ..objectives import alignment_loss, average_states
from ..space.search_space import Architecture, SearchSpace, format_architecture
from ..supernet.anchors import target_states
from ..supernet.evaluation import Batch


CONFIDENCE = 0.95


# ---- Which children ----


def layers_that_differ(space: SearchSpace, shared_layer: int, first: int | None = None) -> list[int]:
    """Returns the layers in which children that share `shared_layer` may differ, in the order they are taken in.

    Children that differ in m layers differ in the first m of them: `first` and those above it, as in Fig. 2 (c), then
    those below it, downwards. Layers without a choice are left out.

    Args:
        space: where the children come from.
        shared_layer: the layer of o_g, counted from 0.
        first: by default the layer above o_g, as in Fig. 1, or the one below where o_g is at the top.

    Raises:
        ValueError: there is no such layer, `first` is the shared one or has no choice, or no layer can differ.
    """
    num_layers, is_given = space.num_layers, first is not None
    if num_layers == 1:
        raise ValueError("the super-net has one layer, so that two children that share its operator are the same")
    if first is None:
        first = shared_layer + 1 if shared_layer + 1 < num_layers else shared_layer - 1
    for name, layer in (("shared_layer", shared_layer), ("first_differing_layer", first)):
        if not 0 <= layer < num_layers:
            raise ValueError(f"{name} is {layer}; the super-net has the layers 0 to {num_layers - 1}")
    if first == shared_layer:
        raise ValueError(
            f"children that differ in layer {first} do not share its operator; let first_differing_layer be another "
            f"than shared_layer"
        )
    if is_given and len(space.candidates[first]) < 2:
        raise ValueError(
            f"layer {first} has one operator only, {space.candidates[first][0]}; let the children differ in a layer "
            f"with a choice"
        )
    order = [*range(first, num_layers), *range(first - 1, -1, -1)]
    layers = [layer for layer in order if layer != shared_layer and len(space.candidates[layer]) > 1]
    if not layers:
        raise ValueError(f"no layer but {shared_layer} has a choice of operators, so that no two children share it")
    return layers


class ChildFamily:
    """Children that share an operator and, in all but m layers, all others: the paths of Fig. 1.

    Any two of them differ in each of the m layers. Families of one draw are nested: with a larger m, the layers that
    differed before keep their operators.

    Args:
        space: where the children come from.
        shared_layer: the layer of o_g.
        layers: where children may differ, see `layers_that_differ`.
        rng: draws the operators of the layers that all children share, and who gets which of the others.
        operator: o_g; drawn where it is left out.

    Raises:
        ValueError: the shared layer has no such operator.
    """

    def __init__(
        self,
        space: SearchSpace,
        shared_layer: int,
        layers: Sequence[int],
        rng: random.Random,
        operator: str | None = None,
    ):
        base = list(space.sample(rng))
        if operator is not None:
            if operator not in space.candidates[shared_layer]:
                candidates = ", ".join(space.candidates[shared_layer])
                raise ValueError(f"layer {shared_layer} has no operator {operator!r}; candidates: {candidates}")
            base[shared_layer] = operator
        self._base = tuple(base)
        self._layers = list(layers)
        # In the first layer child i has candidate i, so that a matrix of Fig. 2 (a) reads by operator.
        self._choices = [
            list(space.candidates[layer])
            if index == 0
            else rng.sample(space.candidates[layer], len(space.candidates[layer]))
            for index, layer in enumerate(layers)
        ]

    def children(self, num_differing_layers: int) -> list[Architecture]:
        """Returns as many children as the narrowest of the first m layers has candidates, at least two.

        Args:
            num_differing_layers: m, from 1 to the number of layers that may differ.

        Raises:
            ValueError: there are not so many layers.
        """
        if not 1 <= num_differing_layers <= len(self._layers):
            raise ValueError(
                f"num_differing_layers is {num_differing_layers}; beside the shared layer {len(self._layers)} layers "
                f"have a choice"
            )
        choices = self._choices[:num_differing_layers]
        children = []
        for index in range(min(map(len, choices))):
            child = list(self._base)
            for layer, operators in zip(self._layers, choices, strict=False):
                child[layer] = operators[index]
            children.append(tuple(child))
        return children


# ---- Gradients ----


@dataclass(frozen=True)
class AlignmentTarget:
    """What children's hidden states are pulled to in Eq. (2).

    Attributes:
        children: the anchor alone (section 4), or several children whose states are averaged (3.2).
        weight: lambda.
        every_n_layers: layers n, 2n, 3n, ... are aligned, counted from 1.
    """

    children: tuple[Architecture, ...]
    weight: float = 0.5
    every_n_layers: int = 4


@dataclass(frozen=True)
class OperatorGradients:
    """The gradients of one shared operator in several children, and what they cost.

    Attributes:
        gradients: (children, parameters of the operator), float32, flattened in the order of its parameters.
        losses: each child's loss of Eq. (2), or its prediction loss where nothing is aligned.
        num_forward_layers: operators that were run, targets of alignment not included, over the whole batch each.
        num_backward_layers: operators that were differentiated; below the shared one there are none.
    """

    gradients: Tensor
    losses: tuple[float, ...]
    num_forward_layers: int
    num_backward_layers: int


def cosine_matrix(gradients: Tensor) -> np.ndarray:
    """Returns the cosine similarities between all pairs of rows (3.2, footnote 3), symmetric with a diagonal of 1.

    Args:
        gradients: (children, parameters).

    Raises:
        ValueError: a row is zero or not finite, so that it has no direction.
    """
    rows = gradients.detach().double()
    norms = rows.norm(dim=1, keepdim=True)
    for index, norm in enumerate(norms.flatten().tolist()):
        if norm == 0 or not math.isfinite(norm):
            problem = "is zero" if norm == 0 else "is not finite"
            raise ValueError(
                f"the gradient of child {index} {problem}, so that it has no cosine with others; measure another "
                f"operator, or a super-net that has not diverged"
            )
    rows = rows / norms
    cosines = (rows @ rows.T).cpu().numpy()
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1.0)
    return cosines


@contextmanager
def _frozen_but(model: MagicForMaskedLM, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No dropout, and gradients of `parameters` alone; the model is left as it was."""
    was_training = [module.training for module in model.modules()]
    wanted = {id(parameter) for parameter in parameters}
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in before:
            parameter.requires_grad_(id(parameter) in wanted)
        yield
    finally:
        for parameter, required in before:
            parameter.requires_grad_(required)
        for module, mode in zip(model.modules(), was_training, strict=True):
            module.training = mode


class _MicroBatch(NamedTuple):
    """A part of the batch as the layers and the loss take it, the same for all children."""

    embedded: Tensor
    masks: tuple[Tensor | BlockMask | None, Tensor | None]
    attention_mask: Tensor | None
    positions: Tensor
    labels: Tensor
    targets: dict[int, Tensor]

    @classmethod
    def of(cls, model: MagicForMaskedLM, batch: Batch, alignment: AlignmentTarget | None) -> Self:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        labels = inputs.pop("labels").flatten()
        encoder = model.magic
        names = ("input_ids", "token_type_ids", "position_ids")
        embedded = encoder.embeddings(*(inputs.get(name) for name in names))
        attention_mask = inputs.get("attention_mask")
        positions = (labels != -100).nonzero().squeeze(1)
        targets: dict[int, Tensor] = {}
        if alignment is not None:
            every = alignment.every_n_layers
            layers = list(range(every, len(model.config.candidate_operators) + 1, every))
            states = [target_states(encoder, inputs, child, layers, 0, embedded) for child in alignment.children]
            # As the trainer's step needs it, which trains on; here nothing does.
            encoder.eval()
            targets = dict(zip(layers, average_states(states) if len(states) > 1 else states[0], strict=True))
        masks = encoder.attention_masks(embedded, attention_mask)
        return cls(embedded, masks, attention_mask, positions, labels[positions], targets)


class GradientMeter:
    """Takes gradients of shared operators in children of a super-net, all for the same batch and the same weights.

    Children are walked in the order of their prefixes: layers that several share from the bottom up are run once, and
    nothing below the shared operator is differentiated. Above it only hidden states are: no other weight gets a
    gradient, which is about half of a backward pass. Neither weights nor their `grad` are touched.

    Args:
        model: a super-net; no dropout is applied, in whatever mode it is.
        batches: the micro-batches of one batch, with `labels`, -100 where nothing is predicted. The prediction loss is
            a mean over the masked tokens of all of them, the alignment loss a mean over the micro-batches, as in
            training with gradient accumulation.
        alignment: what the loss aligns to; left out, it is the prediction loss alone.

    Raises:
        ValueError: the model is no super-net, there is nothing to predict, or the alignment does not fit the layers.

    Example:
    ```python
    >>> meter = GradientMeter(supernet, batches)
    >>> children = [("FFN", operator, "FFN", "FFN") for operator in ("MHA4", "FFN", "CONV3")]
    >>> cosine_matrix(meter.gradients(children, layer=0).gradients)
    ```
    """

    def __init__(self, model: MagicForMaskedLM, batches: Sequence[Batch], alignment: AlignmentTarget | None = None):
        check_supernet(model)
        self._model = model
        self._num_tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        if not self._num_tokens:
            raise ValueError("no token of the batch is to be predicted; give more text or mask more tokens")
        if alignment is not None:
            check_alignment(model, alignment)
        self._alignment = alignment
        with torch.no_grad(), _frozen_but(model, ()):
            self._micro_batches = [_MicroBatch.of(model, batch, alignment) for batch in batches]

    def gradients(self, children: Sequence[Sequence[str]], layer: int) -> OperatorGradients:
        """Returns the gradients of the operator that the children have in common in `layer`.

        Args:
            children: at least two different ones.
            layer: of o_g, counted from 0.

        Raises:
            ValueError: fewer than two children or twice the same, an architecture that does not fit the model,
                children that do not share the operator, or a loss that is not finite.
        """
        chains = [tuple(child) for child in children]
        operator = self._shared_operator(chains, layer)
        parameters = list(self._model.get_submodule(f"magic.encoder.layer.{layer}.operators.{operator}").parameters())
        walk = _Walk(self._model, chains, layer, parameters, self._num_tokens, self._alignment)
        # Below the shared operator nothing asks for a gradient, so that no graph is built there.
        with torch.enable_grad(), _frozen_but(self._model, parameters):
            for micro_batch in self._micro_batches:
                walk.add(micro_batch, 1 / len(self._micro_batches))
        losses = walk.losses.tolist()
        for child, loss in zip(chains, losses, strict=True):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of the child {format_architecture(child)} is {loss}; its gradient means nothing. Take "
                    f"a super-net that has not diverged, such as an earlier checkpoint"
                )
        num_passes = len(self._micro_batches)
        return OperatorGradients(
            walk.gradients, tuple(losses), walk.num_forward // num_passes, walk.num_backward // num_passes
        )

    def _shared_operator(self, children: Sequence[Architecture], layer: int) -> str:
        if len(children) < 2:
            raise ValueError(f"there is {len(children)} child; interference is between at least two")
        for child in children:
            self._model.resolve_architecture(child)
        for index, child in enumerate(children):
            if child in children[:index]:
                raise ValueError(f"the child {format_architecture(child)} is given twice; give each once")
        if not 0 <= layer < len(children[0]):
            raise ValueError(f"there is no layer {layer}; the super-net has the layers 0 to {len(children[0]) - 1}")
        operators = sorted({child[layer] for child in children})
        if len(operators) > 1:
            raise ValueError(
                f"the children differ in layer {layer} ({', '.join(operators)}), so that they share no operator "
                f"there; measure a layer that they have in common"
            )
        return operators[0]


def check_supernet(model: object) -> None:
    """Raises a ValueError where the model is no super-net, whose children alone share weights."""
    if not isinstance(model, MagicForMaskedLM):
        raise ValueError(
            f"a {type(model).__name__} is no super-net; give the MagicForMaskedLM of `magic-nas pretrain`"
        )
    if not model.config.is_supernet:
        raise ValueError(
            "the model holds one child, so that no weights are shared; give a super-net, as `magic-nas pretrain` "
            "makes it"
        )


def check_alignment(model: MagicForMaskedLM, alignment: AlignmentTarget) -> None:
    """Raises a ValueError where an alignment does not fit the super-net's layers and operators."""
    if not alignment.children:
        raise ValueError("no child to align to; give the anchor, or several children to average")
    for child in alignment.children:
        model.resolve_architecture(child)
    num_layers = len(model.config.candidate_operators)
    if not 1 <= alignment.every_n_layers <= num_layers:
        raise ValueError(
            f"alignment_every_n_layers is {alignment.every_n_layers}; of {num_layers} layers it must be from 1 to "
            f"{num_layers}"
        )
    if not 0 <= alignment.weight < math.inf:
        raise ValueError(f"alignment_weight is {alignment.weight}; it must be a number that is not negative")


class _Walk:
    """Sums of the children's gradients over micro-batches."""

    def __init__(
        self,
        model: MagicForMaskedLM,
        children: Sequence[Architecture],
        layer: int,
        parameters: Sequence[nn.Parameter],
        num_tokens: int,
        alignment: AlignmentTarget | None,
    ):
        self._model, self._children, self._layer = model, children, layer
        self._parameters, self._num_tokens, self._alignment = parameters, num_tokens, alignment
        size = sum(parameter.numel() for parameter in parameters)
        self.gradients = torch.zeros(len(children), size, device=model.device)
        self.losses = torch.zeros(len(children), device=model.device)
        self.num_forward = 0
        self.num_backward = 0

    def add(self, batch: _MicroBatch, share: float) -> None:
        """Adds a micro-batch, which is `share` of the alignment loss."""
        in_order = sorted(range(len(self._children)), key=lambda index: self._children[index])
        self._descend(batch, share, in_order, 0, batch.embedded, batch.embedded.new_zeros(()))

    def _descend(
        self, batch: _MicroBatch, share: float, group: Sequence[int], depth: int, states: Tensor, loss_align: Tensor
    ) -> None:
        """Runs the children of `group`, which are alike below `depth`, from their common states there."""
        if depth == len(self._children[0]):
            self._differentiate(batch, group[0], states, loss_align * share)
            return
        layer = self._model.magic.encoder.layer[depth]
        for operator, members in groupby(group, key=lambda index: self._children[index][depth]):
            above = layer(states, *batch.masks, operator=operator)
            loss = loss_align
            if (target := batch.targets.get(depth + 1)) is not None:
                loss = loss + alignment_loss([above], [target], batch.attention_mask)
            self.num_forward += 1
            self._descend(batch, share, list(members), depth + 1, above, loss)

    def _differentiate(self, batch: _MicroBatch, index: int, states: Tensor, loss_align: Tensor) -> None:
        logits = self._model.lm_head(states.flatten(0, 1)[batch.positions]).float()
        loss = nn.functional.cross_entropy(logits, batch.labels, reduction="sum") / self._num_tokens
        if self._alignment is not None:
            loss = loss + self._alignment.weight * loss_align
        # Other children go on from layers of this one's graph.
        gradients = torch.autograd.grad(loss, self._parameters, retain_graph=True)
        self.gradients[index] += torch.cat([gradient.flatten() for gradient in gradients]).float()
        self.losses[index] += loss.detach()
        self.num_backward += len(self._children[0]) - self._layer


# ---- Means over repeats ----


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats with its interval.

    Attributes:
        mean: of the repeats.
        low: lower end of the 95% interval, `None` with a single repeat.
        high: upper end.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Returns the mean of independent repeats with Student's t interval.

        Raises:
            ValueError: there is none, or one that is not finite.
        """
        numbers = np.asarray(values, dtype=float)
        if not numbers.size or not np.isfinite(numbers).all():
            raise ValueError(f"a mean of {list(values)} is none; every repeat must be a finite number")
        mean = float(numbers.mean())
        if numbers.size == 1:
            return cls(mean, None, None)
        half = student_t.ppf((1 + CONFIDENCE) / 2, numbers.size - 1) * numbers.std(ddof=1) / math.sqrt(numbers.size)
        return cls(mean, float(mean - half), float(mean + half))

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f}{interval}"


def mean_off_diagonal(cosines: np.ndarray) -> float:
    """Returns the mean over pairs of children: the interference of Fig. 2 (c). The diagonal, always 1, is left out."""
    return float(cosines[np.triu_indices(len(cosines), 1)].mean())


def by_kind(operators: Sequence[str], cosines: np.ndarray) -> dict[tuple[str, str], float]:
    """Returns the mean cosine over pairs of children by the kinds of their operators in the layer that differs.

    Kinds are sorted, as in `("CONV", "FFN")`; a pair of kinds that no two children have is left out.

    Args:
        operators: of the children, in the order of the matrix.
        cosines: the matrix of Fig. 2 (a).
    """
    kinds = [parse_operator(operator).kind for operator in operators]
    values: dict[tuple[str, str], list[float]] = {}
    for first, second in combinations(range(len(operators)), 2):
        low, high = sorted((kinds[first], kinds[second]))
        values.setdefault((low, high), []).append(float(cosines[first, second]))
    return {pair: math.fsum(own) / len(own) for pair, own in sorted(values.items())}


def same_and_other_kind(operators: Sequence[str], cosines: np.ndarray) -> tuple[float, float] | None:
    """Returns the mean cosine over pairs of one kind and over pairs of two kinds, `None` where one has no pair (3.2).

    Args:
        operators: of the children, in the order of the matrix.
        cosines: the matrix of Fig. 2 (a).
    """
    kinds = [parse_operator(operator).kind for operator in operators]
    same: list[float] = []
    other: list[float] = []
    for first, second in combinations(range(len(operators)), 2):
        (same if kinds[first] == kinds[second] else other).append(float(cosines[first, second]))
    if not same or not other:
        return None
    return math.fsum(same) / len(same), math.fsum(other) / len(other)
