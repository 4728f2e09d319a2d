"""Re-measures the scores of a fine-tuned classifier on the file on which it was scored during fine-tuning."""

from pathlib import Path
from typing import Any

from ..files import file_sha256
from ..hub.contents import MANIFEST_NAME, mapping_at
from ..hub.sentence_folders import json_of
from ..hub.verified_folder import DIFFERS, NOT_MEASURED, OK, UNREADABLE, Check, check
from .file_predictions import evaluate_file
from .settings import EvaluateSettings


# The same model in float32 may differ in its last bits, which can flip one row in a thousand.
_TOLERANCE = 0.001


def is_finetuned(folder: Path) -> bool:
    """Whether the record of a folder says that its model was fine-tuned."""
    try:
        return bool(mapping_at(json_of(folder / MANIFEST_NAME), "finetuning"))
    except (OSError, *UNREADABLE):
        return False


def check_file(folder: Path, file: str) -> list[Check]:
    """Returns for each metric whether a fine-tuned classifier reaches the value that search.json records.

    Args:
        folder: folder of a fine-tuned classifier.
        file: the validation file of the fine-tuning.

    Raises:
        ValueError: there is no such file.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"there is no file {path}; give the validation file of the fine-tuning")
    what = f"scores: {path.name}"
    try:
        record = json_of(folder / MANIFEST_NAME)
        known = mapping_at(mapping_at(record, "finetuning"), "validation_file")
        recorded = {row["metric"]: float(row["value"]) for row in record["scores"] if row["split"] == "validation"}
    except UNREADABLE as error:
        return [check(what, None, f"damaged: {error!r}", DIFFERS)]
    if not known or not recorded:
        return [check(what, None, None, NOT_MEASURED, "the record does not say which file was used")]
    if file_sha256(path) != known.get("sha256"):
        return [check(what, None, None, NOT_MEASURED, "this file is not the recorded one")]
    try:
        found = evaluate_file(folder, path, EvaluateSettings(label_column=known.get("label_column")))["metrics"]
    except ValueError as error:
        return [check(what, None, None, NOT_MEASURED, str(error))]
    return [_compared(f"score: {name}", value, found.get(name)) for name, value in sorted(recorded.items())]


def _compared(what: str, recorded: float, found: Any) -> Check:
    if found is None:
        return check(what, f"{recorded:.4f}", None, DIFFERS, "the task has no such metric")
    is_near = abs(found - recorded) <= _TOLERANCE
    bound = f"{'within' if is_near else 'not within'} {_TOLERANCE:g}"
    return check(what, f"{recorded:.4f}", f"{found:.4f}", OK if is_near else DIFFERS, bound)
