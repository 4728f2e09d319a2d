"""Labelled rows that children are trained on in addition to the text, from `--labels`."""

from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets

from .sentences import LABEL
from .settings import CompressSettings
from .source import Source
from .task_scores import read_task
from .teaching import rows_for


def read_labelled(settings: CompressSettings, source: Source) -> Dataset | None:
    """Returns the labelled rows of a run in random order, at most `num_sentences`; `None` if none are given.

    The column "label" holds a list of numbers: one class id, one number, or 0 or 1 for each label.

    Raises:
        ValueError: the checkpoint does not predict classes or numbers for sequences, or the file cannot be used.
    """
    if settings.labels is None:
        return None
    if source.kind != "sequence":
        raise ValueError(
            f"--labels is {settings.labels}, but the kind of the checkpoint is {source.kind}; only classifiers and "
            f"regression models, of kind sequence, are trained on labels: remove --labels"
        )
    config: Any = source.model.config
    task = read_task(
        "labels", settings.labels, source.kind, id2label=config.id2label, problem_type=config.problem_type
    )
    encoded = source.tokenizer(*task.texts, truncation=True, max_length=source.max_length)
    columns = {"input_ids": encoded["input_ids"]}
    # As in rows of text, only if one of them is not 0.
    if any(map(any, encoded.get("token_type_ids", ()))):
        columns["token_type_ids"] = encoded["token_type_ids"]
    columns["length"] = list(map(len, encoded["input_ids"]))
    columns[LABEL] = np.asarray(task.truth, dtype=float).reshape(len(task.truth), -1).tolist()
    order = np.random.default_rng(settings.seed).permutation(len(task.truth))
    rows = Dataset.from_dict(columns).select(order[: settings.num_sentences])
    return rows_for(source.model, rows)


def with_labelled(rows: Dataset, labelled: Dataset | None, held_out: Dataset) -> Dataset:
    """Returns rows of text together with labelled rows; the label of a row of text is an empty list.

    A row in both is taken as labelled. Held-out rows are removed from the labelled ones.

    Args:
        rows: rows of text.
        labelled: see `read_labelled`; with `None` the rows of text are returned unchanged.
        held_out: rows that models are judged by.
    """
    if labelled is None:
        return rows
    judged = set(map(tuple, held_out["input_ids"][:]))
    own = labelled["input_ids"][:]
    labelled = labelled.select([place for place, ids in enumerate(own) if tuple(ids) not in judged])
    known = set(map(tuple, own))
    rows = rows.select([place for place, ids in enumerate(rows["input_ids"][:]) if tuple(ids) not in known])
    if "token_type_ids" in labelled.column_names and "token_type_ids" not in rows.column_names:
        rows = rows.add_column("token_type_ids", [[0] * length for length in rows["length"][:]])
    rows = rows.add_column(LABEL, [[] for _ in range(len(rows))], feature=labelled.features[LABEL])
    return concatenate_datasets([rows.cast(labelled.select_columns(rows.column_names).features), labelled])
