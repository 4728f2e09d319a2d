"""Runs: a super-net trained, a child re-trained, each in a folder of its own that a later call continues."""

import json
import logging
import platform
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock, Timeout
from huggingface_hub import ModelCard, ModelCardData
from safetensors import SafetensorError
from transformers import (
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import cached_file
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig, MagicForMaskedLM
from modeling_magic.conversion import chain_config, convert_from_magic, convert_to_magic, load_magic
from modeling_magic.warm_start import check_initialization, initialize_from

from .arguments import MagicTrainingArguments
from .checkpoints import last_complete_checkpoint, load_finished, write_json
from .costs import training_flops
from .data import MaskingCollator, PreparedData, prepare_data
from .evaluation import RankedChild, evaluate_child, validation_batches
from .hub import check_export_folder, describe_model, export_model, load_preset
from .search_space import SearchSpace, format_architecture, parse_architecture
from .settings import DataSettings, PretrainSettings, RetrainSettings, mapping_of
from .trainer import MagicTrainer, PostfixProgressCallback, check_search


logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
RESULT_NAME = "result.json"
# Of runs that are made of many trainings: those that have ended.
RECORDS_NAME = "runs.json"
LOCK_NAME = ".lock"
SUPERNET_FOLDER = "supernet"
MODEL_FOLDER = "model"


def training_arguments(kind: type, output_dir: Path, given: dict[str, Any]) -> Any:
    """Returns arguments of `kind` from those that a recipe gives and the defaults of runs.

    Raises:
        ValueError: a value is refused, or asks for what is not installed.
    """
    defaults = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 10,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    try:
        return kind(output_dir=str(output_dir), **{**defaults, **given})
    except (TypeError, ImportError, RuntimeError) as error:
        raise ValueError(f"training_arguments: {error}") from None


# ---- Run folders ----


def check_run_folder(output_dir: Path, command: str, settings: Any) -> None:
    """Raises a ValueError where `output_dir` holds another run or something else; the same run may go on there.

    A run that has neither a checkpoint nor a result nor records has lost nothing: its folder may be taken by another.
    The runs within a run count as its own.
    """
    path = output_dir / RUN_NAME
    if path.is_file():
        found, wanted = json.loads(path.read_text(encoding="utf-8")), _describe_run(command, settings)
        if found != wanted and _has_begun(output_dir):
            raise ValueError(
                f"{output_dir} holds another run ({_difference(found, wanted)}); take another --output-dir"
            )
    elif output_dir.exists():
        own = (LOCK_NAME, f"{RUN_NAME}.")
        if not output_dir.is_dir() or any(not item.name.startswith(own) for item in output_dir.iterdir()):
            raise ValueError(f"{output_dir} is not empty and holds no run; take another --output-dir")


def _has_begun(run: Path) -> bool:
    written = any((run / name).is_file() for name in (RESULT_NAME, RECORDS_NAME))
    if written or last_complete_checkpoint(run) is not None:
        return True
    return any(_has_begun(path.parent) for path in run.glob(f"*/*/{RUN_NAME}"))


@contextmanager
def claim_run_folder(output_dir: Path, command: str, settings: Any, should_save: bool) -> Iterator[None]:
    """Makes `output_dir` the folder of a run, this process's (and its ranks') alone until the context ends.

    Args:
        should_save: whether this rank is the one that writes the run's files.

    Raises:
        ValueError: another process works in the folder.
    """
    output_dir.mkdir(parents=True, exist_ok=True)
    if not should_save:
        yield
        return
    try:
        with FileLock(output_dir / LOCK_NAME, timeout=0):
            write_json(output_dir / RUN_NAME, _describe_run(command, settings))
            yield
    except Timeout:
        raise ValueError(f"another process works in {output_dir}; wait for it, or take another --output-dir") from None


def _describe_run(command: str, settings: Any) -> dict[str, Any]:
    return json.loads(json.dumps({"command": command, "settings": asdict(settings)}))


def _difference(found: dict[str, Any], wanted: dict[str, Any]) -> str:
    if found["command"] != wanted["command"]:
        return f"of {found['command']}, not {wanted['command']}"
    for key, value in wanted["settings"].items():
        other = found["settings"].get(key)
        if isinstance(value, dict) and isinstance(other, dict):
            for name in sorted(value.keys() | other.keys()):
                if value.get(name) != other.get(name):
                    return f"{key}.{name} is {other.get(name)!r} there, {value.get(name)!r} here"
        elif other != value:
            return f"{key} is {other!r} there, {value!r} here"
    return "of another version"


def read_result(output_dir: Path) -> dict[str, Any] | None:
    """Returns the result of a run that has ended, else `None`."""
    path = output_dir / RESULT_NAME
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def versions() -> dict[str, str]:
    """Returns the versions that a result depends on."""
    packages = ("magic-nas", "torch", "transformers", "tokenizers")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}


def load_data(settings: DataSettings) -> PreparedData:
    """Returns the packed blocks, the tokenizer and the fingerprint of the text (see `prepare_data`)."""
    return prepare_data(**asdict(settings))


def fit_to_tokenizer(config: MagicConfig, data: PreparedData, block_size: int) -> MagicConfig:
    """Returns the configuration with the tokenizer's vocabulary and pad token.

    Raises:
        ValueError: the blocks are longer than the model's positions.
    """
    if block_size > config.max_sequence_length:
        raise ValueError(
            f"block_size is {block_size} but the model has {config.max_sequence_length} positions; take a smaller "
            f"block_size or a preset with more positions"
        )
    config.vocab_size = len(data.tokenizer)
    config.pad_token_id = data.tokenizer.pad_token_id
    return config


# ---- The super-net ----


def pretrain(settings: PretrainSettings, output_dir: str | Path) -> dict[str, Any]:
    """Trains a super-net (5.1) and returns the result: the child found, its score and the history of the search.

    The folder then holds `supernet/` (a model folder of all operators), result.json and the checkpoints. A run that
    was stopped is continued, one that has ended returns its result.

    Raises:
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    # All checks that need no text come first, and nothing is written before the text has been read.
    config = load_preset(settings.preset)
    args = training_arguments(MagicTrainingArguments, output_dir, settings.training_arguments)
    # The preset's vocabulary may be larger than the tokenizer's, which a budget must not be held to.
    check_search(config, args, vocabulary=False)
    if settings.init_from is not None:
        check_initialization(config, settings.init_from, vocabulary=False)
    check_run_folder(output_dir, "pretrain", settings)
    if (result := read_result(output_dir)) is not None:
        return result
    hf_logging.disable_progress_bar()
    with args.main_process_first():
        data = load_data(settings.data)
    config = fit_to_tokenizer(config, data, settings.data.block_size)
    check_search(config, args)
    set_seed(args.seed)
    model = MagicForMaskedLM(config)
    # A run that goes on has all weights in its checkpoint, and its start may be gone.
    if settings.init_from is not None and last_complete_checkpoint(output_dir) is None:
        logger.info("%s", initialize_from(model, settings.init_from))
    with claim_run_folder(output_dir, "pretrain", settings, args.should_save):
        return _train_supernet(model, data, args, settings)


def _train_supernet(
    model: MagicForMaskedLM, data: PreparedData, args: MagicTrainingArguments, settings: PretrainSettings
) -> dict[str, Any]:
    output_dir = Path(str(args.output_dir))
    trainer = MagicTrainer(
        model=model,
        args=args,
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed),
        processing_class=data.tokenizer,
    )
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir) is not None)
    found = trainer.best_child()
    result = {
        **_search_record(trainer, found),
        "init_from": settings.init_from,
        **supernet_facts(trainer, data, time.perf_counter() - start),
    }
    return save_supernet(trainer, model, data, result)


def supernet_facts(trainer: MagicTrainer, data: PreparedData, seconds: float) -> dict[str, Any]:
    """Returns what every super-net run has on record beside the child that it found."""
    return {
        "seconds": seconds,
        "shrink_history": trainer.shrink_history,
        "anchor_history": trainer.anchor_history,
        "visits": trainer.visits,
        "health": trainer.health.to_json(),
        "budget": str(trainer.budget),
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }


def save_supernet(
    trainer: MagicTrainer, model: MagicForMaskedLM, data: PreparedData, result: dict[str, Any]
) -> dict[str, Any]:
    """Writes super-net, tokenizer and result into the run's folder, and returns the result as it reads back."""
    output_dir = Path(str(trainer.args.output_dir))
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        model.save_pretrained(output_dir / SUPERNET_FOLDER)
        data.tokenizer.save_pretrained(output_dir / SUPERNET_FOLDER)
        write_json(output_dir / RESULT_NAME, result)
    # What the other processes do next may read these files.
    trainer.accelerator.wait_for_everyone()
    return result


def _search_record(trainer: MagicTrainer, found: RankedChild) -> dict[str, Any]:
    args = trainer.args
    return {
        **asdict(found),
        "candidate_operators": trainer.full_space.to_json(),
        "space": trainer.space.to_json(),
        "sampler": args.sampler if args.sampler != "gradual" else f"gradual, k = {args.num_substitutions}",
        "alignment": args.alignment,
        "alignment_weight": args.alignment_weight if args.alignment != "none" else None,
        "steps": trainer.state.global_step,
        "seed": args.seed,
    }


# ---- One child ----


def retrain(settings: RetrainSettings, output_dir: str | Path, search: dict[str, Any] | None = None) -> dict[str, Any]:
    """Trains one child with the masked-LM objective (5.1) and returns its result, validated on the held-out text.

    The folder then holds `model/`, an export that `AutoModelForMaskedLM` loads, and result.json. A run that was
    stopped is continued, one that has ended returns its result.

    Args:
        settings: the child and how to train it.
        output_dir: the run's folder.
        search: the record of the search that found the architecture, for the manifest.

    Raises:
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    output_dir = Path(output_dir)
    run = begin_child_run(settings, output_dir, "retrain")
    if run is None:
        return json.loads((output_dir / RESULT_NAME).read_text(encoding="utf-8"))
    model = run.inherited or MagicForMaskedLM(run.config)
    with claim_run_folder(output_dir, "retrain", settings, run.args.should_save):
        return _train_child(model, run.data, run.args, settings, search)


class ChildRun(NamedTuple):
    """What the training of one child begins with.

    Attributes:
        args: how to train.
        data: the text.
        config: the child's, fitted to the tokenizer.
        inherited: the child with the super-net's weights, `None` where it starts from random ones.
    """

    args: TrainingArguments
    data: PreparedData
    config: MagicConfig
    inherited: MagicForMaskedLM | None


def child_of(settings: RetrainSettings) -> MagicConfig:
    """Returns the sizes and the architecture that the settings name."""
    return load_preset(settings.preset).child_config(parse_architecture(settings.architecture))


def begin_child_run(settings: RetrainSettings, output_dir: Path, command: str) -> ChildRun | None:
    """Checks the settings and the folder, reads the text and seeds; returns `None` where the run has ended.

    All checks that need no text come first, and nothing is written.

    Raises:
        ValueError: the settings contradict one another, or the folder holds another run.
    """
    args = training_arguments(TrainingArguments, output_dir, settings.training_arguments)
    config = child_of(settings)
    supernet = None if settings.inherit is None else load_supernet(settings.inherit)
    if supernet is not None:
        _check_inheritance(config, supernet.config)
    check_run_folder(output_dir, command, settings)
    if read_result(output_dir) is not None:
        return None
    hf_logging.disable_progress_bar()
    with args.main_process_first():
        data = load_data(settings.data)
    config = fit_to_tokenizer(config, data, settings.data.block_size)
    set_seed(args.seed)
    inherited = None if supernet is None else _inherited_child(config, supernet, data, settings)
    return ChildRun(args, data, config if inherited is None else inherited.config, inherited)


def finish_training(trainer: Trainer) -> float:
    """Trains from the start or from the last complete checkpoint to the end; returns the seconds that this took."""
    start = time.perf_counter()
    checkpoint = last_complete_checkpoint(str(trainer.args.output_dir))
    if checkpoint is None or not load_finished(trainer, checkpoint):
        trainer.train(resume_from_checkpoint=checkpoint)
    return time.perf_counter() - start


def _train_child(
    model: MagicForMaskedLM,
    data: PreparedData,
    args: TrainingArguments,
    settings: RetrainSettings,
    search: dict[str, Any] | None,
) -> dict[str, Any]:
    output_dir, config = Path(str(args.output_dir)), model.config
    config.sparse_prediction = True
    # The masks of the validation text do not depend on the run's seed, so that runs compare on the same tokens.
    judge = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=0)
    batches = validation_batches(
        data.validation, judge, args.per_device_eval_batch_size, settings.num_validation_sequences
    )
    collator = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=args.seed)
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=data.train,
        data_collator=collator,
        processing_class=data.tokenizer,
    )
    trainer.pop_callback(PrinterCallback)
    if trainer.pop_callback(ProgressCallback) is not None:
        trainer.add_callback(PostfixProgressCallback(["loss", "learning_rate"]))
    seconds = finish_training(trainer)
    val_loss, val_accuracy = evaluate_child(model, batches, accelerator=trainer.accelerator)
    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    tokens_per_step *= settings.data.block_size
    architecture = [layer[0] for layer in config.candidate_operators]
    result = {
        **describe_model(config),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "steps": trainer.state.global_step,
        "tokens_per_step": tokens_per_step,
        "training_flops": trainer.state.global_step
        * training_flops(config, architecture, settings.data.block_size, tokens_per_step, settings.mlm_probability),
        "seed": args.seed,
        "seconds": seconds,
        "start": "the super-net's weights" if settings.inherit else "random weights",
        "objective": f"masked language modelling, {settings.mlm_probability:.0%} of the tokens, 80/10/10",
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        export_model(model, data.tokenizer, output_dir / MODEL_FOLDER, training_manifest(result, search))
        write_json(output_dir / RESULT_NAME, result)
    trainer.accelerator.wait_for_everyone()
    return result


def _check_inheritance(config: MagicConfig, supernet: MagicConfig) -> None:
    """Raises a ValueError where a child of `config` cannot hold the super-net's weights."""
    SearchSpace.from_config(supernet.candidate_operators).check([layer[0] for layer in config.candidate_operators])
    for name in ("hidden_size", "intermediate_size", "embedding_size", "max_position_embeddings", "type_vocab_size"):
        own, other = getattr(config, name), getattr(supernet, name)
        if own != other:
            raise ValueError(
                f"{name} is {own} in the preset but {other} in the super-net to inherit from; take the super-net's "
                f"folder as the preset"
            )


def _inherited_child(
    config: MagicConfig, supernet: MagicForMaskedLM, data: PreparedData, settings: RetrainSettings
) -> MagicForMaskedLM:
    """Returns the child with the super-net's weights and, where sizes do not depend on it, the preset's settings."""
    check_vocabulary(str(settings.inherit), data)
    for name in ("hidden_dropout_prob", "attention_probs_dropout_prob"):
        setattr(supernet.config, name, getattr(config, name))
    return supernet.extract_child([layer[0] for layer in config.candidate_operators])


def check_vocabulary(supernet: str, data: PreparedData) -> None:
    """Raises a ValueError where the text was cut into other words than the super-net's embeddings stand for."""
    trained_with = AutoTokenizer.from_pretrained(supernet_folder(supernet))
    if trained_with.get_vocab() != data.tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer has another vocabulary ({len(data.tokenizer)} tokens) than the super-net's "
            f"({len(trained_with)}), so that its embeddings mean other words; set data.tokenizer to {supernet}"
        )


def follow_search(
    run: str | Path, recipe: dict[str, Any], inherit: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a retrain recipe that follows a finished super-net run or search, and the record of the search.

    The child, the text and the tokenizer are the search's where the recipe does not say otherwise, the sizes are the
    super-net's in any case.

    Args:
        run: folder of the super-net run, or of a search in one.
        recipe: a recipe for retrain, which may be empty.
        inherit: whether the child starts from the super-net's weights.

    Raises:
        ValueError: the run has not ended, or is none.
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


def read_settings(run: str | Path) -> dict[str, Any]:
    """Returns the settings that a run was started with."""
    return json.loads((Path(run) / RUN_NAME).read_text(encoding="utf-8"))["settings"]


def read_search(run: str | Path) -> dict[str, Any]:
    """Returns the result of a finished super-net run, or of a search.

    Raises:
        ValueError: the run has not ended, or is none.
    """
    record = read_result(Path(run))
    if record is None or "candidate_operators" not in record:
        raise ValueError(f"{run} holds no finished super-net run; run `magic-nas pretrain --output-dir {run}` first")
    return record


def training_manifest(result: dict[str, Any], search: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the manifest of a re-trained child from its result and the record of its search."""
    kept = ("objective", "steps", "tokens_per_step", "training_flops", "seed", "start", "corpus", "versions")
    return {
        "search": search_manifest(search),
        "training": {key: result[key] for key in kept},
        "results": [summarise("this model", [result])],
    }


def search_manifest(search: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns what a manifest tells of a search: its record without the logs."""
    if search is None:
        return None
    return {key: value for key, value in search.items() if key not in ("log_history", "visits", "health", "seconds")}


def summarise(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one row of a results table from the runs of one architecture, one for each seed."""
    first = results[0]
    return {
        "name": name,
        **{key: first[key] for key in ("architecture", "num_parameters", "flops", "steps", "training_flops")},
        **{key: [result[key] for result in results] for key in ("val_loss", "val_accuracy", "seed")},
    }


def load_supernet(folder: str | Path) -> MagicForMaskedLM:
    """Returns the super-net of a run's folder, or of a model folder.

    Raises:
        ValueError: there is no model there.
    """
    folder = supernet_folder(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model; give the folder of a finished `magic-nas pretrain`")
    try:
        return AutoModelForMaskedLM.from_pretrained(folder)
    except SafetensorError as error:
        raise ValueError(f"the weights in {folder} are cut off or damaged ({error}); copy them anew") from None


def supernet_folder(folder: str | Path) -> Path:
    """Returns where the model of a super-net run lies; any other folder is taken for the model's own."""
    inside = Path(folder) / SUPERNET_FOLDER
    return inside if inside.is_dir() else Path(folder)


def export_child(source: str | Path, output_dir: str | Path, architecture: str | None = None) -> Path:
    """Exports a child of a finished super-net run, with the weights it has there, and returns the folder.

    Args:
        source: a super-net run.
        output_dir: where to write the model folder.
        architecture: which child; left out, the one that the run found.

    Raises:
        ValueError: `source` is no finished run, or the architecture is not in its space.
    """
    source = Path(source)
    search = read_search(source)
    child = parse_architecture(architecture) if architecture else tuple(search["architecture"])
    model = load_supernet(source).extract_child(child)
    tokenizer = AutoTokenizer.from_pretrained(source / SUPERNET_FOLDER)
    found = list(child) == search["architecture"]
    return export_model(model, tokenizer, output_dir, {"search": search_manifest(search) if found else None})


def convert_checkpoint(
    source: str, output_dir: str | Path, to: str = "magic", tokenizer: str | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Writes a checkpoint as a model folder of another type; returns it and the names of the weights left out.

    Args:
        source: a folder or a name on the Hub: a BERT, RoBERTa or ELECTRA to become `"magic"`, or a MAGIC child to
            become one of these.
        output_dir: where to write; a MAGIC model as by `export_model`, others as transformers saves them.
        to: `"magic"`, `"bert"`, `"roberta"` or `"electra"`.
        tokenizer: a name or a folder; left out, the source's goes along.

    Raises:
        ValueError: the source cannot be converted, a tokenizer is named or needed that is not there, or `output_dir`
            holds something else.
    """
    output_dir = Path(output_dir)
    check_export_folder(output_dir)
    chain_config(source)
    found = _tokenizer_of(tokenizer or source)
    if to == MagicConfig.model_type and found is not None:
        magic, dropped = convert_to_magic(source)
        manifest = {"converted_from": source, "dropped_weights": list(dropped), **_card_facts(source)}
        return export_model(magic, found, output_dir, manifest), dropped
    if found is None and (to == MagicConfig.model_type or tokenizer is not None):
        raise ValueError(f"{tokenizer or source} holds no tokenizer; name one with --tokenizer")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        # It may be the source.
        raise ValueError(f"{output_dir} holds a MAGIC model; take another folder")
    model, dropped = convert_from_magic(load_magic(source), to)
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output_dir.name}-", dir=output_dir.parent) as temporary:
        written = Path(temporary) / output_dir.name
        model.save_pretrained(written)
        if found is not None:
            found.save_pretrained(written)
        # Over an empty folder, should there be one.
        written.rename(output_dir)
    return output_dir, dropped


def _tokenizer_of(name_or_path: str) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return None
    # A folder without a vocabulary gives a tokenizer that knows its special tokens only.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _card_facts(source: str) -> dict[str, Any]:
    """Returns the license and the language that the source's own model card states, `None` where it states none."""
    path = cached_file(
        source,
        "README.md",
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    data = ModelCard.load(path, ignore_metadata_errors=True).data if path is not None else ModelCardData()
    return {"license": data.license, "language": data.language}
