"""The run of SQuAD (Table 3): a model fine-tuned and scored on questions, or only scored, in a folder of its own."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor
from transformers import (
    AutoModelForQuestionAnswering,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..data.fitting import fit_tokenizer, knows_token_types, max_sequence_length, num_rows
from ..data.tokenizing import load_tokenizer, tokenizer_sha256
from ..distillation.teacher import check_length, load_teacher
from ..distillation.trainers import DistillationTrainer
from ..files import written_at_once
from ..hub.export import describe_model, export_model, training_manifest
from ..hub.model_folders import model_in, provenance
from ..losses import AccumulatedLossTrainer
from ..pretrained import pretrained_config, pretrained_model
from ..progress import show_progress
from ..runs.early_stopping import EarlyStopping
from ..runs.folders import MODEL_FOLDER, Run, bars_off, finished_result, open_run
from ..runs.training import finish_training, training_arguments
from ..tables import markdown_table
from .settings import SquadSettings
from .squad_answers import SquadAnswers, find_answers, span_loss
from .squad_data import SquadData, SquadWindows, check_lengths, load_squad, make_windows
from .squad_metrics import squad_v1_metrics, squad_v2_metrics


logger = logging.getLogger(__name__)

# Paper silent: RoBERTa's recipe for SQuAD, as for GLUE, except for the learning rate, which is BERT's for models of
# base size. Its other values are for 48 windows per step, however they are spread over devices and accumulation.
RECIPE: dict[str, Any] = {
    "learning_rate": 3e-5,
    "num_train_epochs": 2,
    "per_device_train_batch_size": 48,
    "per_device_eval_batch_size": 32,
    "weight_decay": 0.01,
    # A value below 1 is a share of all steps.
    "warmup_steps": 0.06,
    "adam_beta2": 0.98,
    "adam_epsilon": 1e-6,
}
# Added to the recipe if a training ends with its best model.
_BEST_EPOCH: dict[str, Any] = {
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "load_best_model_at_end": True,
    "metric_for_best_model": "f1",
}
_MEASURES = ("exact_match", "f1")
_MEASURES_OF_VERSION_2 = ("exact", "f1", "best_exact", "best_f1")


# ---- Trainers ----


class _InOrder(Trainer):
    """Predicts in the order of the data set, whatever the order of training."""

    def get_eval_dataloader(self, eval_dataset=None):
        """Returns the data loader of `Trainer.evaluate`."""
        with self._in_order():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset):
        """Returns the data loader of `Trainer.predict`."""
        with self._in_order():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _in_order(self) -> Iterator[None]:
        # If training groups by length, Trainer also does so here, and predictions would belong to other rows.
        strategy, self.args.train_sampling_strategy = self.args.train_sampling_strategy, "sequential"
        try:
            yield
        finally:
            self.args.train_sampling_strategy = strategy


class SquadTrainer(_InOrder, AccumulatedLossTrainer):
    """Trains on windows; the loss is a mean over all windows of a step, however they are accumulated."""

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns the number of windows of a micro-batch."""
        return torch.tensor(len(batch["input_ids"]))

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the mean of the cross-entropies of start and end, and in training this micro-batch's share of it."""
        # Without num_items_in_batch, by which some classes divide and which others ignore: each returns its mean.
        loss, outputs = super().compute_loss(model, inputs, True, None)
        if model.training and num_items_in_batch is not None:
            loss = loss * self.share(len(inputs["input_ids"]), num_items_in_batch)
        return (loss, outputs) if return_outputs else loss


class SquadDistillationTrainer(_InOrder, DistillationTrainer):
    """Trains on windows and on a teacher's logits for them (5.4)."""


# ---- The run ----


class _Lengths(NamedTuple):
    """The lengths for `squad_data.make_windows`, in tokens."""

    max_seq_length: int
    doc_stride: int
    max_query_length: int


# BERT's lengths for SQuAD, if the model supports them.
_USUAL = _Lengths(384, 128, 64)


class _Side(NamedTuple):
    data: SquadData
    windows: SquadWindows


@bars_off()
def run_squad(settings: SquadSettings, output_dir: str | Path) -> dict[str, Any]:
    """Fine-tunes a model on questions, scores it and returns the result; without a training file it only scores.

    The folder then holds `model/`, which `AutoModelForQuestionAnswering` loads, predictions.json,
    nbest_predictions.json, with SQuAD 2.0 null_odds.json, and result.json, whose "metrics" are the official metrics. A
    stopped run resumes, a finished one returns its result.

    Raises:
        ValueError: the settings contradict one another, the model or a file cannot be used, or the folder holds
            another run.
    """
    output_dir = Path(output_dir)
    _check_files(settings)
    for warning in settings.warnings():
        logger.warning(warning)
    settings = replace(settings, model=model_in(settings.model))
    best_epoch = {} if settings.early_stopping_patience is None else _BEST_EPOCH
    given = {**RECIPE, **best_epoch, **settings.training_arguments}
    args: TrainingArguments = training_arguments(TrainingArguments, output_dir, given)
    _check_best_model(args, settings)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    config, tokenizer = pretrained_config(settings.model), load_tokenizer(settings.model)
    teacher_folder = None if settings.teacher is None else model_in(settings.teacher)
    lengths = _lengths_of(settings, config, tokenizer, teacher_folder)
    _check_model(config, tokenizer, settings.model, lengths)
    if config.model_type == MagicConfig.model_type:
        # A damaged record of the model is found before the training.
        provenance(settings.model)
    with args.main_process_first():
        train = (
            None
            if settings.train_file is None
            else _read(settings.train_file, "train", tokenizer, settings.version_2, lengths)
        )
        source = settings.validation_file or settings.train_file
        assert source is not None
        validation = _read(source, "validation", tokenizer, settings.version_2, lengths)
    set_seed(args.seed)
    model = load_span_model(settings.model, trained=train is None)
    teacher = None
    if teacher_folder is not None:
        teacher = load_teacher(teacher_folder, tokenizer, AutoModelForQuestionAnswering)
        name = f"the teacher {settings.teacher!r}"
        check_length(teacher.config, name, "max_seq_length", lengths.max_seq_length)
    sides = {"the training questions": train, "the validation questions": validation}
    inputs = {name: side.data.fingerprint["sha256"] for name, side in sides.items() if side is not None}
    inputs["the tokenizer"] = tokenizer_sha256(tokenizer)
    with open_run(output_dir, settings, args.should_save, inputs) as run:
        if run.result is not None:
            return run.result
        trainer = _make_trainer(model, teacher, tokenizer, args, train, validation, settings)
        return _train_and_score(run, trainer, tokenizer, train, validation, settings)


def _check_files(settings: SquadSettings) -> None:
    """Raises a ValueError if no model or no file is given, or a training file comes without a validation file."""
    if not settings.model:
        raise ValueError("no model is given; give a folder or a name on the Hub")
    if settings.train_file is None and settings.validation_file is None:
        raise ValueError("no file is given; give train_file and validation_file, or only validation_file to score")
    if settings.validation_file is None and Path(str(settings.train_file)).expanduser().is_file():
        raise ValueError(
            f"{settings.train_file} is given without a validation_file; give one, or split the file by article with "
            f"magic-nas squad-split"
        )


def _check_best_model(args: TrainingArguments, settings: SquadSettings) -> None:
    """Raises a ValueError if there is no such metric to choose a model by, or early stopping keeps no best model."""
    if settings.early_stopping_patience is not None and not args.load_best_model_at_end:
        raise ValueError(
            "early_stopping_patience ends a training with its best model, but load_best_model_at_end is false; remove "
            "one of them"
        )
    measures = _MEASURES_OF_VERSION_2 if settings.version_2 else _MEASURES
    metric = (args.metric_for_best_model or measures[0]).removeprefix("eval_")
    if args.load_best_model_at_end and metric not in measures:
        raise ValueError(f"metric_for_best_model is {metric!r}; choose among {', '.join(measures)}")


def _lengths_of(
    settings: SquadSettings, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, teacher: str | None
) -> _Lengths:
    """Returns the lengths of windows: the usual ones if none were given, limited by what all models support."""
    length, stride = settings.max_seq_length, settings.doc_stride
    if length is None:
        limits = [tokenizer.model_max_length, max_sequence_length(config)]
        if teacher is not None:
            # A teacher that cannot be loaded is reported where it is loaded.
            with suppress(ValueError):
                limits.append(max_sequence_length(pretrained_config(teacher)))
        length = min(_USUAL.max_seq_length, *(limit for limit in limits if limit is not None))
        if length < _USUAL.max_seq_length:
            logger.info(f"max_seq_length: {length} tokens, the model's limit")
    stride = min(_USUAL.doc_stride, length // 3) if stride is None else stride
    return _Lengths(length, stride, settings.max_query_length)


def _check_model(config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase, name: str, lengths: _Lengths) -> None:
    if isinstance(config, MagicConfig) and config.is_supernet:
        raise ValueError(f"{name} is a super-net; export one of its children and give that")
    check_length(config, name, "max_seq_length", lengths.max_seq_length)
    if lengths.max_seq_length > tokenizer.model_max_length:
        raise ValueError(
            f"max_seq_length is {lengths.max_seq_length} but the tokenizer of {name} is for up to "
            f"{tokenizer.model_max_length} tokens; use a smaller max_seq_length"
        )
    if num_rows(tokenizer) > config.vocab_size:
        raise ValueError(
            f"{name} has embeddings for {config.vocab_size} tokens but its tokenizer has ids up to "
            f"{num_rows(tokenizer) - 1}; use the tokenizer that the model was trained with"
        )
    check_lengths(tokenizer, *lengths)


def load_span_model(name: str, trained: bool = False) -> PreTrainedModel:
    """Returns a model in float32 with a span head; a missing head is drawn from torch's generator.

    Args:
        name: a folder or a name on the Hub.
        trained: whether the head must be in the checkpoint.

    Raises:
        ValueError: the weights cannot be read, weights of the encoder are missing, or those of a required head are.
    """
    # Some classes have as many outputs as labels, and checkpoints of other tasks may have more or fewer labels.
    model, info = pretrained_model(AutoModelForQuestionAnswering, name, num_labels=2, dtype=torch.float32)
    missing = sorted(info["missing_keys"])
    of_encoder = [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]
    if of_encoder:
        raise ValueError(
            f"{name} lacks {len(of_encoder)} weights of the encoder, such as {of_encoder[0]}; give a trained model"
        )
    if trained and missing:
        raise ValueError(f"{name} has no trained span head ({missing[0]}); give a train_file, or a fine-tuned model")
    return model


def _read(source: str, split: str, tokenizer: PreTrainedTokenizerBase, version_2: bool, lengths: _Lengths) -> _Side:
    data = load_squad(source, split, version_2)
    return _Side(data, make_windows(data, tokenizer, **lengths._asdict()))


def _make_trainer(
    model: PreTrainedModel,
    teacher: PreTrainedModel | None,
    tokenizer: PreTrainedTokenizerBase,
    args: TrainingArguments,
    train: _Side | None,
    validation: _Side,
    settings: SquadSettings,
) -> Trainer:
    order = _by_length(validation)
    common: dict[str, Any] = {
        "model": model,
        "args": args,
        "train_dataset": None if train is None else _model_columns(train.windows, model),
        "eval_dataset": _model_columns(validation.windows, model).select(order),
        "data_collator": DataCollatorWithPadding(tokenizer),
        "processing_class": tokenizer,
        "compute_metrics": _metrics_of(validation, settings),
    }
    trainer: Trainer
    if teacher is None:
        trainer = SquadTrainer(**common)
    else:
        trainer = SquadDistillationTrainer(
            **common,
            teacher=teacher,
            distillation_weight=settings.distillation_weight,
            temperature=settings.temperature,
            teacher_cache=settings.teacher_cache,
        )
    if settings.early_stopping_patience is not None:
        trainer.add_callback(EarlyStopping(settings.early_stopping_patience, settings.early_stopping_threshold))
    show_progress(trainer, ["loss", "learning_rate", "eval_f1"])
    return trainer


def _model_columns(windows: SquadWindows, model: PreTrainedModel) -> Dataset:
    columns = ["input_ids", "token_type_ids", "start_positions", "end_positions", "length"]
    # A model without token types, such as a converted RoBERTa, cannot look up the context's.
    if not knows_token_types(model.config):
        columns.remove("token_type_ids")
    return windows.rows.select_columns([name for name in columns if name in windows.rows.column_names])


def _by_length(side: _Side) -> np.ndarray:
    """Returns the numbers of the windows, the longest first, so that batches of equal lengths need no padding."""
    return np.argsort(-side.windows.rows.with_format("numpy")["length"][:], kind="stable")


def _in_order(side: _Side, predictions: np.ndarray | tuple[np.ndarray, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Returns start and end logits in the order of the windows, given those in the order of `_by_length`."""
    places = np.argsort(_by_length(side))
    return predictions[0][places], predictions[1][places]


def _answers(side: _Side, logits: tuple[np.ndarray, np.ndarray], settings: SquadSettings) -> SquadAnswers:
    return find_answers(
        side.data,
        side.windows,
        *logits,
        version_2=settings.version_2,
        n_best=settings.n_best,
        max_answer_length=settings.max_answer_length,
    )


def _score(side: _Side, answers: SquadAnswers, settings: SquadSettings) -> dict[str, float]:
    references = side.data.references
    if not settings.version_2:
        return squad_v1_metrics(answers.texts, references)
    return squad_v2_metrics(answers.texts, references, answers.null_odds, settings.null_threshold)


def _metrics_of(side: _Side, settings: SquadSettings) -> Callable[[EvalPrediction], dict[str, float]]:
    def compute_metrics(predicted: EvalPrediction) -> dict[str, float]:
        return _score(side, _answers(side, _in_order(side, predicted.predictions), settings), settings)

    return compute_metrics


def _train_and_score(
    run: Run,
    trainer: Trainer,
    tokenizer: PreTrainedTokenizerBase,
    train: _Side | None,
    validation: _Side,
    settings: SquadSettings,
) -> dict[str, Any]:
    model = trainer.accelerator.unwrap_model(trainer.model)
    assert isinstance(model, PreTrainedModel)
    seconds = finish_training(trainer) if train is not None else 0.0
    start = time.perf_counter()
    # The metrics are computed from the answers that are written.
    trainer.compute_metrics = None
    rows = trainer.eval_dataset
    assert isinstance(rows, Dataset)
    predicted = trainer.predict(rows)
    logits = _in_order(validation, predicted.predictions)
    answers = _answers(validation, logits, settings)
    metrics = _score(validation, answers, settings)
    threshold = settings.null_threshold
    if settings.version_2 and threshold is None:
        threshold = metrics["best_f1_thresh"]
    result = {
        **_describe(trainer, model, train, validation, settings),
        "metrics": metrics,
        "exact_match": metrics["exact" if settings.version_2 else "exact_match"],
        "f1": metrics["f1"],
        "null_threshold": threshold,
        "val_loss": span_loss(validation.windows, *logits),
        "seconds": seconds,
        "scoring_seconds": time.perf_counter() - start,
        "log_history": trainer.state.log_history,
    }

    def export(result: dict[str, Any]) -> None:
        answers.write(run.folder, threshold or 0.0)
        if train is not None:
            _export(model, tokenizer, run.folder / MODEL_FOLDER, result)

    return run.finish(result, export)


def _describe(
    trainer: Trainer, model: PreTrainedModel, train: _Side | None, validation: _Side, settings: SquadSettings
) -> dict[str, Any]:
    """Returns facts about the model, its training and validation data, and the cost of training."""
    args, steps = trainer.args, trainer.state.global_step
    sides = {"train": train, "validation": validation}
    facts = {
        name: None if side is None else {**side.data.fingerprint, **side.windows.facts} for name, side in sides.items()
    }
    kind = "SQuAD 2.0" if settings.version_2 else "SQuAD 1.1"
    taught = "" if settings.teacher is None else f", distilled from {Path(settings.teacher).name}"
    windows_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    mean_length = 0.0 if train is None else float(train.windows.rows.with_format("numpy")["length"][:].mean())
    return {
        "model": settings.model,
        "model_type": model.config.model_type,
        "num_parameters": model.num_parameters(),
        "objective": f"answers as spans ({kind}){taught}",
        "start": f"the weights of {Path(settings.model).name}",
        "steps": steps,
        "tokens_per_step": round(windows_per_step * mean_length),
        "training_flops": trainer.state.total_flos,
        "seed": args.seed,
        **facts,
        "corpus": _corpus(train or validation, validation),
    }


def _corpus(train: _Side, validation: _Side) -> dict[str, Any]:
    """Returns the manifest's description of the questions."""
    source = train.data.fingerprint["source"]
    return {
        "source": source,
        "source_kind": "hub" if "split" in train.data.fingerprint else "local",
        "split": train.data.fingerprint.get("split"),
        "sha256": {
            name: side.data.fingerprint["sha256"] for name, side in (("train", train), ("validation", validation))
        },
        "split_by_article": train.data.fingerprint.get("split_by_article"),
    }


def _export(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path, result: dict[str, Any]) -> None:
    if isinstance(model, MagicPreTrainedModel):
        export_model(model, tokenizer, folder, _manifest(model, result))
        return
    with written_at_once(folder, replaces=True) as temporary:
        model.save_pretrained(temporary)
        fit_tokenizer(tokenizer, model.config).save_pretrained(temporary)


def _manifest(model: MagicPreTrainedModel, result: dict[str, Any]) -> dict[str, Any]:
    """Returns the manifest of a fine-tuned child: the origin of its architecture, its training and its metrics."""
    inherited = provenance(result["model"])
    row = {
        **result,
        **describe_model(model.config, "none"),
        "num_parameters": result["num_parameters"],
        # The closest column of a table of any model.
        "val_accuracy": result["exact_match"] / 100,
    }
    manifest = training_manifest(row, inherited.get("search"))
    manifest["results"][0]["name"] = "this model (accuracy: exact match)"
    return {**inherited, **manifest, "squad": result["metrics"]}


def squad_table(results: dict[str, dict[str, Any]]) -> str:
    """Returns the results of runs as the paper's Table 3 in Markdown: parameters, exact match and F1 of each model.

    Args:
        results: results of `run_squad`, by the name to show.
    """
    rows = [
        [
            name,
            f"{result['num_parameters'] / 1e6:.2f}M",
            f"{result['validation']['questions']:,} of {Path(result['validation']['source']).name}",
            f"{result['exact_match']:.2f}",
            f"{result['f1']:.2f}",
        ]
        for name, result in results.items()
    ]
    return markdown_table(["model", "parameters", "questions", "EM", "F1"], rows)
