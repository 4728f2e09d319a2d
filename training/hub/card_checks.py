"""Comparison of the numbers in a model card with those of the folder and of search.json."""

import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from modeling_magic import MagicConfig

from ..space.search_space import compact_architecture
from .card import CARD_NAME, HEADS, render_model_card
from .contents import MANIFEST_NAME
from .export import describe_model
from .file_checks import MENTIONS_RECORD
from .verified_folder import DIFFERS, NOT_RECORDED, OK, UNREADABLE, Check, VerifiedFolder, check, compare


_PARAMETERS = re.compile(r"^\| parameters \| ([\d,]+)", re.MULTILINE)
_FLOPS = re.compile(r"^\| FLOPs at [^|\n]*\| ([^|\n]+?) \|$", re.MULTILINE)
_ARCHITECTURE = re.compile(r"^## Architecture$[^`]*?^```\n([^`\n]*)\n```$", re.MULTILINE)
_SIZES = re.compile(r"an encoder of (\d+) layers, hidden size\s(\d+)")
_SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
_NUMBER = re.compile(r"\d(?:[\d.,]|e[+-]?\d)*")
_RULE = re.compile(r"[-:]+")
_SECTIONS = ("Origin", "Training", "Results")
# The card of a compression has this section instead.
_COMPARED_WITH_SOURCE = "Compared with its source"


# ---- Reading ----


class CardNumbers(NamedTuple):
    """The numbers that a card gives for a model, `None` where it gives none.

    Attributes:
        num_parameters: the number of parameters.
        flops: the FLOPs, rounded as in the card.
        architecture: one operator name per layer.
        sizes: the number of layers and the hidden size.
    """

    num_parameters: int | None
    flops: str | None
    architecture: tuple[str, ...] | None
    sizes: tuple[int, int] | None


def card_numbers(text: str) -> CardNumbers:
    """Returns the numbers that the text of a card gives for its model."""
    parameters, flops = _PARAMETERS.search(text), _FLOPS.search(text)
    architecture, sizes = _ARCHITECTURE.search(text), _SIZES.search(text)
    digits = parameters[1].replace(",", "") if parameters else ""
    return CardNumbers(
        int(digits) if digits else None,
        flops[1] if flops else None,
        tuple(architecture[1].split(",")) if architecture else None,
        (int(sizes[1]), int(sizes[2])) if sizes else None,
    )


def section(text: str, title: str) -> str | None:
    """Returns the text below a heading of a card, `None` if it has no such heading."""
    parts = _SECTION.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(title)


def table_numbers(text: str) -> list[tuple[str, ...]]:
    """Returns the numbers in each row of the tables in a text, as they are written there.

    The first cell of a row is its name and is skipped. Rows without numbers are skipped too.
    """
    rows = []
    for line in text.splitlines():
        cells = line.split("|")[2:-1] if line.startswith("|") else []
        numbers = tuple(number for cell in cells for number in _NUMBER.findall(cell))
        if numbers and not all(_RULE.fullmatch(cell.strip()) for cell in cells):
            rows.append(numbers)
    return rows


def missing_row(expected: str, found: str) -> tuple[str, ...] | None:
    """Returns the first row of numbers in the tables of `expected` that `found` lacks, in the same order.

    `found` may have other rows in between.
    """
    rows = iter(table_numbers(found))
    return next((row for row in table_numbers(expected) if not any(row == other for other in rows)), None)


def metadata_results(text: str) -> list[tuple[str, str, float]]:
    """Returns the results in the front matter of a card: name of the data set, metric and value.

    Raises:
        ValueError: the front matter cannot be read.
    """
    try:
        data = ModelCard(text).data
        results = data.eval_results if isinstance(data, ModelCardData) else None
        return [(result.dataset_name, result.metric_type, float(result.metric_value)) for result in results or ()]
    # yaml and the client raise exceptions without a common base class for a damaged front matter.
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"its front matter cannot be read ({reason})") from None


# ---- Checks ----


class _Expected(NamedTuple):
    """The parts of a card that come from search.json: sections by their headings, and results of the metadata."""

    sections: dict[str, Any]
    results: list[tuple[str, str, float]]


def check_card(folder: VerifiedFolder) -> Iterator[Check]:
    """Yields checks of the card's numbers against those counted in the folder and those of search.json."""
    text, config = folder.card, folder.child
    if text is None:
        if fault := folder.faults.get(CARD_NAME, "missing" if folder.is_recorded else ""):
            yield check(f"card: {CARD_NAME}", "a card", fault, DIFFERS)
    elif config is not None and folder.record:
        # A card written by the model's owner need not contain all that ours does.
        absent = DIFFERS if MENTIONS_RECORD in text else NOT_RECORDED
        yield from _check_numbers(folder, config, card_numbers(text), absent)
        yield from _check_tables(text, _expected(folder, config, text), absent)


def _expected(folder: VerifiedFolder, config: MagicConfig, text: str) -> _Expected | None:
    """Returns what a card of the folder must contain, `None` if search.json is damaged."""
    record = folder.record
    # The card of a compression is made from more than search.json holds.
    if section(text, _COMPARED_WITH_SOURCE) is not None and ("table" in record or not folder.is_recorded):
        return _Expected({_COMPARED_WITH_SOURCE: record.get("table")}, [])
    try:
        card = render_model_card(config, record, "model", None, folder.class_name)
        # Cards of earlier releases had other sections.
        titles = [title for title in _SECTIONS if folder.is_recorded or section(text, title) is not None]
        return _Expected({title: section(card, title) for title in titles}, metadata_results(card))
    except UNREADABLE:
        return None


def _check_numbers(folder: VerifiedFolder, config: MagicConfig, card: CardNumbers, absent: str) -> Iterator[Check]:
    flops = describe_model(config, HEADS[folder.class_name].flops)["flops"]
    sizes = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    yield _on_card("parameters", card.num_parameters, folder.num_parameters, absent)
    # The card of a compressed model has them only next to those of its source.
    if card.flops is not None or "compressed_from" not in folder.record:
        yield _on_card("FLOPs", card.flops, f"{flops:.3g}", absent)
    yield _on_card("architecture", card.architecture, config.chain, absent)
    yield _on_card("sizes", card.sizes and "{} layers x {}".format(*card.sizes), sizes, absent)


def _on_card(what: str, recorded: Any, found: Any, absent: str) -> Check:
    if recorded is None:
        return check(f"card: {what}", None, found, absent, "the card does not give it")
    same = compare(f"card: {what}", recorded, found)
    if isinstance(recorded, tuple):
        return check(same.what, compact_architecture(recorded), compact_architecture(found), same.verdict)
    return same


def _check_tables(text: str, expected: _Expected | None, absent: str) -> Iterator[Check]:
    if expected is None:
        yield check("card: tables", None, f"{MANIFEST_NAME} is damaged: no card can be made from it", DIFFERS)
        return
    for title, recorded in expected.sections.items():
        yield _check_section(title, recorded, section(text, title), absent)
    yield _check_metadata(text, expected.results, absent)


def _check_section(title: str, recorded: Any, found: str | None, absent: str) -> Check:
    what = f"card: {title}"
    if not isinstance(recorded, str):
        return check(what, None, "a table", NOT_RECORDED, f"{MANIFEST_NAME} does not have its numbers")
    if found is None:
        return check(what, "a section", "missing", absent)
    row = missing_row(recorded, found)
    if row is None:
        return check(what, f"as in {MANIFEST_NAME}", "the same numbers", OK)
    return check(what, f"a row with {' '.join(row)}", "no such row", absent)


def _check_metadata(text: str, results: list[tuple[str, str, float]], absent: str) -> Check:
    what = "card: results of its metadata"
    try:
        found = metadata_results(text)
    except ValueError as error:
        return check(what, None, error, DIFFERS)
    shown = (_in_words(results), _in_words(found))
    if any(result not in found for result in results):
        return check(what, *shown, absent)
    if len(found) > len(results):
        return check(what, *shown, NOT_RECORDED, f"{MANIFEST_NAME} does not have all of them")
    return check(what, *shown, OK)


def _in_words(results: list[tuple[str, str, float]]) -> str:
    return ", ".join(f"{metric} {value:g}" for _, metric, value in results) or "none"
