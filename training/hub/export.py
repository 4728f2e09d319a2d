"""The export of a model as a folder for the Hub and `from_pretrained`."""

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..data.fitting import fit_tokenizer
from ..files import write_json, write_text, written_at_once
from ..space.costs import count_flops, count_parameters
from .card import CARD_NAME, HEADS, card_length, render_model_card, write_benchmark_results
from .contents import CONFIG_NAME, MANIFEST_NAME, with_contents
from .sentence_folders import MODULES_NAME, SENTENCE_CONFIG_NAME, TRANSFORMER_CONFIG_NAME


def training_manifest(result: dict[str, Any], search: dict[str, Any] | None) -> dict[str, Any]:
    """Returns the manifest of a re-trained child, made from its result and the record of its search."""
    kept = ("objective", "steps", "tokens_per_step", "training_flops", "seed", "start", "corpus", "versions")
    return {
        "search": search_manifest(search),
        "training": {key: result[key] for key in (*kept, *(["judged_on"] if "judged_on" in result else []))},
        "results": [summarise("this model", [result])],
    }


def search_manifest(search: dict[str, Any] | None) -> dict[str, Any] | None:
    """Returns the record of a search for a manifest, without the logs."""
    if search is None:
        return None
    return {key: value for key, value in search.items() if key not in ("log_history", "visits", "health", "seconds")}


def summarise(name: str, results: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one row of a results table, made from the runs of one architecture with one seed each."""
    first = results[0]
    return {
        "name": name,
        **{key: first[key] for key in ("architecture", "num_parameters", "flops", "steps", "training_flops")},
        **{key: [result[key] for result in results] for key in ("val_loss", "val_accuracy", "seed")},
    }


FIGURE_NAME = "architecture.png"
# Written by a fine-tuning, which recognises its own model by it.
FINETUNING_NAME = "finetune.json"
CONFIG_CODE = "configuration_magic.py"
CODE_FILES = (CONFIG_CODE, "heads_magic.py", "kernels_magic.py", "modeling_magic.py")
_TEXT_SUFFIXES = (".txt", ".json", ".jsonl", ".csv", ".parquet")

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    # Files of slow tokenizers, such as BERTweet's, PhoBERT's and those based on SentencePiece.
    "bpe.codes",
    "dict.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
    "chat_template.jinja",
)
# Files of sentence-transformers.
SENTENCE_FILES = (
    MODULES_NAME,
    TRANSFORMER_CONFIG_NAME,
    SENTENCE_CONFIG_NAME,
    "1_Pooling/config.json",
    "2_Normalize/config.json",
)
# The files that an export may hold. Those that belong to the weights are removed from the Hub if a new export lacks
# them.
WEIGHT_FILES = (
    SAFE_WEIGHTS_NAME,
    "model-*-of-*.safetensors",
    SAFE_WEIGHTS_INDEX_NAME,
    *TOKENIZER_FILES,
    "onnx/model.onnx",
    "onnx/model_int8.onnx",
    "onnx/model.onnx.data",
    "onnx/config.json",
    f"onnx/{CONFIG_CODE}",
    *(f"onnx/{name}" for name in TOKENIZER_FILES),
    # If they stayed, they would describe another model.
    *SENTENCE_FILES,
)

OTHER_FILES = (
    CONFIG_NAME,
    CARD_NAME,
    MANIFEST_NAME,
    FINETUNING_NAME,
    FIGURE_NAME,
    *CODE_FILES,
    ".eval_results/*.yaml",
    ".gitattributes",
    "LICENSE*",
    "NOTICE*",
)


def check_export_folder(output_dir: Path) -> None:
    """Raises a ValueError if an export into `output_dir` would overwrite something that is not an export."""
    if output_dir.exists() and (not output_dir.is_dir() or any(output_dir.iterdir())):
        if not (output_dir / MANIFEST_NAME).is_file():
            raise ValueError(f"{output_dir} holds something other than an exported model; use another folder")
        names = [path.relative_to(output_dir).as_posix() for path in output_dir.rglob("*") if not path.is_dir()]
        for name in sorted(names):
            if not any(fnmatch(name, pattern) for pattern in (*WEIGHT_FILES, *OTHER_FILES)):
                raise ValueError(f"{output_dir} holds {name} in addition to an exported model; use another folder")


def check_unused(output_dir: Path, source: str | Path, overwrite: bool) -> None:
    """Raises a ValueError if a folder holds a model other than the source and may not be overwritten."""
    is_source = output_dir.resolve() == Path(source).expanduser().resolve()
    if (output_dir / MANIFEST_NAME).is_file() and not is_source and not overwrite:
        raise ValueError(f"{output_dir} holds a model already; pass --overwrite to replace it, or use another folder")


def export_model(
    model: MagicPreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    manifest: dict[str, Any],
    card: str | None = None,
    files: Mapping[str, str] | None = None,
) -> Path:
    """Writes a child as a self-contained model folder and returns its path.

    The folder holds the configuration, safetensors, the tokenizer, the model's code (with which it loads without this
    package, using `trust_remote_code=True`), a model card with a figure, and search.json with hashes of the other
    files for `verify_export`. It is written under a temporary name and renamed, and replaces an older export.

    Args:
        model: a child of any class. To export a child of a super-net, call `extract_child` first.
        tokenizer: the tokenizer that it was trained with. The exported one truncates at the model's positions (see
            `fit_tokenizer`).
        output_dir: the folder to write.
        manifest: the origin of the model, for search.json and the card. The facts of `describe_model` are added. Only
            the last part of paths on this machine is written. "language" and "license" go to the card.
        card: the whole model card. Default: it is made from the manifest.
        files: the text of further files by their path in the folder. They must be files that an export may hold.

    Raises:
        ValueError: the model is a super-net, or `output_dir` holds something else.
    """
    # Imported here because reading and pushing folders must work without matplotlib.
    from .figures import draw_architecture

    output_dir = Path(output_dir)
    check_export_folder(output_dir)
    if model.config.is_supernet:
        raise ValueError("the model is a super-net; export one of its children: model.extract_child(architecture)")
    kind = type(model).__name__
    facts = describe_model(model.config, HEADS[kind].flops)
    facts["num_parameters"] = model.num_parameters()
    # Counted facts come first and take precedence over those in the manifest of another export.
    manifest = {**facts, **_without_paths(manifest), **facts}
    with written_at_once(output_dir, replaces=True) as temporary:
        _save_model(model, temporary)
        fit_tokenizer(tokenizer, model.config).save_pretrained(temporary)
        draw_architecture(manifest["architecture"], temporary / FIGURE_NAME, HEADS[kind].name)
        if card is None:
            card = render_model_card(model.config, manifest, output_dir.resolve().name, tokenizer.mask_token, kind)
            write_benchmark_results(manifest, kind, temporary)
        write_text(temporary / CARD_NAME, card)
        write_files(temporary, files or {})
        # Last, as it describes all other files.
        write_json(temporary / MANIFEST_NAME, with_contents(manifest, temporary))
    return output_dir


def write_files(folder: Path, files: Mapping[str, str]) -> None:
    """Writes text files by their paths in a folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_text(folder / name, text)


def _save_model(model: MagicPreTrainedModel, folder: Path) -> None:
    # The configuration of the model in memory stays unchanged.
    config = model.config
    published = config.child_config(config.chain)
    published.sparse_prediction = False
    try:
        model.config = published
        model.save_pretrained(folder)
    finally:
        model.config = config


def describe_model(config: MagicConfig, head: str = "mlm") -> dict[str, Any]:
    """Returns the facts that search.json holds for any child: architecture, parameters (as a masked LM) and FLOPs.

    Args:
        config: the configuration of the child.
        head: the head with which FLOPs are counted, see `count_flops`.
    """
    architecture = config.chain
    return {
        "architecture": list(architecture),
        "num_parameters": count_parameters(config, architecture, head="mlm"),
        "flops": count_flops(config, architecture, card_length(config), head=head),
    }


# ---- What may be published ----


def _without_paths(value: Any) -> Any:
    """Returns `value` with every path on this machine reduced to its last part, at any depth of nesting."""
    if isinstance(value, dict):
        # The kind is determined first: the last part of a path could pass for the name of a data set.
        kinds = {key: _with_source_kind(item) if key == "corpus" else item for key, item in value.items()}
        return {key: _without_paths(item) for key, item in kinds.items()}
    if isinstance(value, list | tuple):
        return [_without_paths(item) for item in value]
    is_path = isinstance(value, str) and (Path(value).is_absolute() or value.startswith(("~", "./", "../")))
    return Path(value).name if is_path else value


def _with_source_kind(corpus: dict[str, Any]) -> dict[str, Any]:
    """Returns the record of a text with the kind of its source: "docstrings", "hub" (a data set) or "local"."""
    if "source_kind" in corpus:
        return corpus
    source = corpus["source"]
    if source == "docstrings":
        return {**corpus, "source_kind": "docstrings"}
    named = re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", source)
    if named and not Path(source).exists() and Path(source).suffix not in _TEXT_SUFFIXES:
        return {**corpus, "source_kind": "hub"}
    return {**corpus, "source": Path(source).name, "source_kind": "local"}
