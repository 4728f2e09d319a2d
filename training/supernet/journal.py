"""The journal of a search: one line of JSON per evaluated child, written to disk before the evaluation counts.

Reading a journal needs neither torch nor a model, so queries about past evaluations are fast.
"""

import errno
import hashlib
import json
import logging
import math
import os
import re
import weakref
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Generic, Self, TypeVar, overload

from filelock import FileLock

from ..displays import html_paragraphs
from ..files import from_json, make_output_folder
from ..space.search_space import Architecture, ShownArchitecture, format_architecture, parse_architecture


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
_CHECKSUM = b', "crc32": '
_HEADER_START = f'{{"magic_journal": {FORMAT_VERSION}, "key": '.encode()
# An architecture as this module writes it.
_FORMATTED = re.compile(r"[A-Za-z]\w*(?:,[A-Za-z]\w*)*", re.ASCII)
# The exceptions raised by reading a line that is not a record.
_DAMAGES = (ValueError, KeyError, TypeError, AttributeError)
# Descriptions of a difference in each part of the key.
_FOREIGN = {
    "weights": "another super-net's weights",
    "data": "other validation data",
    "candidate_operators": "another search space",
    "precision": "another precision",
    "sizes": "other sizes or dropout",
}


@dataclass(frozen=True)
class RankedChild:
    """A child with the scores that search and analysis rank it by.

    Attributes:
        architecture: one operator name per layer.
        val_loss: mean masked-LM cross-entropy over the masked validation tokens, lower is better.
        val_accuracy: share of the masked validation tokens predicted correctly, higher is better: Val in section 4.
        batch_losses: the summed cross-entropy over the masked tokens of each validation batch, used to compare two
            children batch by batch; empty if it was not kept.
    """

    architecture: Architecture
    val_loss: float
    val_accuracy: float
    batch_losses: tuple[float, ...] = field(default=(), compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "architecture", ShownArchitecture(self.architecture))

    def _repr_html_(self) -> str:
        """Returns the operators from the bottom up and the scores, for a notebook."""
        numbers = f"val_loss {self.val_loss:.4f}, val_accuracy {100 * self.val_accuracy:.1f}%"
        return ShownArchitecture(self.architecture)._repr_html_() + html_paragraphs([numbers])


Child = TypeVar("Child", bound=RankedChild)


class Journal(Generic[Child]):
    """An append-only file of evaluated children: JSON lines, each with a checksum, under a header with a key.

    Several processes may work on one journal. A line left incomplete by a killed process is cut off; any other damage
    is an error, as is a journal of other weights, data or operators.

    Attributes:
        path: the file.
        key: the key in the header, which applies to all records.
    """

    @overload
    def __init__(
        self: "Journal[RankedChild]", path: str | os.PathLike, key: Mapping[str, Any] | None = None
    ) -> None: ...

    @overload
    def __init__(self, path: str | os.PathLike, key: Mapping[str, Any] | None, child_type: type[Child]) -> None: ...

    def __init__(self, path: str | os.PathLike, key: Mapping[str, Any] | None = None, child_type: Any = RankedChild):
        """Opens a journal, or creates one.

        Args:
            path: the file; PATH.lock and PATH.claims are kept next to it.
            key: everything that the records depend on, as JSON. `None` opens an existing journal for reading, whatever
                its key.
            child_type: the dataclass of a record: `RankedChild`, or one that adds fields to it (numbers and tuples of
                floats).

        Raises:
            ValueError: the file is not a journal, a line of it is damaged, it has another key, or it is opened for
                reading and does not exist.
        """
        self.path = Path(path)
        self._child_type: type[Child] = child_type
        # Offset of the line of each child, by its architecture as text: journals may be larger than memory.
        self._places: dict[str, int] = {}
        # Offset of the end of the last whole line that was read, and the number of lines read.
        self._position = 0
        self._num_lines = 0
        self._lock = FileLock(f"{self.path}.lock")
        self._claims: _Claims | None = None
        self._may_append = key is not None
        if key is None:
            self.key = self._open_for_reading()
        else:
            self.key = json.loads(json.dumps(key))
            self._open_for_appending()

    # ---- Opening ----

    def _open_for_reading(self) -> dict[str, Any]:
        if not self.path.is_file():
            raise ValueError(f"the journal {self.path} does not exist; give a file that a search has written")
        torn = self._read_lines()
        if not self._num_lines:
            raise ValueError(f"{self.path} is not a journal of evaluated children: it has no complete header line")
        if torn:
            self._warn("is incomplete: it is being written, or a process was killed while writing it; it is ignored")
        return self._found_key

    def _open_for_appending(self) -> None:
        make_output_folder(self.path.parent, self.path)
        with self._lock:
            self.path.touch()
            self._read_lines()
            if self._num_lines:
                self.check_key(self.key)
            self._read_to_the_end()
            if not self._num_lines:
                self._write_line({"magic_journal": FORMAT_VERSION, "key": self.key})
                self._found_key = self.key

    def check_key(self, key: Mapping[str, Any]) -> None:
        """Raises a ValueError that names the differences if the journal does not belong to `key`."""
        key, found = json.loads(json.dumps(key)), self._found_key
        names = [name for name in {**found, **key} if found.get(name) != key.get(name)]
        if names:
            differing = " and ".join(_FOREIGN.get(name, f"another {name}") for name in names)
            raise ValueError(
                f"the journal {self.path} belongs to {differing}; give another file or folder, or use what it was "
                f"made with"
            )

    # ---- Reading ----

    def refresh(self) -> None:
        """Reads what other processes have appended.

        Raises:
            ValueError: a line is damaged, or the file has become shorter.
        """
        self._read_lines()

    def get(self, architecture: Sequence[str]) -> Child | None:
        """Returns the record of a child, or `None` if the journal, as last read, has none."""
        place = self._places.get(format_architecture(architecture))
        if place is None:
            return None
        child = next(self._children_at([place]))
        if child.architecture != tuple(architecture):
            raise ValueError(self._replaced())
        return child

    def __iter__(self) -> Iterator[Child]:
        """Yields the recorded children in the order of their evaluation, reading them one by one."""
        return self._children_at(list(self._places.values()))

    def __len__(self) -> int:
        return len(self._places)

    def _children_at(self, places: Sequence[int]) -> Iterator[Child]:
        with open(self.path, "rb") as file:
            for place in places:
                file.seek(place)
                try:
                    yield self._child_of(file.readline().removesuffix(b"\n"))
                except _DAMAGES as error:
                    raise ValueError(self._replaced()) from error

    def _replaced(self) -> str:
        return f"the journal {self.path} was truncated or replaced while it was in use; start the search again"

    def _read_lines(self) -> bytes:
        """Reads the new complete lines; returns what follows the last newline."""
        size = self.path.stat().st_size
        if size == self._position:
            return b""
        if size < self._position:
            raise ValueError(self._replaced())
        with open(self.path, "rb") as file:
            file.seek(self._position)
            for line in file:
                if not line.endswith(b"\n"):
                    return line
                self._read_line(line[:-1])
                self._position += len(line)
                self._num_lines += 1
        return b""

    def _read_line(self, line: bytes) -> None:
        if not self._num_lines:
            self._found_key = self._read_header(line)
            return
        try:
            record = _payload_of(line)
            _values_of(record, self._child_type)
            text = format_architecture(_architecture_of(record["architecture"]))
        except _DAMAGES as error:
            raise ValueError(
                f"line {self._num_lines + 1} of the journal {self.path} is damaged ({error}), so the file is not "
                f"used; delete that line, whose child is then evaluated again, or give another file"
            ) from error
        self._places.setdefault(text, self._position)

    def _child_of(self, line: bytes) -> Child:
        record = _payload_of(line)
        values = _values_of(record, self._child_type)
        return self._child_type(architecture=_architecture_of(record["architecture"]), **values)

    def _read_header(self, line: bytes) -> dict[str, Any]:
        try:
            header = _payload_of(line)
            version, key = header["magic_journal"], dict(header["key"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"line 1 of {self.path} is not a journal header, or it is damaged ({error}); give another file"
            ) from error
        if version != FORMAT_VERSION:
            raise ValueError(
                f"the journal {self.path} has format {version}, but this version reads {FORMAT_VERSION}; give another "
                f"file"
            )
        return key

    def _read_to_the_end(self) -> None:
        """Reads what is new and cuts off an incomplete line; called under the lock, while no one writes a line."""
        torn = self._read_lines()
        if not torn:
            return
        # Do not truncate some other file that was given by mistake.
        if not self._num_lines and torn[: len(_HEADER_START)] != _HEADER_START[: len(torn)]:
            raise ValueError(f"{self.path} is not a journal of evaluated children; give another file")
        self._warn(
            "is incomplete because a process was killed while writing it; it is cut off, and its child counts as not "
            "evaluated"
        )
        os.truncate(self.path, self._position)

    def _warn(self, what: str) -> None:
        logger.warning(f"line {self._num_lines + 1} of the journal {self.path}, the last one, {what}")

    # ---- Writing ----

    def append(self, child: Child) -> None:
        """Records a child; when it returns, the line is on disk.

        If another process has recorded the child in the meantime, its record is kept.

        Raises:
            OSError: the line could not be written completely, as on a full disk; the file is then unchanged.
            ValueError: the journal was opened for reading.
        """
        if not self._may_append:
            raise ValueError(
                f"the journal {self.path} was opened for reading; open it with the key of its evaluations"
            )
        with self._lock:
            self._read_to_the_end()
            text = format_architecture(child.architecture)
            if text not in self._places:
                place = self._position
                self._write_line(_record_of(child))
                self._places[text] = place

    def _write_line(self, payload: dict[str, Any]) -> None:
        line = _line_of(payload)
        # Unbuffered: one write of the whole line at the end of the file, whatever others have appended.
        with open(self.path, "ab", buffering=0) as file:
            try:
                if file.write(line) != len(line):
                    raise OSError(errno.ENOSPC, "no room for a whole line", str(self.path))
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(self._position)
                raise
        self._position += len(line)
        self._num_lines += 1

    # ---- Sharing the work ----

    @contextmanager
    def claim(self, architecture: Sequence[str]) -> Iterator[bool]:
        """Gives the right to evaluate a child to one process at a time; yields whether this process has it.

        The operating system releases the claim when the process ends, for whatever reason. On systems without such
        locks every claim is granted: work may then be done twice, but records are never mixed up.
        """
        digest = hashlib.sha256(format_architecture(architecture).encode()).digest()
        # File offsets go up to 2**63 - 1. Children with the same offset exclude each other, which only costs time.
        offset = int.from_bytes(digest[:8], "big") >> 2
        if self._claims is None:
            self._claims = _Claims.of(Path(f"{self.path}.claims").absolute())
        granted = self._claims.take(offset)
        try:
            yield granted
        finally:
            if granted:
                self._claims.free(offset)


class _Claims:
    """The file whose bytes are locked for claimed children, opened once per process.

    POSIX releases all locks that a process has on a file when the process closes any descriptor of it, and has no
    locks between parts of one process. Those are kept in `_held` together with the process id, so a fork does not
    inherit them.
    """

    _opened: ClassVar[weakref.WeakValueDictionary[Path, Self]] = weakref.WeakValueDictionary()

    def __init__(self, path: Path):
        self._held: set[tuple[int, int]] = set()
        self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def of(cls, path: Path) -> Self:
        claims = cls._opened.get(path)
        if claims is None:
            claims = cls._opened[path] = cls(path)
        return claims

    def take(self, offset: int) -> bool:
        if (os.getpid(), offset) in self._held:
            return False
        if fcntl is not None:
            try:
                fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, offset)
            except (BlockingIOError, PermissionError):
                return False
        self._held.add((os.getpid(), offset))
        return True

    def free(self, offset: int) -> None:
        self._held.discard((os.getpid(), offset))
        if fcntl is not None:
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, offset)


def _line_of(payload: dict[str, Any]) -> bytes:
    text = json.dumps(payload, allow_nan=False).encode()
    return text[:-1] + _CHECKSUM + b'"%08x"}\n' % zlib.crc32(text)


def _payload_of(line: bytes) -> dict[str, Any]:
    text, _, checksum = line.rpartition(_CHECKSUM)
    text += b"}"
    if checksum != b'"%08x"}' % zlib.crc32(text):
        raise ValueError("its checksum is wrong")
    return json.loads(text.decode())


# JSON has no NaN or infinity, which the losses of a diverged child may be: these are written as text.
def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value


def _record_of(child: RankedChild) -> dict[str, Any]:
    record = {field.name: _to_json(getattr(child, field.name)) for field in fields(child)}
    return {**record, "architecture": format_architecture(child.architecture)}


def _values_of(record: dict[str, Any], child_type: Any) -> dict[str, Any]:
    """Returns the fields of a record except its architecture, with their types checked."""
    return {name: _value_of(kind, record[name], name) for name, kind in _kinds_of(child_type)}


def _value_of(kind: Any, value: Any, name: str) -> Any:
    # A journal may hold many millions of these numbers, nearly all of which are already floats.
    if kind is float and type(value) is float:
        return value
    if kind == tuple[float, ...] and type(value) is list and set(map(type, value)) <= {float}:
        return tuple(value)
    return from_json(kind, value, name)


@cache
def _kinds_of(child_type: Any) -> list[tuple[str, Any]]:
    return [(field.name, field.type) for field in fields(child_type) if field.name != "architecture"]


def _architecture_of(text: str) -> Architecture:
    """Parses like `parse_architecture`, but many times faster."""
    return tuple(text.split(",")) if _FORMATTED.fullmatch(text) else parse_architecture(text)
