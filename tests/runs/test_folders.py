"""A run's folder: whose it is, who works in it, and what a call finds that comes later."""

import json
import multiprocessing
import os
import socket
from dataclasses import dataclass, replace
from typing import Any

import pytest
from accelerate import PartialState
from toy_runs import text_settings, write_preset, write_text
from transformers.utils import logging as hf_logging

from training.data.text import load_data
from training.files import read_json, write_json
from training.options import Settings, option
from training.runs.folders import (
    bars_off,
    check_one_process,
    check_run_folder,
    finished_result,
    open_run,
    read_result,
    read_settings,
    versions,
)
from training.supernet import pretrain as pretrain_module
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings


@dataclass(frozen=True)
class Toy(Settings):
    command = "toy"
    growing = ("seeds",)

    size: int = option(1, help="Size.")
    seeds: tuple[int, ...] = option((0,), help="Seeds.")
    inner: dict[str, Any] = option(default_factory=dict, help="Inner.")


@dataclass(frozen=True)
class Other(Toy):
    command = "other"


def test_a_run_ends_once_and_a_later_call_finds_its_result(tmp_path):
    exported = []
    with open_run(tmp_path / "run", Toy()) as run:
        assert (run.folder, run.writes, run.result) == (tmp_path / "run", True, None)
        assert finished_result(tmp_path / "run", Toy()) is None
        result = run.finish({"value": (1, 2)}, exported.append)
    # As it reads back: lists, not tuples; and what was exported saw the same.
    assert result == {"value": [1, 2], "versions": versions()} == exported[0]
    assert finished_result(tmp_path / "run", Toy()) == result == read_result(tmp_path / "run")
    with open_run(tmp_path / "run", Toy()) as run:
        assert run.result == result
    assert read_settings(tmp_path / "run") == {"size": 1, "seeds": [], "inner": {}}


def test_a_run_removes_what_a_killed_one_left_and_no_other_runs(tmp_path):
    left = [".model-abcdefgh/model", "inner/.supernet-12345678/supernet", "other/.model-abcdefgh/model"]
    for name in left:
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "journal.json.123.tmp").write_text("half")
    write_json(tmp_path / "run.json", {"command": "toy"})
    write_json(tmp_path / "other" / "run.json", {"command": "toy"})
    with open_run(tmp_path, Toy()):
        found = sorted(path.name for path in tmp_path.iterdir())
    assert found == [".lock", "inner", "other", "run.json"]
    assert list((tmp_path / "inner").iterdir()) == []
    assert (tmp_path / "other" / ".model-abcdefgh").is_dir()


@pytest.mark.parametrize("name", ["files.json", "trainer_state.json"])
def test_a_damaged_checkpoint_keeps_its_folder(tmp_path, name):
    """Its weights may be all that is left of days; another run must not write over them."""
    with open_run(tmp_path, Toy()):
        pass
    (tmp_path / "checkpoint-8").mkdir()
    check_run_folder(tmp_path, Other())
    (tmp_path / "checkpoint-8" / name).write_text("half")
    with pytest.raises(ValueError, match=r"holds another run \(of toy, not other\)"):
        check_run_folder(tmp_path, Other())


def test_a_result_is_written_after_all_that_it_speaks_of(tmp_path):
    def export(result):
        assert read_result(tmp_path) is None
        raise OSError("disk full")

    with open_run(tmp_path, Toy()) as run, pytest.raises(OSError, match="disk full"):
        run.finish({}, export)
    assert read_result(tmp_path) is None


def test_a_rank_that_does_not_write_writes_nothing(tmp_path):
    with open_run(tmp_path, Toy(), writes=False) as run:
        assert run.finish({"value": 1}, lambda _: pytest.fail("exported"))["value"] == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Other(), "of toy, not other"),
        (Toy(size=2), "size is 1 there, 2 here"),
        (Toy(inner={"a": 1}), "inner.a is None there, 1 here"),
    ],
)
def test_another_run_is_refused_in_a_folder_that_has_begun(tmp_path, other, message):
    with open_run(tmp_path, Toy()) as run:
        run.finish({})
    for ask in (check_run_folder, finished_result):
        with pytest.raises(ValueError, match=rf"holds another run \({message}\); use another --output-dir"):
            ask(tmp_path, other)
    with pytest.raises(ValueError, match=message), open_run(tmp_path, other):
        pytest.fail("opened")
    # What may grow is no other run.
    assert finished_result(tmp_path, Toy(seeds=(0, 1))) is not None


def test_a_run_resumes_only_with_what_it_read_at_its_start(tmp_path):
    read = {"the text": {"train": "abc", "validation": "def"}, "the tokenizer": "123"}
    other = {**read, "the text": {"train": "xyz", "validation": "def"}}
    with open_run(tmp_path, Toy(), inputs={"the text": "before anything was trained"}):
        pass
    with open_run(tmp_path, Toy(), inputs=read):
        pass
    (tmp_path / "checkpoint-8").mkdir()
    (tmp_path / "checkpoint-8" / "files.json").write_text("{}")
    with open_run(tmp_path, Toy(), inputs=json.loads(json.dumps(read))):
        pass
    with pytest.raises(
        ValueError, match=r"^the text has changed since the run in .* began; restore what it read then"
    ):
        with open_run(tmp_path, Toy(), inputs=other):
            pytest.fail("opened")
    both = {**other, "the tokenizer": "456"}
    with (
        pytest.raises(ValueError, match=r"^the text and the tokenizer have changed"),
        open_run(tmp_path, Toy(), inputs=both),
    ):
        pytest.fail("opened")
    # A finished run returns its result, whatever its text has become.
    with open_run(tmp_path, Toy(), inputs=read) as run:
        run.finish({})
    with open_run(tmp_path, Toy(), inputs=other) as run:
        assert run.result is not None


def test_a_run_that_has_lost_nothing_gives_its_folder_away(tmp_path):
    with open_run(tmp_path, Toy()):
        pass
    with open_run(tmp_path, Other(size=5)) as run:
        assert run.result is None
    assert read_json(tmp_path / "run.json")["command"] == "other"


@pytest.mark.parametrize("name", ["notes.txt", "run.txt", "result.json"])
def test_a_folder_with_other_things_is_refused(tmp_path, name):
    (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match="is not empty and does not hold a run; use another --output-dir"):
        check_run_folder(tmp_path, Toy())


def test_a_file_in_place_of_a_folder_is_named_as_one(tmp_path):
    (tmp_path / "run").write_text("{}")
    with pytest.raises(ValueError, match="run is a file; give a folder with --output-dir"):
        check_run_folder(tmp_path / "run", Toy())


@pytest.mark.parametrize("name", [".lock", "run.json.123.tmp", ".run.json-abc"])
def test_what_a_killed_start_leaves_is_no_obstacle(tmp_path, name):
    (tmp_path / name).write_text("")
    check_run_folder(tmp_path, Toy())


def test_a_damaged_record_is_named(tmp_path):
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(ValueError, match=r"run\.json is damaged"):
        check_run_folder(tmp_path, Toy())


def _hold(folder, opened, leave):
    with open_run(folder, Toy()):
        opened.set()
        leave.wait(60)


def test_a_folder_is_one_processs_at_a_time(tmp_path):
    context = multiprocessing.get_context("fork")
    opened, leave = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(tmp_path, opened, leave))
    process.start()
    try:
        assert opened.wait(60)
        with pytest.raises(ValueError, match="another process is using"), open_run(tmp_path, Toy()):
            pytest.fail("opened")
    finally:
        leave.set()
        process.join(60)
    with open_run(tmp_path, Toy()) as run:
        assert run.result is None


# ---- Between the first look and the lock ----


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> PretrainSettings:
    folder = tmp_path_factory.mktemp("race")
    (folder / "text").mkdir()
    text = text_settings(write_text(folder / "text", num_documents=60), vocab_size=100)
    arguments: dict[str, Any] = {"max_steps": 3, "save_steps": 2, "logging_steps": 1, "num_validation_sequences": 4}
    arguments |= {"alignment": "none", "num_probe_children": 0, "disable_tqdm": True, "use_cpu": True}
    return PretrainSettings(write_preset(folder, vocab_size=100), data=text, training_arguments=arguments)


def changed(settings: PretrainSettings, **arguments: Any) -> PretrainSettings:
    return replace(settings, training_arguments={**settings.training_arguments, **arguments})


def with_a_run_while_the_text_is_read(monkeypatch, run) -> None:
    """The first text that is read takes so long that another run comes and goes in the folder meanwhile."""
    runs = [run]

    def slow(*args):
        if runs:
            runs.pop()()
        return load_data(*args)

    monkeypatch.setattr(pretrain_module, "load_data", slow)


def test_a_run_that_came_while_the_text_was_read_is_refused_under_the_lock(settings, tmp_path, monkeypatch):
    """Otherwise a result would claim one run, half of whose steps are another's."""
    first, second = changed(settings, seed=0, learning_rate=1e-3), changed(settings, seed=1, max_steps=6)
    with_a_run_while_the_text_is_read(monkeypatch, lambda: pretrain(first, tmp_path / "run"))
    with pytest.raises(ValueError, match=r"holds another run \(training_arguments"):
        pretrain(second, tmp_path / "run")
    assert read_settings(tmp_path / "run")["training_arguments"]["seed"] == 0
    assert read_result(tmp_path / "run")["steps"] == 3


def test_the_same_run_that_ended_while_the_text_was_read_is_not_trained_again(settings, tmp_path, monkeypatch):
    results = []
    with_a_run_while_the_text_is_read(monkeypatch, lambda: results.append(pretrain(settings, tmp_path / "run")))
    trained = []
    train = pretrain_module.MagicTrainer.train
    monkeypatch.setattr(
        pretrain_module.MagicTrainer, "train", lambda *args, **kwargs: trained.append(1) or train(*args, **kwargs)
    )
    assert pretrain(settings, tmp_path / "run") == results[0]
    assert len(trained) == 1


# ---- Around a run ----


def test_the_bars_of_the_caller_come_back_after_a_run(settings, tmp_path):
    hf_logging.enable_progress_bar()
    pretrain(settings, tmp_path / "run")
    assert hf_logging.is_progress_bar_enabled()
    with pytest.raises(ValueError, match="unknown preset"):
        pretrain(replace(settings, preset="magic-huge"), tmp_path / "other")
    assert hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    with bars_off():
        pass
    assert not hf_logging.is_progress_bar_enabled()
    hf_logging.enable_progress_bar()
    with bars_off():
        assert not hf_logging.is_progress_bar_enabled()


def test_an_analysis_is_made_by_one_process(monkeypatch):
    check_one_process()
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="an analysis runs in a single process"):
        check_one_process()


def _rank(rank, folder, port, queue):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "ACCELERATE_USE_CPU": "true"}
    # What the process that was forked knew of itself.
    PartialState._reset_state()
    state = PartialState(cpu=True)
    with open_run(folder, Toy(), writes=state.is_main_process) as run:
        queue.put((rank, state.num_processes, run.result))
    state.destroy_process_group()


def test_all_ranks_go_on_or_none(tmp_path):
    """The rank that writes alone has looked under the lock; the others learn of it what it found."""
    write_json(tmp_path / "run.json", {"command": "toy", "settings": {"size": 1, "seeds": [], "inner": {}}})
    (tmp_path / "result.json").write_text(json.dumps({"value": 7}))
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [context.Process(target=_rank, args=(rank, tmp_path, port, queue)) for rank in range(2)]
    for process in ranks:
        process.start()
    found = sorted(queue.get(timeout=120) for _ in ranks)
    for process in ranks:
        process.join(60)
    assert found == [(0, 2, {"value": 7}), (1, 2, {"value": 7})]
