"""The configurations that come with the package."""

import json
from dataclasses import fields
from importlib.resources import files
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from modeling_magic import MagicConfig

from ..files import read_text
from ..tables import first_line


def preset_names() -> list[str]:
    """Returns the names of the configurations that come with the package."""
    return sorted(
        path.name.removesuffix(".json") for path in files("hub_configs").iterdir() if path.name.endswith(".json")
    )


def load_preset(name_or_path: str | Path) -> MagicConfig:
    """Returns the configuration of a preset, of a JSON file or of a model folder.

    Args:
        name_or_path: the name of a preset, or a path. Text is first looked up as a preset; a `Path` never is.

    Raises:
        ValueError: there is no such preset or file, it is not JSON, or it has a key that MagicConfig does not know.
    """
    if isinstance(name_or_path, str) and name_or_path in preset_names():
        text = files("hub_configs").joinpath(f"{name_or_path}.json").read_text(encoding="utf-8")
    else:
        path = Path(name_or_path)
        path = path / "config.json" if path.is_dir() else path
        if not path.is_file():
            raise ValueError(
                f"unknown preset {str(name_or_path)!r}; choose one of {', '.join(preset_names())}, or give a JSON "
                f"file or a folder with a config.json"
            )
        text = read_text(path)
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name_or_path} is not JSON: {error}") from None
    if not isinstance(values, dict) or values.pop("model_type", None) != MagicConfig.model_type:
        raise ValueError(f"{name_or_path} is not the configuration of a MAGIC model: its model_type is not 'magic'")
    known = {field.name for field in fields(MagicConfig)}
    # Files written by save_pretrained may hold keys that transformers added, such as use_cache.
    if "transformers_version" not in values and (unknown := sorted(values.keys() - known)):
        raise ValueError(f"{name_or_path} has unknown keys: {', '.join(unknown)}; known: {', '.join(sorted(known))}")
    try:
        return MagicConfig(**values)
    except StrictDataclassError as error:
        raise ValueError(f"{name_or_path}: {' '.join(str(error).split())}") from None
    # A value of another type than transformers expects.
    except (AttributeError, LookupError, TypeError) as error:
        raise ValueError(
            f"{name_or_path} has an invalid value ({type(error).__name__}: {first_line(error)}); correct it"
        ) from None
