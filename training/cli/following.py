"""Follow-up commands that a command prints at its end, complete so that they can be pasted."""

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
    """Returns a command of the package, quoted for a shell."""
    return shlex.join(["magic-nas", *map(str, words)])


def after_supernet(output_dir: Path, result: Mapping[str, Any]) -> list[str]:
    """Returns the follow-ups of a super-net run: training its child, and a search if several children are left.

    Args:
        output_dir: folder of the run.
        result: result of the run.
    """
    followed = [after_search(output_dir)]
    if math.prod(map(len, result["space"])) > 1:
        followed.append(command("search", output_dir, "--output-dir", _beside(output_dir, "found")))
    return followed


def after_search(output_dir: Path) -> str:
    """Returns the command that trains the child found by a search."""
    return command("retrain", "--search", output_dir, "--output-dir", _beside(output_dir, "retrained"))


def after_benchmark(space: str, config: MagicConfig, table: LatencyTable, output: Path) -> str | None:
    """Returns the command that uses a latency table, with a limit that half of the children meet.

    It is a search if the space is the folder of a trained super-net, else the training of a super-net; `None` for a
    single child.

    Args:
        space: the measured space, as given to the command.
        config: configuration of the space.
        table: the measured table.
        output: file of the table.
    """
    if not config.is_supernet:
        return None
    median = summarize_cost(SearchSpace.from_config(config.candidate_operators), table.cost()).median
    # Three digits, rounded up, so that the median child meets the limit.
    digits = 2 - math.floor(math.log10(median))
    limit = math.ceil(median * 10**digits) / 10**digits
    limits = ("--latency-table", output, "--max-latency-ms", f"{limit:g}")
    if not any(Path(space).glob("*.safetensors")):
        return command("pretrain", "--preset", space, *limits, "--output-dir", "supernet")
    run = Path(space).parent if Path(space).name == SUPERNET_FOLDER else Path(space)
    return command("search", run, *limits, "--output-dir", _beside(run, "found"))


def after_standalone(output_dir: Path) -> str:
    """Returns the command that compares the ranking of a super-net, RUN, with children trained alone."""
    folders = ("--truth", output_dir, "--supernet", "RUN", "--output-dir", _beside(output_dir, "ranking"))
    return command("analyze", "ranking", *folders)


def _beside(folder: Path, what: str) -> Path:
    """Returns a folder next to another one and named after it."""
    return folder.with_name(f"{folder.resolve().name}-{what}") if folder.name else Path(what)
