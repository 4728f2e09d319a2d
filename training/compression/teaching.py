"""The teacher's outputs: computed once, kept on disk, and added to every batch of a child's training."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from itertools import chain, count, islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from torch.utils.data import Sampler

from ..bars import progress_bar
from ..distillation.teacher import (
    TeacherCache,
    join_records,
    sequence_keys,
    split_record,
    teacher_inputs,
    weights_hash,
)
from .sentences import LABEL, collate, length_batches
from .source import Source
from .teacher_objectives import TARGET, Batch, Objective


Autocast = Callable[[], AbstractContextManager[Any]]

# The columns of a row of text that a collator needs.
COLUMNS = ("input_ids", "token_type_ids", LABEL)


# ---- Rows and batches ----


def rows_for(model: Any, rows: Dataset) -> Dataset:
    """Returns rows of text as a model takes them, without token types if it has only one."""
    if model.config.type_vocab_size < 2 and "token_type_ids" in rows.column_names:
        return rows.remove_columns("token_type_ids")
    return rows


def text_batch(rows: Dataset, places: Sequence[int], pad_token_id: int) -> Batch:
    """Returns some rows as a batch of model inputs, without labels."""
    batch = collate(rows.select(places).to_list(), pad_token_id)
    batch.pop(LABEL, None)
    return batch


def ordered_batches(rows: Dataset, batch_size: int) -> list[list[int]]:
    """Returns the places of all rows, ordered by length and cut into batches whose sizes differ by at most one."""
    lengths = rows["length"][:]
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    num_batches = -(-len(order) // batch_size)
    bounds = [len(order) * number // num_batches for number in range(num_batches + 1)]
    return [order[start:end] for start, end in pairwise(bounds)]


def endless_places(rows: Dataset, batch_size: int, seed: int) -> Iterator[list[int]]:
    """Yields the places of rows of nearly equal lengths, one batch at a time, endlessly.

    In each epoch the rows come in another random order, each once, except for random ones that would not fill a batch.
    If there are fewer rows than in a batch, some come several times in it.
    """
    lengths = np.array(rows["length"][:])
    for epoch in count(seed):
        # Omitted before rows are batched by length, since otherwise the last batch would always have the longest rows.
        places = np.random.default_rng([epoch, 1]).permutation(len(lengths))
        whole = max(1, len(places) // batch_size) * batch_size
        places = np.resize(places, whole)
        for batch in length_batches(lengths[places], batch_size, epoch):
            yield places[batch].tolist()


def endless_batches(rows: Dataset, batch_size: int, pad_token_id: int, seed: int) -> Iterator[Batch]:
    """Yields batches of text endlessly, without labels and the teacher's outputs, see `endless_places`."""
    for places in endless_places(rows, batch_size, seed):
        yield text_batch(rows, places, pad_token_id)


class TrainOrder(Sampler[int]):
    """The places of all rows of a training, step by step, see `endless_places`.

    They depend on the seed alone, whatever is drawn elsewhere and wherever a training resumes. A step has the same
    rows however it is split among micro-batches and processes.
    """

    def __init__(self, rows: Dataset, batch_size: int, num_steps: int, seed: int):
        """Takes the rows, the number of rows per step, the number of steps, and the seed."""
        self._rows, self._batch_size, self._num_steps, self._seed = rows, batch_size, num_steps, seed

    def __iter__(self) -> Iterator[int]:
        places = endless_places(self._rows, self._batch_size, self._seed)
        return chain.from_iterable(islice(places, self._num_steps))

    def __len__(self) -> int:
        return self._batch_size * self._num_steps


# ---- The teacher's outputs ----


class TeacherOutputs:
    """The outputs of a checkpoint for the sequences of a text, found by their tokens."""

    def __init__(
        self,
        source: Source,
        objective: Objective,
        folder: str | Path,
        accelerator: Accelerator,
        in_float32: bool = False,
    ):
        """Opens the caches in a folder, which are kept apart by weights, objective and precision.

        Args:
            source: the checkpoint, on the device of the accelerator.
            objective: determines which outputs are kept.
            folder: folder of the caches.
            accelerator: splits the work among processes.
            in_float32: whether the checkpoint runs in float32 instead of the accelerator's precision.

        Raises:
            ValueError: a file of the cache is damaged.
        """
        self._teacher, self._objective, self._accelerator = source.model, objective, accelerator
        self._pad_token_id = source.model.config.pad_token_id or 0
        self._folder = folder
        self._autocast: Autocast = nullcontext if in_float32 else accelerator.autocast
        self._settings = {
            "weights": weights_hash(source.model),
            "precision": "no" if in_float32 else accelerator.mixed_precision,
            **objective.describe(),
        }
        self._cache = TeacherCache(folder, self._settings)

    def fill(self, rows: Dataset, batch_size: int = 64, progress: bool = False) -> None:
        """Runs the teacher on the sequences that are not on disk yet; each process takes its share of the batches.

        The outputs computed before a stop are on disk. The missing ones come out as they would have, since the batches
        are the same.

        Args:
            rows: rows of text.
            batch_size: sequences per batch, which have nearly equal lengths.
            progress: whether to show a bar.
        """
        rank, world_size = self._accelerator.process_index, self._accelerator.num_processes
        batches = length_batches(rows["length"], batch_size, seed=0)[rank::world_size]
        self._teacher.eval()
        try:
            for places in progress_bar(batches, desc="checkpoint", unit="batch", leave=False, disable=not progress):
                self._fill_batch(self._batch(rows.select(places).to_list()))
        finally:
            self._cache.flush()
        self._accelerator.wait_for_everyone()
        if world_size > 1:
            # Includes what the other processes have written.
            self._cache = TeacherCache(self._folder, self._settings)

    @torch.no_grad()
    def _fill_batch(self, batch: Batch) -> None:
        keys = self._keys(batch)
        is_missing = [self._cache.get(key) is None for key in keys]
        if not any(is_missing):
            return
        # The whole batch, since the last bits of an output depend on the rest of its batch.
        inputs = {name: tensor.to(self._teacher.device) for name, tensor in batch.items()}
        with self._autocast():
            states = self._teacher.base_model(**teacher_inputs(self._teacher, inputs)).last_hidden_state
            # The head on its own, since that of a masked LM runs on the masked positions only.
            outputs = self._objective.head(self._teacher, states, inputs)
            target = self._objective.target(self._objective.read(outputs, inputs))
        records = split_record(self._objective.pack(target), self._objective.record_lengths(batch))
        for key, record, misses in zip(keys, records, is_missing, strict=True):
            if misses:
                self._cache.put(key, record)

    def _batch(self, examples: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
        return self._objective.mask(collate(examples, self._pad_token_id))

    def _keys(self, batch: dict[str, Tensor]) -> list[bytes]:
        masked = batch["labels"] != -100 if "labels" in batch else None
        return sequence_keys(teacher_inputs(self._teacher, batch), masked)

    def collate(self, examples: Sequence[dict[str, Any]]) -> Batch:
        """Returns the batch of some rows as the objective masks it, with the teacher's outputs under `TARGET`.

        Raises:
            ValueError: the teacher has not been run on one of them.
        """
        batch = self._batch(examples)
        records = [self._cache.get(key) for key in self._keys(batch)]
        found = [record for record in records if record is not None]
        if len(found) < len(records):
            raise ValueError("the teacher has not been run on a sequence of the text; call fill() on its rows first")
        return {**batch, TARGET: self._objective.unpack(join_records(found))}

    def batches(self, rows: Dataset, batch_size: int) -> list[Batch]:
        """Returns all rows in batches of nearly equal lengths, each with the teacher's outputs."""
        return [self.collate(rows.select(places).to_list()) for places in ordered_batches(rows, batch_size)]
