"""Fine-tuning of one model on one task, on `Trainer`: a new head, dynamic padding, the best epoch on dev (5.1)."""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from transformers import (
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from modeling_magic import MagicConfig, MagicForSequenceClassification

from ..data.fitting import num_rows
from ..distillation.teacher import check_length
from ..distillation.trainers import DistillationTrainer
from ..losses import AccumulatedLossTrainer
from ..pretrained import pretrained_config, pretrained_model, pretrained_tokenizer
from ..progress import PostfixProgressCallback
from ..runs.early_stopping import EarlyStopping
from ..runs.training import finish_training
from .class_weights import sum_of_weights, weighted_loss_sum
from .label_units import standardized_labels
from .metrics import compute_metrics, task_score
from .settings import LOSS, REGRESSION, TOKENS
from .tasks import IGNORED, Task, predictions_and_references


logger = logging.getLogger(__name__)


SCORE = "score"


@dataclass(frozen=True)
class FinetuneResult:
    """The result of one fine-tuning.

    Attributes:
        score: score of the task on its first validation split, after the best epoch; higher is better, so that for a
            task that is judged by its loss it is the negative loss.
        metrics: for each validation split the metrics, the score and the loss after the best epoch.
        best_step: number of optimizer steps after which the score was best; the first of several equal ones.
        epochs: the same metrics after every epoch, with its "epoch" and "step".
        steps: total number of optimizer steps.
        seconds: duration of this call; less than the whole if a stopped training resumed.
    """

    score: float
    metrics: dict[str, dict[str, float]]
    best_step: int
    epochs: list[dict[str, Any]]
    steps: int
    seconds: float


# ---- The model ----


def auto_class(task: Task) -> Any:
    """Returns the Auto class that loads a model with the task's kind of head."""
    return AutoModelForTokenClassification if task.problem_type == TOKENS else AutoModelForSequenceClassification


def set_task(config: Any, task: Task) -> Any:
    """Sets the labels and the kind of problem of a configuration to those of a task, and returns it."""
    config.num_labels = task.num_labels
    if task.labels:
        config.id2label = task.id2label
        config.label2id = {label: number for number, label in task.id2label.items()}
    config.problem_type = None if task.problem_type == TOKENS else task.problem_type
    return config


def load_task_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """Returns the tokenizer of a folder or of a name on the Hub, set to pad on the right.

    Labels of tokens, the first token of unpadded rows, and absolute positions all need this side.

    Raises:
        ValueError: there is no tokenizer, or it has no vocabulary or no pad token.
    """
    try:
        tokenizer = pretrained_tokenizer(name)
    except ValueError as error:
        raise ValueError(f"{error}; give another with the option tokenizer") from None
    if len(tokenizer) <= len(tokenizer.all_special_ids) or tokenizer.pad_token is None:
        raise ValueError(
            f"the tokenizer of {name!r} has no vocabulary or no pad token; give another with the option tokenizer"
        )
    if tokenizer.padding_side != "right":
        logger.info(f"padding: on the right, though the tokenizer of {name!r} pads on the left")
        tokenizer.padding_side = "right"
    return tokenizer


def check_fit(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> None:
    """Raises a ValueError if a model lacks embeddings for a tokenizer's ids, or positions for a length."""
    config = model.config
    if num_rows(tokenizer) > config.vocab_size:
        raise ValueError(
            f"the tokenizer has ids up to {num_rows(tokenizer) - 1} but the model's embeddings have "
            f"{config.vocab_size} rows; use the tokenizer that the model was trained with"
        )
    check_length(config, "the model", "max_length", max_length)


def load_for_task(source: str | Path, task: Task, seed: int) -> PreTrainedModel:
    """Returns the encoder of a checkpoint, in float32, under a new head for `task`.

    The head is new in any case: only the encoder of a model that was fine-tuned on MNLI is used (5.1). BERT's pooler
    counts as part of the encoder, also in a converted BERT, where it is the first layer of the head.

    Args:
        source: a folder or a name on the Hub that `AutoModelForSequenceClassification` loads: MAGIC, BERT, RoBERTa,
            ELECTRA and others.
        task: determines the head.
        seed: seed of the head's weights, and of a pooler that the checkpoint lacks.

    Raises:
        ValueError: the model does not exist, it is a super-net, or weights of the encoder are missing.
    """
    name = str(source)
    config = pretrained_config(name)
    if isinstance(config, MagicConfig) and config.is_supernet:
        raise ValueError(f"{name} is a super-net; export one of its children and fine-tune that")
    set_task(config, task)
    set_seed(seed)
    loaded, info = pretrained_model(auto_class(task), name, new_head=True, config=config, dtype=torch.float32)
    encoder = f"{loaded.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(encoder) and ".pooler." not in key)
    if missing:
        raise ValueError(
            f"{name} has no weights for {missing[0]} and {len(missing) - 1} more of its encoder; give a trained model"
        )
    model = auto_class(task).from_config(config, dtype=torch.float32)
    model.base_model.load_state_dict(loaded.base_model.state_dict())
    if isinstance(loaded, MagicForSequenceClassification) and config.pooler_classifies:
        if "classifier.dense.weight" not in info["missing_keys"]:
            model.classifier.dense.load_state_dict(loaded.classifier.dense.state_dict())
    return model


@contextmanager
def _unpadded(model: PreTrainedModel, device: torch.device) -> Iterator[None]:
    """Makes a MAGIC model compute real tokens only, where that is faster: on a CPU, sequence by sequence."""
    if not isinstance(model.config, MagicConfig) or device.type != "cpu":
        yield
        return
    before, model.config.unpad_inputs = model.config.unpad_inputs, True
    try:
        yield
    finally:
        model.config.unpad_inputs = before


# ---- One fine-tuning ----


def best_epoch_arguments(task: Task) -> dict[str, Any]:
    """Returns the training arguments that keep the best epoch on dev, with the last checkpoint during training."""
    return {
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        # The best and the last checkpoint.
        "save_total_limit": 2,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"{task.validation_splits[0]}_{SCORE}",
        "greater_is_better": True,
        # The score may be the loss, which is otherwise not passed to the metrics.
        "include_for_metrics": ["loss"] if task.best_metric == LOSS else [],
    }


class FinetuneTrainer(AccumulatedLossTrainer):
    """`Trainer` whose accumulated batches train like whole ones, whatever the model does with `num_items_in_batch`.

    Many of transformers' classes, such as BertForSequenceClassification, accept it and return a micro-batch's mean.
    """

    def count_items(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Returns the number of labels of a micro-batch, `None` if it has none."""
        labels = batch.get("labels")
        return None if labels is None else (labels != IGNORED).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the mean loss of a micro-batch, times its share of the labels of the accumulated batch."""
        num_labels = self.count_items(inputs)
        # Without num_items_in_batch, by which a model would divide instead of by the number of its own labels.
        loss, outputs = super().compute_loss(model, inputs, True)
        if num_items_in_batch is not None and num_labels is not None and model.training:
            loss = loss * self.share(num_labels, num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class ClassWeightsTrainer(FinetuneTrainer):
    """Trains with class weights; evaluation losses and metrics are not weighted.

    A step's loss is that of torch's `CrossEntropyLoss(weight=...)`, or `BCEWithLogitsLoss(pos_weight=...)`, over its
    whole accumulated batch: the sum of all rows' weighted losses over the sum of their weights.
    """

    def __init__(self, *args: Any, class_weights: Sequence[float], **kwargs: Any):
        """Takes the arguments of `Trainer`, and a weight for each class."""
        super().__init__(*args, **kwargs)
        self.class_weights = torch.tensor(class_weights, dtype=torch.float32)

    def count_items(self, batch: Mapping[str, Any]) -> torch.Tensor | None:
        """Returns the sum of the weights of a micro-batch's rows, `None` if it has no labels."""
        labels = batch.get("labels")
        return None if labels is None else sum_of_weights(labels, self.class_weights.to(labels.device))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns a micro-batch's sum of weighted losses over the weights of the accumulated batch."""
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        _, outputs = super().compute_loss(model, inputs, True)
        weights, labels = self.class_weights.to(inputs["labels"].device), inputs["labels"]
        total = sum_of_weights(labels, weights) if num_items_in_batch is None else num_items_in_batch
        # Not `share`, which counts less than one item as one: weights may sum to less.
        loss = self.over_processes(weighted_loss_sum(outputs["logits"], labels, weights)) / total
        return (loss, outputs) if return_outputs else loss


def finetune(
    model: PreTrainedModel,
    data: DatasetDict,
    task: Task,
    args: TrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    teacher: PreTrainedModel | None = None,
    distillation_weight: float = 0.5,
    temperature: float = 1.0,
    teacher_cache: str | Path | None = None,
    early_stopping_patience: int | None = None,
    early_stopping_threshold: float = 0.0,
    class_weights: Sequence[float] | None = None,
) -> FinetuneResult:
    """Fine-tunes `model` on a task and returns the result; the model then has the weights of the best epoch on dev.

    Batches are padded to their longest row; a MAGIC model on a CPU computes the real tokens only. A stopped training
    resumes from its last checkpoint in `args.output_dir`. Regression learns standardised labels (see
    `standardized_labels`); its loss, its metrics and the model that it returns are in the labels' units.

    Args:
        model: a model with a head for the task, see `load_for_task`.
        data: rows of `tasks.tokenize`, at least a training split and the task's first validation split.
        task: determines how outputs are scored.
        args: training arguments, including those of `best_epoch_arguments`.
        tokenizer: the tokenizer that pads.
        teacher: a model that was fine-tuned on the same task, whose logits are learned as well (5.4).
        distillation_weight: weight of the teacher's loss, see `DistillationTrainer`.
        temperature: temperature of both distributions.
        teacher_cache: folder of the teacher's outputs.
        early_stopping_patience: epochs without a better score after which training ends; `None` trains all epochs.
        early_stopping_threshold: by how much a score must be better than the best so far.
        class_weights: class weights in the training loss, for one class or several labels per row and no teacher.

    Raises:
        ValueError: the arguments keep no best epoch, a split is missing, or the training has diverged.
    """
    wanted = best_epoch_arguments(task)["metric_for_best_model"]
    if not args.load_best_model_at_end or args.metric_for_best_model != wanted:
        raise ValueError("the best epoch is not kept; pass TrainingArguments(..., **best_epoch_arguments(task))")
    if class_weights is not None and teacher is not None:
        raise ValueError("class_weights and a teacher both change the loss; remove one of them")
    missing = [split for split in ("train", task.validation_splits[0]) if split not in data]
    if missing:
        raise ValueError(f"{task.title} has no split {missing[0]!r}; the data has {', '.join(data)}")
    start = time.perf_counter()
    kind: Any = FinetuneTrainer
    if class_weights is not None:
        kind = partial(ClassWeightsTrainer, class_weights=class_weights)
    if teacher is not None:
        kind = partial(
            DistillationTrainer,
            teacher=teacher,
            distillation_weight=distillation_weight,
            temperature=temperature,
            teacher_cache=teacher_cache,
        )
    trainer: Trainer = kind(
        model=model,
        args=args,
        train_dataset=data["train"],
        eval_dataset={split: data[split] for split in task.validation_splits if split in data},
        data_collator=_collator(task, tokenizer),
        processing_class=tokenizer,
        compute_metrics=partial(_metrics, task),
    )
    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(PostfixProgressCallback(["loss", f"eval_{wanted}"]))
    if early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(early_stopping_patience, early_stopping_threshold))
    with _unpadded(model, args.device), _standardized(model, task, data["train"]):
        finish_training(trainer)
    return _result(trainer, task, time.perf_counter() - start)


def _standardized(model: PreTrainedModel, task: Task, rows: Dataset) -> AbstractContextManager[None]:
    return standardized_labels(model, rows["labels"][:]) if task.problem_type == REGRESSION else nullcontext()


def _collator(task: Task, tokenizer: PreTrainedTokenizerBase) -> Any:
    kind = DataCollatorForTokenClassification if task.problem_type == TOKENS else DataCollatorWithPadding
    return kind(tokenizer)


def _metrics(task: Task, prediction: EvalPrediction) -> dict[str, float]:
    # If the configuration asks for hidden states, they follow the logits.
    logits = prediction.predictions[0] if isinstance(prediction.predictions, tuple) else prediction.predictions
    labels = prediction.label_ids[0] if isinstance(prediction.label_ids, tuple) else prediction.label_ids
    metrics = compute_metrics(task.metrics, *predictions_and_references(task, logits, labels))
    if task.best_metric == LOSS:
        assert isinstance(prediction.losses, np.ndarray)
        # A higher score is better.
        return {**metrics, SCORE: -float(prediction.losses.mean())}
    return {**metrics, SCORE: task_score(task.score_metrics, metrics)}


def _result(trainer: Trainer, task: Task, seconds: float) -> FinetuneResult:
    epochs: dict[int, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        for split in task.validation_splits:
            prefix = f"eval_{split}_"
            if f"{prefix}{SCORE}" in entry:
                names = ("loss", *task.metrics, SCORE)
                at = epochs.setdefault(int(entry["step"]), {"epoch": entry["epoch"], "step": entry["step"]})
                at[split] = {name: float(entry[f"{prefix}{name}"]) for name in names}
    best_step = trainer.state.best_global_step
    assert best_step is not None
    metrics = {split: epochs[best_step][split] for split in task.validation_splits if split in epochs[best_step]}
    return FinetuneResult(
        score=metrics[task.validation_splits[0]][SCORE],
        metrics=metrics,
        best_step=best_step,
        epochs=list(epochs.values()),
        steps=trainer.state.global_step,
        seconds=seconds,
    )


# ---- Predictions ----


class Predictions(NamedTuple):
    """A model's predictions for rows, in their order.

    Attributes:
        logits: (num_rows, num_labels), for tokens (num_rows, seq_len, num_labels).
        values: the predictions, in the form of `predictions_and_references`.
    """

    logits: np.ndarray
    values: Any


def predict(
    model: PreTrainedModel, rows: Dataset, task: Task, tokenizer: PreTrainedTokenizerBase, batch_size: int = 32
) -> Predictions:
    """Returns the model's predictions for tokenised rows.

    Args:
        model: a model fine-tuned on the task.
        rows: rows of `tasks.tokenize`, with or without labels.
        task: the task of the rows.
        tokenizer: the tokenizer that pads.
        batch_size: rows per batch; rows of similar length share a batch.

    Raises:
        ValueError: an output is not finite.
    """
    order = np.argsort(np.asarray(rows["length"][:]), kind="stable")
    kept = [name for name in rows.column_names if name != "labels"]
    # Trainer creates a folder even if it writes nothing.
    with TemporaryDirectory() as folder:
        args = TrainingArguments(
            folder,
            per_device_eval_batch_size=batch_size,
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        trainer = Trainer(model=model, args=args, data_collator=_collator(task, tokenizer), processing_class=tokenizer)
        with _unpadded(model, args.device):
            outputs = trainer.predict(rows.select_columns(kept).select(order)).predictions
    logits = outputs[0] if isinstance(outputs, tuple) else outputs
    assert isinstance(logits, np.ndarray)
    places = np.argsort(order)
    labels = np.zeros(len(logits), dtype=np.int64)
    if task.problem_type == TOKENS:
        labels = _padded(rows["labels"][:], logits.shape[1])
    logits = logits[places]
    return Predictions(logits, predictions_and_references(task, logits, labels)[0])


def references_of(task: Task, rows: Dataset) -> Any:
    """Returns the labels of tokenised rows in the form of `predictions_and_references`."""
    labels = rows["labels"][:]
    if task.problem_type == TOKENS:
        return [[task.labels[label] for label in row if label != IGNORED] for row in labels]
    return np.asarray(labels, dtype=np.float64 if task.problem_type == REGRESSION else np.int64)


def score_predictions(task: Task, rows: Dataset, predicted: Any) -> dict[str, float]:
    """Returns the metrics of predictions for rows with labels, and the score unless that is the loss."""
    metrics = compute_metrics(task.metrics, predicted, references_of(task, rows))
    return metrics if task.best_metric == LOSS else {**metrics, SCORE: task_score(task.score_metrics, metrics)}


def _padded(rows: Sequence[Sequence[int]], width: int) -> np.ndarray:
    padded = np.full((len(rows), width), IGNORED, dtype=np.int64)
    for number, row in enumerate(rows):
        padded[number, : len(row)] = row
    return padded
