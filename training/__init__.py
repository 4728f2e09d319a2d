"""Super-net training, search and export; the names below load their modules when they are first used."""

from importlib import import_module
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from .arguments import MagicTrainingArguments
    from .budgets import BudgetedSpace
    from .data import MaskingCollator, prepare_data
    from .evaluation import Evaluator, validation_batches
    from .hub import export_model, load_preset
    from .micro_benchmark import load_micro_benchmark
    from .ranking import evaluate_ranking
    from .rtd import ReplacedTokenTrainer
    from .search import search_children
    from .search_space import SearchSpace
    from .searchers import EvolutionSearcher
    from .settings import BudgetSettings, budget_of
    from .trainer import MagicTrainer

_HOMES = {
    "BudgetSettings": "settings",
    "BudgetedSpace": "budgets",
    "EvolutionSearcher": "searchers",
    "Evaluator": "evaluation",
    "MagicTrainer": "trainer",
    "MagicTrainingArguments": "arguments",
    "MaskingCollator": "data",
    "ReplacedTokenTrainer": "rtd",
    "SearchSpace": "search_space",
    "budget_of": "settings",
    "evaluate_ranking": "ranking",
    "export_model": "hub",
    "load_micro_benchmark": "micro_benchmark",
    "load_preset": "hub",
    "prepare_data": "data",
    "search_children": "search",
    "validation_batches": "evaluation",
}


def __getattr__(name: str) -> Any:
    # The command line imports this package for its help text, which must not wait for torch.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)


__all__ = [
    "BudgetSettings",
    "BudgetedSpace",
    "Evaluator",
    "EvolutionSearcher",
    "MagicTrainer",
    "MagicTrainingArguments",
    "MaskingCollator",
    "ReplacedTokenTrainer",
    "SearchSpace",
    "budget_of",
    "evaluate_ranking",
    "export_model",
    "load_micro_benchmark",
    "load_preset",
    "prepare_data",
    "search_children",
    "validation_batches",
]
