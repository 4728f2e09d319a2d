"""Times calls of models in rounds, next to a reference workload that shows whether the machine was idle."""

import math
import os
import platform
import random
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.benchmark import Timer

from modeling_magic import MagicConfig

from ..bars import progress_bar
from .settings import LatencySettings


# The conditions on the machine under which a figure is reliable.
MIN_CORE_SHARE = 0.95
MAX_REFERENCE_SPREAD = 0.10
MAX_REFERENCE_DRIFT = 0.05

_MIN_BLOCK_SECONDS = 0.005
_REFERENCE_SECONDS = 0.001
_BOOTSTRAP_SAMPLES = 200

Statement = Callable[[], object]
Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """A time in milliseconds: its median over the rounds and the 95% bootstrap interval of that median."""

    median_ms: float
    low_ms: float
    high_ms: float

    def __post_init__(self) -> None:
        if not 0 <= self.low_ms <= self.median_ms <= self.high_ms < math.inf:
            raise ValueError(f"{self.median_ms} ms, {self.low_ms} to {self.high_ms}, is not a time in its interval")

    def __str__(self) -> str:
        return f"{self.median_ms:.3f} ms ({self.low_ms:.3f} to {self.high_ms:.3f})"


@dataclass(frozen=True)
class Conditions:
    """The state of the machine during a measurement.

    Attributes:
        num_cores: the number of cores of the machine.
        num_threads: the number of threads that torch uses.
        core_share: the CPU time of the timing thread divided by the wall-clock time of the timed blocks; `None` on an
            accelerator. If it is below one, the thread waited for a core that others used.
        reference_ms: the median time of the reference workload.
        reference_spread: the interquartile range of the reference divided by its median; it shows fluctuating load.
        reference_drift: the median of the last third of the reference divided by that of the first third, minus one;
            it shows load that started or ended, or a clock that changed.
        load_average: the mean number of running or waiting processes during the measurement; `None` if the system
            does not report it. It shows steady load, which the other figures may miss.
    """

    num_cores: int
    num_threads: int
    core_share: float | None
    reference_ms: float
    reference_spread: float
    reference_drift: float
    load_average: float | None

    @classmethod
    def judge(
        cls,
        *,
        reference: Sequence[float],
        core_share: float | None,
        load_average: float | None,
        num_cores: int,
        num_threads: int,
    ) -> Self:
        """The conditions, from the reference workload's times in seconds, in order, and the other observations."""
        low, median, high = np.percentile(reference, (25, 50, 75))
        third = max(1, len(reference) // 3)
        drift = np.median(reference[-third:]) / np.median(reference[:third]) - 1
        return cls(
            num_cores=num_cores,
            num_threads=num_threads,
            core_share=core_share,
            reference_ms=1e3 * float(median),
            reference_spread=float((high - low) / median),
            reference_drift=float(drift),
            load_average=load_average,
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """Reasons why figures taken under these conditions are unreliable, each with its limit."""
        found = []
        if self.num_threads > self.num_cores:
            found.append(f"there were {self.num_threads} threads for {self.num_cores} cores")
        if self.core_share is not None and self.core_share < MIN_CORE_SHARE:
            found.append(
                f"the timing thread had a core for {self.core_share:.0%} of the time; at least {MIN_CORE_SHARE:.0%} "
                f"is normal"
            )
        if self.reference_spread > MAX_REFERENCE_SPREAD:
            found.append(
                f"the times of a constant workload varied by {self.reference_spread:.0%} (interquartile range over "
                f"median); up to {MAX_REFERENCE_SPREAD:.0%} is normal"
            )
        if abs(self.reference_drift) > MAX_REFERENCE_DRIFT:
            found.append(
                f"the times of a constant workload drifted by {self.reference_drift:+.0%} from the first third to "
                f"the last; up to {MAX_REFERENCE_DRIFT:.0%} is normal"
            )
        if self.load_average is not None and self.load_average > self.num_cores:
            found.append(f"the load average was {self.load_average:.1f}; up to {self.num_cores}, the cores, is normal")
        return tuple(found)


class _Clock:
    """The clock of a Timer: waits for the device, and records the thread's CPU time with each reading.

    On a CUDA device, it uses events in the device's stream: the time until the device is done, without the time that
    the host takes to notice.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._event: torch.cuda.Event | None = None
        self._seconds = 0.0
        self.readings: list[tuple[float, float]] = []

    def __call__(self) -> float:
        now = self._seconds_of_events() if self._device.type == "cuda" else self._seconds_of_the_host()
        # CPU time of this thread, not of the process, whose other threads would hide that this one waits.
        self.readings.append((now, time.thread_time()))
        return now

    def _seconds_of_events(self) -> float:
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._device))
        event.synchronize()
        if self._event is not None:
            # Sums short intervals: elapsed_time is in single precision, in which a long interval has no microseconds.
            self._seconds += 1e-3 * self._event.elapsed_time(event)
        self._event = event
        return self._seconds

    def _seconds_of_the_host(self) -> float:
        if self._device.type != "cpu":
            torch.accelerator.synchronize(self._device)
        return time.perf_counter()


class Bench:
    """Times workloads in rounds, each block next to one of the reference, and records the state of the machine."""

    def __init__(self, settings: LatencySettings, config: MagicConfig) -> None:
        if settings.seq_len > config.max_sequence_length:
            raise ValueError(
                f"seq_len is {settings.seq_len}; the model accepts up to {config.max_sequence_length} tokens"
            )
        self.settings = settings
        self.device = device_from(settings.device)
        generator = torch.Generator().manual_seed(settings.seed)
        shape = (settings.batch_size, settings.seq_len)
        self.input_ids = torch.randint(config.vocab_size, shape, generator=generator).to(self.device)
        # A matrix product of 0.1 GFLOP, about a millisecond on one CPU core.
        self._matrices = [
            torch.randn(size, generator=generator).to(self.device, getattr(torch, settings.dtype))
            for size in ((96, 512), (512, 1024))
        ]
        self._reference_seconds: list[float] = []
        self._wall_seconds = self._cpu_seconds = 0.0
        self._start, self._load_average = time.perf_counter(), _load_average()

    def run(
        self, workloads: Mapping[Key, Callable[[], Statement]], min_rounds: int, progress: bool
    ) -> dict[Key, list[float]]:
        """Seconds per call of each workload, one value per round; `workloads` create the call anew in each round."""
        rng = random.Random(self.settings.seed)
        samples: dict[Key, list[float]] = {key: [] for key in workloads}
        with torch.inference_mode():
            seconds = {key: self._time(make(), 1) for key, make in workloads.items()}
            calls = {key: math.ceil(_MIN_BLOCK_SECONDS / seconds[key]) for key in workloads}
            longest_block = max(calls[key] * seconds[key] for key in workloads)
            num_rounds = max(min_rounds, math.ceil(self.settings.min_run_time / longest_block))
            reference_calls = math.ceil(_REFERENCE_SECONDS / self._time(self._reference, 1))
            self._wall_seconds = self._cpu_seconds = 0.0
            for _ in progress_bar(range(num_rounds), desc="latency", unit="round", leave=False, disable=not progress):
                for key in rng.sample(list(workloads), len(workloads)):
                    statement = workloads[key]()
                    self._reference_seconds.append(self._time(self._reference, reference_calls))
                    samples[key].append(self._time(statement, calls[key]))
        return samples

    def _reference(self) -> Tensor:
        return self._matrices[0] @ self._matrices[1]

    def _time(self, statement: Statement, calls: int) -> float:
        clock = _Clock(self.device)
        names = {"statement": statement}
        timer = Timer("statement()", globals=names, timer=clock, num_threads=self.settings.num_threads)
        measurement = timer.timeit(calls)
        # The readings before the last two belong to the warm-up.
        (start, cpu_start), (end, cpu_end) = clock.readings[-2:]
        self._wall_seconds += end - start
        self._cpu_seconds += cpu_end - cpu_start
        return measurement.median

    def conditions(self) -> Conditions:
        """The state of the machine up to now."""
        return Conditions.judge(
            reference=self._reference_seconds,
            core_share=self._cpu_seconds / self._wall_seconds if self.device.type == "cpu" else None,
            load_average=_load_between(self._load_average, _load_average(), time.perf_counter() - self._start),
            num_cores=os.cpu_count() or 1,
            num_threads=self.settings.num_threads,
        )


def bootstrap(seconds: np.ndarray, estimate: Callable[[np.ndarray], np.ndarray]) -> list[Timing]:
    """Estimates from seconds, (workload, round), with 95% intervals from rounds resampled with replacement."""
    rng, num_rounds = np.random.default_rng(0), seconds.shape[1]
    drawn = [estimate(seconds[:, rng.integers(num_rounds, size=num_rounds)]) for _ in range(_BOOTSTRAP_SAMPLES)]
    values = 1e3 * estimate(seconds)
    low, high = 1e3 * np.percentile(drawn, (2.5, 97.5), axis=0)
    return [
        Timing(*map(float, row)) for row in zip(values, np.minimum(low, values), np.maximum(high, values), strict=True)
    ]


def timing_of(seconds: Sequence[float]) -> Timing:
    """The median of seconds, given one value per round."""
    return bootstrap(np.array([seconds]), lambda drawn: np.median(drawn, axis=1))[0]


def device_from(name: str) -> torch.device:
    """The device of this name; a ValueError if it is not available."""
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(
            f"device is {name!r}; give a name that torch knows, such as cpu, cuda, cuda:1 or mps"
        ) from None
    here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if device.type != "cpu" and (here is None or here.type != device.type):
        raise ValueError(f"device is {name!r}, but torch finds {here.type if here else 'no accelerator'}; choose cpu")
    return device


def device_name(device: torch.device) -> str:
    """The name of the processor or the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    if device.type == "cpu":
        # Linux gives the processor's name only here.
        try:
            lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        except OSError:
            return name
        return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{device.type} of {name}"


def _load_average() -> float | None:
    try:
        return os.getloadavg()[0]
    except (AttributeError, OSError):
        return None


def _load_between(before: float | None, after: float | None, seconds: float) -> float | None:
    """The mean load between two readings of the load average.

    The average decays with a time constant of a minute, so on its own it would still include what ran before. The
    system updates it every five seconds.
    """
    if before is None or after is None:
        return None
    remembered = math.exp(-max(seconds, 5) / 60)
    return max(0.0, (after - remembered * before) / (1 - remembered))
