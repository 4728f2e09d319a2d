"""A clock that only what is timed moves, and a table of latency, so that tests do not depend on the machine."""

import os
from typing import Any

import pytest
import torch

from modeling_magic.modeling_magic import MagicEmbeddings, MagicLayer
from training.space import timing
from training.space.latency import HeldOutChild, LatencyTable
from training.space.settings import LatencySettings
from training.space.timing import Conditions, Timing, device_name


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
# Whole milliseconds.
PLANTED = {"outside": 3, "MHA4": 5, "FFN": 7, "CONV3": 2, "CONV5": 4}
QUIET: dict[str, Any] = {
    "reference": [1e-3] * 60,
    "core_share": 1.0,
    "load_average": 1.0,
    "num_cores": 2,
    "num_threads": 1,
}
# The fields that latency depends on, as `toy_config` has them.
SIZES = {
    "embedding_size": 32,
    "num_hidden_layers": 4,
    "hidden_size": 32,
    "intermediate_size": 64,
    "vocab_size": 100,
    "hidden_act": "gelu",
    "lm_head_activation": None,
    "add_pooling_layer": False,
}


class FakeTime:
    """Milliseconds: what is planted passes where it is planted, two pass between looks where nothing is planted."""

    def __init__(self) -> None:
        self.now, self.core_share, self.costs, self.change = 0.0, 1.0, dict(PLANTED), 0.0
        self.last_operator, self.last_look, self.load_average = "", -1.0, 0.5

    def perf_counter(self) -> float:
        # As the reference workload does.
        self.now += 2 * (self.now == self.last_look)
        self.last_look = self.now
        return 1e-3 * self.now

    def thread_time(self) -> float:
        return 1e-3 * self.now * self.core_share

    def operator(self, name: str) -> None:
        self.now += self.costs[name] + (self.change if name != self.last_operator else 0)
        self.last_operator = name


def fake_clock(monkeypatch: pytest.MonkeyPatch) -> FakeTime:
    """Lets operators and embeddings take what is planted, `change` milliseconds more after another operator."""
    clock = FakeTime()
    embed, layer = MagicEmbeddings.forward, MagicLayer.forward

    def timed_embeddings(self, *args, **kwargs):
        clock.now += clock.costs["outside"]
        clock.last_operator = ""
        return embed(self, *args, **kwargs)

    def timed_layer(self, *args, operator="", **kwargs):
        clock.operator(operator)
        return layer(self, *args, operator=operator, **kwargs)

    monkeypatch.setattr(MagicEmbeddings, "forward", timed_embeddings)
    monkeypatch.setattr(MagicLayer, "forward", timed_layer)
    monkeypatch.setattr(timing, "time", clock)
    monkeypatch.setattr(os, "getloadavg", lambda: (clock.load_average, 0.0, 0.0), raising=False)
    return clock


def table_of(**changes) -> LatencyTable:
    """A table as a measurement could have made it."""
    fields = {
        "settings": LatencySettings(),
        "device_name": device_name(torch.device("cpu")),
        "attn_implementation": "sdpa",
        "torch_version": "2",
        "transformers_version": "5",
        "sizes": SIZES,
        "outside": Timing(1.0, 0.9, 1.1),
        "operators": {name: Timing(2.5, 2.4, 2.6) for name in OPERATORS},
        "held_out": (
            HeldOutChild(("FFN",), 9.0, Timing(10.0, 9.9, 10.1)),
            HeldOutChild(("FFN",), 21.0, Timing(20.0, 19.0, 21.0)),
            HeldOutChild(("FFN",), 30.3, Timing(30.0, 29.0, 31.0)),
        ),
        "conditions": Conditions.judge(**QUIET),
    }
    return LatencyTable(**{**fields, **changes})
