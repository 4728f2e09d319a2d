"""What runs in folders begin with, small enough for a second: a text, a preset and a teacher."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, set_seed

from training.data.settings import DataSettings
from training.data.text import load_data


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
