"""Compression, super-net training, search and export; the names below load their modules on first use."""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from .extras import missing_extra


if TYPE_CHECKING:
    from .analysis.interference import GradientMeter, cosine_matrix
    from .analysis.interference_run import run_interference
    from .analysis.micro_benchmark import load_micro_benchmark
    from .analysis.ranking import evaluate_ranking, truth_noise
    from .analysis.ranking_run import run_ranking
    from .analysis.settings import InterferenceSettings, RankingSettings, StandaloneSettings, SweepSettings
    from .analysis.standalone import train_standalone
    from .analysis.sweep_run import run_sweep
    from .analysis.truth import load_truth
    from .compression.compress_run import compress
    from .compression.compression_report import CompressionResult
    from .compression.distill_ray import RayCluster
    from .compression.settings import CompressSettings
    from .data.settings import DataSettings
    from .data.text import MaskingCollator, PreparedData, prepare_data
    from .distillation.teacher import load_teacher
    from .distillation.trainers import DistillationTrainer, MaskedLMDistillationTrainer
    from .finetuning.file_predictions import evaluate_file, predict_file
    from .finetuning.finetune_run import run_finetuning
    from .finetuning.settings import EvaluateSettings, FinetuneSettings, PredictSettings, SquadSettings
    from .finetuning.squad_run import run_squad
    from .hub.convert import convert_checkpoint
    from .hub.export import export_model
    from .hub.onnx_export import OnnxModel
    from .hub.presets import load_preset
    from .hub.publish import push_model
    from .hub.verify import verify_export
    from .retraining.distill_run import retrain_distilled
    from .retraining.retrain import retrain
    from .retraining.rtd import ReplacedTokenTrainer
    from .retraining.rtd_model import ReplacedTokenModel, generator_config
    from .retraining.rtd_run import retrain_rtd
    from .retraining.settings import DistillSettings, RetrainSettings, RtdSettings
    from .runs.recipes import load_recipe, settings_from
    from .search.compare import SearchResult, search_children
    from .search.run import search_supernet
    from .search.searchers import EvolutionSearcher, ParetoSearcher, RandomSearcher
    from .search.settings import SearchSettings
    from .space.budgets import (
        AdditiveCost,
        Budget,
        BudgetedSpace,
        InfeasibleBudgetError,
        Limit,
        WideBudgetError,
    )
    from .space.latency import LatencyTable, measure_latency
    from .space.limits import budget_of
    from .space.samplers import UniformSampler
    from .space.search_space import SearchSpace
    from .space.settings import BudgetSettings, LatencySettings
    from .supernet.arguments import MagicTrainingArguments
    from .supernet.blockwise import BlockwiseTrainer
    from .supernet.blockwise_run import run_blockwise
    from .supernet.evaluation import Evaluator, validation_batches
    from .supernet.journal import RankedChild
    from .supernet.loading import export_child
    from .supernet.pretrain import pretrain
    from .supernet.settings import BlockwiseSettings, PretrainSettings
    from .supernet.trainer import MagicTrainer

# The module of each name; anything not listed may move.
_HOMES = {
    "analysis.interference": ("GradientMeter", "cosine_matrix"),
    "analysis.interference_run": ("run_interference",),
    "analysis.micro_benchmark": ("load_micro_benchmark",),
    "analysis.ranking": ("evaluate_ranking", "truth_noise"),
    "analysis.ranking_run": ("run_ranking",),
    "analysis.settings": ("InterferenceSettings", "RankingSettings", "StandaloneSettings", "SweepSettings"),
    "analysis.standalone": ("train_standalone",),
    "analysis.sweep_run": ("run_sweep",),
    "analysis.truth": ("load_truth",),
    "compression.compress_run": ("compress",),
    "compression.compression_report": ("CompressionResult",),
    "compression.distill_ray": ("RayCluster",),
    "compression.settings": ("CompressSettings",),
    "data.settings": ("DataSettings",),
    "data.text": ("MaskingCollator", "PreparedData", "prepare_data"),
    "distillation.teacher": ("load_teacher",),
    "distillation.trainers": ("DistillationTrainer", "MaskedLMDistillationTrainer"),
    "finetuning.file_predictions": ("evaluate_file", "predict_file"),
    "finetuning.finetune_run": ("run_finetuning",),
    "finetuning.settings": ("EvaluateSettings", "FinetuneSettings", "PredictSettings", "SquadSettings"),
    "finetuning.squad_run": ("run_squad",),
    "hub.convert": ("convert_checkpoint",),
    "hub.export": ("export_model",),
    "hub.onnx_export": ("OnnxModel",),
    "hub.presets": ("load_preset",),
    "hub.publish": ("push_model",),
    "hub.verify": ("verify_export",),
    "retraining.distill_run": ("retrain_distilled",),
    "retraining.retrain": ("retrain",),
    "retraining.rtd": ("ReplacedTokenTrainer",),
    "retraining.rtd_model": ("ReplacedTokenModel", "generator_config"),
    "retraining.rtd_run": ("retrain_rtd",),
    "retraining.settings": ("DistillSettings", "RetrainSettings", "RtdSettings"),
    "runs.recipes": ("load_recipe", "settings_from"),
    "search.compare": ("SearchResult", "search_children"),
    "search.run": ("search_supernet",),
    "search.searchers": ("EvolutionSearcher", "ParetoSearcher", "RandomSearcher"),
    "search.settings": ("SearchSettings",),
    "space.budgets": ("AdditiveCost", "Budget", "BudgetedSpace", "InfeasibleBudgetError", "Limit", "WideBudgetError"),
    "space.latency": ("LatencyTable", "measure_latency"),
    "space.limits": ("budget_of",),
    "space.samplers": ("UniformSampler",),
    "space.search_space": ("SearchSpace",),
    "space.settings": ("BudgetSettings", "LatencySettings"),
    "supernet.arguments": ("MagicTrainingArguments",),
    "supernet.blockwise": ("BlockwiseTrainer",),
    "supernet.blockwise_run": ("run_blockwise",),
    "supernet.evaluation": ("Evaluator", "validation_batches"),
    "supernet.journal": ("RankedChild",),
    "supernet.loading": ("export_child",),
    "supernet.pretrain": ("pretrain",),
    "supernet.settings": ("BlockwiseSettings", "PretrainSettings"),
    "supernet.trainer": ("MagicTrainer",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    # The command line imports this package for its help texts, which must not wait for torch.
    if name == "__version__":
        return version("magic-nas")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return getattr(import_module(f".{_HOME_OF[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (line := missing_extra(error)) is None:
            raise
        raise ModuleNotFoundError(line, name=error.name) from error


def __dir__() -> list[str]:
    return [*globals(), *_HOME_OF]


__all__ = sorted(_HOME_OF)
