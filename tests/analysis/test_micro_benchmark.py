"""The table of children trained alone: written from journals, read back, complete, in the place of an evaluator."""

import json
import math
import random
import re
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from toy import toy_config

from training.analysis import micro_benchmark
from training.analysis.micro_benchmark import METADATA_NAME, TABLE_NAME, load_micro_benchmark, write_micro_benchmark
from training.analysis.ranking import evaluate_ranking
from training.analysis.truth import StandaloneChild, journal_path
from training.hub.presets import load_preset
from training.search.compare import search_children
from training.search.searchers import RandomSearcher
from training.space.budgets import Budget, BudgetedSpace
from training.space.costs import additive_cost, count_flops, count_parameters
from training.supernet.journal import Journal


OPERATORS = ["FFN", "CONV3"]
CONFIG = toy_config(candidate_operators=[OPERATORS] * 4)
CHILDREN = sorted(product(OPERATORS, repeat=4))
KEY: dict[str, Any] = {
    "candidate_operators": CONFIG.candidate_operators,
    "data": {"train": "a", "validation": "b"},
    "sizes": {"hidden_size": 32, "intermediate_size": 64, "embedding_size": None, "vocab_size": 120},
    "recipe": {"block_size": 16, "mlm_probability": 0.15},
}


def trained(child, seed):
    rng = random.Random(f"{child} {seed}")
    sums = tuple(rng.uniform(900, 1100) + 50 * child.count("CONV3") for _ in range(6))
    return StandaloneChild(child, sum(sums) / 1200, rng.random(), sums, seed, 40, 1.5, (6.0, 5.5, 5.0))


def journals(folder, seeds=((0, 16), (1, 5)), change=lambda child: child, **key):
    for seed, number in seeds:
        journal = Journal(journal_path(folder, seed), {**KEY, **key, "seed": seed}, StandaloneChild)
        # In the order that they were trained in, which is not that of the table.
        for child in random.Random(seed).sample(CHILDREN, number):
            journal.append(change(trained(child, seed)))
    return folder


@pytest.fixture
def table(tmp_path):
    return write_micro_benchmark(journals(tmp_path / "journals"), CONFIG, tmp_path / "out" / "table.csv")


def test_rows_are_the_children_with_their_costs(table):
    assert len(table) == 21
    assert [row.seed for row in table.rows] == [0] * 16 + [1] * 5
    order = {child: number for number, child in enumerate(table.space.children())}
    assert [order[row.architecture] for row in table.rows[:16]] == list(range(16))
    config = toy_config(candidate_operators=[OPERATORS] * 4, vocab_size=120)
    for row in table.rows:
        expected = trained(row.architecture, row.seed)
        assert row.val_loss == pytest.approx(expected.val_loss, abs=1e-6)
        assert row.val_accuracy == pytest.approx(expected.val_accuracy, abs=1e-6)
        assert row.batch_losses == pytest.approx(expected.batch_losses, abs=0.051)
        assert (row.losses, row.steps, row.seconds) == (expected.losses, 40, 1.5)
        assert row.num_parameters == count_parameters(config, row.architecture, head="mlm")
        assert row.flops == count_flops(config, row.architecture, 16, head="mlm")
        assert row.latency_ms is None
    assert table.metadata["key"] == KEY
    assert table.metadata["rows_of_seed"] == {"0": 16, "1": 5}
    assert table.metadata["training"] is None
    assert table.metadata["latency"] is None


def test_what_is_written_is_what_is_read_and_writing_is_repeatable(table, tmp_path):
    again = load_micro_benchmark(tmp_path / "out" / "table.csv")
    assert again == table
    text = (tmp_path / "out" / "table.csv").read_bytes()
    (tmp_path / "journals" / "standalone.json").write_text(json.dumps({"versions": {"torch": "x"}}))
    rewritten = write_micro_benchmark(tmp_path / "journals", CONFIG, tmp_path / "out" / "table.csv")
    assert (tmp_path / "out" / "table.csv").read_bytes() == text
    assert rewritten.metadata["training"] == {"versions": {"torch": "x"}}


def test_means_truth_and_best(table):
    repeated = next(row for row in table.rows if row.seed == 1)
    (mean,) = table.score([repeated.architecture])
    both = [row for row in table.rows if row.architecture == repeated.architecture]
    assert len(both) == 2

    def shifted(name):
        """The child's two numbers without what the second seed adds to all five children that have it."""
        first, second = ({row.architecture: getattr(row, name) for row in table.rows if row.seed == s} for s in (0, 1))
        added = sum(second[child] - first[child] for child in second) / 5
        return (getattr(both[0], name) + added * 5 / 21, getattr(both[1], name) - added * 16 / 21)

    losses = shifted("val_loss")
    assert mean.val_loss == pytest.approx(sum(losses) / 2)
    assert mean.val_accuracy == pytest.approx(sum(shifted("val_accuracy")) / 2)
    ratios = [loss / row.val_loss for loss, row in zip(losses, both, strict=True)]
    assert mean.batch_losses == pytest.approx(
        [(a * ratios[0] + b * ratios[1]) / 2 for a, b in zip(*(row.batch_losses for row in both), strict=True)]
    )
    assert table.best.val_loss == min(child.val_loss for child in table.children)
    truth = table.truth()
    assert truth.values[repeated.architecture] == pytest.approx(tuple(-loss for loss in losses))
    assert (truth.num_repeated, len(truth.values), truth.key) == (5, 16, KEY)
    assert max(truth.means, key=truth.means.__getitem__) == table.best.architecture
    assert table.truth("val_accuracy").values[repeated.architecture] == pytest.approx(shifted("val_accuracy"))
    quality = evaluate_ranking(truth.means, {child.architecture: -child.val_loss for child in table.children})
    assert quality.kendall_tau == pytest.approx(1)


def test_score_stands_in_for_an_evaluator(table):
    wanted = [CHILDREN[5], CHILDREN[2], CHILDREN[5]]
    assert [child.architecture for child in table.score(iter(wanted))] == [CHILDREN[5], CHILDREN[2]]
    with pytest.raises(ValueError, match="MHA4"):
        table.score([("MHA4", "FFN", "FFN", "FFN")])
    budget = Budget(())
    searcher = RandomSearcher(BudgetedSpace(table.space, budget), seed=0)
    cost = additive_cost(CONFIG, "num_parameters")
    found = search_children(table.score, table.space, budget, searcher, 16, bert_pattern_cost=cost)
    assert found.winner.architecture == table.best.architecture
    # The spread over validation batches is there.
    assert "paired over 6 validation batches" in found.better_than_random.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"seeds": ((0, 15), (1, 16))}, "1 of 16 children were not trained with seed 0"),
        ({"change": lambda child: replace(child, val_loss=math.nan)}, "not finite: its training diverged"),
        ({"change": lambda child: replace(child, losses=(math.inf, 1.0, 1.0))}, "not finite"),
        ({"change": lambda child: replace(child, steps=40 + child.seed)}, "different numbers of steps"),
        ({"candidate_operators": [OPERATORS] * 3}, "search space of the children .* is not that of"),
        (
            {"sizes": {**KEY["sizes"], "hidden_size": 64}},
            "hidden_size of the children is 64 but that of the configuration is 32",
        ),
    ],
)
def test_what_is_not_complete_is_not_written(tmp_path, arguments, message):
    folder = journals(tmp_path / "journals", **arguments)
    with pytest.raises(ValueError, match=message):
        write_micro_benchmark(folder, CONFIG, tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        (
            "table.csv",
            lambda text: text.replace("FFN,FFN,FFN,CONV3", "FFN,FFN,FFN,CONV5", 1),
            "table.csv, line 3: .*CONV5",
        ),
        ("table.csv", lambda text: text.rpartition("\n")[0].rpartition("\n")[0] + "\n", "has 20 rows but .* says 21"),
        ("table.csv", lambda text: text.replace("val_loss", "loss", 1), "has the columns"),
        ("table.csv", lambda text: text[: len(text) // 2], "table.csv, line"),
        ("table.json", lambda text: text.replace('"version": 1', '"version": 9'), "format 9"),
        ("table.json", lambda text: text[:-30], "is not the metadata"),
        ("table.json", lambda text: "[]", "is not the metadata"),
    ],
)
def test_damage_is_named(table, tmp_path, file, damage, message):
    path = tmp_path / "out" / file
    path.write_text(damage(path.read_text()))
    with pytest.raises(ValueError, match=message):
        load_micro_benchmark(tmp_path / "out" / "table.csv")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*no.csv"):
        load_micro_benchmark(tmp_path / "no.csv")


# ---- The table that ships ----


def test_the_shipped_table_is_whole():
    table = load_micro_benchmark()
    config = load_preset("magic-micro")
    assert table.metadata["candidate_operators"] == config.candidate_operators
    assert {child.architecture for child in table.children} == set(table.space.children())
    sizes = {**config.to_dict(), "vocab_size": table.metadata["key"]["sizes"]["vocab_size"]}
    for row in table.rows:
        assert row.num_parameters == count_parameters(type(config)(**sizes), row.architecture, head="mlm")
        assert 1 < row.val_loss < math.log(sizes["vocab_size"])
        assert len(row.losses) == 3
        tokens = sum(row.batch_losses) / row.val_loss
        assert tokens == pytest.approx(sum(table.rows[0].batch_losses) / table.rows[0].val_loss, rel=1e-3)
    package = Path(micro_benchmark.__file__).parent
    assert sum((package / name).stat().st_size for name in (TABLE_NAME, METADATA_NAME)) < 250_000


def test_the_pages_python_runs_as_it_stands(capsys):
    page = (Path(__file__).parents[2] / "docs" / "micro_benchmark.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    out = capsys.readouterr().out
    assert "seed noise from" in out
    assert names["children"].size < names["table"].space.size


@pytest.mark.slow
@pytest.mark.data
def test_a_row_trained_again_matches_within_the_noise_of_seeds(data_folder, tmp_path):
    from training.analysis.ranking import truth_noise
    from training.analysis.settings import StandaloneSettings
    from training.analysis.standalone import StandaloneWorker
    from training.data.settings import DataSettings
    from training.runs.recipes import load_recipe, settings_from

    table = load_micro_benchmark()
    recipe = load_recipe("micro-benchmark")
    source = str(data_folder / "corpus" / "wiki" / "train_00.txt")
    settings = settings_from(StandaloneSettings, recipe, {"data": {"source": source}})
    assert isinstance(settings.data, DataSettings)
    worker = StandaloneWorker(replace(settings, seeds=(0,)), tmp_path)
    noise = truth_noise(table.truth().values)
    child = random.Random(0).choice(worker.children)
    worker.train(child, 0)
    again, row = worker.record(child, 0), next(r for r in table.rows if (r.architecture, r.seed) == (child, 0))
    assert again is not None
    assert abs(again.val_loss - row.val_loss) < 3 * math.sqrt(2) * noise.within_sd


def test_a_child_with_more_seeds_is_not_shifted_by_them(tmp_path):
    def shifted(child):
        loss = 1 + 0.1 * child.architecture.count("CONV3") + child.seed
        return replace(child, val_loss=loss, batch_losses=tuple(loss * number for number in (10, 20)))

    table = write_micro_benchmark(journals(tmp_path / "journals", change=shifted), CONFIG, tmp_path / "table.csv")
    # In what they have in common the children of two seeds are one worse, and no worse for it here.
    losses = {child.architecture: child.val_loss for child in table.children}
    for child in CHILDREN:
        expected = 0.1 * (child.count("CONV3") - 4)
        assert losses[child] - losses[("CONV3",) * 4] == pytest.approx(expected, abs=1e-5)
    assert table.best.architecture == ("FFN",) * 4
    assert {child: -mean for child, mean in table.truth().means.items()} == pytest.approx(losses)
    for child in table.children:
        assert child.batch_losses == pytest.approx([10 * child.val_loss, 20 * child.val_loss], rel=0.02)
