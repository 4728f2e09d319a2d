"""Compares methods of training a super-net of cells by how well they rank children with published accuracy (D)."""

import logging
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from ..analysis.interference import Estimate
from ..analysis.ranking import (
    MethodTau,
    Scores,
    check_scores,
    compare_rankings,
    evaluate_ranking,
    first_ranked,
    method_tau,
    tau_among_equals,
)
from ..analysis.ranking_run import file_name, flat_intervals, write_rows
from ..analysis.sweep_plan import SUPERNETS_FOLDER, check_plan, check_way, supernet_settings
from ..analysis.truth import Truth
from ..drawing import write_figure
from ..files import make_output_folder, read_json, write_json
from ..runs.folders import Run, bars_off, check_one_process, finished_result
from ..runs.sharing import open_in_turn, share_work
from ..space.search_space import Architecture
from ..supernet.compute import steps_of_equal_compute, steps_per_epoch
from ..supernet.journal import RankedChild
from ..supernet.loading import SUPERNET_FOLDER
from ..tables import markdown_table
from .cell_figures import draw_curves
from .cell_interference import interference_curve
from .cell_model import CellConfig, CellSupernet, count_cell_flops, count_cell_parameters
from .cell_run import (
    cell_arguments,
    cell_batches,
    cell_config,
    scored_children,
    train_cells,
    training_cost,
    truth_hash,
)
from .cell_space import cell_space, format_cell, used_operators
from .cell_trainer import check_cells
from .images import ImageData, load_images
from .published import load_published
from .settings import CellSettings, CellSweepSettings


logger = logging.getLogger(__name__)

INTERFERENCE_NAME = "interference.json"


@dataclass(frozen=True)
class _Trained:
    """One super-net: its method, its run and its scored children."""

    method: str
    folder: Path
    result: dict[str, Any]
    ranked: list[RankedChild]

    @property
    def by_loss(self) -> dict[Architecture, float]:
        """The negative losses; a loss that is not finite is worse than all others."""
        finite = [child.val_loss for child in self.ranked if math.isfinite(child.val_loss)]
        worst = max(finite, default=0.0) + 1
        return {
            child.architecture: -(child.val_loss if math.isfinite(child.val_loss) else worst) for child in self.ranked
        }

    @property
    def by_accuracy(self) -> dict[Architecture, float]:
        return {child.architecture: child.val_accuracy for child in self.ranked}


@bars_off()
def run_cells(settings: CellSweepSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains super-nets of cells by several methods at equal compute and compares each with the published table.

    The folder then contains `supernets/` (a run for each method and seed, with the scores of all children),
    methods.csv, supernets.csv, children.csv, comparisons.csv, interference.csv, curve.csv, curve.png and result.json.
    A stopped sweep resumes with its unfinished super-nets, each from its last checkpoint. Several processes may work
    on the same folder. A finished sweep returns its result.

    Raises:
        ValueError: the settings contradict each other, the images or the table cannot be read, or the folder contains
            another run.
    """
    output_dir = Path(output_dir)
    check_one_process()
    check_sweep(settings)
    truth = _truth(settings)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    own = settings.supernet
    data = load_images(own.images, own.num_validation_images, own.image_size)
    make_output_folder(output_dir)
    with open_in_turn(settings, output_dir) as run:
        if run.result is not None:
            return run.result
        (output_dir / SUPERNETS_FOLDER).mkdir(exist_ok=True)
    trained = _train_all(settings, data, truth, output_dir)
    with open_in_turn(settings, output_dir) as run:
        return run.result or run.finish(_judge(settings, data, truth, trained, run))


def check_sweep(settings: CellSweepSettings) -> None:
    """Checks everything that depends neither on the images nor on the table.

    Raises:
        ValueError: the settings contradict each other.
    """
    for name, value in (("images", settings.supernet.images), ("table", settings.table)):
        if not value:
            raise ValueError(f"{name} is empty; give it with --{name}")
    if not settings.methods:
        raise ValueError("methods is empty; give at least one method of training a super-net")
    check_plan(settings.methods, settings.supernet.training_arguments)
    for name, change in settings.methods.items():
        own = supernet_settings(settings.supernet, change, settings.seeds[0])
        args = cell_arguments(own, "cells")
        check_cells(cell_config(own), args)
        check_way(name, change, args, settings.equal_compute)


def _truth(settings: CellSweepSettings) -> Truth:
    truth, space = load_published(settings.table, settings.metric), cell_space(settings.supernet.operators)
    within = sorted(child for child in truth.values if child in space)
    if len(within) < settings.num_children:
        raise ValueError(
            f"num_children is {settings.num_children}, but only {len(within):,} cells of {settings.table} have the "
            f"operators {', '.join(settings.supernet.operators)}; give a smaller num_children"
        )
    truth = truth.subset(random.Random(settings.sample_seed).sample(within, settings.num_children))
    check_scores(truth=truth.means)
    return truth


# ---- Training ----


def _train_all(settings: CellSweepSettings, data: ImageData, truth: Truth, output_dir: Path) -> list[_Trained]:
    steps = method_steps(settings, len(data.train))
    pieces = {
        (folder := output_dir / SUPERNETS_FOLDER / f"{file_name(method)}-{seed}"): partial(
            _train,
            method,
            supernet_settings(settings.supernet, {**change, "max_steps": steps[method]}, seed),
            data,
            truth,
            folder,
        )
        for seed in settings.seeds
        for method, change in settings.methods.items()
    }
    return share_work(pieces)


def _train(method: str, settings: CellSettings, data: ImageData, truth: Truth, folder: Path) -> _Trained:
    result = train_cells(settings, data, truth, folder)
    if result["truth"] != truth_hash(truth):
        raise ValueError(f"{folder} was compared with another table; use another output folder, or that table")
    if result["images"]["sha256"] != data.fingerprint["sha256"]:
        raise ValueError(f"{folder} was trained on other images; use another output folder, or those images")
    batches = cell_batches(data, cell_arguments(settings, "cells"))
    trained = _Trained(method, folder, result, scored_children(folder, batches, list(truth.values)))
    if _ranks(trained.by_loss):
        logger.info(f"{folder.name}: {evaluate_ranking(truth.means, trained.by_loss)}")
    else:
        logger.warning(f"{folder.name}: all children have the same loss; it has diverged and is not ranked")
    return trained


def _ranks(scores: Scores) -> bool:
    return len(set(scores.values())) > 1


def method_steps(settings: CellSweepSettings, num_train: int) -> dict[str, int]:
    """Returns the optimizer steps of each method: its own, or as many as have the same cost as the first method."""
    shared, seed = settings.supernet, settings.seeds[0]
    plans = {name: supernet_settings(shared, change, seed) for name, change in settings.methods.items()}
    first, *_ = plans.values()
    wanted = training_cost(first, num_train, _num_steps(first, num_train))
    if not settings.equal_compute:
        return {name: _num_steps(own, num_train) for name, own in plans.items()}
    return {
        name: steps_of_equal_compute(wanted, partial(training_cost, own, num_train)) for name, own in plans.items()
    }


def _num_steps(settings: CellSettings, num_train: int) -> int:
    args = cell_arguments(settings, "cells")
    if args.max_steps > 0:
        return args.max_steps
    return math.ceil(args.num_train_epochs * steps_per_epoch(args, num_train))


# ---- Judging ----


def _judge(
    settings: CellSweepSettings, data: ImageData, truth: Truth, trained: Sequence[_Trained], run: Run
) -> dict[str, Any]:
    means = truth.means
    middle = float(np.median(list(means.values())))
    better = {child: value for child, value in means.items() if value >= middle}
    groups = {name: [one for one in trained if one.method == name] for name in settings.methods}
    costs = _costs(settings, list(means))
    size = costs["parameters"]
    rows = [_method_row(name, group, means, better, size, settings.num_resamples) for name, group in groups.items()]
    rows += _baselines(costs, means, better, settings.num_resamples)
    first, *others = groups
    reference = [one.by_loss for one in groups[first] if _ranks(one.by_loss)]
    comparisons = [
        {"first": name, "second": first, **asdict(compare_rankings(means, own, reference, settings.num_resamples))}
        for name in others
        if reference and (own := [one.by_loss for one in groups[name] if _ranks(one.by_loss)])
    ]
    curve = [
        {"method": one.method, "seed": one.result["seed"], **point} for one in trained for point in one.result["curve"]
    ]
    interference = _interference(settings, data, trained)
    write_rows(run.folder / "methods.csv", rows)
    write_rows(run.folder / "children.csv", _child_rows(truth, trained))
    write_rows(run.folder / "supernets.csv", [_supernet_row(one, means) for one in trained])
    write_rows(run.folder / "comparisons.csv", [flat_intervals(row) for row in comparisons])
    if interference:
        write_rows(run.folder / "interference.csv", interference)
    if curve:
        write_rows(run.folder / "curve.csv", curve)
        write_figure(run.folder / "curve.png", draw_curves(curve))
    best = max(means, key=lambda child: means[child])
    return {
        "methods": rows,
        "comparisons": comparisons,
        "curve": curve,
        "interference": interference,
        "best": {"cell": format_cell(best), "accuracy": means[best]},
        "images": data.fingerprint,
        "table": _table(settings, rows, comparisons, interference, means[best]),
    }


def _tau(truth: Scores, scores: Sequence[Scores], num_resamples: int) -> MethodTau:
    """Returns tau of the super-nets that give a ranking; one with the same score for all children has diverged."""
    ranking = [one for one in scores if _ranks(one) and _ranks(truth)]
    return method_tau(truth, ranking, num_resamples) if ranking else MethodTau((math.nan,), (math.nan, math.nan))


def _method_row(
    name: str,
    group: Sequence[_Trained],
    means: Scores,
    better: Scores,
    size: Scores,
    num_resamples: int,
) -> dict[str, Any]:
    by_loss, by_accuracy = [one.by_loss for one in group], [one.by_accuracy for one in group]
    facts = {
        "method": name,
        "num_supernets": len(group),
        "num_ranking": sum(map(_ranks, by_loss)),
        "steps": group[0].result["steps"],
    }
    quality = _quality(by_loss, means, better, num_resamples)
    equals = [tau_among_equals(means, one, size.__getitem__) for one in by_loss if _ranks(one)]
    further = {
        "tau_equal_parameters": mean(equals) if equals else math.nan,
        "tau_by_accuracy": _tau(means, by_accuracy, num_resamples).mean,
    }
    return facts | quality | further


def _costs(settings: CellSweepSettings, children: Sequence[Architecture]) -> dict[str, dict[Architecture, float]]:
    """The size of each child by the name of the cost."""
    config = CellConfig(candidate_operators=cell_space(settings.supernet.operators).to_json())
    counts = {
        "parameters": count_cell_parameters,
        "parameters in use": lambda config, child: count_cell_parameters(config, used_operators(child)),
        "FLOPs": count_cell_flops,
    }
    return {name: {child: float(count(config, child)) for child in children} for name, count in counts.items()}


def _quality(scores: Sequence[Scores], means: Scores, better: Scores, num_resamples: int) -> dict[str, Any]:
    """How well super-nets rank all children and the better half, and the accuracy of the first-ranked child."""
    whole = _tau(means, scores, num_resamples)
    half = _tau(better, [{child: one[child] for child in better} for one in scores], num_resamples)
    winners = [means[first_ranked(means, one)] for one in scores if _ranks(one)]
    return {
        "tau": whole.mean,
        "tau_low": whole.interval[0],
        "tau_high": whole.interval[1],
        "spread": whole.spread,
        "tau_better_half": half.mean,
        "tau_better_half_low": half.interval[0],
        "tau_better_half_high": half.interval[1],
        "winner": mean(winners) if winners else math.nan,
    }


def _baselines(costs: Mapping[str, Scores], means: Scores, better: Scores, num_resamples: int) -> list[dict[str, Any]]:
    """Baselines that rank the benchmark's children by their size alone."""
    facts = {"num_supernets": 0, "num_ranking": 0, "steps": 0}
    size = costs["parameters"]
    return [
        {
            "method": name,
            **facts,
            **_quality([scores], means, better, num_resamples),
            "tau_equal_parameters": None if scores is size else tau_among_equals(means, scores, size.__getitem__),
            "tau_by_accuracy": None,
        }
        for name, scores in costs.items()
    ]


def _child_rows(truth: Truth, trained: Sequence[_Trained]) -> list[dict[str, Any]]:
    """A row for each child, the truly best first: its published value and its loss in each super-net."""
    losses = {one.folder.name: {child.architecture: child.val_loss for child in one.ranked} for one in trained}
    means = truth.means
    return [
        {
            "arch": format_cell(child),
            truth.metric: truth.show(means[child]),
            **{f"val_loss {name}": own[child] for name, own in losses.items()},
        }
        for child in sorted(means, key=lambda child: (-means[child], child))
    ]


def _supernet_row(one: _Trained, means: Scores) -> dict[str, Any]:
    quality = evaluate_ranking(means, one.by_loss, num_resamples=1) if _ranks(one.by_loss) else None
    winner = first_ranked(means, one.by_loss) if quality else None
    return {
        "method": one.method,
        "seed": one.result["seed"],
        "steps": one.result["steps"],
        "tau": None if quality is None else quality.kendall_tau,
        "spearman": None if quality is None else quality.spearman,
        "mean_loss": mean(child.val_loss for child in one.ranked),
        "best_accuracy": max(one.by_accuracy.values()),
        "winner": winner and format_cell(winner),
        "winner_accuracy": winner and means[winner],
    }


def _interference(settings: CellSweepSettings, data: ImageData, trained: Sequence[_Trained]) -> list[dict[str, Any]]:
    """The mean cosine of each super-net by the number m of edges that differ."""
    if not settings.num_repeats:
        return []
    rows: list[dict[str, Any]] = []
    for one in trained:
        path = one.folder / INTERFERENCE_NAME
        if not path.is_file():
            write_json(path, _cosines(settings, data, one))
        found = {"method": one.method, "seed": one.result["seed"]}
        rows += [{**found, "m": int(number), "cosine": cosine} for number, cosine in read_json(path).items()]
    return rows


def _cosines(settings: CellSweepSettings, data: ImageData, one: _Trained) -> dict[str, float]:
    """The mean cosine of a super-net by the number of edges that differ; empty if a gradient has no direction."""
    own = supernet_settings(settings.supernet, settings.methods[one.method], one.result["seed"])
    args = cell_arguments(own, "cells")
    model = CellSupernet.from_pretrained(one.folder / SUPERNET_FOLDER)
    try:
        curve = interference_curve(model, cell_batches(data, args), model.space, settings.num_repeats)
    except ValueError as error:
        logger.warning(f"{one.folder.name}: interference is not measured: {error}")
        return {}
    return {str(number): estimate.mean for number, estimate in curve.items()}


# ---- Figures and tables ----


def _number(row: Mapping[str, Any]) -> str:
    number, ranking = row["num_supernets"], row["num_ranking"]
    return f"{number or ''}" if number == ranking else f"{ranking} of {number}, the others diverged"


def _table(
    settings: CellSweepSettings,
    rows: Sequence[Mapping[str, Any]],
    comparisons: Sequence[Mapping[str, Any]],
    interference: Sequence[Mapping[str, Any]],
    best: float,
) -> str:
    columns = [
        "method",
        "super-nets",
        "steps",
        "tau (95%)",
        "sd",
        "by accuracy",
        "equal parameters",
        "better half (95%)",
        "accuracy of the first",
    ]
    body = [
        [
            row["method"],
            _number(row),
            f"{row['steps']:,}" if row["steps"] else "",
            _with_interval(row, "tau"),
            "" if row["spread"] is None else f"{row['spread']:.3f}",
            "" if row["tau_by_accuracy"] is None else f"{row['tau_by_accuracy']:.3f}",
            "" if row["tau_equal_parameters"] is None else f"{row['tau_equal_parameters']:.3f}",
            _with_interval(row, "tau_better_half"),
            f"{row['winner']:.2f}",
        ]
        for row in rows
    ]
    lines = [markdown_table(columns, body), "", f"{settings.num_children:,} cells, the best of them {best:.2f}."]
    if comparisons:
        lines += ["", "Difference in tau on the same children:"]
        lines += [
            f"{row['first']} minus {row['second']}: {row['difference']:+.3f} ({row['interval'][0]:+.3f} to "
            f"{row['interval'][1]:+.3f})"
            for row in comparisons
        ]
    if interference:
        lines += ["", "Mean cosine between gradients of children that differ on m edges (95% over super-nets):", ""]
        lines.append(_cosine_table(interference))
    return "\n".join(lines)


def _with_interval(row: Mapping[str, Any], name: str) -> str:
    return f"{row[name]:.3f} ({row[f'{name}_low']:.3f} to {row[f'{name}_high']:.3f})"


def _cosine_table(rows: Sequence[Mapping[str, Any]]) -> str:
    numbers = sorted({row["m"] for row in rows})
    own: dict[str, dict[int, list[float]]] = {row["method"]: {number: [] for number in numbers} for row in rows}
    for row in rows:
        own[row["method"]][row["m"]].append(row["cosine"])
    body = [[name, *(str(Estimate.of(found[number])) for number in numbers)] for name, found in own.items()]
    return markdown_table(["method", *(f"m = {number}" for number in numbers)], body)
