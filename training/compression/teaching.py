"""The teacher's outputs: computed once, kept on disk, and handed to every batch of a child's training."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from tqdm.auto import tqdm

from ..distillation.teacher import (
    TeacherCache,
    join_records,
    sequence_keys,
    split_record,
    teacher_inputs,
    weights_hash,
)
from .sentences import collate, length_batches
from .source import Source
from .teacher_objectives import TARGET, Batch, Objective


# What a collator needs of a row of text, beside `index`, its place in its set.
COLUMNS = ("input_ids", "token_type_ids", "length", "index")


def with_index(rows: Dataset, num_token_types: int) -> Dataset:
    """Returns rows of text with `index`, the place of each, which masks and records go by.

    Token types are left out for a model that knows one only, whatever its tokenizer gives.
    """
    if num_token_types < 2 and "token_type_ids" in rows.column_names:
        rows = rows.remove_columns("token_type_ids")
    return rows.add_column("index", list(range(len(rows))))


class TeacherOutputs:
    """The outputs of a checkpoint for the sequences of a text, found by their tokens.

    Attributes:
        num_run: sequences that the teacher was run on.
        num_cached: sequences whose outputs lay on disk.
    """

    def __init__(self, source: Source, objective: Objective, folder: str | Path, accelerator: Accelerator):
        """Opens what lies in a folder of any number of caches, kept apart by weights, objective and precision."""
        self._source, self._objective, self._accelerator = source, objective, accelerator
        self._pad_token_id = source.model.config.pad_token_id or 0
        self._folder = folder
        self._settings = {
            "weights": weights_hash(source.model),
            "precision": accelerator.mixed_precision,
            **objective.describe(),
        }
        self._cache = TeacherCache(folder, self._settings)
        self.num_run = self.num_cached = 0

    def fill(self, rows: Dataset, batch_size: int = 64, progress: bool = False) -> None:
        """Runs the teacher on the sequences that are not on disk yet; each process takes its share of the batches.

        What was computed when a run is stopped is on disk and is not computed again.

        Args:
            rows: of text, with `index`.
            batch_size: sequences in a batch, which are of nearly equal lengths.
            progress: shows a bar.
        """
        rank, world_size = self._accelerator.process_index, self._accelerator.num_processes
        order = length_batches(rows["length"], batch_size, seed=0)[rank::world_size]
        teacher = self._source.model.to(self._accelerator.device).eval()
        try:
            for indices in tqdm(order, desc="teacher", unit="batch", leave=False, disable=not progress):
                self._fill_batch(teacher, rows.select(indices).to_list())
        finally:
            self._cache.flush()
        self._accelerator.wait_for_everyone()
        if world_size > 1:
            # With what the other processes have written.
            self._cache = TeacherCache(self._folder, self._settings)

    def _fill_batch(self, teacher: Any, examples: Sequence[dict[str, Any]]) -> None:
        batch = self._batch(examples)
        keys = self._keys(batch)
        missing = [place for place, key in enumerate(keys) if self._cache.get(key) is None]
        self.num_cached += len(keys) - len(missing)
        if not missing:
            return
        self.num_run += len(missing)
        batch = self._batch([examples[place] for place in missing])
        inputs = {name: tensor.to(teacher.device) for name, tensor in batch.items()}
        with torch.no_grad(), self._accelerator.autocast():
            outputs = teacher(**{**teacher_inputs(teacher, inputs), "return_dict": True})
            target = self._objective.target(self._objective.read(outputs, inputs))
        lengths = self._objective.record_lengths(batch)
        for place, record in zip(missing, split_record(self._objective.pack(target), lengths), strict=True):
            self._cache.put(keys[place], record)

    def _batch(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        indices = [example["index"] for example in examples]
        return self._objective.mask(collate(examples, self._pad_token_id), indices)

    def _keys(self, batch: dict[str, Tensor]) -> list[bytes]:
        masked = batch["labels"] != -100 if "labels" in batch else None
        return sequence_keys(teacher_inputs(self._source.model, batch), masked)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Returns the batch of some rows, with the teacher's outputs under `TARGET`.

        Raises:
            ValueError: the teacher was not run on one of them.
        """
        batch = self._batch(examples)
        records = [self._cache.get(key) for key in self._keys(batch)]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            raise ValueError("the teacher was not run on a sequence of the text; fill its outputs first")
        return {**batch, TARGET: self._objective.unpack(join_records(found))}

    def batches(self, rows: Dataset, batch_size: int) -> list[Batch]:
        """Returns all rows in batches of nearly equal lengths, each with the teacher's outputs."""
        return [self.collate(rows.select(indices).to_list()) for indices in ordered_batches(rows, batch_size)]


def ordered_batches(rows: Dataset, batch_size: int) -> list[list[int]]:
    """Returns the places of rows by length, cut into batches."""
    order = sorted(range(len(rows)), key=rows["length"].__getitem__)
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def batch_maker(rows: Dataset, make: Callable[[Sequence[dict[str, Any]]], Batch], batch_size: int, seed: int) -> Any:
    """Yields batches of nearly equal lengths for ever, in an order that follows from the seed."""
    epoch = 0
    while True:
        for indices in length_batches(rows["length"], batch_size, seed + epoch):
            yield make(rows.select(indices).to_list())
        epoch += 1


Autocast = Callable[[], AbstractContextManager[Any]]
