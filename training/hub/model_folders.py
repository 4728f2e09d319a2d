"""Files in a model's folder, or in its repository on the Hub, and the completion of a folder into an export."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatch
from hashlib import sha256
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    RepositoryNotFoundError,
)
from transformers import PreTrainedTokenizerBase

from modeling_magic.conversion import load_magic

from ..files import file_sha256
from ..pretrained import pretrained_tokenizer
from ..tables import first_line
from .card import CARD_NAME
from .contents import CONFIG_NAME, MANIFEST_NAME, recorded_hashes
from .export import SENTENCE_FILES, TOKENIZER_FILES, export_model
from .sentence_folders import MODULES_NAME, json_of


logger = logging.getLogger(__name__)


_WANTED_FILES = ["*.json", "*.txt", "*.model", *TOKENIZER_FILES, CARD_NAME, "*.safetensors"]
_OTHER_RUNTIMES = ["onnx/*", "openvino/*"]
# Keys that remain true for a model whose weights are trained further.
_INHERITED = ("search", "converted_from", "compressed_from", "budget")
# Measurements that `Trainer` makes of its own run.
_NO_SCORES = ("runtime", "samples_per_second", "steps_per_second", "samples")
# The record of every run, and where runs put their models; a compression's super-net is not one of them.
_RUN, _SUPERNET, _MODEL = "run.json", "supernet", "model"
_PLACES = (_MODEL, f"{_MODEL}/*", f"*/{_MODEL}")
_WEIGHTS = ("*.safetensors", "pytorch_model*.bin")


def model_in(name_or_path: str | Path) -> str:
    """Returns the folder of the model in the folder of a run; the folder of a model or a name on the Hub unchanged.

    Runs write a model to `model`, to a folder in it for each of several budgets, or to `TASK/model`.

    Raises:
        ValueError: the run has several models.
    """
    folder = Path(name_or_path).expanduser()
    if not (folder / _RUN).is_file() or _holds_model(folder):
        return str(name_or_path)
    found: list[Path] = []
    for place in _PLACES:
        models = (path for path in folder.glob(place) if _holds_model(path) and path.parent.name != _SUPERNET)
        found = found or sorted(models)
    if len(found) > 1:
        raise ValueError(
            f"{name_or_path} is a run with {len(found)} models; give the folder of one: {', '.join(map(str, found))}"
        )
    if found:
        logger.info(f"model: {found[0]}")
    return str(found[0] if found else name_or_path)


def _holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG_NAME, MANIFEST_NAME, MODULES_NAME))


def file_of_model(name_or_path: str, filename: str) -> Path | None:
    """Returns a file of a model from its folder, the Hub or the cache, `None` if it does not exist.

    If the Hub does not answer, the file counts as missing unless it is in the cache.

    Args:
        name_or_path: a folder or a name on the Hub.
        filename: the name of the file in the folder.

    Raises:
        OSError: the Hub has no such model, or does not let this user read it.
        ValueError: `name_or_path` is neither a folder nor a valid name on the Hub.
    """
    if (folder := Path(name_or_path)).is_dir():
        return folder / filename if (folder / filename).is_file() else None
    try:
        return Path(hf_hub_download(name_or_path, filename))
    except RepositoryNotFoundError:
        raise
    except (EntryNotFoundError, HfHubHTTPError):
        return None


def fetch_folder(name: str, further: Sequence[str] = ()) -> Path:
    """Returns a local folder with the files of a model on the Hub, including the weights.

    Args:
        name: the name on the Hub.
        further: patterns of files to fetch in addition to those that a model is loaded from.

    Raises:
        ValueError: the Hub has no such model, or cannot be reached.
    """
    wanted = [*_WANTED_FILES, *further]
    try:
        folder = Path(snapshot_download(name, allow_patterns=wanted, ignore_patterns=_OTHER_RUNTIMES))
        if not any(folder.rglob("*.safetensors")):
            # Only tensors are read from these files, whatever else they contain.
            weights = [*wanted, "*pytorch_model*.bin"]
            folder = Path(snapshot_download(name, allow_patterns=weights, ignore_patterns=_OTHER_RUNTIMES))
    except (OSError, HTTPError, HFValidationError) as error:
        remedy = "give a model's folder or its name on the Hub"
        raise ValueError(f"no model {name}; {remedy} ({first_line(error)})") from None
    return folder


def tokenizer_of(name_or_path: str | Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a folder or of a model on the Hub, `None` if there is none."""
    try:
        tokenizer = pretrained_tokenizer(name_or_path)
    except ValueError:
        return None
    # Without a vocabulary, transformers returns a tokenizer that knows only its special tokens.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def card_facts(name_or_path: str) -> dict[str, Any]:
    """Returns the license and the language that a model's own card states.

    An unknown license is "unknown", the Hub's word for it. An unknown language is `None`.

    Raises:
        ValueError: the front matter of the card cannot be read.
    """
    path = file_of_model(name_or_path, CARD_NAME)
    try:
        data = ModelCard.load(path, ignore_metadata_errors=True).data if path is not None else ModelCardData()
    # yaml and the client raise exceptions without a common base class for a damaged front matter.
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"the front matter of {path} cannot be read ({reason}); correct it there") from None
    return {"license": data.license or "unknown", "language": data.language}


def provenance(name_or_path: str) -> dict[str, Any]:
    """Returns the facts that a manifest inherits from the model that training began with: search, license and so on.

    Args:
        name_or_path: the model that training began with, a folder or a name on the Hub.

    Raises:
        ValueError: search.json or the front matter of the card is damaged.
    """
    path = file_of_model(name_or_path, MANIFEST_NAME)
    source = {} if path is None else json_of(Path(path))
    return {**{key: source[key] for key in _INHERITED if key in source}, **card_facts(name_or_path)}


def public_name(name_or_path: str | Path) -> str:
    """Returns a unique name of a model that reveals nothing about this machine: its name on the Hub, or a hash.

    The hash covers the weight files of a folder. For a single file it is that of `sha256sum`.
    """
    folder = Path(name_or_path).expanduser()
    if not folder.is_dir():
        return str(name_or_path)
    digest = sha256()
    for path in sorted(path for pattern in _WEIGHTS for path in folder.glob(pattern)):
        with path.open("rb") as file:
            while chunk := file.read(2**20):
                digest.update(chunk)
    return f"sha256:{digest.hexdigest()}"


# ---- Folders of others ----


def export_folder(source: str | Path, output_dir: str | Path) -> Path:
    """Writes the MAGIC model of a folder, such as one from `Trainer.save_model`, as an export and returns its path.

    The manifest of the source is kept. If there is none, or it describes other weights because these were trained
    further, the card gives the `Trainer`'s measurements from eval_results.json or trainer_state.json.

    Args:
        source: a model folder, with its tokenizer.
        output_dir: the folder to write (see `export_model`).

    Raises:
        ValueError: the folder holds no MAGIC child or no tokenizer, or `output_dir` holds something else.
    """
    folder = Path(source)
    model, tokenizer = load_magic(folder), tokenizer_of(folder)
    if tokenizer is None:
        raise ValueError(f"{folder} holds no tokenizer; save the one that the model was trained with in it")
    manifest = json_of(folder / MANIFEST_NAME)
    if not manifest or has_other_weights(folder):
        inherited = {key: manifest[key] for key in _INHERITED if key in manifest}
        manifest = {**inherited, **card_facts(str(folder)), "scores": _trainer_scores(folder)}
    kept = [name for name in SENTENCE_FILES if (folder / name).is_file()]
    files = {name: (folder / name).read_text(encoding="utf-8") for name in kept}
    return export_model(model, tokenizer, output_dir, manifest, files=files)


def has_other_weights(folder: str | Path) -> bool:
    """Returns whether the weights in an export differ from those whose hashes its manifest records."""
    folder = Path(folder)
    recorded = recorded_hashes(json_of(folder / MANIFEST_NAME))
    names = [name for name in recorded if any(fnmatch(name, pattern) for pattern in _WEIGHTS)]
    return any(not (folder / name).is_file() or file_sha256(folder / name) != recorded[name] for name in names)


def _trainer_scores(folder: Path) -> list[dict[str, Any]]:
    metrics = json_of(folder / "eval_results.json")
    if not metrics:
        state = json_of(folder / "trainer_state.json")
        entries = [entry for entry in state.get("log_history", []) if any(key.startswith("eval_") for key in entry)]
        best = [entry for entry in entries if entry.get("step") == state.get("best_global_step")]
        metrics = (best or entries or [{}])[-1]
    scores = {
        name.removeprefix("eval_"): value
        for name, value in metrics.items()
        if name.startswith("eval_") and isinstance(value, int | float)
    }
    rows = scores.get("samples", "not recorded")
    return [
        {"data": "the Trainer's evaluation set", "split": "eval", "rows": rows, "metric": name, "value": value}
        for name, value in scores.items()
        if name not in _NO_SCORES
    ]
