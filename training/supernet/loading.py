"""Loading trained super-nets: the model, the record of its search, one of its children, and recipes that follow it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoModelForMaskedLM

from modeling_magic import MagicForMaskedLM

from ..hub.export import export_model, search_manifest
from ..pretrained import pretrained_model, pretrained_tokenizer
from ..runs.folders import read_result, read_settings
from ..runs.recipes import mapping_of
from ..space.search_space import parse_architecture


if TYPE_CHECKING:
    # Exports can also be written without a search, where datasets may not be installed.
    from ..data.text import PreparedData


SUPERNET_FOLDER = "supernet"


def check_vocabulary(supernet: str, data: "PreparedData") -> None:
    """Raises a ValueError if the text was tokenized with a vocabulary other than the super-net's."""
    trained_with = pretrained_tokenizer(supernet_folder(supernet))
    if trained_with.get_vocab() != data.tokenizer.get_vocab():
        raise ValueError(
            f"the tokenizer's vocabulary ({len(data.tokenizer)} tokens) differs from the super-net's "
            f"({len(trained_with)}), so its embeddings would stand for other words; set data.tokenizer to {supernet}"
        )


def read_search(run: str | Path) -> dict[str, Any]:
    """Returns the result of a finished super-net run or search.

    Raises:
        ValueError: the run has not finished, or is of another kind.
    """
    record = read_result(Path(run))
    if record is None or "candidate_operators" not in record:
        if not Path(run).is_dir():
            raise ValueError(f"there is no folder {run}; give the folder of a super-net run or of a model")
        remedy = "give the folder in which `magic-nas pretrain` or `magic-nas search` has finished"
        raise ValueError(f"{run} does not contain a finished super-net run; {remedy}")
    return record


def load_supernet(folder: str | Path) -> MagicForMaskedLM:
    """Returns the super-net in a run's folder or in a model folder.

    Raises:
        ValueError: the folder does not contain a model, or its weights are damaged.
    """
    folder = supernet_folder(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} does not contain a model; give the folder of a finished `magic-nas pretrain`")
    model, _ = pretrained_model(AutoModelForMaskedLM, folder, "the super-net")
    return model


def supernet_folder(folder: str | Path) -> Path:
    """Returns the model folder inside a super-net run; any other folder is returned as it is."""
    inside = Path(folder) / SUPERNET_FOLDER
    return inside if inside.is_dir() else Path(folder)


def export_child(source: str | Path, output_dir: str | Path, architecture: str | None = None) -> Path:
    """Exports a child of a finished super-net run with the super-net's weights, and returns the folder.

    Args:
        source: a super-net run.
        output_dir: where to write the model folder.
        architecture: the child to export. Default: the one that the run found.

    Raises:
        ValueError: `source` is not a finished run, or the architecture is not in its space.
    """
    source = Path(source)
    search = read_search(source)
    child = parse_architecture(architecture) if architecture else tuple(search["architecture"])
    model = load_supernet(source).extract_child(child)
    tokenizer = pretrained_tokenizer(source / SUPERNET_FOLDER)
    found = list(child) == search["architecture"]
    return export_model(model, tokenizer, output_dir, {"search": search_manifest(search) if found else None})


def follow_supernet(supernet: str | Path, recipe: dict[str, Any]) -> dict[str, Any]:
    """Returns a search recipe for a super-net, with the text and tokenizer of its run unless the recipe sets them.

    Args:
        supernet: a finished super-net run, or the folder of a super-net.
        recipe: a search recipe, which may be empty.
    """
    folder = str(supernet_folder(supernet).resolve())
    data = read_settings(supernet)["data"] if read_result(Path(supernet)) is not None else {}
    return {
        **recipe,
        "supernet": str(Path(supernet).resolve()),
        "data": {**data, "tokenizer": folder, **mapping_of("data", recipe)},
    }
