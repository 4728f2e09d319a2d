"""Verification of a model folder against its search.json and card: hashes, counts, architecture and scores.

Everything is read with the installed package's own classes: no code from the folder is run, and nothing is unpickled.
The record that a folder is compared with is in the folder itself and is not signed.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import SAFE_WEIGHTS_NAME

from modeling_magic import MagicConfig
from modeling_magic.configuration_magic import without_skips

from ..displays import html_paragraphs, html_table
from ..space.search_space import SearchSpace, compact_architecture
from ..tables import counted, counted_children, markdown_table
from .card import HEADS, corpus_of, own_result
from .card_checks import check_card
from .contents import CONFIG_NAME, MANIFEST_NAME, mapping_at, recorded_hashes
from .export import describe_model
from .file_checks import check_files, check_record
from .model_folders import fetch_folder, model_in
from .rescore import read_judged_on, rescore
from .verified_folder import (
    DIFFERS,
    NOT_CHECKED,
    NOT_MEASURED,
    NOT_RECORDED,
    OK,
    SUPERNET_NAME,
    UNREADABLE,
    Check,
    VerifiedFolder,
    check,
    compare,
)


# Files of an export in addition to those that a model is loaded from.
_FURTHER_FILES = ("*.py", "*.png", "*.yaml")


@dataclass(frozen=True)
class Verification:
    """The result of verifying a model folder.

    Attributes:
        folder: the folder.
        kind: a description of its contents.
        checks: the checks, in order.
    """

    folder: Path
    kind: str
    checks: tuple[Check, ...]

    @property
    def differing(self) -> tuple[str, ...]:
        """The names of the checks in which folder and record differ."""
        return self._having(DIFFERS)

    @property
    def unmeasured(self) -> tuple[str, ...]:
        """The names of the scores that were to be measured again and could not be."""
        return self._having(NOT_MEASURED)

    @property
    def table(self) -> str:
        """The checks as a Markdown table, one per row."""
        rows = [
            (one.what, one.recorded, one.found, f"{one.verdict}: {one.note}" if one.note else one.verdict)
            for one in self.checks
        ]
        return markdown_table(("what", "recorded", "found", "verdict"), rows)

    @property
    def summary(self) -> str:
        """The result in one sentence."""
        what = f"{self.folder}, {self.kind}"
        if self.differing:
            number = f"{len(self.differing)} of {counted(len(self.checks), 'check')}"
            return f"{what}: not as recorded in {number}: {'; '.join(self.differing)}."
        left = [(len(self._having(verdict)), verdict) for verdict in (NOT_CHECKED, NOT_RECORDED)]
        rest = "".join(f", {number} {verdict}" for number, verdict in left if number)
        if self.unmeasured:
            rest += f"; not measured: {', '.join(self.unmeasured)}"
        return f"{what}: nothing differs, {len(self._having(OK))} of {counted(len(self.checks), 'check')} ok{rest}."

    def __repr__(self) -> str:
        return self.summary

    def _repr_html_(self) -> str:
        """The summary and the checks for a notebook."""
        rows = [(one.what, one.recorded, one.found, one.verdict, one.note) for one in self.checks]
        return html_paragraphs([self.summary]) + html_table(("what", "recorded", "found", "verdict", "note"), rows)

    def _having(self, verdict: str) -> tuple[str, ...]:
        return tuple(one.what for one in self.checks if one.verdict == verdict)


def verify_export(folder: str | Path, *, text: str | None = None) -> Verification:
    """Compares a model folder with its record and returns all checks.

    Hashes of weights, tokenizer and code are compared with search.json. Parameters and FLOPs are counted again. The
    architectures in config.json, search.json, the card and the search space are compared. Nothing more is guaranteed:
    the record is in the folder, and anyone who can write to the folder can change both.

    Args:
        folder: a model folder, the folder of a run that holds one, or a name on the Hub.
        text: the location of the text that the recorded loss was measured on. If given, the loss is measured again.

    Raises:
        ValueError: there is no model.
    """
    found = VerifiedFolder(_find(str(folder)))
    checks = [check_record(found), *check_files(found), *_check_counts(found), *check_card(found)]
    return Verification(found.folder, _kind(found), (*checks, *_check_scores(found, text)))


def changed_since_export(folder: str | Path) -> list[str]:
    """Returns what differs in an export from its record, without measuring anything; empty for other folders."""
    found = Path(model_in(folder))
    if not (found / MANIFEST_NAME).is_file():
        return []
    return [one.what for one in verify_export(found).checks if one.verdict == DIFFERS]


def _find(name: str) -> Path:
    folder = Path(name).expanduser()
    if not folder.is_dir():
        return fetch_folder(name, _FURTHER_FILES)
    if (folder / CONFIG_NAME).is_file() or (folder / MANIFEST_NAME).is_file():
        return folder
    for inside in (Path(model_in(folder)), folder / SUPERNET_NAME):
        if (inside / CONFIG_NAME).is_file():
            return inside
    below = sorted(str(path.parent) for path in folder.rglob(CONFIG_NAME))[:5]
    remedy = f"give one of the folders in it: {', '.join(below)}" if below else "give the folder of a model"
    raise ValueError(f"{name} has no {CONFIG_NAME}; {remedy}")


def _kind(found: VerifiedFolder) -> str:
    if found.is_onnx:
        return "an export to ONNX, which has no record: verify the model folder that it was made from"
    if found.is_supernet:
        return "a super-net"
    if MANIFEST_NAME in found.files:
        return "an export"
    return f"a {found.class_name or 'model'} saved by transformers"


# ---- Parameters, FLOPs, architecture ----


def _check_counts(found: VerifiedFolder) -> Iterator[Check]:
    if found.is_onnx:
        return
    yield _check_fit(found)
    if found.child is not None:
        yield from _check_child(found, found.child)
    if found.config is not None and "candidate_operators" in mapping_at(found.record, "search"):
        yield from _check_space(found, found.config)


def _check_fit(found: VerifiedFolder) -> Check:
    """Returns the check that the weights fit the model in config.json by names, shapes and number."""
    what = f"parameters: {CONFIG_NAME} and weights"
    if found.shapes is None:
        is_expected = found.has_weights or SAFE_WEIGHTS_NAME in recorded_hashes(found.record)
        return check(what, None, found.faults[SAFE_WEIGHTS_NAME], DIFFERS if is_expected else NOT_CHECKED)
    if found.model is None:
        note = found.faults.get(CONFIG_NAME, f"{CONFIG_NAME} does not describe a known model")
        return check(what, None, found.num_parameters, NOT_CHECKED, note)
    same, misfits = compare(what, found.model.num_parameters(), found.num_parameters), found.misfits()
    # Checkpoints of other families hold buffers that their class no longer has.
    if not misfits or (not found.is_magic and same.verdict == OK):
        return same
    note = f"{counted(len(misfits), 'tensor')} missing or different in one of the two, such as {misfits[0]}"
    return check(what, found.model.num_parameters(), found.num_parameters, DIFFERS, note)


def _check_child(found: VerifiedFolder, config: MagicConfig) -> Iterator[Check]:
    record, facts = found.record, describe_model(config, HEADS[found.class_name].flops)
    if not record:
        return
    yield compare(f"parameters: {MANIFEST_NAME}", record.get("num_parameters"), found.num_parameters)
    yield compare(f"FLOPs: {MANIFEST_NAME}", record.get("flops"), facts["flops"])
    same = compare(f"architecture: {MANIFEST_NAME}", record.get("architecture"), facts["architecture"])
    yield check(same.what, _compact(record.get("architecture")), _compact(facts["architecture"]), same.verdict)


def _compact(architecture: Any) -> str | None:
    is_chain = isinstance(architecture, list) and all(isinstance(name, str) for name in architecture)
    return compact_architecture(architecture) if is_chain and architecture else architecture


def _check_space(found: VerifiedFolder, config: MagicConfig) -> Iterator[Check]:
    what, search = "architecture: search space", found.record["search"]
    try:
        space = SearchSpace.from_config(search["candidate_operators"])
        child = tuple(search.get("architecture") or config.chain)
        # The found child has SKIP where the model has no layer. Another child may have been trained.
        if not found.is_supernet and without_skips(child) != config.chain:
            child = config.chain
        size = f"{counted(space.num_layers, 'layer')}, {counted_children(space.size)}"
        if found.is_supernet and config.candidate_operators != space.to_json():
            yield check(what, size, f"another space in {CONFIG_NAME}", DIFFERS)
        elif child in space:
            yield check(what, size, _compact(list(child)), OK)
        else:
            yield check(what, size, _compact(list(child)), DIFFERS, "it is not a child of the space")
    except UNREADABLE as error:
        yield check(what, None, f"damaged: {error}", DIFFERS)


# ---- Scores ----


def _check_scores(found: VerifiedFolder, text: str | None) -> Iterator[Check]:
    record, what = found.record, "score on held-out text"
    if found.child is None:
        if text is not None:
            yield check(what, None, None, NOT_MEASURED, "only the folder of one encoder has such a score")
        return
    try:
        own = own_result(record, found.class_name)
        if own:
            yield _check_text_score(found, own, text)
        elif text is not None:
            yield check(what, None, None, NOT_MEASURED, f"{MANIFEST_NAME} has no masked-LM loss")
        elif found.class_name == "MagicForPreTraining" and record.get("results"):
            yield check(what, "a loss", None, NOT_CHECKED, "the tokens were replaced by the generator of the run")
    except UNREADABLE as error:
        yield check(what, None, f"damaged: {error}", DIFFERS)
    for key, note in _OTHER_SCORES.items():
        if record.get(key):
            yield check(f"scores: {key}", f"in {MANIFEST_NAME}", None, NOT_CHECKED, note)


# For keys of search.json, the reason why the scores are not measured again.
_OTHER_SCORES = {
    "scores": "give --eval with the validation file",
    "squad": "they need the questions; score them with `magic-nas squad`",
    "compression": "the loss needs the checkpoint; give --eval for tasks",
}


def _check_text_score(found: VerifiedFolder, own: Mapping[str, float], text: str | None) -> Check:
    what, recorded = "score on held-out text", ", ".join(f"{name} {value:.4f}" for name, value in own.items())
    if text is None:
        return check(what, recorded, None, NOT_CHECKED, "give --text")
    judged_on = read_judged_on(found.record.get("training") or found.record["search"])
    if judged_on is None:
        return check(what, recorded, None, NOT_MEASURED, "how the text was masked is not on record")
    try:
        score = rescore(found.folder, text, corpus_of(found.record), judged_on)._asdict()
    except (ValueError, OSError) as error:
        return check(what, recorded, None, NOT_MEASURED, str(error))
    except UNREADABLE as error:
        return check(what, recorded, None, NOT_MEASURED, f"how the text was read is not on record: {error!r}")
    is_near = all(abs(score[name] - value) <= judged_on.tolerance for name, value in own.items())
    shown = ", ".join(f"{name} {score[name]:.4f}" for name in own)
    return check(
        what, recorded, shown, OK if is_near else DIFFERS, f"within {judged_on.tolerance:g}" if is_near else ""
    )
