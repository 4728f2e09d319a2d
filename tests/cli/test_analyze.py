"""The commands of analyses: what they hand on, what they say at the end, and what they refuse before any work."""

import json

import pytest
from toy_cli import run_main

from training.analysis.truth import StandaloneChild


NAN = float("nan")


def trained(*losses: float) -> list[StandaloneChild]:
    chains = [("FFN", "CONV3"), ("MHA4", "FFN"), ("CONV3", "CONV3"), ("CONV3", "FFN"), ("FFN", "FFN")]
    return [StandaloneChild(chain, loss, 0.5) for chain, loss in zip(chains, losses, strict=False)]


@pytest.fixture
def standalone(monkeypatch):
    """What the command is given by the training, which does not run."""
    asked = []

    def answer(settings, output_dir, **given):
        asked.append((settings, output_dir))
        return trained(NAN, 3.25, 3.5, 3.5, 3.5)[: settings.num_children or None]

    monkeypatch.setattr("training.analysis.standalone.train_standalone", answer)
    return asked


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["interference", "-o", "{tmp}/run"],
            "no super-net to analyze is given; use magic-nas analyze interference RUN",
        ),
        (["ranking", "-o", "{tmp}/run"], "no super-net to rank with is given; add --supernet RUN, once or more"),
        (["compare-interference", "a", "-o", "{tmp}/run"], "'a' is not of the form NAME=FOLDER"),
        (
            ["compare-interference", "a=x", "a=y", "-o", "{tmp}/run"],
            "two analyses are named 'a'; give each a different name",
        ),
        (["compare-interference", "a={tmp}", "-o", "{tmp}/run"], "at least two"),
        (["sweep", "-o", "{tmp}/run"], "values is empty"),
        (["standalone", "-o", "{tmp}/run", "--preset", "magic-huge"], "unknown preset 'magic-huge'"),
        (
            ["standalone", "-o", "{tmp}/run", "--num-workers", "2"],
            "--address and --num-workers configure a Ray cluster; add --ray",
        ),
        (["standalone", "-o", "{tmp}/run", "--address", "auto"], "add --ray"),
        (
            ["standalone", "-o", "{tmp}/run", "--ray", "--address", "auto", "--num-workers", "2"],
            "but --address names a cluster; remove one",
        ),
        (["standalone", "-o", "{tmp}/run", "--latency-table", "t"], "add --table FILE to write that table"),
        (
            ["compression-table", "{tmp}/run"],
            "holds no result of a fine-tuning; give a folder that",
        ),
        (["compression-table", "--form", "html"], "form is 'html'; choose one of: markdown, csv"),
    ],
)
def test_wrong_input_ends_in_one_line_before_any_work(tmp_path, monkeypatch, capsys, arguments, message):
    code, _, err = run_main(monkeypatch, capsys, "analyze", *(text.format(tmp=tmp_path) for text in arguments))
    last = err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("magic-nas: error: ")
    assert message in last
    assert not (tmp_path / "run").exists()


def test_stand_alone_children_end_with_the_best(tmp_path, monkeypatch, capsys, standalone):
    folder = tmp_path / "alone"
    code, out, err = run_main(monkeypatch, capsys, "analyze", "standalone", "-o", folder, "--preset", "magic-micro")
    assert code == 0, err
    ((settings, output_dir),) = standalone
    assert (settings.preset, output_dir) == ("magic-micro", folder)
    # A loss that is not finite is never the best.
    assert "5 trainings; best: MHA4,FFN, loss 3.2500" in out
    following = f"magic-nas analyze ranking --truth {folder} --supernet RUN --output-dir {folder}-ranking"
    assert f"next: {following}" in out.splitlines()


def test_fewer_children_than_a_ranking_takes_are_not_handed_on_to_one(tmp_path, monkeypatch, capsys, standalone):
    begin = ["analyze", "standalone", "-o", tmp_path / "alone", "--preset", "magic-micro"]
    code, out, err = run_main(monkeypatch, capsys, *begin, "--num-children", "4")
    assert code == 0, err
    assert "4 trainings; best" in out
    assert "next:" not in out


def test_named_children_are_no_truth_to_rank_by(tmp_path, monkeypatch, capsys, standalone):
    named = ["--architecture", "(MHA4,FFN)*2", "--architecture", "(FFN,CONV3)*2"]
    code, out, err = run_main(
        monkeypatch, capsys, "analyze", "standalone", "-o", tmp_path, "--preset", "magic-micro", *named
    )
    assert code == 0, err
    assert "best: MHA4,FFN" in out
    assert "next:" not in out


def test_one_rank_speaks_for_all(tmp_path, monkeypatch, capsys, standalone):
    monkeypatch.setenv("RANK", "1")
    table = tmp_path / "table.csv"
    code, out, err = run_main(
        monkeypatch, capsys, "analyze", "standalone", "-o", tmp_path, "--preset", "magic-micro", "--table", table
    )
    assert (code, out) == (0, ""), err
    assert len(standalone) == 1
    assert not table.exists()


def test_with_ray_the_cluster_is_asked_for(tmp_path, monkeypatch, capsys):
    asked = []
    monkeypatch.setattr(
        "training.analysis.standalone_ray.train_standalone_on_ray",
        lambda settings, *given: asked.append(given) or trained(3.0, 2.0, 1.0),
    )
    arguments = ["-o", tmp_path, "--preset", "magic-micro", "--ray", "--num-workers", 3]
    code, out, err = run_main(monkeypatch, capsys, "analyze", "standalone", *arguments)
    assert code == 0, err
    assert asked == [(tmp_path, None, 3)]
    assert "best: CONV3,CONV3, loss 1.0000" in out


def test_the_compression_table_shows_runs_beside_the_paper(tmp_path, monkeypatch, capsys):
    row = {
        "task": "rte",
        "title": "RTE",
        "shown": "score",
        "metrics": {"validation": {"score": {"values": [0.5, 0.75]}}},
    }
    result = {"model": "runs/compact/model", "num_parameters": 59_000_000, "tasks": [row]}
    (tmp_path / "result.json").write_text(json.dumps(result))
    code, out, err = run_main(monkeypatch, capsys, "analyze", "compression-table", tmp_path, "--form", "csv")
    assert code == 0, err
    assert [line.split(",")[1] for line in out.splitlines() if line.endswith("this run")] == ["model"]
    assert "MAGIC-AT" in out
