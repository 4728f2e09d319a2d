"""The run of a search, from a super-net's folder to an exported winner within the budget."""

import json
from dataclasses import replace
from itertools import product

import pytest
from transformers import AutoModelForMaskedLM
from typer.testing import CliRunner

from modeling_magic import MagicForMaskedLM
from training.cli.main import app
from training.data.text import prepare_data
from training.retraining.retrain import follow_search
from training.runs.folders import versions
from training.runs.recipes import settings_from
from training.search.run import best_table, check_exported, search_supernet, searched_space
from training.search.settings import SearchSettings
from training.space.budgets import InfeasibleBudgetError
from training.space.costs import count_parameters
from training.space.limits import BudgetSettings
from training.supernet.journal import Journal
from training.supernet.loading import follow_supernet


SENTENCES = "the anchor aligns the child. a layer holds the operators of the super-net. every step trains one child. "


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_config):
    folder = tmp_path_factory.mktemp("search")
    (folder / "text").mkdir()
    (folder / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 3}" for number in range(200)))
    data = prepare_data(str(folder / "text"), vocab_size=150, block_size=32, cache_dir=folder / "cache")
    config = tiny_config(vocab_size=len(data.tokenizer), pad_token_id=data.tokenizer.pad_token_id)
    MagicForMaskedLM(config).save_pretrained(folder / "supernet")
    data.tokenizer.save_pretrained(folder / "supernet")
    return folder


def settings(folder, **changes) -> SearchSettings:
    recipe = {"num_evaluations": 12, "population_size": 6, "num_validation_sequences": 8, "batch_size": 4}
    data = {"source": str(folder / "text"), "block_size": 32}
    return settings_from(SearchSettings, follow_supernet(folder / "supernet", {**recipe, "data": data, **changes}))


def largest(folder) -> int:
    config = MagicForMaskedLM.from_pretrained(folder / "supernet").config
    return count_parameters(config, ("MHA4", "CONV3", "CONV3", "CONV3"), head="mlm")


@pytest.mark.parametrize("searcher", ["evolution", "random", "pareto"])
def test_winner_is_exported_within_the_budget(folder, searcher):
    limit, output = largest(folder), folder / searcher
    result = search_supernet(settings(folder, searcher=searcher, budget={"max_params": limit}), output)
    model = AutoModelForMaskedLM.from_pretrained(output / "model")
    assert model.num_parameters() <= limit
    assert [layer[0] for layer in model.config.candidate_operators] == result["architecture"]
    assert json.loads((output / "model" / "search.json").read_text())["search"]["budget"] in str(result["budget"])
    better = "better" if result["search"]["better_than_random"]["better"] else "no better"
    assert f" The search is {better} than random search, " in (output / "report.html").read_text()
    assert result["versions"] == versions()
    losses = [child.val_loss for child in Journal(output / "journal.jsonl")]
    assert result["val_loss"] == min(
        child["val_loss"] for child in [*result["search"]["searched"], *result["search"]["random"]]
    )
    # A run that has ended evaluates nothing more.
    assert search_supernet(settings(folder, searcher=searcher, budget={"max_params": limit}), output) == result
    assert len(losses) == len(list(Journal(output / "journal.jsonl")))
    recipe, _ = follow_search(output, {})
    assert recipe["architecture"].split(",") == result["architecture"]
    assert recipe["preset"] == str(folder / "supernet")


def test_a_shared_journal_evaluates_nothing_twice(folder):
    budget = {"max_params": largest(folder)}
    search_supernet(settings(folder, budget=budget), folder / "first")
    journal = str(folder / "first" / "journal.jsonl")
    again = search_supernet(settings(folder, budget=budget, journal=journal), folder / "second")
    assert again["num_evaluated"] == 0


def test_other_questions_are_answered_from_the_journal(folder):
    limit = largest(folder) + 4_000
    search_supernet(settings(folder, seed=1), folder / "asked")
    table = best_table(folder / "asked", BudgetSettings(max_params=limit))
    assert f"are within num_parameters <= {limit:,}" in table
    with pytest.raises(InfeasibleBudgetError, match="nearest"):
        best_table(folder / "asked", BudgetSettings(max_params=10))


def test_a_budget_that_cannot_be_met_costs_nothing(folder):
    with pytest.raises(InfeasibleBudgetError, match="nearest"):
        search_supernet(settings(folder, budget={"max_params": 10}), folder / "impossible")
    assert not (folder / "impossible").exists()


def test_costs_are_counted_on_the_exported_files(folder):
    search_supernet(settings(folder), folder / "recounted")
    model = folder / "recounted" / "model"
    counted = AutoModelForMaskedLM.from_pretrained(model).num_parameters()
    check_exported(model, BudgetSettings(max_params=counted))
    with pytest.raises(ValueError, match=f"not within num_parameters <= {counted - 1:,}"):
        check_exported(model, BudgetSettings(max_params=counted - 1))
    # As if the export had untied a weight.
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": False}))
    untied = AutoModelForMaskedLM.from_pretrained(model).num_parameters()
    assert untied > counted
    check_exported(model, BudgetSettings(max_params=untied))
    with pytest.raises(ValueError, match="not within"):
        check_exported(model, BudgetSettings(max_params=counted))


def test_parameters_that_the_count_does_not_know_are_noticed(folder, monkeypatch):
    search_supernet(settings(folder), folder / "noticed")
    monkeypatch.setattr(MagicForMaskedLM, "num_parameters", lambda self: 1)
    with pytest.raises(ValueError, match="has 1 parameters, but the search counted"):
        check_exported(folder / "noticed" / "model", BudgetSettings())


def test_what_shrinking_has_left_is_searched(folder):
    config = MagicForMaskedLM.from_pretrained(folder / "supernet").config
    run = folder / "shrunk"
    run.mkdir()
    left = [["MHA4", "FFN"], ["CONV3"], ["CONV3"], ["CONV3"]]
    (run / "result.json").write_text(json.dumps({"space": left, "candidate_operators": config.candidate_operators}))
    asked = SearchSettings(supernet=str(run))
    assert searched_space(asked, config).to_json() == left
    assert searched_space(replace(asked, full_space=True), config).size == 256
    (run / "result.json").write_text(json.dumps({"space": [["MHA4"], *left[1:]]}))
    with pytest.raises(ValueError, match="full_space=true"):
        searched_space(asked, config)
    with pytest.raises(ValueError, match="contains a single child"):
        searched_space(asked, config.child_config(["FFN"] * 4))


def test_a_folder_that_is_no_search_is_named(folder):
    with pytest.raises(ValueError, match="does not contain a search"):
        best_table(folder / "text", BudgetSettings())


@pytest.mark.slow
def test_commands(folder):
    limit = largest(folder)
    config = MagicForMaskedLM.from_pretrained(folder / "supernet").config
    costs = [count_parameters(config, child, head="mlm") for child in product(*config.candidate_operators)]
    run = CliRunner().invoke(app, ["describe", str(folder / "supernet"), "--max-params", str(limit)])
    assert run.exit_code == 0, run.output
    assert f"{sum(cost <= limit for cost in costs)} of 256" in run.output
    table = folder / "tables" / "latency.json"
    command = ["benchmark", str(folder / "supernet"), "-o", str(table), "--sequence-length", "8"]
    run = CliRunner().invoke(app, [*command, "--architecture", "FFN,FFN,CONV3,MHA4"])
    assert run.exit_code == 0, run.output
    assert "FFN,FFN,CONV3,MHA4: predicted" in run.output
    limited = ["--latency-table", str(table), "--max-latency-ms", "1000", "--accept-noisy-latency"]
    run = CliRunner().invoke(app, ["describe", str(folder / "supernet"), *limited])
    assert "latency table: Held-out error over 20 whole children" in run.output
    limits = [*limited, "--num-evaluations", "4"]
    own = ["--set", "num_validation_sequences=8", "--set", "data.block_size=32", "--text", str(folder / "text")]
    command = ["search", str(folder / "supernet"), "-o", str(folder / "by-latency"), *limits, *own]
    run = CliRunner().invoke(app, command)
    assert run.exit_code == 0, run.output
    assert "Held-out error over 20" in run.output
    assert "Latency: predicted" in run.output
    assert "Held-out error over 20" in (folder / "by-latency" / "report.html").read_text()
    assert json.loads((folder / "by-latency" / "result.json").read_text())["latency"]["measured_ms"] > 0
    run = CliRunner().invoke(app, ["best", str(folder / "by-latency"), *limited])
    assert run.exit_code == 0, run.output
    assert "Held-out error over 20" in run.output
