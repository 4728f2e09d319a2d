"""Timing in rounds: what is called, how often, its interval, and whether the machine allowed it."""

import dataclasses
import math
import os
import platform
import time
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from toy import toy_config
from toy_timing import QUIET, FakeTime, fake_clock

from training.space.settings import LatencySettings
from training.space.timing import (
    MIN_CORE_SHARE,
    Bench,
    Conditions,
    Timing,
    bootstrap,
    device_from,
    device_name,
    timing_of,
)


seconds = st.floats(1e-6, 10)


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    return fake_clock(monkeypatch)


def bench_of(**changes) -> Bench:
    return Bench(LatencySettings(**{"seq_len": 8, "min_run_time": 0.001, **changes}), toy_config())


# ---- Rounds ----


def test_a_thread_that_waits_had_no_core():
    """With real clocks: a workload that waits most of its time."""
    bench = Bench(LatencySettings(seq_len=8, min_run_time=0.2), toy_config())
    bench.run({"waits": lambda: lambda: time.sleep(0.02)}, min_rounds=3, progress=False)
    conditions = bench.conditions()
    assert conditions.core_share is not None
    assert conditions.core_share < MIN_CORE_SHARE
    assert any("had a core" in warning for warning in conditions.warnings)


def test_an_accelerator_has_no_core_share(fake_time, monkeypatch):
    fake_time.core_share = 0.1
    bench = bench_of(min_run_time=0.01)
    waited = []
    monkeypatch.setattr(torch.accelerator, "synchronize", waited.append)
    bench.device = torch.device("mps")
    samples = bench.run({"one": lambda: lambda: fake_time.operator("FFN")}, 7, progress=False)
    assert samples["one"] == pytest.approx([7e-3] * 7)
    # Before the first and after the last call of every warm-up and block.
    assert len(waited) == 4 * (2 + 2 * 7)
    assert bench.conditions().core_share is None
    assert not bench.conditions().warnings


class FakeEvent:
    """An event of a device that is done a while after the host has asked, and that nobody may read before."""

    def __init__(self, clock: FakeTime, devices: list[torch.device]) -> None:
        self.clock, self.devices, self.is_done = clock, devices, False

    def record(self, stream: torch.device) -> None:
        self.devices.append(stream)
        self.at = self.clock.now

    def synchronize(self) -> None:
        # What the host takes to notice counts for nothing.
        self.clock.now += 100
        self.is_done = True

    def elapsed_time(self, end: "FakeEvent") -> float:
        assert self.is_done
        assert end.is_done
        return end.at - self.at - 100


def test_a_cuda_device_is_timed_by_events_in_its_stream(fake_time, monkeypatch):
    bench = bench_of(min_run_time=0.01)
    devices: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: FakeEvent(fake_time, devices))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    bench.device = torch.device("cuda:1")

    def reference() -> None:
        fake_time.now += 2

    monkeypatch.setattr(bench, "_reference", reference)
    samples = bench.run({"one": lambda: lambda: fake_time.operator("FFN")}, 7, progress=False)
    assert samples["one"] == pytest.approx([7e-3] * 7)
    assert devices == [bench.device] * (4 * (2 + 2 * 7))
    conditions = bench.conditions()
    assert conditions.reference_ms == pytest.approx(2)
    assert conditions.core_share is None
    assert not conditions.warnings


def test_rounds_last_as_long_as_is_asked_and_their_order_changes(fake_time):
    calls = []

    def workload(name):
        def statement():
            calls.append(name)
            fake_time.now += 1.1

        return lambda: statement

    bench = bench_of(min_run_time=0.05)
    bench.run({name: workload(name) for name in "abc"}, 2, progress=False)
    # The first calls find out how long one takes: two to warm up, and one. Then there are ten blocks of 5.5 ms.
    assert len(calls) == 3 * (3 + 10 * 7)
    rounds = ["".join(calls[start : start + 21 : 7]) for start in range(9, len(calls), 21)]
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 1


def test_no_gradient_is_prepared(fake_time):
    seen = []
    bench = bench_of()
    bench.run({"one": lambda: lambda: seen.append(torch.is_inference_mode_enabled())}, 2, progress=False)
    assert seen
    assert all(seen)


def test_each_workload_is_made_anew_in_each_round_and_timed_beside_the_reference(fake_time, monkeypatch):
    """The order of all that happens: a workload is made, the reference is timed, the workload is timed."""
    events = []
    multiply = torch.Tensor.__matmul__

    def reference(one, other):
        events.append("reference")
        fake_time.now += 1.1
        return multiply(one, other)

    def workload(name):
        def make():
            events.append(f"make {name}")

            def statement():
                events.append(name)
                fake_time.now += 6

            return statement

        return make

    monkeypatch.setattr(torch.Tensor, "__matmul__", reference)
    samples = bench_of().run({name: workload(name) for name in "ab"}, 2, progress=False)
    assert samples["a"] + samples["b"] == pytest.approx([6e-3] * 4)
    # Three calls each to find out how long one takes; then two rounds of blocks of one call, two more to warm up.
    assert events[:11] == ["make a", *"aaa", "make b", *"bbb", *["reference"] * 3]
    blocks = [events[start : start + 7] for start in range(11, len(events), 7)]
    assert len(blocks) == 4
    for block in blocks:
        name = block[-1]
        assert block == [f"make {name}", *["reference"] * 3, *[name] * 3]
    assert Counter(block[-1] for block in blocks[:2]) == {"a": 1, "b": 1}


@pytest.mark.parametrize(("milliseconds", "calls"), [(0.51, 10), (4.9, 2), (5.1, 1), (70.0, 1)])
def test_a_block_lasts_five_milliseconds_or_one_call(fake_time, milliseconds, calls):
    made = []

    def statement():
        made[-1] += 1
        fake_time.now += milliseconds

    def make():
        made.append(0)
        return statement

    bench_of().run({"one": make}, 2, progress=False)
    assert made == [1 + 2, calls + 2, calls + 2]


def test_there_are_rounds_until_the_slowest_has_been_timed_long_enough(fake_time):
    def workload(milliseconds):
        def statement():
            fake_time.now += milliseconds

        return lambda: statement

    samples = bench_of(min_run_time=0.17).run({"fast": workload(6), "slow": workload(60)}, 1, progress=False)
    assert {name: len(own) for name, own in samples.items()} == {"fast": 3, "slow": 3}


def test_inputs_follow_from_the_seed():
    first, second, other = bench_of(seed=3), bench_of(seed=3), bench_of(seed=4)
    assert torch.equal(first.input_ids, second.input_ids)
    assert not torch.equal(first.input_ids, other.input_ids)
    assert bench_of(batch_size=3).input_ids.shape == (3, 8)
    assert first.input_ids.max() < toy_config().vocab_size


def test_sequences_longer_than_the_model_takes_are_refused():
    assert bench_of(seq_len=64).input_ids.shape == (1, 64)
    with pytest.raises(ValueError, match="seq_len is 65; the model accepts up to 64 tokens"):
        bench_of(seq_len=65)


# ---- Intervals ----


def test_an_interval_holds_the_median_and_grows_with_the_spread():
    narrow, wide = timing_of([1.0, 1.01, 0.99, 1.02, 0.98]), timing_of([1.0, 1.2, 0.8, 1.4, 0.6])
    assert narrow.median_ms == wide.median_ms == 1000
    assert wide.low_ms < narrow.low_ms < 1000 < narrow.high_ms < wide.high_ms


@given(st.lists(seconds, min_size=1, max_size=30))
@settings(max_examples=30)
def test_a_timing_is_the_median_in_milliseconds_within_what_was_seen(values):
    timing = timing_of(values)
    assert timing.median_ms == pytest.approx(1e3 * np.median(values))
    assert timing.low_ms >= 1e3 * min(values) * (1 - 1e-12)
    assert timing.high_ms <= 1e3 * max(values) * (1 + 1e-12)
    # The same figures have the same interval each time.
    assert timing_of(values) == timing


def test_the_interval_is_the_percentile_bootstrap_of_scipy():
    rng = np.random.default_rng(5)
    values = rng.gamma(4, 1e-3, size=(2, 200))
    for row, own in zip(values, bootstrap(values, lambda drawn: drawn.mean(axis=1)), strict=True):
        theirs = stats.bootstrap((row,), np.mean, n_resamples=5000, method="percentile", rng=rng).confidence_interval
        width = theirs.high - theirs.low
        assert own.median_ms == pytest.approx(1e3 * row.mean())
        # 200 draws place the ends of an interval to about a tenth of it.
        assert own.low_ms == pytest.approx(1e3 * theirs.low, abs=1e3 * 0.15 * width)
        assert own.high_ms == pytest.approx(1e3 * theirs.high, abs=1e3 * 0.15 * width)


def test_rounds_are_drawn_whole():
    """What rises and falls together keeps its difference in every draw: rounds are drawn, not single figures."""
    common = np.random.default_rng(0).gamma(4, 1e-3, size=40)
    (difference,) = bootstrap(
        np.array([common + 2e-3, common]), lambda drawn: np.median(drawn[0] - drawn[1], keepdims=True)
    )
    assert dataclasses.astuple(difference) == pytest.approx((2, 2, 2))


def test_about_95_of_100_intervals_hold_the_median():
    rng = np.random.default_rng(1)
    timings = [timing_of(rng.lognormal(sigma=0.3, size=25)) for _ in range(100)]
    assert 0.90 <= np.mean([timing.low_ms <= 1000 <= timing.high_ms for timing in timings]) <= 0.99


@pytest.mark.parametrize(
    ("median", "low", "high"),
    [(2.0, 3.0, 4.0), (2.0, 1.0, 1.5), (-1.0, -1.0, 1.0), (1.0, 1.0, math.inf), (math.nan, math.nan, math.nan)],
)
def test_what_is_no_time_and_its_interval_is_refused(median, low, high):
    with pytest.raises(ValueError, match=f"{median} ms, {low} to {high}, is not a time in its interval"):
        Timing(median, low, high)


def test_a_timing_reads_as_milliseconds():
    assert str(Timing(1.23456, 1.0, 2.0)) == "1.235 ms (1.000 to 2.000)"


# ---- Whether to trust it ----


@given(st.lists(seconds, min_size=1, max_size=60))
@settings(max_examples=50)
def test_conditions_are_quantiles_of_the_reference(reference):
    conditions = Conditions.judge(**{**QUIET, "reference": reference})
    third = max(1, len(reference) // 3)
    assert conditions.reference_ms == pytest.approx(1e3 * np.median(reference))
    assert conditions.reference_spread == pytest.approx(stats.iqr(reference) / np.median(reference))
    first, last = np.median(reference[:third]), np.median(reference[-third:])
    assert conditions.reference_drift == pytest.approx(last / first - 1)


def test_conditions_are_those_of_the_blocks_that_count(fake_time):
    """A core that is missing while it finds out how long a call takes counts for nothing."""
    bench, made = bench_of(num_threads=1), []

    def make():
        made.append(1)
        # The blocks of rounds come after the first.
        fake_time.core_share = 0.1 if len(made) == 1 else 0.8
        return lambda: fake_time.operator("FFN")

    bench.run({"one": make}, 2, progress=False)
    conditions = bench.conditions()
    assert conditions.core_share == pytest.approx(0.8)
    assert conditions.reference_ms == pytest.approx(2)
    assert (conditions.num_cores, conditions.num_threads) == (os.cpu_count(), 1)


@pytest.mark.parametrize(
    "changes",
    [
        {"core_share": 0.96},
        {"reference": [1e-3, 1.08e-3] * 30},
        {"reference": [1e-3] * 25 + [1.04e-3] * 25},
        {"load_average": 2.0},
        {"num_threads": 2},
    ],
)
def test_what_is_normal_is_trusted(changes):
    assert Conditions.judge(**{**QUIET, **changes}).warnings == ()


def test_load_is_that_of_the_measurement_and_not_of_the_minute_before(fake_time, monkeypatch):
    """The system's own recursion, every five seconds, over a load that was heavy before and is 1.5 now."""

    def load_between(before, after, seconds):
        fake_time.load_average, fake_time.now = before, 0
        bench = bench_of()
        bench.run({"one": lambda: lambda: fake_time.operator("FFN")}, 1, progress=False)
        fake_time.load_average, fake_time.now = after, 1e3 * seconds
        return bench.conditions().load_average

    average, readings = 8.0, [8.0]
    for _ in range(12):
        average = average * math.exp(-5 / 60) + 1.5 * (1 - math.exp(-5 / 60))
        readings.append(average)
    for number in (1, 4, 12):
        assert load_between(8.0, readings[number], 5 * number) == pytest.approx(1.5)
    # Read before the system has brought its average up to date, it is all that is known.
    assert load_between(8.0, 8.0, 1.0) == pytest.approx(8.0)
    assert load_between(8.0, readings[1], 1.0) == pytest.approx(1.5)
    assert load_between(8.0, 0.0, 5.0) == 0.0

    def unknown():
        raise OSError("no load average here")

    monkeypatch.setattr(os, "getloadavg", unknown)
    assert load_between(8.0, 8.0, 5.0) is None


# ---- Devices ----


def test_devices_by_name():
    assert device_from("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'toaster'; give a name that torch knows, such as cpu, cuda"):
        device_from("toaster")
    if not torch.accelerator.is_available():
        with pytest.raises(ValueError, match="device is 'cuda', but torch finds no accelerator; choose cpu"):
            device_from("cuda")


def test_an_accelerator_of_another_kind_is_refused(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("mps"))
    assert device_from("mps") == torch.device("mps")
    assert device_from("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="device is 'cuda:1', but torch finds mps; choose cpu"):
        device_from("cuda:1")
    assert device_name(torch.device("mps")) == f"mps of {platform.processor() or platform.machine()}"


def test_the_processors_name_is_the_systems():
    name = device_name(torch.device("cpu"))
    assert name
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = {line.partition(":")[2].strip() for line in file if line.startswith("model name")}
        assert not models or name in models
