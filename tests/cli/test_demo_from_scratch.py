"""The demo's comparison: children of like size, and equal compute."""

import json

import pytest
from toy_cli import run_main
from transformers import AutoModelForMaskedLM, AutoTokenizer

from training.cli import demo_from_scratch as demo
from training.hub.presets import load_preset
from training.space.costs import count_parameters, training_flops


def test_controls_are_a_bert_pattern_of_like_size_and_other_children():
    config = load_preset("magic-tiny")
    found = ("MHA4", "FFN", "CONV3", "FFN", "CONV5", "FFN")
    children = demo.controls(config, found, num_random=5)
    assert list(children) == [demo.FOUND, demo.BERT, *(f"random child {number}" for number in range(1, 6))]
    bert, others = children[demo.BERT], list(children.values())[2:]
    assert set(bert[::2]) == {"MHA4"}
    assert set(bert[1::2]) == {"FFN"}
    size = {name: count_parameters(config, child, head="mlm") for name, child in children.items()}
    longer, shorter = (*bert, "MHA4", "FFN"), bert[:-2]
    for pattern in (longer, shorter):
        if pattern:
            distance = abs(count_parameters(config, pattern, head="mlm") - size[demo.FOUND])
            assert abs(size[demo.BERT] - size[demo.FOUND]) <= distance
    assert len({found, bert, *others}) == 7
    assert all(len(other) == 6 for other in others)


def test_steps_give_equal_training_flops():
    config = load_preset("magic-tiny")
    children = demo.controls(config, ("CONV3",) * 6, num_random=2)
    steps = demo.equal_compute_steps(config, children, 1000)
    flops = {name: steps[name] * training_flops(config, children[name], 128, 2048) for name in children}
    assert steps[demo.FOUND] == 1000
    assert max(flops.values()) / min(flops.values()) < 1.005
    assert len(set(steps.values())) > 1


def test_the_found_child_stands_among_random_ones():
    losses = {demo.FOUND: [4.5, 4.7], demo.BERT: [5.9], "random child 1": [4.5], "random child 2": [4.7]}
    rows = [{"name": name, "val_loss": values} for name, values in losses.items()]
    rows.append({"name": "random child 3", "val_loss": [4.8]})
    assert demo.standing_of(rows) == (
        "The found child has a validation loss of 4.600; the mean over 3 random children of the same space is 4.667, "
        "standard deviation 0.153. It is better than 2 of them."
    )


@pytest.mark.slow
def test_the_whole_demo_in_its_shortest_setting(tmp_path, monkeypatch, capsys):
    code, out, err = run_main(monkeypatch, capsys, "demo", "--from-scratch", "--short", "-o", tmp_path / "run")
    assert code == 0, err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert [row["name"] for row in report["rows"]] == [demo.FOUND, demo.BERT, "random child 1"]
    assert report["standing"] in out
    assert report["table"] in out
    for name in ("report.png", "report.md"):
        assert (tmp_path / "run" / name).stat().st_size > 0
    model = AutoModelForMaskedLM.from_pretrained(tmp_path / "run" / "model", trust_remote_code=True)
    found = json.loads((tmp_path / "run" / "search" / "result.json").read_text())["architecture"]
    assert list(model.config.chain) == found
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "run" / "model")
    logits = model(**tokenizer(f"returns the {tokenizer.mask_token} of the array", return_tensors="pt")).logits
    assert logits.isfinite().all()
    # A second call trains nothing again.
    before = sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("result.json"))
    assert len(before) == 4
    assert run_main(monkeypatch, capsys, "demo", "--from-scratch", "--short", "-o", tmp_path / "run")[0] == 0
    assert sorted((path, path.stat().st_mtime_ns) for path in (tmp_path / "run").rglob("result.json")) == before
