"""The run of pre-training distillation (5.4): one child that learns from labels and from a teacher."""

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback

from modeling_magic import MagicForMaskedLM

from .checkpoints import write_json
from .costs import training_flops
from .data import MaskingCollator, PreparedData, load_tokenizer
from .distillation import MaskedLMDistillationTrainer, check_distillation
from .docstrings import cache_folder
from .evaluation import Batch, evaluate_child, validation_batches
from .hub import describe_model, export_model
from .progress import PostfixProgressCallback
from .runs import (
    MODEL_FOLDER,
    RESULT_NAME,
    begin_child_run,
    check_run_folder,
    child_of,
    claim_run_folder,
    finish_training,
    read_result,
    training_manifest,
    versions,
)
from .settings import RetrainSettings
from .teacher import check_length, load_teacher, masked_logits, teacher_inputs, weights_hash


COMMAND = "retrain --teacher"
CACHE_FOLDER = "teachers"


@dataclass(frozen=True)
class DistillSettings(RetrainSettings):
    """What the distillation of one child in pre-training does; the keys of a recipe for `magic-nas retrain --teacher`.

    Attributes:
        teacher: a masked LM of any class with its tokenizer: a run of `magic-nas retrain`, a folder, or a name on the
            Hub. The text is cut by its tokenizer where `data.tokenizer` is left out.
        distillation_weight: of the teacher's loss; that of the labels has the rest of 1.
        temperature: of both distributions.
        teacher_top_k: likeliest tokens of the teacher that are kept, all others as one; left out, all are kept. What
            the student would learn about the others is lost, which is most of it where the teacher is not sure.
        cache_teacher: keep the teacher's outputs on disk, under $MAGIC_CACHE or ~/.cache/magic-nas, for other runs of
            the same text, seed and batch size. A masked token takes 2 bytes for each token of the vocabulary, or 4 or
            6 for each of the `teacher_top_k`.
    """

    teacher: str = ""
    distillation_weight: float = 0.5
    temperature: float = 1.0
    teacher_top_k: int | None = None
    cache_teacher: bool = False


def retrain_distilled(
    settings: DistillSettings, output_dir: str | Path, search: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Trains one child on labels and on a teacher (5.4) and returns its result, validated on the held-out text.

    The folder then holds `model/`, an export that `AutoModelForMaskedLM` loads, and result.json, which also says what
    the teacher scores on the same held-out tokens. A run that was stopped is continued, one that has ended returns its
    result and needs no teacher.

    Args:
        settings: the child, its teacher and how to train.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict one another, the teacher does not fit, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    if not settings.teacher:
        raise ValueError("there is no teacher; name a masked LM with --teacher, a folder or a name on the Hub")
    check_distillation(settings.distillation_weight, settings.temperature, settings.teacher_top_k)
    child_of(settings)
    source = teacher_source(settings.teacher)
    if settings.data.tokenizer is None:
        # One trained on the text would never be the teacher's.
        settings = replace(settings, data=replace(settings.data, tokenizer=source))
    check_run_folder(output_dir, COMMAND, settings)
    if (result := read_result(output_dir)) is not None:
        return result
    teacher = _load_teacher(source, settings)
    run = begin_child_run(settings, output_dir, COMMAND)
    assert run is not None
    model = run.inherited or MagicForMaskedLM(run.config)
    with claim_run_folder(output_dir, COMMAND, settings, run.args.should_save):
        return _train(model, teacher, run.data, run.args, settings, search)


def teacher_source(name: str) -> str:
    """Returns the model folder of a finished retrain run; any other name is the model's own."""
    inside = Path(name) / MODEL_FOLDER
    return str(inside) if (inside / "config.json").is_file() else name


def _load_teacher(source: str, settings: DistillSettings) -> PreTrainedModel:
    """Returns the teacher, once all that can be checked without the text has been."""
    teacher = load_teacher(source, load_tokenizer(str(settings.data.tokenizer)))
    check_length(teacher.config, f"the teacher {settings.teacher!r}", "block_size", settings.data.block_size)
    return teacher


def _train(
    model: MagicForMaskedLM,
    teacher: PreTrainedModel,
    data: PreparedData,
    args: TrainingArguments,
    settings: DistillSettings,
    search: dict[str, Any] | None,
) -> dict[str, Any]:
    output_dir = Path(str(args.output_dir))
    # The masks of the validation text do not depend on the run's seed, so that runs compare on the same tokens.
    judge = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=0)
    batches = validation_batches(
        data.validation, judge, args.per_device_eval_batch_size, settings.num_validation_sequences
    )
    fingerprint = weights_hash(teacher)
    trainer = MaskedLMDistillationTrainer(
        model,
        args,
        teacher=teacher,
        distillation_weight=settings.distillation_weight,
        temperature=settings.temperature,
        teacher_top_k=settings.teacher_top_k,
        teacher_cache=cache_folder(None) / CACHE_FOLDER if settings.cache_teacher else None,
        train_dataset=data.train,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(PostfixProgressCallback(["loss_labels", "loss_teacher", "learning_rate"]))
    seconds = finish_training(trainer)
    val_loss, val_accuracy = evaluate_child(model, batches, accelerator=trainer.accelerator)
    trainer.teacher.to(args.device)
    result = {
        **describe_model(model.config),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        **_cost(trainer, model, settings),
        "teacher": {"name": settings.teacher, "weights": fingerprint, **score_teacher(teacher, batches)},
        "distillation_weight": settings.distillation_weight,
        "temperature": settings.temperature,
        "teacher_top_k": settings.teacher_top_k,
        "seed": args.seed,
        "seconds": seconds,
        "start": "the super-net's weights" if settings.inherit else "random weights",
        "objective": describe_objective(settings),
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        manifest = training_manifest(result, search)
        kept = ("teacher", "distillation_weight", "temperature", "teacher_top_k")
        manifest["training"] |= {key: result[key] for key in kept}
        export_model(model, data.tokenizer, output_dir / MODEL_FOLDER, manifest)
        write_json(output_dir / RESULT_NAME, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _cost(trainer: MaskedLMDistillationTrainer, model: MagicForMaskedLM, settings: DistillSettings) -> dict[str, Any]:
    """Returns what the training has cost the student, and on how many sequences this process ran the teacher."""
    args, steps, block_size = trainer.args, trainer.state.global_step, settings.data.block_size
    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * block_size
    architecture = [layer[0] for layer in model.config.candidate_operators]
    of_a_step = training_flops(model.config, architecture, block_size, tokens_per_step, settings.mlm_probability)
    return {
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "training_flops": steps * of_a_step,
        "teacher_sequences": {"run": trainer.num_teacher_sequences, "cached": trainer.num_cached_sequences},
    }


def describe_objective(settings: DistillSettings) -> str:
    """Returns what was trained, in words, as the model card says it; of a teacher on this disk, its folder's name."""
    local = Path(settings.teacher)
    name = local.name if local.exists() else settings.teacher
    return (
        f"masked language modelling, {settings.mlm_probability:.0%} of the tokens, 80/10/10, distilled from {name} "
        f"(weight {settings.distillation_weight:g}, temperature {settings.temperature:g})"
    )


@torch.no_grad()
def score_teacher(teacher: PreTrainedModel, batches: list[Batch]) -> dict[str, float]:
    """Returns the teacher's loss and accuracy, means over the masked tokens of all batches, as `evaluate_child` does.

    Args:
        teacher: a masked LM of any class, in evaluation mode.
        batches: with `labels`, -100 where nothing is predicted.
    """
    loss, correct, tokens = 0.0, 0, 0
    for batch in batches:
        inputs = {name: tensor.to(teacher.device) for name, tensor in batch.items()}
        masked = inputs["labels"] != -100
        labels = inputs["labels"][masked]
        logits = masked_logits(teacher.base_model, teacher, teacher_inputs(teacher, inputs), masked).float()
        loss += cross_entropy(logits, labels, reduction="sum").item()
        correct += int((logits.argmax(dim=-1) == labels).sum())
        tokens += len(labels)
    return {"val_loss": loss / max(tokens, 1), "val_accuracy": correct / max(tokens, 1)}
