"""Super-net training, search and export; the names below load their modules when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .arguments import MagicTrainingArguments
    from .data import MaskingCollator, prepare_data
    from .hub import export_model, load_preset
    from .trainer import MagicTrainer

_HOMES = {
    "MagicTrainer": "trainer",
    "MagicTrainingArguments": "arguments",
    "MaskingCollator": "data",
    "export_model": "hub",
    "load_preset": "hub",
    "prepare_data": "data",
}


def __getattr__(name: str) -> Any:
    # The command line imports this package for its help text, which must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


__all__ = [
    "MagicTrainer",
    "MagicTrainingArguments",
    "MaskingCollator",
    "export_model",
    "load_preset",
    "prepare_data",
]
