"""Settings of fine-tuning and SQuAD runs."""

import math
from dataclasses import dataclass
from typing import Any

from ..distillation.settings import distillation_weight_option, temperature_option
from ..options import MOST_SEED, Settings, option
from ..runs.settings import (
    TRAINING_FLAGS,
    check_early_stopping,
    early_stopping_patience_option,
    early_stopping_threshold_option,
    training_arguments_option,
)


SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
TOKENS = "token_classification"
# Class weights that follow from the rows.
BALANCED = "balanced"
# The metric that every task has; lower is better.
LOSS = "loss"
PROBLEM_TYPES = (SINGLE_LABEL, MULTI_LABEL, REGRESSION, TOKENS)
# Arguments that a sweep sets itself, and what sets them.
SWEPT_ARGUMENTS = {
    "learning_rate": "learning_rates",
    "per_device_train_batch_size": "batch_sizes",
    "seed": "seeds",
    "num_train_epochs": "num_epochs",
    "max_steps": "max_steps",
    "warmup_steps": "warmup_fraction",
    "weight_decay": "weight_decay",
    "train_sampling_strategy": "group_by_length",
}
# Arguments that would keep epochs or rows of dev from being scored.
SCORE_ARGUMENTS = ("eval_delay", "label_names", "prediction_loss_only")
# Arguments that keep the best epoch on dev.
BEST_EPOCH_ARGUMENTS = (
    "eval_strategy",
    "save_strategy",
    "save_total_limit",
    "load_best_model_at_end",
    "metric_for_best_model",
    "greater_is_better",
    "include_for_metrics",
)


@dataclass(frozen=True)
class FinetuneSettings(Settings):
    """Settings of a fine-tuning sweep; the keys of a recipe for `magic-nas finetune`.

    Defaults are RoBERTa's recipe, with gradients clipped at 1.
    """

    command = "finetune"
    growing = ("tasks", "learning_rates", "batch_sizes", "seeds")

    model: str = option(
        "",
        flag="--model",
        help="A folder or a name on the Hub of any encoder that `AutoModelForSequenceClassification` loads: a "
        "searched encoder, BERT, ELECTRA, ...",
    )
    tokenizer: str | None = option(None, help="A tokenizer's folder or name. Default: the model's.")
    tasks: tuple[str, ...] = option(
        (),
        flag="--task",
        splits=True,
        help="Tasks of GLUE: cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or all. "
        "Leave it empty if you give your own files.",
    )
    glue_folder: str | None = option(
        None, flag="--glue-folder", help="GLUE as a folder of TSV files. Default: nyu-mll/glue on the Hub."
    )
    train_file: str | None = option(None, flag="--train-file", help="Your own data: CSV, TSV, JSON lines or CoNLL.")
    validation_file: str | None = option(
        None,
        flag="--validation-file",
        help="Your own validation data, with the same columns. Default: a part of `train_file`, split off by a hash.",
    )
    validation_fraction: float = option(
        0.1, above=0, below=1, help="Share of `train_file` used for validation if there is no `validation_file`."
    )
    test_file: str | None = option(
        None,
        flag="--test-file",
        help="Your own test data. The best model predicts it, and is scored on it if the rows have labels.",
    )
    text_columns: tuple[str, ...] | None = option(
        None,
        flag="--text-column",
        splits=True,
        help="One or two text columns of the files. Default: the columns whose values are text.",
    )
    label_column: str | None = option(
        None,
        flag="--label-column",
        help="Label column of the files. Default: label, else labels, score, tags, ner_tags or pos_tags.",
    )
    class_names: tuple[str, ...] | None = option(
        None,
        is_filled=True,
        help="Names of the classes, in the order of their numbers if the labels are numbers. Default: the labels "
        "of `train_file`.",
    )
    problem_type: str | None = option(
        None,
        flag="--problem-type",
        choices=PROBLEM_TYPES,
        help="The kind of task in the files. Default: inferred from the labels.",
    )
    metric_for_best_model: str | None = option(
        None,
        flag="--metric-for-best-model",
        help="The metric by which the best epoch, setting and model are chosen: one of the task's metrics, or loss "
        "(lower is better). Default: for your own data accuracy, pearson, micro_f1, entity_f1 or "
        "token_accuracy, depending on the kind of task; for GLUE the mean of the task's metrics.",
    )
    early_stopping_patience: int | None = early_stopping_patience_option(
        "epochs",
        "Stop training after this many epochs in a row without a better `metric_for_best_model`. Default: all epochs.",
    )
    early_stopping_threshold: float = early_stopping_threshold_option("metrics are from 0 to 1")
    class_weights: dict[str, float] | str | None = option(
        None,
        flag="--class-weights",
        help="Class weights for the training loss only, not for metrics: balanced, which compensates for unequal "
        "numbers of rows, or weights by name such as {spam: 5}, with 1 for all other classes. Default: all rows count "
        "equally.",
    )
    mnli_model: str | None = option(
        None,
        flag="--mnli-model",
        help="The model that STS-B, MRPC and RTE start from: one fine-tuned on MNLI, or a run that holds one. "
        "Default: the MNLI model of this run if MNLI is among its tasks, else `model`.",
    )
    learning_rates: tuple[float, ...] = option(
        (1e-5, 2e-5, 3e-5),
        flag="--learning-rate",
        above=0,
        is_filled=True,
        is_distinct=True,
        help="Learning rates, each tried with each batch size.",
    )
    batch_sizes: tuple[int, ...] = option(
        (16, 32),
        flag="--batch-size",
        at_least=1,
        is_filled=True,
        is_distinct=True,
        unit="rows",
        help="Batch sizes of an optimizer step, each tried with each learning rate.",
    )
    seeds: tuple[int, ...] = option(
        (1, 2, 3, 4, 5),
        flag="--seed",
        at_least=0,
        at_most=MOST_SEED,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the head, the dropout and the order of the rows; each setting is trained once per seed.",
    )
    num_epochs: float = option(
        10.0,
        flag="--epochs",
        above=0,
        unit="epochs",
        help="Number of epochs of each training; the best epoch on dev is kept.",
    )
    warmup_fraction: float = option(0.06, at_least=0, below=1, help="Share of the steps used for warmup.")
    weight_decay: float = option(0.1, help="Weight decay, except for biases and norms.")
    max_length: int | None = option(
        None,
        flag="--max-length",
        at_least=1,
        unit="tokens",
        help="Rows longer than this are truncated. Default: 128, or the model's limit if it is lower.",
    )
    max_train_samples: int | None = option(
        None,
        flag="--max-train-samples",
        at_least=1,
        unit="rows",
        help="Number of training rows, drawn once and the same for all seeds. Default: all.",
    )
    max_eval_samples: int | None = option(
        None,
        at_least=1,
        unit="rows",
        help="Number of rows of each validation split, drawn the same way. Default: all.",
    )
    max_steps: int | None = option(
        None,
        flag="--max-steps",
        at_least=1,
        unit="steps",
        help="Number of optimizer steps; overrides `num_epochs`. Default: all epochs.",
    )
    group_by_length: bool = option(
        False,
        help="Batch rows of similar length together, the longer batches of each part of the data first. It saves "
        "padding, which a MAGIC model on a CPU skips anyway, and with few rows the order costs accuracy.",
    )
    submission: bool = option(True, help="Write the leaderboard's files if there is a test set.")
    teacher: str | None = option(
        None,
        flag="--teacher",
        help="Distil from a model fine-tuned on the task, or from a fine-tuning run that holds one for each task "
        "(5.4).",
    )
    distillation_weight: float = distillation_weight_option()
    temperature: float = temperature_option()
    teacher_cache: str | None = option(None, help="Folder that keeps the teacher's outputs for further runs.")
    training_arguments: dict[str, Any] = training_arguments_option(
        help="Training arguments of transformers that the sweep does not set itself, for every training."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_early_stopping(self.early_stopping_patience, self.early_stopping_threshold)
        self._check_class_weights()
        for name in (*SWEPT_ARGUMENTS, *BEST_EPOCH_ARGUMENTS, *SCORE_ARGUMENTS):
            if name in self.training_arguments:
                own = {**SWEPT_ARGUMENTS, "metric_for_best_model": "metric_for_best_model"}
                by = (
                    f"give {own[name]} instead, and remove it from"
                    if name in own
                    else "every epoch is scored on dev and the best is kept; remove it from"
                )
                raise ValueError(
                    f"training_arguments has {name}, which a fine-tuning sweep sets itself; {by} training_arguments"
                )
        accumulation = self.training_arguments.get("gradient_accumulation_steps", 1)
        for size in self.batch_sizes:
            if size % accumulation:
                raise ValueError(
                    f"a batch of {size} rows cannot be accumulated in {accumulation} equal steps; choose a divisor"
                )

    def without_effect(self) -> dict[str, str]:
        """Returns the reason for each option that the other options leave without an effect, by its name."""
        found: dict[str, str] = {}
        if self.teacher is None:
            found |= dict.fromkeys(("distillation_weight", "temperature", "teacher_cache"), "without a teacher")
        if self.tasks:
            of_files = ("text_columns", "label_column", "class_names", "problem_type", "validation_fraction")
            found |= dict.fromkeys(of_files, "on tasks of GLUE, only on your own files")
        else:
            found |= dict.fromkeys(("glue_folder", "mnli_model", "submission"), "on your own files, only on GLUE")
        if self.validation_file is not None:
            found["validation_fraction"] = "with a validation_file"
        return found

    def _check_class_weights(self) -> None:
        weights = self.class_weights
        if weights is None:
            return
        if isinstance(weights, str) and weights != BALANCED:
            raise ValueError(f"class_weights is {weights!r}; it must be {BALANCED}, or weights by name: {{spam: 5}}")
        if isinstance(weights, dict):
            if not weights:
                raise ValueError("class_weights is empty; give a class and its weight, or remove class_weights")
            for name, weight in weights.items():
                if not 0 < weight < math.inf:
                    raise ValueError(f"class_weights.{name} is {weight}; it must be a number above 0")
        for name in ("teacher", "label_smoothing_factor"):
            if self.training_arguments.get(name) or (name == "teacher" and self.teacher is not None):
                raise ValueError(f"class_weights and {name} both change the loss; remove one of them")


@dataclass(frozen=True)
class EvaluateSettings(Settings):
    """How to read the file on which a fine-tuned classifier is scored; the flags of `magic-nas evaluate`."""

    command = "evaluate"

    text_columns: tuple[str, ...] = option(
        (),
        flag="--text-column",
        splits=True,
        help="One or two text columns of the file. Default: those that the model was fine-tuned on, else those whose "
        "values are text.",
    )
    label_column: str | None = option(
        None,
        flag="--label-column",
        help="Label column. Default: label, else labels, score, tags, ner_tags or pos_tags.",
    )
    problem_type: str | None = option(
        None,
        flag="--problem-type",
        choices=PROBLEM_TYPES,
        help="What the model predicts. Default: read from its configuration.",
    )
    tokenizer: str | None = option(
        None, flag="--tokenizer", help="A tokenizer's folder or name. Default: the model's."
    )
    max_length: int | None = option(
        None,
        flag="--max-length",
        at_least=1,
        unit="tokens",
        help="Rows longer than this are truncated. Default: as in fine-tuning, else the model's limit.",
    )
    batch_size: int = option(
        32, flag="--batch-size", at_least=1, unit="rows", help="Rows per batch; rows of similar length share a batch."
    )


@dataclass(frozen=True)
class PredictSettings(EvaluateSettings):
    """How to read the file for which a fine-tuned classifier predicts; the flags of `magic-nas predict`."""

    command = "predict"


@dataclass(frozen=True)
class SquadSettings(Settings):
    """Settings of a SQuAD run; the keys of a recipe for `magic-nas squad`."""

    command = "squad"

    model: str = option(
        "",
        flag="--model",
        help="A folder or a name on the Hub that `AutoModelForQuestionAnswering` loads, with its tokenizer: a "
        "searched encoder, BERT, ELECTRA, ...",
    )
    train_file: str | None = option(
        None,
        flag="--train-file",
        help="Training data in the official layout, or a data set on the Hub such as rajpurkar/squad. Default: the "
        "model is scored without training.",
    )
    validation_file: str | None = option(
        None,
        flag="--validation-file",
        help="Validation data, given in the same way. Default: the validation split of the data set in `train_file`.",
    )
    version_2: bool = option(False, flag="--version-2", help="SQuAD 2.0: questions may have no answer.")
    max_seq_length: int | None = option(
        None, at_least=1, unit="tokens", help="Length of a window. Default: 384, or the model's limit if it is lower."
    )
    doc_stride: int | None = option(
        None,
        at_least=0,
        unit="tokens",
        help="Tokens that neighbouring windows of a context share. Default: 128, or a third of the window if less.",
    )
    max_query_length: int = option(64, at_least=1, unit="tokens", help="Questions longer than this are truncated.")
    n_best: int = option(20, at_least=1, help="Number of best answers saved for each question.")
    max_answer_length: int = option(30, at_least=1, unit="tokens", help="Length of the longest answer.")
    null_threshold: float | None = option(
        None,
        help="Null odds above which a question of SQuAD 2.0 is left unanswered. Default: the threshold with the best "
        "F1 on the validation questions, as in published results.",
    )
    teacher: str | None = option(
        None,
        flag="--teacher",
        help="Distil from a model fine-tuned on the same questions, learning its logits as well as the labels (5.4): "
        "a folder, a run that holds one model, or a name on the Hub.",
    )
    distillation_weight: float = distillation_weight_option()
    temperature: float = temperature_option()
    teacher_cache: str | None = option(None, help="Folder that keeps the teacher's logits for further runs.")
    early_stopping_patience: int | None = early_stopping_patience_option(
        "evaluations",
        "Keep the model of the best epoch by `training_arguments.metric_for_best_model` (f1 if not given), and stop "
        "after this many evaluations in a row without a better one. Default: all epochs, and the last model.",
    )
    early_stopping_threshold: float = early_stopping_threshold_option("metrics are in percent")
    training_arguments: dict[str, Any] = training_arguments_option(
        TRAINING_FLAGS, "Training arguments of transformers, which override those of `squad_run.RECIPE`."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_early_stopping(self.early_stopping_patience, self.early_stopping_threshold)
        if self.early_stopping_patience is not None and self.train_file is None:
            raise ValueError(
                "early_stopping_patience is given without a train_file, so nothing is trained; give a train_file"
            )
        if self.null_threshold is not None and not self.version_2:
            raise ValueError(
                "null_threshold is for questions without an answer; set version_2, or remove null_threshold"
            )
        if self.train_file is None and self.validation_file is not None and self.teacher is not None:
            raise ValueError(
                "a teacher is given without a train_file, so there is nothing to learn; give a train_file, or remove "
                "the teacher"
            )

    def without_effect(self) -> dict[str, str]:
        """Returns the reason for each option that the other options leave without an effect, by its name."""
        if self.teacher is None:
            return dict.fromkeys(("distillation_weight", "temperature", "teacher_cache"), "without a teacher")
        return {}

    def warnings(self) -> list[str]:
        """Returns a line for each option that was set although it has no effect."""
        of_training = sorted((TRAINING_FLAGS.keys() - {"seed"}) & self.training_arguments.keys())
        unused = of_training if self.train_file is None else []
        return [*super().warnings(), *(f"{name} has no effect without a train_file" for name in unused)]
