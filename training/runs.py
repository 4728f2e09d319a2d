"""Runs: a super-net trained, a child re-trained, each in a folder of its own that a later call continues."""

import difflib
import json
import logging
import platform
import time
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import AutoModelForMaskedLM, AutoTokenizer, Trainer, TrainingArguments, set_seed
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.utils import logging as hf_logging

from modeling_magic import MagicConfig, MagicForMaskedLM

from .costs import training_flops
from .data import MaskingCollator, PreparedData, prepare_data
from .evaluation import RankedChild, evaluate_child, validation_batches
from .hub import describe_model, export_model, load_preset
from .search_space import Architecture, SearchSpace, format_architecture, parse_architecture
from .trainer import (
    MagicTrainer,
    MagicTrainingArguments,
    PostfixProgressCallback,
    check_search,
    last_complete_checkpoint,
    write_json,
)


logger = logging.getLogger(__name__)

RUN_NAME = "run.json"
RESULT_NAME = "result.json"
SUPERNET_FOLDER = "supernet"
MODEL_FOLDER = "model"


@dataclass(frozen=True)
class DataSettings:
    """Where the text comes from and how it is cut into blocks; the keys of `data` in a recipe."""

    source: str | None = None
    dataset_config: str | None = None
    split: str = "train"
    text_column: str = "text"
    streaming: bool = False
    max_documents: int | None = None
    tokenizer: str | None = None
    vocab_size: int = 8192
    block_size: int = 128
    validation_fraction: float = 0.02
    seed: int = 0


@dataclass(frozen=True)
class PretrainSettings:
    """What a super-net run does; the keys of a recipe for `magic-nas pretrain`."""

    preset: str = "magic-tiny"
    mlm_probability: float = 0.15
    data: DataSettings = field(default_factory=DataSettings)
    training_arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RetrainSettings:
    """What the training of one child does; the keys of a recipe for `magic-nas retrain`.

    Attributes:
        preset: sizes of the model; its operators are replaced by the architecture's.
        architecture: one operator name a layer, as text.
        inherit: folder of a super-net whose weights the child starts from; left out, it starts from random ones.
    """

    preset: str = "magic-tiny"
    architecture: str = ""
    inherit: str | None = None
    mlm_probability: float = 0.15
    num_validation_sequences: int = 256
    data: DataSettings = field(default_factory=DataSettings)
    training_arguments: dict[str, Any] = field(default_factory=dict)


def load_recipe(name_or_path: str | None) -> dict[str, Any]:
    """Returns what a recipe says: one of hub_configs/recipes by name, or a YAML file.

    Raises:
        ValueError: there is no such recipe, or it is no YAML mapping.
    """
    if name_or_path is None:
        return {}
    packaged = files("hub_configs").joinpath("recipes", f"{name_or_path}.yaml")
    path = packaged if packaged.is_file() else Path(name_or_path)
    if not path.is_file():
        names = sorted(item.name.removesuffix(".yaml") for item in files("hub_configs").joinpath("recipes").iterdir())
        raise ValueError(f"there is no recipe {name_or_path!r}; choose one of {', '.join(names)}, or give a YAML file")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{name_or_path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"{name_or_path} is not a recipe: a YAML mapping is expected")
    return recipe


def settings_from(kind: type, recipe: dict[str, Any], changes: dict[str, Any] | None = None) -> Any:
    """Returns settings of `kind` from a recipe, `changes` winning over it; every key is checked.

    Args:
        kind: PretrainSettings or RetrainSettings.
        recipe: as `load_recipe` returns it.
        changes: keys as in a recipe; `data` and `training_arguments` are merged key by key, `None` changes nothing.
    """
    changes = {key: value for key, value in (changes or {}).items() if value is not None}
    merged = {**recipe, **changes}
    for section in ("data", "training_arguments"):
        merged[section] = {**_mapping(section, recipe), **_mapping(section, changes)}
    arguments = MagicTrainingArguments if kind is PretrainSettings else TrainingArguments
    merged = _checked("recipe", merged, kind)
    merged["training_arguments"] = _checked("training_arguments", merged["training_arguments"], arguments)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if (value := merged["training_arguments"].get(name, 1)) < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1")
    return kind(**{**merged, "data": DataSettings(**_checked("data", merged["data"], DataSettings))})


def _mapping(section: str, values: dict[str, Any]) -> dict[str, Any]:
    found = values.get(section) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{section} is {found!r} in the recipe; it must be a mapping of keys to values")
    return found


def _checked(section: str, values: dict[str, Any], kind: Any) -> dict[str, Any]:
    """Returns `values` with numbers as numbers; raises a ValueError where `kind` has no such field or another type."""
    known = {item.name: item.default for item in fields(kind) if item.name != "output_dir"}
    checked = {}
    for key, value in values.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1)
            remedy = f"did you mean {close[0]!r}?" if close else f"known keys: {', '.join(sorted(known))}"
            raise ValueError(f"unknown key {key!r} in {section}; {remedy}")
        checked[key] = value
        if isinstance(default := known[key], int | float):
            checked[key] = _number(key, value, default)
    return checked


def _number(key: str, value: Any, default: float) -> Any:
    if isinstance(value, str):
        # YAML takes 1e-3 for text: a number has a point there.
        try:
            value = float(value)
        except ValueError:
            wanted = "true or false" if isinstance(default, bool) else "a number"
            raise ValueError(f"{key} is {value!r}; it must be {wanted}") from None
    return int(value) if isinstance(value, float) and isinstance(default, int) and value.is_integer() else value


def _training_arguments(kind: type, output_dir: Path, given: dict[str, Any]) -> Any:
    defaults = {
        "report_to": "none",
        "save_total_limit": 2,
        "logging_steps": 10,
        "dataloader_pin_memory": torch.cuda.is_available(),
    }
    return kind(output_dir=str(output_dir), **{**defaults, **given})


# ---- Run folders ----


def check_run_folder(output_dir: Path, command: str, settings: Any) -> None:
    """Raises a ValueError where `output_dir` holds another run or something else; the same run may go on there."""
    path = output_dir / RUN_NAME
    if path.is_file():
        found, wanted = json.loads(path.read_text(encoding="utf-8")), _describe_run(command, settings)
        if found != wanted:
            raise ValueError(
                f"{output_dir} holds another run ({_difference(found, wanted)}); take another --output-dir"
            )
    elif output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        raise ValueError(f"{output_dir} is not empty and holds no run; take another --output-dir")


def claim_run_folder(output_dir: Path, command: str, settings: Any) -> None:
    """Makes `output_dir` the folder of a run."""
    output_dir.mkdir(parents=True, exist_ok=True)
    write_json(output_dir / RUN_NAME, _describe_run(command, settings))


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
    if block_size > config.max_position_embeddings:
        raise ValueError(
            f"block_size is {block_size} but the model has {config.max_position_embeddings} positions; take a smaller "
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
    args = _training_arguments(MagicTrainingArguments, output_dir, settings.training_arguments)
    check_search(config, args)
    check_run_folder(output_dir, "pretrain", settings)
    if (result := read_result(output_dir)) is not None:
        return result
    hf_logging.disable_progress_bar()
    with args.main_process_first():
        data = load_data(settings.data)
    config = fit_to_tokenizer(config, data, settings.data.block_size)
    with args.main_process_first(local=False):
        claim_run_folder(output_dir, "pretrain", settings)
    set_seed(args.seed)
    model = MagicForMaskedLM(config)
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
        "seconds": time.perf_counter() - start,
        "shrink_history": trainer.shrink_history,
        "anchor_history": trainer.anchor_history,
        "visits": trainer.visits,
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        model.save_pretrained(output_dir / SUPERNET_FOLDER)
        data.tokenizer.save_pretrained(output_dir / SUPERNET_FOLDER)
        write_json(output_dir / RESULT_NAME, result)
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
    args = _training_arguments(TrainingArguments, output_dir, settings.training_arguments)
    architecture = parse_architecture(settings.architecture)
    config = load_preset(settings.preset).child_config(architecture)
    check_run_folder(output_dir, "retrain", settings)
    if (result := read_result(output_dir)) is not None:
        return result
    hf_logging.disable_progress_bar()
    with args.main_process_first():
        data = load_data(settings.data)
    config = fit_to_tokenizer(config, data, settings.data.block_size)
    with args.main_process_first(local=False):
        claim_run_folder(output_dir, "retrain", settings)
    set_seed(args.seed)
    model = _child_model(config, architecture, settings.inherit)
    model.config.sparse_prediction = True
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
    start = time.perf_counter()
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    seconds = time.perf_counter() - start
    # The masks of the validation text do not depend on the run's seed, so that runs compare on the same tokens.
    judge = MaskingCollator(data.tokenizer, mlm_probability=settings.mlm_probability, seed=0)
    batches = validation_batches(
        data.validation, judge, args.per_device_eval_batch_size, settings.num_validation_sequences
    )
    val_loss, val_accuracy = evaluate_child(model, batches, accelerator=trainer.accelerator)
    tokens_per_step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    tokens_per_step *= settings.data.block_size
    result = {
        **describe_model(config),
        "val_loss": val_loss,
        "val_accuracy": val_accuracy,
        "steps": trainer.state.global_step,
        "tokens_per_step": tokens_per_step,
        "training_flops": trainer.state.global_step
        * training_flops(config, architecture, settings.data.block_size, tokens_per_step),
        "seed": args.seed,
        "seconds": seconds,
        "start": "the super-net's weights" if settings.inherit else "random weights",
        "log_history": trainer.state.log_history,
        "corpus": data.fingerprint,
        "versions": versions(),
    }
    # As it will be read back: lists, not tuples.
    result = json.loads(json.dumps(result))
    if trainer.is_world_process_zero():
        export_model(model, data.tokenizer, output_dir / MODEL_FOLDER, training_manifest(result, search))
        write_json(output_dir / RESULT_NAME, result)
    return result


def follow_search(
    run: str | Path, recipe: dict[str, Any], inherit: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns a retrain recipe that follows a finished super-net run, and the record of that search.

    The child, the sizes and the text are the search's where the recipe does not say otherwise; the tokenizer is the
    one that the super-net was trained with.

    Args:
        run: folder of the super-net run.
        recipe: a recipe for retrain, which may be empty.
        inherit: whether the child starts from the super-net's weights.

    Raises:
        ValueError: the run has not ended, or is none.
    """
    run = Path(run)
    record, supernet = read_search(run), str(run / SUPERNET_FOLDER)
    settings = json.loads((run / RUN_NAME).read_text(encoding="utf-8"))["settings"]
    followed = {
        "preset": supernet,
        "architecture": format_architecture(record["architecture"]),
        **recipe,
        "data": {**settings["data"], "tokenizer": supernet, **(recipe.get("data") or {})},
    }
    return ({**followed, "inherit": supernet} if inherit else followed), record


def read_search(run: str | Path) -> dict[str, Any]:
    """Returns the result of a finished super-net run.

    Raises:
        ValueError: the run has not ended, or is none.
    """
    record = read_result(Path(run))
    if record is None or "candidate_operators" not in record:
        raise ValueError(f"{run} holds no finished super-net run; run `magic-nas pretrain --output-dir {run}` first")
    return record


def training_manifest(result: dict[str, Any], search: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the manifest of a re-trained child from its result and the record of its search."""
    kept = ("steps", "tokens_per_step", "training_flops", "seed", "start", "corpus", "versions")
    return {
        "search": search_manifest(search),
        "training": {key: result[key] for key in kept},
        "results": [summarise("this model", [result])],
    }


def search_manifest(search: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns what a manifest tells of a search: its record without the logs."""
    if search is None:
        return None
    return {key: value for key, value in search.items() if key not in ("log_history", "visits", "seconds")}


def summarise(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one row of a results table from the runs of one architecture, one for each seed."""
    first = results[0]
    return {
        "name": name,
        **{key: first[key] for key in ("architecture", "num_parameters", "flops", "steps", "training_flops")},
        **{key: [result[key] for result in results] for key in ("val_loss", "val_accuracy", "seed")},
    }


def _child_model(config: MagicConfig, architecture: Architecture, inherit: str | None) -> MagicForMaskedLM:
    if inherit is None:
        return MagicForMaskedLM(config)
    supernet = load_supernet(inherit)
    SearchSpace.from_config(supernet.config.candidate_operators).check(architecture)
    return supernet.extract_child(architecture)


def load_supernet(folder: str | Path) -> MagicForMaskedLM:
    """Returns the super-net of a run's folder, or of a model folder.

    Raises:
        ValueError: there is no model there.
    """
    folder = Path(folder)
    folder = folder / SUPERNET_FOLDER if (folder / SUPERNET_FOLDER).is_dir() else folder
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} holds no model; give the folder of a finished `magic-nas pretrain`")
    return AutoModelForMaskedLM.from_pretrained(folder)


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
