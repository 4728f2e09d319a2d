"""The record that search.json keeps of its folder: hashes of the files, the configuration, and the writer.

Anyone who can write to the folder can also write this record. It shows whether files are those that were exported, but
it is not signed.
"""

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..files import file_sha256, read_json
from .card import CARD_NAME


MANIFEST_NAME = "search.json"
CONFIG_NAME = "config.json"
CONTENTS = "contents"
# Compared by value, without the keys that transformers adds, as it rewrites these files with every model. `use_cache`
# is set by `Trainer` and means nothing for an encoder.
_BY_VALUE = {
    CONFIG_NAME: ("transformers_version", "use_cache"),
    "tokenizer_config.json": ("is_local", "local_files_only"),
}
_OWN_HASH = "record_sha256"
_FRONT_MATTER = re.compile(r"\A---\n.*?^---$", re.DOTALL | re.MULTILINE)
_CODE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_DIGIT = re.compile(r"\d")


def with_contents(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a manifest with the key "contents", which describes the other files of the folder.

    In it, "json" has the contents of config.json and tokenizer_config.json, "sha256" a hash of each other file except
    the card (a push writes the repository's name into it), "card_lines" a hash of each `numbered_lines` of the card,
    "written_by" this package's version, and "record_sha256" a hash of everything else in search.json.

    Args:
        manifest: the manifest for search.json. "contents" from an older export is replaced.
        folder: the folder, in which all other files have been written.
    """
    files = files_in(folder)
    contents: dict[str, Any] = {
        "written_by": _writer(),
        "json": {name: read_json(files[name]) for name in _BY_VALUE if name in files},
        "sha256": {
            name: file_sha256(path)
            for name, path in files.items()
            if name not in (CARD_NAME, MANIFEST_NAME, *_BY_VALUE)
        },
    }
    if CARD_NAME in files:
        contents["card_lines"] = list(map(line_sha256, numbered_lines(files[CARD_NAME].read_text(encoding="utf-8"))))
    record = {**manifest, CONTENTS: contents}
    return {**record, CONTENTS: {**contents, _OWN_HASH: record_sha256(record)}}


def numbered_lines(card: str) -> list[str]:
    """Returns the lines of a card that have a digit, without its front matter, headings and code."""
    body = _FRONT_MATTER.sub("", card)
    lines = _CODE.sub("", body).splitlines()
    return [line.strip() for line in lines if _DIGIT.search(line) and not line.startswith("#")]


def line_sha256(line: str) -> str:
    """Returns the hash that `with_contents` records of a line of the card."""
    return sha256(line.encode()).hexdigest()


def is_written_here(record: Mapping[str, Any]) -> bool:
    """Returns whether search.json names the installed version of this package as its writer."""
    return mapping_at(record, CONTENTS).get("written_by") == _writer()


def _writer() -> str:
    return f"magic-nas {version('magic-nas')}"


def files_in(folder: Path) -> dict[str, Path]:
    """Returns the files in a folder and its subfolders by their relative paths, sorted."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def record_sha256(record: Mapping[str, Any]) -> str:
    """Returns the hash of the values in search.json, whatever its layout, without this hash itself."""
    # As the file is read back: keys that are numbers become text.
    values = json.loads(json.dumps(record))
    if isinstance(values.get(CONTENTS), dict):
        values[CONTENTS].pop(_OWN_HASH, None)
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recorded_sha256(record: Mapping[str, Any]) -> str | None:
    """Returns the hash that search.json has of itself, `None` if it has none."""
    return mapping_at(record, CONTENTS).get(_OWN_HASH)


def recorded_hashes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recorded hashes by path, empty for an export of an earlier release."""
    return mapping_at(mapping_at(record, CONTENTS), "sha256")


def recorded_lines(record: Mapping[str, Any]) -> list[str] | None:
    """Returns the recorded hashes of the card's lines, `None` for an export of an earlier release."""
    lines = mapping_at(record, CONTENTS).get("card_lines")
    return list(map(str, lines)) if isinstance(lines, list) else None


def recorded_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the recorded contents of the files compared by value, by path; empty for an earlier release's export."""
    return mapping_at(mapping_at(record, CONTENTS), "json")


def differing_keys(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which a JSON file differs from its record.

    Args:
        name: the path of the file.
        recorded: its recorded contents.
        found: its present contents.
    """
    missing = object()
    keys = sorted((recorded.keys() | found.keys()) - set(_BY_VALUE.get(name, ())))
    return [key for key in keys if recorded.get(key, missing) != found.get(key, missing)]


def mapping_at(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the mapping at a key, or an empty one if there is none, as a file may contain anything."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}
