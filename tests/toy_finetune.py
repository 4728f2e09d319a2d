"""Models, a tokenizer and tasks for tests of fine-tuning, in a second each."""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from toy import toy_config
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertTokenizer,
    ElectraConfig,
    ElectraForPreTraining,
    PreTrainedModel,
    RobertaConfig,
    RobertaForMaskedLM,
    TrainingArguments,
)

from modeling_magic import MagicForMaskedLM
from training.finetuning.finetune import best_epoch_arguments
from training.finetuning.tasks import Task, load_glue, tokenize


GOOD, BAD = ("fine", "great", "lovely", "warm"), ("poor", "dull", "awful", "cold")
FILLERS = tuple("abcdefghijklmnopqrst")
WORDS = (*GOOD, *BAD, *FILLERS)
SIZES: dict[str, Any] = {
    "vocab_size": 5 + len(WORDS),
    "hidden_size": 32,
    "intermediate_size": 64,
    "max_position_embeddings": 40,
}
# Wide enough that a few steps teach something.
SIZES["initializer_range"] = 0.2


def toy_tokenizer() -> BertTokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: number for number, word in enumerate(words)}, model_max_length=40)


def toy_model(kind: str) -> PreTrainedModel:
    torch.manual_seed(0)
    if kind == "magic":
        child = [["MHA4"], ["CONV3"], ["FFN"]]
        return MagicForMaskedLM(toy_config(**SIZES, candidate_operators=child))
    sizes = {**SIZES, "num_hidden_layers": 2, "num_attention_heads": 4}
    if kind == "bert":
        return BertForMaskedLM(BertConfig(**sizes))
    if kind == "electra":
        return ElectraForPreTraining(ElectraConfig(**sizes, embedding_size=16))
    # Its positions begin behind the pad token's id.
    return RobertaForMaskedLM(RobertaConfig(**sizes, pad_token_id=0, type_vocab_size=2))


def save_toy_model(kind: str, folder: Path) -> Path:
    toy_model(kind).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def sentence(rng: random.Random, label: int) -> str:
    words = rng.choices(FILLERS, k=rng.randrange(1, 16))
    # A tenth of the labels are wrong, so that no model is perfect.
    shown = label if rng.random() < 0.9 else 1 - label
    words.insert(rng.randrange(len(words) + 1), rng.choice(GOOD if shown else BAD))
    return " ".join(words)


# The columns and the labels of the files, one for each task that is written.
HEADERS = {
    "CoLA": ("sentence", "label"),
    "SST-2": ("sentence", "label"),
    "RTE": ("sentence1", "sentence2", "label"),
    "MNLI": ("premise", "hypothesis", "label"),
    "STS-B": ("sentence1", "sentence2", "score"),
}


def _row(rng: random.Random, title: str) -> list[str]:
    first, second = rng.randrange(2), rng.randrange(2)
    if title == "STS-B":
        return [sentence(rng, first), sentence(rng, second), f"{4.0 * (first == second) + rng.random():.3f}"]
    if title == "MNLI":
        label = "neutral" if rng.random() < 0.2 else ("entailment" if first == second else "contradiction")
        return [sentence(rng, first), sentence(rng, second), label]
    if title == "RTE":
        label = "entailment" if first == second else "not_entailment"
        return [sentence(rng, first), sentence(rng, second), label]
    return [sentence(rng, first), str(first)]


def write_glue(folder: Path, num_train: int = 48, num_dev: int = 24, titles=tuple(HEADERS)) -> Path:
    for title in titles:
        rng = random.Random(title)
        files = {"train.tsv": num_train, "dev.tsv": num_dev, "test.tsv": 10}
        if title == "MNLI":
            files = {"train.tsv": num_train, "dev_matched.tsv": num_dev, "dev_mismatched.tsv": num_dev}
        (folder / title).mkdir(parents=True)
        for name, number in files.items():
            lines = ["\t".join(row) for row in (HEADERS[title], *(_row(rng, title) for _ in range(number)))]
            (folder / title / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def toy_rows(folder: Path, task: Task) -> DatasetDict:
    return tokenize(load_glue(task, folder), task, toy_tokenizer(), max_length=40)


def arguments(folder: Path, task: Task, **changes) -> TrainingArguments:
    given = {
        "learning_rate": 1e-3,
        "num_train_epochs": 3,
        "per_device_train_batch_size": 8,
        "train_sampling_strategy": "group_by_length",
        "logging_steps": 1,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        **best_epoch_arguments(task),
        **changes,
    }
    return TrainingArguments(str(folder), **given)
