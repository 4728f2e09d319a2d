"""The commands that follow a command, as it prints them at its end: whole, so that they can be pasted."""

import math
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from modeling_magic import MagicConfig

from ..space.budgets import summarize_cost
from ..space.latency import LatencyTable
from ..space.search_space import SearchSpace
from ..supernet.loading import SUPERNET_FOLDER


def command(*words: object) -> str:
    """Returns a command of the package as a shell reads it."""
    return shlex.join(["magic-nas", *map(str, words)])


def after_supernet(output_dir: Path, result: Mapping[str, Any]) -> list[str]:
    """Returns what may follow the run of a super-net: the training of its child, and a search where children are left.

    Args:
        output_dir: the run's folder.
        result: of the run.
    """
    followed = [after_search(output_dir)]
    if math.prod(map(len, result["space"])) > 1:
        followed.append(command("search", output_dir, "--output-dir", _beside(output_dir, "found")))
    return followed


def after_search(output_dir: Path) -> str:
    """Returns the training of the child that a search has found."""
    return command("retrain", "--search", output_dir, "--output-dir", _beside(output_dir, "retrained"))


def after_benchmark(space: str, config: MagicConfig, table: LatencyTable, output: Path) -> str | None:
    """Returns the command that takes a latency table, with a limit that half of the children keep.

    It is a search where the space is a trained super-net's folder, else the training of one; `None` for one child.

    Args:
        space: what was measured, as the command was given it.
        config: its sizes.
        table: what was measured.
        output: the table's file.
    """
    if not config.is_supernet:
        return None
    median = summarize_cost(SearchSpace.from_config(config.candidate_operators), table.cost()).median
    # Three digits, rounded up: the child of the median keeps the limit.
    digits = 2 - math.floor(math.log10(median))
    limit = math.ceil(median * 10**digits) / 10**digits
    limits = ("--latency-table", output, "--max-latency-ms", f"{limit:g}")
    if not any(Path(space).glob("*.safetensors")):
        return command("pretrain", "--preset", space, *limits, "--output-dir", "supernet")
    run = Path(space).parent if Path(space).name == SUPERNET_FOLDER else Path(space)
    return command("search", run, *limits, "--output-dir", _beside(run, "found"))


def after_standalone(output_dir: Path) -> str:
    """Returns the ranking that holds a super-net, RUN, against children that were trained alone."""
    folders = ("--truth", output_dir, "--supernet", "RUN", "--output-dir", _beside(output_dir, "ranking"))
    return command("analyze", "ranking", *folders)


def _beside(folder: Path, what: str) -> Path:
    """Returns a folder that is named after another and lies beside it."""
    return folder.with_name(f"{folder.resolve().name}-{what}") if folder.name else Path(what)
