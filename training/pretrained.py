"""Configurations, models and tokenizers from a folder or a name that a user gives, loaded by the Auto classes.

Code from a folder never runs, and whatever is wrong with it is an error of one line. Nothing else in `training` calls
`from_pretrained` of an Auto class.
"""

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import logging as hf_logging


# Weights of a layer of an encoder, whatever its class.
_OF_LAYER = re.compile(r"\.layers?\.\d+\.")


def pretrained_config(name: str | Path, what: str = "the model", **kwargs: Any) -> Any:
    """Returns the configuration of a model.

    Args:
        name: a folder or a name on the Hub.
        what: how the model is called in an error.
        **kwargs: arguments of `AutoConfig.from_pretrained`.

    Raises:
        ValueError: it does not load, or only with code of its own.
    """
    folder = Path(name)
    if (folder / "supernet" / "config.json").is_file() and not (folder / "config.json").is_file():
        raise ValueError(f"{name} is the run of a super-net; export a child first: magic-nas export {name} FOLDER")
    with _one_line(name, what):
        config = AutoConfig.from_pretrained(name, trust_remote_code=False, **kwargs)
        names = config.architectures
        if names is not None and not (isinstance(names, list) and all(isinstance(one, str) for one in names)):
            raise ValueError(f"architectures in its config.json is {names!r}; it must be a list of class names")
        return config


def pretrained_model(
    auto_class: Any, name: str | Path, what: str = "the model", new_head: bool = False, **kwargs: Any
) -> tuple[Any, dict[str, Any]]:
    """Returns a model, and the keys of its weights that are missing, unexpected or of another shape.

    Missing weights, and unexpected ones of a head, are for the caller to judge.

    Args:
        auto_class: the Auto class.
        name: a folder or a name on the Hub.
        what: how the model is called in an error.
        new_head: whether weights of the head may have other shapes than the configuration.
        **kwargs: arguments of `from_pretrained`.

    Raises:
        ValueError: it does not load, or only with code of its own; weights have other shapes, or belong to layers that
            the configuration does not have.
    """
    with _one_line(name, what), quiet_loading():
        model, info = auto_class.from_pretrained(
            name, trust_remote_code=False, ignore_mismatched_sizes=True, output_loading_info=True, **kwargs
        )
        encoder = f"{model.base_model_prefix}."
        # The type of the collections differs between releases.
        shapes = sorted(key for key, *_ in info["mismatched_keys"] if not new_head or key.startswith(encoder))
        if shapes:
            raise ValueError(
                f"{shapes[0]} has another shape than its config.json says; give a model whose files match"
            )
        layers = sorted(key for key in info["unexpected_keys"] if key.startswith(encoder) and _OF_LAYER.search(key))
        if layers:
            raise ValueError(f"its config.json has no layer for {layers[0]}; give a model whose files match")
        return model, info


def pretrained_tokenizer(name: str | Path, what: str = "the tokenizer of", **kwargs: Any) -> PreTrainedTokenizerBase:
    """Returns a tokenizer; one without a vocabulary has special tokens only.

    Args:
        name: a folder or a name on the Hub.
        what: how the tokenizer is called in an error.
        **kwargs: arguments of `AutoTokenizer.from_pretrained`.

    Raises:
        ValueError: it does not load, or only with code of its own.
    """
    with _one_line(name, what):
        return AutoTokenizer.from_pretrained(str(name), trust_remote_code=False, **kwargs)


@contextmanager
def quiet_loading() -> Iterator[None]:
    """Keeps transformers from reporting missing or unused weights; relevant cases raise an error here."""
    before = hf_logging.get_verbosity()
    hf_logging.set_verbosity_error()
    try:
        yield
    finally:
        hf_logging.set_verbosity(before)


@contextmanager
def _one_line(name: str | Path, what: str) -> Iterator[None]:
    """Turns any error about the content of a folder into a ValueError of one line."""
    try:
        yield
    except (MemoryError, RecursionError):
        raise
    # transformers, tokenizers and safetensors raise exceptions without a common base class for a damaged file.
    except Exception as error:
        # The command line explains what the machine lacks.
        lacks_memory = isinstance(error, RuntimeError) and "memory" in str(error)
        if lacks_memory or (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
            raise
        raise ValueError(f"{what} {str(name)!r} cannot be loaded: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = " ".join(str(error).split())
    if "trust_remote_code" in text:
        return "it needs Python code from its folder, which is not run here; give a model of a class in transformers"
    if "Repo id must" in text:
        return "there is no such folder, and a name on the Hub has at most one slash"
    if isinstance(error, OSError | ValueError) and text:
        # A validation names the field in one line and the fault in the next.
        in_lines = type(error).__name__.endswith("ValidationError")
        return text[:300] if in_lines else str(error).strip().partition("\n")[0].rstrip(".")
    return f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__
