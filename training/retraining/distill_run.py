"""The run of pre-training distillation (5.4), which trains one child on labels and on a teacher."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from modeling_magic import MagicForMaskedLM

from ..data.text import MaskingCollator
from ..distillation.teacher import (
    follow_teacher,
    load_fitting_teacher,
    load_teacher,
    masked_logits,
    teacher_inputs,
    weights_hash,
)
from ..distillation.trainers import MaskedLMDistillationTrainer
from ..files import cache_folder
from ..hub.export import describe_model
from ..progress import show_progress
from ..runs.folders import Run, bars_off, finished_result, open_run
from ..runs.training import finish_training
from ..supernet.evaluation import Batch, evaluate_child, judging_batches, judging_record
from .retrain import ChildStart, child_flops, compute_record, export_trained, plan_child, start_child, training_record
from .settings import DistillSettings


CACHE_FOLDER = "teachers"
_OF_THE_MANIFEST = ("teacher", "distillation_weight", "temperature", "teacher_top_k")


@bars_off()
def retrain_distilled(
    settings: DistillSettings, output_dir: str | Path, search: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Trains one child on labels and on a teacher (5.4) and returns its result, validated on the held-out text.

    The folder then contains `model/`, an export that `AutoModelForMaskedLM` loads, and result.json, which also has the
    teacher's scores on the same held-out tokens. A stopped run is resumed; a finished run returns its result and needs
    no teacher.

    Args:
        settings: the child, its teacher and how to train.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict each other, the teacher does not fit, or the folder contains another run.
    """
    if not settings.teacher:
        raise ValueError("no teacher is given; pass a masked LM with --teacher, a folder or a name on the Hub")
    source, settings = follow_teacher(settings)
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    plan = plan_child(settings, output_dir)
    teacher = load_fitting_teacher(load_teacher, source, settings)
    start = start_child(plan, settings, teacher.config)
    inputs = {**start.data.hashes, "the teacher": weights_hash(teacher)}
    with open_run(output_dir, settings, plan.args.should_save, inputs) as run:
        return run.result or _train(run, start, teacher, settings, search)


def _train(
    run: Run, start: ChildStart, teacher: PreTrainedModel, settings: DistillSettings, search: dict[str, Any] | None
) -> dict[str, Any]:
    model, args, data = start.inherited or MagicForMaskedLM(start.config), start.args, start.data
    judged = (settings.mlm_probability, args.per_device_eval_batch_size, settings.num_validation_sequences)
    batches = judging_batches(data, *judged)
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
    show_progress(trainer, ["loss_labels", "loss_teacher", "learning_rate"])
    seconds = finish_training(trainer)
    val_loss, val_accuracy = evaluate_child(model, batches, accelerator=trainer.accelerator)
    trainer.teacher.to(args.device)
    result = {
        **describe_model(model.config),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "judged_on": judging_record(trainer.accelerator, *judged),
        **compute_record(trainer, data, child_flops(model.config, settings, data)),
        # The number of sequences on which this process ran the teacher.
        "teacher_sequences": {"run": trainer.num_teacher_sequences, "cached": trainer.num_cached_sequences},
        "teacher": {"name": settings.teacher, "weights": fingerprint, **score_teacher(teacher, batches)},
        "distillation_weight": settings.distillation_weight,
        "temperature": settings.temperature,
        "teacher_top_k": settings.teacher_top_k,
        **training_record(trainer, settings, data, seconds, describe_objective(settings)),
    }
    return run.finish(result, partial(export_trained, model, data, run, search=search, further=_OF_THE_MANIFEST))


def describe_objective(settings: DistillSettings) -> str:
    """Returns the objective in words, for the model card; a local teacher is given by the name of its folder."""
    local = Path(settings.teacher)
    name = local.name if local.exists() else settings.teacher
    return (
        f"masked language modelling, {settings.mlm_probability:.0%} of the tokens, 80/10/10, distilled from {name} "
        f"(weight {settings.distillation_weight:g}, temperature {settings.temperature:g})"
    )


@torch.no_grad()
def score_teacher(teacher: PreTrainedModel, batches: list[Batch]) -> dict[str, float]:
    """Returns the teacher's mean loss and accuracy over the masked tokens of all batches, like `evaluate_child`.

    Args:
        teacher: a masked LM of any class, in evaluation mode.
        batches: batches with `labels`, -100 = not predicted.
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
