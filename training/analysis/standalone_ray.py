"""Children trained one by one as tasks of a Ray cluster, on the same journals as `train_standalone`."""

import time
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..bars import progress_bar
from ..space.search_space import Architecture, format_architecture
from ..supernet.journal import Journal
from .settings import StandaloneSettings
from .standalone import StandaloneWorker, check_standalone, standalone_children
from .truth import StandaloneChild, journal_path


# Before a child that a process outside the cluster trains is asked for again.
_POLL_SECONDS = 1.0
# Of a task whose worker was killed, after which the run ends; Ray counts apart what its own monitor kills for want of
# memory.
_MAX_RETRIES = 3


def train_standalone_on_ray(
    settings: StandaloneSettings,
    output_dir: str | Path,
    address: str | None = None,
    num_workers: int | None = None,
    num_cpus: float = 1,
    num_gpus: float = 0,
    progress: bool = True,
) -> list[StandaloneChild]:
    """Trains children one by one as Ray tasks and returns them; each is on disk before its task ends.

    Journals, claims and results are those of `train_standalone`, whose processes may work on the folder as well. A
    task whose worker is killed is run again, on any node: the claim of its child is free by then, so that it is
    trained again, and none twice. The driver may be stopped and started anew. All nodes must see the folder and the
    text under the same path; the extra `ray` must be installed.

    Args:
        settings: which children, and how.
        output_dir: holds a journal for each seed.
        address: of a cluster, as `ray.init` takes it; left out, that of the environment or else this machine.
        num_workers: of this machine where no cluster is named; left out, one for each of its CPUs.
        num_cpus: that a task takes, which its torch has as threads, at least 1.
        num_gpus: that a task takes.
        progress: shows a bar of the children on record with the best loss so far.

    Raises:
        ValueError: Ray is not installed, a child's workers were killed again and again, or as `train_standalone`
            raises it.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is not installed; pip install 'magic-nas[ray]', or start several processes") from None
    check_standalone(settings)
    output_dir = Path(output_dir).resolve()
    # The first worker of all is this process: what is wrong with the settings or the folder is told before any task.
    StandaloneWorker(settings, output_dir)
    is_own = not ray.is_initialized()
    if is_own:
        cpus = None if num_workers is None or address is not None else max(1, round(num_workers * num_cpus))
        ray.init(address=address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=_MAX_RETRIES)(_train_child)
        trained: list[StandaloneChild] = []
        for seed in settings.seeds:
            _run_tasks(ray, task, settings, output_dir, seed, max(1, int(num_cpus)), progress)
            trained += _on_record(settings, output_dir, seed)
        return trained
    finally:
        if is_own:
            ray.shutdown()


def _run_tasks(
    ray: Any, task: Any, settings: StandaloneSettings, output_dir: Path, seed: int, num_threads: int, progress: bool
) -> None:
    """Runs a task for each child; where another process trains it, another one later."""
    children = standalone_children(settings)[1]
    known = {child.architecture for child in _on_record(settings, output_dir, seed)}
    best = min((child.val_loss for child in _on_record(settings, output_dir, seed)), default=float("inf"))

    def submit(child: Architecture) -> Any:
        return task.remote(settings, str(output_dir), child, seed, num_threads)

    running = {submit(child): child for child in children if child not in known}
    with progress_bar(
        total=len(children), initial=len(known), desc=f"children trained, seed {seed}", disable=not progress
    ) as bar:
        while running:
            (ready, *_), _ = ray.wait(list(running), num_returns=1)
            child = running.pop(ready)
            val_loss = _result(ray, ready, child)
            if val_loss is None:
                time.sleep(_POLL_SECONDS)
                running[submit(child)] = child
                continue
            # A loss that is no number is below nothing.
            best = val_loss if val_loss < best else best
            bar.set_postfix(best_loss=f"{best:.4f}", refresh=False)
            bar.update()


def _result(ray: Any, ready: Any, child: Architecture) -> float | None:
    """Returns what a task returned, and raises what it raised."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"the workers that trained {format_architecture(child)} were killed {_MAX_RETRIES + 1} times "
            f"({type(error).__name__}); give them more memory or take fewer at a time, and start again: children on "
            f"record stay"
        ) from error


def _on_record(settings: StandaloneSettings, output_dir: Path, seed: int) -> list[StandaloneChild]:
    journal = Journal(journal_path(output_dir, seed), None, StandaloneChild)
    records = (journal.get(child) for child in standalone_children(settings)[1])
    return [record for record in records if record is not None]


def _train_child(
    settings: StandaloneSettings, output_dir: str, architecture: Architecture, seed: int, num_threads: int
) -> float | None:
    """Returns the loss of a child that is now on record, `None` where another process trains it; runs in a worker."""
    import torch

    torch.set_num_threads(num_threads)
    worker = _worker(_Hashed(settings), output_dir)
    if not worker.train(architecture, seed):
        return None
    record = worker.record(architecture, seed)
    assert record is not None
    return record.val_loss


class _Hashed:
    """Settings that stand for themselves in a cache, although they hold a mapping."""

    def __init__(self, settings: StandaloneSettings):
        self.settings = settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(repr(self.settings))


@lru_cache(maxsize=1)
def _worker(settings: _Hashed, output_dir: str) -> StandaloneWorker:
    """The text is read and prepared once in a process, not for each of its children."""
    return StandaloneWorker(settings.settings, output_dir)
