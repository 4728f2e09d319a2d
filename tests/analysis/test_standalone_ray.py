"""Children trained as tasks of a local Ray of two workers: a killed one's child again, none twice."""

import json
import os
import pickle
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

    class Counted(StandaloneWorker):
        def __init__(self, *given):
            made.append(given)
            super().__init__(*given)

    monkeypatch.setitem(sys.modules, "ray", FakeRay())
    monkeypatch.setattr(standalone_ray, "StandaloneWorker", Counted)
    few = replace(settings, num_children=3)
    train_standalone_on_ray(few, tmp_path / "out", progress=False)
    # The driver's, which checks the settings, and that of the tasks.
    assert len(made) == 2
    train_standalone_on_ray(replace(few, num_children=4), tmp_path / "out", progress=False)
    assert len(made) == 4


class _RayError(Exception): ...


class _RayTaskError(_RayError): ...


class WorkerCrashedError(_RayError): ...


class FakeRay:
    """Runs tasks one by one in this process; some end as those of killed workers do."""

    exceptions = SimpleNamespace(RayError=_RayError, RayTaskError=_RayTaskError)

    def __init__(self, crashing=()):
        self._crashing = crashing
        self.asked, self.began, self.calls = {}, 0, []

    def is_initialized(self):
        return False

    def init(self, **options):
        self.began += 1

    def shutdown(self):
        self.began -= 1

    def remote(self, **options):
        self.asked = options
        return lambda function: SimpleNamespace(remote=lambda *given: Task(function, pickle.dumps(given)))

    def wait(self, tasks, num_returns):
        self.calls.append("wait")
        return tasks[:num_returns], tasks[num_returns:]

    def get(self, task):
        self.calls.append("get")
        given = pickle.loads(task.given)
        if any(chain in given for chain in self._crashing):
            raise WorkerCrashedError
        return task.function(*given)


class Task:
    """A function and what it is given, on its way to a worker."""

    def __init__(self, function, given: bytes):
        self.function, self.given = function, given


@pytest.mark.slow
def test_tasks_are_waited_for_one_by_one(settings, tmp_path, monkeypatch):
    ray = FakeRay()
    monkeypatch.setitem(sys.modules, "ray", ray)
    trained = train_standalone_on_ray(settings, tmp_path / "out", num_cpus=1, num_gpus=0.5, progress=False)
    assert len(_lines(journal_path(tmp_path / "out", 0))) == len(trained) == 8
    assert ray.calls == ["wait", "get"] * 8
    # A task whose worker is killed is run again three times.
    assert ray.asked == {"num_cpus": 1, "num_gpus": 0.5, "max_retries": 3}
    assert ray.began == 0
    # What is on record is no task.
    assert train_standalone_on_ray(settings, tmp_path / "out", progress=False) == trained
    assert len(ray.calls) == 16


def test_a_child_whose_workers_are_always_killed_is_named(settings, tmp_path, monkeypatch):
    ray = FakeRay(crashing=[("FFN", "CONV3", "FFN")])
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"that trained FFN,CONV3,FFN were killed 4 times \(WorkerCrashedError\)"):
        train_standalone_on_ray(settings, tmp_path / "out", progress=False)
    assert ray.began == 0


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
