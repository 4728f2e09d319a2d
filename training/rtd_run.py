"""The run of replaced-token detection: one child trained as ELECTRA's discriminator, with a generator beside it."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicForPreTraining

from .checkpoints import write_json
from .data import MaskingCollator, PreparedData
from .hub import describe_model
from .rtd import RTD_WEIGHT, ReplacedTokenTrainer, export_pair, rtd_training_flops
from .rtd_model import GENERATOR_FRACTION, ReplacedTokenModel, generator_config
from .runs import (
    MODEL_FOLDER,
    RESULT_NAME,
    begin_child_run,
    child_of,
    claim_run_folder,
    finish_training,
    summarise,
    training_manifest,
    versions,
)
from .search_space import parse_architecture
from .settings import RetrainSettings


COMMAND = "retrain --objective rtd"
GENERATOR_FOLDER = "generator"
OBJECTIVE = "replaced-token detection (ELECTRA): a generator fills masked positions, the discriminator finds them"


@dataclass(frozen=True)
class RtdSettings(RetrainSettings):
    """What replaced-token detection of one child does; the keys of a recipe for `magic-nas retrain --objective rtd`.

    Attributes:
        generator_fraction: of the discriminator's width, see `generator_config`.
        generator_architecture: the generator's operators in its own sizes; left out, the discriminator's scaled.
        rtd_weight: of the discriminator's loss beside the generator's.
    """

    generator_fraction: float = GENERATOR_FRACTION
    generator_architecture: str = ""
    rtd_weight: float = RTD_WEIGHT


def retrain_rtd(settings: RtdSettings, output_dir: str | Path, search: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains one child by replaced-token detection (5.1) and returns its result, validated on the held-out text.

    The folder then holds `model/`, the discriminator, which `AutoModelForPreTraining` loads, `generator/`, which
    `AutoModelForMaskedLM` loads, and result.json. A run that was stopped is continued, one that has ended returns its
    result.

    Args:
        settings: the child, its generator and how to train them.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    if settings.rtd_weight < 0:
        raise ValueError(f"rtd_weight is {settings.rtd_weight}; it must not be negative")
    _generator_of(child_of(settings), settings)
    run = begin_child_run(settings, output_dir, COMMAND)
    if run is None:
        return json.loads((output_dir / RESULT_NAME).read_text(encoding="utf-8"))
    model = _build_model(run.config, run.inherited, settings)
    with claim_run_folder(output_dir, COMMAND, settings, run.args.should_save):
        return _train(model, run.data, run.args, settings, search)


def _generator_of(config: MagicConfig, settings: RtdSettings) -> MagicConfig:
    chain = parse_architecture(settings.generator_architecture) if settings.generator_architecture else None
    return generator_config(config, settings.generator_fraction, chain)


def _build_model(config: MagicConfig, child: MagicForMaskedLM | None, settings: RtdSettings) -> ReplacedTokenModel:
    generator = MagicForMaskedLM(_generator_of(config, settings))
    discriminator = MagicForPreTraining(config)
    if child is not None:
        discriminator.magic.load_state_dict(child.magic.state_dict())
    return ReplacedTokenModel(generator=generator, discriminator=discriminator)


def _train(
    model: ReplacedTokenModel,
    data: PreparedData,
    args: TrainingArguments,
    settings: RtdSettings,
    search: dict[str, Any] | None,
) -> dict[str, Any]:
    output_dir = Path(str(args.output_dir))
    trainer = ReplacedTokenTrainer(
        model,
        args,
        rtd_weight=settings.rtd_weight,
        train_dataset=data.train,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    seconds = finish_training(trainer)
    result = {
        **_describe(trainer, settings),
        **_validate(trainer, data, settings),
        "seed": args.seed,
        "seconds": seconds,
        "start": "the super-net's weights" if settings.inherit else "random weights",
        "objective": OBJECTIVE,
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        folders = (output_dir / MODEL_FOLDER, output_dir / GENERATOR_FOLDER)
        export_pair(model, data.tokenizer, *folders, *_manifests(result, search))
        write_json(output_dir / RESULT_NAME, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _describe(trainer: ReplacedTokenTrainer, settings: RtdSettings) -> dict[str, Any]:
    """Returns what both models are and what their training has cost."""
    args, steps, block_size = trainer.args, trainer.state.global_step, settings.data.block_size
    discriminator, generator = trainer.model.discriminator.config, trainer.model.generator.config
    assert isinstance(discriminator, MagicConfig)
    assert isinstance(generator, MagicConfig)
    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size * block_size
    of_a_step = rtd_training_flops(discriminator, generator, block_size, tokens_per_step, settings.mlm_probability)
    return {
        **describe_model(discriminator, "rtd"),
        "generator": {**describe_model(generator), "hidden_size": generator.hidden_size},
        "rtd_weight": settings.rtd_weight,
        "steps": steps,
        "tokens_per_step": tokens_per_step,
        "training_flops": steps * of_a_step,
    }


def _validate(trainer: ReplacedTokenTrainer, data: PreparedData, settings: RtdSettings) -> dict[str, Any]:
    """Returns the discriminator's loss and accuracy on the held-out text, and all else that was measured there."""
    # The masks of the validation text do not depend on the run's seed, so that runs compare on the same tokens.
    trainer.data_collator = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=0)
    kept = range(min(settings.num_validation_sequences, len(data.validation)))
    measured = trainer.evaluate(data.validation.select(kept))
    timing = ("runtime", "samples_per_second", "steps_per_second", "model_preparation_time")
    metrics = {name.removeprefix("eval_"): value for name, value in measured.items() if name != "epoch"}
    metrics = {name: value for name, value in metrics.items() if name not in timing}
    return {
        "val_loss": metrics["loss_rtd"],
        "val_accuracy": metrics["discriminator_accuracy"],
        "validation": metrics,
    }


def _manifests(result: dict[str, Any], search: dict[str, Any] | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the manifest of the discriminator and of the generator, each with its own result."""
    manifest = training_manifest(result, search)
    manifest["training"] |= {key: result[key] for key in ("generator", "rtd_weight", "validation")}
    validation = result["validation"]
    own = {"val_loss": validation["loss_mlm"], "val_accuracy": validation["generator_accuracy"]}
    row = summarise("the generator", [{**result, **result["generator"], **own}])
    return manifest, {**manifest, "search": None, "results": [row]}
