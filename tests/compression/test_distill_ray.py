"""Children of a family as tasks of a local Ray of two workers, of which one is killed."""

import os
import signal
import sys
import threading
import time
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
from safetensors.torch import load_file
from toy_compress import toy_settings

from training.compression import compress_run
from training.compression.compress_run import compress
from training.compression.distill import DISTILLED_NAME
from training.compression.distill_ray import RayCluster


needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="the extra `ray` is not installed")


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("training.compression.judging.check_packages", _not_installed)
    return toy_settings(tmp_path)


def _not_installed(int8: bool) -> None:
    raise ValueError("no ONNX here")


def test_without_ray_the_error_comes_before_any_work(settings, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr(compress_run, "load_source", None)
    with pytest.raises(ValueError, match=r"magic-nas\[ray\]"):
        compress(settings, tmp_path / "out", progress=False, cluster=RayCluster())
    assert not (tmp_path / "out").exists()


def _processes_of_tasks() -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if b"ray::_distill" in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.slow
@needs_ray
def test_a_killed_workers_child_is_distilled_again_to_the_same_weights(settings, tmp_path, monkeypatch):
    # Local workers find the modules that only this test has.
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).resolve().parents[1]))
    family = replace(settings, max_flops=("0.6x", "0.4x"), steps=30)
    killed = []

    def kill_a_worker() -> None:
        while not killed:
            time.sleep(0.05)
            if any((tmp_path / "ray").rglob(DISTILLED_NAME)) and (processes := _processes_of_tasks()):
                os.kill(processes[0], signal.SIGKILL)
                killed.append(processes[0])

    thread = threading.Thread(target=kill_a_worker, daemon=True)
    thread.start()
    result = compress(family, tmp_path / "ray", progress=False, cluster=RayCluster(num_workers=2))
    thread.join(timeout=5)
    assert killed
    alone = compress(family, tmp_path / "alone", progress=False)
    for name in ("member", "role", "architecture", "steps", "loss", "score"):
        assert [row[name] for row in result["models"]] == [row[name] for row in alone["models"]]
    for member in ("flops-0.6x", "flops-0.4x"):
        own, other = (load_file(tmp_path / run / "model" / member / "model.safetensors") for run in ("ray", "alone"))
        assert own.keys() == other.keys()
        assert all((own[name] == other[name]).all() for name in own)
