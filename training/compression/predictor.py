"""Runs a model, or an ONNX session in its place, on texts: embeddings, classes, tags, fidelity to the checkpoint."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .sentences import collate
from .source import Source
from .task_scores import Task, TaskScore, score_task
from .teacher_objectives import TARGET, Batch, Objective


Forward = Callable[..., Any]
# What of a batch a forward pass takes.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")


class Predictor:
    """Runs a model, or what stands for one such as an ONNX session, on texts, as `tasks.score_task` asks it to.

    Args:
        source: the checkpoint, whose tokenizer, length and pooling the model has.
        forward: takes `input_ids`, `attention_mask` and `token_type_ids`, and returns outputs by name.
        batch_size: texts in a batch; they are of nearly equal lengths.
    """

    def __init__(self, source: Source, forward: Forward, batch_size: int = 64):
        self._source, self._forward, self._batch_size = source, forward, batch_size

    def score(self, task: Task) -> TaskScore:
        """Returns what the model reaches on a task.

        Raises:
            ValueError: nothing is known of how to run such a task.
        """
        runs: dict[str, Callable[..., Any]] = {
            "sentence": self.embed,
            "sequence": self.classify,
            "token": self.tag,
        }
        if task.kind not in runs:
            raise ValueError(
                f"the task {task.title} is of the kind {task.kind}, which is not scored here; evaluate the model with "
                f"`magic-nas squad`"
            )
        return score_task(task, runs[task.kind])

    @torch.no_grad()
    def fidelity(self, objective: Objective, batches: Sequence[Batch]) -> tuple[float, float]:
        """Returns the mean loss and the mean second score of the objective, as `supernet.evaluation.evaluate_child`.

        Args:
            objective: of the checkpoint.
            batches: with the teacher's outputs.
        """
        sums, number = torch.zeros(2, dtype=torch.float64), 0
        for batch in batches:
            outputs = self._forward(**{name: batch[name] for name in _INPUTS if name in batch})
            own = objective.read(ModelOutput(**outputs), batch)
            of_items = (objective.losses(own, batch[TARGET], batch), objective.scores(own, batch[TARGET], batch))
            sums += torch.stack([items.sum() for items in of_items]).double()
            number += objective.num_items(batch)
        loss, score = (sums / number).tolist()
        return loss, score

    def embed(self, texts: list[str]) -> np.ndarray:
        """Returns the embeddings of texts, (texts, width)."""
        pooling = self._source.pooling
        assert pooling is not None
        return self._run(
            self._encode(texts), lambda out, batch: pooling(out["last_hidden_state"], batch.get("attention_mask"))
        )

    def classify(self, texts: list[str], second: list[str] | None = None) -> np.ndarray:
        """Returns the logits of texts, (texts, num_labels)."""
        return self._run(self._encode(texts, second), lambda out, batch: out["logits"])

    def tag(self, rows: list[list[str]]) -> list[list[int]]:
        """Returns the class of each word of each row, by its first token; words that are cut off have none."""
        encoded = self._source.tokenizer(
            rows, is_split_into_words=True, truncation=True, max_length=self._source.max_length
        )
        found: list[list[int]] = [[] for _ in rows]
        for places, batch in self._batches(self._rows(encoded)):
            classes = self._logits(batch)["logits"].argmax(dim=-1)
            for place, row in zip(places, classes.tolist(), strict=True):
                words = encoded.word_ids(place)
                firsts = {word: index for index, word in reversed(list(enumerate(words))) if word is not None}
                found[place] = [row[firsts[word]] for word in sorted(firsts)]
        return found

    def _encode(self, texts: list[str], second: list[str] | None = None) -> list[dict[str, Any]]:
        encoded = self._source.tokenizer(texts, second, truncation=True, max_length=self._source.max_length)
        return self._rows(encoded)

    def _rows(self, encoded: Any) -> list[dict[str, Any]]:
        names = ["input_ids"]
        if self._source.model.config.type_vocab_size > 1 and "token_type_ids" in encoded:
            names.append("token_type_ids")
        return [{name: encoded[name][place] for name in names} for place in range(len(encoded["input_ids"]))]

    def _batches(self, rows: list[dict[str, Any]]) -> Any:
        pad = self._source.model.config.pad_token_id or 0
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            yield places, collate([rows[place] for place in places], pad)

    @torch.no_grad()
    def _logits(self, batch: dict[str, Tensor]) -> Any:
        return self._forward(**batch)

    def _run(self, rows: list[dict[str, Any]], read: Callable[[Any, dict[str, Tensor]], Tensor]) -> np.ndarray:
        found: list[Any] = [None] * len(rows)
        for places, batch in self._batches(rows):
            for place, row in zip(places, read(self._logits(batch), batch).float().numpy(), strict=True):
                found[place] = row
        return np.stack(found)


def forward_of(model: Any) -> Forward:
    """Returns a model's forward pass on its device, whose outputs are tensors of the CPU by name."""

    def run(**batch: Tensor) -> dict[str, Tensor]:
        outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, return_dict=True)
        return {name: tensor.cpu() for name, tensor in outputs.items() if isinstance(tensor, Tensor)}

    return run
