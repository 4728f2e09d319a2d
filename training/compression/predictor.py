"""Runs a model or an ONNX session on texts: embeddings, classes, tags, answers, fidelity."""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import ModelOutput

from ..finetuning.squad_answers import find_answers
from ..finetuning.squad_data import SquadData, check_lengths, make_windows
from .sentences import collate
from .source import Source
from .task_scores import Task, TaskScore, score_task
from .teacher_objectives import TARGET, Batch, Objective


# Takes the tensors of a batch by name, and returns outputs by name, on the CPU.
Forward = Callable[..., Any]
# The tensors of a batch that a forward pass takes.
_INPUTS = ("input_ids", "attention_mask", "token_type_ids")
# Sequences per forward pass when fidelity is measured.
_RUN_TOGETHER = 16
# BERT's lengths for SQuAD; a model with a lower limit has windows of that length, which overlap by a third.
_WINDOW = {"max_seq_length": 384, "doc_stride": 128, "max_query_length": 64}


class Predictor:
    """Runs a model, or a substitute such as an ONNX session, on texts, as `task_scores.score_task` needs it.

    Args:
        source: the checkpoint; the model has its tokenizer, length and pooling.
        forward: takes `input_ids`, `attention_mask` and `token_type_ids`, and returns outputs by name.
        batch_size: texts per batch; the texts of a batch have nearly equal lengths.
    """

    def __init__(self, source: Source, forward: Forward, batch_size: int = 64):
        self._source, self._forward, self._batch_size = source, forward, batch_size
        self._config = source.model.config
        self._pad_token_id = source.model.config.pad_token_id or 0

    def score(self, task: Task) -> TaskScore:
        """Returns the model's score on a task.

        Raises:
            ValueError: the model's output is not finite.
        """
        runs: dict[str, Callable[..., Any]] = {
            "sentence": self.embed,
            "sequence": self.classify,
            "token": self.tag,
            "span": self.answer,
        }
        return score_task(task, runs[task.kind])

    # ---- Fidelity ----

    @torch.no_grad()
    def fidelity(self, objective: Objective, batches: Sequence[Batch]) -> tuple[float, float]:
        """Returns the mean loss and second score of the objective, like `supernet.evaluation.evaluate_child`.

        Args:
            objective: objective of the checkpoint.
            batches: batches with the teacher's outputs.
        """
        sums, number = torch.zeros(2, dtype=torch.float64), 0
        for batch in batches:
            own = torch.cat([self._read(objective, piece) for piece in _pieces(batch)])
            of_items = (objective.losses(own, batch[TARGET], batch), objective.scores(own, batch[TARGET], batch))
            sums += torch.stack([items.sum() for items in of_items]).double()
            number += objective.num_items(batch)
        loss, score = (sums / number).tolist()
        return loss, score

    def _read(self, objective: Objective, batch: Batch) -> Tensor:
        outputs = self._forward(**{name: batch[name] for name in _INPUTS if name in batch})
        return objective.read(ModelOutput(**outputs), batch)

    # ---- Tasks ----

    def embed(self, texts: list[str]) -> np.ndarray:
        """Returns the embeddings of texts, (texts, width)."""
        pooling = self._source.pooling
        assert pooling is not None
        return self._run(
            self._encode(texts),
            lambda outputs, batch: pooling(outputs["last_hidden_state"], batch.get("attention_mask")),
        )

    def classify(self, texts: list[str], second: list[str] | None = None) -> np.ndarray:
        """Returns the logits of texts, or of pairs of texts, (texts, num_labels)."""
        return self._run(self._encode(texts, second), lambda outputs, batch: outputs["logits"])

    def tag(self, rows: list[list[str]]) -> list[list[int]]:
        """Returns the class of each word of each row, by its first token; the text is the words joined by spaces.

        Words beyond the model's length have no class; a word that the tokenizer drops is outside ("O").
        """
        tokenizer, outside = self._source.tokenizer, int((self._config.label2id or {}).get("O", 0))
        encoded = tokenizer(
            [" ".join(words) for words in rows],
            truncation=True,
            max_length=self._source.max_length,
            return_offsets_mapping=True,
        )
        found: list[list[int]] = [[] for _ in rows]
        for places, _, outputs in self._outputs(self._rows(encoded)):
            for place, classes in zip(places, outputs["logits"].argmax(dim=-1).tolist(), strict=True):
                first = _first_tokens(rows[place], encoded["offset_mapping"][place])
                found[place] = [
                    classes[first[word]] if word in first else outside for word in range(max(first, default=-1) + 1)
                ]
        return found

    def answer(self, questions: SquadData) -> dict[str, str]:
        """Returns the answer to each question by its id, "" for no answer if some question is unanswerable."""
        windows = make_windows(questions, self._source.tokenizer, **window_lengths(self._source))
        rows = self._rows(windows.rows.select_columns(self._columns(windows.rows.column_names))[:])
        # Values beyond the length of a window do not matter.
        logits = np.zeros((2, len(rows), max(len(row["input_ids"]) for row in rows)), dtype=np.float32)
        for places, _, outputs in self._outputs(rows):
            for side, name in enumerate(("start_logits", "end_logits")):
                values = outputs[name].numpy()
                logits[side, places, : values.shape[1]] = values
        version_2 = bool(questions.fingerprint["unanswerable"])
        return find_answers(questions, windows, *logits, version_2=version_2).predictions()

    # ---- Batches ----

    def _encode(self, texts: list[str], second: list[str] | None = None) -> list[dict[str, Any]]:
        encoded = self._source.tokenizer(texts, second, truncation=True, max_length=self._source.max_length)
        return self._rows(encoded)

    def _columns(self, names: Sequence[str]) -> list[str]:
        """Returns the columns of an encoded text that the model reads; token types only if it has several."""
        wanted = ("input_ids", "token_type_ids") if self._config.type_vocab_size > 1 else ("input_ids",)
        return [name for name in wanted if name in names]

    def _rows(self, encoded: Any) -> list[dict[str, Any]]:
        names = self._columns(list(encoded))
        return [dict(zip(names, values, strict=True)) for values in zip(*(encoded[n] for n in names), strict=True)]

    def _run(self, rows: list[dict[str, Any]], read: Callable[[Any, Batch], Tensor]) -> np.ndarray:
        """Returns what `read` takes from the outputs of each row, in the order of the rows."""
        found: dict[int, np.ndarray] = {}
        for places, batch, outputs in self._outputs(rows):
            found.update(zip(places, read(outputs, batch).numpy(), strict=True))
        return np.stack([found[place] for place in range(len(rows))])

    @torch.no_grad()
    def _outputs(self, rows: list[dict[str, Any]]) -> Iterator[tuple[list[int], Batch, Any]]:
        """Yields batches of rows of nearly equal lengths: their places, the batch and the model's outputs."""
        order = sorted(range(len(rows)), key=lambda place: len(rows[place]["input_ids"]))
        for start in range(0, len(order), self._batch_size):
            places = order[start : start + self._batch_size]
            batch = collate([rows[place] for place in places], self._pad_token_id)
            yield places, batch, self._forward(**batch)


def _first_tokens(words: Sequence[str], offsets: Sequence[tuple[int, int]]) -> dict[int, int]:
    """Returns the first token of each word that has one, both by index.

    Args:
        words: the words; the text is the words joined by spaces.
        offsets: for each token, its first character in the text and the one after its last; equal for special tokens.
    """
    word_of = list(chain.from_iterable([number] * len(word) + [None] for number, word in enumerate(words)))
    first: dict[int, int] = {}
    for token, (start, end) in enumerate(offsets):
        # A token may begin with the space before its word.
        if end > start and (word := word_of[end - 1]) is not None:
            first.setdefault(word, token)
    return first


def _pieces(batch: Batch) -> Iterator[Batch]:
    """Yields the sequences of a batch, a few at a time: an ONNX masked LM predicts every token of all of them."""
    tensors = {name: tensor for name, tensor in batch.items() if name != TARGET}
    for start in range(0, len(batch["input_ids"]), _RUN_TOGETHER):
        yield {name: tensor[start : start + _RUN_TOGETHER] for name, tensor in tensors.items()}


def window_lengths(source: Source) -> dict[str, Any]:
    """Returns how long contexts are cut into windows for a question-answering model, as arguments of `make_windows`.

    Raises:
        ValueError: the tokenizer cannot be used for it.
    """
    longest = min(source.max_length, _WINDOW["max_seq_length"])
    lengths = {**_WINDOW, "max_seq_length": longest, "doc_stride": min(_WINDOW["doc_stride"], longest // 3)}
    check_lengths(source.tokenizer, **lengths)
    return lengths


def forward_of(model: Any) -> Forward:
    """Returns a model's forward pass on its device, with outputs as CPU tensors by name."""

    def run(**batch: Tensor) -> dict[str, Tensor]:
        outputs = model(**{name: tensor.to(model.device) for name, tensor in batch.items()}, return_dict=True)
        return {name: tensor.float().cpu() for name, tensor in outputs.items() if isinstance(tensor, Tensor)}

    return run
