"""What the models of a compression are worth: fidelity to the checkpoint, scores on tasks, size and latency."""

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
from .compression_report import FOUND, FOUND_INT8, TEACHER, TEACHER_INT8, ModelRow
from .predictor import Predictor, forward_of
from .sentences import collate
from .side_by_side import MeasuredModels, measure_models
from .task_scores import Task
from .teacher_objectives import Batch
from .workbench import Workbench


logger = logging.getLogger(__name__)

# Batches of held-out sentences that latency is measured on in the end, as they come, not sorted by length.
_NUM_TIMED_BATCHES = 4
_NUM_ROUNDS = 15


class Distilled(NamedTuple):
    """A model of a compression and the steps of its distillation."""

    model: Any
    steps: int


# The name of a budget, empty for the teacher, and a role.
Key = tuple[str, str]


def judge_models(
    bench: Workbench, models: Mapping[str, Mapping[str, Distilled]], tasks: Sequence[Task], progress: bool
) -> tuple[list[ModelRow], MeasuredModels]:
    """Returns a row for each model, the teacher's first, and how their latency was measured, side by side.

    Teacher and winners are judged in int8 as well, through ONNX Runtime, where it is installed.

    Args:
        bench: of the run.
        models: by the name of the budget and by role.
        tasks: what models are scored on beside fidelity.
        progress: shows a bar.
    """
    batches = bench.outputs.batches(bench.validation, bench.settings.batch_size)
    every: dict[Key, Distilled] = {("", TEACHER): Distilled(bench.teacher, 0)}
    for member, of_member in models.items():
        every |= {(member, role): distilled for role, distilled in of_member.items()}
    with tempfile.TemporaryDirectory() as folder:
        quantised = _quantised(bench, every, Path(folder))
        rows = {key: _row(bench, key, distilled, batches, tasks) for key, distilled in every.items()}
        for key, session in quantised.items():
            rows[key] = _int8_row(bench, rows[_float_key(key)], session, batches, tasks)
        runnable = {_name(key): model for key, (model, _) in every.items()}
        runnable |= {_name(key): session for key, session in quantised.items()}
        measured = measure_models(runnable, _timed_batches(bench), bench.settings.num_threads, _NUM_ROUNDS, progress)
    order = ["", *models]
    in_order = sorted(rows, key=lambda key: order.index(key[0]))
    return [_with_latency(rows[key], measured) for key in in_order], measured


def _name(key: Key) -> str:
    return ": ".join(filter(None, key))


def _float_key(key: Key) -> Key:
    return key[0], TEACHER if key[1] == TEACHER_INT8 else FOUND


def _row(
    bench: Workbench, key: Key, distilled: Distilled, batches: Sequence[Batch], tasks: Sequence[Task]
) -> ModelRow:
    model, steps = distilled
    config = model.config
    loss, score = evaluate_child(model, batches, judge=bench.objective)
    return ModelRow(
        member=key[0],
        role=key[1],
        architecture=config.chain,
        num_parameters=count_parameters(config, config.chain),
        flops=count_flops(config, config.chain, bench.settings.latency_length, head="none"),
        steps=steps,
        loss=loss,
        score=score,
        tasks=_scores(Predictor(bench.source, forward_of(model)), tasks),
    )


def _int8_row(
    bench: Workbench, twin: ModelRow, session: OnnxModel, batches: Sequence[Batch], tasks: Sequence[Task]
) -> ModelRow:
    """Returns the row of a model in int8 from that of the same model in float32."""
    predictor = Predictor(bench.source, session)
    loss, score = predictor.fidelity(bench.objective, batches)
    role = TEACHER_INT8 if twin.role == TEACHER else FOUND_INT8
    return replace(twin, role=role, loss=loss, score=score, tasks=_scores(predictor, tasks))


def _scores(predictor: Predictor, tasks: Sequence[Task]) -> dict[str, float]:
    return {task.title: predictor.score(task).value for task in tasks}


def _quantised(bench: Workbench, every: Mapping[Key, Distilled], folder: Path) -> dict[Key, OnnxModel]:
    """Returns teacher and winners in int8, nothing where the packages are not installed."""
    try:
        check_packages(True)
    except ValueError as error:
        logger.info(f"int8 is left out: {error}")
        return {}
    found = {}
    wanted = {TEACHER: TEACHER_INT8, FOUND: FOUND_INT8}
    for number, ((member, role), (model, _)) in enumerate(every.items()):
        if role in wanted:
            place = folder / str(number)
            model.save_pretrained(place)
            path = quantize_onnx(export_onnx(place, place / "onnx"))
            found[member, wanted[role]] = OnnxModel(path, bench.settings.num_threads)
    return found


def _timed_batches(bench: Workbench) -> list[dict[str, torch.Tensor]]:
    """Returns batches of held-out sentences in their random order, padded to the longest of each."""
    size, pad = bench.settings.latency_batch_size, bench.teacher.config.pad_token_id or 0
    batches = []
    for start in range(0, min(_NUM_TIMED_BATCHES * size, len(bench.validation)), size):
        places = range(start, min(start + size, len(bench.validation)))
        batch = collate(bench.validation.select(places).to_list(), pad)
        batches.append({"attention_mask": torch.ones_like(batch["input_ids"]), **batch})
    return batches


def _with_latency(row: ModelRow, measured: MeasuredModels) -> ModelRow:
    values = {}
    for mode in ("padded", "unpadded"):
        ratio = measured.ratios.get(mode, {}).get(_name((row.member, row.role)))
        values[mode] = None if ratio is None else (ratio.median, ratio.low, ratio.high)
    return replace(row, **values)
