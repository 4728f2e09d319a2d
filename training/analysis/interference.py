"""Interference between children (section 3): gradients of an operator that they share, and the cosines between them.

The weights are frozen and all children see the same batch, so only the child differs. Cosines are means over repeats,
and each repeat has its own children, operator and batch. Repeats are independent, and intervals are Student's t
intervals for their mean. They are not clipped at 1.
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
    """Returns the layers in which children that share `shared_layer` may differ, in their order of use.

    Children that differ in m layers differ in the first m of these: `first` and the layers above it, as in Fig. 2 (c),
    then the layers below it, downwards. Layers with a single operator are skipped.

    Args:
        space: the search space of the children.
        shared_layer: the layer of o_g, counted from 0.
        first: the first layer to differ. Default: the layer above o_g, as in Fig. 1, or the one below it if o_g is in
            the top layer.

    Raises:
        ValueError: a layer does not exist, `first` is the shared layer or has a single operator, or no layer can
            differ.
    """
    num_layers, is_given = space.num_layers, first is not None
    if num_layers == 1:
        raise ValueError("the super-net has only one layer: two children that share its operator are the same")
    if first is None:
        first = shared_layer + 1 if shared_layer + 1 < num_layers else shared_layer - 1
    for name, layer in (("shared_layer", shared_layer), ("first_differing_layer", first)):
        if not 0 <= layer < num_layers:
            raise ValueError(f"{name} is {layer}; the super-net has the layers 0 to {num_layers - 1}")
    if first == shared_layer:
        raise ValueError(
            f"children that differ in layer {first} do not share its operator; set first_differing_layer to a layer "
            f"other than shared_layer"
        )
    if is_given and len(space.candidates[first]) < 2:
        raise ValueError(
            f"layer {first} has only one operator, {space.candidates[first][0]}; set first_differing_layer to a layer "
            f"that has a choice"
        )
    order = [*range(first, num_layers), *range(first - 1, -1, -1)]
    layers = [layer for layer in order if layer != shared_layer and len(space.candidates[layer]) > 1]
    if not layers:
        raise ValueError(
            f"no layer other than {shared_layer} has a choice of operators, so no two different children share it"
        )
    return layers


class ChildFamily:
    """Children that share o_g and differ from one another in m layers only: the paths of Fig. 1.

    Any two of them differ in each of the m layers. The children for different m are nested: with a larger m, the
    layers that already differed keep their operators.

    Args:
        space: the search space of the children.
        shared_layer: the layer of o_g.
        layers: the layers in which children may differ, see `layers_that_differ`.
        rng: draws the operators of the layers that all children share, and assigns the others to the children.
        operator: o_g. Default: it is drawn.

    Raises:
        ValueError: the shared layer does not have this operator.
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
        # Child i has candidate i in the first layer, so the matrix of Fig. 2 (a) is indexed by operator.
        self._choices = [
            list(space.candidates[layer])
            if index == 0
            else rng.sample(space.candidates[layer], len(space.candidates[layer]))
            for index, layer in enumerate(layers)
        ]

    def children(self, num_differing_layers: int) -> list[Architecture]:
        """Returns as many children as the first m layers allow: the smallest number of candidates, at least two.

        Args:
            num_differing_layers: m, from 1 to the number of layers that may differ.

        Raises:
            ValueError: m is out of range.
        """
        if not 1 <= num_differing_layers <= len(self._layers):
            raise ValueError(
                f"num_differing_layers is {num_differing_layers}; it must be from 1 to {len(self._layers)}, the "
                f"number of layers that may differ"
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
    """The target of the alignment in Eq. (2).

    Attributes:
        children: the anchor alone (section 4), or several children whose hidden states are averaged (3.2).
        weight: lambda.
        every_n_layers: n. Layers n, 2n, 3n, ... are aligned, counted from 1.
    """

    children: tuple[Architecture, ...]
    weight: float = 0.5
    every_n_layers: int = 4


@dataclass(frozen=True)
class OperatorGradients:
    """The gradients of one shared operator in several children, and their cost.

    Attributes:
        gradients: a float32 tensor of shape (children, parameters of the operator), flattened in the order of the
            operator's parameters.
        losses: each child's loss of Eq. (2), or its prediction loss without alignment.
        num_forward_layers: number of operators that were run, each over the whole batch, not counting those for the
            alignment targets.
        num_backward_layers: number of operators that were differentiated. None of them is below the shared operator.
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
        ValueError: a row is zero or not finite, and so has no direction.
    """
    rows = gradients.detach().double()
    norms = rows.norm(dim=1, keepdim=True)
    for index, norm in enumerate(norms.flatten().tolist()):
        if norm == 0 or not math.isfinite(norm):
            problem = "is zero" if norm == 0 else "is not finite"
            raise ValueError(
                f"the gradient of child {index} {problem}, so its cosine with others is undefined; measure another "
                f"operator, or use a super-net that has not diverged"
            )
    rows = rows / norms
    cosines = (rows @ rows.T).cpu().numpy()
    cosines = (cosines + cosines.T) / 2
    np.fill_diagonal(cosines, 1.0)
    return cosines


@contextmanager
def _frozen_but(model: MagicForMaskedLM, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """Turns off dropout and all gradients but those of `parameters`; restores the model on exit."""
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
    """A part of the batch, prepared for the layers and the loss. All children share it."""

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
            # `target_states` leaves the encoder in training mode, as the trainer's step needs it.
            encoder.eval()
            targets = dict(zip(layers, average_states(states) if len(states) > 1 else states[0], strict=True))
        masks = encoder.attention_masks(embedded, attention_mask)
        return cls(embedded, masks, attention_mask, positions, labels[positions], targets)


class GradientMeter:
    """Computes gradients of shared operators in children of a super-net, all with the same batch and weights.

    Children are visited in the order of their prefixes: the bottom layers that several children share are run once.
    Nothing below the shared operator is differentiated. Above it, only hidden states are and no weight gets a
    gradient, which saves about half of a backward pass. Neither weights nor their `grad` are changed.

    Args:
        model: a super-net. No dropout is applied, whatever mode it is in.
        batches: the micro-batches of one batch, with `labels` that are -100 where nothing is predicted. The prediction
            loss is the mean over the masked tokens of all micro-batches. The alignment loss is the mean over the
            micro-batches, as in training with gradient accumulation.
        alignment: the target of the alignment. Default: the loss is the prediction loss alone.

    Raises:
        ValueError: the model is not a super-net, there is nothing to predict, or the alignment does not fit the
            layers.

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
            raise ValueError("the batch has no masked token to predict; use more text or mask more tokens")
        if alignment is not None:
            check_alignment(model, alignment)
        self._alignment = alignment
        with torch.no_grad(), _frozen_but(model, ()):
            self._micro_batches = [_MicroBatch.of(model, batch, alignment) for batch in batches]

    def gradients(self, children: Sequence[Sequence[str]], layer: int) -> OperatorGradients:
        """Returns the gradients of the operator that the children share in `layer`.

        Args:
            children: at least two different children.
            layer: the layer of o_g, counted from 0.

        Raises:
            ValueError: there are fewer than two children, one is given twice, one does not fit the model, they do not
                share the operator, or a loss is not finite.
        """
        chains = [tuple(child) for child in children]
        operator = self._shared_operator(chains, layer)
        parameters = list(self._model.get_submodule(f"magic.encoder.layer.{layer}.operators.{operator}").parameters())
        walk = _Walk(self._model, chains, layer, parameters, self._num_tokens, self._alignment)
        # Nothing below the shared operator requires a gradient, so no graph is built there.
        with torch.enable_grad(), _frozen_but(self._model, parameters):
            for micro_batch in self._micro_batches:
                walk.add(micro_batch, 1 / len(self._micro_batches))
        losses = walk.losses.tolist()
        for child, loss in zip(chains, losses, strict=True):
            if not math.isfinite(loss):
                raise ValueError(
                    f"the loss of the child {format_architecture(child)} is {loss}; its gradient is meaningless. Use "
                    f"a super-net that has not diverged, such as an earlier checkpoint"
                )
        num_passes = len(self._micro_batches)
        return OperatorGradients(
            walk.gradients, tuple(losses), walk.num_forward // num_passes, walk.num_backward // num_passes
        )

    def _shared_operator(self, children: Sequence[Architecture], layer: int) -> str:
        if len(children) < 2:
            raise ValueError(f"got {len(children)} children; interference is measured between at least two")
        for child in children:
            self._model.resolve_architecture(child)
        for index, child in enumerate(children):
            if child in children[:index]:
                raise ValueError(f"the child {format_architecture(child)} is given twice; give each once")
        if not 0 <= layer < len(children[0]):
            raise ValueError(f"layer is {layer}; the super-net has the layers 0 to {len(children[0]) - 1}")
        operators = sorted({child[layer] for child in children})
        if len(operators) > 1:
            raise ValueError(
                f"the children differ in layer {layer} ({', '.join(operators)}) and share no operator there; measure "
                f"a layer in which they have the same operator"
            )
        return operators[0]


def check_supernet(model: object) -> None:
    """Raises a ValueError if the model is not a super-net; only a super-net's children share weights."""
    if not isinstance(model, MagicForMaskedLM):
        raise ValueError(
            f"a {type(model).__name__} is not a super-net; pass the MagicForMaskedLM that `magic-nas pretrain` trains"
        )
    if not model.config.is_supernet:
        raise ValueError(
            "the model holds one child and shares no weights; pass a super-net, as trained by `magic-nas pretrain`"
        )


def check_alignment(model: MagicForMaskedLM, alignment: AlignmentTarget) -> None:
    """Raises a ValueError if an alignment does not fit the super-net's layers and operators."""
    if not alignment.children:
        raise ValueError("there is no child to align to; give the anchor, or several children to average")
    for child in alignment.children:
        model.resolve_architecture(child)
    num_layers = len(model.config.candidate_operators)
    if not 1 <= alignment.every_n_layers <= num_layers:
        raise ValueError(
            f"alignment_every_n_layers is {alignment.every_n_layers}; it must be from 1 to {num_layers}, the number "
            f"of layers"
        )
    if not 0 <= alignment.weight < math.inf:
        raise ValueError(f"alignment_weight is {alignment.weight}; it must be finite and at least 0")


class _Walk:
    """Sums the children's gradients over micro-batches."""

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
        """Adds a micro-batch, whose alignment loss is weighted by `share`."""
        in_order = sorted(range(len(self._children)), key=lambda index: self._children[index])
        self._descend(batch, share, in_order, 0, batch.embedded, batch.embedded.new_zeros(()))

    def _descend(
        self, batch: _MicroBatch, share: float, group: Sequence[int], depth: int, states: Tensor, loss_align: Tensor
    ) -> None:
        """Runs the children of `group` upwards from `depth`. Below it they are alike and have the same `states`."""
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
        # Other children continue from layers in this child's graph.
        gradients = torch.autograd.grad(loss, self._parameters, retain_graph=True)
        self.gradients[index] += torch.cat([gradient.flatten() for gradient in gradients]).float()
        self.losses[index] += loss.detach()
        self.num_backward += len(self._children[0]) - self._layer


# ---- Means over repeats ----


@dataclass(frozen=True)
class Estimate:
    """A mean over repeats with its interval.

    Attributes:
        mean: the mean of the repeats.
        low: lower end of the 95% interval, `None` with a single repeat.
        high: upper end of the interval, `None` with a single repeat.
    """

    mean: float
    low: float | None
    high: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Self:
        """Returns the mean of independent repeats with Student's t interval.

        Raises:
            ValueError: there are no values, or one is not finite.
        """
        numbers = np.asarray(values, dtype=float)
        if not numbers.size or not np.isfinite(numbers).all():
            raise ValueError(f"{list(values)} has no mean; there must be at least one value, and all must be finite")
        mean = float(numbers.mean())
        if numbers.size == 1:
            return cls(mean, None, None)
        half = student_t.ppf((1 + CONFIDENCE) / 2, numbers.size - 1) * numbers.std(ddof=1) / math.sqrt(numbers.size)
        return cls(mean, float(mean - half), float(mean + half))

    def __str__(self) -> str:
        interval = "" if self.low is None else f" ({self.low:.3f} to {self.high:.3f})"
        return f"{self.mean:.3f}{interval}"


def mean_off_diagonal(cosines: np.ndarray) -> float:
    """Returns the mean over pairs of different children, without the diagonal: the interference of Fig. 2 (c)."""
    return float(cosines[np.triu_indices(len(cosines), 1)].mean())


def by_kind(operators: Sequence[str], cosines: np.ndarray) -> dict[tuple[str, str], float]:
    """Returns the mean cosine over pairs of children by the kinds of their operators in the layer that differs.

    The kinds of a pair are sorted, as in `("CONV", "FFN")`. Pairs of kinds that no two children have are omitted.

    Args:
        operators: the children's operators in the layer that differs, in the order of the matrix.
        cosines: the matrix of Fig. 2 (a).
    """
    kinds = [parse_operator(operator).kind for operator in operators]
    values: dict[tuple[str, str], list[float]] = {}
    for first, second in combinations(range(len(operators)), 2):
        low, high = sorted((kinds[first], kinds[second]))
        values.setdefault((low, high), []).append(float(cosines[first, second]))
    return {pair: math.fsum(own) / len(own) for pair, own in sorted(values.items())}


def same_and_other_kind(operators: Sequence[str], cosines: np.ndarray) -> tuple[float, float] | None:
    """Returns the mean cosine over pairs of the same kind and of different kinds (3.2), `None` if either has no pair.

    Args:
        operators: the children's operators in the layer that differs, in the order of the matrix.
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
