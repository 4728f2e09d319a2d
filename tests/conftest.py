"""What every test shares: no network, one thread, caches that go away, and a small super-net."""

import gc
import os
import tempfile
from pathlib import Path


# Read by the Hugging Face libraries when they are imported, so set before any of them is. Worker processes of
# pytest-xdist import this file anew: each has its own caches.
_caches = tempfile.TemporaryDirectory(prefix="magic-tests-")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TRANSFORMERS_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["HF_DATASETS_CACHE"] = os.path.join(_caches.name, "datasets")
os.environ["MAGIC_CACHE"] = os.path.join(_caches.name, "magic")
# Read by CUDA's libraries at their first product: float32 has all of its bits, and products repeat theirs.
os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"

import pytest
import torch
from hypothesis import settings
from toy import toy_config

from modeling_magic import MagicForMaskedLM


torch.set_num_threads(1)
torch.set_num_interop_threads(1)

# The same examples in every run; no deadline, since a loaded machine is slow and not wrong.
settings.register_profile("magic", deadline=None, derandomize=True)
settings.load_profile("magic")


def pytest_collection_finish(session):
    # `Trainer.train` collects garbage, which takes 0.3 s while it walks through all that the imports have made.
    gc.collect()
    gc.freeze()


def pytest_runtest_setup(item):
    if item.get_closest_marker("data") and not os.environ.get("MAGIC_DATA"):
        pytest.skip("MAGIC_DATA names no folder of real text")


@pytest.fixture
def data_folder() -> Path:
    """The folder that MAGIC_DATA names, for tests marked `data`."""
    folder = Path(os.environ["MAGIC_DATA"])
    if not folder.is_dir():
        pytest.fail(f"MAGIC_DATA is {folder}, which is no folder; name one or unset it")
    return folder


@pytest.fixture(scope="session")
def tiny_config():
    """Factory of a four-layer super-net's configuration; keywords replace fields."""
    return toy_config


@pytest.fixture
def supernet(tiny_config) -> MagicForMaskedLM:
    """The super-net of `tiny_config`, weights of seed 0, in evaluation mode."""
    torch.manual_seed(0)
    return MagicForMaskedLM(tiny_config()).eval()
