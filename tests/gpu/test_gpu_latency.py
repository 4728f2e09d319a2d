"""The latency of operators and children on an accelerator, beside what events in the stream say."""

import statistics
import time
from collections.abc import Callable

import pytest
import torch
from toy import toy_config
from toy_devices import CUDA, MIXED, on, on_devices

from modeling_magic import MagicConfig, MagicModel
from training.space.latency import LatencyTable, measure_child, measure_latency
from training.space.settings import LatencySettings
from training.space.timing import device_name


def config_of(device: str) -> MagicConfig:
    """A super-net whose children take long enough that it is the device which takes it."""
    width = 768 if device == "cuda" else 64
    return toy_config(0.0, hidden_size=width, intermediate_size=4 * width, max_position_embeddings=512)


def settings_of(device: str) -> LatencySettings:
    if device == "cuda":
        return LatencySettings(device=device, dtype="bfloat16", min_run_time=0.01, batch_size=32, seq_len=512)
    return LatencySettings(min_run_time=0.01, batch_size=2, seq_len=32)


def milliseconds(call: Callable[[], object], device: str) -> float:
    """The median of twenty calls, each between two events of its own; on a CPU by the wall clock."""
    times = []
    for _ in range(25):
        if device == "cpu":
            start = time.perf_counter()
            call()
            times.append(1e3 * (time.perf_counter() - start))
        else:
            events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
            torch.cuda.synchronize()
            events[0].record()
            call()
            events[1].record()
            torch.cuda.synchronize()
            times.append(events[0].elapsed_time(events[1]))
    return statistics.median(times[5:])


@on_devices
def test_a_child_takes_as_long_as_between_two_events(device):
    config, settings = config_of(device), settings_of(device)
    measured = measure_child(config, MIXED, settings)
    dtype = getattr(torch, settings.dtype)
    child = MagicModel(config.child_config(MIXED)).eval().to(device, dtype)
    batch = on(device, {"input_ids": torch.randint(5, 100, (settings.batch_size, settings.seq_len))})
    with torch.inference_mode():
        expected = milliseconds(lambda: child(**batch), device)
    # Other work on the cores of a CPU may make one of the two several times as long; nothing else is on the device.
    factor = 1.15 if device == "cuda" else 10
    assert expected / factor < measured.latency.median_ms < expected * factor
    assert measured.conditions.core_share is None or device == "cpu"


@pytest.mark.parametrize("device", [pytest.param("cpu", marks=pytest.mark.slow), CUDA])
def test_a_table_is_of_the_device_and_foretells_children(device, tmp_path):
    config, settings = config_of(device), settings_of(device)
    table = measure_latency(config, settings, num_held_out=5, progress=False)
    assert table.device_name == device_name(torch.device(device))
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json").is_of_this_device()
    assert table.predict_ms(MIXED) > 0
    if device == "cuda":
        assert all(row.median_ms > 0 for row in table.operators.values())
        # More work takes longer: five taps of a convolution between the same two products are no less than three.
        assert table.operators["CONV5"].median_ms > 0.9 * table.operators["CONV3"].median_ms
        assert table.median_error < 0.1
