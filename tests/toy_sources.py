"""Checkpoints to compress: toys of every family and head as folders, with tokenizers and as sentence-transformers."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from toy_hub import SENTENCES, shaken
from transformers import PreTrainedTokenizerBase, RobertaTokenizer

from modeling_magic import MagicPreTrainedModel
from training.data.tokenizing import train_tokenizer


LABELS = {0: "no", 1: "yes", 2: "perhaps"}
SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
}
# A child of such a checkpoint that uses every kind of operator a compression offers.
CHILD = ("MHA2x16", "FFNx24", "FFN")


def family_of(class_name: str) -> str:
    return next(family for family in ("Bert", "Roberta", "Electra") if class_name.startswith(family))


def toy_tokenizer(family: str, folder: Path) -> PreTrainedTokenizerBase:
    if family != "Roberta":
        return train_tokenizer(SENTENCES * 20, vocab_size=120, model_max_length=64)
    trained = ByteLevelBPETokenizer()
    specials = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    trained.train_from_iterator(SENTENCES * 20, vocab_size=320, special_tokens=specials, show_progress=False)
    vocab, merges = trained.save_model(str(folder))
    tokenizer = RobertaTokenizer(vocab=vocab, merges=merges, model_max_length=64)
    for path in (vocab, merges):
        Path(path).unlink()
    return tokenizer


def save_checkpoint(folder: Path, class_name: str, **changes: Any) -> Path:
    """Saves a checkpoint of a class of transformers, off its start, with a tokenizer; returns its folder."""
    folder.mkdir(parents=True)
    family = family_of(class_name)
    tokenizer = toy_tokenizer(family, folder)
    values = {**SIZES, "vocab_size": len(tokenizer)}
    if family == "Roberta":
        values |= {"type_vocab_size": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    if family == "Electra":
        values |= {"embedding_size": 16}
    if class_name.endswith(("SequenceClassification", "TokenClassification")):
        values |= {"id2label": LABELS, "label2id": {label: index for index, label in LABELS.items()}}
    config = getattr(transformers, f"{family}Config")(**{**values, **changes})
    torch.manual_seed(0)
    shaken(getattr(transformers, class_name)(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def edit_json(path: Path, **changes: Any) -> None:
    """Writes a JSON mapping, what it held before with the changes."""
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**values, **changes}))


def add_modules(folder: Path, *types: str, pooling: dict[str, Any] | None = None, **settings: Any) -> Path:
    """Makes a checkpoint's folder one of sentence-transformers with the modules `types`; returns it."""
    names = [name if "." in name else f"sentence_transformers.models.{name}" for name in types]
    paths = ["", *(f"{index}_{name.rpartition('.')[2]}" for index, name in enumerate(names[1:], start=1))]
    modules = [
        {"idx": index, "name": str(index), "path": path, "type": name}
        for index, (name, path) in enumerate(zip(names, paths, strict=True))
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    edit_json(folder / "1_Pooling" / "config.json", **{"word_embedding_dimension": 32, **(pooling or {})})
    if settings:
        edit_json(folder / "sentence_bert_config.json", **settings)
    return folder


def save_sentence_checkpoint(folder: Path, class_name: str = "BertModel", **settings: Any) -> Path:
    """Saves a checkpoint of sentence-transformers: mean, scaled to length 1; returns its folder."""
    save_checkpoint(folder, class_name)
    pooling = {"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}
    return add_modules(folder, "Transformer", "Pooling", "Normalize", pooling=pooling, **settings)


def toy_child(model: MagicPreTrainedModel, architecture: tuple[str, ...] = CHILD) -> MagicPreTrainedModel:
    """A child of a source's class, off its start, trained without dropout as it were."""
    config = model.config.child_config(architecture)
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    torch.manual_seed(1)
    return shaken(type(model)(config))
