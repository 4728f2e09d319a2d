"""The run that trains one child with the masked-LM objective, from scratch or from a super-net's weights (5.1).

It also has the parts shared with the runs of other objectives: planning and starting a child, and its record.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from transformers import PreTrainedConfig, Trainer, TrainingArguments, set_seed

from modeling_magic import MagicConfig, MagicForMaskedLM

from ..data.fitting import most_positions
from ..data.text import MaskingCollator, PreparedData, load_data
from ..hub.export import describe_model, export_model, training_manifest
from ..hub.presets import load_preset
from ..progress import show_progress
from ..resuming import ResumableTrainer
from ..runs.folders import MODEL_FOLDER, Run, bars_off, finished_result, open_run, read_settings
from ..runs.recipes import mapping_of
from ..runs.training import (
    finish_training,
    pretraining_arguments,
    settle_length,
    tell_training,
    tokens_per_step,
)
from ..space.costs import training_flops
from ..space.search_space import Architecture, SearchSpace, format_architecture, parse_architecture
from ..supernet.evaluation import evaluate_child, judging_batches, judging_record
from ..supernet.loading import check_vocabulary, load_supernet, read_search, supernet_folder
from ..supernet.setup import fit_to_text
from .settings import RetrainSettings


@bars_off()
def retrain(settings: RetrainSettings, output_dir: str | Path, search: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains one child with the masked-LM objective (5.1) and returns its result, validated on the held-out text.

    The folder then contains `model/`, an export that `AutoModelForMaskedLM` loads, and result.json. A stopped run is
    resumed; a finished run returns its result.

    Args:
        settings: the child and how to train it.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict each other, or the folder contains another run.
    """
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    plan = plan_child(settings, output_dir)
    start = start_child(plan, settings)
    with open_run(output_dir, settings, plan.args.should_save, start.data.hashes) as run:
        return run.result or _train(run, start, settings, search)


# ---- Before the training ----


class ChildPlan(NamedTuple):
    """The plan for training one child, before its text is read.

    Attributes:
        args: the training arguments.
        config: the configuration of the child.
        supernet: the super-net whose weights the child starts from; `None` for random weights.
    """

    args: TrainingArguments
    config: MagicConfig
    supernet: MagicForMaskedLM | None


class ChildStart(NamedTuple):
    """The starting point for training one child.

    Attributes:
        args: the training arguments.
        data: the text.
        config: the configuration of the child, fitted to the tokenizer.
        inherited: the child with the super-net's weights; `None` for random weights.
    """

    args: TrainingArguments
    data: PreparedData
    config: MagicConfig
    inherited: MagicForMaskedLM | None


def plan_child(settings: RetrainSettings, output_dir: str | Path) -> ChildPlan:
    """Checks everything that does not depend on the text, without writing anything.

    Raises:
        ValueError: the settings contradict each other.
    """
    if not settings.architecture:
        raise ValueError("no architecture is given; give a run with --search, or a child with --architecture")
    architecture = parse_architecture(settings.architecture)
    config = load_preset(settings.preset).child_config(architecture)
    args = pretraining_arguments(TrainingArguments, output_dir, settings.training_arguments, config.hidden_size)
    supernet = None if settings.inherit is None else load_supernet(settings.inherit)
    if supernet is not None:
        _check_inheritance(config, supernet.config, architecture)
    return ChildPlan(args, config, supernet)


def start_child(plan: ChildPlan, settings: RetrainSettings, teacher: PreTrainedConfig | None = None) -> ChildStart:
    """Reads the text and seeds the random generators.

    Args:
        plan: the result of `plan_child`.
        settings: the child and how to train it.
        teacher: the configuration of the teacher, if there is one.

    Raises:
        ValueError: the text does not fit the child.
    """
    with plan.args.main_process_first():
        data = load_data(settings.data, most_positions(plan.config, *([] if teacher is None else [teacher])))
    config = fit_to_text(plan.config, data)
    settle_length(plan.args, settings.training_arguments, data)
    tell_training(plan.args, data)
    set_seed(plan.args.seed)
    inherited = None if plan.supernet is None else _inherited_child(config, plan.supernet, data, settings)
    return ChildStart(plan.args, data, config if inherited is None else inherited.config, inherited)


# ---- The training ----


def _train(run: Run, start: ChildStart, settings: RetrainSettings, search: dict[str, Any] | None) -> dict[str, Any]:
    model, args, data = start.inherited or MagicForMaskedLM(start.config), start.args, start.data
    model.config.sparse_prediction = True
    judged = (settings.mlm_probability, args.per_device_eval_batch_size, settings.num_validation_sequences)
    batches = judging_batches(data, *judged)
    trainer = ResumableTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    show_progress(trainer, ["loss", "learning_rate"])
    seconds = finish_training(trainer)
    val_loss, val_accuracy = evaluate_child(model, batches, accelerator=trainer.accelerator)
    objective = f"masked language modelling, {settings.mlm_probability:.0%} of the tokens, 80/10/10"
    result = {
        **describe_model(model.config),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "judged_on": judging_record(trainer.accelerator, *judged),
        **compute_record(trainer, data, child_flops(model.config, settings, data)),
        **training_record(trainer, settings, data, seconds, objective),
    }
    return run.finish(result, partial(export_trained, model, data, run, search=search))


def compute_record(trainer: Trainer, data: PreparedData, flops: Callable[[int], float]) -> dict[str, Any]:
    """Returns the cost of a training.

    Args:
        trainer: the trainer after training.
        data: the data it was trained on.
        flops: the training FLOPs as a function of the number of tokens.
    """
    steps, num_tokens = trainer.state.global_step, tokens_per_step(trainer.args, data.block_size)
    return {"steps": steps, "tokens_per_step": num_tokens, "training_flops": steps * flops(num_tokens)}


def child_flops(config: MagicConfig, settings: RetrainSettings, data: PreparedData) -> Callable[[int], float]:
    """Returns the training FLOPs of a child as a function of the number of tokens."""
    return lambda num_tokens: training_flops(
        config, config.chain, data.block_size, num_tokens, settings.mlm_probability
    )


def training_record(
    trainer: Trainer, settings: RetrainSettings, data: PreparedData, seconds: float, objective: str
) -> dict[str, Any]:
    """Returns the record of every training of a child, in addition to the model and its scores."""
    return {
        "seed": trainer.args.seed,
        "seconds": seconds,
        "start": "the super-net's weights" if settings.inherit else "random weights",
        "objective": objective,
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
    }


def export_trained(
    model: MagicForMaskedLM,
    data: PreparedData,
    run: Run,
    result: dict[str, Any],
    search: dict[str, Any] | None,
    further: tuple[str, ...] = (),
) -> Path:
    """Writes the model of a run, with its result in the manifest and the result's `further` keys under training."""
    manifest = training_manifest(result, search)
    manifest["training"] |= {key: result[key] for key in further}
    return export_model(model, data.tokenizer, run.folder / MODEL_FOLDER, manifest)


def _check_inheritance(config: MagicConfig, supernet: MagicConfig, architecture: Architecture) -> None:
    """Raises a ValueError if a child of `config` cannot take the super-net's weights."""
    SearchSpace.from_config(supernet.candidate_operators).check(architecture)
    for name in ("hidden_size", "intermediate_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
        own, other = getattr(config, name), getattr(supernet, name)
        if own != other:
            raise ValueError(
                f"{name} is {own} in the preset but {other} in the super-net to inherit from; use the super-net's "
                f"folder as the preset"
            )


def _inherited_child(
    config: MagicConfig, supernet: MagicForMaskedLM, data: PreparedData, settings: RetrainSettings
) -> MagicForMaskedLM:
    """Returns the child with the super-net's weights and those settings of the preset that do not affect sizes."""
    check_vocabulary(str(settings.inherit), data)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(supernet.config, name, getattr(config, name))
    return supernet.extract_child(parse_architecture(settings.architecture))


def follow_search(
    run: str | Path, recipe: dict[str, Any], inherit: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a retrain recipe that follows a finished super-net run or search, and the record of the search.

    The child, the text and the tokenizer are those of the search unless the recipe sets them. The sizes are always
    those of the super-net.

    Args:
        run: the folder of the super-net run, or of a search in one.
        recipe: a recipe for retrain, which may be empty.
        inherit: whether the child starts from the super-net's weights.

    Raises:
        ValueError: the run has not finished, or is of another kind.
    """
    run = Path(run)
    record, settings = read_search(run), read_settings(run)
    supernet = str(supernet_folder(settings.get("supernet", run)))
    followed = {
        "architecture": format_architecture(record["architecture"]),
        **recipe,
        "preset": supernet,
        "data": {**settings["data"], "tokenizer": supernet, **mapping_of("data", recipe)},
    }
    return ({**followed, "inherit": supernet} if inherit else followed), record
