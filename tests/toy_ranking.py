"""What rankings and sweeps begin with: children as if trained alone, and super-nets, made once in a process."""

import csv
import random
import tempfile
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from toy_standalone import toy_standalone

from training.analysis.settings import StandaloneSettings
from training.analysis.standalone import StandaloneWorker
from training.analysis.truth import StandaloneChild, journal_path
from training.supernet.journal import Journal
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings


TRAINING: dict[str, Any] = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2}
TRAINING |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": True, "num_validation_sequences": 8}
TRAINING |= {
    "sampler": "gradual",
    "alignment": "anchor",
    "num_probe_children": 0,
    "alignment_every_n_layers": 2,
    "shrink_num_children": 4,
}
METHODS = {"SPOS": {"sampler": "uniform", "alignment": "none"}, "MAGIC-T": {"alignment": "none"}}

_shared = tempfile.TemporaryDirectory(prefix="magic-tests-")


def pretrain_settings(alone: StandaloneSettings, **changes) -> PretrainSettings:
    """Settings of a super-net on the preset and the text of the children trained alone."""
    return PretrainSettings(preset=alone.preset, data=alone.data, training_arguments={**TRAINING, **changes})


@cache
def shared_alone() -> StandaloneSettings:
    """Settings that train eight children alone, of three layers."""
    folder = Path(_shared.name) / "text"
    folder.mkdir()
    settings = toy_standalone(folder, num_layers=3)
    return replace(settings, training_arguments={**settings.training_arguments, "use_cpu": True})


@cache
def shared_truth() -> Path:
    """Children as if trained alone, twice each: their journals with made-up losses."""
    folder, both = Path(_shared.name) / "truth", replace(shared_alone(), seeds=(0, 1))
    folder.mkdir()
    worker, rng = StandaloneWorker(both, folder), random.Random(0)
    for seed in both.seeds:
        journal = Journal(journal_path(folder, seed), None, StandaloneChild)
        journal = Journal(journal.path, journal.key, StandaloneChild)
        for child in worker.children:
            loss = 4 - 0.2 * child.count("CONV3") + rng.gauss(0, 0.05)
            journal.append(StandaloneChild(child, loss, rng.random(), (), seed, 8, 1.0, (6.0, 5.0, 5.0)))
    return folder


@cache
def shared_supernets() -> tuple[str, ...]:
    """The runs of two super-nets of each method."""
    folders = []
    for name, method in METHODS.items():
        for seed in (0, 1):
            folders.append(Path(_shared.name) / f"{name}-{seed}")
            pretrain(pretrain_settings(shared_alone(), seed=seed, **method), folders[-1])
    return tuple(map(str, folders))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a table."""
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
