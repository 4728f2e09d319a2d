"""The teacher's outputs against the teacher run on one sequence at a time, and batches of text by counting."""

import itertools
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from toy_compress import CLASSES, Kill, at_call, toy_bench

from training.compression.sentences import collate
from training.compression.teacher_objectives import TARGET
from training.compression.teaching import (
    TeacherOutputs,
    TrainOrder,
    endless_batches,
    endless_places,
    ordered_batches,
    rows_for,
)
from training.compression.workbench import new_accelerator
from training.distillation import teacher as teacher_cache
from training.internals import forget_accelerator


LENGTHS = [9, 3, 5, 7, 3, 4, 8, 6, 5, 4]


def rows_of(lengths: list[int]) -> Dataset:
    ids = [[number] * length for number, length in enumerate(lengths)]
    return Dataset.from_dict({"input_ids": ids, "length": lengths})


@pytest.fixture(autouse=True, scope="module")
def _another_precision():
    """The accelerator of a process decides its precision until it is forgotten."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module", params=CLASSES)
def bench(request, tmp_path_factory):
    return toy_bench(tmp_path_factory.mktemp(request.param), CLASSES[request.param], num_sentences=100)


@pytest.fixture
def sentence_bench(tmp_path):
    return toy_bench(tmp_path, num_sentences=100)


def outputs_in(folder: Path, bench, **changes) -> TeacherOutputs:
    return TeacherOutputs(bench.source, bench.objective, folder, bench.accelerator, **changes)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.safetensors")}


# ---- Batches ----


@pytest.mark.parametrize("batch_size", [1, 3, 4, 10, 64])
def test_all_rows_are_batched_by_length(batch_size):
    batches = ordered_batches(rows_of(LENGTHS), batch_size)
    places = [place for batch in batches for place in batch]
    assert sorted(places) == list(range(10))
    assert [LENGTHS[place] for place in places] == sorted(LENGTHS)
    sizes = [len(batch) for batch in batches]
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert len(sizes) == -(-10 // batch_size)


def test_an_epoch_has_every_row_once_but_for_some_at_random():
    rows = rows_of(LENGTHS)
    batches = list(itertools.islice(endless_places(rows, 4, seed=3), 200))
    assert all(len(batch) == 4 for batch in batches)
    epochs = [first + second for first, second in zip(batches[::2], batches[1::2], strict=True)]
    assert all(max(Counter(epoch).values()) == 1 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 50
    # 80 times each, if by chance alone: four standard deviations.
    assert all(64 <= times <= 96 for times in Counter(itertools.chain(*epochs)).values())
    # Of nearly equal lengths: no row of a batch of an epoch stands between two of the other.
    for first, second in zip(batches[::2], batches[1::2], strict=True):
        lengths = sorted([sorted(LENGTHS[place] for place in batch) for batch in (first, second)])
        assert lengths[0][-1] <= lengths[1][0]


def test_fewer_rows_than_a_batch_come_several_times():
    (batch,) = itertools.islice(endless_places(rows_of([5, 6, 7]), 8, seed=0), 1)
    assert sorted(Counter(batch).values()) == [2, 3, 3]


def test_batches_follow_from_the_seed():
    rows = rows_of(LENGTHS)
    first, again, other = (
        list(itertools.islice(endless_batches(rows, 3, pad_token_id=99, seed=seed), 7)) for seed in (0, 0, 1)
    )
    assert all(torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, again, strict=True))
    assert any(not torch.equal(one["input_ids"], two["input_ids"]) for one, two in zip(first, other, strict=True))
    places = next(endless_places(rows, 3, seed=0))
    assert first[0]["input_ids"][:, 0].tolist() == places
    assert TARGET not in first[0]


def test_the_order_of_a_training_is_that_of_its_steps():
    order = TrainOrder(rows_of(LENGTHS), 4, 5, seed=2)
    places = list(itertools.islice(endless_places(rows_of(LENGTHS), 4, seed=2), 5))
    assert list(order) == list(itertools.chain.from_iterable(places))
    assert list(order) == list(order)
    assert len(order) == 20


def test_token_types_are_left_out_where_the_model_knows_one():
    rows = Dataset.from_dict({"input_ids": [[1]], "token_type_ids": [[0]], "length": [1]})

    class Model:
        class config:
            type_vocab_size = 1

    assert rows_for(Model, rows).column_names == ["input_ids", "length"]
    Model.config.type_vocab_size = 2
    assert rows_for(Model, rows).column_names == rows.column_names


# ---- The teacher's outputs ----


def test_they_are_those_of_the_teacher_alone(bench, tmp_path):
    outputs = outputs_in(tmp_path, bench)
    rows = bench.validation
    outputs.fill(rows, batch_size=7)
    for number, example in enumerate(rows.to_list()):
        batch = outputs.collate([example])
        given = {name: tensor for name, tensor in batch.items() if name != TARGET}
        with torch.no_grad():
            alone = bench.objective.target(bench.objective.read(bench.teacher(**given), given))
        assert batch[TARGET].keys() == alone.keys()
        for name, tensor in alone.items():
            assert batch[TARGET][name].dtype == tensor.dtype
            torch.testing.assert_close(batch[TARGET][name], tensor, rtol=0, atol=1e-5, msg=f"row {number}, {name}")


def test_a_batch_has_the_outputs_of_its_rows_in_order(bench, tmp_path):
    outputs = outputs_in(tmp_path, bench)
    outputs.fill(bench.validation)
    for batch in outputs.batches(bench.validation, 16):
        assert len(next(iter(batch[TARGET].values()))) == bench.objective.record_lengths(batch).sum()
    places = [5, 2, 9]
    together = outputs.collate(bench.validation.select(places).to_list())[TARGET]
    alone = [outputs.collate(bench.validation.select([place]).to_list())[TARGET] for place in places]
    for name, tensor in together.items():
        assert torch.equal(tensor, torch.cat([one[name] for one in alone]))


def test_what_lies_on_disk_is_not_computed_again(sentence_bench, tmp_path):
    rows = sentence_bench.validation
    outputs_in(tmp_path / "cache", sentence_bench).fill(rows)
    before = files_of(tmp_path / "cache")
    sentence_bench.teacher.register_forward_pre_hook(lambda *_: pytest.fail("the teacher was run"))
    outputs = outputs_in(tmp_path / "cache", sentence_bench)
    outputs.fill(rows)
    assert files_of(tmp_path / "cache") == before
    assert len(outputs.batches(rows, 16)) == 3


def test_what_a_stop_has_left_out_is_computed_as_if_there_had_been_none(sentence_bench, tmp_path, monkeypatch):
    rows = sentence_bench.train
    # Twelve records of 32 numbers: a file ends in the middle of a batch.
    monkeypatch.setattr(teacher_cache, "_SHARD_BYTES", 12 * 128)
    whole = outputs_in(tmp_path / "whole", sentence_bench)
    whole.fill(rows, batch_size=16)

    def stop():
        raise Kill

    cache = teacher_cache.TeacherCache
    with monkeypatch.context() as stopping:
        stopping.setattr(cache, "flush", at_call(3, cache.flush, stop))
        with pytest.raises(Kill):
            outputs_in(tmp_path / "parts", sentence_bench).fill(rows, batch_size=16)
    parts = outputs_in(tmp_path / "parts", sentence_bench)
    with pytest.raises(
        ValueError, match=r"the teacher has not been run on a sequence of the text; call fill\(\) on its rows"
    ):
        parts.batches(rows, 16)
    parts.fill(rows, batch_size=16)
    pairs = zip(whole.batches(rows, 16), parts.batches(rows, 16), strict=True)
    assert all(torch.equal(one[TARGET]["outputs"], two[TARGET]["outputs"]) for one, two in pairs)


def test_precisions_are_kept_apart(sentence_bench, tmp_path):
    rows = sentence_bench.validation
    sentence_bench.accelerator = new_accelerator("bf16")
    half, single = (outputs_in(tmp_path / "cache", sentence_bench, in_float32=flag) for flag in (False, True))
    half.fill(rows)
    single.fill(rows)
    assert len(list((tmp_path / "cache").iterdir())) == 2
    one, two = (outputs.batches(rows, 64)[0][TARGET]["outputs"] for outputs in (half, single))
    assert one.dtype == two.dtype == torch.float32
    assert 1e-4 < (one - two).abs().max() < 0.1
    batch = collate(rows.select([0]).to_list(), 0)
    with torch.no_grad():
        alone = sentence_bench.objective.read(sentence_bench.teacher(**batch), batch)
    found = single.collate(rows.select([0]).to_list())[TARGET]["outputs"]
    torch.testing.assert_close(found, alone, rtol=0, atol=1e-6)


# ---- Two processes ----


def fill_as_one_of_two(folder: Path) -> None:
    bench = toy_bench(folder, num_sentences=100)
    runs = []
    bench.teacher.register_forward_hook(lambda *_: runs.append(1))
    outputs = outputs_in(folder / "cache", bench)
    outputs.fill(bench.validation, batch_size=4)
    found = outputs.batches(bench.validation, 8)
    torch.save((len(runs), [batch[TARGET]["outputs"] for batch in found]), folder / f"{os.environ['RANK']}.pt")


@pytest.mark.slow
def test_two_processes_share_the_work(tmp_path):
    bench = toy_bench(tmp_path, num_sentences=100)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    outputs = outputs_in(tmp_path / "alone", bench)
    outputs.fill(bench.validation, batch_size=4)
    expected = [batch[TARGET]["outputs"] for batch in outputs.batches(bench.validation, 8)]
    for rank in range(2):
        num_runs, found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert num_runs == len(bench.validation) / 8
        assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    fill_as_one_of_two(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
