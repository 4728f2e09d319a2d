"""Measures latency on the user's own device: a table of operators, and how well it predicts whole children.

A figure is the time of one call on `batch_size` sequences of `seq_len` tokens without padding, hence without an
attention mask. It is wall-clock time or, on a CUDA device, the time between two events in its stream. Ragged batches
are not covered; their latency depends on the lengths.

How the figures are measured:

- Everything is timed by `torch.utils.benchmark.Timer`, which warms up before each block, in rounds. Each round times
  one block of every workload, in shuffled order, and before each block one block of a constant reference workload.
  Drift and load of the machine therefore affect all workloads alike and become visible.
- An operator alone in a loop is faster than inside a child, where other operators have used the caches. Children of
  mixed operators are therefore timed as a whole, and the times of the operators are fitted to them. An operator that
  the children do not determine is assumed to be slower than alone by the same factor as the others.
- Other children, drawn uniformly, are timed in the same rounds and are not part of the fit. The table stores the error
  on them and reports it.
- SKIP takes no time and is not timed, because a child has no layer for it. Of children that differ only in the
  positions of SKIP, one is timed.
- Every child is extracted as it would be deployed. Small children are kept over the rounds; large ones are extracted
  anew in each round, so that only one is in memory at a time.
"""

import copy
import json
import math
import os
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
import transformers
from scipy.optimize import nnls
from scipy.stats import kendalltau, spearmanr
from torch import Tensor, nn

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicForPreTraining, MagicModel
from modeling_magic.configuration_magic import SKIP, without_skips
from modeling_magic.modeling_magic import MagicLayer, MagicPreTrainedModel

from ..files import from_json, write_json
from ..internals import attention_implementation
from ..tables import markdown_table
from .budgets import AdditiveCost
from .costs import count_parameters
from .search_space import Architecture, SearchSpace
from .timing import (
    Bench,
    Conditions,
    LatencySettings,
    Statement,
    Timing,
    bootstrap,
    device_from,
    device_name,
    timing_of,
)


VERSION = 1
MAX_HELD_OUT_ERROR = 0.10

_HEADS: dict[str, type[MagicPreTrainedModel]] = {
    "none": MagicModel,
    "mlm": MagicForMaskedLM,
    "rtd": MagicForPreTraining,
}
# The fields of a configuration that latency depends on, in addition to the operators.
_SIZES = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "vocab_size",
    "hidden_act",
    "lm_head_activation",
    "add_pooling_layer",
)
# The fields that only the masked-LM head uses: the embeddings look up rows, however many there are.
_SIZES_OF_THE_HEAD = ("vocab_size", "lm_head_activation")
_MIN_ROUNDS = 5
_MIN_ROUNDS_OF_ONE_CHILD = 30
_FITTED_CHILDREN_PER_OPERATOR = 3
# For all children together: half a gigabyte in float32.
_MAX_KEPT_PARAMETERS = 2**27
# Relative standard deviations that the fit assumes: for a child's measured time, and for the factor by which an
# operator is slower in a child than alone.
_CHILD_NOISE = 0.02
_FACTOR_SPREAD = 0.2

# A workload: its kind and the operators that it runs.
_Key = tuple[str, Architecture]
_Extract = Callable[[Architecture], MagicPreTrainedModel]


@dataclass(frozen=True)
class MeasuredChild:
    """The measurement of a whole child."""

    architecture: Architecture
    latency: Timing
    conditions: Conditions

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why the figure is unreliable; empty if it is reliable."""
        return self.conditions.warnings

    @property
    def trusted(self) -> bool:
        """Whether the conditions of the measurement raise no warning."""
        return not self.warnings


@dataclass(frozen=True)
class HeldOutChild:
    """A whole child that the table was not fitted to, with its predicted and measured latency."""

    architecture: Architecture
    predicted_ms: float
    measured: Timing

    @property
    def relative_error(self) -> float:
        """The predicted minus the measured latency, divided by the measured one."""
        return self.predicted_ms / self.measured.median_ms - 1


@dataclass(frozen=True)
class LatencyTable:
    """Latency of the operators of a space on one device, with the settings and conditions of the measurement.

    Attributes:
        settings: the workload and the method of the measurement.
        device_name: the name of the processor or the accelerator.
        attn_implementation: the attention function in use.
        torch_version: the version of torch.
        transformers_version: the version of transformers.
        sizes: the fields of the configuration that latency depends on.
        outside: the time of embeddings, masks, head and overhead, measured as a child without layers.
        operators: the time that each operator adds to a child, by name; 0 for SKIP if the space has it.
        held_out: whole children that the operators were not fitted to.
        conditions: the state of the machine during the measurement.
    """

    settings: LatencySettings
    device_name: str
    attn_implementation: str
    torch_version: str
    transformers_version: str
    sizes: Mapping[str, int | str | bool | None] = field(hash=False)
    outside: Timing
    operators: Mapping[str, Timing] = field(hash=False)
    held_out: tuple[HeldOutChild, ...]
    conditions: Conditions

    def __post_init__(self) -> None:
        if not self.held_out:
            raise ValueError("the table has no held-out child, so its accuracy cannot be judged")

    @property
    def median_error(self) -> float:
        """Median over the held-out children of the absolute relative error."""
        return float(np.median([abs(child.relative_error) for child in self.held_out]))

    @property
    def largest_error(self) -> float:
        """Largest absolute relative error of a held-out child."""
        return max(abs(child.relative_error) for child in self.held_out)

    @property
    def rank_correlations(self) -> tuple[float, float]:
        """Kendall's tau and Spearman's rho of predicted and measured latency; NaN for a single held-out child."""
        if len(self.held_out) < 2:
            return math.nan, math.nan
        predicted = [child.predicted_ms for child in self.held_out]
        measured = [child.measured.median_ms for child in self.held_out]
        return float(kendalltau(predicted, measured).statistic), float(spearmanr(predicted, measured).statistic)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why the figures are unreliable; empty if they are reliable."""
        if self.median_error <= MAX_HELD_OUT_ERROR:
            return self.conditions.warnings
        missed = f"the median error on whole children is {self.median_error:.0%}; up to {MAX_HELD_OUT_ERROR:.0%}"
        return (*self.conditions.warnings, f"{missed} is normal")

    @property
    def trusted(self) -> bool:
        """Whether neither the conditions of the measurement nor the held-out error raise a warning."""
        return not self.warnings

    def predict_ms(self, architecture: Sequence[str]) -> float:
        """The predicted latency of a child: `outside` plus the sum of its operators."""
        return self.cost()(architecture)

    def cost(self) -> AdditiveCost:
        """Latency as a cost, in milliseconds, stored in whole nanoseconds."""
        return _cost(self.outside, self.operators)

    def check(self, config: MagicConfig, vocabulary: bool = True) -> None:
        """Raise a ValueError that lists the differences between the measured model and a configuration.

        Args:
            config: the configuration whose children are to be judged.
            vocabulary: whether `config` already has the vocabulary of the text; if not, its size is not checked.
        """
        ignored = set() if self.settings.head == "mlm" else {*_SIZES_OF_THE_HEAD}
        ignored |= set() if vocabulary else {"vocab_size"}
        longest = self.sizes["num_hidden_layers"]
        if SKIP in self.operators and isinstance(longest, int) and len(config.candidate_operators) < longest:
            # Children of the measured space have fewer layers if they skip some.
            ignored.add("num_hidden_layers")
        differences = [
            f"{name} is {self.sizes[name]} in the table and {size} in the configuration"
            for name, size in _sizes(config).items()
            if size != self.sizes[name] and name not in ignored
        ]
        attention = attention_implementation(config)
        if attention is not None and attention != self.attn_implementation:
            differences.append(f"attention is {self.attn_implementation} in the table and {attention} in the model")
        missing = [
            name
            for name in SearchSpace.from_config(config.candidate_operators).operator_names
            if name not in self.operators
        ]
        if missing:
            differences.append(f"the table lacks {', '.join(missing)}")
        if differences:
            raise ValueError(
                f"the latency table does not fit: {'; '.join(differences)}; measure one for this configuration with "
                f"`magic-nas benchmark`"
            )

    def is_of_this_device(self) -> bool:
        """Whether this machine has the measured device, judged by its name."""
        try:
            return device_name(device_from(self.settings.device)) == self.device_name
        except ValueError:
            return False

    def measure_child(self, source: MagicConfig | MagicPreTrainedModel, architecture: Sequence[str]) -> MeasuredChild:
        """Measures one whole child with the settings of the table; see the function of the same name.

        Raises:
            ValueError: the table was measured on another device, or does not fit `source`.
        """
        self.check(source if isinstance(source, MagicConfig) else source.config)
        if not self.is_of_this_device():
            raise ValueError(
                f"the table was measured on {self.settings.device} ({self.device_name}), which is not available; "
                f"measure the child on that device with `magic-nas benchmark --architecture`"
            )
        return measure_child(source, architecture, self.settings)

    def beside(self, measured: MeasuredChild) -> str:
        """A sentence that compares predicted and measured, with a warning if the measurement is unreliable."""
        predicted = self.predict_ms(measured.architecture)
        error = predicted / measured.latency.median_ms - 1
        text = f"predicted {predicted:.3f} ms, measured {measured.latency}: the prediction is off by {error:+.1%}"
        return "\n".join([text, *_distrust(measured.warnings)])

    @property
    def held_out_text(self) -> str:
        """The held-out error in a sentence."""
        tau, rho = self.rank_correlations
        return (
            f"Held-out error over {len(self.held_out)} whole children: median {self.median_error:.1%}, "
            f"largest {self.largest_error:.1%}; Kendall's tau {tau:.2f}, Spearman's rho {rho:.2f}."
        )

    def summary(self) -> str:
        """The held-out error in one line, followed by the reasons why the table is unreliable, if any."""
        return "\n".join([self.held_out_text, *_distrust(self.warnings)])

    def __str__(self) -> str:
        return f"Latency of {self.settings} ({self.device_name}). {self.summary()}"

    def to_markdown(self) -> str:
        """The table as Markdown: operators, settings of the measurement, and the held-out error."""
        rows = [("outside the layers", self.outside), *self.operators.items()]
        cells = [(name, f"{row.median_ms:.3f}", f"{row.low_ms:.3f} to {row.high_ms:.3f}") for name, row in rows]
        lines = [
            markdown_table(("operator", "ms", "95% interval"), cells, align=" rr"),
            "",
            f"{self.settings}; {self.device_name}; attention {self.attn_implementation}; torch {self.torch_version}, "
            f"transformers {self.transformers_version}. A child takes the first row plus the sum of its operators.",
            "",
            self.summary(),
        ]
        return "\n".join(lines)

    def save(self, path: str | os.PathLike) -> None:
        """Write the table as a JSON file."""
        write_json(path, {"version": VERSION, **asdict(self)})

    @classmethod
    def load(cls, path: str | os.PathLike) -> "LatencyTable":
        """The table that `save` wrote.

        Raises:
            ValueError: there is no such file, or it is not a latency table of this version.
        """
        try:
            value = json.loads(Path(path).read_text(encoding="utf-8"))
            if not isinstance(value, dict) or value.pop("version", None) != VERSION:
                raise ValueError(f"it is not version {VERSION}")
            return from_json(cls, value, "the table")
        except (OSError, ValueError) as error:
            raise ValueError(
                f"{path} is not a usable latency table: {error}; measure one with `magic-nas benchmark`"
            ) from error


def measure_latency(
    config: MagicConfig,
    settings: LatencySettings | None = None,
    *,
    num_held_out: int = 20,
    progress: bool = True,
) -> LatencyTable:
    """Measures the operators of a space on this machine, and whole children to test the table on.

    Weights are random, since their values do not matter. The global random generators and torch's number of threads
    are left unchanged.

    Args:
        config: the configuration of the space; a single child is possible as well.
        settings: the workload and the method; by default one sequence of 128 tokens on one CPU thread.
        num_held_out: the number of whole children to test the table on; fewer if the space is smaller.
        progress: whether to show a progress bar.

    Raises:
        ValueError: the device is not available, the sequences are too long for the model, or only SKIP would be timed.
    """
    settings = settings or LatencySettings()
    if num_held_out < 1:
        raise ValueError(f"num_held_out is {num_held_out}; it must be at least 1")
    space, rng = SearchSpace.from_config(config.candidate_operators), random.Random(settings.seed)
    held_out = _distinct_chains(space.sample_distinct(num_held_out, rng))
    if not held_out:
        raise ValueError(
            f"the held-out children, {num_held_out} or fewer, are {SKIP} in every layer, so nothing can be timed; "
            f"hold out more, or give some layer another operator"
        )
    names = without_skips(space.operator_names)
    fitted = [_child_rich_in(name, space, held_out, rng) for name in names * _FITTED_CHILDREN_PER_OPERATOR]
    bench = Bench(settings, config)
    model = _random_model(config, settings)
    num_parameters = sum(count_parameters(config, child) for child in (*fitted, *held_out))
    extract = model.extract_child
    if num_parameters <= _MAX_KEPT_PARAMETERS:
        extract = cache(extract)
    samples = bench.run(_workloads(model, extract, bench.input_ids, fitted, held_out), _MIN_ROUNDS, progress)
    outside, timed = _fit(names, samples)
    operators = {name: timed.get(name, Timing(0.0, 0.0, 0.0)) for name in space.operator_names}
    cost = _cost(outside, operators)
    attention = attention_implementation(model.config)
    assert attention is not None
    return LatencyTable(
        settings=settings,
        device_name=device_name(bench.device),
        attn_implementation=attention,
        torch_version=torch.__version__,
        transformers_version=transformers.__version__,
        sizes=_sizes(config),
        outside=outside,
        operators=operators,
        held_out=tuple(HeldOutChild(child, cost(child), timing_of(samples["held out", child])) for child in held_out),
        conditions=bench.conditions(),
    )


def measure_child(
    source: MagicConfig | MagicPreTrainedModel,
    architecture: Sequence[str],
    settings: LatencySettings | None = None,
) -> MeasuredChild:
    """Measures one whole child, interleaved with the reference workload, as `measure_latency` does.

    Args:
        source: a configuration, for a child with random weights, or a model to extract the child from; the model is
            not moved.
        architecture: one operator name per layer.
        settings: the workload and the method; by default one sequence of 128 tokens on one CPU thread.

    Raises:
        ValueError: the device is not available, or the model lacks the requested head.
    """
    child, settings = tuple(architecture), settings or LatencySettings()
    if isinstance(source, MagicConfig):
        SearchSpace.from_config(source.candidate_operators).check(child)
        bench = Bench(settings, source)
        model = _random_model(source.child_config(child), settings)
    else:
        bench = Bench(settings, source.config)
        model = _with_head(source, settings.head).extract_child(child).eval()
        model = model.to(bench.device, getattr(torch, settings.dtype))
    call = partial(model, input_ids=bench.input_ids)
    samples = bench.run({("child", child): lambda: call}, _MIN_ROUNDS_OF_ONE_CHILD, progress=False)
    return MeasuredChild(child, timing_of(samples["child", child]), bench.conditions())


class _NoLayers(nn.Module):
    """Replaces the encoder, so that only the parts of a model outside its layers are left."""

    def forward(self, hidden_states: Tensor, *args: object, **kwargs: object) -> Tensor:
        return hidden_states


def _workloads(
    model: MagicPreTrainedModel,
    extract: _Extract,
    input_ids: Tensor,
    fitted: Sequence[Architecture],
    held_out: Sequence[Architecture],
) -> dict[_Key, Callable[[], Statement]]:
    """Factories of the calls to time: "outside", "alone" (one operator), "fitted" and "held out" (whole children)."""
    layers = [layer for layer in _encoder(model).encoder.layer if isinstance(layer, MagicLayer)]
    names = without_skips(SearchSpace.from_config(model.config.candidate_operators).operator_names)
    alone = {name: [layer for layer in layers if name in layer.operators] for name in names}
    return {
        ("outside", ()): partial(_outside, model, input_ids),
        **{
            ("alone", (name,) * len(alone[name])): partial(_chain, model, input_ids, name, alone[name])
            for name in alone
        },
        **{("fitted", child): partial(_extracted, extract, input_ids, child) for child in fitted},
        **{("held out", child): partial(_extracted, extract, input_ids, child) for child in held_out},
    }


def _outside(model: MagicPreTrainedModel, input_ids: Tensor) -> Statement:
    """A call of a model without layers."""
    # Any child with at least one layer will do.
    stem = model.extract_child([(*without_skips(layer), SKIP)[0] for layer in model.config.candidate_operators])
    _encoder(stem).encoder = _NoLayers()  # type: ignore[assignment]
    return partial(stem, input_ids=input_ids)


def _chain(model: MagicPreTrainedModel, input_ids: Tensor, name: str, layers: Sequence[MagicLayer]) -> Statement:
    """One operator in all layers that offer it, one after another."""
    encoder = _encoder(model)
    embeddings = encoder.embeddings(input_ids)
    mask, _ = encoder.attention_masks(embeddings, None)

    def chain() -> Tensor:
        hidden_states = embeddings
        for layer in layers:
            hidden_states = layer(hidden_states, mask, None, operator=name)
        return hidden_states

    return chain


def _extracted(extract: _Extract, input_ids: Tensor, child: Architecture) -> Statement:
    """A call of a child as it would be deployed."""
    return partial(extract(child), input_ids=input_ids)


def _fit(names: Sequence[str], samples: Mapping[_Key, Sequence[float]]) -> tuple[Timing, dict[str, Timing]]:
    """The time outside the layers and of each operator, with bootstrap intervals over the rounds."""

    def solve(seconds: np.ndarray) -> np.ndarray:
        medians = dict(zip(samples, np.median(seconds, axis=1), strict=True))
        return np.array([medians["outside", ()], *_operator_seconds(names, medians)])

    timings = bootstrap(np.array(list(samples.values())), solve)
    return timings[0], dict(zip(names, timings[1:], strict=True))


def _operator_seconds(names: Sequence[str], medians: Mapping[_Key, float]) -> np.ndarray:
    """Seconds of each operator in a child.

    Let r be the ratio of an operator's time in a child to its time alone, and m the mean of these factors. The fit is
    a non-negative least-squares fit of two kinds of errors: the relative errors of the fitted children, and r - m for
    each operator.
    """
    alone = {key[0]: seconds / len(key) for (kind, key), seconds in medians.items() if kind == "alone"}
    per_operator = np.array([alone[name] for name in names])
    children = [(child, seconds) for (kind, child), seconds in medians.items() if kind == "fitted"]
    counts = np.array([[child.count(name) for name in names] for child, _ in children])
    totals = np.array([seconds for _, seconds in children])
    of_children = np.c_[counts * per_operator / totals[:, None], np.zeros(len(totals))] / _CHILD_NOISE
    of_factors = np.c_[np.eye(len(names)), -np.ones(len(names))] / _FACTOR_SPREAD
    targets = (1 - medians["outside", ()] / totals) / _CHILD_NOISE
    factors, _ = nnls(np.r_[of_children, of_factors], np.r_[targets, np.zeros(len(names))])
    return factors[:-1] * per_operator


def _distinct_chains(children: Sequence[Architecture]) -> list[Architecture]:
    """The first child of each group that is equal without SKIPs; children that are SKIP throughout are dropped."""
    chains: dict[Architecture, Architecture] = {}
    for child in children:
        chains.setdefault(without_skips(child), child)
    chains.pop((), None)
    return list(chains.values())


def _child_rich_in(name: str, space: SearchSpace, others: Sequence[Architecture], rng: random.Random) -> Architecture:
    """A child with the operator in just over a third of the layers, as far as they offer it; not in `others`."""
    known = set(map(without_skips, others))
    offering = [layer for layer, candidates in enumerate(space.candidates) if name in candidates]

    def draw() -> Architecture:
        chosen = rng.sample(offering, min(len(offering), space.num_layers // 3 + 1))
        return tuple(
            name if layer in chosen else rng.choice([other for other in candidates if other != name] or candidates)
            for layer, candidates in enumerate(space.candidates)
        )

    draws = [draw() for _ in range(20)]
    # A space with few children may not have another one.
    return next((child for child in draws if without_skips(child) not in known), draws[0])


def _random_model(config: MagicConfig, settings: LatencySettings) -> MagicPreTrainedModel:
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed, which seeds the generators of all devices.
        torch.default_generator.manual_seed(settings.seed)
        model = _HEADS[settings.head](copy.deepcopy(config))
    return model.eval().to(device_from(settings.device), getattr(torch, settings.dtype))


def _encoder(model: MagicPreTrainedModel) -> MagicModel:
    encoder = model.base_model
    assert isinstance(encoder, MagicModel)
    return encoder


def _with_head(model: MagicPreTrainedModel, head: str) -> MagicPreTrainedModel:
    """The model, or its encoder if no head is requested."""
    if head == "none":
        return _encoder(model)
    if not isinstance(model, _HEADS[head]):
        raise ValueError(
            f"the head {head!r} needs a {_HEADS[head].__name__}, but the model is a {type(model).__name__}; pass the "
            f"model's configuration, or measure with head='none'"
        )
    return model


def _sizes(config: MagicConfig) -> dict[str, int | str | bool | None]:
    """The fields of a configuration that latency depends on, in addition to the operators."""
    return {
        "embedding_size": config.embedding_size or config.hidden_size,
        **{name: getattr(config, name) for name in _SIZES},
    }


def _cost(outside: Timing, operators: Mapping[str, Timing]) -> AdditiveCost:
    nanoseconds = {name: round(1e6 * timing.median_ms) for name, timing in operators.items()}
    return AdditiveCost("latency_ms", round(1e6 * outside.median_ms), nanoseconds, unit=1e-6)


def _distrust(warnings: Sequence[str]) -> list[str]:
    return [f"UNRELIABLE: {'; '.join(warnings)}."] if warnings else []
