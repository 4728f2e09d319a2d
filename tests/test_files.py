"""Files are whole or not there, whatever happens while they are written."""

import errno
import json
import math
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training import files
from training.files import (
    cache_folder,
    check_output,
    csv_text,
    file_sha256,
    from_json,
    listing_fault,
    make_output_folder,
    read_json,
    remove_leftovers,
    short_hash,
    write_bytes,
    write_csv,
    write_json,
    write_listing,
    write_text,
    written_at_once,
)


def test_what_is_written_reads_back(tmp_path):
    write_json(tmp_path / "a.json", {"b": [1, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"b": [1, None, "ü"]}
    assert (tmp_path / "a.json").read_text().endswith("}\n")
    write_csv(tmp_path / "a.csv", ["x", "y"], [[1, 'a "b", c'], [0.1, None]])
    assert (tmp_path / "a.csv").read_bytes() == b'x,y\n1,"a ""b"", c"\n0.1,\n'
    write_text(tmp_path / "a.txt", "ü\n")
    assert (tmp_path / "a.txt").read_bytes() == "ü\n".encode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "a.json", "a.txt"]


def test_a_large_file_is_hashed_in_little_memory(tmp_path):
    path, size = tmp_path / "large", 48 * 2**20
    with path.open("wb") as file:
        file.truncate(size)
        file.seek(size - 3)
        file.write(b"end")
    tracemalloc.start()
    try:
        found = file_sha256(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert found == sha256(bytes(size - 3) + b"end").hexdigest()
    assert peak < size / 20


class Full(OSError):
    pass


@pytest.mark.parametrize("step", ["write", "fsync"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, step):
    path = tmp_path / "a.json"
    write_json(path, 1)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    if step == "fsync":
        monkeypatch.setattr(files.os, "fsync", full)
    else:
        real_open = open

        def open_full(name, mode="r", *rest, **kwargs):
            file = real_open(name, mode, *rest, **kwargs)
            if mode == "wb":
                file.write = full
            return file

        monkeypatch.setattr("builtins.open", open_full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_json(path, 2)
    assert caught.value.filename == str(path)
    monkeypatch.undo()
    assert read_json(path) == 1
    assert [item.name for item in tmp_path.iterdir()] == ["a.json"]


def test_content_is_on_the_disk_before_its_name(tmp_path, monkeypatch):
    """A power cut after the rename must not leave an empty file under the name."""
    steps = []
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor):
        steps.append("fsync")
        fsync(descriptor)

    def replaced(path, target):
        steps.append("rename")
        return replace(path, target)

    monkeypatch.setattr(files.os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    write_bytes(tmp_path / "a", b"x")
    # The last one is of the folder, which holds the name.
    assert steps == ["fsync", "rename", "fsync"]
    steps.clear()
    with written_at_once(tmp_path / "folder") as temporary:
        temporary.mkdir()
        (temporary / "one").write_text("1")
        (temporary / "two").write_text("2")
    assert steps == ["fsync"] * 3 + ["rename", "fsync"]


def test_a_kill_while_it_writes_leaves_the_old_file(tmp_path):
    path = tmp_path / "a.json"
    write_json(path, {"old": 1})
    script = (
        "import os, signal, sys\n"
        "from training import files\n"
        "files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)\n"
        f"files.write_json({str(path)!r}, {{'new': 'x' * 100000}})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert done.returncode == -9, done.stderr.decode()
    assert read_json(path) == {"old": 1}


def test_processes_that_write_one_file_break_none(tmp_path, monkeypatch):
    """Another process, with a number of its own, writes the same file while this one is at it."""
    path = tmp_path / "table.csv"

    def rows():
        yield ("ours",)
        with monkeypatch.context() as other:
            other.setattr(files.os, "getpid", lambda: 0)
            write_csv(path, ["name"], [("theirs",)])
        assert path.read_text() == "name\ntheirs\n"

    write_csv(path, ["name"], rows())
    assert path.read_text() == "name\nours\n"


def test_a_folder_stays_unless_it_is_to_be_replaced(tmp_path):
    for content in ("first", "second"):
        with written_at_once(tmp_path / "folder") as temporary:
            temporary.mkdir()
            (temporary / content).touch()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["first"]
    with written_at_once(tmp_path / "folder", replaces=True) as temporary:
        temporary.mkdir()
        (temporary / "third").touch()
        assert (tmp_path / "folder" / "first").exists()
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask")
@pytest.mark.parametrize("name", [".", ".."])
def test_the_current_folder_and_the_one_above_can_be_replaced(tmp_path, monkeypatch, name):
    (tmp_path / "here" / "inside").mkdir(parents=True)
    (tmp_path / "here" / "before").touch()
    monkeypatch.chdir(tmp_path / "here" if name == "." else tmp_path / "here" / "inside")
    with written_at_once(Path(name), replaces=True) as temporary:
        temporary.mkdir()
        (temporary / "after").touch()
    assert [path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")] == ["here", "here/after"]


def test_a_folder_that_cannot_be_moved_away_is_an_error(tmp_path, monkeypatch):
    folder, rename = tmp_path / "folder", Path.rename
    folder.mkdir()
    (folder / "before").touch()

    def busy(path, target):
        if path == folder:
            raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(path))
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", busy)
    with pytest.raises(OSError, match="busy"), written_at_once(folder, replaces=True) as temporary:
        temporary.mkdir()
    assert [path.name for path in tmp_path.rglob("*")] == ["folder", "before"]


def test_a_mount_point_is_rejected_before_anything_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "is_mount", lambda path: path == tmp_path)
    with pytest.raises(ValueError, match=r"is a mount point.*name a folder inside it"):
        with written_at_once(tmp_path, replaces=True):
            pytest.fail("the content was computed")
    with written_at_once(tmp_path / "inside", replaces=True) as temporary:
        temporary.mkdir()
    assert (tmp_path / "inside").is_dir()


@pytest.mark.parametrize(("umask", "file_mode", "folder_mode"), [(0o022, 0o644, 0o755), (0o027, 0o640, 0o750)])
def test_permissions_are_those_that_the_umask_gives(tmp_path, umask, file_mode, folder_mode):
    """Whatever a library that writes under a temporary name of its own has left, such as 0600."""
    before = os.umask(umask)
    try:
        with written_at_once(tmp_path / "folder") as temporary:
            (temporary / "inside").mkdir(parents=True)
            (temporary / "inside").chmod(0o700)
            save_file({"a": torch.ones(1)}, temporary / "inside" / "a.safetensors")
            (temporary / "inside" / "a.safetensors").chmod(0o600)
            (temporary / "link").symlink_to(tmp_path / "elsewhere")
        with written_at_once(tmp_path / "file") as temporary:
            temporary.touch(mode=0o600)
        write_text(tmp_path / "text", "")
    finally:
        os.umask(before)
    modes = {path.relative_to(tmp_path).as_posix(): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*[!k]")}
    assert modes == {
        "folder": folder_mode,
        "folder/inside": folder_mode,
        "folder/inside/a.safetensors": file_mode,
        "file": file_mode,
        "text": file_mode,
    }


def test_what_fails_half_way_leaves_what_was_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def fail(temporary):
        temporary.mkdir()
        (temporary / "new").touch()
        raise Full

    with pytest.raises(Full), written_at_once(tmp_path / "folder", replaces=True) as temporary:
        fail(temporary)
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        Exception("No space left on device (os error 28)"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 9881600 vs 9881492"),
        RuntimeError("[enforce fail at inline_container.cc:626] . PytorchStreamWriter failed writing file data/0"),
    ],
)
def test_a_full_disk_is_named_with_its_path_whatever_a_library_raises(tmp_path, error):
    with pytest.raises(OSError, match=r"No space left|quota exceeded") as caught, written_at_once(tmp_path / "folder"):
        raise error
    assert caught.value.errno in files.FULL_DISK
    assert caught.value.filename == str(tmp_path / "folder")
    assert list(tmp_path.iterdir()) == []


def test_other_errors_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="shapes differ"), written_at_once(tmp_path / "folder"):
        raise RuntimeError("shapes differ")


# ---- What killed processes left ----


KILLED = """
import os, signal, sys
from pathlib import Path
from training import files
folder = Path(sys.argv[1])
with files.written_at_once(folder / "model", replaces=True) as temporary:
    temporary.mkdir()
    (temporary / "weights").write_text("half")
    files.os.fsync = lambda _: os.kill(os.getpid(), signal.SIGKILL)
    files.write_json(folder / "a.json", 1)
"""


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_leftovers_of_a_killed_process_go_and_those_of_a_living_one_stay(tmp_path):
    (tmp_path / ".cache-abcdefgh").mkdir()
    (tmp_path / ".cache-abcdefgh" / "foreign").touch()
    write_text(tmp_path / "notes.tmp", "a user's own")
    killed = subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, check=False)
    assert killed.returncode == -9, killed.stderr.decode()
    left = [name for name in names(tmp_path) if name.startswith((".model-", "a.json."))]
    assert len(left) == 2
    with written_at_once(tmp_path / "other") as temporary:
        temporary.mkdir()
        remove_leftovers(tmp_path)
        (own,) = (name for name in names(tmp_path) if name.startswith(".other-"))
        assert names(tmp_path) == [".cache-abcdefgh", own, "notes.tmp"]
    assert names(tmp_path) == [".cache-abcdefgh", "notes.tmp", "other"]


def test_writing_a_folder_again_removes_what_a_killed_process_left_of_it(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, tmp_path], capture_output=True, check=False)
    (tmp_path / ".other-abcdefgh" / "other").mkdir(parents=True)
    with written_at_once(tmp_path / "model") as temporary:
        temporary.mkdir()
    # What is not of this name may be anybody's.
    assert [name for name in names(tmp_path) if not name.startswith("a.json.")] == [".other-abcdefgh", "model"]


def test_a_kill_between_two_renames_loses_neither_content(tmp_path):
    for content in ("old", "folder"):
        (tmp_path / ".folder-abcdefgh" / content).mkdir(parents=True)
        (tmp_path / ".folder-abcdefgh" / content / "which").write_text(content)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["folder"]
    assert (tmp_path / "folder" / "which").read_text() == "folder"


def test_an_interruption_between_two_renames_puts_the_old_folder_back(tmp_path, monkeypatch):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "old").touch()

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt), written_at_once(tmp_path / "folder", replaces=True) as temporary:
        temporary.mkdir()
    assert names(tmp_path) == ["folder"]
    assert names(tmp_path / "folder") == ["old"]


# ---- Lists of files ----


def test_a_folder_is_what_its_list_says_or_the_difference_is_told(tmp_path):
    (tmp_path / "weights").write_bytes(b"12345678")
    (tmp_path / "state.json").write_text('{"step": 1}')
    write_listing(tmp_path, "files.json")
    assert listing_fault(tmp_path, "files.json") is None
    # What came later is no part of it.
    (tmp_path / "more").touch()
    assert listing_fault(tmp_path, "files.json") is None
    (tmp_path / "weights").write_bytes(b"12345679")
    assert listing_fault(tmp_path, "files.json") == "weights has different content from when it was written"
    (tmp_path / "weights").write_bytes(b"1234")
    assert listing_fault(tmp_path, "files.json") == "weights has 4 bytes instead of 8"
    (tmp_path / "weights").unlink()
    assert listing_fault(tmp_path, "files.json") == "weights is missing"
    for damaged in ("", "{}", "[]", '{"weights": 3}', '{"weights": {"size"'):
        (tmp_path / "weights").touch()
        (tmp_path / "files.json").write_text(damaged)
        assert listing_fault(tmp_path, "files.json") == "files.json is damaged"


def test_damaged_json_names_its_file_and_a_remedy(tmp_path):
    for text in ('{"a": 1', "[" * 100_000):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(ValueError, match=r"a\.json is damaged: .*; restore it, or delete it to start over"):
            read_json(tmp_path / "a.json")


def test_csv_is_what_csv_reads():
    assert csv_text(("a",), [("x\ny",)]) == 'a\n"x\ny"\n'


def test_hashes_do_not_depend_on_the_order_of_keys():
    assert short_hash({"a": 1, "b": 2}) == short_hash({"b": 2, "a": 1})
    assert short_hash({"a": 1}) != short_hash({"a": 2})
    assert json.dumps(short_hash(1)).isascii()


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "here"))
    assert cache_folder(None) == tmp_path / "here"
    assert cache_folder(tmp_path) == tmp_path
    monkeypatch.delenv("MAGIC_CACHE")
    assert cache_folder(None).parts[-2:] == (".cache", "magic-nas")


@dataclass(frozen=True)
class Point:
    x: float
    name: str | None
    parts: tuple[int, ...]


@dataclass(frozen=True)
class Line:
    ends: tuple[Point, ...]
    by_name: Mapping[str, Point]


def test_what_asdict_and_json_made_becomes_what_it_was(tmp_path):
    point = Point(1.0, None, (1, 2))
    line = Line((point, Point(2.5, "b", ())), {"a": point})
    write_json(tmp_path / "a.json", asdict(line))
    assert from_json(Line, read_json(tmp_path / "a.json"), "the line") == line
    assert from_json(float, "-inf", "x") == -math.inf
    read = from_json(Point, {"x": 3, "name": "n", "parts": []}, "the point")
    assert type(read.x) is float


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"x": "3", "name": None, "parts": []}, "the point's x is '3'"),
        ({"x": True, "name": None, "parts": []}, "the point's x is True"),
        ({"x": 1, "name": None, "parts": [1.5]}, "the point's parts is 1.5"),
        ({"x": 1, "name": None}, "the point has x, name; expected x, name, parts"),
        ([1], r"the point has \[1\]; expected x, name, parts"),
    ],
)
def test_other_types_are_named_with_their_place(value, message):
    with pytest.raises(ValueError, match=message):
        from_json(Point, value, "the point")


# ---- Where a command may write ----


def test_an_output_that_can_be_written_is_accepted_and_its_folder_made(tmp_path):
    (tmp_path / "run").mkdir()
    for name in ("new/deep/scores.json", "run/scores.json"):
        check_output(tmp_path / name, [".json"], [tmp_path / "rows.csv", tmp_path / "run", "a/name-on-the-hub"])
        assert list((tmp_path / name).parent.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("rows.csv", "rows.csv is also the input; give another output"),
        ("run/../rows.csv", "is also the input"),
        ("run/config.json", "config.json is part of .*run, which is the input; give another output"),
        ("run", "run is a folder; give a file"),
        ("scores.txt", r"scores.txt cannot be written; give a file that ends in .json or .csv"),
        ("rows.csv/scores.json", r"scores.json cannot be written \(File exists\); give another output"),
    ],
)
def test_an_output_that_would_be_lost_or_lose_something_is_refused(tmp_path, name, message):
    (tmp_path / "run").mkdir()
    for file in ("rows.csv", "run/config.json"):
        (tmp_path / file).write_text("kept")
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / name, [".json", ".csv"], [tmp_path / "rows.csv", tmp_path / "run"])
    assert {(tmp_path / file).read_text() for file in ("rows.csv", "run/config.json")} == {"kept"}


def test_an_output_on_a_file_system_without_writing_is_refused():
    with pytest.raises(ValueError, match=r"/proc/scores.json cannot be written \(.*\); give another output"):
        check_output(Path("/proc/scores.json"), [".json"])


def test_a_folder_that_cannot_be_made_or_written_is_named_instead_of_a_temporary_file(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=r"file/run cannot be written \(Not a directory\); give another output"):
        make_output_folder(tmp_path / "file" / "run")
    with pytest.raises(ValueError, match=r"^/proc/model cannot be written \(.*\); give another output"):
        with written_at_once(Path("/proc/model"), replaces=True):
            raise AssertionError("nothing can be written")

    def read_only(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(tmp_path / "tmp123"))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", read_only)
    with pytest.raises(ValueError, match=r"new cannot be written \(Read-only file system\)"):
        make_output_folder(tmp_path / "new")


def test_a_cache_that_cannot_be_written_is_to_be_moved(tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "cache"))
    with pytest.raises(ValueError, match=r"cannot be written \(.*\); set MAGIC_CACHE to another folder"):
        make_output_folder(tmp_path / "cache" / "teacher")


def test_a_full_disk_is_not_called_an_output_that_cannot_be_written(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match="No space left"):
        make_output_folder(tmp_path / "new")
