"""The run of one super-net of cells: training, the quality of its ranking over time, and the final scores."""

import logging
import math
import random
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from scipy.stats import kendalltau
from transformers import TrainerCallback, set_seed

from ..analysis.truth import Truth
from ..files import read_json, short_hash, write_json, written_at_once
from ..resuming import last_complete_checkpoint
from ..runs.folders import Run, bars_off, finished_result, open_run
from ..runs.training import training_arguments
from ..space.search_space import Architecture, SearchSpace, format_architecture
from ..supernet.alignment_plan import AlignmentPlan
from ..supernet.arguments import MagicTrainingArguments
from ..supernet.compute import steps_per_epoch
from ..supernet.evaluation import Evaluator, rank_children, validation_batches
from ..supernet.journal import RankedChild
from ..supernet.loading import SUPERNET_FOLDER
from ..supernet.runners import Batch
from .cell_model import CellConfig, CellSupernet, count_cell_flops
from .cell_runner import CellRunner
from .cell_space import cell_space
from .cell_trainer import CellTrainer, cell_sampler, check_cells
from .images import ImageCollator, ImageData
from .settings import CellSettings


logger = logging.getLogger(__name__)

SCORES_NAME = "scores.jsonl"
CURVE_NAME = "curve.json"
# From the benchmark's recipe: SGD with Nesterov momentum, a cosine from 0.1 down, and weight decay.
_DEFAULTS: dict[str, Any] = {
    "per_device_train_batch_size": 128,
    "per_device_eval_batch_size": 250,
    "learning_rate": 0.1,
    "weight_decay": 5e-4,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.05,
    "max_grad_norm": 5.0,
    "num_train_epochs": 50,
    "alignment_every_n_layers": 1,
    "remove_unused_columns": False,
    "logging_steps": 100,
    "save_strategy": "epoch",
    "save_total_limit": 1,
    "num_probe_children": 0,
}
_MOMENTUM = {"momentum": 0.9, "nesterov": True}


def cell_config(settings: CellSettings, num_classes: int = 10) -> CellConfig:
    """Returns the sizes of the super-net."""
    space = cell_space(settings.operators)
    return CellConfig(settings.channels, settings.cells_per_stage, num_classes, space.to_json())


def cell_arguments(settings: CellSettings, output_dir: str | Path) -> MagicTrainingArguments:
    """Returns the training arguments, with the defaults of cells for those not given.

    Raises:
        ValueError: a value is invalid.
    """
    for name in settings.training_arguments:
        if name.startswith(("optim", "adam_")) or name == "label_smoothing_factor":
            raise ValueError(f"{name} is given, but cells are trained with SGD on plain labels; omit it")
        if name == "num_best_candidates":
            raise ValueError(f"{name} is given, but a super-net of cells is not searched; omit it")
    defaults = _DEFAULTS | {"num_validation_sequences": settings.num_validation_images}
    given = {**defaults, **settings.training_arguments}
    return training_arguments(MagicTrainingArguments, output_dir, given)


def cell_batches(data: ImageData, args: MagicTrainingArguments) -> list[Batch]:
    """Returns the held-out images in batches; batch norm uses the statistics of each."""
    return validation_batches(data.validation, ImageCollator(0), args.per_device_eval_batch_size)


@bars_off()
def train_cells(settings: CellSettings, data: ImageData, truth: Truth, output_dir: str | Path) -> dict[str, Any]:
    """Trains a super-net of cells and returns its result, with the curve of Kendall's tau over training.

    The folder then contains `supernet/`, curve.json, result.json and the last checkpoint. A stopped run is resumed; a
    finished run returns its result.

    Raises:
        ValueError: the settings contradict each other, or the folder contains another run.
    """
    output_dir = Path(output_dir)
    args, config = cell_arguments(settings, output_dir), cell_config(settings, data.num_classes)
    check_cells(config, args)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    set_seed(args.seed)
    model: Any = CellSupernet(config)
    # The curve of a run that is resumed continues against the same table.
    inputs = {"the images": data.fingerprint.get("sha256"), "the table": truth_hash(truth)}
    with open_run(output_dir, settings, args.should_save, inputs) as run:
        model = model.to(memory_format=torch.channels_last)
        return run.result or _train(run, model, data, truth, args, settings)


def _train(
    run: Run,
    model: CellSupernet,
    data: ImageData,
    truth: Truth,
    args: MagicTrainingArguments,
    settings: CellSettings,
) -> dict[str, Any]:
    trainer = CellTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=ImageCollator(args.seed),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": args.learning_rate, **_MOMENTUM}),
    )
    curve = RankingCurve(truth, cell_batches(data, args), settings, run.folder / CURVE_NAME)
    trainer.add_callback(curve)
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(run.folder, tells=True))
    result = {
        "steps": trainer.state.global_step,
        "seed": args.seed,
        "seconds": round(time.perf_counter() - start, 1),
        "curve": curve.points,
        "anchor": None if trainer.anchor is None else asdict(trainer.anchor),
        "anchor_history": trainer.anchor_history,
        "visits": trainer.visits,
        "log_history": trainer.state.log_history,
        "images": data.fingerprint,
        "truth": truth_hash(truth),
    }

    def export(_: dict[str, Any]) -> None:
        with written_at_once(run.folder / SUPERNET_FOLDER, replaces=True) as temporary:
            model.save_pretrained(temporary)

    return run.finish(result, export)


def truth_hash(truth: Truth) -> str:
    """Returns a hash of the true scores of children."""
    return short_hash([[format_architecture(child), *values] for child, values in sorted(truth.values.items())])


def scored_children(run: Path, batches: Sequence[Batch], children: Sequence[Architecture]) -> list[RankedChild]:
    """Returns the shared-weight loss and accuracy of children of a finished run, from its journal if available."""
    device: Any = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = CellSupernet.from_pretrained(run / SUPERNET_FOLDER).to(device)
    model = model.to(memory_format=torch.channels_last)
    evaluate = Evaluator(model, batches, journal=run / SCORES_NAME, progress=True, runner=CellRunner(model))
    return evaluate(sorted(children))


class RankingCurve(TrainerCallback):
    """Compares the ranking of a fixed sample of children with the truth several times during training.

    Attributes:
        points: one entry per comparison, with the step, the mean loss, and tau by loss and by accuracy.
    """

    def __init__(self, truth: Truth, batches: Sequence[Batch], settings: CellSettings, path: Path):
        """Takes the truth, the batches to validate on, the settings, and the file for the points."""
        number = min(settings.num_curve_children, len(truth.values))
        drawn = random.Random(0).sample(sorted(truth.values), number)
        self._truth = {child: truth.values[child][0] for child in drawn}
        self._batches, self._number, self._path = batches, settings.num_curve_points, path
        self.points: list[dict[str, float]] = read_json(path) if path.is_file() else []

    def on_train_begin(self, args, state, control, **kwargs):
        """Drops points of later steps, which belong to a run that has been restarted."""
        self.points = [point for point in self.points if point["step"] <= state.global_step]

    def on_step_end(self, args, state, control, model=None, **kwargs):
        """Measures a point if one is due."""
        due = {round(state.max_steps * (index + 1) / self._number) for index in range(self._number)}
        if state.global_step in due and all(point["step"] != state.global_step for point in self.points):
            ranked = rank_children(model, self._batches, self._truth, runner=CellRunner(model))
            self.points.append(self._point(state.global_step, ranked))
            if state.is_world_process_zero:
                write_json(self._path, self.points)

    def _point(self, step: int, ranked: Sequence[RankedChild]) -> dict[str, float]:
        worth = [self._truth[child.architecture] for child in ranked]
        finite = [child.val_loss if math.isfinite(child.val_loss) else math.inf for child in ranked]
        return {
            "step": step,
            "mean_loss": math.fsum(finite) / len(finite),
            "tau_loss": float(kendalltau([-loss for loss in finite], worth).statistic),
            "tau_accuracy": float(kendalltau([child.val_accuracy for child in ranked], worth).statistic),
        }


def training_cost(settings: CellSettings, num_train: int, num_steps: int) -> float:
    """Returns the expected cost of a training, in forward passes of an image through a child.

    A step takes three passes for each of its images, and one more, up to the last aligned cell, for each child that it
    is aligned to. A check of the anchor takes one pass over the held-out images for its challenger and, after the
    first check, one for the anchor. Children are assumed to cost the same, although an anchor with many convolutions
    costs more; those of the sandwich rule count as their mean. Validations that all methods share are not counted.

    Args:
        settings: the settings of the super-net.
        num_train: the number of training images.
        num_steps: the number of optimizer steps.
    """
    args, config = cell_arguments(settings, ""), cell_config(settings)
    images = args.train_batch_size * args.gradient_accumulation_steps
    plan = AlignmentPlan.of(args, config.num_cells, steps_per_epoch(args, num_train))
    targets = args.num_average_children if args.alignment == "average" else 1
    # Cells of all stages cost the same: half the pixels per side, but twice the channels.
    share = max(plan.aligned_layers, default=0) / config.num_cells
    aligned = plan.num_aligned_steps(num_steps) * images * targets * share
    looks, validated = plan.num_anchor_looks(num_steps), 0
    if args.alignment == "anchor":
        validated = max(0, 2 * looks - 1)
    elif args.alignment == "top_percent":
        validated = looks * min(args.anchor_pool_size, cell_space(settings.operators).size)
    held_out = min(args.num_validation_sequences, settings.num_validation_images)
    return 3.0 * images * num_steps * _cost_of_draws(config, args) + aligned + validated * held_out


def _cost_of_draws(config: CellConfig, args: MagicTrainingArguments) -> float:
    """Returns the mean cost of the children that the sampler draws, relative to that of uniform children."""
    if args.sampler != "sandwich":
        return 1.0
    space, rng = SearchSpace.from_config(config.candidate_operators), random.Random(0)
    uniform = mean(count_cell_flops(config, space.sample(rng)) for _ in range(1000))
    sampler = cell_sampler(space, args)
    largest, smallest = (count_cell_flops(config, sampler.next()) for _ in range(2))
    return (largest + smallest + 2 * uniform) / (4 * uniform)
