"""Children trained as tasks of a local Ray of two workers: a killed one's child again, none twice."""

import json
import os
import signal
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_standalone import toy_standalone, trained_with

from training.analysis import standalone_ray
from training.analysis.standalone import StandaloneWorker, train_standalone
from training.analysis.standalone_ray import train_standalone_on_ray
from training.analysis.truth import journal_path


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")


@pytest.fixture
def settings(tmp_path):
    return toy_standalone(tmp_path, num_layers=3)


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []


def test_without_ray_the_error_says_what_to_install(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"magic-nas\[ray\]"):
        train_standalone_on_ray(settings, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_worker_reads_the_text_once(settings, tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(standalone_ray, "StandaloneWorker", lambda *given: made.append(given) or given)
    standalone_ray._worker.cache_clear()
    for same in (settings, replace(settings)):
        standalone_ray._worker(standalone_ray._Hashed(same), str(tmp_path))
    assert len(made) == 1
    standalone_ray._worker(standalone_ray._Hashed(replace(settings, num_children=2)), str(tmp_path))
    assert len(made) == 2
    standalone_ray._worker.cache_clear()


class _RayError(Exception): ...


class _RayTaskError(_RayError): ...


class WorkerCrashedError(_RayError): ...


class FakeRay:
    """Runs tasks one by one in this process; some end as those of killed workers do."""

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)

    def __init__(self, worker, crashing=()):
        self._worker, self._crashing = worker, crashing

    def remote(self, settings, output_dir, child, seed, num_threads):
        return child, seed

    def wait(self, tasks, num_returns):
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task):
        if task[0] in self._crashing:
            raise WorkerCrashedError
        self._worker.train(*task)
        return self._worker.record(*task).val_loss


def test_tasks_are_waited_for_one_by_one(settings, tmp_path):
    ray = FakeRay(StandaloneWorker(settings, tmp_path / "out"))
    standalone_ray._run_tasks(ray, ray, settings, tmp_path / "out", 0, 1, progress=False)
    assert len(_lines(journal_path(tmp_path / "out", 0))) == 8


def test_a_child_whose_workers_are_always_killed_is_named(settings, tmp_path):
    ray = FakeRay(StandaloneWorker(settings, tmp_path / "out"), crashing=[("FFN", "CONV3", "FFN")])
    with pytest.raises(ValueError, match=r"that trained FFN,CONV3,FFN were killed 4 times \(WorkerCrashedError\)"):
        standalone_ray._run_tasks(ray, ray, settings, tmp_path / "out", 0, 1, progress=False)


@pytest.mark.slow
@needs_ray
def test_a_killed_workers_child_is_trained_again_and_none_twice(settings, tmp_path, monkeypatch):
    # Local workers find the modules that only this test has.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    longer = trained_with(settings, max_steps=300, use_cpu=True)
    output = tmp_path / "ray"
    killed = []

    def kill_the_worker_of_a_child() -> None:
        # The descriptor of a claimed child's lock tells which process trains it: the kernel lists both.
        while not killed:
            time.sleep(0.02)
            claims = output / "standalone-0.jsonl.claims"
            if not _lines(journal_path(output, 0)) or not claims.is_file():
                continue
            inode = f":{claims.stat().st_ino} "
            for line in Path("/proc/locks").read_text().splitlines():
                if inode in line and (pid := int(line.split()[4])) != os.getpid():
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                    break

    thread = threading.Thread(target=kill_the_worker_of_a_child, daemon=True)
    thread.start()
    trained = train_standalone_on_ray(longer, output, num_workers=2, progress=False)
    thread.join(timeout=5)
    assert killed
    lines = _lines(journal_path(output, 0))
    assert len({line["architecture"] for line in lines}) == len(lines) == len(trained) == 8
    alone = train_standalone(longer, tmp_path / "alone", progress=False)
    assert [child.val_loss for child in trained] == [child.val_loss for child in alone]
    # A second call finds all on record.
    assert train_standalone_on_ray(longer, output, num_workers=2, progress=False) == trained
