"""The run of a compression: from a checkpoint to faster encoders that do what it does, beside their controls."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ..drawing import write_figure
from ..files import read_json, write_json, write_text
from ..runs.folders import MODEL_FOLDER, Run, bars_off, finished_result, open_run
from ..space.budgets import AdditiveCost
from ..space.latency import LatencyTable, measure_latency
from ..space.search_space import format_architecture
from ..space.settings import LatencySettings
from ..supernet.evaluation import Evaluator
from .choices import Choices, best_additive, best_first, choose
from .compressed_folder import export_compressed
from .compression_report import FOUND, ModelRow, compression_table, draw_compression, verdict
from .distill import Compute, distill
from .judging import Distilled, judge_models
from .members import Member, check_budgets, members_of, trained_children
from .sentences import read_sentences
from .settings import CompressSettings
from .source import Source, load_source
from .spaces import checkpoint_space
from .task_scores import Task, read_task
from .workbench import (
    SUPERNET_FOLDER,
    VISITS_NAME,
    Workbench,
    calibrated_errors,
    new_accelerator,
    start_supernet,
    supernet_config,
    train_supernet,
    without_dropout,
)


logger = logging.getLogger(__name__)

LATENCY_NAME = "latency.json"
CHOICES_NAME = "choices.json"
MODELS_FOLDER = "models"
TABLE_NAME = "table.md"
FIGURE_NAME = "figure.svg"


@bars_off()
def compress(settings: CompressSettings, output_dir: str | Path, progress: bool = True) -> dict[str, Any]:
    """Finds, distils and writes a smaller encoder for each budget, and returns the result with all controls.

    The folder then holds `model/` (with several budgets `model/<budget>/`), which is what the checkpoint was and
    loads like it, table.md, figure.svg and result.json. A run that was stopped is continued with the same result; one
    that has ended returns its result.

    Args:
        settings: the checkpoint, the text, the budgets and how to search.
        output_dir: the run's folder.
        progress: shows bars.

    Raises:
        InfeasibleBudgetError: no child is within a budget.
        ValueError: checkpoint, text, budgets or tasks cannot be used, or the folder holds another run.
    """
    folder = Path(output_dir)
    check_budgets(settings)
    if not settings.text:
        raise ValueError("no text is given; name unlabelled text like that which the encoder will see with --text")
    if (result := finished_result(folder, settings)) is not None:
        return result
    torch.set_num_threads(settings.num_threads)
    source = load_source(settings.checkpoint, settings.kind)
    _say(*source.notes)
    without_dropout(source.model.config)
    tasks = read_tasks(settings, source)
    # What needs no measurement is refused before the text is read.
    members_of(settings, source.model.config, checkpoint_space(source.model.config, settings.convolutions), None)
    accelerator = new_accelerator(settings)
    with accelerator.main_process_first():
        sentences = read_sentences(
            settings.text,
            source.tokenizer,
            source.max_length,
            settings.num_sentences,
            settings.num_validation_sentences,
            settings.seed,
            progress=progress and accelerator.is_main_process,
        )
    _say(*sentences.notes, *(f"warning: {warning}" for warning in sentences.warnings))
    bench = Workbench(settings, source, sentences, folder, accelerator)
    with open_run(folder, settings, accelerator.is_main_process) as run:
        return run.result or _compress(run, bench, tasks, progress and accelerator.is_main_process)


def _say(*lines: str) -> None:
    for line in lines:
        logger.info(line)


def read_tasks(settings: CompressSettings, source: Source) -> list[Task]:
    """Returns the tasks that models are scored on in the end, read and checked.

    Raises:
        ValueError: one is not written as NAME=FILE, is not known, or its file cannot be used.
    """
    config, tasks = source.model.config, []
    for text in settings.eval:
        name, equals, path = text.partition("=")
        if not equals:
            raise ValueError(f"--eval is {text!r}; write NAME=FILE, such as stsb=dev.tsv")
        labels = config.id2label if source.kind in ("sequence", "token") else None
        tasks.append(read_task(name, path, source.kind, id2label=labels, problem_type=config.problem_type))
    return tasks


def _compress(run: Run, bench: Workbench, tasks: Sequence[Task], progress: bool) -> dict[str, Any]:
    members = _members(bench, progress)
    bench.outputs.fill(bench.validation, progress=progress)
    bench.outputs.fill(bench.train, progress=progress)
    chosen = _choose_all(bench, members, progress)
    models = _distill_all(bench, members, chosen, progress)
    rows, measured = judge_models(bench, models, tasks, progress)
    table = compression_table(rows, bench.objective.loss_name, bench.objective.score_name)
    verdicts = [verdict(rows, member.name) for member in members]
    result = {
        "checkpoint": bench.settings.checkpoint,
        "kind": bench.source.kind,
        "corpus": bench.sentences.fingerprint,
        "precision": bench.accelerator.mixed_precision,
        "members": [{"name": member.name, "budget": str(member.budget), "share": member.share} for member in members],
        "models": [row.to_json() for row in rows],
        "latency": measured.to_json(),
        "verdicts": verdicts,
        "table": table,
        "num_teacher_sequences": bench.outputs.num_run,
    }

    def export(result: dict[str, Any]) -> None:
        for member in members:
            _export(bench, member, models[member.name][FOUND].model, rows, result, len(members) > 1)
        write_text(run.folder / TABLE_NAME, "\n\n".join((table, *verdicts)) + "\n")
        figure = draw_compression(rows, bench.objective.loss_name, bench.objective.score_name)
        write_figure(run.folder / FIGURE_NAME, figure)

    return run.finish(result, export)


# ---- Budgets ----


def _members(bench: Workbench, progress: bool) -> list[Member]:
    latency = _latency_cost(bench, progress) if bench.settings.max_latency else None
    members = members_of(bench.settings, bench.teacher.config, bench.space, latency)
    for member in members:
        _say(f"budget {member.name}: {member.budget}, {member.share:.2f} of the checkpoint's")
    return members


def _latency_cost(bench: Workbench, progress: bool) -> AdditiveCost:
    """Returns the latency of children on this machine, by a table that is measured once and kept in the run."""
    path, settings = bench.folder / LATENCY_NAME, bench.settings
    if not path.is_file() and bench.accelerator.is_main_process:
        measured = LatencySettings(
            device=str(bench.accelerator.device),
            num_threads=settings.num_threads,
            batch_size=settings.latency_batch_size,
            seq_len=settings.latency_length,
            seed=settings.seed,
        )
        table = measure_latency(
            supernet_config(bench.teacher.config, bench.space), measured, num_held_out=8, progress=progress
        )
        table.save(path)
        _say(table.summary())
    bench.accelerator.wait_for_everyone()
    return LatencyTable.load(path).cost()


# ---- Choice ----


def _choose_all(bench: Workbench, members: Sequence[Member], progress: bool) -> dict[str, Choices]:
    """Returns the children of each budget, from the run's folder where they were chosen before."""
    path = bench.folder / CHOICES_NAME
    if not path.is_file():
        chosen = _choose(bench, members, progress)
        if bench.accelerator.is_main_process:
            write_json(path, {name: choices.to_json() for name, choices in chosen.items()})
        bench.accelerator.wait_for_everyone()
    return {name: Choices.from_json(values) for name, values in read_json(path).items()}


def _choose(bench: Workbench, members: Sequence[Member], progress: bool) -> dict[str, Choices]:
    settings = bench.settings
    start = start_supernet(bench, progress)
    batches = bench.outputs.batches(bench.searched, settings.batch_size)
    zero_shot = _evaluator(bench, start, batches, "zero-shot", progress)
    if settings.searcher == "additive":
        shared = zero_shot
    else:
        supernet = train_supernet(bench, trained_children(members, bench.space), progress)
        shared = _evaluator(bench, supernet, batches, "supernet", progress)
    chosen = {}
    for member in members:
        found = None
        if settings.searcher == "additive":
            found = best_additive(bench.space, member.budget, calibrated_errors(bench))
        chosen[member.name] = choose(
            bench.space,
            bench.teacher.config.chain,
            member.budget,
            zero_shot=zero_shot,
            shared=shared,
            num_evaluations=settings.num_evaluations,
            seed=settings.seed,
            order=best_first(settings.score_weight),
            found=found,
        )
        winner = chosen[member.name].found
        _say(
            f"{member.name}: found {format_architecture(winner.architecture)}, {bench.objective.loss_name} "
            f"{winner.val_loss:.4f} by shared weights",
        )
    return chosen


def _evaluator(bench: Workbench, model: Any, batches: Any, name: str, progress: bool) -> Evaluator:
    journal = bench.folder / f"journal-{name}.jsonl"
    return Evaluator(model, batches, bench.accelerator, journal, progress=progress, judge=bench.objective)


# ---- Distillation ----

Models = dict[str, dict[str, Distilled]]


def _distill_all(bench: Workbench, members: Sequence[Member], chosen: dict[str, Choices], progress: bool) -> Models:
    """Returns for each budget the distilled model and its number of steps, by role."""
    compute = Compute(bench.teacher.config, bench.tokens_per_sentence, bench.settings.batch_size)
    shared = _shared_flops(bench, compute) / len(members)
    models: Models = {}
    for member in members:
        choices = chosen[member.name]
        own: dict[str, Distilled] = {}
        winner, steps = choices.found.architecture, bench.settings.steps
        flops = steps * compute.step(winner) + shared
        planned = {FOUND: (winner, steps)}
        planned |= {role: (child, compute.equal_steps(child, flops)) for role, child in choices.controls.items()}
        for role, (child, number) in planned.items():
            if (twin := next((one for one in own if planned[one] == (child, number)), None)) is not None:
                own[role] = own[twin]
                continue
            _say(f"{member.name}: distilling {role}, {format_architecture(child)}, {number} steps")
            folder = bench.folder / MODELS_FOLDER / member.name / role
            own[role] = Distilled(distill(bench, child, number, folder, progress), number)
        models[member.name] = own
    return models


def _shared_flops(bench: Workbench, compute: Compute) -> float:
    """Returns what finding the children of all budgets has cost: calibration and super-net."""
    chain = bench.teacher.config.chain
    flops = compute.calibration(chain, bench.space.candidates, bench.settings.calibration_steps)
    visits = bench.folder / SUPERNET_FOLDER / VISITS_NAME
    if visits.is_file():
        flops += compute.supernet(read_json(visits))  # type: ignore[arg-type]
    return flops


# ---- Export ----


def _export(
    bench: Workbench, member: Member, model: Any, rows: Sequence[ModelRow], result: dict[str, Any], is_family: bool
) -> Path:
    own = [row for row in rows if row.member in ("", member.name)]
    table = compression_table(own, bench.objective.loss_name, bench.objective.score_name)
    found = next(row for row in own if row.role == FOUND)
    manifest = {
        "compression": {
            "budget": str(member.budget),
            "share": member.share,
            "steps": found.steps,
            "loss": found.loss if math.isfinite(found.loss) else None,
            "verdict": verdict(rows, member.name),
            "models": [row.to_json() for row in own],
            "versions": result["versions"],
        }
    }
    folder = bench.folder / MODEL_FOLDER / member.name if is_family else bench.folder / MODEL_FOLDER
    budget = f"at most {member.share:.2f} of the checkpoint's {member.limit.cost.name}"
    return export_compressed(bench.source, model, folder, manifest, budget=budget, table=table)
