"""Checks of the files of an export against the hashes in its search.json, and of that record itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import modeling_magic
from modeling_magic.modeling_magic import AUTO_MAP

from ..files import file_sha256
from .card import CARD_NAME
from .contents import (
    CONFIG_NAME,
    MANIFEST_NAME,
    differing_keys,
    mapping_at,
    record_sha256,
    recorded_hashes,
    recorded_json,
    recorded_sha256,
)
from .export import CODE_FILES, CONFIG_CODE, SENTENCE_FILES, TOKENIZER_FILES
from .sentence_folders import json_of
from .verified_folder import (
    CODE_SUFFIXES,
    DIFFERS,
    EXECUTED_SUFFIXES,
    NO_JSON,
    NOT_RECORDED,
    OK,
    PICKLE_SUFFIXES,
    UNREADABLE,
    Check,
    VerifiedFolder,
    check,
    compare,
)


# A phrase that identifies the card of an export.
MENTIONS_RECORD = f"`{MANIFEST_NAME}` beside the weights"

_SHOWN_DIGITS = 12
_SAME_CODE = "as in the installed magic-nas"
_OTHER_CODE = "of a version other than the installed magic-nas"
_WEIGHT_SUFFIXES = (".safetensors", ".h5", ".msgpack", ".index.json", *PICKLE_SUFFIXES)
_ONNX_CODE = f"onnx/{CONFIG_CODE}"
# Files that a training leaves next to the weights that it has changed.
_TRACES = ("training_args.bin", "trainer_state.json", "eval_results.json", "optimizer.pt")


def check_record(folder: VerifiedFolder) -> Check:
    """Returns the check that search.json exists, can be read, and is unchanged since it was written."""
    if MANIFEST_NAME not in folder.files:
        if folder.card is not None and MENTIONS_RECORD in folder.card:
            return check(MANIFEST_NAME, "named by the card", "missing", DIFFERS)
        return check(MANIFEST_NAME, None, "missing", NOT_RECORDED)
    if fault := folder.faults.get(MANIFEST_NAME):
        return check(MANIFEST_NAME, None, fault, DIFFERS)
    recorded = recorded_sha256(folder.record)
    if recorded is None and folder.is_recorded:
        return check(MANIFEST_NAME, None, "no hash of itself", DIFFERS, "every export records it, so it was removed")
    return _compare_hashes(MANIFEST_NAME, recorded, record_sha256(folder.record), "it was edited after the export")


def check_files(folder: VerifiedFolder) -> Iterator[Check]:
    """Yields a check for each file against its record, and checks for files that are not on record."""
    hashes, values = recorded_hashes(folder.record), recorded_json(folder.record)
    if not hashes and MANIFEST_NAME in folder.files and MANIFEST_NAME not in folder.faults:
        note = "every export records them, so they were removed; export the model again"
        yield check("hashes of the files", None, f"none in {MANIFEST_NAME}", DIFFERS, note)
    if CONFIG_NAME not in values and (fault := folder.faults.get(CONFIG_NAME)):
        yield check(CONFIG_NAME, None, fault, DIFFERS)
    for name, recorded in sorted(values.items()):
        yield _check_json(folder, name, recorded)
    for name, recorded in sorted(hashes.items()):
        yield _check_file(folder, name, recorded)
    for name in (name for name in CODE_FILES if name in folder.files and name not in hashes):
        is_same = _is_installed(name, file_sha256(folder.files[name]))
        yield check(_called(name), None, _SAME_CODE if is_same else _OTHER_CODE, NOT_RECORDED)
    if hashes:
        yield from _check_strays(folder, {*hashes, *values, CARD_NAME, MANIFEST_NAME})
    else:
        yield from _name_executables(folder)


def _check_json(folder: VerifiedFolder, name: str, recorded: Any) -> Check:
    what = _called(name)
    if name not in folder.files:
        return check(what, "a file", "missing", DIFFERS)
    try:
        found = json_of(folder.files[name])
        keys = differing_keys(name, recorded, found)
    except UNREADABLE:
        return check(what, "a JSON mapping", NO_JSON, DIFFERS)
    if not keys:
        return check(what, f"{len(recorded)} keys", "the same values", OK)
    shown = ", ".join(f"{key} {found.get(key)}" for key in keys)
    return check(what, ", ".join(f"{key} {recorded.get(key)}" for key in keys), shown, DIFFERS)


def _check_file(folder: VerifiedFolder, name: str, recorded: Any) -> Check:
    if name not in folder.files:
        return _compare_hashes(_called(name), recorded, "missing")
    found = file_sha256(folder.files[name])
    if name not in CODE_FILES:
        return _compare_hashes(_called(name), recorded, found, _why_other(folder, name))
    if found != recorded and _is_installed(name, found):
        # The folder was saved again with this package, whose code is used wherever it is installed.
        return check(_called(name), _short(recorded), _short(found), OK, f"not the exported one, but {_SAME_CODE}")
    known = _SAME_CODE if _is_installed(name, found) else _OTHER_CODE
    same = _compare_hashes(_called(name), recorded, found)
    return same if same.verdict != OK else check(same.what, same.recorded, same.found, OK, known)


def _why_other(folder: VerifiedFolder, name: str) -> str:
    if not name.endswith(_WEIGHT_SUFFIXES):
        return ""
    traces = [trace for trace in _TRACES if trace in folder.files]
    told = f"; {traces[0]} shows that a training ran in this folder" if traces else ""
    return f"the weights are not the exported ones{told}"


def _compare_hashes(what: str, recorded: Any, found: str, note: str = "") -> Check:
    same = compare(what, recorded, found, note)
    return Check(what, _short(same.recorded), _short(same.found), same.verdict, same.note)


def _short(value: Any) -> str:
    return str(value)[:_SHOWN_DIGITS]


def _is_installed(name: str, found: str) -> bool:
    return found == file_sha256(Path(modeling_magic.__file__).with_name(name))


def _check_strays(folder: VerifiedFolder, known: set[str]) -> Iterator[Check]:
    """Yields checks for files that are not on record. Those that a model could be loaded from are a difference."""
    others = []
    for name in (name for name in folder.files if name not in known):
        if name == _ONNX_CODE:
            yield _check_onnx_code(folder)
        elif _is_loaded(name):
            yield check(_called(name), "no such file", "a file", DIFFERS)
        elif name.endswith(EXECUTED_SUFFIXES):
            yield check(_called(name), None, "a file that can run code", NOT_RECORDED, "nothing here loads it")
        else:
            others.append(name)
    if others:
        yield check("further files", None, ", ".join(others), NOT_RECORDED)


def _check_onnx_code(folder: VerifiedFolder) -> Check:
    """Returns the check of the code with which config.json in onnx/ is read: that of the export or the package."""
    found, own = file_sha256(folder.files[_ONNX_CODE]), recorded_hashes(folder.record).get(CONFIG_CODE)
    is_known = found == own or _is_installed(CONFIG_CODE, found)
    shown = "that of this model" if is_known else "other code"
    return check(_called(_ONNX_CODE), "that of this model", shown, OK if is_known else DIFFERS)


def _name_executables(folder: VerifiedFolder) -> Iterator[Check]:
    """Yields checks for files of a folder without a record that could run code, and for code named in config.json."""
    for name in folder.files:
        if name.endswith(EXECUTED_SUFFIXES) and name not in CODE_FILES:
            yield check(_called(name), None, "a file that can run code", NOT_RECORDED)
    for kind, target in mapping_at(folder.values, "auto_map").items():
        if not folder.is_magic or AUTO_MAP.get(kind) != target:
            note = "code that transformers runs with trust_remote_code=True"
            yield check(f"auto_map: {kind}", None, target, NOT_RECORDED, note)


def _is_loaded(name: str) -> bool:
    if name in _TRACES or (name.startswith("onnx/") and not name.endswith(CODE_SUFFIXES)):
        return False
    is_loaded = name in (*TOKENIZER_FILES, *SENTENCE_FILES, CONFIG_NAME, "adapter_config.json")
    return is_loaded or name.endswith((*_WEIGHT_SUFFIXES, *CODE_SUFFIXES))


def _called(name: str) -> str:
    """Returns the name of a file in the table: its purpose and path."""
    kinds: Mapping[str, bool] = {
        "weights": name.endswith(_WEIGHT_SUFFIXES),
        "code": name.endswith(CODE_SUFFIXES),
        "tokenizer": name in TOKENIZER_FILES,
    }
    kind = next((kind for kind, is_it in kinds.items() if is_it), None)
    return name if kind is None else f"{kind}: {name}"
