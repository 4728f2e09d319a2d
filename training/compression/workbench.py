"""What all steps of a compression share, and its first ones: teacher, start of the operators, super-net."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from datasets import Dataset
from transformers import set_seed

from modeling_magic import MagicConfig
from modeling_magic.modeling_magic import MagicPreTrainedModel
from modeling_magic.warm_start import initialize_from

from ..files import cache_folder, read_json, write_json, written_at_once
from ..internals import attention_implementation, forget_accelerator
from ..progress import show_progress
from ..runs.training import finish_training
from ..space.budgets import BudgetedSpace
from ..space.search_space import SearchSpace
from ..supernet.arguments import MagicTrainingArguments
from .calibration import calibrate, local_errors
from .narrowing import inner_moments, start_operators
from .sentences import Sentences, collate
from .settings import CompressSettings
from .source import Source
from .spaces import checkpoint_space
from .teacher_objectives import Batch, Objective, objective_of
from .teacher_trainers import CheckpointTrainer, freeze_embeddings
from .teaching import TeacherOutputs, batch_maker, ordered_batches, with_index


logger = logging.getLogger(__name__)

CACHE_FOLDER = "teachers"
START_FOLDER = "start"
SUPERNET_FOLDER = "supernet"
VISITS_NAME = "visits.json"
ERRORS_NAME = "errors.json"
# Sentences by which heads and neurons are chosen and output maps are fitted, and by which local errors are measured.
_NUM_MOMENT_SENTENCES = 1000
_NUM_ERROR_SENTENCES = 256
_WARMUP = 0.05
_SAVE_STEPS = 100


def has_bf16_units(device: torch.device) -> bool:
    """Returns whether a device computes bf16 products in units made for it: the processor is asked, not assumed."""
    if device.type == "cpu":
        # Of torch before 2.10 nothing public tells.
        known = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def new_accelerator(settings: CompressSettings) -> Accelerator:
    """Returns the accelerator of a run, in the precision of training; one of another precision is forgotten."""
    precision = training_precision(settings)
    forget_accelerator()
    return Accelerator(mixed_precision=precision)


def training_precision(settings: CompressSettings) -> str:
    """Returns "bf16" or "no" as `accelerate` names them, of what the settings ask for on this machine."""
    if settings.precision != "auto":
        return settings.precision
    return "bf16" if has_bf16_units(PartialState().device) else "no"


@dataclass
class Workbench:
    """A checkpoint, its text and what is made of them.

    Attributes:
        settings: of the run.
        source: the checkpoint; its model has no dropout.
        sentences: the text.
        folder: of the run.
        accelerator: of this process; its precision is that of training.
    """

    settings: CompressSettings
    source: Source
    sentences: Sentences
    folder: Path
    accelerator: Accelerator

    @property
    def teacher(self) -> MagicPreTrainedModel:
        """The checkpoint as a chain."""
        return self.source.model

    @cached_property
    def objective(self) -> Objective:
        """What children learn from the checkpoint."""
        settings = self.settings
        return objective_of(
            self.source,
            temperature=settings.temperature,
            mlm_probability=settings.mlm_probability,
            top_k=settings.teacher_top_k,
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The children around the checkpoint."""
        return checkpoint_space(self.teacher.config, self.settings.convolutions)

    @cached_property
    def train(self) -> Dataset:
        """The rows that are trained on."""
        return with_index(self.sentences.train, self.teacher.config.type_vocab_size)

    @cached_property
    def validation(self) -> Dataset:
        """The held-out rows."""
        return with_index(self.sentences.validation, self.teacher.config.type_vocab_size)

    @cached_property
    def searched(self) -> Dataset:
        """The held-out rows that children are judged on in the search: the first ones."""
        return self.validation.select(range(min(self.settings.num_search_sentences, len(self.validation))))

    @cached_property
    def outputs(self) -> TeacherOutputs:
        """The teacher's outputs; `fill` them before they are asked for."""
        return TeacherOutputs(self.source, self.objective, self.cache, self.accelerator)

    @property
    def cache(self) -> Path:
        """Where the teacher's outputs lie, for all runs with this text: $MAGIC_CACHE, or else ~/.cache/magic-nas."""
        return cache_folder(None) / CACHE_FOLDER

    @cached_property
    def tokens_per_sentence(self) -> float:
        """The mean length of the rows that are trained on."""
        return sum(self.train["length"]) / len(self.train)

    def text_batches(self, rows: Dataset, batch_size: int) -> list[Batch]:
        """Returns rows in batches of nearly equal lengths, without the teacher's outputs."""
        pad = self.teacher.config.pad_token_id or 0
        return [collate(rows.select(places).to_list(), pad) for places in ordered_batches(rows, batch_size)]

    def stream(self, seed: int) -> Iterator[Batch]:
        """Yields batches of the training rows for ever, without the teacher's outputs."""
        pad = self.teacher.config.pad_token_id or 0
        return batch_maker(self.train, lambda rows: collate(rows, pad), self.settings.batch_size, seed)


def without_dropout(config: MagicConfig) -> None:
    """Sets all dropout of a model to none: a child is to do what the teacher does, which drops nothing."""
    config.hidden_dropout_prob = config.attention_probs_dropout_prob = 0.0
    config.classifier_dropout = 0.0


def training_arguments(
    bench: Workbench, folder: Path, steps: int, learning_rate: float, kind: Any, **given: Any
) -> Any:
    """Returns the arguments of one training: AdamW, a short warm-up, a linear decay, batches of like lengths."""
    settings = bench.settings
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "per_device_eval_batch_size": settings.batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": _WARMUP,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "train_sampling_strategy": "group_by_length",
        "length_column_name": "length",
        "bf16": bench.accelerator.mixed_precision == "bf16",
        "use_cpu": bench.accelerator.device.type == "cpu",
        # The run's own accelerator is in use before and after.
        "accelerator_config": {"use_configured_state": True},
        "save_steps": _SAVE_STEPS,
        "save_total_limit": 1,
        "logging_steps": 50,
        "report_to": "none",
        "seed": settings.seed,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": [],
        **given,
    }
    return kind(**values)


# ---- The start of the operators ----


def start_supernet(bench: Workbench, progress: bool) -> MagicPreTrainedModel:
    """Returns the super-net before it is trained: the checkpoint's operators, and the new ones fitted and calibrated.

    It is kept in the run's folder; where it lies there it is loaded.
    """
    folder = bench.folder / START_FOLDER
    if not (folder / ERRORS_NAME).is_file():
        model = _make_start(bench, progress)
        batches = bench.text_batches(bench.validation.select(_first(bench.validation, _NUM_ERROR_SENTENCES)), 64)
        errors = local_errors(model, bench.teacher, batches, bench.accelerator.autocast)
        if bench.accelerator.is_main_process:
            with written_at_once(folder, replaces=True) as temporary:
                model.save_pretrained(temporary)
                write_json(temporary / ERRORS_NAME, errors)
        bench.accelerator.wait_for_everyone()
    return load_model(bench, folder)


def calibrated_errors(bench: Workbench) -> list[dict[str, float]]:
    """Returns the local error of each operator of each layer, once `start_supernet` has been called."""
    return read_json(bench.folder / START_FOLDER / ERRORS_NAME)  # type: ignore[return-value]


def _make_start(bench: Workbench, progress: bool) -> MagicPreTrainedModel:
    settings, teacher = bench.settings, bench.teacher
    set_seed(settings.seed)
    model = type(teacher)(supernet_config(teacher.config, bench.space)).to(bench.accelerator.device).eval()
    initialize_from(model, teacher)
    teacher.to(bench.accelerator.device)
    moments = inner_moments(
        teacher, bench.text_batches(bench.train.select(_first(bench.train, _NUM_MOMENT_SENTENCES)), 64)
    )
    fits = settings.output_maps == "least_squares"
    new = start_operators(model, teacher, moments, settings.importance, fits)
    calibrate(
        model,
        teacher,
        new,
        bench.stream(settings.seed),
        settings.calibration_steps,
        settings.calibration_learning_rate,
        bench.accelerator.autocast,
        progress,
    )
    return model


def supernet_config(config: MagicConfig, space: SearchSpace) -> MagicConfig:
    """Returns the configuration of the super-net of a space around a checkpoint, without dropout."""
    values = config.to_dict()
    for derived in ("transformers_version", "num_hidden_layers"):
        values.pop(derived, None)
    supernet = type(config)(**{**values, "candidate_operators": space.to_json()})
    supernet._attn_implementation = attention_implementation(config)
    without_dropout(supernet)
    return supernet


def _first(rows: Dataset, number: int) -> Sequence[int]:
    return range(min(number, len(rows)))


def load_model(bench: Workbench, folder: Path) -> MagicPreTrainedModel:
    """Returns a model of the checkpoint's class from a folder of the run."""
    model = type(bench.teacher).from_pretrained(
        folder, attn_implementation=attention_implementation(bench.teacher.config)
    )
    if isinstance(getattr(model.config, "sparse_prediction", None), bool):
        model.config.sparse_prediction = bench.source.kind == "masked_lm"
    return model.to(bench.accelerator.device).eval()


# ---- The super-net ----


def train_supernet(bench: Workbench, within: Sequence[BudgetedSpace], progress: bool) -> MagicPreTrainedModel:
    """Returns the trained super-net; its folder also tells how often each operator of each layer was trained.

    Args:
        bench: of the run.
        within: the children of the sizes that are looked for, for the sampler "budget".
        progress: shows a bar.
    """
    settings, folder = bench.settings, bench.folder / SUPERNET_FOLDER
    visits_path, model_folder = folder / VISITS_NAME, folder / "model"
    if not visits_path.is_file():
        model = start_supernet(bench, progress)
        freeze_embeddings(model)
        set_seed(settings.seed)
        args = training_arguments(
            bench,
            folder,
            settings.supernet_steps,
            settings.supernet_learning_rate,
            MagicTrainingArguments,
            sampler="gradual" if settings.sampler == "gradual" else "uniform",
            alignment="none",
            alignment_weight=settings.alignment_weight,
            alignment_every_n_layers=settings.alignment_every_n_layers,
            num_probe_children=0,
            disable_tqdm=not progress,
        )
        trainer = CheckpointTrainer(
            model,
            args,
            objective=bench.objective,
            within=within if settings.sampler == "budget" else (),
            anchor_teacher=bench.teacher if settings.alignment == "teacher" else None,
            train_dataset=bench.train,
            data_collator=bench.outputs.collate,
        )
        show_progress(trainer, ["loss_pred", "loss_align"])
        finish_training(trainer)
        if bench.accelerator.is_main_process:
            with written_at_once(model_folder, replaces=True) as temporary:
                model.save_pretrained(temporary)
            write_json(visits_path, trainer.visits)
        bench.accelerator.wait_for_everyone()
    return load_model(bench, model_folder)
