"""What search.json says of the folder that it lies in: hashes of the files, the configuration, who wrote them.

Whoever can write the folder can write this record too. It tells that files are those that were exported, or which are
not; it is signed by nobody.
"""

import json
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
# Compared by what they say, less what transformers writes of itself: it saves them anew with every model. An encoder
# has no cache for `use_cache`, which `Trainer` sets.
_BY_VALUE = {
    CONFIG_NAME: ("transformers_version", "use_cache"),
    "tokenizer_config.json": ("is_local", "local_files_only"),
}
_OWN_HASH = "record_sha256"


def with_contents(manifest: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Returns a manifest with the key "contents", which describes the other files of the folder.

    Its "json" has what config.json and tokenizer_config.json hold, "sha256" a hash of each other file but the card,
    into which a push writes the repository's name, "written_by" this package's version, and "record_sha256" a hash of
    all else that search.json says.

    Args:
        manifest: for search.json; what an older export has said of its files is replaced.
        folder: in which all other files are written.
    """
    files = files_in(folder)
    contents = {
        "written_by": f"magic-nas {version('magic-nas')}",
        "json": {name: read_json(files[name]) for name in _BY_VALUE if name in files},
        "sha256": {
            name: file_sha256(path)
            for name, path in files.items()
            if name not in (CARD_NAME, MANIFEST_NAME, *_BY_VALUE)
        },
    }
    record = {**manifest, CONTENTS: contents}
    return {**record, CONTENTS: {**contents, _OWN_HASH: record_sha256(record)}}


def files_in(folder: Path) -> dict[str, Path]:
    """Returns the files of a folder and of the folders in it, by their paths there, in order."""
    found = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return dict(sorted(found.items()))


def record_sha256(record: Mapping[str, Any]) -> str:
    """Returns the hash of what search.json says, whatever its layout, without this hash itself."""
    # As it reads back: numbers that are keys become text.
    values = json.loads(json.dumps(record))
    if isinstance(values.get(CONTENTS), dict):
        values[CONTENTS].pop(_OWN_HASH, None)
    return sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def recorded_sha256(record: Mapping[str, Any]) -> str | None:
    """Returns the hash that search.json has of itself, `None` where it has none."""
    return mapping_at(record, CONTENTS).get(_OWN_HASH)


def recorded_hashes(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the hashes on record by the files' paths; empty for an export of an earlier release."""
    return mapping_at(mapping_at(record, CONTENTS), "sha256")


def recorded_json(record: Mapping[str, Any]) -> dict[str, Any]:
    """Returns what the files held that are compared by it, by their paths; empty as `recorded_hashes`."""
    return mapping_at(mapping_at(record, CONTENTS), "json")


def differing_keys(name: str, recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Returns the keys in which a file of JSON is another one than on record.

    Args:
        name: the file's.
        recorded: what it held.
        found: what it holds.
    """
    missing = object()
    keys = sorted((recorded.keys() | found.keys()) - set(_BY_VALUE.get(name, ())))
    return [key for key in keys if recorded.get(key, missing) != found.get(key, missing)]


def mapping_at(values: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the mapping that a key has, an empty one where it has none: what is read may be anything."""
    value = values.get(name)
    return value if isinstance(value, dict) else {}
