"""Exports that are to be verified, and what may have happened to them since."""

import json
from pathlib import Path
from typing import Any

import torch
from toy_hub import MIXED, SEARCH, TRAINING, export_child, export_tokenizer

from modeling_magic import MagicForMaskedLM
from training.hub.export import export_model
from training.hub.verify import verify_export


def manifest_of(architecture: tuple[str, ...], search: dict[str, Any] | None = None) -> dict[str, Any]:
    """What an export of a re-trained child says of it, two seeds in its row of results."""
    row = {
        "name": "this model",
        "architecture": list(architecture),
        "num_parameters": 1000,
        "flops": 2e8,
        "steps": 800,
        "seed": [0, 1],
        "val_loss": [5.0, 5.25],
        "val_accuracy": [0.25, 0.21],
    }
    return {"search": search, "training": TRAINING, "results": [row], "license": "mit"}


def flip_byte(path: Path, place: int = -1) -> None:
    """Changes a byte of a file, and leaves its size."""
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def edit(path: Path, old: str, new: str) -> None:
    """Replaces a text in a file, once."""
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def edit_record(folder: Path, change) -> None:
    """Lets a function change what search.json holds."""
    record = json.loads((folder / "search.json").read_text())
    change(record)
    (folder / "search.json").write_text(json.dumps(record))


def without_contents(folder: Path) -> Path:
    """Makes an export one of an earlier release, which has no hashes."""
    edit_record(folder, lambda record: record.pop("contents"))
    return folder


def differing(folder: Path) -> set[str]:
    """The names of all checks of a folder that differ."""
    return set(verify_export(folder).differing)


def verdicts(checks) -> dict[str, str]:
    """Verdicts by the names of the checks."""
    return {one.what: one.verdict for one in checks}


def untouched_export(folder: Path, config: Any) -> Path:
    """An export of a child of a super-net with the record of its search."""
    torch.manual_seed(0)
    tokenizer = export_tokenizer()
    child = export_child(MagicForMaskedLM(config).eval(), tokenizer)
    return export_model(child, tokenizer, folder, manifest_of(MIXED, SEARCH))
