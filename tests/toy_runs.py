"""What runs in folders begin with, small enough for a second: a text, a preset, a teacher and a finished search."""

import json
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, set_seed

from training.data.settings import DataSettings
from training.data.text import load_data
from training.retraining.settings import RetrainSettings
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings


WORDS = "model layer weight search child anchor token batch loss step operator attention kernel value".split()


def write_text(folder: Path, num_documents: int = 60) -> Path:
    """Fills a folder with English-like text and returns it; 60 documents are some hundred blocks of 16 tokens."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(0, len(WORDS), (num_documents, 40), generator=generator).tolist()
    documents = [". ".join(f"the {WORDS[a]} of the {WORDS[(a + 3) % len(WORDS)]}" for a in row) + "." for row in picks]
    (folder / "a.txt").write_text("\n\n".join(documents))
    return folder


def text_settings(folder: Path, vocab_size: int = 80) -> DataSettings:
    """Settings for blocks of 16 tokens of the text in a folder."""
    return DataSettings(source=str(folder), vocab_size=vocab_size, block_size=16, validation_fraction=0.1)


def write_preset(folder: Path, **changes: Any) -> str:
    """Writes a space of four layers of three operators and returns its path."""
    config = {
        "model_type": "magic",
        "candidate_operators": [["MHA4", "FFN", "CONV3"]] * 4,
        "vocab_size": 80,
        "hidden_size": 32,
        "intermediate_size": 64,
        "max_position_embeddings": 16,
        **changes,
    }
    (folder / "toy.json").write_text(json.dumps(config))
    return str(folder / "toy.json")


def write_teacher(folder: Path, text: DataSettings, sizes: dict[str, Any]) -> str:
    """Saves a BERT of transformers with a tokenizer that was trained on the text, and returns its folder."""
    tokenizer = load_data(text).tokenizer
    set_seed(3)
    BertForMaskedLM(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


# ---- What the tests of several rooms read, made once in a process; they write nothing there ----

_shared = tempfile.TemporaryDirectory(prefix="magic-tests-")


def _shared_folder(name: str) -> Path:
    folder = Path(_shared.name) / name
    folder.mkdir()
    return folder


@cache
def shared_text() -> Path:
    """The folder of a text of 150 documents."""
    return write_text(_shared_folder("text"), num_documents=150)


@cache
def shared_preset() -> str:
    """The path of a preset that computes the logits of masked positions only."""
    return write_preset(_shared_folder("preset"), vocab_size=100, sparse_prediction=True)


@cache
def shared_search() -> tuple[Path, dict[str, Any]]:
    """The folder of a finished super-net run and its result."""
    folder = Path(_shared.name) / "search"
    return folder, pretrain(search_settings(shared_preset(), text_settings(shared_text(), vocab_size=100)), folder)


def search_settings(preset: str, data: DataSettings, **arguments: Any) -> PretrainSettings:
    """Settings of a super-net run of 12 steps that shrinks twice."""
    return PretrainSettings(
        preset,
        data=data,
        training_arguments={
            "sampler": "gradual",
            "alignment": "anchor",
            "max_steps": 12,
            "per_device_train_batch_size": 8,
            "shrink": True,
            "shrink_every_n_steps": 4,
            "shrink_num_children": 6,
            "alignment_warmup_steps": 2,
            "anchor_eval_steps": 3,
            "num_validation_sequences": 16,
            "disable_tqdm": True,
            "save_steps": 5,
            "logging_steps": 2,
            **arguments,
        },
    )


def train_settings(
    preset: str, data: DataSettings, architecture: str = "MHA4,FFN,CONV3,FFN", **arguments: Any
) -> RetrainSettings:
    """Settings of a child's training of 8 steps."""
    return RetrainSettings(
        preset,
        architecture,
        num_validation_sequences=16,
        data=data,
        training_arguments={
            "max_steps": 8,
            "per_device_train_batch_size": 8,
            "disable_tqdm": True,
            "save_steps": 3,
            "logging_steps": 2,
            "learning_rate": 1e-3,
            **arguments,
        },
    )
