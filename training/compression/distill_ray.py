"""Distilling children as tasks of a Ray cluster, into the same folders as a single process."""

import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from ..bars import progress_bar
from ..space.search_space import Architecture, format_architecture
from .distill import DISTILLED_NAME, distill
from .settings import CompressSettings
from .workbench import Workbench


# Retries of a task whose worker was killed, after which the run ends. Ray counts tasks that its own monitor kills for
# lack of memory separately.
_MAX_RETRIES = 3


class RayCluster(NamedTuple):
    """Where tasks run, and the resources of each.

    Attributes:
        address: the cluster's address, as `ray.init` takes it; `None` takes the environment's, or else this machine.
        num_workers: number of workers on this machine, if no cluster is given; `None` is one per CPU.
        num_cpus: CPUs per task, which are also its torch threads, at least 1.
        num_gpus: GPUs per task.
    """

    address: str | None = None
    num_workers: int | None = None
    num_cpus: float = 1
    num_gpus: float = 0


class Training(NamedTuple):
    """The distillation of one child.

    Attributes:
        architecture: the child, with its SKIPs.
        steps: number of training steps.
        folder: a folder for this training alone.
    """

    architecture: Architecture
    steps: int
    folder: Path


def check_ray() -> None:
    """Raises a ValueError if Ray is not installed."""
    try:
        import ray  # noqa: F401
    except ImportError:
        raise ValueError("Ray is not installed; pip install 'magic-nas[ray]', or remove --ray") from None


def distill_on_ray(
    settings: CompressSettings,
    folder: Path,
    trainings: Sequence[Training],
    open_bench: Callable[[CompressSettings, Path], Workbench],
    cluster: RayCluster,
    progress: bool,
) -> None:
    """Distils children as Ray tasks; each is saved before its task ends, and children already saved are kept.

    A task whose worker is killed runs again, on any node, and resumes from the last checkpoint of its training. All
    nodes must see the run's folder, the checkpoint and the text under the same paths. The teacher's outputs are read
    from the cache; a node without its own cache runs the teacher once.

    Args:
        settings: settings of the run.
        folder: folder of the run.
        trainings: the distillations to run.
        open_bench: makes a workbench of the run in a worker.
        cluster: where to run them.
        progress: whether to show a bar of the children.

    Raises:
        ValueError: Ray is not installed, or a child's workers were killed too often.
    """
    left = [training for training in trainings if not (training.folder / DISTILLED_NAME).is_file()]
    if not left:
        return
    check_ray()
    import ray

    is_own = not ray.is_initialized()
    if is_own:
        named = cluster.num_workers is None or cluster.address is not None
        cpus = None if named else max(1, round(cluster.num_workers * cluster.num_cpus))  # type: ignore[operator]
        ray.init(address=cluster.address, num_cpus=cpus, include_dashboard=False, log_to_driver=False)
    try:
        task = ray.remote(num_cpus=cluster.num_cpus, num_gpus=cluster.num_gpus, max_retries=_MAX_RETRIES)(_distill)
        threads = max(1, int(cluster.num_cpus))
        running = {task.remote(settings, str(folder), one, open_bench, os.getcwd(), threads): one for one in left}
        with progress_bar(total=len(left), desc="children distilled", disable=not progress) as bar:
            while running:
                (ready, *_), _ = ray.wait(list(running), num_returns=1)
                _check_result(ray, ready, running.pop(ready))
                bar.update()
    finally:
        if is_own:
            ray.shutdown()


def _check_result(ray: Any, ready: Any, training: Training) -> None:
    """Raises the error of a task."""
    try:
        ray.get(ready)
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        raise ValueError(
            f"the workers that distilled {format_architecture(training.architecture)} were killed {_MAX_RETRIES + 1} "
            f"times ({type(error).__name__}); give them more memory or run fewer at a time, and start again: finished "
            f"distillations are kept"
        ) from error


def _distill(
    settings: CompressSettings, folder: str, training: Training, open_bench: Any, directory: str, num_threads: int
) -> None:
    """Distils one child; runs in a worker, which starts in a directory of its own."""
    import torch

    os.chdir(directory)
    torch.set_num_threads(num_threads)
    bench = _bench(settings, folder, open_bench)
    distill(bench, training.architecture, training.steps, training.folder, progress=False)


@lru_cache(maxsize=1)
def _bench(settings: CompressSettings, folder: str, open_bench: Any) -> Workbench:
    """Returns the workbench; cached, so that a process reads the text once and not for each of its children."""
    return open_bench(settings, Path(folder))
