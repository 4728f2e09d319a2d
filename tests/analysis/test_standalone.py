"""Children trained one by one: resumable, comparable, and kept apart from those of another recipe."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from toy_standalone import toy_standalone, trained_with
from transformers import Trainer

from training.analysis.standalone import StandaloneWorker, standalone_children, train_standalone
from training.analysis.truth import STANDALONE_NAME, StandaloneChild, journal_path, load_truth
from training.data.text import load_data
from training.runs.settings import FEWEST_STEPS
from training.supernet.journal import Journal


HERE = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("standalone")


@pytest.fixture(scope="module")
def settings(folder):
    return toy_standalone(folder)


def child_of(trainer) -> tuple[str, ...]:
    return tuple(operator for (operator,) in trainer.model.config.candidate_operators)


def test_all_children_or_a_sample_without_repeats(settings):
    assert len(set(standalone_children(settings)[1])) == 4
    few = standalone_children(replace(settings, num_children=3))[1]
    assert len(set(few)) == 3
    assert few == standalone_children(replace(settings, num_children=3))[1]
    assert len({tuple(standalone_children(replace(settings, num_children=2, sample_seed=s))[1]) for s in range(9)}) > 1


def test_children_of_whose_training_nothing_is_said_train_long_enough(settings, tmp_path, monkeypatch):
    asked = []

    class Recorder(Trainer):
        def train(self, *args, **kwargs):
            asked.append(self.args.max_steps)
            raise KeyboardInterrupt

    monkeypatch.setattr("training.analysis.standalone.Trainer", Recorder)
    with pytest.raises(KeyboardInterrupt):
        train_standalone(replace(settings, training_arguments={}), tmp_path, progress=False)
    assert asked == [FEWEST_STEPS]


def test_named_children_are_trained_instead_of_uniform_ones(settings, tmp_path):
    named = replace(settings, architectures=("(FFN)*2", "CONV3,FFN"), num_children=1)
    assert standalone_children(named)[1] == [("FFN", "FFN"), ("CONV3", "FFN")]
    alone = train_standalone(named, tmp_path / "named", progress=False)
    among_all = train_standalone(settings, tmp_path / "all", progress=False)
    assert [child.architecture for child in alone] == [("FFN", "FFN"), ("CONV3", "FFN")]
    losses = {child.architecture: child.val_loss for child in among_all}
    assert [child.val_loss for child in alone] == [losses[child.architecture] for child in alone]


def test_named_and_uniform_children_are_kept_apart(settings, tmp_path):
    named = replace(settings, architectures=("FFN,CONV3",))
    for first, second, held in ((settings, named, "uniform"), (named, settings, "named")):
        train_standalone(replace(first, num_children=1), tmp_path / held, progress=False)
        if held == "uniform":
            # As where a journal was copied without its description.
            (tmp_path / held / STANDALONE_NAME).unlink()
        with pytest.raises(ValueError, match=f"holds {held} children; train .* in a separate folder"):
            train_standalone(replace(second, num_children=1, seeds=(1,)), tmp_path / held, progress=False)
        assert not journal_path(tmp_path / held, 1).exists()
    assert len(load_truth(tmp_path / "uniform").values) == 1
    with pytest.raises(ValueError, match="were named, not drawn"):
        load_truth(tmp_path / "named")


def test_another_tokenizer_or_dropout_is_refused(settings, tmp_path):
    """Of as many pieces and the same sizes, so that nothing else differs."""
    few = replace(settings, num_children=1)
    train_standalone(few, tmp_path / "out", progress=False)
    tokenizer = load_data(settings.data).tokenizer
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    path = tmp_path / "tokenizer" / "tokenizer.json"
    described = json.loads(path.read_text())
    vocab = described["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[-2:]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    path.write_text(json.dumps(described))
    other = replace(few, data=replace(few.data, tokenizer=str(tmp_path / "tokenizer")))
    with pytest.raises(ValueError, match="another tokenizer"):
        train_standalone(other, tmp_path / "out", progress=False)
    config = json.loads(Path(settings.preset).read_text())
    (tmp_path / "edited.json").write_text(json.dumps({**config, "attention_probs_dropout_prob": 0.5}))
    with pytest.raises(ValueError, match="other sizes or dropout"):
        train_standalone(replace(few, preset=str(tmp_path / "edited.json")), tmp_path / "out", progress=False)


def test_a_stopped_table_goes_on_and_trains_no_child_twice(settings, tmp_path, monkeypatch):
    whole = train_standalone(settings, tmp_path / "whole", progress=False)
    assert {child.architecture for child in whole} == set(standalone_children(settings)[1])
    assert all(child.steps == 8 and len(child.losses) == 3 and child.seconds > 0 for child in whole)
    train, trained = Trainer.train, []

    def stop_after(number):
        def watched(self):
            if len(trained) == number:
                raise KeyboardInterrupt
            trained.append(child_of(self))
            return train(self)

        return watched

    monkeypatch.setattr(Trainer, "train", stop_after(2))
    with pytest.raises(KeyboardInterrupt):
        train_standalone(settings, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(Trainer, "train", stop_after(99))
    resumed = train_standalone(settings, tmp_path / "stopped", progress=False)
    assert len(trained) == len(set(trained)) == 4
    assert [child.val_loss for child in resumed] == [child.val_loss for child in whole]
    assert [child.losses for child in resumed] == [child.losses for child in whole]
    assert list(Journal(journal_path(tmp_path / "stopped", 0), None, StandaloneChild)) == resumed


def test_training_lowers_the_loss_and_seeds_differ(settings, tmp_path):
    both = trained_with(replace(settings, num_children=1, seeds=(0, 1)), max_steps=60)
    first, second = train_standalone(both, tmp_path, progress=False)
    assert (first.seed, second.seed) == (0, 1)
    assert first.architecture == second.architecture
    assert first.val_loss != second.val_loss
    assert first.val_loss < first.losses[0]


@pytest.mark.parametrize(
    "change", [{"mlm_probability": 0.3}, {"training_arguments": {"max_steps": 9}}, {"num_validation_sequences": 4}]
)
def test_another_recipe_is_refused(settings, tmp_path, change):
    train_standalone(replace(settings, num_children=1), tmp_path, progress=False)
    with pytest.raises(ValueError, match="another recipe"):
        train_standalone(replace(settings, num_children=1, **change), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seeds": ()}, "seeds is"),
        ({"seeds": (0, 0)}, "each once"),
        ({"seeds": ["a"]}, r"seeds\[0\] is 'a'; it must be a whole number"),
        ({"num_children": -1}, "num_children is -1"),
        ({"architectures": {"FFN": 1}}, "it must be a list"),
        ({"architectures": (3,)}, r"architectures\[0\] is 3; it must be text"),
        ({"architectures": ("FFN,FFN", "(FFN)*2")}, "names FFN,FFN twice"),
        ({"architectures": ("FFN,MHA4",)}, "MHA4"),
        ({"architectures": ("FFN",)}, "has 1 layer"),
        ({"num_validation_sequences": 0}, "at least 1"),
        ({"preset": "magic-mikro"}, "unknown preset"),
        ({"training_arguments": {"learning_rat": 1.0}}, "learning_rat"),
    ],
)
def test_settings_are_checked_before_anything_is_written(settings, tmp_path, change, message):
    with pytest.raises(ValueError, match=message):
        train_standalone(replace(settings, **change), tmp_path / "new", progress=False)
    assert not (tmp_path / "new").exists()


def test_a_child_that_another_worker_trains_is_left_to_it(settings, tmp_path, monkeypatch):
    few = replace(settings, num_children=2)
    first, second = StandaloneWorker(few, tmp_path), StandaloneWorker(few, tmp_path)
    child, other = first.children
    train, nested = Trainer.train, []

    def with_a_neighbour(self):
        if child_of(self) == child:
            nested.append((second.train(child, 0), second.train(other, 0)))
        return train(self)

    monkeypatch.setattr(Trainer, "train", with_a_neighbour)
    assert first.train(child, 0)
    assert nested == [(False, True)]
    assert {record.architecture for record in first.trained(0)} == {child, other}
    assert first.record(other, 0) == second.record(other, 0)


def test_the_folder_tells_what_its_children_were_trained_with(settings, tmp_path):
    train_standalone(replace(settings, num_children=1), tmp_path, progress=False)
    found = json.loads((tmp_path / "standalone.json").read_text())
    assert found["settings"]["training_arguments"] == settings.training_arguments
    assert found["corpus"]["sha256"] == Journal(journal_path(tmp_path, 0)).key["data"]
    assert "torch" in found["versions"]


def test_ranks_of_a_launcher_train_children_of_their_own(settings, tmp_path, monkeypatch):
    ranks = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}
    for name, value in ranks.items():
        monkeypatch.setenv(name, value)
    given = {"CUDA_VISIBLE_DEVICES": "4,7"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    train, seen = Trainer.train, []

    def watched(self):
        seen.append({name: os.environ.get(name) for name in (*ranks, "CUDA_VISIBLE_DEVICES")})
        return train(self)

    monkeypatch.setattr(Trainer, "train", watched)
    assert len(train_standalone(replace(settings, num_children=1), tmp_path, progress=False)) == 1
    assert seen == [{**dict.fromkeys(ranks), "CUDA_VISIBLE_DEVICES": "7"}]
    assert {name: os.environ.get(name) for name in (*ranks, "CUDA_VISIBLE_DEVICES")} == {**ranks, **given}


def _start(*command, **env) -> subprocess.Popen:
    paths = os.pathsep.join([str(HERE.parent), str(HERE)])
    return subprocess.Popen(
        [sys.executable, *map(str, command)],
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", **env},
        start_new_session=True,
    )


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()[1:]] if path.is_file() else []


@pytest.mark.slow
def test_the_child_of_a_killed_process_is_trained_by_another(folder, settings, tmp_path):
    steps = 150
    process = _start(HERE / "toy_standalone.py", folder, tmp_path, steps)
    deadline = time.monotonic() + 120
    while len(_lines(journal_path(tmp_path, 0))) < 1:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    before = _lines(journal_path(tmp_path, 0))
    assert len(before) < 4
    train_standalone(trained_with(settings, max_steps=steps, use_cpu=True), tmp_path, progress=False)
    after = _lines(journal_path(tmp_path, 0))
    assert after[: len(before)] == before
    assert len({line["architecture"] for line in after}) == len(after) == 4


@pytest.mark.slow
def test_two_ranks_of_torchrun_share_the_children(folder, settings, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29713)
    process = _start(*launcher, HERE / "toy_standalone.py", folder, tmp_path, 20)
    assert process.wait(timeout=300) == 0
    lines = _lines(journal_path(tmp_path, 0))
    assert len({line["architecture"] for line in lines}) == len(lines) == 4
    alone = train_standalone(trained_with(settings, max_steps=20, use_cpu=True), tmp_path / "alone", progress=False)
    by_child = {line["architecture"]: line["val_loss"] for line in lines}
    assert [by_child[",".join(child.architecture)] for child in alone] == [child.val_loss for child in alone]
