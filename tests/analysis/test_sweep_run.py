"""Runs of sweeps: super-nets over the values of an argument, resumable, shared by processes, of equal compute."""

import json
from dataclasses import asdict, replace

import pytest
from filelock import FileLock
from toy_ranking import METHODS, TRAINING, read_csv, shared_alone, shared_truth

from training.analysis import sweep_run
from training.analysis.settings import SweepSettings
from training.analysis.sweep_run import run_sweep
from training.analysis.truth import read_standalone
from training.files import write_json
from training.runs import sharing
from training.runs.recipes import settings_from
from training.supernet.evaluation import judging_batches
from training.supernet.pretrain import pretrain


@pytest.fixture(scope="module")
def alone():
    return shared_alone()


@pytest.fixture(scope="module")
def truth():
    return shared_truth()


def sweep_recipe(alone, truth):
    return {
        "preset": alone.preset,
        "data": {"source": alone.data.source, "vocab_size": 80, "block_size": 16, "validation_fraction": 0.2},
        "training_arguments": {**TRAINING, "alignment": "none"},
        "parameter": "num_substitutions",
        "values": [2],
        "references": {"SPOS": METHODS["SPOS"]},
        "seeds": [3, 4],
        "truth": str(truth),
        "num_validation_sequences": 8,
        "num_resamples": 50,
    }


def test_a_stopped_sweep_trains_no_super_net_twice(alone, truth, tmp_path, monkeypatch):
    settings = settings_from(SweepSettings, sweep_recipe(alone, truth), {"num_resamples": 60})
    assert settings.num_resamples == 60
    trained = []

    def stop_after_one(given, folder):
        if len(trained) == 1:
            raise KeyboardInterrupt
        trained.append(given.training_arguments)
        return pretrain(given, folder)

    monkeypatch.setattr(sweep_run, "pretrain", stop_after_one)
    with pytest.raises(KeyboardInterrupt):
        run_sweep(settings, tmp_path)
    monkeypatch.setattr(sweep_run, "pretrain", pretrain)
    # What was trained is not lost to another sweep.
    with pytest.raises(ValueError, match="holds another run"):
        run_sweep(replace(settings, values=(2, 3)), tmp_path)
    # Super-nets that have ended return their result.
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("supernets/*/supernet/model.safetensors")}
    assert len(done) == 1
    # Judged by the process that trained it, so that several share this work too.
    (journal,) = tmp_path.glob("scores-num_substitutions=2-3-*.jsonl")
    children = {child.architecture for child in read_standalone(truth)[1]}
    assert len(journal.read_text().splitlines()) == 1 + len(children)
    result = run_sweep(settings, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert [(row["method"], row["seed"]) for row in result["supernets"]] == [
        (method, seed) for seed in (3, 4) for method in ("num_substitutions = 2", "SPOS")
    ]
    curve = read_csv(tmp_path / "sweep.csv")
    assert [row["num_substitutions"] for row in curve] == ["2"]
    assert float(curve[0]["mean_tau"]) == pytest.approx(result["methods"]["num_substitutions = 2"]["mean"])
    assert len(result["methods"]["num_substitutions = 2"]["taus"]) == 2
    assert (tmp_path / "sweep.png").is_file()
    run = json.loads((tmp_path / "supernets" / "num_substitutions=2-4" / "run.json").read_text())
    arguments = run["settings"]["training_arguments"]
    assert (arguments["num_substitutions"], arguments["seed"], arguments["alignment"]) == (2, 4, "none")
    monkeypatch.setattr(sweep_run, "load_data", None)
    assert run_sweep(settings, tmp_path) == result


def test_the_result_of_another_sweep_is_not_returned(alone, truth, tmp_path, monkeypatch):
    """Two that began in one folder before either had anything: the first to end has written the record."""
    settings = settings_from(SweepSettings, sweep_recipe(alone, truth))
    other = json.loads(json.dumps({"command": "sweep", "settings": asdict(replace(settings, values=(2, 3)))}))

    def another_ends(*given):
        write_json(tmp_path / "run.json", other)
        write_json(tmp_path / "result.json", {"table": "of the other"})
        return {"steps": 6}

    monkeypatch.setattr(sweep_run, "pretrain", another_ends)
    monkeypatch.setattr(sweep_run, "shared_scores", lambda *given: {})
    with pytest.raises(ValueError, match="holds another run"):
        run_sweep(settings, tmp_path)


@pytest.mark.slow
def test_two_processes_share_a_sweep(alone, truth, tmp_path, monkeypatch):
    """The second is at the first super-net while this one asks for it, and ends it before it is asked for again."""
    settings = settings_from(SweepSettings, sweep_recipe(alone, truth))
    first = tmp_path / "supernets" / "num_substitutions=2-3"
    held = FileLock(f"{first}.lock")
    trained = []

    def record(given, folder):
        if held.is_locked and folder == first:
            raise AssertionError("trained by two processes at once")
        trained.append(folder.name)
        return pretrain(given, folder)

    def end_the_other(_):
        assert trained == ["SPOS-3", "num_substitutions=2-4", "SPOS-4"]
        held.release(force=True)

    def beside_another(*given):
        # Its lock is another object's, as that of another process is.
        held.acquire()
        return judging_batches(*given)

    monkeypatch.setattr(sweep_run, "pretrain", record)
    monkeypatch.setattr(sweep_run, "judging_batches", beside_another)
    monkeypatch.setattr(sharing.time, "sleep", end_the_other)
    assert len(run_sweep(settings, tmp_path)["supernets"]) == 4
    assert trained[-1] == first.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"valuez": [1]}, "did you mean 'values'"),
        ({"values": []}, "give the values of num_substitutions"),
        ({"values": [1, 1]}, "each once"),
        ({"values": {2: 3}}, "must be a list"),
        ({"values": [9]}, "9"),
        ({"values": ["many"]}, "num_substitutions is 'many'"),
        ({"parameter": "num_substitution"}, "num_substitution"),
        ({"seeds": [-1]}, "seeds is -1; it must be from 0 to"),
        ({"seeds": [0, 0]}, "each once"),
        ({"values": [[1], [1]]}, "each once"),
        ({"values": [[1]]}, "num_substitutions"),
        ({"num_resamples": "many"}, "num_resamples is 'many'; it must be a whole number"),
        ({"num_children": 60.5}, "num_children is 60.5; it must be a whole number"),
        ({"lower_is_better": "no"}, "lower_is_better is 'no'"),
        ({"parameter": "alignment_weight", "values": [0.1, 0.5]}, "set alignment to anchor or top_percent or average"),
        (
            {
                "parameter": "anchor_top_percent",
                "values": [0],
                "training_arguments": {"alignment": "anchor", "alignment_every_n_layers": 1},
            },
            "anchor_top_percent has no effect with alignment 'anchor'; set alignment to top_percent",
        ),
        (
            {"parameter": "num_substitutions", "training_arguments": {"sampler": "uniform"}},
            "num_substitutions has no effect on the sampler 'uniform'; set sampler to gradual",
        ),
        ({"parameter": "seed", "values": [1, 2]}, "seed = 1 sets the seed"),
        ({"references": {"SPOS": {"seed": 4}}}, "SPOS sets the seed"),
        ({"training_arguments": {"seed": 4}}, "training_arguments sets the seed, but seeds gives those"),
        ({"references": [1]}, "must be a mapping"),
        ({"references": {"SPOS": 3}}, "references.SPOS is 3; it must be a mapping"),
        ({"equal_compute": "yes"}, "equal_compute is 'yes'; it must be true or false"),
        (
            {"equal_compute": True, "references": {"long": {"max_steps": 9}}},
            "equal_compute sets the steps of long; give max_steps once",
        ),
        (
            {"equal_compute": True, "training_arguments": {"sampler": "gradual", "alignment": "none"}},
            "equal_compute derives all steps from max_steps; give it in training_arguments",
        ),
        ({"references": {"SPOS": {"sampler": "unifrom"}}}, "unifrom"),
        ({"references": {"num_substitutions=2": {}}}, "same folder"),
        ({"references": {"s": {"shrink": True}}}, "s shrinks its super-nets"),
        ({"num_children": 2}, "at least 5"),
    ],
)
def test_a_sweeps_recipe_is_checked_before_anything_is_written(alone, truth, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        run_sweep(settings_from(SweepSettings, {**sweep_recipe(alone, truth), **changes}), tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_sweep_of_equal_compute(alone, truth, tmp_path):
    anchor = {"sampler": "uniform", "alignment": "anchor", "alignment_warmup_steps": 2, "anchor_eval_steps": 4}
    recipe = {**sweep_recipe(alone, truth), "references": {1: anchor}, "seeds": [3], "equal_compute": True}
    recipe["training_arguments"] = {**recipe["training_arguments"], "max_steps": 30}
    result = run_sweep(settings_from(SweepSettings, recipe), tmp_path)
    first, second = result["compute"]
    assert [own["method"] for own in (first, second)] == ["num_substitutions = 2", "1"]
    assert first["steps"] == 30
    assert 15 < second["steps"] < 28
    assert [row["steps"] for row in result["supernets"]] == [own["steps"] for own in (first, second)]
    # Within half a step, or half a validation.
    assert second["flops"] == pytest.approx(first["flops"], rel=0.05)
    assert [row["method"] for row in read_csv(tmp_path / "compute.csv")] == ["num_substitutions = 2", "1"]
    assert "(made equal)" in result["table"]
    # A name that YAML takes for a number is the same in the plan and in the result.
    assert result["methods"]["1"]["taus"]
    assert run_sweep(settings_from(SweepSettings, recipe), tmp_path) == result


def test_sweeps_are_of_one_process(alone, truth, tmp_path, monkeypatch):
    """Training arguments that are made before the refusal would begin to wait for the other processes."""
    settings = settings_from(SweepSettings, sweep_recipe(alone, truth))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in a single process"):
        run_sweep(settings, tmp_path / "new")
    assert not (tmp_path / "new").exists()
