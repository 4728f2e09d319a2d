"""What all steps of a compression share, and its first steps: the new operators and the super-net.

Each step writes its result to the run's folder, atomically, and later steps read it from there; a resumed run reads
the same. With several processes the main one writes.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shutil import rmtree
from typing import Any, TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset
from transformers import PreTrainedModel, Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from modeling_magic import MagicConfig
from modeling_magic.modeling_magic import MagicPreTrainedModel
from modeling_magic.warm_start import initialize_from

from ..files import cache_folder, read_json, write_json, written_at_once
from ..internals import attention_implementation, forget_accelerator
from ..progress import show_progress
from ..resuming import last_complete_checkpoint
from ..runs.folders import FACTS_NAME, MODEL_FOLDER
from ..space.budgets import BudgetedSpace
from ..space.search_space import SearchSpace
from ..supernet.arguments import MagicTrainingArguments
from .calibration import calibrate, local_errors
from .labelled import with_labelled
from .narrowing import inner_moments, start_operators
from .sentences import Sentences
from .settings import CompressSettings
from .source import Source
from .spaces import checkpoint_space, drops_only
from .teacher_objectives import Batch, Objective, objective_of
from .teacher_trainers import CheckpointTrainer, freeze_embeddings, trained_attention
from .teaching import TeacherOutputs, endless_batches, ordered_batches, rows_for, text_batch


T = TypeVar("T")

CACHE_FOLDER = "teachers"
START_FOLDER = "start"
SUPERNET_FOLDER = "supernet"
VISITS_NAME = "visits.json"
ERRORS_NAME = "errors.json"
# Sentences for ranking heads and neurons and fitting output maps, and for measuring local errors.
_NUM_MOMENT_SENTENCES = 1000
_NUM_ERROR_SENTENCES = 256
# Batch size of passes without gradients. The second score of sentences depends on the rest of a batch.
_JUDGED_TOGETHER = 64
_WARMUP = 0.05
_SAVE_STEPS = 100
_LOGGING_STEPS = 50


# ---- Processes and precision ----


def process_state() -> PartialState:
    """Returns the state of this process and its peers; there may be several on CPUs alone."""
    return PartialState(cpu=not torch.accelerator.is_available())


def has_bf16_units(device: torch.device) -> bool:
    """Returns whether a device computes bf16 products in dedicated units; the processor is queried, not assumed."""
    if device.type == "cpu":
        # Before torch 2.10 there is no public function for it.
        known: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
        return bool(known.get("amx_bf16") or known.get("avx512_bf16"))
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def run_precision(folder: Path, settings: CompressSettings) -> str:
    """Returns the training precision of a run, "bf16" or "no" as `accelerate` names them.

    It is the precision with which the run began, on whatever machine that was; a new run records it.
    """
    state = process_state()
    path = folder / FACTS_NAME
    if state.is_main_process and not path.is_file():
        here = "bf16" if has_bf16_units(state.device) else "no"
        write_json(path, {"precision": here if settings.precision == "auto" else settings.precision})
    state.wait_for_everyone()
    return read_json(path)["precision"]


def new_accelerator(precision: str) -> Accelerator:
    """Returns an accelerator of a precision; a previous one with another precision is forgotten."""
    forget_accelerator()
    return Accelerator(cpu=process_state().device.type == "cpu", mixed_precision=precision)


# ---- The workbench ----


@dataclass
class Workbench:
    """A checkpoint, its text and what is made of them.

    Attributes:
        settings: settings of the run.
        source: the checkpoint; its model is moved to the accelerator's device.
        sentences: the text.
        folder: folder of the run.
        accelerator: accelerator of this process, with the precision of training.
        labelled: labelled rows that children are also trained on, see `labelled.read_labelled`.
    """

    settings: CompressSettings
    source: Source
    sentences: Sentences
    folder: Path
    accelerator: Accelerator
    labelled: Dataset | None = None

    def __post_init__(self) -> None:
        self.teacher.to(self.accelerator.device)

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
            top_k=settings.top_k,
            seed=settings.seed,
        )

    @cached_property
    def space(self) -> SearchSpace:
        """The children around the checkpoint."""
        return checkpoint_space(self.teacher.config, self.settings.convolutions)

    @cached_property
    def train(self) -> Dataset:
        """The training rows: those of the text, and labelled ones."""
        return with_labelled(rows_for(self.teacher, self.sentences.train), self.labelled, self.validation)

    @cached_property
    def validation(self) -> Dataset:
        """The held-out rows."""
        return rows_for(self.teacher, self.sentences.validation)

    @cached_property
    def train_outputs(self) -> TeacherOutputs:
        """The teacher's outputs for the training rows, in the precision of training."""
        return self._outputs(in_float32=False)

    @cached_property
    def judged_outputs(self) -> TeacherOutputs:
        """The teacher's outputs for the held-out rows, in float32, so that the reference values are not rounded."""
        return self._outputs(in_float32=True)

    def _outputs(self, in_float32: bool) -> TeacherOutputs:
        # Shared by all runs with this text: in $MAGIC_CACHE, or else ~/.cache/magic-nas.
        folder = cache_folder(None) / CACHE_FOLDER
        return TeacherOutputs(self.source, self.objective, folder, self.accelerator, in_float32)

    def run_teacher(self, progress: bool) -> None:
        """Computes the teacher's outputs for all rows that are not in the cache."""
        self.judged_outputs.fill(self.validation, progress=progress)
        self.train_outputs.fill(self.train, progress=progress)

    @property
    def latency_length(self) -> int:
        """Sequence length for latency and FLOPs: that of the settings, but at most the model's limit."""
        return min(self.settings.latency_length, self.teacher.config.max_sequence_length)

    @property
    def pad_token_id(self) -> int:
        """The id with which batches are padded."""
        return self.teacher.config.pad_token_id or 0

    def judged_batches(self, num_rows: int | None = None) -> list[Batch]:
        """Returns the first held-out rows, or all of them, in batches with the teacher's outputs."""
        return self.judged_outputs.batches(_first(self.validation, num_rows), _JUDGED_TOGETHER)

    def text_batches(self, rows: Dataset, num_rows: int) -> Iterator[Batch]:
        """Yields the first rows in batches without the teacher's outputs."""
        rows = _first(rows, num_rows)
        for places in ordered_batches(rows, _JUDGED_TOGETHER):
            yield text_batch(rows, places, self.pad_token_id)

    # ---- Several processes ----

    def on_main(self, work: Callable[[], T]) -> T:
        """Runs `work` in the main process, and returns its result in all processes, which wait for it."""
        values = [work() if self.accelerator.is_main_process else None]
        if self.accelerator.num_processes > 1:
            broadcast_object_list(values)
        return values[0]  # type: ignore[return-value]

    def is_file(self, path: Path) -> bool:
        """Returns whether the main process sees a file, so that all processes take the same path."""
        return self.on_main(path.is_file)


def _first(rows: Dataset, number: int | None) -> Dataset:
    return rows if number is None else rows.select(range(min(number, len(rows))))


# ---- Models ----


def supernet_config(config: MagicConfig, space: SearchSpace) -> MagicConfig:
    """Returns the configuration of the super-net of a space around a checkpoint.

    It has no dropout, since a child must reproduce the teacher, which has none in evaluation mode.

    Raises:
        ValueError: an operator does not fit the checkpoint's sizes.
    """
    values = config.to_dict()
    for derived in ("transformers_version", "num_hidden_layers"):
        values.pop(derived, None)
    no_dropout = dict.fromkeys(("hidden_dropout_prob", "attention_probs_dropout_prob", "classifier_dropout"), 0.0)
    values |= {"candidate_operators": space.to_json(), "attn_implementation": attention_implementation(config)}
    return type(config)(**{**values, **no_dropout})


def drop_supernet(bench: Workbench) -> MagicPreTrainedModel:
    """Returns the super-net of the drops, whose operators are the checkpoint's own and SKIP.

    Its tensors are the teacher's, not copies.
    """
    teacher = bench.teacher
    with torch.device("meta"):
        model = type(teacher)(supernet_config(teacher.config, drops_only(bench.space, teacher.config.chain)))
    model.load_state_dict(teacher.state_dict(), assign=True)
    return model.eval()


def load_model(bench: Workbench, folder: Path) -> MagicPreTrainedModel:
    """Returns a model of the run, in evaluation mode; its embeddings, which never change, are the teacher's."""
    teacher = bench.teacher
    model = type(teacher).from_pretrained(folder, attn_implementation=attention_implementation(teacher.config))
    # Training never reads the logits of tokens that are not masked.
    model.config.sparse_prediction = bench.source.kind == "masked_lm"
    share_embeddings(model, teacher)
    return model.to(bench.accelerator.device).eval()


def share_embeddings(model: MagicPreTrainedModel, owner: MagicPreTrainedModel) -> None:
    """Makes a model share the embedding tensors of another, frozen, so that many models hold them once.

    The modules stay the model's own, so the mode of one model does not affect the other.
    """
    embeddings: Any = model.base_model.embeddings
    own: Any = owner.base_model.embeddings
    for name, parameter in own.named_parameters():
        module, _, last = name.rpartition(".")
        setattr(embeddings.get_submodule(module), last, parameter.requires_grad_(False))
    model.tie_weights()


# ---- Training ----


def training_arguments(
    bench: Workbench,
    kind: type[TrainingArguments],
    folder: Path,
    steps: int,
    learning_rate: float,
    progress: bool,
    **given: Any,
) -> Any:
    """Returns the arguments of one training: AdamW, a short warm-up, a linear decay.

    Args:
        bench: workbench of the run.
        kind: class of the arguments.
        folder: folder of the checkpoints.
        steps: number of training steps.
        learning_rate: peak learning rate.
        progress: whether to show a bar.
        **given: further arguments, which override those here.
    """
    settings = bench.settings
    values: dict[str, Any] = {
        "output_dir": str(folder),
        "max_steps": steps,
        "per_device_train_batch_size": settings.batch_size,
        "learning_rate": learning_rate,
        "warmup_steps": _WARMUP,
        "lr_scheduler_type": "linear",
        "weight_decay": 0.0,
        "bf16": bench.accelerator.mixed_precision == "bf16",
        "use_cpu": bench.accelerator.device.type == "cpu",
        # The run's own accelerator is in use before and after.
        "accelerator_config": {"use_configured_state": True},
        "save_steps": _SAVE_STEPS,
        "save_total_limit": 1,
        "logging_steps": _LOGGING_STEPS,
        "report_to": "none",
        "seed": settings.seed,
        "disable_tqdm": not progress,
        "dataloader_pin_memory": torch.cuda.is_available(),
        "label_names": [],
    }
    return kind(**{**values, **given})


def keep_trained(bench: Workbench, trainer: Trainer, name: str, record: Any) -> None:
    """Writes the model of a finished training, and then a record that it has finished, into the training's folder.

    Args:
        bench: workbench of the run.
        trainer: trainer of the training.
        name: file name of the record.
        record: the record, as JSON.
    """
    folder = Path(str(trainer.args.output_dir))
    if bench.accelerator.is_main_process:
        with written_at_once(folder / MODEL_FOLDER, replaces=True) as temporary:
            cast(PreTrainedModel, trainer.model).save_pretrained(temporary)
        write_json(folder / name, record)
    bench.accelerator.wait_for_everyone()


def load_trained(bench: Workbench, folder: Path) -> MagicPreTrainedModel:
    """Returns the model of a finished training; deletes its checkpoints and frees its trainer's memory."""
    if bench.accelerator.is_main_process:
        for checkpoint in folder.glob(f"{PREFIX_CHECKPOINT_DIR}-*"):
            rmtree(checkpoint)
    # A trainer, its optimizer and its model refer to one another.
    gc.collect()
    return load_model(bench, folder / MODEL_FOLDER)


# ---- The start of the operators ----


def start_supernet(bench: Workbench, progress: bool) -> MagicPreTrainedModel:
    """Returns the untrained super-net: the checkpoint's operators, and the new ones, fitted and calibrated.

    It is kept in the run's folder, and loaded from there if it exists.
    """
    folder = bench.folder / START_FOLDER
    if not bench.is_file(folder / ERRORS_NAME):
        bench.on_main(lambda: _write_start(bench, folder, progress))
    return load_model(bench, folder)


def calibrated_errors(bench: Workbench) -> list[dict[str, float]]:
    """Returns the local error of each operator of each layer, once `start_supernet` has been called."""
    return read_json(bench.folder / START_FOLDER / ERRORS_NAME)


def _write_start(bench: Workbench, folder: Path, progress: bool) -> None:
    model = _make_start(bench, progress)
    batches = bench.text_batches(bench.validation, _NUM_ERROR_SENTENCES)
    errors = local_errors(model, bench.teacher, batches, bench.accelerator.autocast)
    with written_at_once(folder, replaces=True) as temporary:
        model.save_pretrained(temporary)
        write_json(temporary / ERRORS_NAME, errors)


def _make_start(bench: Workbench, progress: bool) -> MagicPreTrainedModel:
    settings, teacher = bench.settings, bench.teacher
    set_seed(settings.seed)
    model = type(teacher)(supernet_config(teacher.config, bench.space)).to(bench.accelerator.device).eval()
    initialize_from(model, teacher)
    moments = inner_moments(teacher, bench.text_batches(bench.train, _NUM_MOMENT_SENTENCES))
    places = start_operators(
        model, teacher, moments, settings.importance, fits_output=settings.output_maps == "least_squares"
    )
    # For one operator at a time, so the length of the sequences does not matter.
    model.set_attn_implementation(
        trained_attention(0, bench.accelerator.device, bench.accelerator.mixed_precision == "bf16")
    )
    calibrate(
        model,
        teacher,
        places,
        endless_batches(bench.train, settings.batch_size, bench.pad_token_id, settings.seed),
        settings.calibration_steps,
        settings.calibration_learning_rate,
        bench.accelerator.autocast,
        progress,
    )
    return model


# ---- The super-net ----


def train_supernet(bench: Workbench, within: Sequence[BudgetedSpace], progress: bool) -> MagicPreTrainedModel:
    """Returns the trained super-net; its folder also records how often each operator of each layer was trained.

    Args:
        bench: workbench of the run.
        within: the children of the requested sizes, for the sampler "budget".
        progress: whether to show a bar.
    """
    folder = bench.folder / SUPERNET_FOLDER
    if not bench.is_file(folder / VISITS_NAME):
        _train_supernet(bench, folder, within, progress)
    return load_trained(bench, folder)


def _train_supernet(bench: Workbench, folder: Path, within: Sequence[BudgetedSpace], progress: bool) -> None:
    settings = bench.settings
    args = training_arguments(
        bench,
        MagicTrainingArguments,
        folder,
        settings.supernet_steps,
        settings.supernet_learning_rate,
        progress,
        sampler="gradual" if settings.sampler == "gradual" else "uniform",
        alignment="none",
        alignment_weight=settings.alignment_weight,
        alignment_every_n_layers=settings.alignment_every_n_layers,
        num_probe_children=0,
    )
    model = start_supernet(bench, progress)
    freeze_embeddings(model)
    trainer = CheckpointTrainer(
        model,
        args,
        objective=bench.objective,
        within=within if settings.sampler == "budget" else (),
        anchor_teacher=bench.teacher if settings.alignment == "checkpoint" else None,
        train_dataset=bench.train,
        data_collator=bench.train_outputs.collate,
    )
    show_progress(trainer, ["loss_pred", "loss_align"])
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(folder, tells=True))
    keep_trained(bench, trainer, VISITS_NAME, trainer.visits)
