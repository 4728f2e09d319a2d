"""Runs of rankings and sweeps: from super-nets and children trained alone to tables, resumable, nothing mixed."""

import csv
import json
import random
from dataclasses import asdict, replace

import pytest
from filelock import FileLock
from scipy.stats import kendalltau
from toy import toy_config, toy_trainer
from toy_standalone import toy_standalone

from training.analysis import ranking_run, sweep_run
from training.analysis.ranking_run import follow_supernets, method_name, run_ranking
from training.analysis.settings import RankingSettings, SweepSettings
from training.analysis.standalone import StandaloneWorker
from training.analysis.sweep_run import run_sweep
from training.analysis.truth import StandaloneChild, journal_path, read_standalone
from training.data.text import load_data
from training.files import write_json
from training.runs.recipes import settings_from
from training.space.costs import training_flops
from training.space.search_space import SearchSpace
from training.supernet import trainer
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.compute import SupernetPasses, steps_of_equal_compute, supernet_flops, supernet_passes
from training.supernet.evaluation import count_layer_evaluations, evaluate_child, judging_batches
from training.supernet.journal import Journal
from training.supernet.loading import load_supernet
from training.supernet.pretrain import pretrain
from training.supernet.settings import PretrainSettings
from training.supernet.setup import search_sampler


TRAINING = {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "save_strategy": "no"}
TRAINING |= {"disable_tqdm": True, "use_cpu": True, "num_validation_sequences": 8, "num_probe_children": 0}
TRAINING |= {"alignment_every_n_layers": 2, "shrink_num_children": 4}
METHODS = {"SPOS": {"sampler": "uniform", "alignment": "none"}, "MAGIC-T": {"alignment": "none"}}


def pretrain_settings(alone, **changes):
    return PretrainSettings(preset=alone.preset, data=alone.data, training_arguments={**TRAINING, **changes})


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    settings = toy_standalone(tmp_path_factory.mktemp("text"), num_layers=3)
    return replace(settings, training_arguments={**settings.training_arguments, "use_cpu": True})


@pytest.fixture(scope="module")
def truth(alone, tmp_path_factory):
    """Children as if trained alone, twice each: their journals with made-up losses."""
    folder = tmp_path_factory.mktemp("truth")
    both = replace(alone, seeds=(0, 1))
    worker, rng = StandaloneWorker(both, folder), random.Random(0)
    for seed in both.seeds:
        journal = Journal(journal_path(folder, seed), None, StandaloneChild)
        journal = Journal(journal.path, journal.key, StandaloneChild)
        for child in worker.children:
            loss = 4 - 0.2 * child.count("CONV3") + rng.gauss(0, 0.05)
            journal.append(StandaloneChild(child, loss, rng.random(), (), seed, 8, 1.0, (6.0, 5.0, 5.0)))
    return folder


@pytest.fixture(scope="module")
def supernets(alone, tmp_path_factory):
    folder = tmp_path_factory.mktemp("supernets")
    for name, method in METHODS.items():
        for seed in (0, 1):
            pretrain(pretrain_settings(alone, seed=seed, **method), folder / f"{name}-{seed}")
    return [str(folder / f"{name}-{seed}") for name in METHODS for seed in (0, 1)]


def ranking_settings(supernets, **changes):
    recipe = {"num_validation_sequences": 8, "batch_size": 4, "num_resamples": 50, **changes}
    return settings_from(RankingSettings, follow_supernets(supernets, recipe))


def read_csv(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_tables_hold_what_plain_evaluation_and_scipy_give(alone, truth, supernets, tmp_path, monkeypatch):
    settings = ranking_settings(supernets, truth=str(truth))
    result = run_ranking(settings, tmp_path / "out")
    children = read_csv(tmp_path / "out" / "children.csv")
    assert len(children) == 8
    assert [float(row["val_loss"]) for row in children] == sorted(float(row["val_loss"]) for row in children)
    batches = judging_batches(load_data(settings.data), settings.mlm_probability, settings.batch_size, 8)
    model = load_supernet(supernets[2])
    for row in children:
        loss = evaluate_child(model, batches, tuple(row["architecture"].split(",")))[0]
        assert float(row["score MAGIC-T-0"]) == pytest.approx(-loss, abs=1e-5)
        assert row["num_seeds"] == "2"
    rows = read_csv(tmp_path / "out" / "supernets.csv")
    assert [(row["supernet"], row["method"], row["seed"]) for row in rows] == [
        ("SPOS-0", "SPOS", "0"),
        ("SPOS-1", "SPOS", "1"),
        ("MAGIC-T-0", "MAGIC-T, k = 1", "0"),
        ("MAGIC-T-1", "MAGIC-T, k = 1", "1"),
    ]
    for row in rows:
        tau = kendalltau(
            [-float(child["val_loss"]) for child in children],
            [float(child[f"score {row['supernet']}"]) for child in children],
        ).statistic
        assert float(row["kendall_tau"]) == pytest.approx(tau)
    methods = read_csv(tmp_path / "out" / "methods.csv")
    taus = [float(row["kendall_tau"]) for row in rows]
    assert [float(row["mean_tau"]) for row in methods] == pytest.approx([sum(taus[:2]) / 2, sum(taus[2:]) / 2])
    (compared,) = read_csv(tmp_path / "out" / "comparisons.csv")
    assert float(compared["difference"]) == pytest.approx((sum(taus[:2]) - sum(taus[2:])) / 2)
    assert result["noise"]["num_repeated"] == 8
    assert "perfect scores would reach" in result["table"]
    assert len(list((tmp_path / "out").glob("ranking-*.png"))) == 4
    assert (tmp_path / "out" / "methods.png").is_file()
    # A second call neither reads nor evaluates anything, and says the same.
    monkeypatch.setattr(ranking_run, "load_data", None)
    assert run_ranking(settings, tmp_path / "out") == result
    with pytest.raises(ValueError, match="holds another run"):
        run_ranking(replace(settings, num_resamples=60), tmp_path / "out")


def test_a_stopped_ranking_evaluates_no_child_twice(truth, supernets, tmp_path, monkeypatch):
    settings = ranking_settings(supernets[:2], truth=str(truth))
    judge = ranking_run.judge
    monkeypatch.setattr(ranking_run, "judge", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_ranking(settings, tmp_path)
    journals = {path: path.read_bytes() for path in tmp_path.glob("scores-*.jsonl")}
    assert len(journals) == 2
    monkeypatch.setattr(ranking_run, "judge", judge)
    assert run_ranking(settings, tmp_path)["num_children"] == 8
    assert {path: path.read_bytes() for path in journals} == journals


def test_children_are_trained_where_no_truth_is_given(alone, truth, supernets, tmp_path):
    recipe = {"num_children": 5, "sample_seed": 3, "training_arguments": alone.training_arguments}
    result = run_ranking(ranking_settings(supernets[:1], **recipe), tmp_path)
    assert (result["num_children"], result["noise"]) == (5, None)
    assert "too few to tell the noise" in result["table"]
    assert len((tmp_path / "standalone" / "standalone-0.jsonl").read_text().splitlines()) == 6


def test_children_of_a_stopped_ranking_are_not_in_that_of_fewer(alone, supernets, tmp_path, monkeypatch):
    recipe = {"num_children": 7, "seeds": (0, 1), "training_arguments": alone.training_arguments}
    judge = ranking_run.judge
    monkeypatch.setattr(ranking_run, "judge", lambda *given: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run_ranking(ranking_settings(supernets[:1], **recipe), tmp_path)
    monkeypatch.setattr(ranking_run, "judge", judge)
    result = run_ranking(ranking_settings(supernets[:1], **{**recipe, "num_children": 5, "seeds": (0,)}), tmp_path)
    assert (result["num_children"], result["noise"]) == (5, None)


def test_a_downstream_truth_works_as_well(truth, supernets, tmp_path):
    rows = {",".join(child): 0.5 + 0.01 * number for number, child in enumerate(load_children(truth))}
    (tmp_path / "mnli.json").write_text(json.dumps(rows))
    settings = ranking_settings(supernets[:1], truth=str(tmp_path / "mnli.json"), metric="mnli", num_children=6)
    result = run_ranking(settings, tmp_path / "out")
    children = read_csv(tmp_path / "out" / "children.csv")
    assert (result["metric"], len(children)) == ("mnli", 6)
    assert [float(row["mnli"]) for row in children] == sorted((float(row["mnli"]) for row in children), reverse=True)


def load_children(truth):
    return sorted(ranking_run.load_truth(truth).values)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"supernets": []}, "supernets is"),
        ({"supernets": {"a": 1}}, "supernets is .* it must be a list"),
        ({"num_children": 4}, "num_children is 4; it must be at least 5"),
        ({"num_children": 9}, "num_children is 9, but .* has 8 children"),
        ({"top_k": [0]}, "top_k"),
        ({"num_resamples": 0}, "num_resamples is 0"),
        ({"truth": "nowhere"}, "no folder or file nowhere"),
        ({"truth": None, "metric": "mnli"}, "children trained here have"),
        ({"truth": None, "seeds": []}, "seeds is"),
        ({"metric": "mnli"}, "metric is 'mnli'"),
    ],
)
def test_settings_are_checked_before_anything_is_read(truth, supernets, tmp_path, monkeypatch, changes, message):
    monkeypatch.setattr(ranking_run, "load_data", None)
    settings = ranking_settings(supernets[:1], truth=str(truth))
    with pytest.raises(ValueError, match=message):
        run_ranking(replace(settings, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_truth_of_other_children_is_refused(alone, truth, supernets, tmp_path):
    settings = ranking_settings(supernets[:1], truth=str(truth))
    (tmp_path / "other.csv").write_text('architecture,val_loss\n"FFN,FFN,FFN,FFN",3\n')
    with pytest.raises(ValueError, match=r"another space than the super-net: it has FFN,FFN,FFN,FFN"):
        run_ranking(replace(settings, truth=str(tmp_path / "other.csv")), tmp_path / "out")
    tampered = tmp_path / "tampered"
    tampered.mkdir()
    key, children = read_standalone(truth)
    for name, change in {
        "text": {"data": {"train": "x", "validation": "y"}},
        "hidden_size": {"sizes": {**key["sizes"], "hidden_size": 99}},
        "another tokenizer": {"tokenizer": "x"},
        "another search space": {"candidate_operators": [["FFN", "CONV3", "CONV5"]] * 3},
    }.items():
        folder = tampered / name
        journal = Journal(folder / "standalone-0.jsonl", {**key, "seed": 0, **change}, StandaloneChild)
        for child in children:
            journal.append(child)
        with pytest.raises(ValueError, match=name):
            run_ranking(replace(settings, truth=str(folder)), tmp_path / f"out {name}")


def test_super_nets_that_do_not_rank_alike_are_refused(alone, truth, supernets, tmp_path):
    shrinking = {"shrink": True, "shrink_every_n_steps": 2, "shrink_operators_per_round": 1}
    pretrain(pretrain_settings(alone, **shrinking), tmp_path / "s")
    settings = ranking_settings([*supernets[:1], str(tmp_path / "s")], truth=str(truth))
    with pytest.raises(ValueError, match="shrinking has deleted operators"):
        run_ranking(settings, tmp_path / "out")
    with pytest.raises(ValueError, match="named twice"):
        run_ranking(replace(settings, supernets=(supernets[0], supernets[0])), tmp_path / "out")
    other = replace(pretrain_settings(alone), data=replace(alone.data, seed=5))
    pretrain(other, tmp_path / "other text")
    # The tokenizers of both differ, or at least the texts do.
    with pytest.raises(ValueError, match=r"another text|another vocabulary"):
        run_ranking(ranking_settings([supernets[0], str(tmp_path / "other text")], truth=str(truth)), tmp_path / "out")


def test_equal_scores_are_named(truth, supernets, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking_run, "shared_scores", lambda supernet, truth, *rest: dict.fromkeys(truth.values, -3.0))
    with pytest.raises(ValueError, match=r"the score of SPOS-0 is -3\.0 for all 8 children"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path)
    nan = lambda supernet, truth, *rest: dict.fromkeys(truth.values, float("nan"))  # noqa: E731
    monkeypatch.setattr(ranking_run, "shared_scores", nan)
    with pytest.raises(ValueError, match=r"the score of SPOS-0 of 8 of 8 children is no finite number"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "MAGIC-AT, k = 1"),
        ({"alignment": "none", "num_substitutions": 2}, "MAGIC-T, k = 2"),
        ({"sampler": "uniform"}, "MAGIC-A"),
        ({"sampler": "uniform", "alignment": "none"}, "SPOS"),
        ({"sampler": "fair", "alignment": "none"}, "FairNAS"),
        ({"sampler": "fair", "alignment": "anchor"}, "FairNAS + anchor"),
        ({"sampler": "uniform", "alignment": "average"}, "SPOS + average"),
    ],
)
def test_methods_have_the_papers_names(arguments, name):
    assert method_name(arguments) == name


def test_super_nets_that_differ_in_more_than_the_seed_are_not_averaged(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    recipes = [
        {"preset": "p", "training_arguments": {"seed": seed, **more}}
        for seed, more in ((0, {}), (1, {"alignment_weight": 0.5}), (0, {"alignment_weight": 1.0}))
    ]
    names = ranking_run._methods(folders, recipes)
    # 0.5 is what is taken where nothing is said.
    assert names == [f"MAGIC-AT, k = 1, alignment_weight = {value}" for value in (0.5, 0.5, 1.0)]
    assert ranking_run._methods(folders, [{}, {}, recipes[0]]) == ["a", "b", "MAGIC-AT, k = 1"]


# ---- Sweeps ----


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
        return [], []

    monkeypatch.setattr(sweep_run, "_trained_and_scored", another_ends)
    with pytest.raises(ValueError, match="holds another run"):
        run_sweep(settings, tmp_path)


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

    train_and_score = sweep_run._trained_and_scored

    def beside_another(*given):
        # Its lock is another object's, as that of another process is.
        with held:
            return train_and_score(*given)

    monkeypatch.setattr(sweep_run, "pretrain", record)
    monkeypatch.setattr(sweep_run, "_trained_and_scored", beside_another)
    monkeypatch.setattr(sweep_run.time, "sleep", end_the_other)
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
        ({"seeds": [-1]}, "seeds is -1; it must be at least 0"),
        ({"seeds": [0, 0]}, "each once"),
        ({"values": [[1], [1]]}, "each once"),
        ({"values": [[1]]}, "num_substitutions"),
        ({"num_resamples": "many"}, "num_resamples is 'many'; it must be a whole number"),
        ({"num_children": 60.5}, "num_children is 60.5; it must be a whole number"),
        ({"lower_is_better": "no"}, "lower_is_better is 'no'"),
        ({"parameter": "seed", "values": [1, 2]}, "seed = 1 sets the seed"),
        ({"references": {"SPOS": {"seed": 4}}}, "SPOS sets the seed"),
        ({"references": [1]}, "must be a mapping"),
        ({"references": {"SPOS": 3}}, "references.SPOS is 3; it must be a mapping"),
        ({"equal_compute": "yes"}, "equal_compute is 'yes'; it must be true or false"),
        ({"equal_compute": True, "references": {"long": {"max_steps": 9}}}, "into steps for long"),
        ({"equal_compute": True, "training_arguments": {"alignment": "none"}}, "give max_steps once"),
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


def test_sweeps_and_rankings_are_of_one_process(alone, truth, supernets, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="by one process"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path / "a")
    monkeypatch.delenv("WORLD_SIZE")
    settings = settings_from(SweepSettings, sweep_recipe(alone, truth))
    assert isinstance(settings, SweepSettings)


# ---- Compute ----


def toy_args(**changes):
    given = {"alignment_every_n_layers": 2, "anchor_eval_steps": 4, "num_validation_sequences": 8, **changes}
    given = {"per_device_train_batch_size": 8, "alignment_warmup_steps": 0, "use_cpu": True, **given}
    return MagicTrainingArguments("unused", report_to="none", **given)


def count_passes(tmp_path, monkeypatch, config, steps, **changes):
    """Sequences through the embeddings and each layer, by what a training in fact ran them for."""
    counts = SupernetPasses(*([0.0] * (config.num_hidden_layers + 1) for _ in range(3)))
    found = toy_trainer(tmp_path, config, max_steps=steps, probe_every_n_steps=steps + 1, **changes)
    is_target, target_states = [False], trainer.target_states

    def watched(*given):
        is_target[0] = True
        states = target_states(*given)
        is_target[0] = False
        return states

    def counting(depth):
        def hook(module, given, output):
            kind = counts.targets if is_target[0] else counts.trained if module.training else counts.validated
            kind[depth] += len(output)

        return hook

    monkeypatch.setattr(trainer, "target_states", watched)
    for depth, module in enumerate([found.model.magic.embeddings, *found.model.magic.encoder.layer]):
        module.register_forward_hook(counting(depth))
    found.train()
    return counts, found.args


@pytest.mark.parametrize(
    ("dropout", "changes"),
    [
        (0.1, {"sampler": "uniform", "alignment": "none"}),
        (0.1, {"alignment": "anchor", "alignment_warmup_steps": 3}),
        (0.1, {"alignment": "anchor", "alignment_warmup_steps": 0, "alignment_batch_fraction": 0.3}),
        (0.1, {"alignment": "anchor", "alignment_warmup_steps": 9, "gradient_accumulation_steps": 2}),
        (0.1, {"alignment": "anchor", "alignment_warmup_steps": 4, "alignment_every_n_layers": 3}),
        (0.0, {"alignment": "average", "alignment_warmup_steps": 5, "num_average_children": 3}),
        (0.1, {"alignment": "top_percent", "alignment_warmup_epochs": 1.5, "alignment_warmup_steps": None}),
        (0.1, {"alignment": "top_percent", "anchor_rank_steps": 5}),
    ],
)
def test_passes_are_those_that_a_training_runs(tmp_path, monkeypatch, dropout, changes):
    config = toy_config(dropout, candidate_operators=[["FFN", "CONV3", "CONV5"], ["FFN", "CONV3"], ["FFN", "MHA4"]])
    counts, args = count_passes(tmp_path, monkeypatch, config, 24, **changes)
    expected = supernet_passes(config, args, 24, num_train_sequences=64)
    assert expected.trained == counts.trained
    assert expected.targets == pytest.approx(counts.targets)
    # The child that challenges the anchor is the anchor itself now and then, and is validated once.
    assert expected.validated == pytest.approx(counts.validated, abs=16)


def test_layers_that_the_anchor_shares_are_not_counted(tmp_path, monkeypatch):
    config = toy_config(0.0, candidate_operators=[["FFN", "CONV3"], ["FFN", "CONV3", "CONV5"], ["FFN", "CONV3"]] * 2)
    changes = {"sampler": "uniform", "alignment": "anchor", "alignment_warmup_steps": 0, "anchor_eval_steps": 5}
    counts, args = count_passes(tmp_path, monkeypatch, config, 200, **changes, per_device_train_batch_size=1)
    expected = supernet_passes(config, args, 200)
    assert expected.targets[:3] == pytest.approx([195 / 2, 195 / 2, 195 * 5 / 6])
    assert counts.targets == pytest.approx(expected.targets, rel=0.2)
    assert sum(counts.targets) == pytest.approx(sum(expected.targets), rel=0.06)


def test_a_pool_shares_its_bottoms():
    config = toy_config(0.0)
    anchored = {"alignment": "top_percent", "anchor_pool_size": 100}
    args = toy_args(**anchored)
    found = supernet_passes(config, args, 17, num_train_sequences=64).validated
    space = SearchSpace.from_config(config.candidate_operators)
    pools = [[space.sample(random.Random(seed * 1000 + i)) for i in range(100)] for seed in range(30)]
    runs = sum(map(count_layer_evaluations, pools)) / 30
    # Two ends of epochs of eight steps, of eight sequences each.
    assert found[0] == 32
    assert sum(found[1:]) == pytest.approx(16 * runs, rel=0.02)
    with pytest.raises(ValueError, match="no epochs; set alignment_warmup_steps, and anchor_rank_steps"):
        supernet_passes(config, args, 17)
    # A stream needs none where the anchor goes by steps.
    assert supernet_passes(config, toy_args(**anchored, anchor_rank_steps=8), 17).validated == found


@pytest.mark.parametrize("sampler", ["uniform", "sandwich"])
def test_flops_are_the_mean_of_the_children_drawn(sampler):
    config, args = toy_config(), toy_args(sampler=sampler, alignment="none")
    drawn = search_sampler(SearchSpace.from_config(config.candidate_operators), config, args)
    of_children = [training_flops(config, drawn.next(), 32, 8 * 32, 0.25) for _ in range(4000)]
    assert supernet_flops(config, args, 1000, 32, 0.25) == pytest.approx(1000 * sum(of_children) / 4000, rel=0.005)
    # One forward pass more where the anchor's runs through all layers, without the head.
    plain = supernet_flops(config, args, 1000, 32, 0.25)
    anchor = toy_args(sampler=sampler, alignment="anchor", anchor_eval_steps=1000, alignment_warmup_steps=1)
    headless = 999 * sum(training_flops(config, drawn.next(), 32, 8 * 32, 0) for _ in range(4000)) / 4000 / 3
    validated = 3 - 1 / 256
    share = validated * 8 / 8000 / 3 * plain
    found = supernet_flops(config, anchor, 1000, 32, 0.25)
    assert found == pytest.approx(plain + headless + share, rel=0.005)


def test_steps_of_equal_compute_are_the_nearest():
    for flops in (0.1, 7.4, 7.6, 1000.0):
        assert steps_of_equal_compute(flops, float) == max(1, round(flops))
    # A jump, as a validation is one.
    assert steps_of_equal_compute(12, lambda steps: steps + 10 * (steps >= 8)) == 7


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
