"""Checkpoints of BERT, RoBERTa and ELECTRA as MAGIC model folders, and the other way round."""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, RepositoryNotFoundError
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from modeling_magic import MagicConfig
from modeling_magic.conversion import chain_config, convert_from_magic, convert_to_magic, load_magic

from ..files import written_at_once
from .export import check_export_folder, export_model


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
    # An empty folder may be there.
    with written_at_once(output_dir, replaces=True) as temporary:
        model.save_pretrained(temporary)
        if found is not None:
            found.save_pretrained(temporary)
    return output_dir, dropped


def file_of_model(name_or_path: str, filename: str) -> Path | None:
    """Returns a file beside a model's weights, from its folder, the Hub or the cache; `None` where it is not there.

    A Hub that does not answer has no file either, unless the cache has it.

    Args:
        name_or_path: a folder or a name on the Hub.
        filename: as it is called in the folder.

    Raises:
        OSError: the Hub has no such model, or does not let this user read it.
        ValueError: it is neither a folder nor a name that the Hub could have.
    """
    if (folder := Path(name_or_path)).is_dir():
        return folder / filename if (folder / filename).is_file() else None
    try:
        return Path(hf_hub_download(name_or_path, filename))
    except RepositoryNotFoundError:
        raise
    except (EntryNotFoundError, HfHubHTTPError):
        return None


def _tokenizer_of(name_or_path: str) -> PreTrainedTokenizerBase | None:
    try:
        tokenizer = AutoTokenizer.from_pretrained(name_or_path)
    except (OSError, ValueError):
        return None
    # A folder without a vocabulary gives a tokenizer that knows its special tokens only.
    return tokenizer if len(tokenizer) > len(tokenizer.all_special_ids) else None


def _card_facts(source: str) -> dict[str, Any]:
    """Returns the license and the language that the source's own model card states, `None` where it states none."""
    path = file_of_model(source, "README.md")
    data = ModelCard.load(path, ignore_metadata_errors=True).data if path is not None else ModelCardData()
    return {"license": data.license, "language": data.language}
