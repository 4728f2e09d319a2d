"""Conversion of BERT, RoBERTa and ELECTRA checkpoints to MAGIC model folders, and back."""

from pathlib import Path
from typing import Any, NamedTuple

from modeling_magic import MagicConfig
from modeling_magic.conversion import FAMILIES, chain_config, convert_from_magic, convert_to_magic, load_magic

from ..data.fitting import fit_tokenizer
from ..files import written_at_once
from .export import check_export_folder, export_model, write_files
from .model_folders import card_facts, fetch_folder, file_of_model, model_in, public_name, tokenizer_of
from .sentence_folders import (
    CROSS_ENCODER_FIELDS,
    MODULES_NAME,
    cross_encoder_files,
    embedding_files,
    is_cross_encoder,
    json_of,
    read_modules,
    transformer_settings,
)


# The model types that a checkpoint can be converted to.
TARGETS = (MagicConfig.model_type, *FAMILIES)


def convert_checkpoint(
    source: str, output_dir: str | Path, to: str = "magic", tokenizer: str | None = None
) -> tuple[Path, tuple[str, ...]]:
    """Writes a checkpoint as a model folder of another type. Returns it and what was dropped, such as weights.

    A sentence-transformers folder remains one: its pooling, normalisation, longest input and prompts are kept.

    Args:
        source: a folder or a name on the Hub: a BERT, RoBERTa or ELECTRA to convert to `"magic"`, or a MAGIC child to
            convert to one of these.
        output_dir: the folder to write. A MAGIC model is written as by `export_model`, others as by transformers.
        to: `"magic"`, `"bert"`, `"roberta"` or `"electra"`.
        tokenizer: a name or a folder. Default: the source's tokenizer is kept.

    Raises:
        ValueError: `to` is unknown, the source cannot be converted, a named or needed tokenizer does not exist, or
            `output_dir` holds something else.
    """
    if to not in TARGETS:
        raise ValueError(f"cannot convert to {to!r}; choose one of {', '.join(TARGETS)}")
    source, output_dir = model_in(source), Path(output_dir)
    check_export_folder(output_dir)
    sentences = _read_sentences(source)
    chain_config(sentences.encoder)
    found = tokenizer_of(tokenizer or sentences.encoder)
    if to == MagicConfig.model_type and found is not None:
        magic, dropped = convert_to_magic(sentences.encoder)
        for name, value in sentences.settings.items():
            setattr(magic.config, name, value)
        manifest = {
            "converted_from": public_name(sentences.encoder if Path(source).expanduser().is_dir() else source),
            "dropped_weights": list(dropped),
            "sentence_embeddings": sentences.facts,
            **card_facts(source),
        }
        return export_model(magic, found, output_dir, manifest, files=sentences.files), (*dropped, *sentences.left_out)
    if found is None and (to == MagicConfig.model_type or tokenizer is not None):
        raise ValueError(f"{tokenizer or source} holds no tokenizer; name one with --tokenizer")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        # It may be the source.
        raise ValueError(f"{output_dir} holds a MAGIC model; use another folder")
    model, dropped = convert_from_magic(load_magic(sentences.encoder), to)
    for name, value in sentences.settings.items():
        setattr(model.config, name, value)
    # There may be an empty folder.
    with written_at_once(output_dir, replaces=True) as temporary:
        model.save_pretrained(temporary)
        if found is not None:
            fit_tokenizer(found, model.config).save_pretrained(temporary)
        write_files(temporary, sentences.files)
    return output_dir, (*dropped, *sentences.left_out)


class _Sentences(NamedTuple):
    """The parts of a source that belong to sentence-transformers.

    Attributes:
        encoder: where the encoder's weights are: a folder, or the source's name.
        files: the text of the files to write with the result, by their paths.
        settings: the keys of the configuration that a CrossEncoder reads.
        facts: facts about the embeddings for search.json, `None` if the result makes none.
        left_out: descriptions of what the result cannot keep.
    """

    encoder: str
    files: dict[str, str]
    settings: dict[str, Any]
    facts: dict[str, Any] | None
    left_out: tuple[str, ...]


def _read_sentences(source: str) -> _Sentences:
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if _file_or_none(source, MODULES_NAME) is None:
            return _Sentences(source, {}, {}, None, ())
        folder = fetch_folder(source)
    if is_cross_encoder(folder):
        values = json_of(folder / "config.json")
        settings = {name: values[name] for name in CROSS_ENCODER_FIELDS if name in values}
        return _Sentences(str(folder), cross_encoder_files(folder), settings, None, ())
    try:
        modules = read_modules(folder, source)
    except ValueError as error:
        return _Sentences(str(folder), {}, {}, None, (f"the modules for sentence embeddings ({error})",))
    if modules is None:
        return _Sentences(source, {}, {}, None, ())
    encoder = folder / modules.transformer
    config = chain_config(encoder)
    max_length = transformer_settings(encoder).get("max_seq_length")
    if max_length is None:
        tokenizer = tokenizer_of(encoder)
        max_length = config.max_sequence_length if tokenizer is None else tokenizer.model_max_length
    max_length = min(int(max_length), config.max_sequence_length)
    facts = {"pooling": json_of(folder / modules.pooling / "config.json"), "max_length": max_length}
    facts["normalize"] = modules.normalize is not None
    left_out = tuple(sorted(path.name for path in folder.iterdir() if path.name in ("onnx", "openvino")))
    files = embedding_files(folder, modules, config.hidden_size, max_length)
    return _Sentences(str(encoder), files, {}, facts, left_out)


def _file_or_none(source: str, name: str) -> Path | None:
    try:
        return file_of_model(source, name)
    except (OSError, ValueError):
        # If there is no such model, reading its configuration raises the error.
        return None
