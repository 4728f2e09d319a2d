"""What exports and conversions begin with: a tokenizer, a child, the record of its search, and a BERT checkpoint."""

from pathlib import Path
from typing import Any

import torch
from transformers import BertConfig, BertForMaskedLM, BertForPreTraining, PreTrainedTokenizerBase

from modeling_magic import MagicForMaskedLM
from training.data.tokenizing import train_tokenizer


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
SEARCH: dict[str, Any] = {
    "candidate_operators": [["MHA4", "FFN", "CONV3", "CONV5"]] * 4,
    "sampler": "gradual, k = 1",
    "alignment": "anchor",
    "steps": 1200,
    "seed": 3,
    "val_loss": 5.25,
}
CORPUS: dict[str, Any] = {
    "source": "docstrings",
    "dataset_config": None,
    "split": "train",
    "sha256": {"train": "a" * 64, "validation": "b" * 64},
}
TRAINING: dict[str, Any] = {
    "seed": 1,
    "steps": 800,
    "tokens_per_step": 4096,
    "start": "random weights",
    "versions": {"torch": "2"},
    "corpus": CORPUS,
}
BERT_SIZES: dict[str, Any] = {
    "vocab_size": 90,
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 80,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
SENTENCES = [
    "A man is playing a guitar.",
    "Someone plays an instrument on the stage of the old town hall, and nobody listens.",
    "Interest rates rose by half a point.",
    "No.",
]


def export_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer of 100 tokens or fewer that knows a fox."""
    texts = ["the quick brown fox jumps over the lazy dog", "a function returns the value of its argument"]
    return train_tokenizer(texts * 20, vocab_size=100)


def export_child(supernet: MagicForMaskedLM, tokenizer: PreTrainedTokenizerBase) -> MagicForMaskedLM:
    """The child `MIXED` of a super-net of the toy's sizes, with the tokenizer's vocabulary."""
    supernet.config.sparse_prediction = True
    child = supernet.extract_child(MIXED)
    child.resize_token_embeddings(len(tokenizer))
    return child


def shaken(model):
    """The model with every parameter off its start: ones, zeros and equal rows would hide swapped keys."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn_like(parameter)
    return model.eval()


def assert_same_tensors(first, second) -> None:
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype
        assert torch.equal(tensor, second[name]), name


def save_bert(folder: Path) -> Path:
    """Saves a checkpoint with a tokenizer and a card of its own, and returns its folder."""
    tokenizer = train_tokenizer(SENTENCES * 20, vocab_size=90)
    torch.manual_seed(0)
    model = shaken(BertForPreTraining(BertConfig(**{**BERT_SIZES, "vocab_size": len(tokenizer)})))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text("---\nlicense: mit\nlanguage: de\n---\n# A model\n")
    return folder


def save_bare_bert(folder: Path) -> Path:
    """Saves a checkpoint without tokenizer and card, and returns its folder."""
    torch.manual_seed(0)
    shaken(BertForMaskedLM(BertConfig(**BERT_SIZES))).save_pretrained(folder)
    return folder
