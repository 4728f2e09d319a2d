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


# Time before checking again on a child that a process outside the cluster is training.
_POLL_SECONDS = 1.0
# Retries of a task whose worker was killed, after which the run fails. Ray separately counts workers that its own
# monitor kills for lack of memory.
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
    """Trains children one by one as Ray tasks and returns them. Each is on disk before its task ends.

    Journals, claims and results are those of `train_standalone`, whose processes may work on the same folder. If a
    worker is killed, its task runs again on any node: the claim of its child has been released by then, so the child
    is trained again, and no child is trained twice. The driver may be stopped and restarted. All nodes must see the
    folder and the text under the same path, and the extra `ray` must be installed.

    Args:
        settings: which children to train, and how.
        output_dir: a folder for a journal per seed.
        address: the address of a cluster for `ray.init`. Default: the cluster that the environment names, otherwise
            this machine.
        num_workers: number of workers on this machine if no cluster is named. Default: one for each CPU.
        num_cpus: CPUs per task. Torch uses as many threads, at least 1.
        num_gpus: GPUs per task.
        progress: whether to show a bar of the children on record, with the best loss so far.

    Raises:
        ValueError: Ray is not installed, the workers of a child were killed repeatedly, or `train_standalone` would
            raise it.
    """
    try:
        import ray
    except ImportError:
        raise ValueError("Ray is not installed; pip install 'magic-nas[ray]', or start several processes") from None
    check_standalone(settings)
    output_dir = Path(output_dir).resolve()
    # This process makes the first worker, so errors in the settings or the folder are raised before any task runs.
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
    """Runs a task for each child, and again later if another process is training it."""
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
            # NaN is not below any number.
            best = val_loss if val_loss < best else best
            bar.set_postfix(best_loss=f"{best:.4f}", refresh=False)
            bar.update()


def _result(ray: Any, ready: Any, child: Architecture) -> float | None:
    """Returns the result of a task, or raises its error."""
    try:
        return ray.get(ready)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"the workers that trained {format_architecture(child)} were killed {_MAX_RETRIES + 1} times "
            f"({type(error).__name__}); give them more memory or run fewer at a time, and start again: children on "
            f"record stay"
        ) from error


def _on_record(settings: StandaloneSettings, output_dir: Path, seed: int) -> list[StandaloneChild]:
    journal = Journal(journal_path(output_dir, seed), None, StandaloneChild)
    records = (journal.get(child) for child in standalone_children(settings)[1])
    return [record for record in records if record is not None]


def _train_child(
    settings: StandaloneSettings, output_dir: str, architecture: Architecture, seed: int, num_threads: int
) -> float | None:
    """Returns the loss of a child that is now on record, `None` if another process trains it. Runs in a worker."""
    import torch

    torch.set_num_threads(num_threads)
    worker = _worker(_Hashed(settings), output_dir)
    if not worker.train(architecture, seed):
        return None
    record = worker.record(architecture, seed)
    assert record is not None
    return record.val_loss


class _Hashed:
    """Makes settings hashable as a cache key, although they hold a mapping."""

    def __init__(self, settings: StandaloneSettings):
        self.settings = settings

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Hashed) and self.settings == other.settings

    def __hash__(self) -> int:
        return hash(repr(self.settings))


@lru_cache(maxsize=1)
def _worker(settings: _Hashed, output_dir: str) -> StandaloneWorker:
    """Returns the worker of this process, which reads and prepares the text once for all its children."""
    return StandaloneWorker(settings.settings, output_dir)
