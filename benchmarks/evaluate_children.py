"""Times the joint evaluation of many children against evaluating them one by one, and writes a Markdown table.

    python benchmarks/evaluate_children.py [--pairs 3] [--only uniform all table population overhead memory]
        [--num-uniform 1000] [--num-overhead 100] [--num-memory 200 2000] [--output benchmarks/results/NAME.md]

Both sides run in turn, in alternating order, within one process. A gain is the median over the pairs of (time of the
plain loop / time of the engine). Next to it is the gain in layers run, which is the gain in time if only layers took
time. In fact embeddings are shared as well, while the head is not.
"""

import argparse
import platform
import random
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from interleaved import ratios, seconds

import training.supernet.runners
from modeling_magic import MagicConfig, MagicForMaskedLM
from training import Evaluator, SearchSpace, load_preset
from training.space.search_space import Architecture
from training.supernet.evaluation import count_layer_evaluations, evaluate_child
from training.supernet.runners import Batch


OPERATORS = ("MHA4", "FFN", "CONV3", "CONV5")
HEADER = (
    "| children | layers, plain loop | layers, engine | gain in layers | gain in time | range | pairs "
    "| seconds, engine | target |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |"
)


def supernet(num_layers: int, hidden_size: int, vocab_size: int, seq_len: int) -> MagicForMaskedLM:
    """Returns a super-net of `num_layers` x 4 with new weights."""
    torch.manual_seed(0)
    return MagicForMaskedLM(
        MagicConfig(
            candidate_operators=[list(OPERATORS)] * num_layers,
            vocab_size=vocab_size,
            hidden_size=hidden_size,
            intermediate_size=4 * hidden_size,
            max_position_embeddings=seq_len,
        )
    )


def validation(num_sequences: int, seq_len: int, vocab_size: int, batch_size: int = 16) -> list[Batch]:
    """Returns random sequences, with 15% of the tokens to predict."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, vocab_size, (num_sequences, seq_len), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.15, ids, -100)
    pairs = zip(ids.split(batch_size), labels.split(batch_size), strict=True)
    return [{"input_ids": own, "labels": own_labels} for own, own_labels in pairs]


def uniform(num_layers: int, num_children: int) -> list[Architecture]:
    """Returns uniformly drawn children of `num_layers` x 4."""
    rng, space = random.Random(0), SearchSpace((OPERATORS,) * num_layers)
    return [space.sample(rng) for _ in range(num_children)]


def population(num_layers: int, num_children: int, num_parents: int) -> list[Architecture]:
    """Returns distinct children that differ from one of `num_parents` uniform parents in one or two layers."""
    rng, parents = random.Random(0), uniform(num_layers, num_parents)
    children: dict[Architecture, None] = {}
    while len(children) < num_children:
        child = list(parents[len(children) % num_parents])
        for layer in rng.sample(range(num_layers), rng.choice((1, 2))):
            child[layer] = rng.choice([name for name in OPERATORS if name != child[layer]])
        children[tuple(child)] = None
    return list(children)


def compare(
    what: str, model: MagicForMaskedLM, batches: list[Batch], children: Sequence[Architecture], pairs: int, target: str
) -> str:
    """Returns one row: the plain loop against the engine."""
    plain_layers = len(children) * len(children[0])
    layers = count_layer_evaluations(children)
    times = []

    def plain() -> None:
        for child in children:
            evaluate_child(model, batches, child)

    def engine() -> None:
        evaluate = Evaluator(model, batches)
        times.append(seconds(lambda: evaluate(children)))
        assert evaluate.num_layer_evaluations == layers

    gains = ratios(plain, engine, pairs, warmup=0)
    return (
        f"| {what} | {plain_layers:,} | {layers:,} | {plain_layers / layers:.2f} | {statistics.median(gains):.2f} "
        f"| {min(gains):.2f} to {max(gains):.2f} | {pairs} | {statistics.median(times):.1f} | {target} |"
    )


def uniform_children(arguments: argparse.Namespace) -> list[str]:
    """1,000 uniform children of 26 x 4."""
    num_children = arguments.num_uniform
    model, batches = supernet(26, 64, 1024, 64), validation(4, 64, 1024)
    row = compare(
        f"{num_children:,} uniform of 26 x 4 (hidden 64, 1,024 tokens, 4 x 64)",
        model, batches, uniform(26, num_children), arguments.pairs, "1.2 in layers",
    )  # fmt: skip
    return [HEADER, row]


def all_children(arguments: argparse.Namespace) -> list[str]:
    """All children of 5 x 4, with a head that is cheap compared with the layers and with an expensive one."""
    children = list(SearchSpace((OPERATORS,) * 5).children())
    return [HEADER] + [
        compare(
            f"all 1,024 of 5 x 4 (hidden 128, {vocab_size:,} tokens, 4 x 64)",
            supernet(5, 128, vocab_size, 64), validation(4, 64, vocab_size), children, arguments.pairs, target,
        )
        for vocab_size, target in ((1024, ">= 3"), (8192, ""))
    ]  # fmt: skip


def table_children(arguments: argparse.Namespace) -> list[str]:
    """All children of magic-micro, whose table comes with the package, evaluated as for a ranking."""
    torch.manual_seed(0)
    model = MagicForMaskedLM(load_preset("magic-micro"))
    row = compare(
        "all 256 of magic-micro (hidden 64, 2,048 tokens, 512 x 64)",
        model, validation(512, 64, model.config.vocab_size), list(SearchSpace((OPERATORS,) * 4).children()),
        arguments.pairs, "< 120 s",
    )  # fmt: skip
    return [HEADER, row]


def population_of_parents(arguments: argparse.Namespace) -> list[str]:
    """100 children near their parents."""
    model, batches = supernet(12, 128, 8192, 128), validation(8, 128, 8192)
    return [HEADER] + [
        compare(
            f"100 of 12 x 4 that differ in one or two layers from {parents} (hidden 128, 8,192 tokens, 8 x 128)",
            model, batches, population(12, 100, num_parents), arguments.pairs, target,
        )
        for num_parents, parents, target in ((1, "a parent", ">= 1.5"), (10, "one of ten parents", ""))
    ]  # fmt: skip


class Stopwatch:
    """The time spent in calls. Nested calls are not counted twice."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """Returns the call with timing."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            start, self._depth = time.perf_counter(), self._depth + 1
            try:
                return call(*args, **kwargs)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - start

        return timed


def overhead(arguments: argparse.Namespace) -> list[str]:
    """The share of time outside embeddings, operators, head and loss, with the journal on."""
    num_children = arguments.num_overhead
    model, batches = supernet(12, 128, 8192, 128), validation(64, 128, 8192)
    children = uniform(12, num_children)
    arithmetic = Stopwatch()
    for module in (model.magic.embeddings, *model.magic.encoder.layer):
        module.forward = arithmetic.around(module.forward)
    judge = training.supernet.runners.MaskedLMJudge
    judge.sums = arithmetic.around(judge.sums)  # type: ignore[method-assign]
    with TemporaryDirectory() as folder:
        opening = seconds(lambda: Evaluator(model, batches, journal=Path(folder) / "opened.jsonl"))
        evaluate = Evaluator(model, batches, journal=Path(folder) / "journal.jsonl")
        arithmetic.seconds = 0.0
        total = seconds(lambda: evaluate(children))
    rest = total - arithmetic.seconds
    return [
        "| children of 12 x 4, hidden 128, 64 x 128, journal on | seconds | in arithmetic | rest | rest per child "
        "| share of the rest | target | opening (fingerprints) |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {num_children} | {total:.1f} | {arithmetic.seconds:.1f} | {rest:.2f} "
        f"| {1000 * rest / num_children:.1f} ms | {100 * rest / total:.2f}% | < 10% | {opening:.2f} s |",
    ]


def memory(arguments: argparse.Namespace) -> list[str]:
    """Peak memory of processes that evaluate few and many children, with the journal on."""
    lines = [
        "| children of 12 x 4, hidden 128, 64 x 16, journal on | peak memory | seconds |",
        "| --- | --- | --- |",
    ]
    for num_children in arguments.num_memory:
        command = [sys.executable, __file__, "--peak-of", str(num_children)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peak, duration = done.stdout.split()
        lines.append(f"| {num_children:,} | {float(peak):.0f} MiB | {float(duration):.0f} |")
    return lines


def print_peak(num_children: int) -> None:
    """Evaluates the children and prints the peak memory of the process and the time."""
    model, batches = supernet(12, 128, 8192, 128), validation(64, 16, 8192)
    with TemporaryDirectory() as folder:
        evaluate = Evaluator(model, batches, journal=Path(folder) / "journal.jsonl")
        duration = seconds(lambda: evaluate(uniform(12, num_children)))
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, duration)


PARTS = {
    "uniform": uniform_children,
    "all": all_children,
    "table": table_children,
    "population": population_of_parents,
    "overhead": overhead,
    "memory": memory,
}


def main() -> None:
    """Runs the chosen parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--num-uniform", type=int, default=1000)
    parser.add_argument("--num-overhead", type=int, default=100)
    parser.add_argument("--num-memory", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--output", type=Path)
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    if arguments.peak_of:
        print_peak(arguments.peak_of)
        return
    lines = [
        "# Evaluation of many children",
        "",
        f"`python benchmarks/evaluate_children.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, new weights, 15% of the tokens to predict. Plain loop: `evaluate_child` for each child. Engine: "
        f"`Evaluator`. Interleaved pairs; a gain is plain loop / engine.",
        "",
        "Gains in layers, counted without running anything: "
        + ", ".join(f"{gain:.2f} for {what}" for what, gain in counted_gains()) + ".",
    ]  # fmt: skip
    print("\n".join(lines))
    for name in arguments.only:
        part = ["", *PARTS[name](arguments)]
        lines += part
        print("\n".join(part), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


def counted_gains() -> list[tuple[str, float]]:
    """Returns the gain in layers for numbers of uniform children that would take too long to run."""
    counted = [
        (f"{number:,} uniform children of {layers} x 4", uniform(layers, number))
        for layers, number in ((26, 200), (26, 1000), (26, 10_000), (12, 2000))
    ]
    return [(what, len(children) * len(children[0]) / count_layer_evaluations(children)) for what, children in counted]


if __name__ == "__main__":
    main()
