"""Tables of a small space: all its children trained alone on real text, with their costs.

With such a table, samplers, searchers and rankings can be evaluated in seconds: `MicroBenchmark.score` returns what an
`Evaluator` would return for a perfect super-net. docs/micro_benchmark.md describes how the table was made.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

from modeling_magic import MagicConfig

from ..files import make_output_folder, read_csv, read_json, write_csv, write_json
from ..space.costs import additive_cost
from ..space.latency import LatencyTable
from ..space.search_space import Architecture, SearchSpace, format_architecture, parse_architecture
from ..supernet.journal import RankedChild
from .truth import STANDALONE_NAME, StandaloneChild, Truth, read_standalone, truth_of, without_seed_effects


TABLE_NAME = "micro_benchmark.csv"
METADATA_NAME = "micro_benchmark.json"
_VERSION = 1
_SIZES_OF_THE_SPACE = ("hidden_size", "intermediate_size", "embedding_size")


@dataclass(frozen=True)
class BenchmarkRow(StandaloneChild):
    """A child trained alone with one seed, and its costs.

    Attributes:
        num_parameters: number of parameters of the masked LM, including the embeddings.
        flops: FLOPs of a forward pass as ELECTRA counts them, including the masked-LM head, at the `sequence_length`
            of the metadata.
        latency_ms: latency as predicted by the latency table that the metadata names, `None` without a table.
    """

    num_parameters: int = 0
    flops: int = 0
    latency_ms: float | None = None


_COLUMNS = [item.name for item in fields(BenchmarkRow)]


@dataclass(frozen=True)
class MicroBenchmark:
    """Children trained alone.

    Attributes:
        rows: one row for each child and seed, the lowest seed first.
        metadata: the space, sizes, text, recipe and versions that the rows were made with.
    """

    rows: tuple[BenchmarkRow, ...] = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)

    @cached_property
    def space(self) -> SearchSpace:
        """The children of the table."""
        return SearchSpace.from_json(self.metadata["candidate_operators"])

    @cached_property
    def children(self) -> tuple[RankedChild, ...]:
        """Each child once, with losses and accuracy as means over its seeds after removing seed effects."""
        losses, accuracies = (
            without_seed_effects(self.rows, values)
            for values in ([row.val_loss for row in self.rows], [row.val_accuracy for row in self.rows])
        )
        by_child: dict[Architecture, list[BenchmarkRow]] = {}
        for row, loss, accuracy in zip(self.rows, losses, accuracies, strict=True):
            batches = tuple(batch * loss / row.val_loss for batch in row.batch_losses) if row.val_loss else ()
            row = replace(row, val_loss=loss, val_accuracy=accuracy, batch_losses=batches or row.batch_losses)
            by_child.setdefault(row.architecture, []).append(row)
        return tuple(_mean_child(rows) for rows in by_child.values())

    @cached_property
    def _by_architecture(self) -> dict[Architecture, RankedChild]:
        return {child.architecture: child for child in self.children}

    @property
    def best(self) -> RankedChild:
        """The child with the lowest mean loss."""
        return min(self.children, key=lambda child: (child.val_loss, child.architecture))

    def truth(self, metric: str = "val_loss") -> Truth:
        """Returns the truth for `ranking.evaluate_ranking` and `ranking.truth_noise`.

        Args:
            metric: "val_loss" or "val_accuracy".

        Raises:
            ValueError: the metric is neither.
        """
        return truth_of(self.rows, metric, self.metadata["key"])

    def score(self, architectures: Iterable[Sequence[str]]) -> list[RankedChild]:
        """Returns the distinct children among `architectures` with their true losses, in place of an `Evaluator`.

        Raises:
            ValueError: a child is not in the space.
        """
        wanted = list(dict.fromkeys(tuple(child) for child in architectures))
        for child in wanted:
            self.space.check(child)
            if child not in self._by_architecture:
                raise ValueError(
                    f"the table has no child {format_architecture(child)}; train it and rewrite the table"
                )
        return [self._by_architecture[child] for child in wanted]

    def __len__(self) -> int:
        return len(self.rows)


def _mean_child(rows: Sequence[BenchmarkRow]) -> RankedChild:
    def mean(values: Iterable[float]) -> float:
        return math.fsum(values) / len(rows)

    batches = zip(*(row.batch_losses for row in rows), strict=True)
    return RankedChild(
        rows[0].architecture,
        mean(row.val_loss for row in rows),
        mean(row.val_accuracy for row in rows),
        tuple(map(mean, batches)),
    )


def load_micro_benchmark(path: str | Path | None = None) -> MicroBenchmark:
    """Returns the package's own table, or one that `write_micro_benchmark` wrote.

    Args:
        path: a CSV file, with its metadata next to it in a .json file of the same name. `None` takes the package's
            own table.

    Raises:
        ValueError: a file is missing or damaged. The message names the line.

    Example:
    ```python
    >>> table = load_micro_benchmark()
    >>> quality = evaluate_ranking(table.truth().means, {child: -loss for child, loss in shared_losses.items()})
    ```
    """
    table = files(__package__).joinpath(TABLE_NAME) if path is None else Path(path)
    metadata_file = files(__package__).joinpath(METADATA_NAME) if path is None else Path(path).with_suffix(".json")
    for file in (table, metadata_file):
        if not file.is_file():
            raise ValueError(
                f"there is no file {file}; write the table with `magic-nas analyze standalone --table FILE` and give "
                f"its path, or give the folder of children as the truth"
            )
    try:
        metadata = json.loads(metadata_file.read_text(encoding="utf-8"))
        found, num_rows = metadata["version"], metadata["num_rows"]
        space = SearchSpace.from_json(metadata["candidate_operators"])
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{metadata_file} is not the metadata of a table of children: {error!r}") from None
    if found != _VERSION:
        raise ValueError(f"{metadata_file} has format {found}; this version reads format {_VERSION}")
    columns, lines = read_csv(table)
    if columns != _COLUMNS:
        raise ValueError(f"{table} has the columns {columns}, not {_COLUMNS}")
    rows = []
    for line, values in lines:
        try:
            rows.append(_row_of(values))
            space.check(rows[-1].architecture)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{table}, line {line}: {error}") from None
    if len(rows) != num_rows:
        raise ValueError(f"{table} has {len(rows)} rows but its metadata says {num_rows}; copy both files again")
    return MicroBenchmark(tuple(rows), metadata)


# ---- Writing ----


def write_micro_benchmark(
    journal_folder: str | Path,
    config: MagicConfig,
    output: str | Path,
    latency_table: LatencyTable | None = None,
) -> MicroBenchmark:
    """Writes the table of a folder of stand-alone children as CSV, with its metadata as JSON, and returns both.

    Args:
        journal_folder: a folder written by `train_standalone`. The lowest seed must have all children of the space.
        config: the sizes that the children were trained with, as returned by `load_preset`.
        output: the CSV file. The metadata is written next to it.
        latency_table: a latency table of the same model. Default: the column stays empty.

    Raises:
        ValueError: a child is missing or has a loss that is not finite, or the sizes of the children differ from
            `config`.
    """
    output = Path(output)
    key, children = read_standalone(journal_folder)
    config = _checked_config(key, config)
    space = SearchSpace.from_config(config.candidate_operators)
    _check_complete(space, children)
    sequence_length = key["recipe"]["block_size"]
    parameters, flops = (additive_cost(config, name, seq_len=sequence_length) for name in ("num_parameters", "flops"))
    if latency_table is not None:
        latency_table.check(config)
    order = {child: number for number, child in enumerate(space.children())}
    rows = tuple(
        BenchmarkRow(
            **_fields_of(child),
            num_parameters=int(parameters(child.architecture)),
            flops=int(flops(child.architecture)),
            latency_ms=None if latency_table is None else latency_table.predict_ms(child.architecture),
        )
        for child in sorted(children, key=lambda child: (child.seed, order[child.architecture]))
    )
    described = Path(journal_folder) / STANDALONE_NAME
    metadata = {
        "version": _VERSION,
        "num_rows": len(rows),
        "rows_of_seed": {str(seed): number for seed, number in sorted(Counter(row.seed for row in rows).items())},
        "candidate_operators": space.to_json(),
        "sequence_length": sequence_length,
        "key": key,
        "config": config.to_diff_dict(),
        "training": read_json(described) if described.is_file() else None,
        "written_with": {name: version(name) for name in ("magic-nas", "torch", "transformers")},
        "latency": latency_table
        and {
            "device": latency_table.device_name,
            "settings": asdict(latency_table.settings),
            "held_out": latency_table.held_out_text,
            "warnings": list(latency_table.warnings),
        },
    }
    make_output_folder(output.parent, output)
    write_csv(output, _COLUMNS, [_values_of(row) for row in rows])
    write_json(output.with_suffix(".json"), metadata)
    return load_micro_benchmark(output)


def _fields_of(child: StandaloneChild) -> dict[str, Any]:
    return {item.name: getattr(child, item.name) for item in fields(StandaloneChild)}


def _checked_config(key: dict[str, Any], config: MagicConfig) -> MagicConfig:
    """Returns the configuration with the vocabulary that the children were trained with."""
    if key["candidate_operators"] != config.candidate_operators:
        raise ValueError(
            f"the search space of the children ({key['candidate_operators']}) is not that of the configuration; name "
            f"the preset that they were trained with"
        )
    for name in _SIZES_OF_THE_SPACE:
        if key["sizes"][name] != (own := getattr(config, name)):
            raise ValueError(f"{name} of the children is {key['sizes'][name]} but that of the configuration is {own}")
    return type(config)(**{**config.to_dict(), "vocab_size": key["sizes"]["vocab_size"]})


def _check_complete(space: SearchSpace, children: Sequence[StandaloneChild]) -> None:
    seeds = sorted({child.seed for child in children})
    first = {child.architecture for child in children if child.seed == seeds[0]} if seeds else set()
    if missing := [child for child in space.children() if child not in first]:
        raise ValueError(
            f"{len(missing)} of {space.size} children were not trained with seed {seeds[0] if seeds else 0}, the "
            f"first of them {format_architecture(missing[0])}; train them with `magic-nas analyze standalone`"
        )
    for child in children:
        losses = (child.val_loss, child.val_accuracy, *child.losses, *child.batch_losses)
        if not all(map(math.isfinite, losses)):
            raise ValueError(
                f"{format_architecture(child.architecture)} with seed {child.seed} has a loss that is not finite: its "
                f"training diverged, and the table must not hide that; use a recipe with which all children converge"
            )
    if len(steps := Counter(child.steps for child in children)) > 1:
        raise ValueError(
            f"children were trained for different numbers of steps, {dict(steps)}; train all for the same number"
        )


def _values_of(row: BenchmarkRow) -> list[Any]:
    # These are sums over the tokens of a batch: a tenth is far below any difference that matters.
    batch_losses = " ".join(f"{loss:.1f}" for loss in row.batch_losses)
    losses = " ".join(f"{loss:.5f}" for loss in row.losses)
    latency = "" if row.latency_ms is None else f"{row.latency_ms:.4f}"
    shown = {
        "architecture": format_architecture(row.architecture),
        "val_loss": f"{row.val_loss:.6f}",
        "val_accuracy": f"{row.val_accuracy:.6f}",
        "batch_losses": batch_losses,
        "losses": losses,
        "latency_ms": latency,
    }
    return [shown.get(name, getattr(row, name)) for name in _COLUMNS]


def _row_of(values: dict[str, Any]) -> BenchmarkRow:
    def numbers(text: str) -> tuple[float, ...]:
        return tuple(map(_finite, text.split()))

    return BenchmarkRow(
        architecture=parse_architecture(values["architecture"]),
        val_loss=_finite(values["val_loss"]),
        val_accuracy=_finite(values["val_accuracy"]),
        batch_losses=numbers(values["batch_losses"]),
        seed=int(values["seed"]),
        steps=int(values["steps"]),
        seconds=_finite(values["seconds"]),
        losses=numbers(values["losses"]),
        num_parameters=int(values["num_parameters"]),
        flops=int(values["flops"]),
        latency_ms=_finite(values["latency_ms"]) if values["latency_ms"] else None,
    )


def _finite(text: str) -> float:
    if not math.isfinite(value := float(text)):
        raise ValueError(f"{text!r} is not a finite number")
    return value
