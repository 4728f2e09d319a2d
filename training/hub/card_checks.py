"""Comparison of the numbers in a model card with those of the folder and of search.json."""

import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from huggingface_hub import ModelCard, ModelCardData

from modeling_magic import MagicConfig

from ..space.search_space import compact_architecture
from ..tables import counted
from .card import CARD_NAME, HEADS, render_model_card
from .contents import MANIFEST_NAME, is_written_here, line_sha256, numbered_lines, recorded_lines
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
_COMPARED = "Compared with the checkpoint"
# Values of the front matter that search.json determines.
_FACTS, _ORIGINS = ("license", "language"), ("base_model", "datasets")


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


class _Measured(NamedTuple):
    """What a result is of: data set, split and metric."""

    dataset: str
    split: str
    metric: str


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


def table_rows(text: str, with_words: bool = True) -> list[tuple[str, ...]]:
    """Returns the rows of the tables in a text that have a number after their first cell.

    Args:
        text: Markdown.
        with_words: whether to return whole cells; otherwise only the numbers after the first cell, as written.
    """
    rows = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split("|")[1:-1]] if line.startswith("|") else []
        numbers = tuple(number for cell in cells[1:] for number in _NUMBER.findall(cell))
        if numbers and not all(map(_RULE.fullmatch, cells)):
            rows.append(tuple(cells) if with_words else numbers)
    return rows


def missing_row(expected: str, found: str, with_words: bool = True) -> tuple[str, ...] | None:
    """Returns the first row in the tables of `expected` that `found` lacks, in the same order.

    `found` may have other rows in between. For the arguments see `table_rows`.
    """
    rows = iter(table_rows(found, with_words))
    return next((row for row in table_rows(expected, with_words) if not any(row == other for other in rows)), None)


def further_row(expected: str, found: str, with_words: bool = True) -> tuple[str, ...] | None:
    """Returns the first row in the tables of `found` that `expected` does not have; see `missing_row`."""
    known = table_rows(expected, with_words)
    return next((row for row in table_rows(found, with_words) if row not in known), None)


def front_matter(text: str) -> dict[str, Any]:
    """Returns the front matter of a card, with its results as `EvalResult` under "eval_results".

    Raises:
        ValueError: the front matter cannot be read.
    """
    try:
        data = ModelCard(text).data
        return dict(vars(data)) if isinstance(data, ModelCardData) else {}
    # yaml and the client raise exceptions without a common base class for a damaged front matter.
    except Exception as error:
        reason = " ".join((str(error) or type(error).__name__).split())
        raise ValueError(f"its front matter cannot be read ({reason})") from None


def metadata_results(text: str) -> list[tuple[_Measured, float]]:
    """Returns the results in the front matter of a card, each with its data set, split and metric.

    Raises:
        ValueError: the front matter cannot be read.
    """
    results = front_matter(text).get("eval_results") or ()
    try:
        return [
            (_Measured(one.dataset_name, str(one.dataset_split or ""), one.metric_type), float(one.metric_value))
            for one in results
        ]
    except (TypeError, ValueError) as error:
        raise ValueError(f"its front matter cannot be read ({error})") from None


# ---- Checks ----


class _Expected(NamedTuple):
    """The parts of a card that come from search.json.

    Attributes:
        sections: sections by their headings.
        results: results of the front matter.
        facts: other values of the front matter, `None` for those that it must not have.
    """

    sections: dict[str, Any]
    results: list[tuple[_Measured, float]]
    facts: dict[str, Any]


def check_card(folder: VerifiedFolder) -> Iterator[Check]:
    """Yields checks of the card's numbers against those counted in the folder and those of search.json."""
    text, config = folder.card, folder.child
    if text is None:
        if fault := folder.faults.get(CARD_NAME, "missing" if folder.is_recorded else ""):
            yield check(f"card: {CARD_NAME}", "a card", fault, DIFFERS)
    elif config is not None and folder.record:
        # A card written by the model's owner need not contain all that ours does; what it contains must be true.
        absent = DIFFERS if MENTIONS_RECORD in text else NOT_RECORDED
        yield from _check_numbers(folder, config, card_numbers(text), absent)
        yield from _check_tables(folder, text, _expected(folder, config, text), absent)
        yield from _check_lines(folder, text, absent)


def _expected(folder: VerifiedFolder, config: MagicConfig, text: str) -> _Expected | None:
    """Returns what a card of the folder must contain, `None` if search.json is damaged."""
    record = folder.record
    facts = {name: record[name] for name in _FACTS if record.get(name) is not None}
    # The card of a compression is made from more than search.json holds.
    if section(text, _COMPARED) is not None and ("table" in record or not folder.is_recorded):
        return _Expected({_COMPARED: record.get("table")}, [], facts)
    try:
        card = render_model_card(config, record, "model", None, folder.class_name)
        # Cards of earlier releases had other sections.
        titles = [title for title in _SECTIONS if folder.is_recorded or section(text, title) is not None]
        facts = {name: front_matter(card).get(name) for name in (*_FACTS, *_ORIGINS)}
        return _Expected({title: section(card, title) for title in titles}, metadata_results(card), facts)
    except UNREADABLE:
        return None


def _check_numbers(folder: VerifiedFolder, config: MagicConfig, card: CardNumbers, absent: str) -> Iterator[Check]:
    flops = describe_model(config, HEADS[folder.class_name].flops)["flops"]
    sizes = f"{config.num_hidden_layers} layers x {config.hidden_size}"
    yield _on_card("parameters", card.num_parameters, folder.num_parameters, absent)
    # The card of a compressed model has them only next to those of the checkpoint.
    if card.flops is not None or "compressed_from" not in folder.record:
        yield _on_card("FLOPs", card.flops, f"{flops:.3g}", absent)
    yield _on_card("architecture", card.architecture, config.chain, absent)
    yield _on_card("sizes", card.sizes and "{} layers x {}".format(*card.sizes), sizes, absent)


def _check_lines(folder: VerifiedFolder, text: str, absent: str) -> Iterator[Check]:
    """Yields the check that the card still has all lines with numbers that the export wrote, and no others."""
    recorded = recorded_lines(folder.record)
    if recorded is None:
        return
    what, written = "card: lines with numbers", f"the {counted(len(recorded), 'line')} of the export"
    found = numbered_lines(text)
    missing = Counter(recorded) - Counter(map(line_sha256, found))
    further = [line for line in found if line_sha256(line) not in recorded]
    also = f"; also: {further[0]}" if further else ""
    if missing:
        yield check(what, written, f"{missing.total()} missing or changed{also}", absent)
    elif further:
        note = f"{MANIFEST_NAME} does not have {'it' if len(further) == 1 else 'them'}"
        yield check(what, written, f"{counted(len(further), 'more line')}: {further[0]}", NOT_RECORDED, note)
    else:
        yield check(what, written, "the same", OK)


def _on_card(what: str, recorded: Any, found: Any, absent: str) -> Check:
    if recorded is None:
        return check(f"card: {what}", None, found, absent, "the card does not give it")
    same = compare(f"card: {what}", recorded, found)
    if isinstance(recorded, tuple):
        return check(same.what, compact_architecture(recorded), compact_architecture(found), same.verdict)
    return same


def _check_tables(folder: VerifiedFolder, text: str, expected: _Expected | None, absent: str) -> Iterator[Check]:
    if expected is None:
        yield check("card: tables", None, f"{MANIFEST_NAME} is damaged: no card can be made from it", DIFFERS)
        return
    # Another version may use other words.
    with_words = folder.is_recorded and is_written_here(folder.record)
    for title, recorded in expected.sections.items():
        yield _check_section(title, recorded, section(text, title), absent, with_words)
    try:
        found = front_matter(text)
        yield _check_results(expected.results, metadata_results(text), absent)
    except ValueError as error:
        yield check("card: results of its metadata", None, error, DIFFERS)
        return
    for name, value in expected.facts.items():
        yield from _check_fact(name, value, found.get(name), absent)


def _check_section(title: str, recorded: Any, found: str | None, absent: str, with_words: bool) -> Check:
    what = f"card: {title}"
    if not isinstance(recorded, str):
        return check(what, None, "a table", NOT_RECORDED, f"{MANIFEST_NAME} does not have its numbers")
    if found is None:
        return check(what, "a section", "missing", absent)
    if row := missing_row(recorded, found, with_words):
        return check(what, f"a row with {' '.join(row)}", "no such row", DIFFERS)
    if row := further_row(recorded, found, with_words):
        note = f"{MANIFEST_NAME} does not have this row"
        return check(what, f"as in {MANIFEST_NAME}", f"also a row with {' '.join(row)}", NOT_RECORDED, note)
    return check(what, f"as in {MANIFEST_NAME}", "the same numbers", OK)


def _check_results(results: list[tuple[_Measured, float]], found: list[tuple[_Measured, float]], absent: str) -> Check:
    what, shown = "card: results of its metadata", (_in_words(results), _in_words(found))
    known = {measured for measured, _ in results}
    further = [result for result in found if result not in results]
    if any(measured in known for measured, _ in further):
        return check(what, *shown, DIFFERS)
    if any(result not in found for result in results):
        return check(what, *shown, absent)
    if further:
        return check(what, *shown, NOT_RECORDED, f"{MANIFEST_NAME} does not have all of them")
    return check(what, *shown, OK)


def _check_fact(name: str, recorded: Any, found: Any, absent: str) -> Iterator[Check]:
    """Yields the check of a value of the front matter, unless neither the record nor the card has it."""
    what = f"card: {name} of its metadata"
    if recorded in (None, "unknown"):
        if found not in (None, recorded):
            yield check(what, recorded, found, NOT_RECORDED, f"{MANIFEST_NAME} does not have it")
    elif found is None:
        yield check(what, recorded, "missing", absent)
    else:
        yield compare(what, _listed(recorded), _listed(found))


def _listed(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _in_words(results: list[tuple[_Measured, float]]) -> str:
    return ", ".join(f"{measured.metric} {value:g}" for measured, value in results) or "none"
