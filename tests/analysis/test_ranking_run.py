"""Runs of rankings: from super-nets and children trained alone to tables, resumable, nothing mixed."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from scipy.stats import kendalltau
from toy_ranking import pretrain_settings, read_csv, shared_alone, shared_supernets, shared_truth

from training.analysis import ranking_run
from training.analysis.ranking_run import follow_supernets, method_name, run_ranking
from training.analysis.settings import RankingSettings
from training.analysis.truth import StandaloneChild, read_standalone
from training.data.text import load_data
from training.runs.recipes import settings_from
from training.supernet.evaluation import evaluate_child, judging_batches
from training.supernet.journal import Journal
from training.supernet.loading import load_supernet
from training.supernet.pretrain import pretrain


@pytest.fixture(scope="module")
def alone():
    return shared_alone()


@pytest.fixture(scope="module")
def truth():
    return shared_truth()


@pytest.fixture(scope="module")
def supernets():
    return list(shared_supernets())


def ranking_settings(supernets, **changes):
    recipe = {"num_validation_sequences": 8, "batch_size": 4, "num_resamples": 50, **changes}
    return settings_from(RankingSettings, follow_supernets(supernets, recipe))


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
    assert "too few to estimate the seed noise" in result["table"]
    assert len((tmp_path / "standalone" / "standalone-0.jsonl").read_text().splitlines()) == 6


@pytest.mark.slow
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
    with pytest.raises(ValueError, match=r"another space than the super-net: it contains FFN,FFN,FFN,FFN"):
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
        own = replace(settings, truth=str(folder))
        with pytest.raises(ValueError, match=name):
            run_ranking(own, tmp_path / f"out {name}")
        accepting = replace(own, accept_other_text=True)
        if name not in ("text", "another tokenizer"):
            with pytest.raises(ValueError, match=name):
                run_ranking(accepting, tmp_path / f"out {name}")
            continue
        result = run_ranking(accepting, tmp_path / f"out {name}")
        what = name.removeprefix("another ")
        assert result["truth_note"].startswith(f"The children of the truth were trained with another {what} than the")
        assert result["table"].endswith("and losses of the two cannot be compared.")
    assert "truth_note" not in run_ranking(settings, tmp_path / "out")


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
    with pytest.raises(ValueError, match=r"another text|differs from the super-net's"):
        run_ranking(ranking_settings([supernets[0], str(tmp_path / "other text")], truth=str(truth)), tmp_path / "out")


def test_equal_scores_are_named(truth, supernets, tmp_path, monkeypatch):
    monkeypatch.setattr(ranking_run, "shared_scores", lambda supernet, truth, *rest: dict.fromkeys(truth.values, -3.0))
    with pytest.raises(ValueError, match=r"the score of SPOS-0 is -3\.0 for all 8 children"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path)
    nan = lambda supernet, truth, *rest: dict.fromkeys(truth.values, float("nan"))  # noqa: E731
    monkeypatch.setattr(ranking_run, "shared_scores", nan)
    with pytest.raises(ValueError, match=r"the score of SPOS-0 of 8 of 8 children is not finite"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ({}, "SPOS"),
        ({"sampler": "gradual", "alignment": "anchor"}, "MAGIC-AT, k = 1"),
        ({"sampler": "gradual", "num_substitutions": 2}, "MAGIC-T, k = 2"),
        ({"alignment": "anchor"}, "MAGIC-A"),
        ({"sampler": "uniform", "alignment": "none"}, "SPOS"),
        ({"sampler": "fair", "alignment": "none"}, "FairNAS"),
        ({"sampler": "fair", "alignment": "anchor"}, "FairNAS + anchor"),
        ({"sampler": "uniform", "alignment": "average"}, "SPOS + average"),
    ],
)
def test_methods_have_the_papers_names(arguments, name):
    assert method_name(arguments) == name


def test_super_nets_that_differ_in_more_than_the_seed_are_not_averaged(truth, supernets, tmp_path, monkeypatch):
    def methods_of(*names):
        seen = []
        monkeypatch.setattr(ranking_run, "judge", lambda settings, found, *rest: seen.extend(found) or {})
        monkeypatch.setattr(ranking_run, "shared_scores", lambda *given: {})
        folders = [str(tmp_path / name) for name in names]
        run_ranking(ranking_settings(folders, truth=str(truth)), tmp_path / f"out {''.join(names)}")
        return [supernet.method for supernet in seen]

    for name, arguments in {
        "a": {"seed": 0},
        "b": {"seed": 1, "alignment_weight": 0.5},
        "c": {"seed": 0, "alignment_weight": 1.0},
    }.items():
        shutil.copytree(supernets[0], tmp_path / name)
        record = json.loads((tmp_path / name / "run.json").read_text())
        record["settings"]["training_arguments"] = arguments
        (tmp_path / name / "run.json").write_text(json.dumps(record))
    # 0.5 is what is taken where nothing is said.
    expected = [f"SPOS, alignment_weight = {value}" for value in (0.5, 0.5, 1.0)]
    assert methods_of("a", "b", "c") == expected
    # Of a model without a run nothing is known.
    for name in "de":
        shutil.copytree(Path(supernets[0]) / "supernet", tmp_path / name)
    assert methods_of("a", "d", "e") == ["SPOS", "d", "e"]


def test_rankings_are_of_one_process(truth, supernets, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="in a single process"):
        run_ranking(ranking_settings(supernets[:1], truth=str(truth)), tmp_path / "a")
