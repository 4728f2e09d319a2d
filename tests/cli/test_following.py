"""What a command prints as the next one is whole, can be run as it stands, and works."""

import shlex
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml
from toy import toy_config
from toy_cli import run_main
from toy_runs import search_settings, shared_preset, shared_text, text_settings
from toy_timing import QUIET, SIZES, table_of

from training.cli.following import after_benchmark, after_search, after_standalone, after_supernet
from training.hub.presets import load_preset
from training.space.latency import Conditions
from training.space.limits import budget_of
from training.space.search_space import SearchSpace
from training.space.settings import BudgetSettings


CONFIG = toy_config(candidate_operators=[["MHA4", "FFN", "CONV3"], ["FFN", "CONV5"]])


def following(out: str) -> list[list[str]]:
    """The commands after "next:" and "or:", as a shell gives them to a program."""
    marked = [line.split(":", 1) for line in out.splitlines() if line.startswith(("next:", "or:"))]
    return [shlex.split(text) for _, text in marked]


def test_the_commands_after_a_super_net_and_a_search_work_as_printed(tmp_path, monkeypatch, capsys):
    settings = search_settings(shared_preset(), text_settings(shared_text(), vocab_size=100), shrink=False)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(asdict(settings)))
    code, out, err = run_main(
        monkeypatch, capsys, "pretrain", "-c", tmp_path / "recipe.yaml", "-o", tmp_path / "a run"
    )
    assert code == 0, err
    retrain, search = following(out)
    code, out, err = run_main(monkeypatch, capsys, *search[1:], "--num-evaluations", "4")
    assert code == 0, err
    ((*again,),) = following(out)
    for words in (retrain, again):
        code, out, err = run_main(monkeypatch, capsys, *words[1:], "--max-steps", "2")
        assert code == 0, err
        assert "| this model |" in out
        folder = Path(words[words.index("--output-dir") + 1])
        assert folder.parent == tmp_path
        assert (folder / "model" / "config.json").is_file()


def test_one_child_is_trained_and_not_searched():
    assert after_supernet(Path("run"), {"space": [["FFN"], ["MHA4"]]}) == [
        "magic-nas retrain --search run --output-dir run-retrained"
    ]
    assert len(after_supernet(Path("run"), {"space": [["FFN"], ["MHA4", "FFN"]]})) == 2


def test_folders_are_named_as_a_shell_reads_them():
    assert after_search(Path("my runs/a")) == (
        "magic-nas retrain --search 'my runs/a' --output-dir 'my runs/a-retrained'"
    )
    assert after_standalone(Path("alone")).endswith("--truth alone --supernet RUN --output-dir alone-ranking")


@pytest.fixture
def table(tmp_path):
    table = table_of(sizes={**SIZES, "num_hidden_layers": 2})
    table.save(tmp_path / "t.json")
    return table


def test_a_benchmark_is_followed_by_what_its_space_allows(tmp_path, table):
    output = tmp_path / "t.json"
    words = shlex.split(after_benchmark("space.json", CONFIG, table, output) or "")
    assert words[1:4] == ["pretrain", "--preset", "space.json"]
    limit = float(words[words.index("--max-latency-ms") + 1])
    budget = budget_of(CONFIG, BudgetSettings(latency_table=str(output), max_latency_ms=limit))
    children = list(SearchSpace.from_config(CONFIG.candidate_operators).children())
    assert 2 * sum(map(budget.allows, children)) >= len(children)
    assert after_benchmark("one", CONFIG.child_config(("FFN", "FFN")), table, output) is None
    (tmp_path / "run" / "supernet").mkdir(parents=True)
    (tmp_path / "run" / "supernet" / "model.safetensors").touch()
    words = shlex.split(after_benchmark(str(tmp_path / "run" / "supernet"), CONFIG, table, output) or "")
    assert words[1:3] == ["search", str(tmp_path / "run")]
    assert words[-1] == str(tmp_path / "run-found")


@pytest.mark.parametrize("quiet", [True, False])
def test_a_table_that_is_not_to_be_trusted_is_handed_on_to_nothing(tmp_path, monkeypatch, capsys, quiet):
    conditions = Conditions.judge(**{**QUIET, **({} if quiet else {"core_share": 0.2})})
    config = load_preset("magic-micro")
    table = table_of(conditions=conditions, sizes={**SIZES, "num_hidden_layers": config.num_hidden_layers})
    monkeypatch.setattr("training.space.latency.measure_latency", lambda *_: table)
    code, out, err = run_main(monkeypatch, capsys, "benchmark", "magic-micro", "-o", tmp_path / "latency.json")
    assert code == 0, err
    last = out.splitlines()[-1]
    assert last.startswith("next:  magic-nas pretrain --preset magic-micro" if quiet else "next:  measure again while")
