"""Timing of two steps in turn, so that other load on the machine affects both."""

import statistics
import time
from collections.abc import Callable


Step = Callable[[], object]


def seconds(step: Step) -> float:
    """Returns the wall-clock time of one call."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def ratios(reference: Step, ours: Step, pairs: int, warmup: int = 2) -> list[float]:
    """Returns the time of the reference over ours, a ratio per pair. The side that goes first alternates."""
    for _ in range(warmup):
        reference()
        ours()
    results = []
    for pair in range(pairs):
        first, second = (reference, ours) if pair % 2 == 0 else (ours, reference)
        times = {id(step): seconds(step) for step in (first, second)}
        results.append(times[id(reference)] / times[id(ours)])
    return results


HEADER = "| comparison | median | quartiles | range | pairs | target |\n| --- | --- | --- | --- | --- | --- |"


def row(what: str, values: list[float], target: str) -> str:
    """Returns one row of a table with `HEADER`."""
    quarters = statistics.quantiles(values, n=4)
    return (
        f"| {what} | {statistics.median(values):.3f} | {quarters[0]:.3f} to {quarters[2]:.3f} "
        f"| {min(values):.3f} to {max(values):.3f} | {len(values)} | {target} |"
    )
