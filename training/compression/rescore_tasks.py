"""Re-measures a compressed model's scores on tasks, in the same way as when they were recorded."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..hub.contents import MANIFEST_NAME, mapping_at
from ..hub.sentence_folders import json_of
from ..hub.verified_folder import DIFFERS, NOT_MEASURED, OK, UNREADABLE, Check, check
from .compress_run import read_tasks
from .compression_report import FOUND
from .predictor import Predictor, forward_of
from .source import load_source
from .task_scores import Task


# In percent. The same model in float32 may differ in its last bits, which can flip one row in a thousand.
_TOLERANCE = 0.1


def check_tasks(folder: Path, evals: Sequence[str]) -> list[Check]:
    """Returns for each task whether the model in a folder reaches the score that search.json records.

    Args:
        folder: folder of a compressed model.
        evals: tasks, in the format of a compression's `--eval`.

    Raises:
        ValueError: the folder holds no compressed model, or a task cannot be read.
    """
    record = mapping_at(json_of(folder / MANIFEST_NAME), "compression")
    if not record:
        raise ValueError(
            f"--eval is for models written by `magic-nas compress` or `magic-nas finetune`, and {folder} holds "
            f"another; remove --eval"
        )
    try:
        source = load_source(str(folder))
    except ValueError as error:
        # The other checks report what is wrong with the folder.
        return [check("scores of tasks", None, None, NOT_MEASURED, str(error))]
    predictor = Predictor(source, forward_of(source.model))
    return [_check_task(task, predictor, record) for task in read_tasks(evals, source)]


def _check_task(task: Task, predictor: Predictor, record: dict[str, Any]) -> Check:
    what = f"score: {task.title}"
    try:
        rows = [row for row in record["models"] if row["role"] == FOUND]
        recorded = mapping_at(rows[0], "tasks").get(task.title) if rows else None
        if recorded is None:
            return check(what, None, None, NOT_MEASURED, "the compression was not scored on it")
        shown, of_task = f"{recorded:.2f}", mapping_at(record, "eval").get(task.title)
    except UNREADABLE as error:
        return check(what, None, f"damaged: {error}", DIFFERS)
    if of_task is None:
        return check(what, shown, None, NOT_MEASURED, "the record does not say which rows were used")
    if of_task != task.sha256:
        return check(what, shown, None, NOT_MEASURED, "these rows are not the recorded ones")
    found = predictor.score(task).value
    is_near = abs(found - recorded) <= _TOLERANCE
    bound = f"{'within' if is_near else 'not within'} {_TOLERANCE:g}"
    return check(what, shown, f"{found:.2f}", OK if is_near else DIFFERS, bound)
