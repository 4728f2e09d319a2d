"""The run of fine-tuning: tasks x learning rates x batch sizes x seeds, one after the other, and their table (5.1)."""

import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from tqdm import tqdm
from transformers import (
    AutoModel,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    set_seed,
)

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..bars import progress_bar
from ..data.fitting import fit_tokenizer, max_sequence_length
from ..data.tokenizing import tokenizer_sha256
from ..distillation.teacher import check_configs, check_length, head_of, load_teacher, weights_hash
from ..files import file_sha256, read_json, short_hash, write_json, write_text, written_at_once
from ..hub.contents import MANIFEST_NAME
from ..hub.export import FINETUNING_NAME, export_model
from ..hub.model_folders import model_in, provenance, public_name
from ..pretrained import pretrained_config, pretrained_model
from ..runs.folders import MODEL_FOLDER, RECORDS_NAME, bars_off, check_run_folder, open_run, versions
from ..runs.training import training_arguments
from .class_weights import find_class_weights
from .finetune import (
    auto_class,
    best_epoch_arguments,
    check_fit,
    finetune,
    load_for_task,
    load_task_tokenizer,
    predict,
    score_predictions,
    set_task,
)
from .glue_table import FinetuneRun, ScoresOnTest, TaskRow, best_setting, table_columns, write_table
from .own_files import load_files
from .settings import TOKENS, FinetuneSettings
from .tasks import (
    GLUE,
    Task,
    glue_task,
    load_glue,
    measured_title,
    predicted_names,
    tokenize,
    with_word_spaces,
    write_submission,
)


logger = logging.getLogger(__name__)

ALL_TASKS = "all"
TEST_NAME = "test.json"
PREDICTIONS_NAME = "test_predictions.jsonl"
# Length of a row, if the model supports it.
USUAL_LENGTH = 128
SUBMISSION_FOLDER = "submission"
# RoBERTa's published commands for GLUE do not clip, which fails with high learning rates or few rows.
_OPTIMIZER = {"max_grad_norm": 1.0, "lr_scheduler_type": "linear"}
# RoBERTa's, for GLUE; users' own files, which may be small, do better with the defaults of transformers.
_GLUE_OPTIMIZER = {**_OPTIMIZER, "adam_beta2": 0.98, "adam_epsilon": 1e-6}
# Part of the key of a fine-tuning: raise it when the same settings train other weights.
_TRAINING_VERSION = 3
_STOPPING = ("early_stopping_patience", "early_stopping_threshold")


# ---- Checks before any work ----


def check_finetuning(settings: FinetuneSettings) -> list[Task]:
    """Checks what needs neither data nor a model, and returns the GLUE tasks in training order.

    Raises:
        ValueError: a value is invalid, or two contradict one another.
    """
    if not settings.model:
        raise ValueError("no model is given; give a folder or a name on the Hub")
    names = list(GLUE) if ALL_TASKS in settings.tasks else settings.tasks
    tasks = list(dict.fromkeys(glue_task(name) for name in names))
    if tasks and any((settings.train_file, settings.validation_file, settings.test_file)):
        raise ValueError("GLUE tasks and your own files cannot be in one sweep; give only one of the two")
    if settings.metric_for_best_model is not None:
        tasks = [task.by_metric(settings.metric_for_best_model) for task in tasks]
    if not tasks and settings.train_file is None:
        raise ValueError(
            f"there is nothing to fine-tune on; give tasks ({', '.join(GLUE)} or {ALL_TASKS}), or a train_file"
        )
    _arguments(settings, Path(), None, *next(_settings_and_seeds(settings)))
    return sorted(tasks, key=lambda task: task.starts_from is not None)


def _settings_and_seeds(settings: FinetuneSettings) -> Iterator[tuple[float, int, int]]:
    return product(settings.learning_rates, settings.batch_sizes, settings.seeds)


def _arguments(
    settings: FinetuneSettings, folder: Path, task: Task | None, learning_rate: float, batch_size: int, seed: int
) -> TrainingArguments:
    accumulation = settings.training_arguments.get("gradient_accumulation_steps", 1)
    given = {
        **(_GLUE_OPTIMIZER if settings.tasks else _OPTIMIZER),
        "per_device_eval_batch_size": 32,
        **settings.training_arguments,
        "learning_rate": learning_rate,
        "per_device_train_batch_size": batch_size // accumulation,
        "seed": seed,
        "num_train_epochs": settings.num_epochs,
        "max_steps": settings.max_steps or -1,
        "warmup_steps": settings.warmup_fraction,
        "weight_decay": settings.weight_decay,
        "train_sampling_strategy": "group_by_length" if settings.group_by_length else "random",
        **(best_epoch_arguments(task) if task is not None else {}),
    }
    args = training_arguments(TrainingArguments, folder, given)
    if args.world_size > 1 or args.n_gpu > 1:
        raise ValueError(
            "a sweep trains on one device; start it without torchrun and with one GPU in CUDA_VISIBLE_DEVICES, or "
            "give every device its own tasks in its own folder"
        )
    return args


# ---- What the sweep trains on ----


@dataclass(frozen=True)
class _Work:
    """A task with its tokenised rows, the checkpoint that it starts from, and a hash of these and of all settings.

    `has_test_labels` is true if the test rows can be scored, since tokenised rows may hold placeholder labels.
    """

    task: Task
    title: str
    data: DatasetDict
    source: str
    key: str
    has_test_labels: bool
    class_weights: dict[str, float] | None


def _load_data(settings: FinetuneSettings, tasks: Sequence[Task]) -> list[tuple[Task, DatasetDict]]:
    """Reads and checks all files, and returns the rows of all tasks."""
    if tasks:
        return [(task, _subset(load_glue(task, settings.glue_folder), settings)) for task in tasks]
    assert settings.train_file is not None
    task, data, notes = load_files(
        settings.train_file,
        settings.validation_file,
        settings.test_file,
        text_columns=settings.text_columns,
        label_column=settings.label_column,
        problem_type=settings.problem_type,
        class_names=settings.class_names,
        validation_fraction=settings.validation_fraction,
        metric_for_best_model=settings.metric_for_best_model,
    )
    for note in notes:
        logger.info(note)
    return [(task, _subset(data, settings))]


def _subset(data: DatasetDict, settings: FinetuneSettings) -> DatasetDict:
    kept = {}
    for split, rows in data.items():
        limit = settings.max_train_samples if split == "train" else settings.max_eval_samples
        if limit is not None and limit < len(rows) and (split == "train" or split.startswith("validation")):
            rows = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:limit]))
        kept[split] = rows
    return DatasetDict(kept)


def _rows_hash(data: DatasetDict) -> str:
    digest = sha256()
    for split, rows in sorted(data.items()):
        digest.update(split.encode())
        for batch in rows.iter(1000):
            digest.update(json.dumps(batch).encode())
    return digest.hexdigest()


def _encoder_hash(source: str) -> tuple[str, int]:
    """Returns a hash of a checkpoint's encoder and the number of its parameters."""
    # A pooler that the checkpoint lacks is drawn at random, here always in the same way.
    set_seed(0)
    encoder, _ = pretrained_model(AutoModel, source, dtype=torch.float32)
    return weights_hash(encoder), encoder.num_parameters()


def _max_length(settings: FinetuneSettings, sources: Iterable[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the requested length, or else the usual one, limited by the tokenizer and all models."""
    if settings.max_length is not None:
        return settings.max_length
    limits = [tokenizer.model_max_length]
    for source in sources:
        # A model that cannot be loaded is reported where it is loaded.
        with suppress(ValueError):
            limits.append(max_sequence_length(pretrained_config(source)) or USUAL_LENGTH)
    length = min(USUAL_LENGTH, *limits)
    if length < USUAL_LENGTH:
        logger.info(f"max_length: {length} tokens, the model's limit")
    return length


def _model_of(run_or_model: str, task: Task) -> str:
    """Returns the model of a task in a fine-tuning run, the model of another run, or the given folder or name."""
    inside = Path(run_or_model) / task.name / MODEL_FOLDER
    if inside.is_dir():
        return str(inside)
    if (Path(run_or_model) / RECORDS_NAME).is_file():
        raise ValueError(f"{run_or_model} holds no model fine-tuned on {task.title}; fine-tune it first")
    return model_in(run_or_model)


def _rank(run: FinetuneRun) -> tuple[float, str]:
    # The key decides between equal scores, whatever the training order.
    return run.score, run.key


# ---- The sweep ----


@bars_off()
def run_finetuning(settings: FinetuneSettings, output_dir: str | Path) -> dict[str, Any]:
    """Fine-tunes a model on tasks with each learning rate, batch size and seed, and returns the table as JSON.

    STS-B, MRPC and RTE start from the encoder fine-tuned on MNLI (5.1), which is trained first. The folder then holds
    table.md, table.csv and result.json, written row by row, runs.json with every fine-tuning, for each task the model
    of the best one on dev in `<task>/model`, and the leaderboard's files in `submission/`. A stopped sweep resumes;
    a later one with more tasks, settings or seeds trains only what is new.

    Raises:
        ValueError: the settings contradict one another, a file, a model or a teacher is missing or invalid, the folder
            holds another run, or a training has diverged.
    """
    output_dir = Path(output_dir)
    tasks = check_finetuning(settings)
    for warning in settings.warnings():
        logger.warning(warning)
    settings = replace(settings, model=model_in(settings.model))
    check_run_folder(output_dir, settings)
    return _Sweep(settings, output_dir, tasks).run()


class _Sweep:
    """The fine-tunings of one folder; those already recorded are not trained again."""

    def __init__(self, settings: FinetuneSettings, output_dir: Path, tasks: Sequence[Task]):
        """Reads all data and loads all models once, so that no error appears after hours of training."""
        self._settings, self._output_dir = settings, output_dir
        config = pretrained_config(settings.model)
        # Other models are saved without a record of where they come from.
        self._provenance = provenance(settings.model) if config.model_type == MagicConfig.model_type else {}
        loaded = _load_data(settings, tasks)
        tokenizer = load_task_tokenizer(settings.tokenizer or settings.model)
        if any(task.problem_type == TOKENS for task, _ in loaded):
            tokenizer = with_word_spaces(tokenizer)
        self._tokenizer = fit_tokenizer(tokenizer, config)
        tasks = [task for task, _ in loaded]
        sources = {task.name: self._start_of(task, tasks) for task in tasks}
        # The teacher's folder by the name of the task.
        self._teachers: dict[str, str] = {}
        if settings.teacher is not None:
            self._teachers = {task.name: _model_of(settings.teacher, task) for task in tasks}
        known = (source for source in sources.values() if source != str(self._model_folder("mnli")))
        self._max_length = _max_length(settings, {settings.model, *known, *self._teachers.values()}, self._tokenizer)
        source_hash, self._num_parameters = "", 0
        self._work: list[_Work] = []
        for task, data in loaded:
            source = sources[task.name]
            if source == settings.model and source_hash:
                start = source_hash
            elif source == str(self._model_folder("mnli")):
                # Known only after it is trained.
                start = ""
            else:
                check_fit(load_for_task(source, task, seed=0), self._tokenizer, self._max_length)
                start, num_parameters = _encoder_hash(source)
                if source == settings.model:
                    source_hash, self._num_parameters = start, num_parameters
            class_weights = self._class_weights(task, data)
            key = short_hash(start, self._key_of(task, data), class_weights)
            tokenized = tokenize(data, task, self._tokenizer, self._max_length)
            has_test_labels = "test" in data and "label" in data["test"].column_names
            title = measured_title(task, data)
            self._work.append(_Work(task, title, tokenized, source, key, has_test_labels, class_weights))
        if not self._num_parameters:
            self._num_parameters = _encoder_hash(settings.model)[1]
        # Recorded fine-tunings by key; read once this process has locked the folder.
        self._runs: dict[str, FinetuneRun] = {}

    def _start_of(self, task: Task, tasks: Sequence[Task]) -> str:
        """Returns the checkpoint whose encoder a task starts from."""
        if task.starts_from is None:
            return self._settings.model
        if self._settings.mnli_model is not None:
            return _model_of(self._settings.mnli_model, GLUE[task.starts_from])
        if any(other.name == task.starts_from for other in tasks):
            return str(self._model_folder(task.starts_from))
        return self._settings.model

    def _model_folder(self, task_name: str) -> Path:
        return self._output_dir / task_name / MODEL_FOLDER

    def _class_weights(self, task: Task, data: DatasetDict) -> dict[str, float] | None:
        if self._settings.class_weights is None:
            return None
        weights = find_class_weights(task, data["train"], self._settings.class_weights)
        shown = ", ".join(f"{name} {weight:.4g}" for name, weight in weights.items())
        logger.info(f"class weights of {task.title}, in the training loss only: {shown}")
        return weights

    def _load_teacher(self, task: Task) -> PreTrainedModel | None:
        if task.name not in self._teachers:
            return None
        name = f"the teacher {self._settings.teacher!r}"
        teacher = load_teacher(self._teachers[task.name], self._tokenizer, auto_class(task))
        if teacher.config.num_labels != task.num_labels:
            raise ValueError(
                f"{name} has {teacher.config.num_labels} outputs but {task.title} has {task.num_labels}; give a model "
                f"that was fine-tuned on {task.title}, or a fine-tuning run"
            )
        check_length(teacher.config, name, "max_length", self._max_length)
        student = set_task(pretrained_config(self._settings.model), task)
        try:
            check_configs(teacher.config, student, head_of(teacher))
        except ValueError as error:
            raise ValueError(f"{name} does not fit {task.title}: {error}") from None
        return teacher

    def _key_of(self, task: Task, data: DatasetDict) -> dict[str, Any]:
        """Returns all that a fine-tuning depends on except its start, learning rate, batch size and seed."""
        settings = self._settings
        # Loaded here only as a check; it is kept only while its task is trained.
        teacher = self._load_teacher(task)
        names = ("num_epochs", "warmup_fraction", "weight_decay", "max_steps", "group_by_length", *_STOPPING)
        distilled = ("distillation_weight", "temperature") if teacher is not None else ()
        trained = {split: rows for split, rows in data.items() if split in ("train", *task.validation_splits)}
        return {
            "task": {
                name: value for name, value in asdict(task).items() if name != "best_metric" or value is not None
            },
            "max_length": self._max_length,
            "data": _rows_hash(DatasetDict(trained)),
            "tokenizer": tokenizer_sha256(self._tokenizer),
            "teacher": None if teacher is None else weights_hash(teacher),
            "training_arguments": settings.training_arguments,
            "training_version": _TRAINING_VERSION,
            **{name: getattr(settings, name) for name in (*names, *distilled)},
        }

    def run(self) -> dict[str, Any]:
        """Trains what is not yet recorded and returns the table."""
        per_task = len(list(_settings_and_seeds(self._settings)))
        with open_run(self._output_dir, self._settings) as run:
            self._runs = _read_records(self._output_dir / RECORDS_NAME)
            bar = progress_bar(
                total=per_task * len(self._work),
                desc="fine-tunings",
                disable=bool(self._settings.training_arguments.get("disable_tqdm")),
            )
            rows: list[TaskRow] = []
            with bar:
                for work in self._work:
                    rows.append(self._run_task(work, bar))
                    result = run.finish(self._table(rows, complete=len(rows) == len(self._work)))
        return result

    def _run_task(self, work: _Work, bar: tqdm) -> TaskRow:
        start = ""
        if work.source == str(self._model_folder("mnli")):
            # Trained in this sweep: the key of the fine-tuning that gave the model.
            start = read_json(Path(work.source) / FINETUNING_NAME)["key"]
        group, teacher = short_hash(work.key, start), None
        runs: list[FinetuneRun] = []
        for learning_rate, batch_size, seed in _settings_and_seeds(self._settings):
            key = short_hash(group, learning_rate, batch_size, seed)
            if key not in self._runs:
                teacher = teacher or self._load_teacher(work.task)
                self._train(work, group, key, learning_rate, batch_size, seed, teacher)
            runs.append(self._runs[key])
            best = max(run.score for run in runs)
            bar.set_postfix({"task": work.title, "best": f"{best:.4f}"}, refresh=False)
            bar.update()
        self._mend_model(work, group, teacher)
        self._clean(work.task)
        if self._settings.submission:
            self._submit(work)
        num_scored = len(work.data[work.task.validation_splits[0]])
        task = work.task
        # The metric that is the score comes first, unless that is the loss.
        own = () if self._settings.tasks else tuple(sorted(task.metrics, key=lambda name: name != task.best_metric))
        test = self._test(work) if own and "test" in work.data else None
        best_runs, weights = best_setting(runs), work.class_weights
        return TaskRow(task.name, work.title, best_runs, num_scored, own, test, task.best_metric, weights)

    def _best_of(self, group: str) -> FinetuneRun | None:
        """Returns the best of the recorded fine-tunings that differ only in learning rate, batch size and seed."""
        return max((run for run in self._runs.values() if run.group == group), key=_rank, default=None)

    def _mend_model(self, work: _Work, group: str, teacher: PreTrainedModel | None) -> None:
        """Trains the task's best again if its model is gone, or belongs to other data that were used here since.

        On a device without bitwise reproducibility it may then no longer be the best, and another one is trained.
        """
        facts = self._model_folder(work.task.name) / FINETUNING_NAME
        while True:
            best = self._best_of(group)
            assert best is not None
            if facts.is_file() and read_json(facts)["key"] == best.key:
                return
            del self._runs[best.key]
            teacher = teacher or self._load_teacher(work.task)
            self._train(work, group, best.key, best.learning_rate, best.batch_size, best.seed, teacher)

    def _train(
        self,
        work: _Work,
        group: str,
        key: str,
        learning_rate: float,
        batch_size: int,
        seed: int,
        teacher: PreTrainedModel | None,
    ) -> None:
        """Trains one fine-tuning of the sweep and records it.

        Its model, if it is the task's best, is written before its record, and the record before its checkpoints are
        deleted: a kill loses no more than the work since the last checkpoint.
        """
        settings, task = self._settings, work.task
        folder = self._output_dir / task.name / f"run-{key}"
        args = _arguments(settings, folder, task, learning_rate, batch_size, seed)
        model = load_for_task(work.source, task, seed)
        try:
            result = finetune(
                model,
                work.data,
                task,
                args,
                self._tokenizer,
                teacher=teacher,
                distillation_weight=settings.distillation_weight,
                temperature=settings.temperature,
                teacher_cache=settings.teacher_cache,
                early_stopping_patience=settings.early_stopping_patience,
                early_stopping_threshold=settings.early_stopping_threshold,
                class_weights=None if work.class_weights is None else list(work.class_weights.values()),
            )
        except ValueError as error:
            which = f"learning rate {learning_rate:g}, batch size {batch_size}, seed {seed}"
            raise ValueError(f"{work.title}, {which}: {error}") from error
        run = FinetuneRun(
            key=key,
            group=group,
            task=task.name,
            learning_rate=learning_rate,
            batch_size=batch_size,
            seed=seed,
            **asdict(result),
        )
        best_before = self._best_of(group)
        if best_before is None or _rank(run) > _rank(best_before):
            self._keep_model(work, model, run)
        self._runs[key] = run
        write_json(self._output_dir / RECORDS_NAME, [asdict(other) for other in self._runs.values()])
        shutil.rmtree(folder, ignore_errors=True)

    def _keep_model(self, work: _Work, model: PreTrainedModel, run: FinetuneRun) -> None:
        folder = self._model_folder(run.task)
        facts = {name: value for name, value in asdict(run).items() if name != "epochs"}
        facts |= {"model": public_name(self._settings.model), **self._input_facts(work)}
        if isinstance(model, MagicPreTrainedModel):
            if not (folder / MANIFEST_NAME).is_file():
                # Left by a run of an earlier release, whose models were not exports.
                shutil.rmtree(folder, ignore_errors=True)
            files = {FINETUNING_NAME: json.dumps(facts, indent=2) + "\n"}
            export_model(model, self._tokenizer, folder, self._manifest(work, run), files=files)
            return
        with written_at_once(folder, replaces=True) as temporary:
            model.save_pretrained(temporary)
            fit_tokenizer(self._tokenizer, model.config).save_pretrained(temporary)
            write_json(temporary / FINETUNING_NAME, facts)

    def _input_facts(self, work: _Work) -> dict[str, Any]:
        """Returns the facts that determine how the model reads further rows."""
        return {"text_columns": list(work.task.text_columns), "max_length": self._max_length}

    def _file_facts(self) -> dict[str, Any]:
        """Returns the facts with which the scores on a validation file can be measured again, if all of it is used."""
        settings = self._settings
        if settings.validation_file is None or settings.max_eval_samples is not None:
            return {}
        sha256 = file_sha256(Path(settings.validation_file).expanduser())
        return {"validation_file": {"sha256": sha256, "label_column": settings.label_column}}

    def _manifest(self, work: _Work, run: FinetuneRun) -> dict[str, Any]:
        """Returns what is published about a fine-tuned model: its origin, its training and its scores."""
        teacher = self._teachers.get(work.task.name)
        taught = {} if teacher is None else {"teacher": public_name(teacher)}
        return {
            **self._provenance,
            "finetuning": {
                "data": work.title,
                "start": public_name(work.source),
                **taught,
                **({} if work.class_weights is None else {"class_weights": work.class_weights}),
                **self._input_facts(work),
                **self._file_facts(),
                **{name: getattr(run, name) for name in ("learning_rate", "batch_size", "seed", "steps", "best_step")},
                "versions": versions(),
            },
            "scores": [
                {"data": work.title, "split": split, "rows": len(work.data[split]), "metric": name, "value": value}
                for split, metrics in run.metrics.items()
                for name, value in metrics.items()
                if name in work.task.metrics
            ],
        }

    def _clean(self, task: Task) -> None:
        """Removes what stopped trainings have left behind."""
        for pattern in ("run-*", f".{MODEL_FOLDER}-*"):
            for folder in (self._output_dir / task.name).glob(pattern):
                shutil.rmtree(folder)

    def _submit(self, work: _Work) -> None:
        """Writes the leaderboard's files of a task from the best model on dev."""
        splits = [split for split in work.task.test_splits if split in work.data]
        if not self._settings.tasks or not splits:
            return
        folder = self._output_dir / SUBMISSION_FOLDER
        facts = read_json(self._model_folder(work.task.name) / FINETUNING_NAME)
        stamp = self._output_dir / work.task.name / "submitted.json"
        wanted = [facts["key"], *splits]
        if stamp.is_file() and read_json(stamp) == wanted:
            return
        model, _ = pretrained_model(auto_class(work.task), self._model_folder(work.task.name), dtype=torch.float32)
        size = self._settings.training_arguments.get("per_device_eval_batch_size", 32)
        predictions = {
            split: predict(model, work.data[split], work.task, self._tokenizer, size).values.tolist()
            for split in splits
        }
        write_submission(GLUE[work.task.name], predictions, folder)
        write_json(stamp, wanted)

    def _test(self, work: _Work) -> ScoresOnTest:
        """Predicts a user's test file with the best model on dev, and scores it if it has labels."""
        task, rows = work.task, work.data["test"]
        folder = self._output_dir / task.name
        key = short_hash(read_json(folder / MODEL_FOLDER / FINETUNING_NAME)["key"], _rows_hash(DatasetDict(test=rows)))
        stamp, predictions = folder / TEST_NAME, folder / PREDICTIONS_NAME
        if predictions.is_file() and stamp.is_file() and (known := read_json(stamp))["key"] == key:
            return ScoresOnTest(**known["scores"])
        model, _ = pretrained_model(auto_class(task), folder / MODEL_FOLDER, dtype=torch.float32)
        size = self._settings.training_arguments.get("per_device_eval_batch_size", 32)
        predicted = predict(model, rows, task, self._tokenizer, size).values
        names = predicted_names(task, predicted)
        lines = [json.dumps({"idx": number, "prediction": name}) + "\n" for number, name in enumerate(names)]
        write_text(predictions, "".join(lines))
        metrics = score_predictions(task, rows, predicted) if work.has_test_labels else None
        scores = ScoresOnTest(len(rows), metrics, str(predictions.relative_to(self._output_dir)))
        write_json(stamp, {"key": key, "scores": asdict(scores)})
        return scores

    def _table(self, rows: Sequence[TaskRow], complete: bool) -> dict[str, Any]:
        """Writes the table with the rows so far, and returns it as JSON."""
        settings = self._settings
        paths = write_table(rows, settings.model, self._num_parameters, self._output_dir)
        return {
            "model": settings.model,
            "num_parameters": self._num_parameters,
            "complete": complete,
            "columns": table_columns(rows),
            "tasks": [row.to_json() for row in rows],
            "tables": [path.name for path in paths],
        }


def _read_records(path: Path) -> dict[str, FinetuneRun]:
    records = read_json(path) if path.is_file() else []
    return {record["key"]: FinetuneRun(**record) for record in records}
