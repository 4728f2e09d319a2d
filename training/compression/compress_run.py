"""The run of a compression: from a checkpoint to faster encoders for the same use, and their controls."""

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..data.documents import DOCSTRINGS
from ..distillation.teacher import weights_hash
from ..drawing import write_figure
from ..files import read_json, short_hash, write_json, write_text
from ..hub.model_folders import card_facts
from ..internals import forget_accelerator
from ..runs.folders import MODEL_FOLDER, Run, bars_off, finished_result, open_run
from ..space.budgets import AdditiveCost
from ..space.latency import LatencyTable, measure_latency
from ..space.search_space import format_architecture
from ..space.settings import LatencySettings
from ..supernet.evaluation import Evaluator, journal_key
from ..tables import counted
from .choices import Choices, best_additive, best_first, choose
from .compressed_folder import export_compressed
from .compression_report import (
    BEST_DROPS,
    EQUAL_STEPS,
    FOUND,
    CompressionResult,
    ModelRow,
    compression_table,
    draw_compression,
    verdict,
)
from .distill import Compute, distill
from .distill_ray import RayCluster, Training, check_ray, distill_on_ray
from .judging import Distilled, judge_models
from .labelled import read_labelled
from .members import Member, check_budgets, members_of, trained_children
from .predictor import window_lengths
from .sentences import Sentences, read_sentences
from .settings import CompressSettings
from .source import Source, load_source
from .spaces import checkpoint_space
from .task_scores import Task, docstring_retrieval, read_task
from .teacher_objectives import Batch
from .workbench import (
    START_FOLDER,
    SUPERNET_FOLDER,
    VISITS_NAME,
    Workbench,
    calibrated_errors,
    drop_supernet,
    new_accelerator,
    process_state,
    run_precision,
    start_supernet,
    supernet_config,
    train_supernet,
)


logger = logging.getLogger(__name__)

LATENCY_NAME = "latency.json"
CHOICES_NAME = "choices.json"
MODELS_FOLDER = "models"
TABLE_NAME = "table.md"
FIGURE_NAME = "figure.svg"
# Memory for hidden states that children share in the search.
_KEPT_BYTES = 2**29

# The models of each budget, by budget name and role.
Models = dict[str, dict[str, Distilled]]


@bars_off()
def compress(
    settings: CompressSettings, output_dir: str | Path, progress: bool = True, cluster: RayCluster | None = None
) -> CompressionResult:
    """Finds, distils and writes a smaller encoder for each budget, and returns the result with all controls.

    The folder then holds `model/` (with several budgets `model/<budget>/`), which has the checkpoint's kind and loads
    like it, table.md, figure.svg and result.json. A stopped run resumes and gives the same result; a finished one
    returns its result.

    Args:
        settings: the checkpoint, the text, the budgets and how to search.
        output_dir: the run's folder.
        progress: whether to show bars.
        cluster: a Ray cluster whose tasks distil the children in parallel; if `None`, they are distilled one by one.

    Raises:
        InfeasibleBudgetError: no child is within a budget.
        ValueError: the checkpoint, text, budgets or tasks cannot be used, or the folder holds another run.
    """
    folder = Path(output_dir)
    check_budgets(settings)
    if cluster is not None:
        check_ray()
    if not settings.text:
        raise ValueError("no text is given; pass unlabelled text like the text that the encoder will see with --text")
    if (result := finished_result(folder, settings)) is not None:
        return CompressionResult(result)
    state = process_state()
    progress = progress and state.is_main_process
    with _threads(settings.num_threads):
        source = load_source(settings.checkpoint, settings.kind)
        _say(*(f"warning: {warning}" for warning in settings.warnings()), *source.notes)
        tasks = read_tasks(settings.eval, source)
        labelled = read_labelled(settings, source)
        check_space(settings, source)
        # A damaged card is found before the search.
        card_facts(str(source.folder))
        with state.main_process_first():
            sentences = _read_text(settings, source, progress)
        _say(*(f"eval {task.note}" for task in tasks))
        if labelled is not None:
            _say(f"labels: {settings.labels}, {counted(len(labelled), 'row')} to train on")
        _say(*sentences.notes, *(f"warning: {warning}" for warning in sentences.warnings))
        inputs = {"the text": sentences.fingerprint, "the checkpoint": weights_hash(source.model)}
        with open_run(folder, settings, state.is_main_process, inputs) as run:
            if run.result is not None:
                return CompressionResult(run.result)
            accelerator = new_accelerator(run_precision(folder, settings))
            try:
                bench = Workbench(settings, source, sentences, folder, accelerator, labelled)
                return CompressionResult(_compress(run, bench, tasks, progress, cluster))
            finally:
                # The caller's next accelerator may have another precision.
                forget_accelerator()


def _read_text(settings: CompressSettings, source: Source, progress: bool) -> Sentences:
    return read_sentences(
        settings.text,
        source.tokenizer,
        source.max_length,
        settings.num_sentences,
        settings.num_validation_sentences,
        settings.seed,
        text_column=settings.text_column,
        progress=progress,
    )


@bars_off()
def open_bench(settings: CompressSettings, folder: Path) -> Workbench:
    """Returns the workbench of a run that another process has begun, with the teacher's outputs available."""
    source = load_source(settings.checkpoint, settings.kind)
    sentences = _read_text(settings, source, progress=False)
    accelerator = new_accelerator(run_precision(folder, settings))
    bench = Workbench(settings, source, sentences, folder, accelerator, read_labelled(settings, source))
    bench.run_teacher(progress=False)
    return bench


@contextmanager
def _threads(number: int) -> Iterator[None]:
    """Sets the number of torch's CPU threads, and restores it afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _say(*lines: str) -> None:
    if process_state().is_main_process:
        for line in lines:
            logger.info(line)


# ---- Checks before any work ----


def read_tasks(evals: Sequence[str], source: Source) -> list[Task]:
    """Returns the tasks that models are scored on at the end, read and checked.

    Raises:
        ValueError: a task is not written as NAME=FILE or unknown, its file cannot be used, or two have the same title.
    """
    tasks = dict[str, Task]()
    for text in evals:
        task = _read_task(text, source)
        if task.title in tasks:
            raise ValueError(f"--eval names {task.title} twice; give each task once, and each file its own name")
        tasks[task.title] = task
    if tasks and source.kind == "span":
        window_lengths(source)
    return list(tasks.values())


def _read_task(text: str, source: Source) -> Task:
    if text.strip() == DOCSTRINGS and source.kind == "sentence":
        return docstring_retrieval()
    name, _, path = (part.strip() for part in text.partition("="))
    if not name or not path:
        raise ValueError(f"--eval is {text!r}; write NAME=FILE, such as stsb=dev.tsv")
    config = source.model.config
    labels: Any = config.id2label if source.kind in ("sequence", "token") else None
    return read_task(name, path, source.kind, id2label=labels, problem_type=config.problem_type)


def check_space(settings: CompressSettings, source: Source) -> None:
    """Refuses budgets and options that do not fit the checkpoint, as far as no measurement is needed for it.

    Raises:
        InfeasibleBudgetError: no child is within a budget.
        ValueError: a budget, an operator or an aligned layer is beyond the checkpoint.
    """
    config = source.model.config
    space = checkpoint_space(config, settings.convolutions)
    supernet_config(config, space)
    members_of(settings, config, space, None)
    if settings.alignment != "none" and settings.alignment_every_n_layers > space.num_layers:
        raise ValueError(
            f"alignment_every_n_layers is {settings.alignment_every_n_layers} but the checkpoint has "
            f"{space.num_layers} layers, so none would be aligned; use at most {space.num_layers}"
        )


# ---- The steps ----


def _compress(
    run: Run, bench: Workbench, tasks: Sequence[Task], progress: bool, cluster: RayCluster | None
) -> dict[str, Any]:
    if run.writes:
        _delete_torn(run.folder)
    members = _members(bench, progress)
    bench.run_teacher(progress)
    chosen = _choose_all(bench, members, progress)
    models = _distill_all(bench, members, chosen, progress, cluster)
    rows, measured = bench.on_main(lambda: judge_models(bench, models, tasks, progress))
    table = compression_table(rows, bench.objective.loss_name, bench.objective.score_name)
    verdicts = [verdict(rows, member.name) for member in members]
    result = {
        "checkpoint": bench.settings.checkpoint,
        "kind": bench.source.kind,
        "corpus": bench.sentences.fingerprint,
        "precision": bench.accelerator.mixed_precision,
        "eval": {task.title: task.sha256 for task in tasks},
        "members": [{"name": member.name, "budget": str(member.budget), "share": member.share} for member in members],
        "models": [row.to_json() for row in rows],
        "latency": measured.to_json(),
        "verdicts": verdicts,
        "table": table,
        "loss_name": bench.objective.loss_name,
        "score_name": bench.objective.score_name,
    }

    def export(result: dict[str, Any]) -> None:
        for member in members:
            _export(bench, member, models[member.name][FOUND].model, rows, result, len(members) > 1)
        write_text(run.folder / TABLE_NAME, "\n\n".join((table, *verdicts)) + "\n")
        figure = draw_compression(rows, bench.objective.loss_name, bench.objective.score_name)
        write_figure(run.folder / FIGURE_NAME, figure)

    return run.finish(result, export)


def _delete_torn(folder: Path) -> None:
    """Deletes folders that a killed process left half-written."""
    for path in (*folder.glob(f".{START_FOLDER}-*"), *folder.rglob(f".{MODEL_FOLDER}-*")):
        rmtree(path)


# ---- Budgets ----


def _members(bench: Workbench, progress: bool) -> list[Member]:
    latency = _latency_cost(bench, progress) if bench.settings.max_latency else None
    members = members_of(bench.settings, bench.teacher.config, bench.space, latency)
    for member in members:
        _say(f"budget {member.name}: {member.budget}, {member.share:.2f} of the checkpoint's")
    return members


def _latency_cost(bench: Workbench, progress: bool) -> AdditiveCost:
    """Returns the latency of children on this machine, from a table that is measured once and kept in the run."""
    path = bench.folder / LATENCY_NAME
    if not bench.is_file(path):
        bench.on_main(lambda: _measure_latency(bench, path, progress))
    return LatencyTable.load(path).cost()


def _measure_latency(bench: Workbench, path: Path, progress: bool) -> None:
    settings = LatencySettings(
        device=str(bench.accelerator.device),
        num_threads=bench.settings.num_threads,
        batch_size=bench.settings.latency_batch_size,
        seq_len=bench.latency_length,
        seed=bench.settings.seed,
    )
    supernet = supernet_config(bench.teacher.config, bench.space)
    table = measure_latency(supernet, settings, num_held_out=8, progress=progress)
    table.save(path)
    _say(table.summary())


# ---- Choice ----


def _choose_all(bench: Workbench, members: Sequence[Member], progress: bool) -> dict[str, Choices]:
    """Returns the children of each budget, read from the run's folder if they were chosen before."""
    path = bench.folder / CHOICES_NAME
    if not bench.is_file(path):
        chosen = _choose(bench, members, progress)
        if bench.accelerator.is_main_process:
            write_json(path, {name: choices.to_json() for name, choices in chosen.items()})
        bench.accelerator.wait_for_everyone()
    return {name: Choices.from_json(values) for name, values in read_json(path).items()}


def _choose(bench: Workbench, members: Sequence[Member], progress: bool) -> dict[str, Choices]:
    settings = bench.settings
    is_additive = settings.searcher == "additive"
    if is_additive:
        supernet, weights = start_supernet(bench, progress), "calibrated"
    else:
        supernet, weights = train_supernet(bench, trained_children(members, bench.space), progress), "shared"
    batches = bench.judged_batches(settings.num_search_sentences)
    # Made only now, since training writes to tensors that the super-nets share.
    zero_shot = _evaluator(bench, drop_supernet(bench), batches, "zero-shot", progress)
    shared = _evaluator(bench, supernet, batches, "shared", progress)
    chosen = {}
    for member in members:
        chosen[member.name] = choose(
            bench.space,
            bench.teacher.config.chain,
            member.budget,
            zero_shot=zero_shot,
            shared=shared,
            num_evaluations=settings.num_evaluations,
            seed=settings.seed,
            order=best_first(settings.score_weight),
            found=best_additive(bench.space, member.budget, calibrated_errors(bench)) if is_additive else None,
        )
        winner = chosen[member.name].found
        _say(
            f"{member.name}: found {format_architecture(winner.architecture)}, {bench.objective.loss_name} "
            f"{winner.val_loss:.4f} with {weights} weights"
        )
    return chosen


def _evaluator(
    bench: Workbench, model: MagicPreTrainedModel, batches: Sequence[Batch], name: str, progress: bool
) -> Evaluator:
    """Returns what judges children, each once in a run: those judged before a stop are in the journal.

    A journal belongs to weights and data, bit by bit. On another machine, or without the cache, the teacher's outputs
    may differ in their last bits; children are then judged again, in another journal.
    """
    key = short_hash(journal_key(model, batches, bench.accelerator))
    return Evaluator(
        model,
        batches,
        bench.accelerator,
        bench.folder / f"journal-{name}-{key}.jsonl",
        progress=progress,
        max_kept_bytes=_KEPT_BYTES,
        judge=bench.objective,
    )


# ---- Distillation ----


def _distill_all(
    bench: Workbench,
    members: Sequence[Member],
    chosen: Mapping[str, Choices],
    progress: bool,
    cluster: RayCluster | None,
) -> Models:
    """Returns for each budget the distilled model and its number of steps, by role."""
    planned = {member.name: _plan(bench, member, chosen[member.name], len(members)) for member in members}
    # One child may fill several roles of a budget; it is distilled once.
    trainings = list(dict.fromkeys(training for plan in planned.values() for training in plan.values()))
    if cluster is not None:
        distill_on_ray(bench.settings, bench.folder, trainings, open_bench, cluster, progress)
    distilled = {training: _distill(bench, training, progress) for training in trainings}
    return {member: {role: distilled[training] for role, training in plan.items()} for member, plan in planned.items()}


def _distill(bench: Workbench, training: Training, progress: bool) -> Distilled:
    child, steps, folder = training
    _say(f"{folder.parent.name}: distilling {folder.name}, {format_architecture(child)}, {steps} steps")
    return Distilled(distill(bench, child, steps, folder, progress), steps)


def _plan(bench: Workbench, member: Member, choices: Choices, num_members: int) -> dict[str, Training]:
    """Returns the trainings of a budget by role: of the found child, and of its controls at its compute.

    The compute of a winner is that of its distillation and search, plus its share of the calibration and super-net.

    Args:
        bench: workbench of the run.
        member: the budget.
        choices: its children.
        num_members: number of budgets that share one search.
    """
    lengths, settings = bench.train["length"][:], bench.settings
    mean_length = sum(lengths) / len(lengths)
    compute = Compute(bench.teacher.config, settings, mean_length, bench.accelerator.num_processes)
    winner = choices.found.architecture
    num_judged_on = min(settings.num_search_sentences, len(bench.validation))
    search = _shared_flops(bench, compute) / num_members + compute.judging(choices.passes, num_judged_on)
    flops = settings.steps * compute.step(winner) + search
    planned = {FOUND: (winner, settings.steps)}
    wanted = (*BEST_DROPS, *settings.controls)
    controls = {role: child for role, child in choices.controls.items() if role in wanted}
    planned |= {role: (child, compute.equal_steps(child, flops)) for role, child in controls.items()}
    if settings.equal_steps:
        drops = [role for role in BEST_DROPS if role in controls]
        planned |= {f"{role}{EQUAL_STEPS}": (choices.controls[role], settings.steps) for role in drops}
    first = {plan: role for role, plan in reversed(planned.items())}
    folder = bench.folder / MODELS_FOLDER / member.name
    return {role: Training(*plan, folder / first[plan]) for role, plan in planned.items()}


def _shared_flops(bench: Workbench, compute: Compute) -> float:
    """Returns the FLOPs that the children of all budgets share: calibration and super-net."""
    flops = compute.calibration(bench.space.candidates)
    if bench.settings.searcher == "supernet":
        flops += compute.supernet(read_json(bench.folder / SUPERNET_FOLDER / VISITS_NAME))
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
            "eval": result["eval"],
            "versions": result["versions"],
        }
    }
    folder = bench.folder / MODEL_FOLDER / member.name if is_family else bench.folder / MODEL_FOLDER
    return export_compressed(bench.source, model, folder, manifest, budget=member.in_words, table=table)
