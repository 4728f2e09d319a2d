"""The truth about children: journals of stand-alone training, or a user's own numbers (5.2)."""

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..files import read_csv, read_json
from ..space.search_space import Architecture, format_architecture, parse_architecture
from ..supernet.journal import Journal, RankedChild


# Holds settings, text and versions of the first call that trained children in a folder.
STANDALONE_NAME = "standalone.json"
_JOURNAL_NAME = re.compile(r"standalone-(\d+)\.jsonl")
# Children needed to estimate what a seed adds to all; fewer would add their own noise.
_MIN_COMMON = 5
# Iterations of the least squares over children and seeds. They converge much earlier if all children share a seed.
_MAX_SWEEPS = 10_000
_LOSSES = ("loss", "perplexity", "error")


@dataclass(frozen=True)
class StandaloneChild(RankedChild):
    """A child trained alone, and the cost of its training.

    Attributes:
        seed: seed of the weights, the order of the data and the masks.
        steps: number of optimizer steps.
        seconds: CPU time of its training, summed over all threads of the process.
        losses: validation loss after each quarter of the training except the last.
    """

    seed: int = 0
    steps: int = 0
    seconds: float = 0.0
    losses: tuple[float, ...] = ()


def journal_path(output_dir: str | Path, seed: int) -> Path:
    """Returns the path of the journal of the children trained with `seed`. Every seed has its own."""
    return Path(output_dir) / f"standalone-{seed}.jsonl"


def has_standalone(folder: str | Path) -> bool:
    """Returns whether a folder has a journal of stand-alone children."""
    return bool(_seeds_of(Path(folder)))


def holds_named(folder: str | Path) -> bool:
    """Returns whether the children of a folder were named, such as the winners of searches, rather than drawn."""
    path = Path(folder) / STANDALONE_NAME
    return path.is_file() and bool(read_json(path)["settings"].get("architectures"))


def _seeds_of(folder: Path) -> list[int]:
    names = folder.iterdir() if folder.is_dir() else ()
    return sorted(int(match[1]) for path in names if (match := _JOURNAL_NAME.fullmatch(path.name)))


def read_standalone(folder: str | Path) -> tuple[dict[str, Any], list[StandaloneChild]]:
    """Returns the common key of a folder's journals and their children, the lowest seed first.

    Children may still be being trained in the folder.

    Raises:
        ValueError: there is no journal, one is damaged, or they differ in space, text or recipe.
    """
    folder = Path(folder)
    seeds = _seeds_of(folder)
    if not seeds:
        raise ValueError(f"{folder} holds no stand-alone children; train them with `magic-nas analyze standalone`")
    keys, children = [], []
    for seed in seeds:
        journal = Journal(journal_path(folder, seed), None, StandaloneChild)
        keys.append({name: value for name, value in journal.key.items() if name != "seed"})
        children += list(journal)
        if differing := [name for name in keys[0] if keys[-1].get(name) != keys[0][name]]:
            raise ValueError(
                f"{journal.path} and {journal_path(folder, seeds[0]).name} differ in {' and '.join(differing)}; "
                f"children of different recipes cannot be averaged, so give each recipe its own folder"
            )
    return keys[0], children


@dataclass(frozen=True)
class Truth:
    """The true value of each child, measured once or several times. Higher is better.

    Attributes:
        metric: the measured quantity, such as "val_loss".
        is_loss: whether lower measured numbers are better. `values` then holds them negated.
        values: one number per seed for each child. For stand-alone children, seed effects have been removed.
        key: the space, text and recipe that a journal names, empty if unknown.
    """

    metric: str
    is_loss: bool
    values: dict[Architecture, tuple[float, ...]] = field(repr=False)
    key: dict[str, Any] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        bad = [child for child, values in self.values.items() if not all(map(math.isfinite, values))]
        if bad:
            raise ValueError(
                f"the {self.metric} of {len(bad)} of {len(self.values)} children is not finite, the first of them "
                f"{format_architecture(bad[0])}; remove such children from the file, or retrain all children in "
                f"another folder with a lower learning rate"
            )

    @property
    def means(self) -> dict[Architecture, float]:
        """The mean over seeds of each child."""
        return {child: math.fsum(values) / len(values) for child, values in self.values.items()}

    @property
    def num_repeated(self) -> int:
        """Number of children that were measured more than once."""
        return sum(len(values) > 1 for values in self.values.values())

    def subset(self, children: Iterable[Architecture]) -> "Truth":
        """Returns the truth restricted to these children."""
        return Truth(self.metric, self.is_loss, {child: self.values[child] for child in children}, self.key)

    def show(self, value: float) -> float:
        """Returns a number from `values` as it was measured."""
        return -value if self.is_loss else value


def truth_of(children: Sequence[StandaloneChild], metric: str, key: dict[str, Any] | None = None) -> Truth:
    """Returns the truth given by stand-alone children: their "val_loss" or "val_accuracy".

    Seed effects are removed, see `without_seed_effects`.

    Raises:
        ValueError: the metric is neither, or a number is not finite.
    """
    if metric not in ("val_loss", "val_accuracy"):
        raise ValueError(f"metric is {metric!r}; children trained alone have val_loss and val_accuracy")
    is_loss = metric == "val_loss"
    values: dict[Architecture, tuple[float, ...]] = {}
    measured = [getattr(child, metric) for child in children]
    for child, value in zip(children, without_seed_effects(children, measured), strict=True):
        values[child.architecture] = (*values.get(child.architecture, ()), -value if is_loss else value)
    return Truth(metric, is_loss, values, key or {})


def without_seed_effects(children: Sequence[StandaloneChild], values: Sequence[float]) -> list[float]:
    """Returns the values of children without the effects that their seeds have on all children alike.

    A seed also sets the order of the data and the masks, so it shifts the values of all children. Such a shift does
    not affect a ranking if all children have the same seeds, but it biases those with more seeds than the others. It
    is fitted by least squares, with each value as the sum of a term for its child and a term for its seed, and removed
    such that the mean over all values is unchanged. A seed is fitted if at least five of its children have another
    fitted seed as well. The values of other seeds are left unchanged, and so are all values if one is not finite. With
    n children that have several seeds, the fit also removes about 1 / n of the variance within children.

    Args:
        children: the child of each value.
        values: the values of these children.
    """
    numbers = np.asarray(values, dtype=float)
    if not np.isfinite(numbers).all() or len({child.seed for child in children}) < 2:
        return list(values)
    groups = [
        np.unique(names, return_inverse=True)[1]
        for names in ([format_architecture(child.architecture) for child in children], [one.seed for one in children])
    ]
    of_child, of_seed = groups
    is_fitted = _comparable(of_child, of_seed)
    num_of_child = np.maximum(np.bincount(of_child, is_fitted), 1)
    num_of_seed = np.maximum(np.bincount(of_seed, is_fitted), 1)
    effects = np.zeros(len(num_of_seed))
    for _ in range(_MAX_SWEEPS):
        means = np.bincount(of_child, (numbers - effects[of_seed]) * is_fitted) / num_of_child
        before, effects = effects, np.bincount(of_seed, (numbers - means[of_child]) * is_fitted) / num_of_seed
        if np.abs(effects - before).max() <= 1e-12 * np.abs(numbers).max():
            break
    return (numbers - effects[of_seed]).tolist()


def _comparable(of_child: np.ndarray, of_seed: np.ndarray) -> np.ndarray:
    """Returns which values have a seed that enough children have in addition to another such seed."""
    is_fitted = np.ones(len(of_child), dtype=bool)
    while True:
        is_repeated = np.bincount(of_child, is_fitted)[of_child] > 1
        # A removed seed may have been a child's other seed.
        left = (np.bincount(of_seed, is_fitted & is_repeated) >= _MIN_COMMON)[of_seed]
        if (left == is_fitted).all():
            return is_fitted
        is_fitted = left


def is_lower_better(metric: str) -> bool:
    """Returns whether lower values of a metric are better, by the end of its name: "loss", "perplexity" or "error"."""
    return metric.endswith(_LOSSES)


def load_truth(source: str | Path, metric: str = "val_loss", lower_is_better: bool | None = None) -> Truth:
    """Returns the truth from a folder of stand-alone children, or from a user's CSV or JSON file.

    A file has one entry for each child, or for each child and seed: a CSV with a header and the columns
    "architecture" and `metric`, a JSON list of objects with these keys, or a JSON object that maps architectures to a
    number or a list of numbers. Other columns and keys are ignored.

    Args:
        source: the folder or the file.
        metric: the column, or "val_loss" or "val_accuracy" for a folder.
        lower_is_better: whether lower values are better. Default: decided by the name, see `is_lower_better`.

    Raises:
        ValueError: the source is neither, or is damaged. The message names the line or entry.
    """
    path = Path(source)
    is_loss = is_lower_better(metric) if lower_is_better is None else lower_is_better
    if path.is_dir():
        if holds_named(path):
            raise ValueError(
                f"the children of {path} were named, not drawn, so they are not a sample of their space; train "
                f"uniform ones with `magic-nas analyze standalone`, without --architecture"
            )
        key, children = read_standalone(path)
        return truth_of(children, metric, key)
    if not path.is_file():
        raise ValueError(
            f"there is no folder or file {path}; give a folder of stand-alone children, or a CSV or JSON file"
        )
    if path.suffix.lower() not in (".csv", ".json"):
        raise ValueError(f"{path} is neither a .csv nor a .json file; give the values as one of these")
    entries = (_csv_entries if path.suffix.lower() == ".csv" else _json_entries)(path, metric)
    values: dict[Architecture, tuple[float, ...]] = {}
    for where, name, value in entries:
        try:
            child, number = parse_architecture(name), float(value)
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"{where}: {error}") from None
        if not math.isfinite(number):
            raise ValueError(f"{where}: {metric} is {value!r}; leave the child out, or measure it again")
        values[child] = (*values.get(child, ()), -number if is_loss else number)
    if len({len(child) for child in values}) > 1:
        raise ValueError(f"{path} holds children with different numbers of layers; give children of one space")
    return Truth(metric, is_loss, values)


_Entry = tuple[str, Any, Any]


def _csv_entries(path: Path, metric: str) -> list[_Entry]:
    columns, rows = read_csv(path)
    for column in ("architecture", metric):
        if column not in columns:
            raise ValueError(f"{path} has no column {column!r}; its first line names {', '.join(columns) or 'none'}")
    return [(f"{path}, line {line}", row["architecture"], row[metric]) for line, row in rows]


def _json_entries(path: Path, metric: str) -> list[_Entry]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from None
    if isinstance(found, dict):
        return [
            (f"{path}, {name!r}", name, value)
            for name, values in found.items()
            for value in (values if isinstance(values, list) else [values])
        ]
    if not isinstance(found, list):
        raise ValueError(f"{path} is neither a JSON object nor a list")
    entries = []
    for number, item in enumerate(found, 1):
        if not isinstance(item, dict) or not {"architecture", metric} <= item.keys():
            raise ValueError(f"{path}, entry {number}: it has no 'architecture' or no {metric!r}")
        entries.append((f"{path}, entry {number}", item["architecture"], item[metric]))
    return entries
