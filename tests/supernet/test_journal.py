"""The journal of a search: what a kill, a full disk, a flipped bit or a second process may do to it, and may not."""

import json
import math
import multiprocessing
import os
import random
import resource
import signal
import struct
import subprocess
import sys
import time
import tracemalloc
import zlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import given, settings
from hypothesis import strategies as st

from training.supernet import journal as journal_module
from training.supernet.journal import Journal, RankedChild


KEY = {"weights": "aa", "data": "bb", "candidate_operators": [["FFN", "CONV3"]] * 3, "precision": "no"}
CHILDREN = [
    RankedChild(("FFN", "FFN", "FFN"), 1.5, 0.25, (3.0, 0.1 + 0.2)),
    RankedChild(("FFN", "CONV3", "FFN"), math.nan, 0.0, (math.inf, math.nan)),
    RankedChild(("CONV3", "CONV3", "CONV3"), -math.inf, 1 / 3),
]
ROOT = Path(__file__).resolve().parents[2]
fork = multiprocessing.get_context("fork")


def written(path: Path, children=CHILDREN) -> Path:
    journal = Journal(path, KEY)
    for child in children:
        journal.append(child)
    return path


def same(first: RankedChild, second: RankedChild) -> bool:
    """Equal to the bit, NaN being NaN."""

    def bits(child: RankedChild) -> list[bytes]:
        values = (child.val_loss, child.val_accuracy, *child.batch_losses)
        return [struct.pack("d", math.nan if math.isnan(value) else value) for value in values]

    return first.architecture == second.architecture and bits(first) == bits(second)


def holds(journal: Journal, children) -> bool:
    return len(journal) == len(children) and all(map(same, journal, children))


# ---- What is written comes back ----


@settings(max_examples=30)
@given(st.lists(st.lists(st.floats(width=64), min_size=2, max_size=6), max_size=5))
def test_numbers_come_back_bit_for_bit(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    children = [
        RankedChild((f"FFNx{index + 1}",) * 2, loss, accuracy, tuple(losses))
        for index, (loss, accuracy, *losses) in enumerate(rows)
    ]
    written(path, children)
    assert holds(Journal(path, KEY), children)
    assert holds(Journal(path), children)


def test_every_line_is_json_with_the_checksum_of_the_rest(tmp_path):
    for line in written(tmp_path / "journal.jsonl").read_text().splitlines():
        checksum = json.loads(line, parse_constant=pytest.fail).pop("crc32")
        text, _, _ = line.rpartition(', "crc32"')
        assert f"{zlib.crc32((text + '}').encode()):08x}" == checksum


def test_reading_needs_no_key_no_model_and_no_torch(tmp_path):
    path = written(tmp_path / "journal.jsonl")
    script = (
        "import sys\n"
        "from training.supernet.journal import Journal\n"
        f"journal = Journal({str(path)!r})\n"
        "assert journal.key['weights'] == 'aa'\n"
        "print(min(journal, key=lambda child: child.val_loss).architecture)\n"
        "assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('CONV3', 'CONV3', 'CONV3')\n"


@pytest.mark.slow
def test_a_large_journal_opens_in_little_time_and_memory(tmp_path):
    """What is kept of a line is its place: a fiftieth of what it was in memory."""
    num_children = 20_000
    path, names = written(tmp_path / "journal.jsonl", ()), ("MHA12", "FFN", "CONV3", "CONV5")
    rng = random.Random(0)
    children = [
        RankedChild(tuple(rng.choices(names, k=26)), 5.0, 0.25, tuple(rng.random() for _ in range(16)))
        for _ in range(num_children)
    ]
    with open(path, "ab") as file:
        file.writelines(map(journal_module._line_of, map(journal_module._record_of, children)))
    tracemalloc.start()
    start = time.process_time()
    journal = Journal(path)
    seconds, (_, peak) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(journal) == num_children
    assert peak < 500 * num_children
    # Tracing makes it several times slower.
    assert seconds < 10
    assert all(map(same, journal, children))
    assert same(journal.get(children[-1].architecture), children[-1])


def test_a_journal_that_is_replaced_under_a_reader_is_no_answer(tmp_path):
    # Lines of one length: each place holds a whole line, of another child.
    children = [RankedChild((name, "FFN"), 1.5, 0.25) for name in ("CONV3", "CONV5", "CONV7")]
    path = written(tmp_path / "journal.jsonl", children)
    journal = Journal(path)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([lines[0], *lines[:0:-1]]))
    with pytest.raises(ValueError, match="was truncated or replaced while it was in use; start the search again"):
        journal.get(children[0].architecture)


def test_reading_changes_nothing(tmp_path, caplog):
    path = written(tmp_path / "journal.jsonl")
    content = path.read_bytes()[:-7]
    path.write_bytes(content)
    journal = Journal(path)
    assert holds(journal, CHILDREN[:2])
    assert "line 4 of the journal" in caplog.text
    with pytest.raises(ValueError, match="was opened for reading"):
        journal.append(CHILDREN[2])
    assert path.read_bytes() == content


@dataclass(frozen=True)
class TimedChild(RankedChild):
    seconds: float = 0.0
    steps: int = 0
    losses: tuple[float, ...] = ()


def test_records_may_have_more_fields(tmp_path):
    path, child = tmp_path / "journal.jsonl", TimedChild(("FFN",), 1.5, 0.5, (), math.inf, 3, (2.5, -math.inf))
    Journal(path, KEY, TimedChild).append(child)
    assert Journal(path, KEY, TimedChild).get(("FFN",)) == child
    assert list(Journal(path)) == [RankedChild(("FFN",), 1.5, 0.5)]
    written(path)
    with pytest.raises(ValueError, match=r"line 3 of the journal .* is damaged \('seconds'\)"):
        Journal(path, KEY, TimedChild)


def test_a_child_on_record_stays_as_it_is(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl", KEY)
    journal.append(CHILDREN[0])
    journal.append(RankedChild(CHILDREN[0].architecture, 9.0, 0.9))
    assert holds(journal, CHILDREN[:1])
    assert holds(Journal(journal.path), CHILDREN[:1])
    assert same(journal.get(list(CHILDREN[0].architecture)), CHILDREN[0])
    assert journal.get(CHILDREN[1].architecture) is None


def test_a_line_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "journal.jsonl", KEY)
    synced = []

    def fsync(descriptor):
        assert len(journal) == 0
        synced.append(os.fstat(descriptor).st_size)

    monkeypatch.setattr(os, "fsync", fsync)
    journal.append(CHILDREN[0])
    assert len(journal) == 1
    assert synced == [journal.path.stat().st_size]


# ---- Torn and damaged ----


def test_cut_anywhere_it_goes_on_with_the_whole_lines(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    content = written(tmp_path / "whole.jsonl", CHILDREN[:2]).read_bytes()
    path = tmp_path / "journal.jsonl"
    for length in range(len(content) + 1):
        caplog.clear()
        path.write_bytes(content[:length])
        num_lines = content[:length].count(b"\n")
        is_torn = not content[:length].endswith(b"\n") and length > 0
        journal = Journal(path, KEY)
        assert holds(journal, CHILDREN[: max(num_lines - 1, 0)])
        assert [f"line {num_lines + 1} of the journal {path}" in record.message for record in caplog.records] == (
            [True] if is_torn else []
        )
        for child in CHILDREN[:2]:
            journal.append(child)
        assert path.read_bytes() == content


def test_any_flipped_byte_is_found_and_named(tmp_path):
    content = written(tmp_path / "whole.jsonl", CHILDREN[:2]).read_bytes()
    path = tmp_path / "journal.jsonl"
    # The last newline apart: without it the last line counts as torn.
    for position in range(len(content) - 1):
        for key, flip in ((KEY, 1), (None, content[position] ^ 10 or 4)):
            damaged = bytearray(content)
            damaged[position] ^= flip
            path.write_bytes(damaged)
            line = content[:position].count(b"\n") + 1
            with pytest.raises(ValueError, match=rf"line {line} of .*{path.name}.* give another file"):
                Journal(path, key)
            assert path.read_bytes() == damaged


@pytest.mark.parametrize("missing", ["architecture", "val_loss", "val_accuracy", "batch_losses"])
def test_a_line_without_a_field_is_damaged(tmp_path, missing):
    path = written(tmp_path / "journal.jsonl")
    header, first, *rest = path.read_bytes().splitlines(keepends=True)
    record = {name: value for name, value in json.loads(first).items() if name not in (missing, "crc32")}
    text = json.dumps(record).encode()
    path.write_bytes(b"".join([header, text[:-1] + b', "crc32": "%08x"}\n' % zlib.crc32(text), *rest]))
    with pytest.raises(ValueError, match=r"line 2 of the journal .* is damaged .*delete that line"):
        Journal(path, KEY)


def test_damage_by_another_process_is_found_at_the_next_look(tmp_path):
    path = written(tmp_path / "journal.jsonl")
    journal = Journal(path, KEY)
    with open(path, "ab") as file:
        file.write(b"{}\n")
    with pytest.raises(ValueError, match="line 5 of the journal"):
        journal.refresh()
    path.write_bytes(b"")
    with pytest.raises(ValueError, match="was truncated or replaced"):
        journal.refresh()


@pytest.mark.parametrize("content", [b'{"vocab_size": 100}', b'{"vocab_size": 100}\n', b"\x00\xff", b"{}\n{}\n"])
def test_another_file_is_refused_and_left_alone(tmp_path, content):
    path = tmp_path / "config.json"
    path.write_bytes(content)
    for key in (KEY, None):
        with pytest.raises(ValueError, match=r"give another file|is not a journal of evaluated children"):
            Journal(path, key)
    assert path.read_bytes() == content


def test_a_journal_that_is_not_there_cannot_be_read(tmp_path):
    with pytest.raises(ValueError, match="does not exist; give a file that a search"):
        Journal(tmp_path / "journal.jsonl")
    (tmp_path / "journal.jsonl").touch()
    with pytest.raises(ValueError, match="no complete header line"):
        Journal(tmp_path / "journal.jsonl")


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"weights": "cc"}, "belongs to another super-net's weights; give"),
        ({"data": "cc"}, "belongs to other validation data; give"),
        ({"candidate_operators": [["FFN"]]}, "belongs to another search space; give"),
        ({"precision": "bf16", "data": "cc"}, "belongs to other validation data and another precision; give"),
        ({"seed": 1}, "belongs to another seed; give"),
    ],
)
def test_a_foreign_header_says_what_differs_and_nothing_is_written(tmp_path, changed, named):
    path = written(tmp_path / "journal.jsonl")
    content = path.read_bytes()[:-5]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=named):
        Journal(path, {**KEY, **changed})
    assert path.read_bytes() == content


def test_a_journal_of_a_later_format_is_refused(tmp_path):
    path = tmp_path / "journal.jsonl"
    text = json.dumps({"magic_journal": 2, "key": KEY})
    path.write_text(f'{text[:-1]}, "crc32": "{zlib.crc32(text.encode()):08x}"}}\n')
    with pytest.raises(ValueError, match="has format 2, but this version reads 1"):
        Journal(path, KEY)


def test_a_full_disk_raises_and_leaves_the_file_as_it_was(tmp_path):
    path = written(tmp_path / "journal.jsonl", CHILDREN[:1])
    journal, content = Journal(path, KEY), path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    # Room for a part of the line, then for nothing: the system writes what fits.
    for room in (20, 0):
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(content) + room, limits[1]))
        try:
            with pytest.raises(OSError, match=r"no room for a whole line|File too large"):
                journal.append(CHILDREN[1])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert path.read_bytes() == content
        assert journal.get(CHILDREN[1].architecture) is None
    journal.append(CHILDREN[1])
    assert holds(Journal(path, KEY), CHILDREN[:2])


# ---- Kills and other processes ----


def run(target, *arguments) -> int | None:
    process = fork.Process(target=target, args=arguments)
    process.start()
    process.join(60)
    return process.exitcode


def append_and_die(path: Path, written_bytes: int) -> None:
    """Killed when so many bytes of the second child's line are in the file."""
    journal = Journal(path, KEY)
    journal.append(CHILDREN[0])
    line = written(path.with_name("other.jsonl")).read_bytes().splitlines(keepends=True)[2]
    with FileLock(f"{path}.lock"), open(path, "ab", buffering=0) as file:
        file.write(line[:written_bytes])
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("written_bytes", [0, 1, 40])
def test_killed_in_the_middle_of_a_line_another_process_goes_on(tmp_path, written_bytes, caplog):
    path = tmp_path / "journal.jsonl"
    waiting = Journal(path, KEY)
    assert run(append_and_die, path, written_bytes) == -signal.SIGKILL
    waiting.append(CHILDREN[2])
    assert ("line 3 of the journal" in caplog.text) == (written_bytes > 0)
    assert holds(waiting, [CHILDREN[0], CHILDREN[2]])
    assert holds(Journal(path, KEY), [CHILDREN[0], CHILDREN[2]])


def append_many(path: Path, name: str) -> None:
    journal = Journal(path, KEY)
    for index in range(100):
        journal.append(RankedChild((f"{name}x{index + 1}",), float(index), 0.0))


def test_processes_append_whole_lines_and_read_one_another(tmp_path):
    path = tmp_path / "journal.jsonl"
    processes = [fork.Process(target=append_many, args=(path, name)) for name in ("FFN", "CONV3")]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    journal = Journal(path, KEY)
    assert len(journal) == 200
    for name in ("FFN", "CONV3"):
        losses = [child.val_loss for child in journal if child.architecture[0].startswith(name)]
        assert losses == [float(index) for index in range(100)]
    assert run(written, path) == 0
    assert journal.get(CHILDREN[0].architecture) is None
    journal.refresh()
    assert journal.get(CHILDREN[0].architecture) == CHILDREN[0]


def claims(path: Path, *architectures) -> list[bool]:
    """What another process is granted."""
    queue = fork.SimpleQueue()

    def ask() -> None:
        journal = Journal(path, KEY)
        for architecture in architectures:
            with journal.claim(architecture) as is_granted:
                queue.put(is_granted)

    assert run(ask) == 0
    return [queue.get() for _ in architectures]


def hold(path: Path, architecture, queue) -> None:
    with Journal(path, KEY).claim(architecture) as is_granted:
        queue.put(is_granted)
        time.sleep(60)


def test_a_claim_excludes_all_others_for_this_child(tmp_path):
    path = tmp_path / "journal.jsonl"
    first, second = (child.architecture for child in CHILDREN[:2])
    journal = Journal(path, KEY)
    with journal.claim(first) as is_granted:
        assert is_granted
        # A second journal of the same process is excluded too, and its end frees nothing.
        with Journal(path, KEY).claim(first) as is_granted_again:
            assert not is_granted_again
        with Journal(path, KEY).claim(second):
            pass
        assert claims(path, first, second) == [False, True]
    assert claims(path, first, second) == [True, True]


def test_a_claim_is_free_when_its_process_is_killed(tmp_path):
    path, architecture = tmp_path / "journal.jsonl", CHILDREN[0].architecture
    queue = fork.SimpleQueue()
    holder = fork.Process(target=hold, args=(path, architecture, queue))
    holder.start()
    assert queue.get()
    journal = Journal(path, KEY)
    with journal.claim(architecture) as is_granted:
        assert not is_granted
    holder.kill()
    holder.join()
    with journal.claim(architecture) as is_granted:
        assert is_granted


def test_without_locks_of_the_system_every_claim_is_granted(tmp_path, monkeypatch):
    monkeypatch.setattr(journal_module, "fcntl", None)
    path, architecture = tmp_path / "journal.jsonl", CHILDREN[0].architecture
    with Journal(path, KEY).claim(architecture) as is_granted:
        assert is_granted
        assert claims(path, architecture) == [True]


def test_a_child_is_shown_by_its_operators_and_what_it_is_ranked_by():
    child = RankedChild(("MHA4", "<script>"), 4.25, 0.125)
    shown = child._repr_html_()
    assert shown.startswith(child.architecture._repr_html_())
    assert replace(child, val_loss=1.0).architecture == asdict(child)["architecture"] == ("MHA4", "<script>")
    assert shown.endswith("<p>val_loss 4.2500, val_accuracy 12.5%</p>")
    assert shown.index(">MHA4<") < shown.index(">&lt;script&gt;<")
    assert "<script" not in shown
