"""Files that are whole or not there, JSON read back as it was written, and the cache on disk.

Everything is written under a temporary name beside its place, flushed to the disk and renamed: after a kill, a full
disk or a power cut there is the old content or the new one.
"""

import csv
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from hashlib import blake2b
from pathlib import Path
from types import UnionType
from typing import Any, NamedTuple, Union, get_args, get_origin, get_type_hints


# ---- Writing ----


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file at once; where that fails, nothing is left beside it."""
    path = Path(path)
    # Each of several processes that end at once has a file of its own.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file at once, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as JSON at once."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file at once."""
    write_text(path, csv_text(columns, rows))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


@contextmanager
def written_at_once(path: Path, replaces: bool = False) -> Iterator[Path]:
    """Yields a place to write a file or a folder, renamed to `path` at the end: `path` is complete or not there.

    Args:
        path: where it ends.
        replaces: whether it takes the place of a folder that is there; otherwise that one stays, since another process
            was faster with the same content.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as folder:
        temporary = Path(folder) / path.name
        yield temporary
        usual = _usual_modes(Path(folder), path.name)
        for written in (temporary, *temporary.rglob("*")):
            _open_to_readers(written, usual)
            _flush(written)
        if replaces and path.is_dir():
            # Whole in one place or the other at every moment.
            path.rename(Path(folder) / "old")
        try:
            temporary.replace(path)
        except OSError:
            # A folder does not replace a folder.
            if not path.is_dir():
                raise
    _flush(path.parent)


class _Modes(NamedTuple):
    """The permissions that new files and new folders have by the process's umask."""

    file: int
    folder: int


def _usual_modes(folder: Path, taken: str) -> _Modes:
    """Returns the permissions of what is made in `folder`; to ask for the umask one would have to change it.

    Args:
        folder: goes away with what is made there.
        taken: a name that is not free.
    """
    file, inside = folder / f"{taken}-file", folder / f"{taken}-folder"
    file.touch()
    inside.mkdir()
    return _Modes(file.stat().st_mode & 0o777, inside.stat().st_mode & 0o777)


def _open_to_readers(path: Path, usual: _Modes) -> None:
    """Gives a file or a folder the permissions of a new one: safetensors and others write for their owner alone."""
    if not path.is_symlink():
        path.chmod(path.stat().st_mode | (usual.folder if path.is_dir() else usual.file))


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk, where the system can tell."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        # Windows does not open folders.
        return
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot flush a folder.
        pass
    finally:
        os.close(descriptor)


# ---- Reading ----


# JSON has no numbers for these.
_NOT_FINITE = ("nan", "inf", "-inf")


def read_json(path: str | os.PathLike) -> Any:
    """Returns what a JSON file holds.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}; restore it, or delete it to begin anew") from None


def from_json(kind: Any, value: Any, where: str) -> Any:
    """Returns a value of the type `kind` from what `asdict` and JSON made of it.

    Args:
        kind: a dataclass, or what its fields have: a tuple, a mapping, a plain type or several of these.
        value: as JSON has it; where a float is wanted a whole number is taken too, and "nan", "inf" and "-inf".
        where: what the value is, for the error.

    Raises:
        ValueError: it is of another type; the first place that differs is named.
    """
    if isinstance(kind, type) and is_dataclass(kind):
        names = [item.name for item in fields(kind)]
        if not isinstance(value, dict) or value.keys() != set(names):
            found = ", ".join(value) if isinstance(value, dict) else value
            raise ValueError(f"{where} has {found}; expected {', '.join(names)}")
        types = get_type_hints(kind)
        return kind(**{name: from_json(types[name], value[name], f"{where}'s {name}") for name in names})
    inner = get_args(kind)
    if get_origin(kind) is tuple and isinstance(value, list):
        return tuple(from_json(inner[0], item, where) for item in value)
    if get_origin(kind) is Mapping and isinstance(value, dict):
        return {name: from_json(inner[1], item, f"{where}'s {name}") for name, item in value.items()}
    plain = inner if get_origin(kind) in (Union, UnionType) else (kind,)
    if float in plain and ((type(value) is int and int not in plain) or value in _NOT_FINITE):
        return float(value)
    if type(value) in plain:
        return value
    raise ValueError(f"{where} is {value!r}")


# ---- The cache on disk ----


def cache_folder(cache_dir: str | Path | None) -> Path:
    """Returns `cache_dir`; for `None` $MAGIC_CACHE, or else ~/.cache/magic-nas."""
    return Path(cache_dir or os.environ.get("MAGIC_CACHE") or Path.home() / ".cache" / "magic-nas").expanduser()


def short_hash(*values: Any) -> str:
    """Returns a short hash of JSON values, for the name of a file."""
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=12).hexdigest()
