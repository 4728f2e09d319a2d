"""A super-net run in a second, for tests of the trainer and for the processes that they start and kill."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from modeling_magic import MagicConfig, MagicForMaskedLM
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.trainer import MagicTrainer


def toy_config(dropout: float = 0.1, **changes) -> MagicConfig:
    fields = {
        "candidate_operators": [["MHA4", "FFN", "CONV3", "CONV5"] for _ in range(4)],
        "vocab_size": 100,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 64,
        "hidden_dropout_prob": dropout,
        "attention_probs_dropout_prob": dropout,
    }
    return MagicConfig(**{**fields, **changes})


def toy_data(num_sequences: int = 64, masked_fraction: float = 0.3) -> list[dict[str, torch.Tensor]]:
    """Sequences in which a token follows from its left neighbour; the share of masked tokens varies."""
    generator = torch.Generator().manual_seed(1)
    data = []
    for _ in range(num_sequences):
        start = torch.randint(5, 100, (1,), generator=generator)
        ids = 5 + (start + 7 * torch.arange(12)) % 95
        labels = torch.where(torch.rand(12, generator=generator) < masked_fraction, ids, -100)
        labels[3] = ids[3]
        data.append({"input_ids": torch.where(labels != -100, 4, ids), "labels": labels})
    return data


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in ("input_ids", "labels")}


def toy_trainer(output_dir, config: MagicConfig | None = None, data=None, callbacks=None, **arguments) -> MagicTrainer:
    settings = {
        "sampler": "gradual",
        "alignment": "anchor",
        "max_steps": 24,
        "per_device_train_batch_size": 8,
        "logging_steps": 5,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "alignment_every_n_layers": 2,
        "alignment_warmup_steps": 3,
        "anchor_eval_steps": 4,
        "num_validation_sequences": 8,
        "shrink_num_children": 8,
        **arguments,
    }
    torch.manual_seed(0)
    data = data or toy_data()
    return MagicTrainer(
        model=MagicForMaskedLM(config or toy_config()),
        args=MagicTrainingArguments(str(output_dir), **settings),
        train_dataset=data,
        eval_dataset=data[:16],
        data_collator=collate,
        callbacks=callbacks,
    )


RESUMABLE: dict[str, Any] = {
    "max_steps": 40,
    "save_strategy": "steps",
    "save_steps": 8,
    "save_total_limit": 2,
    "shrink": True,
    "shrink_every_n_steps": 6,
    "shrink_operators_per_round": 3,
    "num_substitutions": 2,
}


# No dropout and no adaptive step sizes: what two processes compute differs from one by the order of sums only.
PLAIN: dict[str, Any] = {"max_steps": 12, "optim": "sgd", "gradient_accumulation_steps": 2}


class KillAt(TrainerCallback):
    """Ends the process as `kill -9` does, after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def distributed(output: Path, config: MagicConfig, arguments: dict[str, Any], on_cuda: bool = False) -> None:
    """One of the processes under torchrun: what it drew, decided and holds at the end goes to a file."""
    place = {"ddp_backend": "nccl"} if on_cuda else {"use_cpu": True, "ddp_backend": "gloo"}
    trainer = toy_trainer(output / "run", config, **{**arguments, "per_device_train_batch_size": 4, **place})
    trainer.train()
    state = trainer.nas_state() | {"weights": [parameter.detach().cpu() for parameter in trainer.model.parameters()]}
    torch.save(state, output / f"rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    mode, folder = sys.argv[1], Path(sys.argv[2])
    if mode == "shrinking":
        distributed(folder, toy_config(), {**RESUMABLE, "max_steps": 12})
    elif mode in ("plain", "plain-on-cuda"):
        distributed(folder, toy_config(0.0), PLAIN, on_cuda=mode == "plain-on-cuda")
    else:
        toy_trainer(folder, callbacks=[KillAt(int(mode))], **RESUMABLE).train()
    if torch.distributed.is_initialized():
        # Without this, a process may abort at its exit.
        torch.distributed.destroy_process_group()
