"""The latency of several models side by side, on the same batches of real text.

Each round runs every model over all batches, in random order, together with a constant reference workload (see
`training.space.timing`). The ratio of two models is taken within each round, so what slows a round down affects both.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..hub.onnx_export import OnnxModel
from ..space.settings import LatencySettings
from ..space.timing import Bench, Conditions, Statement, Timing, bootstrap


PADDED, UNPADDED = "padded", "unpadded"

Batch = Mapping[str, Tensor]
Model = Callable[..., Any]


@dataclass(frozen=True)
class Ratio:
    """The ratio of two latencies: its median over the rounds and the 95% bootstrap interval of that median."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.3f} ({self.low:.3f} to {self.high:.3f})"


@dataclass(frozen=True)
class MeasuredModels:
    """The measurements of models, by their names.

    Attributes:
        padded: time of a batch that is padded to its longest sequence, the mean over the batches.
        unpadded: time of the same batches when only real tokens are computed; models without this mode are missing.
        ratios: by "padded" and "unpadded", the latency of each model relative to that of the first, the checkpoint;
            empty for "unpadded" if the checkpoint does not have this mode.
        conditions: observations about the machine.
    """

    padded: Mapping[str, Timing] = field(hash=False)
    unpadded: Mapping[str, Timing] = field(hash=False)
    ratios: Mapping[str, Mapping[str, Ratio]] = field(hash=False)
    conditions: Conditions

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons not to trust the numbers; empty if there are none."""
        return self.conditions.warnings

    def to_json(self) -> dict[str, Any]:
        """Returns the measurements as JSON, including the warnings."""
        return {**asdict(self), "warnings": list(self.warnings)}


def measure_models(
    models: Mapping[str, Model],
    batches: Sequence[Batch],
    num_threads: int = 1,
    rounds: int = 10,
    progress: bool = True,
) -> MeasuredModels:
    """Measures models on the same batches, and leaves them and torch's number of threads unchanged.

    A round takes three times as long as the batches, since each model runs over them twice to warm up.

    Args:
        models: models by name, the checkpoint first: torch models in float32 and in evaluation mode, `OnnxModel`s, or
            anything that takes a batch's tensors by their names. MAGIC models are measured with and without
            `config.unpad_inputs`, others as they are.
        batches: tensors by name, with an attention_mask (batch, length), 1 = token, 0 = padding on the right, all on
            one device; padding beyond the longest sequence is cut off.
        num_threads: CPU threads of torch; `OnnxModel`s must have been made with the same number.
        rounds: how often each model is measured.
        progress: whether to show a bar.

    Raises:
        ValueError: there is no model or no batch, a batch has no attention_mask, there are fewer than two rounds, or a
            model is in training mode, not in float32 or has another number of threads.
    """
    if not models:
        raise ValueError("there is no model to measure; give at least one")
    if rounds < 2:
        raise ValueError(
            f"rounds is {rounds}; it must be at least 2, since the noise is estimated from their differences"
        )
    for name, model in models.items():
        _check(name, model, num_threads)
    cut = [_without_common_padding(batch) for batch in batches]
    if not cut:
        raise ValueError("there is no batch to measure the models on; give at least one")
    # So short a time asks for no further rounds. The sizes are of token ids that are not used here.
    settings = LatencySettings(
        device=str(cut[0]["attention_mask"].device), num_threads=num_threads, seq_len=1, min_run_time=1e-9
    )
    bench = Bench(settings, MagicConfig())
    statements = {(PADDED, name): _passes(model, cut, unpad=False) for name, model in models.items()}
    statements |= {
        (UNPADDED, name): _passes(model, cut, unpad=True)
        for name, model in models.items()
        if isinstance(model, MagicPreTrainedModel)
    }
    samples = bench.run({key: partial(_itself, call) for key, call in statements.items()}, rounds, progress)
    seconds = {
        mode: {name: np.array(values) / len(cut) for (own, name), values in samples.items() if own == mode}
        for mode in (PADDED, UNPADDED)
    }
    checkpoint = next(iter(models))
    return MeasuredModels(
        padded=_timings(seconds[PADDED]),
        unpadded=_timings(seconds[UNPADDED]),
        ratios={mode: _ratios(own, checkpoint) for mode, own in seconds.items()},
        conditions=bench.conditions(),
    )


def _check(name: str, model: Model, num_threads: int) -> None:
    if isinstance(model, OnnxModel) and model.num_threads != num_threads:
        raise ValueError(
            f"model {name!r} runs on {model.num_threads} threads but num_threads is {num_threads}; make it with "
            f"OnnxModel(path, num_threads={num_threads})"
        )
    if not isinstance(model, nn.Module):
        return
    if model.training:
        raise ValueError(f"model {name!r} is in training mode; call its eval() first")
    others = {parameter.dtype for parameter in model.parameters()} - {torch.float32}
    if others:
        raise ValueError(
            f"model {name!r} has weights in {', '.join(sorted(map(str, others)))}; call its float() first"
        )


def _without_common_padding(batch: Batch) -> dict[str, Tensor]:
    """Returns a batch cut to the length of its longest sequence."""
    if "attention_mask" not in batch:
        raise ValueError(f"a batch has {', '.join(batch) or 'nothing'}; give it an attention_mask as well")
    mask = batch["attention_mask"]
    length = int(mask.any(dim=0).nonzero().max()) + 1
    return {name: value[:, :length] if value.shape[:2] == mask.shape else value for name, value in batch.items()}


def _passes(model: Model, batches: Sequence[Batch], unpad: bool) -> Statement:
    """Returns a call that runs a model over all batches."""

    def passes() -> None:
        for batch in batches:
            model(**batch)

    if not isinstance(model, MagicPreTrainedModel):
        return passes
    config = model.config

    def switched() -> None:
        before = config.unpad_inputs
        config.unpad_inputs = unpad
        try:
            passes()
        finally:
            config.unpad_inputs = before

    return switched


def _itself(statement: Statement) -> Statement:
    return statement


def _timings(seconds: Mapping[str, np.ndarray]) -> dict[str, Timing]:
    """The median of each model's seconds, one value per round."""
    if not seconds:
        return {}
    timings = bootstrap(np.array(list(seconds.values())), lambda drawn: np.median(drawn, axis=1))
    return dict(zip(seconds, timings, strict=True))


def _ratios(seconds: Mapping[str, np.ndarray], checkpoint: str) -> dict[str, Ratio]:
    """The median over the rounds of each model's seconds over the checkpoint's in the same round."""
    if checkpoint not in seconds:
        return {}
    relative = {name: own / seconds[checkpoint] for name, own in seconds.items()}
    # `bootstrap` returns milliseconds, a thousand times its input.
    return {
        name: Ratio(timing.median_ms / 1e3, timing.low_ms / 1e3, timing.high_ms / 1e3)
        for name, timing in _timings(relative).items()
    }
