"""Replaced-token detection in a second, for its tests and for the processes that they start."""

import sys
from pathlib import Path
from typing import Any

import torch
from toy import toy_config
from transformers import TrainingArguments

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicForPreTraining
from training.retraining.rtd import ReplacedTokenTrainer
from training.retraining.rtd_model import ReplacedTokenModel, generator_config


CHAIN = ("MHA4", "FFN", "CONV3", "FFN")


def toy_child(dropout: float = 0.1, **changes) -> MagicConfig:
    return toy_config(dropout, candidate_operators=[[operator] for operator in CHAIN], **changes)


def toy_pair(config: MagicConfig | None = None, seed: int = 0, fraction: float = 0.5, **changes) -> ReplacedTokenModel:
    config = config or toy_child()
    torch.manual_seed(seed)
    generator = MagicForMaskedLM(generator_config(config, fraction))
    return ReplacedTokenModel(generator=generator, discriminator=MagicForPreTraining(config), **changes)


def padded_data(num_sequences: int = 64) -> list[dict[str, torch.Tensor]]:
    """Sequences of five to twelve tokens, padded, in which a token follows from its left neighbour."""
    generator = torch.Generator().manual_seed(1)
    rows = []
    for _ in range(num_sequences):
        start, length = (int(torch.randint(5, 13, (1,), generator=generator)) for _ in range(2))
        mask = (torch.arange(12) < length).long()
        ids = (5 + (start + 7 * torch.arange(12)) % 95) * mask
        chosen = (torch.rand(12, generator=generator) < 0.3) & mask.bool()
        chosen[3] = True
        labels = torch.where(chosen, ids, -100)
        rows.append({"input_ids": torch.where(chosen, 4, ids), "attention_mask": mask, "labels": labels})
    return rows


def topic_data(num_sequences: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """Sequences of tokens of one out of four topics, a quarter of them masked; other seeds give other sequences."""
    generator = torch.Generator().manual_seed(seed)
    topics = 5 + 5 * torch.randint(0, 4, (num_sequences, 1), generator=generator)
    ids = topics + torch.randint(0, 5, (num_sequences, 12), generator=generator)
    labels = torch.where(torch.rand(ids.shape, generator=generator) < 0.25, ids, -100)
    inputs = torch.where(labels != -100, 4, ids)
    return [{"input_ids": row, "labels": label} for row, label in zip(inputs, labels, strict=True)]


def stack(rows: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def toy_arguments(output_dir, **arguments) -> TrainingArguments:
    settings = {
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        **arguments,
    }
    return TrainingArguments(str(output_dir), **settings)


def rtd_trainer(output_dir, model=None, data=None, rtd_weight: float = 50.0, callbacks=None, **arguments):
    data = data or padded_data()
    return ReplacedTokenTrainer(
        model or toy_pair(),
        toy_arguments(output_dir, **arguments),
        rtd_weight=rtd_weight,
        train_dataset=data,
        eval_dataset=data[:19],
        data_collator=stack,
        callbacks=callbacks,
    )


# A checkpoint is no multiple of a log, and an epoch (eight steps) no multiple of either.
RESUMABLE: dict[str, Any] = {"max_steps": 15, "save_strategy": "steps", "save_steps": 5, "logging_steps": 3}

# No dropout and no adaptive step sizes: what two processes compute differs from one by the order of sums only.
PLAIN: dict[str, Any] = {"max_steps": 6, "optim": "sgd", "gradient_accumulation_steps": 2, "learning_rate": 0.01}


def distributed(folder: Path) -> None:
    """One of the processes under torchrun: what it logged, measured and holds at the end goes to a file."""
    arguments = {**PLAIN, "per_device_train_batch_size": 4, "per_device_eval_batch_size": 4}
    trainer = rtd_trainer(folder / "run", toy_pair(toy_child(0.0)), use_cpu=True, ddp_backend="gloo", **arguments)
    trainer.train()
    metrics = trainer.evaluate()
    weights = [parameter.detach() for parameter in trainer.model.parameters()]
    state = {"weights": weights, "log_history": trainer.state.log_history, "metrics": metrics}
    torch.save(state, folder / f"rank{trainer.args.process_index}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
