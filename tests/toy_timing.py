"""A clock that only what is timed moves, so that tests of timing do not depend on the machine."""

import os
from typing import Any

import pytest

from modeling_magic.modeling_magic import MagicEmbeddings, MagicLayer
from training.space import timing


# Whole milliseconds.
PLANTED = {"outside": 3, "MHA4": 5, "FFN": 7, "CONV3": 2, "CONV5": 4}
QUIET: dict[str, Any] = {
    "reference": [1e-3] * 60,
    "core_share": 1.0,
    "load_average": 1.0,
    "num_cores": 2,
    "num_threads": 1,
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
