"""A super-net's training on an accelerator: near that of the CPU in every precision, resumed to the same bits, DDP."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import PLAIN, RESUMABLE, toy_config, toy_trainer
from toy_devices import SIZES, needs_cuda, on_devices
from transformers import TrainingArguments

from training.internals import forget_accelerator
from training.space.latency import measure_child
from training.space.settings import LatencySettings
from training.supernet.trainer import MagicTrainer


TOY = str(Path(__file__).parents[1] / "toy.py")
on_devices_in_each_precision = pytest.mark.parametrize(
    ("device", "precision"),
    [
        ("cpu", "bf16"),
        *(
            pytest.param("cuda", precision, marks=[pytest.mark.gpu, needs_cuda])
            for precision in ("float32", "bf16", "fp16")
        ),
    ],
)


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    """The first, on a machine that has several."""
    monkeypatch.setattr(TrainingArguments, "n_gpu", property(lambda args: int(args.device.type == "cuda")))


def trainer_on(device: str, precision: str, folder: Path, dropout: float = 0.1, **changes: Any) -> MagicTrainer:
    if precision != "float32":
        changes[precision] = True
    return toy_trainer(folder, toy_config(dropout), use_cpu=device == "cpu", **changes)


def logged(trainer: MagicTrainer, name: str) -> list[float]:
    return [entry[name] for entry in trainer.state.log_history if name in entry]


@on_devices_in_each_precision
def test_training_is_that_of_the_cpu(tmp_path, device, precision):
    """Without dropout, so that nothing is drawn on the device: both losses of Eq. (2), step by step."""
    settings: dict[str, Any] = {"max_steps": 6, "logging_steps": 1, "gradient_accumulation_steps": 2, "optim": "sgd"}
    # The anchor stays what it is: which of two children is right more often may depend on rounding.
    settings |= {"alignment_warmup_steps": 2, "anchor_eval_steps": 100}
    reference = trainer_on("cpu", "float32", tmp_path / "reference", dropout=0.0, **settings)
    reference.train()
    # All trainers of a process share the device of the first.
    forget_accelerator()
    trainer = trainer_on(device, precision, tmp_path / "own", dropout=0.0, **settings)
    assert trainer.args.device.type == device
    if precision == "fp16":
        # The scale that trainings begin with, 2**16, may overflow, which costs steps that the CPU takes.
        scaler = trainer.accelerator.scaler
        scaler.load_state_dict({**scaler.state_dict(), "scale": 128.0})
    trainer.train()
    assert None not in (reference.anchor, trainer.anchor)
    assert trainer.nas_state()["architecture"] == reference.nas_state()["architecture"]
    # Rounding to 8 bits (11 of float16) changes a loss of about 4.6 by a thousandth of it.
    tolerance = {"float32": 1e-5, "bf16": 4e-3, "fp16": 1e-3}[precision]
    # Gradients pass the chain twice; L_align is of differences of states, each rounded, squared.
    for name, times in (("loss_pred", 1), ("grad_norm", 2), ("loss_align", 8)):
        assert logged(trainer, name) == pytest.approx(logged(reference, name), rel=times * tolerance), name
    assert logged(reference, "loss_align")[-1] > 0
    forget_accelerator()


@pytest.fixture
def deterministic():
    """Kernels that repeat their bits, as `full_determinism` of the training arguments asks for."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@on_devices_in_each_precision
@pytest.mark.usefixtures("deterministic")
def test_a_resumed_training_has_the_same_bits(tmp_path, device, precision):
    """With dropout, which the device draws, alignment and a round of shrinking on either side of the checkpoint."""
    settings = {**RESUMABLE, "max_steps": 14, "save_steps": 7, "save_total_limit": None}
    whole = trainer_on(device, precision, tmp_path, **settings)
    whole.train()
    assert len(whole.shrink_history) == 2
    # The generators stand elsewhere than where the checkpoint was made.
    torch.rand(3, device=device)
    resumed = trainer_on(device, precision, tmp_path, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-7"))
    for own, other in zip(whole.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(own, other)
    assert json.dumps(whole.nas_state()) == json.dumps(resumed.nas_state())
    assert whole.state.log_history[-2] == resumed.state.log_history[-2]


@on_devices
def test_measuring_a_latency_draws_nothing_from_the_device(device):
    torch.manual_seed(3)
    expected = torch.rand(4, device=device)
    torch.manual_seed(3)
    settings = LatencySettings(device=device, seq_len=8, min_run_time=0.001)
    measure_child(toy_config(**SIZES), ("FFN", "MHA4", "CONV3", "FFN"), settings)
    assert torch.equal(torch.rand(4, device=device), expected)


@pytest.mark.gpu
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices")
def test_two_devices_of_four_sequences_are_one_of_eight(tmp_path):
    """As two processes on CPUs are one (supernet/test_trainer.py), over NCCL: only the order of sums differs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, TOY, "plain-on-cuda", str(tmp_path)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = toy_trainer(tmp_path / "alone", toy_config(0.0), use_cpu=True, **PLAIN)
    alone.train()
    assert first["architecture"] == second["architecture"] == list(alone.architecture)
    for expected, own, other in zip(alone.model.parameters(), first["weights"], second["weights"], strict=True):
        assert torch.equal(own, other)
        torch.testing.assert_close(own, expected.detach(), rtol=0, atol=1e-5)
