"""The run of a sweep: super-nets trained over the values of an argument, compared with the truth (Fig. 4a, 4b)."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from modeling_magic import MagicConfig

from ..data.fitting import num_rows
from ..data.text import PreparedData, load_data
from ..drawing import write_figure
from ..files import make_output_folder
from ..hub.presets import load_preset
from ..runs.folders import bars_off, check_one_process, finished_result
from ..runs.sharing import open_in_turn, share_work
from ..runs.training import pretraining_arguments
from ..space.search_space import SearchSpace
from ..supernet.arguments import MagicTrainingArguments
from ..supernet.compute import steps_of_equal_compute, supernet_flops
from ..supernet.evaluation import Batch, judging_batches
from ..supernet.pretrain import pretrain
from ..supernet.setup import check_search
from ..tables import markdown_table
from .ranking import MethodTau, Scores, TruthNoise
from .ranking_figures import SweepPoint, draw_sweep
from .ranking_run import (
    Supernet,
    check_truth,
    file_name,
    given_truth,
    judge,
    method_row,
    shared_scores,
    with_note,
    write_rows,
)
from .settings import MICRO_BENCHMARK, SweepSettings
from .sweep_plan import SUPERNETS_FOLDER, check_plan, check_way, supernet_settings
from .truth import Truth


logger = logging.getLogger(__name__)


def _sweep_plan(settings: SweepSettings) -> dict[str, dict[str, Any]]:
    """Returns the checked training arguments of each value and reference, by name.

    Raises:
        ValueError: an argument is invalid, or does not fit the super-net's space.
    """
    if not settings.values:
        raise ValueError(f"values is empty; give the values of {settings.parameter}")
    if settings.truth is None:
        raise ValueError(f"no truth is given; name a folder, a file or {MICRO_BENCHMARK!r}")
    plan = {_value_name(settings, value): {settings.parameter: value} for value in settings.values}
    plan |= settings.references
    if len(plan) < len(settings.values) + len(settings.references):
        raise ValueError(f"two values or references have the same name: {', '.join(plan)}; rename one")
    check_plan(plan, settings.pretrain.training_arguments)
    config = load_preset(settings.pretrain.preset)
    for name, change in plan.items():
        arguments = supernet_settings(settings.pretrain, change, 0).training_arguments
        args = pretraining_arguments(MagicTrainingArguments, Path("sweep"), arguments, config.hidden_size)
        check_search(config, args, vocabulary=False)
        check_way(name, change, args, settings.equal_compute)
        if settings.equal_compute and args.max_steps < 1:
            raise ValueError("equal_compute derives all steps from max_steps; give it in training_arguments")
    return plan


def _value_name(settings: SweepSettings, value: Any) -> str:
    return f"{settings.parameter} = {value}"


@bars_off()
def run_sweep(settings: SweepSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains super-nets over the values of a training argument and compares them with the truth (Fig. 4a, 4b).

    The folder then holds `supernets/` (a run for each value or reference and seed), the files of `run_ranking`,
    sweep.csv and sweep.png (the curve of tau), and compute.csv (the compute of the super-nets of each value).

    A stopped sweep resumes super-net by super-net, each from its last checkpoint, and scoring resumes child by child.
    Several processes may work on one folder. A finished sweep returns its result.

    Raises:
        ValueError: for the same reasons as in `run_ranking`.
    """
    output_dir = Path(output_dir)
    # Before training arguments are made: that would wait for the other ranks.
    check_one_process()
    plan = _sweep_plan(settings)
    config = load_preset(settings.pretrain.preset)
    space = SearchSpace.from_config(config.candidate_operators)
    truth = given_truth(settings, space)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    data = load_data(settings.pretrain.data, config.max_sequence_length)
    note = check_truth(truth, _with_vocabulary(config, data), data, settings.accept_other_text)
    if note:
        logger.warning(note)
    make_output_folder(output_dir)
    with open_in_turn(settings, output_dir) as run:
        if run.result is not None:
            return run.result
        (output_dir / SUPERNETS_FOLDER).mkdir(exist_ok=True)
    if settings.equal_compute:
        steps = _equal_steps(settings, plan, config, data)
        plan = {name: {**change, "max_steps": steps[name]} for name, change in plan.items()}
    batches = judging_batches(
        data, settings.pretrain.mlm_probability, settings.batch_size, settings.num_validation_sequences
    )
    supernets, scores = _trained_and_scored(settings, plan, truth, batches, output_dir)
    # Another sweep may have taken the folder before the first super-net of this one had a checkpoint.
    with open_in_turn(settings, output_dir) as run:
        if run.result is not None:
            return run.result
        result = with_note(judge(settings, supernets, truth, scores, output_dir), note)
        result["corpus"] = data.fingerprint
        result |= {"parameter": settings.parameter, "values": list(settings.values)}
        result["compute"] = _compute(settings, plan, config, data, supernets)
        result["table"] += "\n\n" + _compute_table(settings, result["compute"])
        write_rows(output_dir / "compute.csv", result["compute"])
        _write_curve(settings, result, output_dir)
        return run.finish(result)


def _with_vocabulary(config: MagicConfig, data: PreparedData) -> MagicConfig:
    config.vocab_size = num_rows(data.tokenizer)
    return config


def _trained_and_scored(
    settings: SweepSettings,
    plan: Mapping[str, Mapping[str, Any]],
    truth: Truth,
    batches: Sequence[Batch],
    output_dir: Path,
) -> tuple[list[Supernet], list[Scores]]:
    """Trains and scores every super-net that no other process works on, and waits for the others."""

    def train(name: str, change: Mapping[str, Any], seed: int, folder: Path) -> tuple[Supernet, Scores]:
        result = pretrain(supernet_settings(settings.pretrain, change, seed), folder)
        supernet = Supernet(folder, folder.name, name, seed, result["steps"])
        return supernet, shared_scores(supernet, truth, batches, output_dir)

    folders = output_dir / SUPERNETS_FOLDER
    pieces = {
        (folder := folders / f"{file_name(name)}-{seed}"): partial(train, name, change, seed, folder)
        for seed in settings.seeds
        for name, change in plan.items()
    }
    supernets, scores = zip(*share_work(pieces), strict=True)
    return list(supernets), list(scores)


def _write_curve(settings: SweepSettings, result: dict[str, Any], output_dir: Path) -> None:
    methods = {name: MethodTau(found["taus"], found["interval"]) for name, found in result["methods"].items()}
    points = [SweepPoint(value, methods[_value_name(settings, value)]) for value in settings.values]
    references = {name: methods[name] for name in settings.references}
    noise = TruthNoise(**result["noise"]) if result["noise"] else None
    rows = [{settings.parameter: point.value, **method_row("", point.tau)} for point in points]
    for row in rows:
        del row["method"]
    write_rows(output_dir / "sweep.csv", rows)
    figure = draw_sweep(settings.parameter, points, references, noise)
    write_figure(output_dir / "sweep.png", figure)


def _flops_of_steps(
    settings: SweepSettings, change: Mapping[str, Any], config: MagicConfig, data: PreparedData
) -> Callable[[int], float]:
    arguments = supernet_settings(settings.pretrain, change, settings.seeds[0]).training_arguments
    args = pretraining_arguments(MagicTrainingArguments, Path("sweep"), arguments, config.hidden_size)
    own = settings.pretrain
    try:
        num_train_sequences = len(data.train)
    except TypeError:
        num_train_sequences = None
    sequences = (num_train_sequences, len(data.validation))
    return lambda steps: supernet_flops(config, args, steps, data.block_size, own.mlm_probability, *sequences)


def _equal_steps(
    settings: SweepSettings, plan: Mapping[str, Mapping[str, Any]], config: MagicConfig, data: PreparedData
) -> dict[str, int]:
    """Returns the steps of each value and reference. Those of the first value are given."""
    max_steps = settings.pretrain.training_arguments["max_steps"]
    costs = {name: _flops_of_steps(settings, change, config, data) for name, change in plan.items()}
    flops = next(iter(costs.values()))(max_steps)
    return {name: steps_of_equal_compute(flops, cost) for name, cost in costs.items()}


def _compute(
    settings: SweepSettings,
    plan: Mapping[str, Mapping[str, Any]],
    config: MagicConfig,
    data: PreparedData,
    supernets: Sequence[Supernet],
) -> list[dict[str, Any]]:
    """Returns, for each value and reference, the steps and FLOPs of its super-nets."""
    steps = {supernet.method: supernet.steps or 0 for supernet in supernets}
    return [
        {"method": name, "steps": steps[name], "flops": _flops_of_steps(settings, change, config, data)(steps[name])}
        for name, change in plan.items()
    ]


def _compute_table(settings: SweepSettings, compute: Sequence[Mapping[str, Any]]) -> str:
    equal = "made equal" if settings.equal_compute else "not made equal; set equal_compute for that"
    rows = [
        [own["method"], f"{own['steps']:,}", f"{own['flops']:.4g}", f"{own['flops'] / compute[0]['flops']:.4f}"]
        for own in compute
    ]
    table = markdown_table(["method", "steps", "FLOPs", "of the first"], rows)
    return f"Compute of a super-net's training ({equal}):\n\n{table}"
