"""Distillation in pre-training and fine-tuning (5.4) with `Trainer`, for MAGIC and transformers' own classes.

The paper follows NAS-BERT: the student learns the teacher's predictions in both stages, but not its attention matrices
or hidden states. The paper does not specify the weight and the temperature; here they are arguments, with the defaults
0.5 and 1.
"""

import math
from abc import abstractmethod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss
from transformers import PreTrainedModel, TrainerCallback
from transformers.modeling_outputs import MaskedLMOutput
from transformers.trainer_utils import TrainOutput

from ..losses import AccumulatedLossTrainer
from ..objectives import distillation_losses, multi_label_distillation_losses, teacher_distribution
from .teacher import (
    Inputs,
    Record,
    TeacherCache,
    check_teacher,
    head_of,
    join_records,
    masked_logits,
    sequence_keys,
    split_record,
    teacher_inputs,
    weights_hash,
)


# The teacher's predictions for a batch: tensors with one row per prediction, in reading order.
Rows = dict[str, Tensor]


def check_distillation(distillation_weight: float, temperature: float, teacher_top_k: int | None = None) -> None:
    """Raises a ValueError if a value is out of bounds."""
    if not 0 <= distillation_weight <= 1:
        raise ValueError(f"distillation_weight is {distillation_weight}; it must be from 0 to 1")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; it must be a number above 0, such as 1 or 2")
    if teacher_top_k is not None and teacher_top_k < 1:
        raise ValueError(f"teacher_top_k is {teacher_top_k}; it must be at least 1; omit it to keep all tokens")


class _FlushCallback(TrainerCallback):
    """Writes the teacher's outputs to disk with every checkpoint."""

    def __init__(self, cache: TeacherCache):
        self._cache = cache

    def on_save(self, args, state, control, **kwargs):
        self._cache.flush()


class _DistillationTrainer(AccumulatedLossTrainer):
    """Base class for both stages: the teacher, its cache, and the mixture of two losses over an accumulated batch."""

    # A loss with weight 0 is not computed and logged as 0.
    logged_losses = ("loss_labels", "loss_teacher")

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        teacher_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        check_distillation(distillation_weight, temperature)
        if kwargs.get("compute_loss_func") is not None:
            raise ValueError("compute_loss_func would replace the distillation loss; omit it")
        super().__init__(*args, **kwargs)
        self._check_arguments()
        check_teacher(teacher, self.accelerator.unwrap_model(self.model))
        self.teacher = teacher.eval()
        self.distillation_weight = distillation_weight
        self.temperature = temperature
        self.num_teacher_sequences = 0
        self.num_cached_sequences = 0
        self.teacher_cache: TeacherCache | None = None
        if teacher_cache is not None:
            self.teacher_cache = TeacherCache(teacher_cache, self._cache_settings())
            self.add_callback(_FlushCallback(self.teacher_cache))

    def _check_arguments(self) -> None:
        if self.args.label_smoothing_factor:
            raise ValueError("the teacher's distribution replaces smoothed labels; do not set label_smoothing_factor")
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed split models into parts, but the student's head runs on only some positions; "
                "train on one device, or on several with DDP"
            )

    def _cache_settings(self) -> dict[str, Any]:
        """Returns everything that the teacher's outputs depend on in addition to the sequences."""
        return {
            "weights": weights_hash(self.teacher),
            "head": head_of(self.teacher),
            "precision": self.accelerator.mixed_precision,
        }

    # ---- One step ----

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Trains like `Trainer.train`; an interrupted run also writes the teacher's outputs to disk."""
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.teacher_cache is not None:
                self.teacher_cache.flush()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns (1 - weight) * the labels' loss + weight * the teacher's, as a micro-batch's share of the whole.

        In evaluation, it is only the labels' loss, as in `Trainer`, so that runs are comparable; the teacher is not
        run.
        """
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        if num_items_in_batch is None:
            num_items_in_batch = self.count_items(inputs)
        outputs, sums = self._loss_sums(model, inputs)
        losses = self.share(sums, num_items_in_batch)
        for name, loss in zip(self.logged_losses, losses, strict=True):
            self.add_to_log(name, loss)
        weights = losses.new_tensor([1 - self.distillation_weight, self.distillation_weight])
        loss = (weights * losses).sum()
        return (loss, outputs) if return_outputs else loss

    @abstractmethod
    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the number of predictions in a micro-batch."""

    @abstractmethod
    def _loss_sums(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        """Returns the student's outputs, and the losses of labels and teacher, (2,), summed over the predictions.

        A loss with weight 0 is not computed.
        """

    # ---- The teacher ----

    @abstractmethod
    def _predict(self, inputs: Inputs, masked: Tensor | None) -> tuple[Rows, Tensor]:
        """Returns the teacher's predictions and the number of predictions for each sequence."""

    def _teacher_rows(self, inputs: dict[str, Any], masked: Tensor | None = None) -> Rows:
        """Returns the teacher's predictions for a batch, from the cache if possible.

        With a cache, all predictions have its precision, so the results do not depend on how much of it is filled.
        """
        read = teacher_inputs(self.teacher, inputs)
        if self.teacher_cache is None:
            return self._run_teacher(read, masked)[0]
        keys = sequence_keys(read, masked)
        records = [self.teacher_cache.get(key) for key in keys]
        missing = [index for index, record in enumerate(records) if record is None]
        self.num_cached_sequences += len(keys) - len(missing)
        if missing:
            part = {name: tensor[missing] for name, tensor in read.items()}
            rows, counts = self._run_teacher(part, None if masked is None else masked[missing])
            for index, record in zip(missing, split_record(self._pack(rows), counts), strict=True):
                self.teacher_cache.put(keys[index], record)
                records[index] = record
        return self._unpack(join_records(record for record in records if record is not None))

    @torch.no_grad()
    def _run_teacher(self, inputs: Inputs, masked: Tensor | None) -> tuple[Rows, Tensor]:
        self.num_teacher_sequences += len(inputs["input_ids"])
        # Moved only now: if the cache has all outputs, the teacher takes no memory on the device.
        self.teacher.to(self.args.device)
        return self._predict(inputs, masked)

    def _pack(self, rows: Rows) -> Record:
        return {name: tensor.float().cpu().numpy() for name, tensor in rows.items()}

    def _unpack(self, record: Record) -> Rows:
        return {name: torch.from_numpy(array).to(self.args.device) for name, array in record.items()}


class MaskedLMDistillationTrainer(_DistillationTrainer):
    """Pre-trains a masked LM on labels and on the teacher's distribution at the masked positions (5.4).

    loss = (1 - distillation_weight) * masked-LM loss + distillation_weight * temperature^2 * KL(teacher || student),
    both over the masked positions of the whole accumulated batch of all processes. Heads are run only on those
    positions. The batches must be masked, as for a masked LM (`MaskingCollator`, `DataCollatorForLanguageModeling`).

    The cache stores the teacher's predictions for each sequence with its mask. Masks depend on the seed and the batch
    (`MaskingCollator`) and differ between epochs, so every epoch adds new records. A second run with the same text,
    seed, batch size and number of steps finds all of them for any student and does not run the teacher; a run with
    another seed finds none. Nothing else has to match, such as the learning rate, or the accumulation of the batch if
    the masks do not depend on it.

    Attributes:
        num_teacher_sequences: the number of sequences that the teacher was run on.
        num_cached_sequences: the number of sequences whose outputs were found in the cache.

    Example:
    ```python
    >>> teacher = load_teacher("bert-base-uncased", tokenizer)
    >>> trainer = MaskedLMDistillationTrainer(
    ...     MagicForMaskedLM(child_config),
    ...     TrainingArguments("run", max_steps=1000),
    ...     teacher=teacher,
    ...     train_dataset=data.train,
    ...     data_collator=MaskingCollator(tokenizer),
    ... )
    >>> trainer.train()
    ```
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        teacher_top_k: int | None = None,
        teacher_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        """Takes the arguments of `Trainer` except `compute_loss_func`.

        Args:
            teacher: a masked LM with the same vocabulary, see `load_teacher`.
            distillation_weight: from 0 (only labels; the teacher is never run) to 1 (only the teacher).
            temperature: the temperature of both distributions.
            teacher_top_k: the number of the teacher's most likely tokens to keep, with all others merged into one (see
                `distillation_losses` for the effect); `None` keeps all.
            teacher_cache: a folder for its outputs, in half precision; `None` for no cache.

        Raises:
            ValueError: a value is out of bounds, the teacher does not fit the student, a file of the cache is damaged,
                or an argument is not supported with two losses.
        """
        check_distillation(distillation_weight, temperature, teacher_top_k)
        if teacher_top_k is not None and teacher_top_k >= teacher.config.vocab_size:
            teacher_top_k = None
        self.teacher_top_k = teacher_top_k
        super().__init__(
            *args,
            teacher=teacher,
            distillation_weight=distillation_weight,
            temperature=temperature,
            teacher_cache=teacher_cache,
            **kwargs,
        )

    def _cache_settings(self) -> dict[str, Any]:
        # The probability of the rest depends on the temperature.
        return {**super()._cache_settings(), "top_k": self.teacher_top_k, "temperature": self.temperature}

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the number of masked positions in a micro-batch.

        Raises:
            ValueError: the batch has no labels.
        """
        if "labels" not in batch:
            raise ValueError("the batches have no labels; pass a data_collator that masks, such as MaskingCollator")
        return (batch["labels"] != -100).sum()

    def _loss_sums(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        masked = inputs["labels"] != -100
        unlabelled = {name: value for name, value in inputs.items() if name != "labels"}
        encoder = self.accelerator.unwrap_model(model).base_model
        logits = masked_logits(encoder, model, unlabelled, masked).float()
        sums = [logits.new_zeros(()), logits.new_zeros(())]
        if self.distillation_weight < 1:
            sums[0] = cross_entropy(logits, inputs["labels"][masked], reduction="sum")
        if self.distillation_weight > 0:
            rows = self._teacher_rows(unlabelled, masked)
            losses = distillation_losses(
                logits, rows["log_probs"], self.temperature, rows.get("classes"), rows.get("log_rest")
            )
            sums[1] = losses.sum()
        return MaskedLMOutput(logits=logits), torch.stack(sums)

    def _predict(self, inputs: Inputs, masked: Tensor | None) -> tuple[Rows, Tensor]:
        assert masked is not None
        logits = masked_logits(self.teacher.base_model, self.teacher, inputs, masked)
        log_probs, classes, rest = teacher_distribution(logits, self.temperature, self.teacher_top_k)
        rows = {"log_probs": log_probs}
        if classes is not None and rest is not None:
            rows |= {"classes": classes, "log_rest": rest}
        return rows, masked.sum(dim=1)

    def _pack(self, rows: Rows) -> Record:
        record: Record = {"log_probs": rows["log_probs"].half().cpu().numpy()}
        if "classes" in rows:
            kind = np.uint16 if self.teacher.config.vocab_size <= 2**16 else np.int32
            record["classes"] = rows["classes"].cpu().numpy().astype(kind)
            record["log_rest"] = rows["log_rest"].cpu().numpy()
        return record

    def _unpack(self, record: Record) -> Rows:
        """Returns the rows given to `_pack`, normalised again because rounding has changed their sums."""
        wide = {name: array.astype(np.int64 if name == "classes" else np.float32) for name, array in record.items()}
        rows = super()._unpack(wide)
        if "classes" not in rows:
            return {"log_probs": rows["log_probs"].log_softmax(dim=-1)}
        events = torch.cat([rows["log_probs"], rows["log_rest"].unsqueeze(-1)], dim=-1).log_softmax(dim=-1)
        return {"log_probs": events[:, :-1], "classes": rows["classes"], "log_rest": events[:, -1]}


class DistillationTrainer(_DistillationTrainer):
    """Fine-tunes a model on labels and on the outputs of a teacher that was fine-tuned on the same task (5.4).

    loss = (1 - distillation_weight) * the labels' loss + distillation_weight * the teacher's loss, each a mean over
    the whole accumulated batch of all processes. The labels' loss is the student's own loss. The teacher's loss
    depends on the head:

    - sequence classification: temperature^2 * KL of the classes; with `problem_type` "regression", the squared error
      to the teacher's numbers; with "multi_label_classification", `multi_label_distillation_losses`;
    - token classification: the KL at each labelled token, or at each token if there are no labels;
    - spans: the mean of the KL of the start and the KL of the end, over the tokens that are not padding.

    The cache has one record for each example, whatever its padding, so the teacher sees it once over all epochs and
    runs.

    Attributes:
        num_teacher_sequences: the number of sequences that the teacher was run on.
        num_cached_sequences: the number of sequences whose outputs were found in the cache.
    """

    def __init__(
        self,
        *args: Any,
        teacher: PreTrainedModel,
        distillation_weight: float = 0.5,
        temperature: float = 1.0,
        teacher_cache: str | Path | None = None,
        **kwargs: Any,
    ):
        """Takes the arguments of `Trainer` except `compute_loss_func`.

        Args:
            teacher: a model with the student's head, vocabulary and labels, see `load_teacher`.
            distillation_weight: from 0 (only labels; the teacher is never run) to 1 (only the teacher; labels may be
                missing).
            temperature: the temperature of both distributions; unused for regression.
            teacher_cache: a folder for its outputs; `None` for no cache.

        Raises:
            ValueError: a value is out of bounds, the teacher does not fit the student, a file of the cache is damaged,
                or an argument is not supported with two losses.
        """
        super().__init__(
            *args,
            teacher=teacher,
            distillation_weight=distillation_weight,
            temperature=temperature,
            teacher_cache=teacher_cache,
            **kwargs,
        )
        self._head = head_of(teacher)
        if self._head == "ForMaskedLM":
            raise ValueError("a masked LM is distilled in pre-training; use MaskedLMDistillationTrainer")

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the number of predictions in a micro-batch: one for each judged token, or for each example."""
        if self._head == "ForTokenClassification":
            return _judged_tokens(batch).sum()
        return torch.tensor(len(batch["input_ids"]), device=batch["input_ids"].device)

    def _loss_sums(self, model: nn.Module, inputs: dict[str, Any]) -> tuple[Any, Tensor]:
        number = self.count_items(inputs)
        # Called without num_items_in_batch, which some classes divide by and others ignore, so each returns its mean.
        # A micro-batch without a labelled token has no mean.
        empty = self._head == "ForTokenClassification" and not number
        labelled = self.distillation_weight < 1 and not empty
        given = {name: value for name, value in inputs.items() if labelled or name not in self.label_names}
        outputs = model(**given, return_dict=True)
        sums = [self._zero(outputs), self._zero(outputs)]
        if labelled:
            if outputs.loss is None:
                raise ValueError(
                    f"the batches have no {' and '.join(self.label_names)}; label the data, or set "
                    f"distillation_weight=1"
                )
            sums[0] = outputs.loss.float() * number
        if self.distillation_weight > 0:
            sums[1] = self._teacher_losses(outputs, inputs).sum()
        return outputs, torch.stack(sums)

    def _zero(self, outputs: Any) -> Tensor:
        logits = outputs.start_logits if self._head == "ForQuestionAnswering" else outputs.logits
        return 0.0 * logits.float().sum()

    def _teacher_losses(self, outputs: Any, inputs: dict[str, Any]) -> Tensor:
        """Returns the loss of each prediction in a micro-batch."""
        logits = self._teacher_rows(inputs)["logits"].float()
        if self._head == "ForQuestionAnswering":
            return self._span_losses(outputs, logits, _tokens(inputs))
        if self._head == "ForTokenClassification":
            tokens, judged = _tokens(inputs), _judged_tokens(inputs)
            log_probs = (logits / self.temperature).log_softmax(dim=-1)[judged[tokens]]
            return distillation_losses(outputs.logits[judged], log_probs, self.temperature)
        problem_type = _problem_type(self.accelerator.unwrap_model(self.model).config, inputs.get("labels"))
        if problem_type == "regression":
            return mse_loss(outputs.logits.float(), logits, reduction="none").mean(dim=-1)
        if problem_type == "multi_label_classification":
            return multi_label_distillation_losses(outputs.logits, logits, self.temperature)
        log_probs = (logits / self.temperature).log_softmax(dim=-1)
        return distillation_losses(outputs.logits, log_probs, self.temperature)

    def _span_losses(self, outputs: Any, logits: Tensor, tokens: Tensor) -> Tensor:
        target = logits.new_full((*tokens.shape, 2), float("-inf"))
        target[tokens] = logits
        own = torch.stack([outputs.start_logits, outputs.end_logits], dim=-1).float()
        own = own.masked_fill(~tokens.unsqueeze(-1), torch.finfo(own.dtype).min)
        log_probs = (target / self.temperature).log_softmax(dim=1)
        return distillation_losses(own.transpose(1, 2), log_probs.transpose(1, 2), self.temperature).mean(dim=-1)

    def _predict(self, inputs: Inputs, masked: Tensor | None) -> tuple[Rows, Tensor]:
        outputs = self.teacher(**inputs, return_dict=True)
        if self._head == "ForSequenceClassification":
            return {"logits": outputs.logits}, torch.ones(len(outputs.logits), dtype=torch.long)
        tokens = _tokens(inputs)
        if self._head == "ForTokenClassification":
            return {"logits": outputs.logits[tokens]}, tokens.sum(dim=1)
        return {"logits": torch.stack([outputs.start_logits, outputs.end_logits], dim=-1)[tokens]}, tokens.sum(dim=1)


def _tokens(inputs: dict[str, Any]) -> Tensor:
    """Returns (batch, seq_len) bool, false at padding."""
    mask = inputs.get("attention_mask")
    return torch.ones_like(inputs["input_ids"], dtype=torch.bool) if mask is None else mask.bool()


def _judged_tokens(inputs: dict[str, Any]) -> Tensor:
    tokens, labels = _tokens(inputs), inputs.get("labels")
    return tokens if labels is None else tokens & (labels != -100)


def _problem_type(config: Any, labels: Tensor | None) -> str:
    """Returns the problem type that transformers' own classes assume, whether or not they have seen labels yet."""
    if config.problem_type is not None:
        return config.problem_type
    if config.num_labels == 1:
        return "regression"
    several = labels is not None and labels.is_floating_point()
    return "multi_label_classification" if several else "single_label_classification"
