"""The run of replaced-token detection, which trains one child as ELECTRA's discriminator, with a generator."""

from pathlib import Path
from typing import Any

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicForPreTraining

from ..data.text import MaskingCollator, PreparedData
from ..hub.export import describe_model, summarise, training_manifest
from ..runs.folders import MODEL_FOLDER, Run, bars_off, finished_result, open_run
from ..runs.training import finish_training
from ..space.search_space import parse_architecture
from .retrain import ChildStart, compute_record, plan_child, start_child, training_record
from .rtd import ReplacedTokenTrainer, export_pair, rtd_training_flops
from .rtd_model import ReplacedTokenModel, generator_config
from .settings import RtdSettings


GENERATOR_FOLDER = "generator"
OBJECTIVE = "replaced-token detection (ELECTRA): a generator fills masked positions, the discriminator finds them"


@bars_off()
def retrain_rtd(settings: RtdSettings, output_dir: str | Path, search: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains one child by replaced-token detection (5.1) and returns its result, validated on the held-out text.

    The folder then contains `model/`, the discriminator for `AutoModelForPreTraining`, `generator/` for
    `AutoModelForMaskedLM`, and result.json. A stopped run is resumed; a finished run returns its result.

    Args:
        settings: the child, its generator and how to train them.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict each other, or the folder contains another run.
    """
    if (result := finished_result(output_dir, settings)) is not None:
        return result
    plan = plan_child(settings, output_dir)
    _generator_of(plan.config, settings)
    start = start_child(plan, settings)
    with open_run(output_dir, settings, plan.args.should_save, start.data.hashes) as run:
        return run.result or _train(run, start, settings, search)


def _generator_of(config: MagicConfig, settings: RtdSettings) -> MagicConfig:
    chain = parse_architecture(settings.generator_architecture) if settings.generator_architecture else None
    return generator_config(config, settings.generator_fraction, chain)


def _build_model(config: MagicConfig, child: MagicForMaskedLM | None, settings: RtdSettings) -> ReplacedTokenModel:
    generator = MagicForMaskedLM(_generator_of(config, settings))
    discriminator = MagicForPreTraining(config)
    if child is not None:
        discriminator.magic.load_state_dict(child.magic.state_dict())
    return ReplacedTokenModel(generator=generator, discriminator=discriminator)


def _train(run: Run, start: ChildStart, settings: RtdSettings, search: dict[str, Any] | None) -> dict[str, Any]:
    model, args, data = _build_model(start.config, start.inherited, settings), start.args, start.data
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
        **_describe(trainer, data, settings),
        **_validate(trainer, data, settings),
        **training_record(trainer, settings, data, seconds, OBJECTIVE),
    }
    folders = (run.folder / MODEL_FOLDER, run.folder / GENERATOR_FOLDER)
    return run.finish(result, lambda result: export_pair(model, data.tokenizer, *folders, *_manifests(result, search)))


def _describe(trainer: ReplacedTokenTrainer, data: PreparedData, settings: RtdSettings) -> dict[str, Any]:
    """Returns the description of both models and the cost of their training."""
    discriminator, generator = trainer.model.discriminator.config, trainer.model.generator.config
    assert isinstance(discriminator, MagicConfig)
    assert isinstance(generator, MagicConfig)

    def flops(num_tokens: int) -> float:
        return rtd_training_flops(discriminator, generator, data.block_size, num_tokens, settings.mlm_probability)

    return {
        **describe_model(discriminator, "rtd"),
        "generator": {**describe_model(generator), "hidden_size": generator.hidden_size},
        "rtd_weight": settings.rtd_weight,
        **compute_record(trainer, data, flops),
    }


def _validate(trainer: ReplacedTokenTrainer, data: PreparedData, settings: RtdSettings) -> dict[str, Any]:
    """Returns the discriminator's loss and accuracy on the held-out text, and all other metrics measured there."""
    # The masks of the validation text do not depend on the run's seed, so runs are compared on the same tokens.
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
    """Returns the manifests of the discriminator and the generator, each with its own result."""
    manifest = training_manifest(result, search)
    manifest["training"] |= {key: result[key] for key in ("generator", "rtd_weight", "validation")}
    validation = result["validation"]
    own = {"val_loss": validation["loss_mlm"], "val_accuracy": validation["generator_accuracy"]}
    row = summarise("the generator", [{**result, **result["generator"], **own}])
    return manifest, {**manifest, "search": None, "results": [row]}
