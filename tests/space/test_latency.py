"""The latency table: what is timed, what is fitted to it, and whether the machine allowed it."""

import dataclasses
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau, spearmanr
from toy import toy_config
from toy_timing import OPERATORS, PLANTED, QUIET, FakeTime, fake_clock, table_of

from modeling_magic import MagicForMaskedLM, MagicForSequenceClassification, MagicModel
from training.space import latency
from training.space.latency import HeldOutChild, LatencyTable, MeasuredChild, measure_child, measure_latency
from training.space.search_space import Architecture, SearchSpace
from training.space.settings import LatencySettings
from training.space.timing import Bench, Conditions, Timing


TWELVE_LAYERS = toy_config(candidate_operators=[list(OPERATORS)] * 12)


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    """Operators and embeddings take what is planted, and two rounds are enough."""
    run = Bench.run
    monkeypatch.setattr(
        Bench, "run", lambda self, workloads, min_rounds, progress: run(self, workloads, min(min_rounds, 2), progress)
    )
    return fake_clock(monkeypatch)


@contextmanager
def nothing_timed(seconds: Callable[[str, Architecture], float] = lambda kind, operators: 1.0):
    """Keeps what would be timed, by kind and operators, and takes a call to last as long as `seconds` says."""
    seen = SimpleNamespace(workloads={}, input_ids=None)

    def run(self, workloads, min_rounds, progress):
        seen.workloads, seen.input_ids = dict(workloads), self.input_ids
        return {key: [seconds(*key)] * 2 for key in workloads}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Bench, "run", run)
        patch.setattr(Bench, "conditions", lambda self: Conditions.judge(**QUIET))
        yield seen


def children_of(seen, kind: str) -> list[Architecture]:
    return [operators for found, operators in seen.workloads if found == kind]


def measure(config=None, **settings) -> LatencyTable:
    settings = {"seq_len": 8, "min_run_time": 0.001, "num_held_out": 4, **settings}
    num_held_out = settings.pop("num_held_out")
    config = config or toy_config()
    return measure_latency(config, LatencySettings(**settings), num_held_out=num_held_out, progress=False)


# The whole measurement, on a clock that does not depend on the machine.


def test_planted_times_are_found(fake_time):
    table = measure()
    assert table.outside.median_ms == pytest.approx(PLANTED["outside"])
    assert {name: row.median_ms for name, row in table.operators.items()} == pytest.approx(
        {name: PLANTED[name] for name in OPERATORS}
    )
    assert table.largest_error < 1e-6
    assert len({child.architecture for child in table.held_out}) == 4
    for child in table.held_out:
        assert child.measured.median_ms == pytest.approx(3 + sum(PLANTED[name] for name in child.architecture))
    assert table.trusted


def test_an_operator_is_timed_in_the_company_it_has_in_a_child(fake_time):
    # Alone in a loop, every operator is 3 ms faster than in a child, where most follow another operator.
    fake_time.change = 3.0
    table = measure(toy_config(candidate_operators=[list(OPERATORS)] * 12), num_held_out=8)
    assert table.median_error < 0.05
    assert all(table.operators[name].median_ms > PLANTED[name] + 1 for name in OPERATORS)


def test_held_out_error_is_of_what_was_measured(fake_time):
    fake_time.change = 3.0
    table = measure(num_held_out=9)
    predicted = [table.predict_ms(child.architecture) for child in table.held_out]
    children = [row.architecture for row in table.held_out]
    measured = [
        3 + sum(PLANTED[name] + 3 * (name != before) for before, name in zip(("", *child), child, strict=False))
        for child in children
    ]
    errors = sorted(abs(p / m - 1) for p, m in zip(predicted, measured, strict=True))
    assert table.median_error == pytest.approx(errors[4], abs=1e-4)
    assert table.largest_error == pytest.approx(errors[-1], abs=1e-4)
    assert table.largest_error > 0.001
    # Children of equal sums are ties by their planted times and not by their measured ones.
    timed = [row.measured.median_ms for row in table.held_out]
    assert timed == pytest.approx(measured)
    assert table.rank_correlations == pytest.approx(
        (kendalltau(predicted, timed).statistic, spearmanr(predicted, timed).statistic)
    )


def test_a_single_child_is_a_space_too(fake_time):
    # Nothing tells its two operators apart but their times alone.
    table = measure(toy_config(candidate_operators=[["MHA4"], ["FFN"]] * 2))
    assert len(table.held_out) == 1
    assert table.largest_error < 1e-6
    assert table.operators["FFN"].median_ms == pytest.approx(PLANTED["FFN"])


@pytest.mark.parametrize("first", [True, False])
def test_skip_takes_no_time_and_is_not_timed(fake_time, monkeypatch, tmp_path, first):
    timed = []
    run = Bench.run

    def remember(self, workloads, min_rounds, progress):
        timed.extend(workloads)
        return run(self, workloads, min_rounds, progress)

    monkeypatch.setattr(Bench, "run", remember)
    names = ["SKIP", *OPERATORS] if first else [*OPERATORS, "SKIP"]
    table = measure(toy_config(candidate_operators=[names] * 4), num_held_out=30)
    assert table.operators["SKIP"] == Timing(0.0, 0.0, 0.0)
    assert {name: row.median_ms for name, row in table.operators.items()} == pytest.approx(
        {name: PLANTED.get(name, 0) for name in names}
    )
    assert table.outside.median_ms == pytest.approx(PLANTED["outside"])
    assert any("SKIP" in child.architecture for child in table.held_out)
    assert table.largest_error < 1e-6
    for child in table.held_out:
        chain = [name for name in child.architecture if name != "SKIP"]
        assert child.measured.median_ms == pytest.approx(3 + sum(PLANTED[name] for name in chain))
    assert {operators[0] for kind, operators in timed if kind == "alone"} == set(OPERATORS)
    # What the table is held to is no child that it was fitted to with its SKIPs elsewhere.
    chains = {
        wanted: [tuple(name for name in child if name != "SKIP") for kind, child in timed if kind == wanted]
        for wanted in ("fitted", "held out")
    }
    assert not {*chains["fitted"]} & {*chains["held out"]}
    assert len({*chains["held out"]}) == len(chains["held out"])
    table.save(tmp_path / "table.json")
    assert LatencyTable.load(tmp_path / "table.json") == table
    assert table.predict_ms(("SKIP", "FFN", "SKIP", "MHA4")) == pytest.approx(3 + 7 + 5)
    config = toy_config(candidate_operators=[names] * 4)
    measured = measure_child(config, ("SKIP", "FFN", "SKIP", "MHA4"), LatencySettings(seq_len=8))
    assert measured.latency.median_ms == pytest.approx(15)


@pytest.mark.parametrize("candidates", [[["SKIP", "FFN"]], [["SKIP", "FFN"], ["SKIP"]], [["SKIP", "FFN"]] * 2])
def test_a_space_of_few_children_with_skips(fake_time, candidates):
    table = measure(toy_config(candidate_operators=candidates))
    assert [child.architecture.count("FFN") for child in table.held_out] in ([1], [2, 1], [1, 2])
    assert table.predict_ms(["FFN"] * len(candidates)) == pytest.approx(3 + 7 * len(candidates))


def test_nothing_but_skip_is_refused():
    with pytest.raises(ValueError, match="are SKIP in every layer, so nothing can be timed; hold out more, or give"):
        measure(toy_config(candidate_operators=[["SKIP"]] * 3))


def test_a_child_is_measured_whole(fake_time):
    child = ("FFN", "FFN", "CONV3", "MHA4")
    measured = measure_child(toy_config(), child, LatencySettings(seq_len=8))
    assert dataclasses.astuple(measured.latency) == pytest.approx((24, 24, 24))
    assert measured.trusted


def test_waiting_for_a_core_is_seen(fake_time):
    fake_time.core_share = 0.6
    measured = measure_child(toy_config(), ("FFN",) * 4, LatencySettings(seq_len=8))
    assert measured.conditions.core_share == pytest.approx(0.6)
    assert not measured.trusted
    table = measure()
    assert "60%" in table.summary()
    assert not table.trusted


# What is timed.


@pytest.mark.parametrize(("head", "kind"), [("none", MagicModel), ("mlm", MagicForMaskedLM)])
def test_what_is_timed_is_what_it_is_said_to_be(head, kind):
    with nothing_timed() as seen:
        measure(head=head, seed=3, num_held_out=2)
    torch.manual_seed(3)
    model = kind(toy_config()).eval()
    encoder, inputs = model.base_model, seen.input_ids
    assert inputs.shape == (1, 8)
    assert len(children_of(seen, "held out")) == 2
    assert len(children_of(seen, "alone")) == 4
    name = "last_hidden_state" if head == "none" else "logits"
    with torch.inference_mode():
        outputs = {key: make()() for key, make in seen.workloads.items()}
        embeddings = encoder.embeddings(inputs)
        for operator in OPERATORS:
            chain = embeddings
            for layer in encoder.encoder.layer:
                chain = layer.operators[operator](chain, None, None, None)[0]
            assert torch.equal(outputs["alone", (operator,) * 4], chain)
        for found in ("fitted", "held out"):
            for child in children_of(seen, found):
                expected = model(inputs, architecture=child)[name]
                torch.testing.assert_close(outputs[found, child][name], expected, rtol=0, atol=1e-6)
        stem = embeddings if head == "none" else model.lm_head(embeddings)
        torch.testing.assert_close(outputs["outside", ()][name], stem, rtol=0, atol=1e-6)
    assert set(outputs) == set(seen.workloads)


@pytest.mark.parametrize("seed", range(5))
def test_held_out_children_are_no_part_of_the_fit(seed):
    with nothing_timed() as seen:
        measure(toy_config(candidate_operators=[list(OPERATORS)] * 3), num_held_out=40, seed=seed)
    space, fitted, held_out = SearchSpace((OPERATORS,) * 3), children_of(seen, "fitted"), children_of(seen, "held out")
    assert len(set(held_out)) == 40
    assert set(held_out) | set(fitted) <= set(space.children())
    assert not set(held_out) & set(fitted)
    # Each is rich in an operator, and each operator has a child that is rich in it.
    assert all(max(Counter(child).values()) == 2 for child in fitted)
    assert {Counter(child).most_common(1)[0][0] for child in fitted} == set(OPERATORS)


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_measurement_fits_and_what_it_is_held_to_are_apart(fake_time, monkeypatch, kept):
    timed, extracted = [], []
    run, extract = Bench.run, MagicModel.extract_child

    def remember(self, workloads, *args):
        timed.extend(workloads)
        return run(self, workloads, *args)

    def count(self, architecture):
        extracted.append(architecture)
        return extract(self, architecture)

    monkeypatch.setattr(Bench, "run", remember)
    monkeypatch.setattr(MagicModel, "extract_child", count)
    if not kept:
        monkeypatch.setattr(latency, "count_parameters", lambda config, child: 2**27)
    table = measure(num_held_out=40)
    fitted = {child for kind, child in timed if kind == "fitted"}
    held_out = {child for kind, child in timed if kind == "held out"}
    assert held_out == {child.architecture for child in table.held_out}
    assert fitted
    assert not fitted & held_out
    # Small children are extracted once, large ones in each round, so that one is there at a time.
    times = [extracted.count(child) for child in fitted | held_out]
    assert set(times) == {1} if kept else min(times) > 2


def test_a_rich_child_stays_in_an_uneven_space():
    candidates = [["FFN"], ["FFN", "CONV3"], ["FFN"], ["MHA4", "CONV5", "FFN"]]
    space = SearchSpace.from_config(candidates)
    with nothing_timed() as seen:
        measure(toy_config(candidate_operators=candidates), num_held_out=20)
    fitted = children_of(seen, "fitted")
    assert set(fitted) <= set(space.children())
    assert {name for child in fitted for name in child} == set(OPERATORS)
    assert set(children_of(seen, "held out")) == set(space.children())


def test_nothing_else_is_changed(fake_time):
    config, threads = toy_config(), torch.get_num_threads()
    before, state = config.to_dict(), torch.get_rng_state()
    used = []
    embed = fake_time.operator

    def operator(name):
        used.append(torch.get_num_threads())
        embed(name)

    fake_time.operator = operator
    torch.set_num_threads(threads + 1)
    try:
        measure(config, num_held_out=1, num_threads=1)
        assert torch.get_num_threads() == threads + 1
    finally:
        torch.set_num_threads(threads)
    assert set(used) == {1}
    assert config.to_dict() == before
    assert config._attn_implementation == toy_config()._attn_implementation
    assert torch.equal(torch.get_rng_state(), state)


def test_no_generator_of_a_device_is_seeded(monkeypatch):
    """A latency is measured in the midst of trainings, whose dropout an accelerator draws."""
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    with nothing_timed():
        measure_latency(toy_config(), LatencySettings(seq_len=8), num_held_out=1, progress=False)
        measure_child(toy_config(), ("FFN", "CONV3", "MHA4", "FFN"), LatencySettings(seq_len=8))
    assert seeded == []
    torch.manual_seed(0)
    assert seeded == [0]


def test_a_model_is_measured_as_it_is_and_left_so():
    torch.manual_seed(0)
    model = MagicForMaskedLM(toy_config()).train()
    child = ("FFN", "CONV3", "MHA4", "FFN")
    measured = measure_child(model, child, LatencySettings(seq_len=8, dtype="bfloat16"))
    assert measured.architecture == child
    assert 0 < measured.latency.low_ms <= measured.latency.median_ms <= measured.latency.high_ms
    assert model.training
    assert model.dtype == torch.float32
    for head, output in (("none", "last_hidden_state"), ("mlm", "logits")):
        with nothing_timed() as seen, torch.inference_mode():
            measure_child(model, child, LatencySettings(seq_len=8, head=head))
            (call,) = seen.workloads.values()
            expected = (model.base_model if head == "none" else model).eval()(seen.input_ids, architecture=child)
            assert list(call()()) == [output]
            torch.testing.assert_close(call()()[output], expected[output], rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"mlm.*MagicForSequenceClassification.*head='none'"):
        measure_child(MagicForSequenceClassification(toy_config()), child, LatencySettings(head="mlm", seq_len=8))


# The fit.


@given(
    times=st.lists(st.floats(1, 10), min_size=4, max_size=4),
    factors=st.lists(st.floats(1.0, 1.4), min_size=4, max_size=4),
    outside=st.floats(0.01, 5),
    seed=st.integers(0, 99),
)
@settings(max_examples=20)
def test_the_fit_foretells_children_of_additive_time(times, factors, outside, seed):
    in_child = dict(zip(OPERATORS, times, strict=True))
    slower_in_child = dict(zip(OPERATORS, factors, strict=True))

    def total(child):
        return outside + sum(in_child[name] for name in child)

    def seconds(kind, operators):
        if kind == "alone":
            return sum(in_child[name] / slower_in_child[name] for name in operators)
        return total(operators)

    with nothing_timed(seconds):
        table = measure(TWELVE_LAYERS, num_held_out=1, seed=seed)
    space, rng = SearchSpace((OPERATORS,) * 12), random.Random(seed)
    for child in (space.sample(rng) for _ in range(20)):
        # Where one operator outweighs the others, the prior decides more: 4% off at the worst that a search found.
        assert table.predict_ms(child) == pytest.approx(1e3 * total(child), rel=0.06)


def fitted(candidates: list[list[str]], seconds: dict[tuple[str, Architecture], float]) -> list[float]:
    """The seconds that a table has for the operators where calls lasted so long."""
    with nothing_timed(lambda kind, operators: seconds[kind.replace("held out", "fitted"), operators]):
        table = measure(toy_config(candidate_operators=candidates))
    assert table.outside.median_ms == 1e3 * seconds["outside", ()]
    return [1e-3 * timing.median_ms for timing in table.operators.values()]


def test_what_children_leave_open_is_as_much_slower_as_the_rest():
    seconds = {
        ("outside", ()): 1.0,
        ("alone", ("FFN",) * 2): 4.0,
        ("alone", ("MHA4",) * 2): 6.0,
        ("fitted", ("FFN", "MHA4", "FFN", "MHA4")): 13.0,
    }
    assert fitted([["FFN"], ["MHA4"]] * 2, seconds) == pytest.approx([2.4, 3.6])


def test_no_operator_has_a_negative_time():
    # As a machine under load may measure it.
    children = {("fitted", ("FFN",)): 5.0, ("fitted", ("MHA4",)): 5.0}
    seconds = {("outside", ()): 9.0, ("alone", ("FFN",)): 1.0, ("alone", ("MHA4",)): 1.0, **children}
    assert fitted([["FFN", "MHA4"]], seconds) == pytest.approx([0, 0])


# Whether to trust it.


def test_a_quiet_machine_is_trusted():
    conditions = Conditions.judge(**QUIET)
    assert conditions.warnings == ()
    assert MeasuredChild(("FFN",), Timing(1.0, 1.0, 1.0), conditions).trusted
    assert table_of().trusted
    assert Conditions.judge(**{**QUIET, "core_share": None, "load_average": None}).warnings == ()


@pytest.mark.parametrize(
    ("changes", "seen"),
    [
        ({"core_share": 0.94}, r"94%.*95%"),
        ({"reference": [1e-3, 1.11e-3] * 30}, r"varied by 10%"),
        ({"reference": [1e-3] * 25 + [1.06e-3] * 25}, r"drifted by \+6%.*5%"),
        ({"reference": [1e-3] * 25 + [0.94e-3] * 25}, r"drifted by -6%.*5%"),
        ({"load_average": 2.1}, r"load average was 2\.1.* 2, the cores"),
        ({"num_threads": 3}, r"3 threads for 2 cores"),
    ],
)
def test_each_sign_of_load_is_named_with_its_limit(changes, seen):
    conditions = Conditions.judge(**{**QUIET, **changes})
    (warning,) = conditions.warnings
    assert re.search(seen, warning)
    table = table_of(conditions=conditions)
    assert not table.trusted
    assert "UNRELIABLE" in str(table)


def test_a_table_that_misses_children_is_not_trusted():
    measured = [Timing(milliseconds, milliseconds, milliseconds) for milliseconds in (10.0, 20.0, 30.0)]
    table = table_of(held_out=tuple(HeldOutChild(("FFN",), 1.12 * row.median_ms, row) for row in measured))
    assert not table.trusted
    assert "median error on whole children is 12%" in table.summary()


@pytest.mark.slow
def test_burners_are_noticed():
    """Twice as many busy processes as cores: the figure says that it is not to be trusted.

    Which sign tells of them is the scheduler's choice: it may leave a core to the thread that is timed.
    """
    burn = "print(flush=True)\nwhile True: pass"
    burners = [
        subprocess.Popen([sys.executable, "-c", burn], stdout=subprocess.PIPE)
        for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        for burner in burners:
            assert burner.stdout is not None
            burner.stdout.readline()
        # For longer than the time that a process gets in one piece.
        measured = measure_child(toy_config(), ("FFN",) * 4, LatencySettings(seq_len=32, min_run_time=1.0))
    finally:
        for burner in burners:
            burner.kill()
            burner.communicate()
    assert not measured.trusted
    assert "UNRELIABLE" in table_of().beside(measured)


# The table.


def test_cost_is_the_sum_in_whole_nanoseconds():
    cost = table_of(operators={"FFN": Timing(2.5000004, 2.5, 2.6), "MHA4": Timing(0.25, 0.2, 0.3)}).cost()
    assert (cost.name, cost.unit, cost.fixed) == ("latency_ms", 1e-6, 1_000_000)
    assert cost.operators == {"FFN": 2_500_000, "MHA4": 250_000}
    assert cost(("FFN", "MHA4", "FFN")) == pytest.approx(6.25)
    assert table_of().predict_ms(("FFN",) * 4) == pytest.approx(11.0)


def test_held_out_error_is_shown_with_every_use():
    table = table_of()
    assert (table.median_error, table.largest_error) == pytest.approx((0.05, 0.1))
    for text in (table.summary(), str(table), table.to_markdown()):
        assert "3 whole children: median 5.0%, largest 10.0%; Kendall's tau 1.00, Spearman's rho 1.00" in text
    assert "without padding" in table.to_markdown()
    assert "| CONV5 | 2.500 | 2.400 to 2.600 |" in table.to_markdown()


def test_one_held_out_child_has_no_rank():
    table = table_of(held_out=table_of().held_out[:1])
    assert all(math.isnan(value) for value in table.rank_correlations)
    assert "10.0%" in table.summary()


def test_predicted_stands_beside_measured():
    measured = MeasuredChild(("FFN",) * 4, Timing(10.0, 9.5, 10.5), Conditions.judge(**QUIET))
    assert table_of().beside(measured) == (
        "predicted 11.000 ms, measured 10.000 ms (9.500 to 10.500): the prediction is off by +10.0%"
    )


def test_a_table_measures_a_child_with_its_own_settings(fake_time, monkeypatch):
    table = table_of(settings=LatencySettings(seq_len=7, batch_size=2, min_run_time=0.001, dtype="bfloat16", seed=3))
    benches = []
    create = Bench.__init__

    def remember(self, *args):
        create(self, *args)
        benches.append(self)

    monkeypatch.setattr(Bench, "__init__", remember)
    table.measure_child(MagicModel(toy_config()), ("FFN",) * 4)
    assert benches[0].settings == table.settings
    assert benches[0].input_ids.shape == (2, 7)
    elsewhere = dataclasses.replace(table, device_name="another processor")
    assert not elsewhere.is_of_this_device()
    assert not dataclasses.replace(table, settings=LatencySettings(device="cuda")).is_of_this_device()
    with pytest.raises(ValueError, match="another processor"):
        elsewhere.measure_child(toy_config(), ("FFN",) * 4)
    with pytest.raises(ValueError, match="hidden_size"):
        table.measure_child(toy_config(hidden_size=64), ("FFN",) * 4)


def test_check_names_what_differs():
    table = table_of()
    table.check(toy_config())
    table.check(toy_config(candidate_operators=[["FFN"], ["MHA4"], ["FFN", "CONV3"], ["FFN"]], embedding_size=32))
    # The embeddings look rows up, however many there are; the masked-LM head computes with all of them.
    table.check(toy_config(vocab_size=99))
    of_the_head = table_of(settings=LatencySettings(head="mlm"))
    of_the_head.check(toy_config(vocab_size=99), vocabulary=False)
    with pytest.raises(ValueError, match="vocab_size is 100 in the table and 99"):
        of_the_head.check(toy_config(vocab_size=99))
    other = toy_config(candidate_operators=[["CONV7", "FFN"]] * 3, hidden_size=64)
    with pytest.raises(
        ValueError, match=r"hidden_size is 32 .*64 .*num_hidden|num_hidden.*hidden_size is 32 .*64"
    ) as error:
        table.check(other)
    assert "CONV7" in str(error.value)
    assert "magic-nas benchmark" in str(error.value)
    eager = toy_config(attn_implementation="eager")
    with pytest.raises(ValueError, match="attention is sdpa in the table and eager"):
        table.check(eager)


def test_a_table_with_skip_fits_children_of_fewer_layers():
    table = table_of(operators={**table_of().operators, "SKIP": Timing(0.0, 0.0, 0.0)})
    space = toy_config(candidate_operators=[["FFN", "SKIP"]] * 4)
    table.check(space)
    table.check(space.child_config(("FFN", "SKIP", "SKIP", "FFN")))
    with pytest.raises(ValueError, match="num_hidden_layers is 4 in the table and 5"):
        table.check(toy_config(candidate_operators=[["FFN"]] * 5))
    with pytest.raises(ValueError, match="num_hidden_layers is 4 in the table and 2"):
        table_of().check(toy_config(candidate_operators=[["FFN"]] * 2))
    with pytest.raises(ValueError, match="the table lacks SKIP"):
        table_of().check(space)


def test_table_is_saved_whole(tmp_path, fake_time):
    for number, table in enumerate((table_of(), measure(num_held_out=2))):
        table.save(tmp_path / f"{number}.json")
        assert LatencyTable.load(tmp_path / f"{number}.json") == table


def damaged(**changes):
    def change(value):
        for path, new in changes.items():
            *folders, last = path.split("__")
            place = value
            for folder in folders:
                place = place[folder]
            if new is KeyError:
                del place[last]
            else:
                place[last] = new
        return value

    return change


@pytest.mark.parametrize(
    ("damage", "seen"),
    [
        (damaged(version=2), "version 1"),
        (damaged(version=KeyError), "version 1"),
        (damaged(median_error=0.1), "median_error"),
        (damaged(outside=KeyError), "expected .*outside"),
        (damaged(settings__threads=2), "settings has .*threads"),
        (damaged(settings__seq_len="128"), "seq_len is '128'"),
        (damaged(settings__num_threads=True), "num_threads is True"),
        (damaged(outside__median_ms=-1.0), "-1.0 ms"),
        (damaged(outside__high_ms=math.nan), "nan"),
        (damaged(conditions__load_average="high"), "load_average is 'high'"),
        (damaged(operators=[]), "operators is"),
        (damaged(operators__FFN__extra=1), "FFN has .*extra"),
        (damaged(held_out=[]), "held-out"),
        (damaged(held_out=[3]), "held_out has 3"),
        (lambda value: [value], "version 1"),
    ],
)
def test_a_damaged_table_is_refused(tmp_path, damage, seen):
    path = tmp_path / "table.json"
    table_of().save(path)
    path.write_text(json.dumps(damage(json.loads(path.read_text()))))
    with pytest.raises(ValueError, match=seen) as error:
        LatencyTable.load(path)
    assert str(path) in str(error.value)
    assert "magic-nas benchmark" in str(error.value)


def test_what_is_no_table_is_refused(tmp_path):
    path = tmp_path / "table.json"
    for text in (None, "", "{", "3"):
        if text is not None:
            path.write_text(text)
        with pytest.raises(ValueError, match=r"table\.json is not a usable latency table"):
            LatencyTable.load(path)


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"seq_len": 65}, "65.*64"),
        ({"seq_len": 0}, "seq_len is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_threads": 0}, "num_threads is 0"),
        ({"head": "nsp"}, "nsp.*none, mlm, rtd"),
        ({"dtype": "int8"}, "int8.*float32"),
        ({"min_run_time": 0.0}, "min_run_time is 0"),
        ({"num_held_out": 0}, "num_held_out is 0"),
        ({"device": "toaster"}, "toaster"),
        pytest.param(
            {"device": "cuda"}, "cuda.*cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="has CUDA")
        ),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, seen):
    with pytest.raises(ValueError, match=seen):
        measure(**settings)


def test_a_child_outside_the_space_is_refused():
    with pytest.raises(ValueError, match="CONV7"):
        measure_child(toy_config(), ("FFN", "FFN", "FFN", "CONV7"), LatencySettings(seq_len=8))
