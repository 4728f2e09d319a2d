"""The health of a super-net in training: how often and how strongly operators are trained, and how children fare.

Weight sharing can fail in ways that a falling loss hides: an operator that the sampler rarely draws, one that gets no
gradient, or children that get worse while others improve. `SupernetHealth` keeps the figures that show this, warns
about starved operators, and is saved in every checkpoint.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from scipy.special import pdtr
from torch import Tensor, nn

from ..internals import l2_norms
from ..space.search_space import Architecture, SearchSpace
from .journal import RankedChild
from .shrinking import Operator


logger = logging.getLogger(__name__)

LOOK_EVERY = 100
"""Steps between checks for starved operators; a check also fetches the gradient norms from the device."""
FALSE_ALARM_RATE = 1e-4
"""Probability that a check reports some operator as starved when it has half of its fair share."""
ALARM_AFTER = 10
"""Consecutive trainings of an operator without a gradient, or without a finite one, before a warning."""
STARVED, ZERO_GRADIENT, NOT_FINITE = "starved", "zero gradient", "gradient not finite"
_ADVICE = {
    STARVED: "far fewer than under uniform sampling; sampler=fair trains all operators of a layer equally often",
    ZERO_GRADIENT: f"in {ALARM_AFTER} consecutive trainings; their weights may be frozen",
    NOT_FINITE: f"in {ALARM_AFTER} consecutive trainings; set a lower learning_rate, or train in bf16 or float32",
}


def starved_operators(
    space: SearchSpace,
    visits: Sequence[Mapping[str, int]],
    fair_visits: Sequence[Mapping[str, float]],
    changes: Sequence[int],
) -> list[Operator]:
    """Returns the operators of `space` that were trained significantly less than half as often as is fair.

    The fair number is the one that uniform sampling gives every operator of a layer. The visits of an operator with
    half of it have a Poisson spread, or a wider one if the sampler stays on an operator for several steps
    (`visit_spread`). An operator is starved if so few visits are less likely than `FALSE_ALARM_RATE` divided among
    all operators of the space. Short runs therefore raise no alarm, and none of the four samplers does; the sandwich
    sampler, which draws the operators between the costliest and the cheapest half as often as is fair, is just at the
    limit.

    Args:
        space: the operators that are left.
        visits: for each layer, how often each operator was trained, including operators that shrinking has deleted.
        fair_visits: for each layer, the expected number of visits under uniform sampling.
        changes: for each layer, the number of steps at which its operator differed from that of the previous step.
    """
    starved: list[Operator] = []
    for layer, candidates in enumerate(space.candidates):
        mean_stay = sum(visits[layer].values()) / (changes[layer] + 1)
        spread = visit_spread(mean_stay, len(visits[layer]))
        for operator in candidates:
            count, least = visits[layer][operator], fair_visits[layer][operator] / 2
            if count < least and pdtr(count // spread, least / spread) < FALSE_ALARM_RATE / space.num_operators:
                starved.append((layer, operator))
    return starved


def visit_spread(mean_stay: float, num_operators: int) -> float:
    """Returns the factor, at least 1, by which the number of visits varies more than under independent draws.

    It is exact in the long run for a walk that leaves an operator with the same probability at every step and moves
    to each other operator with equal probability, as MAGIC-T does in each layer: the indicator of an operator has the
    autocorrelation rho^t with rho = 1 - C / (s (C - 1)), and the factor is
    (1 + rho) / (1 - rho) = 2 s (C - 1) / C - 1.

    Args:
        mean_stay: s, the mean number of steps that the sampler stays on an operator of the layer.
        num_operators: C, the number of operators of the layer.
    """
    return max(1.0, 2 * mean_stay * (num_operators - 1) / num_operators - 1)


@dataclass
class GradientNorm:
    """The L2 norms of one operator's gradients, over the steps that trained it.

    Attributes:
        steps: number of steps with a finite norm, including zero.
        mean: mean of the finite norms.
        latest: the last finite norm, `None` before the first.
        not_finite: number of steps whose gradients were not finite; mixed precision skips them.
        zero_in_a_row: number of trainings without a gradient since the last one that had one.
        not_finite_in_a_row: number of trainings without a finite norm since the last one that had one.
    """

    steps: int = 0
    mean: float = 0.0
    latest: float | None = None
    not_finite: int = 0
    zero_in_a_row: int = 0
    not_finite_in_a_row: int = 0

    def add(self, norm: float) -> None:
        """Adds the norm of one more step."""
        if not math.isfinite(norm):
            self.not_finite += 1
            self.not_finite_in_a_row += 1
            return
        self.steps += 1
        self.mean += (norm - self.mean) / self.steps
        self.latest = norm
        self.not_finite_in_a_row = 0
        self.zero_in_a_row = self.zero_in_a_row + 1 if norm == 0 else 0

    def complaint(self) -> str | None:
        """Returns what is wrong with the gradients, or `None`."""
        if self.zero_in_a_row >= ALARM_AFTER:
            return ZERO_GRADIENT
        if self.not_finite_in_a_row >= ALARM_AFTER:
            return NOT_FINITE
        return None


@dataclass(frozen=True)
class _Waiting:
    """The norms of one step's gradients, still on the device: one per parameter, then the total."""

    step: int
    architecture: Architecture
    # The number of gradients of each layer's operator; `None` if it has no weights.
    sizes: list[int | None]
    norms: Tensor
    max_grad_norm: float

    def by_operator(self, values: Sequence[float]) -> list[float | None]:
        """Returns the norm of each layer's operator before clipping, `None` if it has no weights.

        Args:
            values: `norms` on the host.
        """
        total = values[-1]
        if not math.isfinite(total):
            return [None if size is None else math.nan for size in self.sizes]
        # Inverts the scaling of torch.nn.utils.clip_grad_norm_.
        scale = max(1.0, (total + 1e-6) / self.max_grad_norm) if self.max_grad_norm > 0 else 1.0
        norms: list[float | None] = []
        start = 0
        for size in self.sizes:
            norms.append(None if size is None else scale * math.hypot(*values[start : start + size]))
            start += size or 0
        return norms


@dataclass
class Probe:
    """A fixed child, the steps after which it was validated, and its losses then (`None` if not finite)."""

    architecture: Architecture
    steps: list[int] = field(default_factory=list)
    val_losses: list[float | None] = field(default_factory=list)


class SupernetHealth:
    """Figures from a super-net's training that show its health.

    Attributes:
        visits: for each layer, how often each operator was trained.
        fair_visits: for each layer, the expected number of visits under uniform sampling while each operator was left.
        changes: for each layer, the number of steps at which its operator differed from that of the previous step.
        distances: for each distance, from 0 to the number of layers, the number of consecutive pairs of children at
            that distance.
        gradient_norms: for each layer, the gradient norms of each operator.
        probes: the children whose validation loss is tracked.
        warnings: one entry for each warning about an operator, with the problem and the step.

    Args:
        space: the whole space of the super-net.
        probe_children: the children to track, drawn from the whole space.
        kind_of: returns the name under which the gradient norms of an operator are logged; its own name by default.
    """

    def __init__(
        self, space: SearchSpace, probe_children: Sequence[Architecture] = (), kind_of: Callable[[str], str] = str
    ):
        self.visits = [dict.fromkeys(layer, 0) for layer in space.candidates]
        self.fair_visits = [dict.fromkeys(layer, 0.0) for layer in space.candidates]
        self.changes = [0] * space.num_layers
        self.distances = [0] * (space.num_layers + 1)
        self.gradient_norms = [{operator: GradientNorm() for operator in layer} for layer in space.candidates]
        self.probes = [Probe(child) for child in dict.fromkeys(probe_children)]
        self.warnings: list[dict[str, Any]] = []
        self._kind_of = kind_of
        self._waiting: list[_Waiting] = []
        # For each kind of operator, the sum and number of the norms since the last log.
        self._logged_norms: dict[str, tuple[float, int]] = {}

    # ---- At each step ----

    def add_child(self, architecture: Architecture, previous: Architecture, space: SearchSpace) -> int:
        """Counts the child of a step and returns the number of layers in which it differs from the previous child.

        Args:
            architecture: the child.
            previous: the child of the previous step; empty at the first step.
            space: the space that shrinking has left, from which the child was drawn.
        """
        for layer, (operator, candidates) in enumerate(zip(architecture, space.candidates, strict=True)):
            self.visits[layer][operator] += 1
            for candidate in candidates:
                self.fair_visits[layer][candidate] += 1 / len(candidates)
        if not previous:
            return 0
        changed = [layer for layer, operator in enumerate(architecture) if operator != previous[layer]]
        for layer in changed:
            self.changes[layer] += 1
        self.distances[len(changed)] += 1
        return len(changed)

    def add_gradients(
        self,
        step: int,
        architecture: Architecture,
        parameters: Sequence[Sequence[nn.Parameter]],
        total_norm: Tensor,
        max_grad_norm: float,
    ) -> None:
        """Takes the norm of each operator's gradients, after clipping and before the optimizer step.

        This does not wait for the device. The recorded norms are those before clipping: the norms of the clipped
        gradients, scaled back.

        Args:
            step: number of the step, from 1.
            architecture: the child of the step.
            parameters: the parameters of each layer's operator.
            total_norm: norm of all gradients of the model before clipping.
            max_grad_norm: the norm to which gradients were clipped; 0 if they were not.
        """
        gradients = [[weight.grad for weight in layer if weight.grad is not None] for layer in parameters]
        flat = [gradient for layer in gradients for gradient in layer]
        norms = torch.stack([*l2_norms(flat), total_norm.float()])
        sizes = [len(own) if layer else None for layer, own in zip(parameters, gradients, strict=True)]
        self._waiting.append(_Waiting(step, architecture, sizes, norms, max_grad_norm))

    def _settle(self) -> None:
        """Moves the waiting norms to the host in one transfer and counts them."""
        if not self._waiting:
            return
        num_known = len(self.warnings)
        values = torch.cat([waiting.norms for waiting in self._waiting]).tolist()
        start = 0
        for waiting in self._waiting:
            end = start + len(waiting.norms)
            self._count_norms(waiting.step, waiting.architecture, waiting.by_operator(values[start:end]))
            start = end
        self._waiting = []
        self._log_warnings(self.warnings[num_known:])

    def _count_norms(self, step: int, architecture: Architecture, norms: Sequence[float | None]) -> None:
        for layer, (operator, norm) in enumerate(zip(architecture, norms, strict=True)):
            if norm is None:
                continue
            own = self.gradient_norms[layer][operator]
            own.add(norm)
            if math.isfinite(norm):
                kind = self._kind_of(operator)
                total, number = self._logged_norms.get(kind, (0.0, 0))
                self._logged_norms[kind] = (total + norm, number + 1)
            if (complaint := own.complaint()) is not None:
                self._add_warning(step, layer, operator, complaint)

    # ---- Now and then ----

    def look(self, step: int, space: SearchSpace) -> None:
        """Warns about starved operators, once for each.

        Args:
            step: number of steps done.
            space: the space that shrinking has left.
        """
        self._settle()
        num_known = len(self.warnings)
        for layer, operator in starved_operators(space, self.visits, self.fair_visits, self.changes):
            self._add_warning(step, layer, operator, STARVED)
        self._log_warnings(self.warnings[num_known:])

    def _add_warning(self, step: int, layer: int, operator: str, problem: str) -> None:
        known = {(entry["layer"], entry["operator"], entry["problem"]) for entry in self.warnings}
        if (layer, operator, problem) not in known:
            self.warnings.append({"step": step, "layer": layer, "operator": operator, "problem": problem})

    def _log_warnings(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Logs one line for each problem, since a diverged run has the problem everywhere."""
        for problem, advice in _ADVICE.items():
            own = [entry for entry in entries if entry["problem"] == problem]
            names = [f"{entry['operator']} in layer {entry['layer']}" for entry in own]
            visits = [self.visits[entry["layer"]][entry["operator"]] for entry in own]
            if own:
                listed = ", ".join(f"{name} ({count} visits)" for name, count in zip(names, visits, strict=True))
                logger.warning(f"step {own[-1]['step']}: {problem}: {listed}; {advice}")

    def probes_in(self, space: SearchSpace) -> list[Architecture]:
        """Returns the probe children that shrinking has left.

        A child that lost an operator is no longer tracked: part of its weights would be frozen while the rest is
        trained further.
        """
        return [probe.architecture for probe in self.probes if probe.architecture in space]

    def add_probes(self, step: int, ranked: Sequence[RankedChild]) -> None:
        """Records the validation losses of probe children after a step."""
        losses = {child.architecture: child.val_loss for child in ranked}
        for probe in self.probes:
            if (loss := losses.get(probe.architecture)) is not None:
                probe.steps.append(step)
                probe.val_losses.append(loss if math.isfinite(loss) else None)

    def scalars(self, space: SearchSpace) -> dict[str, float]:
        """Returns figures for the log; those of gradient norms cover the steps since the last call.

        Args:
            space: the space that shrinking has left.
        """
        self._settle()
        shares = [
            self.visits[layer][operator] / self.fair_visits[layer][operator]
            for layer, candidates in enumerate(space.candidates)
            for operator in candidates
            if self.fair_visits[layer][operator]
        ]
        figures = {"min_visit_share": min(shares)} if shares else {}
        figures |= {f"grad_norm_{kind}": total / number for kind, (total, number) in self._logged_norms.items()}
        self._logged_norms = {}
        latest = [probe.val_losses[-1] for probe in self.probes if probe.val_losses and probe.architecture in space]
        if losses := [loss for loss in latest if loss is not None]:
            figures |= {"probe_loss_mean": math.fsum(losses) / len(losses), "probe_loss_max": max(losses)}
        return figures

    # ---- Checkpoints and results ----

    def norms_since_log(self) -> dict[str, tuple[float, int]]:
        """Returns, for each kind of operator, the sum and number of the norms since the last call of `scalars`."""
        self._settle()
        return dict(self._logged_norms)

    def load_norms_since_log(self, norms: Mapping[str, Sequence[float]]) -> None:
        """Restores what `norms_since_log` returned."""
        self._logged_norms = {kind: (total, int(number)) for kind, (total, number) in norms.items()}

    def to_json(self) -> dict[str, Any]:
        """Returns all figures as JSON, for checkpoints and for `supernet.figures.draw_health`."""
        self._settle()
        return {
            "visits": [dict(layer) for layer in self.visits],
            "fair_visits": [dict(layer) for layer in self.fair_visits],
            "changes": list(self.changes),
            "distances": list(self.distances),
            "gradient_norms": [
                {operator: asdict(norm) for operator, norm in layer.items()} for layer in self.gradient_norms
            ],
            "probes": [asdict(probe) for probe in self.probes],
            "warnings": [dict(entry) for entry in self.warnings],
        }

    @classmethod
    def from_json(
        cls, space: SearchSpace, record: dict[str, Any], kind_of: Callable[[str], str] = str
    ) -> "SupernetHealth":
        """Returns the health that `to_json` wrote.

        Args:
            space: the whole space of the super-net.
            record: as `to_json` returned it.
            kind_of: see `SupernetHealth`.
        """
        health = cls(space, kind_of=kind_of)
        health.visits = [dict(layer) for layer in record["visits"]]
        health.fair_visits = [dict(layer) for layer in record["fair_visits"]]
        health.changes = list(record["changes"])
        health.distances = list(record["distances"])
        health.gradient_norms = [
            {operator: GradientNorm(**norm) for operator, norm in layer.items()} for layer in record["gradient_norms"]
        ]
        health.probes = [
            Probe(tuple(probe["architecture"]), list(probe["steps"]), list(probe["val_losses"]))
            for probe in record["probes"]
        ]
        health.warnings = list(record["warnings"])
        return health
