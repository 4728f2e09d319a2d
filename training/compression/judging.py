"""Evaluation of the models of a compression: fidelity to the checkpoint, scores on tasks, size and latency."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..hub.onnx_export import OnnxModel, check_packages, export_onnx, quantize_onnx
from ..space.costs import count_flops, count_parameters
from ..supernet.evaluation import evaluate_child
from .compression_report import CHECKPOINT, CHECKPOINT_INT8, FOUND, FOUND_INT8, ModelRow
from .predictor import Predictor, forward_of
from .sentences import collate
from .side_by_side import MeasuredModels, measure_models
from .task_scores import Task
from .teacher_objectives import Batch
from .workbench import Workbench


logger = logging.getLogger(__name__)

# Batches of held-out sentences for the final latency, in their own order, not sorted by length.
_NUM_TIMED_BATCHES = 4
_NUM_ROUNDS = 15
_INT8 = {CHECKPOINT: CHECKPOINT_INT8, FOUND: FOUND_INT8}


class Distilled(NamedTuple):
    """A model of a compression and the steps of its distillation."""

    model: Any
    steps: int


class Key(NamedTuple):
    """Identifies a model: the name of its budget, empty for the checkpoint, and its role."""

    member: str
    role: str

    def __str__(self) -> str:
        return ": ".join(filter(None, self))


def judge_models(
    bench: Workbench, models: Mapping[str, Mapping[str, Distilled]], tasks: Sequence[Task], progress: bool
) -> tuple[list[ModelRow], MeasuredModels]:
    """Returns a row for each model, the checkpoint's first, and their latency, measured side by side.

    Checkpoint and winners are also judged in int8, through ONNX Runtime, if it is installed. A task on which one of
    the models cannot be scored, and a model that cannot be quantized to int8, are skipped with a warning; the models
    themselves are not affected.

    Args:
        bench: workbench of the run.
        models: the models by name of the budget and by role.
        tasks: tasks that models are scored on in addition to fidelity.
        progress: whether to show a bar.
    """
    every = {Key("", CHECKPOINT): Distilled(bench.teacher, 0)}
    for member, of_member in models.items():
        every |= {Key(member, role): distilled for role, distilled in of_member.items()}
    batches = bench.judged_batches()
    sessions = _quantised({key: distilled.model for key, distilled in every.items()}, bench.settings.num_threads)
    rows = {key: _row(bench, key, distilled, batches, tasks) for key, distilled in every.items()}
    for key, session in sessions.items():
        rows[_int8_key(key)] = _int8_row(bench, rows[key], session, batches, tasks)
    runnable: dict[str, Any] = {str(key): distilled.model for key, distilled in every.items()}
    runnable |= {str(_int8_key(key)): session for key, session in sessions.items()}
    measured = measure_models(runnable, _timed_batches(bench), bench.settings.num_threads, _NUM_ROUNDS, progress)
    members = ["", *models]
    in_order = sorted(rows, key=lambda key: members.index(key.member))
    common = [task.title for task in tasks if all(task.title in row.tasks for row in rows.values())]
    return [_finished_row(rows[key], common, key, measured) for key in in_order], measured


# ---- One model ----


def _row(
    bench: Workbench, key: Key, distilled: Distilled, batches: Sequence[Batch], tasks: Sequence[Task]
) -> ModelRow:
    model, steps = distilled
    config = model.config
    loss, score = evaluate_child(model, batches, judge=bench.objective)
    return ModelRow(
        member=key.member,
        role=key.role,
        architecture=config.chain,
        num_parameters=count_parameters(config, config.chain),
        flops=count_flops(config, config.chain, bench.latency_length, head="none"),
        steps=steps,
        loss=loss,
        score=score,
        tasks=_scores(Predictor(bench.source, forward_of(model)), tasks, key),
    )


def _int8_row(
    bench: Workbench, twin: ModelRow, session: OnnxModel, batches: Sequence[Batch], tasks: Sequence[Task]
) -> ModelRow:
    """Returns the row of an int8 model, given the row of the same model in float32."""
    key = _int8_key(Key(twin.member, twin.role))
    predictor = Predictor(bench.source, session)
    loss, score = predictor.fidelity(bench.objective, batches)
    return replace(twin, role=key.role, loss=loss, score=score, tasks=_scores(predictor, tasks, key))


def _scores(predictor: Predictor, tasks: Sequence[Task], key: Key) -> dict[str, float]:
    found = {}
    for task in tasks:
        try:
            found[task.title] = predictor.score(task).value
        except ValueError as error:
            logger.warning(f"{task.title} is skipped, since {key} cannot be scored on it: {error}")
    return found


def _finished_row(row: ModelRow, tasks: Sequence[str], key: Key, measured: MeasuredModels) -> ModelRow:
    """Returns a row with the tasks that all rows have, and with its latency."""
    values: dict[str, Any] = {}
    for mode in ("padded", "unpadded"):
        ratio = measured.ratios.get(mode, {}).get(str(key))
        values[mode] = None if ratio is None else (ratio.median, ratio.low, ratio.high)
    return replace(row, tasks={title: row.tasks[title] for title in tasks}, **values)


# ---- int8 ----


def _int8_key(key: Key) -> Key:
    return key._replace(role=_INT8[key.role])


def _quantised(models: Mapping[Key, Any], num_threads: int) -> dict[Key, OnnxModel]:
    """Returns the checkpoint and the winners in int8 by their float32 keys; empty if the packages are missing."""
    try:
        check_packages(int8=True)
    except ValueError as error:
        logger.info(f"int8 is skipped: {error}")
        return {}
    found = {}
    for key, model in models.items():
        if key.role not in _INT8:
            continue
        try:
            found[key] = _in_int8(model, num_threads)
        # The exporter and the quantizer raise errors without a common class, and no other model depends on this one.
        except Exception as error:
            reason = (str(error) or type(error).__name__).partition("\n")[0]
            logger.warning(f"{_int8_key(key)} is skipped, since the export failed: {reason}")
    return found


def _in_int8(model: Any, num_threads: int) -> OnnxModel:
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        # The session no longer needs the files.
        return OnnxModel(quantize_onnx(export_onnx(folder, Path(folder) / "onnx")), num_threads)


# ---- Latency ----


def _timed_batches(bench: Workbench) -> list[dict[str, torch.Tensor]]:
    """Returns batches of held-out sentences in their random order, padded to the longest of each."""
    size, device = bench.settings.latency_batch_size, bench.accelerator.device
    batches = []
    for start in range(0, min(_NUM_TIMED_BATCHES * size, len(bench.validation)), size):
        rows = bench.validation.select(range(start, min(start + size, len(bench.validation))))
        batch = collate(rows.to_list(), bench.pad_token_id)
        batch = {"attention_mask": torch.ones_like(batch["input_ids"]), **batch}
        batches.append({name: tensor.to(device) for name, tensor in batch.items()})
    return batches
