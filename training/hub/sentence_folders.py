"""Folders of sentence-transformers, read and written without that package.

modules.json names a Transformer, a Pooling and optionally a Normalize, each with its own folder.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..files import read_json


MODULES_NAME = "modules.json"
SENTENCE_CONFIG_NAME = "config_sentence_transformers.json"
TRANSFORMER_CONFIG_NAME = "sentence_bert_config.json"
# Keys of a configuration that CrossEncoder reads, as named by newer and older releases.
CROSS_ENCODER_FIELDS = ("sentence_transformers", "sbert_ce_default_activation_function")

_TRANSFORMER_FIELDS = ("do_lower_case", "query_length", "document_length")
# Every release of sentence-transformers finds the modules by these names.
_MODULE_TYPE = "sentence_transformers.models"
_POOLING_FOLDER, _NORMALIZE_FOLDER = "1_Pooling", "2_Normalize"


class SentenceModules(NamedTuple):
    """The modules of a sentence-transformers folder, as paths inside it.

    Attributes:
        transformer: path of the encoder, "" for the folder itself.
        pooling: path of the Pooling.
        normalize: path of the Normalize, `None` if there is none.
    """

    transformer: str
    pooling: str
    normalize: str | None


# ---- Reading ----


def is_cross_encoder(folder: Path) -> bool:
    """Returns whether a folder holds a CrossEncoder, whose only module is the model."""
    return (folder / MODULES_NAME).is_file() and sentence_config(folder).get("model_type") == "CrossEncoder"


def read_modules(folder: Path, name: str) -> SentenceModules | None:
    """Returns the modules of a sentence-transformers folder for sentence embeddings, `None` for any other folder.

    Args:
        folder: the folder of the checkpoint.
        name: the name of the checkpoint, for error messages.

    Raises:
        ValueError: it has a module other than Transformer, Pooling and Normalize, or has them in another order.
    """
    if not (folder / MODULES_NAME).is_file() or is_cross_encoder(folder):
        return None
    modules = module_types(folder)
    for kind, path in modules:
        ours = kind.startswith("sentence_transformers.") and _last(kind) in ("Transformer", "Pooling", "Normalize")
        if not ours or (_last(kind) == "Normalize" and _normalizes_tokens(folder / path)):
            raise ValueError(
                f"{name} has the module {kind}; of sentence-transformers' modules, only Transformer, Pooling and a "
                f"Normalize of embeddings are supported"
            )
    found = [_last(kind) for kind, _ in modules]
    if found[:2] != ["Transformer", "Pooling"] or found[2:] not in ([], ["Normalize"]):
        raise ValueError(
            f"{name} has the modules {', '.join(found) or 'none'}; supported are a Transformer, a Pooling and "
            f"optionally a Normalize, in this order"
        )
    paths = [path for _, path in modules]
    task = transformer_settings(folder / paths[0]).get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        raise ValueError(f"the Transformer of {name} is for {task!r}; only 'feature-extraction' is supported")
    return SentenceModules(paths[0], paths[1], paths[2] if len(paths) > 2 else None)


def module_types(folder: Path) -> list[tuple[str, str]]:
    """Returns the type and the path of each module, in their order.

    Raises:
        ValueError: modules.json is not a list of modules.
    """
    try:
        return [(str(entry["type"]), str(entry["path"])) for entry in read_json(folder / MODULES_NAME)]
    except (KeyError, TypeError):
        raise ValueError(f"{folder / MODULES_NAME} is damaged: it is not a list of modules; fetch it again") from None


def _last(name: str) -> str:
    return name.rpartition(".")[2]


def _normalizes_tokens(folder: Path) -> bool:
    values, embedding = json_of(folder / "config.json"), "sentence_embedding"
    names = [values.get(name) or embedding for name in ("module_input_name", "module_output_name")]
    return names != [embedding, embedding]


def json_of(path: Path) -> dict[str, Any]:
    """Returns the mapping in a JSON file, or an empty one if there is no such file."""
    values = read_json(path) if path.is_file() else {}
    if not isinstance(values, dict):
        raise ValueError(f"{path} is damaged: it is not a JSON mapping; fetch it again")
    return values


def sentence_config(folder: Path) -> dict[str, Any]:
    """Returns the settings that sentence-transformers keeps for a whole model: prompts, kind and similarity."""
    return json_of(folder / SENTENCE_CONFIG_NAME)


def transformer_settings(folder: Path) -> dict[str, Any]:
    """Returns sentence-transformers' settings of a Transformer, such as max_seq_length; empty for other folders."""
    # In folders of early releases the file is named after the model's family.
    paths = [folder / TRANSFORMER_CONFIG_NAME, *sorted(folder.glob("sentence_*_config.json"))]
    return json_of(next((path for path in paths if path.is_file()), paths[0]))


# ---- Writing ----


def embedding_files(
    folder: Path, modules: SentenceModules | None, hidden_size: int, max_length: int
) -> dict[str, str]:
    """Returns the files that make a model folder a sentence-transformers one: the text of each by its path.

    The encoder is then in the folder itself.

    Args:
        folder: the folder of the original model.
        modules: the modules of that folder. `None` for the mean of the last states, scaled to length 1.
        hidden_size: the width of the states.
        max_length: the longest input in tokens.
    """
    settings = transformer_settings(folder / modules.transformer if modules is not None else folder)
    kept = {name: settings[name] for name in _TRANSFORMER_FIELDS if name in settings}
    normalizes = modules is None or modules.normalize is not None
    paths = ["", _POOLING_FOLDER, *([_NORMALIZE_FOLDER] if normalizes else [])]
    types = ("Transformer", "Pooling", "Normalize")[: len(paths)]
    values: dict[str, Any] = {
        MODULES_NAME: [
            {"idx": index, "name": str(index), "path": path, "type": f"{_MODULE_TYPE}.{kind}"}
            for index, (path, kind) in enumerate(zip(paths, types, strict=True))
        ],
        TRANSFORMER_CONFIG_NAME: {"max_seq_length": max_length, "do_lower_case": False, **kept},
        SENTENCE_CONFIG_NAME: sentence_config(folder)
        or {"prompts": {}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        f"{_POOLING_FOLDER}/config.json": _pooling_config(folder, modules, hidden_size),
    }
    if normalizes:
        # The Hub does not keep empty folders.
        values[f"{_NORMALIZE_FOLDER}/config.json"] = {}
    return _texts(values)


def cross_encoder_files(folder: Path) -> dict[str, str]:
    """Returns the files that make a model folder a copy of the CrossEncoder in `folder`: the text of each by path."""
    names = (MODULES_NAME, SENTENCE_CONFIG_NAME, TRANSFORMER_CONFIG_NAME)
    return _texts({name: read_json(folder / name) for name in names if (folder / name).is_file()})


def _pooling_config(folder: Path, modules: SentenceModules | None, hidden_size: int) -> dict[str, Any]:
    if modules is not None:
        return json_of(folder / modules.pooling / "config.json")
    return {
        "word_embedding_dimension": hidden_size,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": True,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: json.dumps(value, indent=2) + "\n" for name, value in values.items()}
