"""Atomic writing of files and folders, typed reading of JSON, and the cache on disk.

Everything is written under a temporary name next to its target, flushed to the disk and renamed. After a kill, a full
disk or a power failure, either the old or the new content is there. Temporary files of a killed process are removed by
the next process that writes there.
"""

import csv
import errno
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import fields, is_dataclass
from hashlib import blake2b, file_digest
from importlib.resources.abc import Traversable
from pathlib import Path
from types import UnionType
from typing import IO, Any, NamedTuple, Union, get_args, get_origin, get_type_hints


try:
    import fcntl
except ImportError:
    # Windows has no such locks; nothing is treated as a leftover there.
    fcntl = None  # type: ignore[assignment]


# ---- Writing ----


def write_bytes(path: str | os.PathLike, content: bytes) -> None:
    """Writes a file atomically; on failure, no temporary file is left."""
    path = Path(path)
    # Processes that write at the same time have separate temporary files.
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    with full_disk_named(path):
        try:
            with _own_file(temporary) as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    _flush(path.parent)


def check_output(path: Path, suffixes: Sequence[str], inputs: Iterable[str | Path] = ()) -> None:
    """Checks that a command can write its result to a file, and creates the file's folder.

    Args:
        path: the file.
        suffixes: the suffixes that it may have.
        inputs: files and folders that the command reads, none of whose files may be replaced.

    Raises:
        ValueError: the file cannot be written, has another suffix, or is part of the input.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder; give a file")
    if path.suffix not in suffixes:
        raise ValueError(f"{path} cannot be written; give a file that ends in {' or '.join(suffixes)}")
    for source in map(Path, inputs):
        if path.resolve() == source.expanduser().resolve():
            raise ValueError(f"{path} is also the input; give another output")
        if path.exists() and path.resolve().is_relative_to(source.expanduser().resolve()):
            raise ValueError(f"{path} is part of {source}, which is the input; give another output")
    make_output_folder(path.parent, path)


def make_output_folder(folder: Path, output: Path | None = None) -> None:
    """Creates the folder of an output if it is missing, and checks that this process can write there.

    Args:
        folder: the folder.
        output: the file or folder that an error names. Default: `folder`.

    Raises:
        ValueError: the folder cannot be created or written.
        OSError: the disk is full.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        if is_full_disk(error):
            raise
        reason = error.strerror or type(error).__name__
        is_cached = folder.absolute().is_relative_to(cache_folder(None).absolute())
        remedy = "set MAGIC_CACHE to another folder" if is_cached else "give another output"
        raise ValueError(f"{output or folder} cannot be written ({reason}); {remedy}") from None


def write_text(path: str | os.PathLike, text: str) -> None:
    """Writes a text file atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as JSON atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | os.PathLike, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Writes a CSV file atomically."""
    write_text(path, csv_text(columns, rows))


def csv_text(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Returns a table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([columns, *rows])
    return text.getvalue()


def read_csv(path: Path | Traversable) -> tuple[list[str], list[tuple[int, dict[str, str | None]]]]:
    """Returns the columns of a CSV table, and its rows with the numbers of their last lines.

    Args:
        path: the table, whose first line names the columns. A byte order mark, which spreadsheets write, is accepted.

    Raises:
        ValueError: the file is not UTF-8 text, a quotation mark is not closed, or a cell is too long.
    """
    try:
        reader = csv.DictReader(io.StringIO(path.read_text(encoding="utf-8-sig"), newline=""), strict=True)
        rows = [(reader.line_num, row) for row in reader]
        return list(reader.fieldnames or ()), rows
    except csv.Error as error:
        raise ValueError(
            f"{path} is not a CSV table ({error}); look for a quotation mark that is not closed"
        ) from None
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


@contextmanager
def written_at_once(path: Path, replaces: bool = False) -> Iterator[Path]:
    """Yields a temporary path for a file or a folder and renames it to `path` at the end, so `path` is never partial.

    Args:
        path: the final path.
        replaces: whether to replace an existing folder; otherwise the existing one stays, since another process was
            faster with the same content.

    Raises:
        ValueError: the folder to replace is a mount point, or the file or folder cannot be written.
    """
    # "." and ".." have neither a name nor a parent to write next to.
    path = path.resolve() if path.name in ("", "..") else path.absolute()
    if replaces and path.is_mount():
        raise ValueError(f"{path} is a mount point, which cannot be replaced; name a folder inside it")
    make_output_folder(path.parent, path)
    remove_leftovers(path.parent, path.name)
    with full_disk_named(path), _own_folder(path) as folder:
        temporary = folder / path.name
        yield temporary
        usual = _usual_modes(folder, path.name)
        for written in (temporary, *temporary.rglob("*")):
            _open_to_readers(written, usual)
            _flush(written)
        try:
            if replaces and path.is_dir():
                # The old folder is complete in one of the two places at any time.
                path.rename(folder / _OLD)
            temporary.replace(path)
        except OSError:
            # A folder cannot replace a folder.
            if replaces or not path.is_dir():
                raise
        finally:
            if (folder / _OLD).is_dir() and not path.exists():
                (folder / _OLD).rename(path)
    _flush(path.parent)


class _Modes(NamedTuple):
    """The permissions of new files and new folders according to the process's umask."""

    file: int
    folder: int


def _usual_modes(folder: Path, taken: str) -> _Modes:
    """Returns the permissions of new entries in `folder`; the umask cannot be read without changing it.

    Args:
        folder: a temporary folder, which is removed together with the new entries.
        taken: a name that is in use.
    """
    file, inside = folder / f"{taken}-file", folder / f"{taken}-folder"
    file.touch()
    inside.mkdir()
    return _Modes(file.stat().st_mode & 0o777, inside.stat().st_mode & 0o777)


def _open_to_readers(path: Path, usual: _Modes) -> None:
    """Gives a file or a folder the usual permissions: safetensors and others write files for their owner only."""
    if not path.is_symlink():
        path.chmod(path.stat().st_mode | (usual.folder if path.is_dir() else usual.file))


@contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """Yields a folder next to `path` that this process locks during the context and removes afterwards."""
    with ExitStack() as stack:
        while True:
            made = tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-")
            folder = Path(stack.enter_context(made))
            descriptor = _open(folder)
            if descriptor is None:
                break
            stack.callback(os.close, descriptor)
            _hold(descriptor, waits=True)
            # Before it was locked, another process could remove it as a leftover.
            if folder.is_dir():
                break
        yield folder


@contextmanager
def _own_file(path: Path) -> Iterator[IO[bytes]]:
    """Yields a new file that this process locks during the context."""
    while True:
        with open(path, "wb") as file:
            _hold(file.fileno(), waits=True)
            if path.exists():
                yield file
                return


# Messages that other libraries raise for a full disk instead of an OSError with a number: safetensors and tokenizers
# (both in Rust), torch.save, pyarrow.
_FULL = re.compile(
    r"no space left|os error (28|122|27)\b|quota exceeded|PytorchStreamWriter failed writing|unexpected pos \d+ vs",
    re.I,
)
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def full_disk_named(path: Path) -> Iterator[None]:
    """Turns any error that a library raises for a full disk into an OSError that names `path`."""
    try:
        yield
    except Exception as error:
        if not is_full_disk(error):
            raise
        number = error.errno if isinstance(error, OSError) and error.errno else errno.ENOSPC
        raise OSError(number, os.strerror(number), str(path)) from error


def is_full_disk(error: BaseException) -> bool:
    """Whether an error means that a disk is full, or a quota or the largest file size is reached."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in FULL_DISK
    return isinstance(error, Exception) and _FULL.search(str(error)) is not None


def _open(path: Path) -> int | None:
    try:
        return os.open(path, os.O_RDONLY)
    except OSError:
        # Windows does not open folders.
        return None


def _flush(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk, if the system supports it."""
    descriptor = _open(path)
    if descriptor is None:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        # Some file systems cannot flush a folder.
        pass
    finally:
        os.close(descriptor)


# ---- Leftovers of killed processes ----


# The name under which `written_at_once` keeps the folder that it replaces.
_OLD = "old"
_TEMPORARY_FILE = re.compile(r".+\.\d+\.tmp")
_TEMPORARY_FOLDER = re.compile(r"\.(?P<name>.+)-[a-z0-9_]{8}")


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Removes temporary files and folders that killed processes left in `folder`.

    Those of a running process are kept: it holds a lock, which ends with the process.

    Args:
        folder: the folder to clean, without its subfolders.
        name: the name of the final file or folder whose leftovers are removed; by default all are removed.
    """
    for path in list(folder.iterdir()) if folder.is_dir() else ():
        of_file = _TEMPORARY_FILE.fullmatch(path.name) is not None
        of_folder = _TEMPORARY_FOLDER.fullmatch(path.name)
        if path.is_symlink() or not (of_file if path.is_file() else of_folder and _is_temporary(path, of_folder[1])):
            continue
        if name is None or (path.name.startswith(f"{name}.") if of_file else of_folder and of_folder[1] == name):
            _remove_unheld(path, folder / of_folder[1] if of_folder else None)


def _is_temporary(folder: Path, name: str) -> bool:
    """Whether a folder contains only what `written_at_once` creates; other folders may have similar names."""
    return {path.name for path in folder.iterdir()} <= {name, _OLD}


def _remove_unheld(path: Path, target: Path | None) -> None:
    """Removes a temporary file or folder that no process has locked."""
    descriptor = _open(path)
    if descriptor is None:
        return
    try:
        if not _hold(descriptor):
            return
        if target is not None and (path / _OLD).exists() and not target.exists():
            # The process was killed between two renames, and the new content is already complete.
            (path / target.name).replace(target)
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()
    finally:
        os.close(descriptor)


def _hold(descriptor: int, waits: bool = False) -> bool:
    """Locks an open file or folder for this process, and returns whether it succeeded."""
    if fcntl is None:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if waits else fcntl.LOCK_NB))
    except OSError:
        # Another process holds the lock, or the file system has no locks.
        return False
    return True


# ---- Folders with a list of their files ----


def write_listing(folder: Path, name: str) -> None:
    """Writes a list of the files directly in `folder`, with sizes and hashes, once all of them are on the disk."""
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.name != name)
    for path in files:
        _flush(path)
    write_json(folder / name, {path.name: {"size": path.stat().st_size, "blake2b": _hash(path)} for path in files})


def listing_fault(folder: Path, name: str) -> str | None:
    """Returns how a folder differs from its list; `None` if all its files are unchanged.

    Raises:
        OSError: there is no list.
    """
    try:
        listing = json.loads((folder / name).read_text(encoding="utf-8"))
        if not listing:
            return f"{name} is damaged"
        for file, facts in listing.items():
            path = folder / file
            if not path.is_file():
                return f"{file} is missing"
            if (size := path.stat().st_size) != facts["size"]:
                return f"{file} has {size:,} bytes instead of {facts['size']:,}"
            if _hash(path) != facts["blake2b"]:
                return f"{file} has different content from when it was written"
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return f"{name} is damaged"
    return None


def _hash(path: Path) -> str:
    with open(path, "rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()


def file_sha256(path: Path) -> str:
    """Returns the SHA-256 of a file, as `sha256sum` prints it; the file is read in pieces."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


# ---- Reading ----


# Floats that JSON numbers cannot represent.
_NOT_FINITE = ("nan", "inf", "-inf")


def read_text(path: str | os.PathLike) -> str:
    """Returns the content of a text file.

    Raises:
        ValueError: the file is not UTF-8.
    """
    try:
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None


def read_json(path: str | os.PathLike) -> Any:
    """Returns the content of a JSON file.

    Raises:
        ValueError: the file is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}; restore it, or delete it to start over") from None


def from_json(kind: Any, value: Any, where: str) -> Any:
    """Returns a value of the type `kind` from its form after `asdict` and JSON.

    Args:
        kind: a dataclass, or a type of its fields: a tuple, a mapping, a plain type or a union of these.
        value: the value in JSON; for a float, a whole number, "nan", "inf" and "-inf" are also accepted.
        where: a description of the value, for the error.

    Raises:
        ValueError: the value has another type; the first difference is named.
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
    """Returns `cache_dir`; for `None`, $MAGIC_CACHE, or ~/.cache/magic-nas if that is not set."""
    return Path(cache_dir or os.environ.get("MAGIC_CACHE") or Path.home() / ".cache" / "magic-nas").expanduser()


def short_hash(*values: Any) -> str:
    """Returns a short hash of JSON values, for file names."""
    return blake2b(json.dumps(values, sort_keys=True).encode(), digest_size=12).hexdigest()
