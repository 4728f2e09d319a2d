"""Scores of a compressed model on tasks, measured once more as they were when they were put on record."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hub.contents import MANIFEST_NAME, mapping_at
from ..hub.sentence_folders import json_of
from ..hub.verified_folder import DIFFERS, NOT_CHECKED, NOT_RECORDED, OK, UNREADABLE, Check, check
from .compress_run import read_tasks
from .compression_report import FOUND
from .predictor import Predictor, forward_of
from .source import load_source
from .task_scores import Task


# In percent: the same model in float32 differs by its last bits, which may turn one row of a thousand.
_TOLERANCE = 0.1


def check_tasks(folder: Path, evals: Sequence[str]) -> list[Check]:
    """Returns for each task whether the model in a folder has the score that search.json records.

    Args:
        folder: of a compressed model.
        evals: tasks, as `--eval` of a compression takes them.

    Raises:
        ValueError: the folder is that of no compressed model, or a task cannot be read.
    """
    record = mapping_at(json_of(folder / MANIFEST_NAME), "compression")
    if not record:
        raise ValueError(f"--eval is for models that `magic-nas compress` wrote; {folder} holds another, leave it out")
    try:
        source = load_source(str(folder))
    except ValueError as error:
        # What is wrong with the folder is told by the other checks.
        return [check("scores of tasks", None, None, NOT_CHECKED, str(error))]
    predictor = Predictor(source, forward_of(source.model))
    return [_check_task(task, predictor, record) for task in read_tasks(evals, source)]


def _check_task(task: Task, predictor: Predictor, record: dict[str, Any]) -> Check:
    what = f"score: {task.title}"
    try:
        rows = [row for row in record["models"] if row["role"] == FOUND]
        recorded = mapping_at(rows[0], "tasks").get(task.title) if rows else None
        if recorded is None:
            return check(what, None, None, NOT_RECORDED, "the compression was not scored on it")
        shown, of_task = f"{recorded:.2f}", mapping_at(record, "eval").get(task.title)
    except UNREADABLE as error:
        return check(what, None, f"damaged: {error}", DIFFERS)
    if of_task is None:
        return check(what, shown, None, NOT_CHECKED, "which rows they were is not on record")
    if of_task != task.sha256:
        return check(what, shown, None, NOT_CHECKED, "these are other rows than those on record")
    found = predictor.score(task).value
    is_near = abs(found - recorded) <= _TOLERANCE
    bound = f"{'within' if is_near else 'not within'} {_TOLERANCE:g}"
    return check(what, shown, f"{found:.2f}", OK if is_near else DIFFERS, bound)
