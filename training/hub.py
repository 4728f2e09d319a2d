"""Presets, and the export of a model as a folder that the Hub and `from_pretrained` take."""

import json
import math
import re
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatch
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import yaml
from huggingface_hub import EvalResult, EvalResultEntry, ModelCardData, eval_result_entries_to_yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

import modeling_magic
from modeling_magic import MagicConfig, MagicPreTrainedModel

from .costs import count_flops, count_parameters
from .figures import draw_architecture
from .search_space import Architecture, format_architecture


MANIFEST_NAME = "search.json"
CARD_NAME = "README.md"
FIGURE_NAME = "architecture.png"
# Where the exported code has what each Auto class loads.
AUTO_MAP = {
    "AutoConfig": "configuration_magic.MagicConfig",
    "AutoModel": "modeling_magic.MagicModel",
    "AutoModelForMaskedLM": "modeling_magic.MagicForMaskedLM",
    "AutoModelForMultipleChoice": "modeling_magic.MagicForMultipleChoice",
    "AutoModelForPreTraining": "modeling_magic.MagicForPreTraining",
    "AutoModelForQuestionAnswering": "modeling_magic.MagicForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_magic.MagicForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_magic.MagicForTokenClassification",
}
_TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".parquet")
CODE_FILES = ("configuration_magic.py", "modeling_magic.py")


@dataclass(frozen=True)
class Head:
    """What a model card and the figure say of a class.

    Attributes:
        auto_class: the Auto class that loads it.
        task: its task on the Hub, `None` where the Hub has none.
        kind: what such a model is, in words.
        name: the head's name in the figure; empty where there is none.
        flops: the head as `count_flops` names it.
    """

    auto_class: str
    task: str | None
    kind: str
    name: str
    flops: str = "none"


HEADS = {
    "MagicModel": Head("AutoModel", "feature-extraction", "A text encoder", ""),
    "MagicForMaskedLM": Head("AutoModelForMaskedLM", "fill-mask", "A masked language model", "masked-LM head", "mlm"),
    "MagicForPreTraining": Head(
        "AutoModelForPreTraining", None, "A detector of replaced tokens (ELECTRA)", "replaced-token head", "rtd"
    ),
    "MagicForSequenceClassification": Head(
        "AutoModelForSequenceClassification", "text-classification", "A text classifier", "classifier"
    ),
    "MagicForTokenClassification": Head(
        "AutoModelForTokenClassification", "token-classification", "A token classifier", "token classifier"
    ),
    "MagicForQuestionAnswering": Head(
        "AutoModelForQuestionAnswering", "question-answering", "A model that answers questions by a span", "span head"
    ),
    "MagicForMultipleChoice": Head(
        "AutoModelForMultipleChoice", "multiple-choice", "A model that chooses among texts", "choice head"
    ),
}
_SENTENCE = "This function returns the {} of the input."
_QUESTION = "What does it return?"


# What an export may hold. Those that belong to the weights are removed from the Hub where a new export lacks them.
WEIGHT_FILES = (
    SAFE_WEIGHTS_NAME,
    "model-*-of-*.safetensors",
    SAFE_WEIGHTS_INDEX_NAME,
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "onnx/model.onnx",
    "onnx/model.onnx.data",
    "onnx/config.json",
)
OTHER_FILES = (
    "config.json",
    CARD_NAME,
    MANIFEST_NAME,
    FIGURE_NAME,
    *CODE_FILES,
    ".eval_results/*.yaml",
    ".gitattributes",
    "LICENSE*",
    "NOTICE*",
)


def preset_names() -> list[str]:
    """Returns the names of the configurations that the package carries."""
    return sorted(
        path.name.removesuffix(".json") for path in files("hub_configs").iterdir() if path.name.endswith(".json")
    )


def load_preset(name_or_path: str) -> MagicConfig:
    """Returns the configuration of a preset, of a JSON file or of a model folder.

    Raises:
        ValueError: there is none of that name, it is no JSON, or it has a key that MagicConfig does not know.
    """
    if name_or_path in preset_names():
        text = files("hub_configs").joinpath(f"{name_or_path}.json").read_text(encoding="utf-8")
    else:
        path = Path(name_or_path)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(
                f"unknown preset {name_or_path!r}; choose one of {', '.join(preset_names())}, or give a JSON file or "
                f"a folder with a config.json"
            )
        text = path.read_text(encoding="utf-8")
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name_or_path} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.pop("model_type", None) != MagicConfig.model_type:
        raise ValueError(f"{name_or_path} is not the configuration of a MAGIC model: its model_type is not 'magic'")
    known = {field.name for field in fields(MagicConfig)}
    # What save_pretrained wrote may hold keys that transformers added, such as use_cache.
    if "transformers_version" not in values and (unknown := sorted(values.keys() - known)):
        raise ValueError(f"{name_or_path} has unknown keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return MagicConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(f"{name_or_path}: {error}") from None


def check_export_folder(output_dir: Path) -> None:
    """Raises a ValueError where an export into `output_dir` would overwrite something that is not an export."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        if not (output_dir / MANIFEST_NAME).is_file():
            raise ValueError(f"{output_dir} holds something else than an exported model; take another folder")
        names = [path.relative_to(output_dir).as_posix() for path in output_dir.rglob("*") if not path.is_dir()]
        for name in sorted(names):
            if not any(fnmatch(name, pattern) for pattern in (*WEIGHT_FILES, *OTHER_FILES)):
                raise ValueError(f"{output_dir} holds {name} beside an exported model; take another folder")


def export_model(
    model: MagicPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    manifest: dict[str, Any],
) -> Path:
    """Writes a child as a model folder of its own and returns its path.

    The folder holds config, safetensors, tokenizer, the model's code (so that it loads without this package, with
    `trust_remote_code=True`), a model card with a figure, and search.json. It is written under a temporary name and
    renamed; an older export in its place is replaced.

    Args:
        model: a child of any class; a super-net has to be given one with `extract_child` first.
        tokenizer: the one it was trained with.
        output_dir: where to write.
        manifest: where the model comes from, for search.json and the card; `describe_model` has what is added to it.
            Of paths on this machine only the last part is written. "language" and "license" go to the card.

    Raises:
        ValueError: the model is a super-net, or `output_dir` holds something else.
    """
    output_dir = Path(output_dir)
    check_export_folder(output_dir)
    if model.config.is_supernet:
        raise ValueError("the model is a super-net; export one of its children: model.extract_child(architecture)")
    kind = type(model).__name__
    facts = describe_model(model.config, HEADS[kind].flops)
    manifest = {**facts, "num_parameters": model.num_parameters(), **_without_paths(manifest)}
    output_dir.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{output_dir.name}-", dir=output_dir.parent))
    try:
        _save_model(model, temporary)
        tokenizer.save_pretrained(temporary)
        for name in CODE_FILES:
            shutil.copyfile(Path(modeling_magic.__file__).with_name(name), temporary / name)
        (temporary / MANIFEST_NAME).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        draw_architecture(manifest["architecture"], temporary / FIGURE_NAME, HEADS[kind].name)
        card = render_model_card(model.config, manifest, output_dir.resolve().name, tokenizer.mask_token, kind)
        (temporary / CARD_NAME).write_text(card, encoding="utf-8")
        _write_benchmark_results(manifest, kind, temporary)
        temporary.chmod(0o755)
        _replace(output_dir, temporary)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return output_dir


def _replace(old: Path, new: Path) -> None:
    """Puts a folder in the place of another, which is whole in one place or the other at every moment."""
    if not old.exists():
        new.rename(old)
        return
    aside = new.with_name(f"{new.name}-old")
    old.rename(aside)
    new.rename(old)
    shutil.rmtree(aside)


def _save_model(model: MagicPreTrainedModel, folder: Path) -> None:
    # The configuration of the model in memory is left as it was.
    config = model.config
    published = config.child_config([layer[0] for layer in config.candidate_operators])
    published.sparse_prediction = False
    published.auto_map = AUTO_MAP
    try:
        model.config = published
        model.save_pretrained(folder)
    finally:
        model.config = config


def describe_model(config: MagicConfig, head: str = "mlm") -> dict[str, Any]:
    """Returns what search.json says of any child: its architecture, parameters (as a masked LM) and FLOPs.

    Args:
        config: the child's.
        head: the head that FLOPs are counted with, see `count_flops`.
    """
    architecture = tuple(layer[0] for layer in config.candidate_operators)
    return {
        "architecture": list(architecture),
        "num_parameters": count_parameters(config, architecture, head="mlm"),
        "flops": count_flops(config, architecture, _card_length(config), head=head),
    }


# ---- What may be published ----


def _without_paths(value: Any) -> Any:
    """Returns `value` with the last part only of every path of this machine in it, whatever it is nested in."""
    if isinstance(value, dict):
        # The kind first: its last part alone, a path could pass for the name of a data set.
        kinds = {key: _with_source_kind(item) if key == "corpus" else item for key, item in value.items()}
        return {key: _without_paths(item) for key, item in kinds.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "./", "../")))
    return Path(value).name if is_path else value


def _with_source_kind(corpus: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a text with the kind of its source: "docstrings", "hub" (a data set's name) or "local"."""
    if "source_kind" in corpus:
        return corpus
    source = corpus["source"]
    if source == "docstrings":
        return {**corpus, "source_kind": "docstrings"}
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)
    if named and not Path(source).exists() and Path(source).suffix not in _TEXT_SUFFIXES:
        return {**corpus, "source_kind": "hub"}
    return {**corpus, "source": Path(source).name, "source_kind": "local"}


def _card_length(config: MagicConfig) -> int:
    return min(128, config.max_position_embeddings)


# ---- The model card ----


def render_model_card(
    config: MagicConfig, manifest: dict[str, Any], name: str, mask_token: str | None, kind: str = "MagicForMaskedLM"
) -> str:
    """Returns the model card of a child, the template of hub_configs filled from its manifest.

    Args:
        config: the child's.
        manifest: as in search.json.
        name: the model's.
        mask_token: the tokenizer's, for the examples of a masked LM.
        kind: name of the model's class, a key of `HEADS`.
    """
    head, call = HEADS[kind], _example_call(kind, mask_token)
    imports = [head.auto_class, "AutoTokenizer", *(["pipeline"] if "pipeline(" in call else [])]
    return card_template().substitute(
        metadata=card_metadata(manifest, name, mask_token, kind).to_yaml(),
        kind=head.kind,
        auto_class=head.auto_class,
        imports=", ".join(imports),
        call=call,
        model_name=name,
        architecture=format_architecture(manifest["architecture"]),
        num_layers=config.num_hidden_layers,
        hidden_size=config.hidden_size,
        vocab_size=f"{config.vocab_size:,}",
        max_position_embeddings=config.max_position_embeddings,
        num_parameters=f"{manifest['num_parameters']:,}",
        flops=f"{manifest['flops']:.3g}",
        flops_of="the encoder alone" if head.flops == "none" else f"{head.name} over every position included",
        sequence_length=_card_length(config),
        origin=_origin(manifest.get("search")),
        training=_training(manifest),
        results=results_table(manifest.get("results", [])),
    )


def _example_call(kind: str, mask_token: str | None) -> str:
    """Returns the last lines of the usage example."""
    sentence = _sentence(kind, mask_token)
    if kind == "MagicForPreTraining":
        return f'encoder(**tokenizer("{sentence}", return_tensors="pt")).logits'
    if kind == "MagicForMultipleChoice":
        return (
            f'choices = tokenizer(["{sentence}", "{sentence.upper()}"], return_tensors="pt", padding=True)\n'
            "encoder(**{name: values.unsqueeze(0) for name, values in choices.items()}).logits"
        )
    if kind == "MagicForQuestionAnswering":
        return (
            f'inputs = tokenizer("{_QUESTION}", "{sentence}", return_tensors="pt")\n'
            "outputs = encoder(**inputs)\n"
            "tokenizer.decode(inputs.input_ids[0, outputs.start_logits.argmax() : outputs.end_logits.argmax() + 1])"
        )
    return f'pipeline("{HEADS[kind].task}", model=encoder, tokenizer=tokenizer)("{sentence}")'


def _sentence(kind: str, mask_token: str | None) -> str:
    return _SENTENCE.format(mask_token if kind == "MagicForMaskedLM" and mask_token else "value")


def card_template() -> Template:
    """Returns the template that `render_model_card` fills."""
    return Template(files("hub_configs").joinpath("model_card.md").read_text(encoding="utf-8"))


def card_metadata(
    manifest: dict[str, Any], name: str, mask_token: str | None, kind: str = "MagicForMaskedLM"
) -> ModelCardData:
    """Returns the front matter of the card: nothing but what the manifest holds; arguments as `render_model_card`."""
    head, corpus, evaluations = HEADS[kind], _corpus(manifest), _evaluations(manifest, kind)
    fills_masks = kind == "MagicForMaskedLM" and mask_token is not None
    example = {"text": _sentence(kind, mask_token)}
    if kind == "MagicForQuestionAnswering":
        example = {"text": _QUESTION, "context": example["text"]}
    return ModelCardData(
        language=manifest.get("language") or ("en" if corpus.get("source_kind") == "docstrings" else None),
        license=manifest.get("license", "apache-2.0"),
        library_name="transformers",
        pipeline_tag=head.task,
        tags=["magic", "neural-architecture-search", "encoder"],
        datasets=[corpus["source"]] if corpus.get("source_kind") == "hub" else None,
        metrics=["accuracy"] if evaluations else None,
        mask_token=mask_token if fills_masks else None,
        widget=[example] if head.task else None,
        model_name=name if evaluations else None,
        eval_results=evaluations or None,
    )


def _corpus(manifest: dict[str, Any]) -> dict[str, Any]:
    """The record of the text that the weights were trained on; empty where there is none."""
    return ((manifest.get("training") or manifest.get("search") or {}).get("corpus")) or {}


def _own_result(manifest: dict[str, Any], kind: str) -> dict[str, float]:
    """Masked-LM loss and accuracy of these very weights on the held-out text; empty where they are not known.

    A row of results holds several seeds of one architecture: of them only the seed of these weights counts.
    """
    training, search = manifest.get("training"), manifest.get("search") or {}
    if kind != "MagicForMaskedLM" or not _corpus(manifest):
        return {}
    if training is None:
        own = {"loss": search.get("val_loss"), "accuracy": search.get("val_accuracy")}
    else:
        rows = [row for row in manifest.get("results", []) if row["architecture"] == manifest["architecture"]]
        seeds = rows[0].get("seed", [training["seed"]]) if rows else []
        if training["seed"] not in seeds:
            return {}
        index = seeds.index(training["seed"])
        own = {"loss": rows[0]["val_loss"][index], "accuracy": rows[0]["val_accuracy"][index]}
    return {name: round(value, 4) for name, value in own.items() if value is not None}


def _evaluations(manifest: dict[str, Any], kind: str) -> list[EvalResult]:
    """The results in the form of a card's model-index."""
    corpus = _corpus(manifest)
    on_hub = corpus.get("source_kind") == "hub"
    names = {"loss": "masked-LM loss (nats per masked token)", "accuracy": "accuracy on masked tokens"}
    return [
        EvalResult(
            task_type="fill-mask",
            task_name="masked language modelling",
            # "text" is what `datasets` calls files of text; the name of one must not point at a stranger's data set.
            dataset_type=corpus["source"] if on_hub else "text",
            dataset_name=f"{corpus['source']}, documents held out from training",
            dataset_config=corpus.get("dataset_config"),
            dataset_split=corpus["split"] if on_hub else None,
            dataset_args={"sha256": corpus["sha256"]["validation"]},
            metric_type=metric,
            metric_name=names[metric],
            metric_value=value,
        )
        for metric, value in _own_result(manifest, kind).items()
    ]


def _write_benchmark_results(manifest: dict[str, Any], kind: str, folder: Path) -> None:
    """Writes .eval_results/<data set>.yaml, the Hub's own form, which can only speak of data sets on the Hub."""
    corpus, own = _corpus(manifest), _own_result(manifest, kind)
    if "accuracy" not in own or corpus["source_kind"] != "hub":
        return
    entry = EvalResultEntry(
        dataset_id=corpus["source"],
        task_id=corpus.get("dataset_config") or "default",
        value=own["accuracy"],
        notes=f"accuracy on masked tokens; documents held out from the {corpus['split']} split",
    )
    path = folder / ".eval_results" / f"{corpus['source'].rpartition('/')[2]}.yaml"
    path.parent.mkdir()
    path.write_text(yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False), encoding="utf-8")


def _table(rows: Sequence[tuple[str, Any]]) -> str:
    return "\n".join(["| what | value |", "| --- | --- |", *(f"| {what} | {value} |" for what, value in rows)])


def _origin(search: dict[str, Any] | None) -> str:
    if search is None:
        return "The architecture was given, not searched."
    layers = search["candidate_operators"]
    facts = [
        ("sampler", search.get("sampler")),
        ("alignment", search.get("alignment")),
        ("optimizer steps of the super-net", f"{search['steps']:,}" if "steps" in search else None),
        ("seed", search.get("seed")),
        ("budget", search.get("budget")),
        ("searcher", search.get("searcher")),
        ("children evaluated", search.get("num_evaluations")),
        ("beside random children", search.get("better_than_random")),
        ("validation loss with shared weights", f"{search['val_loss']:.3f}"),
    ]
    space = f"{len(layers)} layers, {math.prod(map(len, layers)):,} children"
    # What is not on record is left out.
    return _table([("search space", space), *(fact for fact in facts if fact[1] is not None)])


def _training(manifest: dict[str, Any]) -> str:
    training = manifest.get("training")
    if training is None and "search" in manifest:
        return "The weights are those of the super-net, not trained on after the search."
    if training is None:
        return "How the weights were trained is not recorded."
    corpus = training["corpus"]
    return _table(
        [
            ("objective", training.get("objective", "not recorded")),
            ("text", corpus["source"]),
            ("sha256 of the text", f"`{corpus['sha256']['train'][:16]}`"),
            ("steps", f"{training['steps']:,}"),
            ("tokens in a step", f"{training['tokens_per_step']:,}"),
            ("start", training["start"]),
            ("seed", training["seed"]),
            ("versions", ", ".join(f"{name} {version}" for name, version in training["versions"].items())),
        ]
    )


def results_table(results: Sequence[dict[str, Any]]) -> str:
    """Returns measured results as a Markdown table, one row a model; a sentence where there are none."""
    if not results:
        return "Nothing was measured."
    lines = [
        "| model | architecture | parameters | FLOPs | steps | validation loss | validation accuracy |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in results:
        lines.append(
            f"| {row['name']} | {compact_architecture(row['architecture'])} | {row['num_parameters'] / 1e6:.2f}M "
            f"| {row['flops']:.2e} | {row['steps']:,} | {spread(row['val_loss'], 3)} "
            f"| {spread([100 * value for value in row['val_accuracy']], 1)}% |"
        )
    return "\n".join(lines)


def spread(values: Sequence[float], digits: int) -> str:
    """Returns the mean of the seeds, with half their range where there are several."""
    mean = f"{math.fsum(values) / len(values):.{digits}f}"
    return mean if len(values) == 1 else f"{mean} +- {(max(values) - min(values)) / 2:.{digits}f}"


def compact_architecture(architecture: Sequence[str] | Architecture) -> str:
    """Returns the architecture as text, a repeated pair of operators as a group: (MHA4,FFN)*3."""
    pair, rest = tuple(architecture[:2]), len(architecture) // 2
    if rest > 1 and tuple(architecture) == pair * rest and len(set(pair)) == 2:
        return f"({format_architecture(pair)})*{rest}"
    return format_architecture(architecture)


def search_table(config: MagicConfig, search: dict[str, Any]) -> str:
    """Returns what a super-net run found as a Markdown table."""
    child = tuple(search["architecture"])
    deleted = sum(len(entry["deleted"]) for entry in search["shrink_history"])
    return _table(
        [
            ("found child", format_architecture(child)),
            ("parameters", f"{count_parameters(config, child, head='mlm') / 1e6:.2f}M"),
            ("FLOPs", f"{count_flops(config, child, _card_length(config)):.2e}"),
            ("validation loss, shared weights", f"{search['val_loss']:.3f}"),
            ("validation accuracy, shared weights", f"{100 * search['val_accuracy']:.1f}%"),
            ("children left", f"{math.prod(map(len, search['space'])):,}"),
            ("operators deleted", f"{deleted} in {len(search['shrink_history'])} rounds"),
            ("anchors", len(search["anchor_history"])),
        ]
    )
