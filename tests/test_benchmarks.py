"""The scripts that make tables of finished analyses: winners' regrets, groups, effects of operators, cosines."""

import csv
import importlib
import json
import math
import random
from collections import Counter
from itertools import combinations, product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from scipy.stats import kendalltau, ttest_1samp

from training.analysis.truth import StandaloneChild, journal_path
from training.supernet.journal import Journal


SCRIPTS = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))
OPERATORS = ["CONV3", "FFN", "MHA4"]
CHILDREN = list(product(OPERATORS, repeat=3))
_rng = random.Random(1)
# No two children have the same loss.
WORTH = {(place, name): _rng.random() / 10 for place in range(3) for name in OPERATORS}


def true_loss(child):
    """A sum over layers, so that its effects and its additive fit are known."""
    return 4 + sum(WORTH[place, name] * (1 + place) for place, name in enumerate(child))


def tau_of_pairs(children, true, score):
    """One pair after the other, of those with as many convolutions; no two are equal in a list."""
    signs = [
        1 if (true[a] - true[b]) * (score[a] - score[b]) > 0 else -1
        for a, b in combinations(children, 2)
        if a.count("CONV3") == b.count("CONV3")
    ]
    return sum(signs) / len(signs)


@pytest.fixture
def scripts(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    return importlib.import_module("winners"), importlib.import_module("ranking_limits")


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_script_shows_its_help(path, scripts, monkeypatch, capsys):
    script = importlib.import_module(path.stem)
    if not hasattr(script, "main"):
        assert path.stem in ("interleaved", "plain_training", "tables")
        return
    # Without these, two scripts start this process anew.
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.setenv(name, "131072")
    monkeypatch.setattr("sys.argv", [path.name, "--help"])
    with pytest.raises(SystemExit, match="0"):
        script.main()
    assert f"usage: {path.name}" in capsys.readouterr().out


def test_intervals_are_scipys(scripts):
    tables = importlib.import_module("tables")
    values = [0.5, 0.7, 0.64]
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    expected = f"+{sum(values) / 3:.3f} ({interval.low:+.3f} to {interval.high:+.3f})"
    assert tables.mean_with_interval(values, "+") == expected
    assert tables.mean_with_interval(values[:1]) == "0.500"


def analysis_of(folder, seed, cosine, batch="the same"):
    """Writes a super-net's run and its finished analysis, and returns the analysis's folder."""
    (folder / "run").mkdir(parents=True)
    run = {"command": "pretrain", "settings": {"training_arguments": {} if seed is None else {"seed": seed}}}
    (folder / "run" / "run.json").write_text(json.dumps(run))
    kinds = {key: {"mean": cosine / 2} for key in ("same_kind", "other_kind", "same_minus_other")}
    curve = [{"num_differing_layers": m, "mean": cosine / m} for m in (1, 2)]
    settings = {"supernet": str(folder / "run"), "shared_layer": 0, "alignment": "none"}
    (folder / "result.json").write_text(json.dumps({"curve": curve, "settings": settings, **kinds}))
    (folder / "repeats.json").write_text(json.dumps({"repeats": [{"batch": batch, "matrices": []}]}))
    return str(folder)


def test_cosines_are_paired_by_the_super_nets_seed(scripts, tmp_path, monkeypatch, capsys):
    cosines = importlib.import_module("cosines")
    found = {"a-0": (0, 0.5), "a-1": (1, 0.7), "b-0": (0, 0.6), "b-1": (1, 0.8)}
    folders = {name: analysis_of(tmp_path / name, *given) for name, given in found.items()}
    first = f"a={folders['a-0']},{folders['a-1']}"
    monkeypatch.setattr("sys.argv", ["cosines.py", first, f"b={folders['b-0']},{folders['b-1']}"])
    cosines.main()
    out = capsys.readouterr().out
    assert "| cosine | m = 1 | m = 2 | one kind | two kinds | one kind - two kinds |" in out
    # Both pairs differ by the same, so that the interval has no width.
    assert "| b | +0.100 (+0.100 to +0.100) | +0.050 (+0.050 to +0.050) |" in out
    # 42 is the seed of a run that names none.
    unnamed = [analysis_of(tmp_path / name, seed, 0.5) for name, seed in (("c-0", None), ("c-1", 42))]
    monkeypatch.setattr("sys.argv", ["cosines.py", f"a={unnamed[1]}", f"b={unnamed[0]}"])
    cosines.main()
    for wrong in (f"{folders['b-1']},{folders['b-0']}", folders["b-0"], f"{folders['b-0']},{unnamed[0]}"):
        monkeypatch.setattr("sys.argv", ["cosines.py", first, f"b={wrong}"])
        with pytest.raises(ValueError, match="list the same seeds in the same order"):
            cosines.main()
    other = analysis_of(tmp_path / "other", 0, 0.5, "another")
    monkeypatch.setattr("sys.argv", ["cosines.py", first, f"b={other}"])
    with pytest.raises(ValueError, match="differ in children or batches"):
        cosines.main()


@pytest.fixture
def methods(tmp_path):
    """A sweep's folder: three perfect super-nets, and two that know nothing."""
    rng = random.Random(0)
    noise = [{child: rng.random() for child in CHILDREN} for _ in range(2)]
    scores = {f"perfect-{n}": {child: -2 * true_loss(child) for child in CHILDREN} for n in range(3)}
    scores |= {f"blind-{n}": one for n, one in enumerate(noise)}
    with open(tmp_path / "supernets.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["supernet", "method"], *([name, name.split("-")[0]] for name in scores)])
    with open(tmp_path / "children.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["architecture", "val_loss", "num_seeds", *(f"score {name}" for name in scores)])
        for child in sorted(CHILDREN, key=true_loss):
            writer.writerow([",".join(child), true_loss(child), 1, *(one[child] for one in scores.values())])
    return tmp_path


def test_a_sweep_is_read_method_by_method(scripts, methods):
    true, shared = scripts[0].read_methods(methods)
    assert true == pytest.approx({child: true_loss(child) for child in CHILDREN})
    assert {name: len(found) for name, found in shared.items()} == {"perfect": 3, "blind": 2}
    assert shared["perfect"][1][CHILDREN[5]] == pytest.approx(2 * true_loss(CHILDREN[5]))


def test_winners_of_a_perfect_ranking_have_no_regret(scripts, methods, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["winners.py", str(methods), "--num-evaluations", "27"])
    scripts[0].main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| perfect")]
    # With as many evaluations as children nothing is missed.
    assert [row[2:] for row in rows] == [["3", "0.000 (0.000 to 0.000)", "1.0 |"]] * 3


def test_winners_of_shrinking_are_those_of_runs_that_ended_in_one_child(scripts, methods, monkeypatch, capsys):
    best = min(CHILDREN, key=true_loss)
    shrunk = run_of(methods / "shrunk", space=[[name] for name in best])
    monkeypatch.setattr("sys.argv", ["winners.py", str(methods), "--shrunk", shrunk])
    scripts[0].main()
    assert "| shrinking | shrinking | 1 | 0.000 | 1.0 |" in capsys.readouterr().out
    other = run_of(methods / "other", space=[OPERATORS] * 3, architecture=list(best))
    monkeypatch.setattr("sys.argv", ["winners.py", str(methods), "--shrunk", other])
    with pytest.raises(ValueError, match="nor a super-net that shrinking has reduced to one child"):
        scripts[0].main()


def test_chance_is_the_mean_of_all_children(scripts, methods):
    true, _ = scripts[0].read_methods(methods)
    row = scripts[0].row("none", "chance", list(true), true).split(" | ")
    losses = [true_loss(child) for child in CHILDREN]
    assert float(row[3].split()[0]) == pytest.approx(sum(losses) / 27 - min(losses), abs=1e-3)
    assert row[4] == "14.0 |"


def test_a_truth_with_holes_is_refused(scripts):
    with pytest.raises(ValueError, match="26 of 27 children"):
        scripts[0].space_of(CHILDREN[1:])


def test_effects_of_a_sum_are_its_terms(scripts, methods):
    _, limits = scripts
    true, _ = scripts[0].read_methods(methods)
    found = limits.effects(true, CHILDREN)
    for (place, name), effect in found.items():
        mean = sum(WORTH[place - 1, other] for other in OPERATORS) / 3
        assert effect == pytest.approx((WORTH[place - 1, name] - mean) * place)
    # Of the others it knows all operators, so that it foretells these too.
    assert limits.additive_fit(true, CHILDREN[::2]) == pytest.approx(true)


def test_groups_and_their_tau(scripts, methods, monkeypatch, capsys):
    true, shared = scripts[0].read_methods(methods)
    limit = sorted(true.values())[20] + 1e-9
    groups = scripts[1].groups_of(true, limit)
    assert [len(children) for children in groups.values()] == [27, 21, 10]
    assert [len(children) for children in scripts[1].groups_of(true, 99.0).values()] == [27, 13]
    blind = shared["blind"][0]
    learned = list(groups.values())[1]
    expected = kendalltau([true[child] for child in learned], [blind[child] for child in learned]).statistic
    assert scripts[1].tau(learned, true, blind) == pytest.approx(expected)
    assert scripts[1].tau_of_equals(learned, true, blind) == pytest.approx(tau_of_pairs(learned, true, blind))
    # Children of as many convolutions that a score holds for equal count as 0.
    partly = {child: loss if child.count("CONV3") == 1 else 0.0 for child, loss in blind.items()}
    ones = [child for child in learned if child.count("CONV3") == 1]
    numbers = Counter(child.count("CONV3") for child in learned)
    share = math.comb(len(ones), 2) / sum(math.comb(number, 2) for number in numbers.values())
    assert scripts[1].tau_of_equals(learned, true, partly) == pytest.approx(share * scripts[1].tau(ones, true, blind))
    assert math.isnan(scripts[1].tau_of_equals(learned, true, dict.fromkeys(blind, 0.0)))
    monkeypatch.setattr("sys.argv", ["ranking_limits.py", str(methods), "--below", str(limit)])
    scripts[1].main()
    out = capsys.readouterr().out
    assert "| perfect | 1.000 (1.000 to 1.000) |" in out
    assert f"children of the group 'loss below {limit:g}'" in out


@pytest.fixture
def found_children(scripts):
    return importlib.import_module("found_children")


def journal_of(folder, losses, seed=0, **key):
    """Writes a folder of children trained alone."""
    journal = Journal(journal_path(folder, seed), {"seed": seed, "space": "toy", **key}, StandaloneChild)
    for child, loss in losses.items():
        journal.append(StandaloneChild(child, loss, 0.0, seed=seed))


def run_of(folder, **result):
    """Writes a finished run and returns its folder's name."""
    folder.mkdir()
    (folder / "result.json").write_text(json.dumps(result))
    return str(folder)


def searched(*children):
    return {"searched": [{"architecture": list(child), "val_loss": loss} for child, loss in children]}


def test_found_children_beside_uniform_ones(found_children, tmp_path, monkeypatch, capsys):
    best, good, plain = CHILDREN[:3]
    journal_of(tmp_path / "truth", {CHILDREN[9]: 4.1, CHILDREN[10]: 4.3, CHILDREN[11]: 4.5})
    journal_of(tmp_path / "truth", {CHILDREN[9]: 9.0}, seed=1)
    journal_of(tmp_path / "alone", {best: 4.0, good: 4.2, plain: 4.4})
    runs = [
        run_of(tmp_path / "a", search=searched((best, 5.1), (plain, 5.2), (good, None))),
        run_of(tmp_path / "b", search=searched((plain, 5.2), (good, 5.0))),
        run_of(tmp_path / "c", space=[[name] for name in best]),
    ]
    arguments = [tmp_path / "truth", tmp_path / "alone", f"searched={runs[0]},{runs[1]}", f"shrunk={runs[2]}"]
    monkeypatch.setattr("sys.argv", ["found_children.py", *map(str, arguments), "--named", ",".join(plain)])
    found_children.main()
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [row[1] for row in rows] == ["2", "1", "1", "3"]
    # (4.0 + 4.2) / 2, against uniform children of which 4.1 is the best and the only one below 4.2.
    assert rows[0][2].startswith("4.100 (")
    assert rows[0][3].startswith("+0.000 (")
    assert rows[0][4] == "16.7% |"
    assert rows[1][2:] == ["4.000", "-0.100", "0.0% |"]
    assert rows[2][2:] == ["4.400", "+0.300", "66.7% |"]
    assert rows[3][2].startswith("4.300 (")


def test_found_children_that_are_yet_to_be_trained_are_named(found_children, tmp_path, monkeypatch):
    journal_of(tmp_path / "truth", {CHILDREN[9]: 4.1})
    run = run_of(tmp_path / "a", search=searched((CHILDREN[0], 5.1)))
    arguments = [str(tmp_path / "truth"), str(tmp_path / "alone"), f"searched={run}", f"again={run}"]
    monkeypatch.setattr("sys.argv", ["found_children.py", *arguments, "--named", ",".join(CHILDREN[1])])
    for missing in (CHILDREN[:2], CHILDREN[1:2]):
        options = " ".join(f"--architecture {','.join(child)}" for child in missing)
        with pytest.raises(ValueError, match=f"that --seed and {options}$"):
            found_children.main()
        journal_of(tmp_path / "alone", {CHILDREN[0]: 4.0})


def test_found_children_of_another_text_are_refused(found_children, tmp_path):
    journal_of(tmp_path / "truth", {CHILDREN[0]: 4.0}, data="a")
    journal_of(tmp_path / "alone", {CHILDREN[0]: 4.0}, data="b")
    with pytest.raises(ValueError, match="differ in data"):
        found_children.read_alone(tmp_path / "truth", tmp_path / "alone")


def test_a_found_child_that_diverged_is_named(found_children, tmp_path):
    journal_of(tmp_path / "truth", {CHILDREN[0]: 4.0})
    journal_of(tmp_path / "alone", {CHILDREN[1]: float("nan")})
    with pytest.raises(ValueError, match="the loss of CONV3,CONV3,FFN is nan"):
        found_children.read_alone(tmp_path / "truth", tmp_path / "alone")


def test_runs_that_found_no_child_are_refused(found_children, tmp_path):
    for number, result in enumerate(({"space": [["FFN", "MHA4"]]}, {"steps": 3})):
        with pytest.raises(ValueError, match="nor a super-net that shrinking has reduced to one child"):
            found_children.found_child(Path(run_of(tmp_path / str(number), **result)))
    with pytest.raises(ValueError, match="not a finished run"):
        found_children.found_child(tmp_path)


def test_the_table_of_compressions_has_means_and_leads_over_seeds(scripts):
    compress = importlib.import_module("compress")
    worth = {
        "found": (80, 82),
        "block_drop": (79, 81.5),
        "sublayer_drop": (78, 81.9),
        "block_drop_equal_steps": (77, 80),
    }

    def result(seed):
        def row(member, role, test, steps):
            latency = {"padded": [0.3 + seed / 10, 0, 1], "unpadded": None}
            return {
                "member": member,
                "role": role,
                "tasks": {"stsb (test.tsv)": test, "stsb (dev.tsv)": 50},
                "steps": steps,
                # By rounding the checkpoint's may be below zero.
                "loss": 0.1 * (seed + 1) if member else -1e-9,
                "architecture": ["MHA4", "FFN"][: seed + 1],
                **latency,
            }

        rows = [row("latency-0.4x", role, values[seed], 100) for role, values in worth.items()]
        return {"members": [{"name": "latency-0.4x"}], "models": [row("", "checkpoint", 90, 0), *rows]}

    results = [result(0), result(1)]
    lines = compress.table(results)
    assert lines[2] == "| checkpoint | 0.35x |  | 0 | 0.0000 | 90.00 | 50.00 | 90.00, 90.00 |"
    assert lines[3] == "| latency-0.4x: found | 0.35x |  | 100 | 0.1500 | 81.00 | 50.00 | 80.00, 82.00 |"
    assert all(line.count("|") == lines[0].count("|") for line in lines)
    # At equal steps one drop was distilled.
    assert compress.leads(results) == [
        "- latency-0.4x: lead on stsb (test.tsv) over the better drop +2.50 at equal steps (+3.00, +2.00); "
        "+0.55 at equal compute (+1.00, +0.10). Found: MHA4; MHA4,FFN."
    ]


# ---- On a GPU ----


@pytest.fixture
def gpu(scripts):
    return importlib.import_module("gpu")


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_the_table_of_a_gpu_on_a_cpu(gpu, tmp_path, monkeypatch, capsys):
    sizes = "--device cpu --layers 2 --hidden-size 64 --vocab-size 100 --shapes 2x16 --pairs 2"
    monkeypatch.setattr("sys.argv", ["gpu.py", *sizes.split(), "--output", str(tmp_path)])
    threads = torch.get_num_threads()
    try:
        gpu.main()
    finally:
        torch.set_num_threads(threads)
    (page,) = tmp_path.glob("gpu_*_20*.md")
    text = page.read_text()
    assert text == capsys.readouterr().out
    assert sizes in text
    header, _, *rows = [cells_of(line) for line in text.splitlines() if line.startswith("|")]
    assert {len(row) for row in rows} == {len(header)} == {8}
    measured = [row for row in rows if row[1]]
    assert [row[0].partition(":")[0] for row in measured] == ["inference"] + ["training step"] * 4
    assert all(float(row[2]) > 0 and float(row[3]) > 0 and float(row[4]) > 0 for row in measured)
    assert ["not run" in row[0] for row in rows if not row[1]] == [True]


def test_the_page_says_how_the_tests_ended(gpu, tmp_path):
    cases = [
        '<testcase name="a"/>',
        '<testcase name="b"><failure message="no">x</failure></testcase>',
        *['<testcase name="c"><skipped message="needs two GPUs">x</skipped></testcase>'] * 2,
    ]
    report = tmp_path / "tests.xml"
    report.write_text(f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>")
    assert gpu.results_of_tests(report) == [
        "",
        "Tests marked `gpu`: 1 passed, 1 failed, 2 skipped.",
        "",
        "- failed: b",
        "- 2 skipped: needs two GPUs",
    ]


def test_the_ratio_is_of_pairs_in_turn(gpu, monkeypatch):
    calls = []
    times = {"reference": [6.0, 4.0, 9.0], "ours": [2.0, 2.0, 3.0]}

    def milliseconds(step, device):
        return times[step()].pop(0)

    def side(name):
        return lambda: calls.append(name) or name

    monkeypatch.setattr(gpu, "milliseconds", milliseconds)
    sizes = gpu.Sizes(torch.device("cpu"), 1, 64, 100, ((2, 16),), pairs=3)
    row = cells_of(gpu.compare("what", (2, 16), side("reference"), side("ours"), sizes))
    assert row[:5] == ["what", "2 x 16", "6.00", "2.00", "3.000"]
    in_turn = calls[6:12]
    assert in_turn == ["reference", "ours", "ours", "reference", "reference", "ours"]
    times |= {"reference": [6.0, 4.0, 9.0], "ours": [2.0, 2.0, 3.0]}
    again = cells_of(gpu.compare("what", (2, 16), side("reference"), side("ours"), sizes, inverse=True))
    assert again[4] == "0.333"


def test_what_does_not_fit_is_a_row(gpu):
    def make():
        raise torch.OutOfMemoryError("CUDA out of memory")

    row = cells_of(gpu.row_of(make, "training step", (32, 512)))
    assert row == ["training step", "32 x 512", "out of memory", *[""] * 5]


def test_another_model_is_not_timed(gpu):
    sizes = gpu.Sizes(torch.device("cpu"), 1, 64, 100, ((2, 16),), pairs=2)
    bert, ours = gpu.bert_and_ours(sizes, "sdpa", torch.float32)
    gpu.check_the_same(bert, ours, sizes.inputs((2, 16)))
    with torch.no_grad():
        ours.lm_head.dense.weight.neg_()
    with pytest.raises(SystemExit, match="logits of the converted BERT are off by"):
        gpu.check_the_same(bert, ours, sizes.inputs((2, 16)))


def test_a_machine_without_a_gpu_gets_one_line(gpu, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["gpu.py", "--check"])
    for version, reason in (
        (None, "is a build without CUDA; install the one from PyPI"),
        ("13.0", "finds no CUDA device"),
    ):
        monkeypatch.setattr(torch.version, "cuda", version)
        with pytest.raises(SystemExit) as stopped:
            gpu.main()
        assert stopped.value.code == f"no GPU: torch {torch.__version__} {reason}"
    monkeypatch.setattr("sys.argv", ["gpu.py", "--check", "--device", "cpu"])
    gpu.main()


def test_a_page_is_named_by_card_and_date(gpu, tmp_path, monkeypatch):
    monkeypatch.setattr(gpu, "device_name", lambda device: "NVIDIA H100 80GB HBM3")
    path = gpu.page_of(tmp_path, torch.device("cuda"))
    assert path.parent == tmp_path
    assert path.name.startswith("gpu_h100-80gb-hbm3_20")
    assert gpu.page_of(tmp_path / "own.md", torch.device("cuda")) == tmp_path / "own.md"


def test_a_folder_of_the_checkpoints_ranking_keeps_its_options(scripts, tmp_path):
    script = importlib.import_module("checkpoint_ranking")
    own = {"work": tmp_path, "steps": 200, "supernet_steps": 400, "sentences": 10, "max_flops": "0.36x"}
    script.claim(SimpleNamespace(**own, seeds=[0]))
    script.claim(SimpleNamespace(**own, seeds=[0, 1]))
    for name, value in (("steps", 10), ("supernet_steps", 10), ("sentences", 11), ("max_flops", "0.25x")):
        with pytest.raises(ValueError, match="use another folder or those options"):
            script.claim(SimpleNamespace(**{**own, name: value}))


def test_sizes_of_an_installation_count_each_needed_package_once(scripts, tmp_path, monkeypatch):
    sizes = importlib.import_module("install_sizes")
    needs = {
        "a-package": ["b", 'c; extra == "more"', 'd[plus]; extra == "more"', 'nowhere; python_version < "3"'],
        "b": ["c"],
        "c": [],
        "d": ['b; extra == "plus"', 'e; extra == "plus"', 'nowhere; extra == "other"'],
        "e": ["a.package"],
    }
    for name, lines in needs.items():
        info = tmp_path / f"{name.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        extras = "Provides-Extra: more\nProvides-Extra: plus\n"
        required = "".join(f"Requires-Dist: {line}\n" for line in lines)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n{extras}{required}")
        (info / "RECORD").write_text(f"{name}.py,,\nlost.py,,\n")
        (tmp_path / f"{name}.py").write_bytes(bytes(10_000))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sizes, "PACKAGE", "a-package")
    assert sizes.dependencies([]) == {"a-package", "b", "c"}
    assert sizes.dependencies(["more"]) == {"a-package", "b", "c", "d", "e"}
    assert 10_000 <= sizes.size_on_disk("a-package") < 20_000
