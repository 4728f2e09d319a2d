"""The demo's comparison: children of like size, and equal compute."""

from training.cli import demo
from training.hub.presets import load_preset
from training.space.costs import count_parameters, training_flops


def test_controls_are_a_bert_pattern_of_like_size_and_another_child():
    config = load_preset("magic-tiny")
    found = ("MHA4", "FFN", "CONV3", "FFN", "CONV5", "FFN")
    children = demo.controls(config, found)
    bert, other = children[demo.BERT], children[demo.RANDOM]
    assert set(bert[::2]) == {"MHA4"}
    assert set(bert[1::2]) == {"FFN"}
    size = {name: count_parameters(config, child, head="mlm") for name, child in children.items()}
    longer, shorter = (*bert, "MHA4", "FFN"), bert[:-2]
    for pattern in (longer, shorter):
        if pattern:
            distance = abs(count_parameters(config, pattern, head="mlm") - size[demo.FOUND])
            assert abs(size[demo.BERT] - size[demo.FOUND]) <= distance
    assert other not in (found, bert)
    assert len(other) == 6


def test_steps_give_equal_training_flops():
    config = load_preset("magic-tiny")
    children = demo.controls(config, ("CONV3",) * 6)
    steps = demo.equal_compute_steps(config, children, 1000)
    flops = {name: steps[name] * training_flops(config, children[name], 128, 2048) for name in children}
    assert steps[demo.FOUND] == 1000
    assert max(flops.values()) / min(flops.values()) < 1.005
    assert len(set(steps.values())) > 1
