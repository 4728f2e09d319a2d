"""The passes and FLOPs of a super-net's training, against those that a training runs."""

import random

import pytest
from toy import toy_config, toy_trainer

from training.space.costs import training_flops
from training.space.search_space import SearchSpace
from training.supernet import trainer
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.compute import SupernetPasses, steps_of_equal_compute, supernet_flops, supernet_passes
from training.supernet.evaluation import count_layer_evaluations
from training.supernet.setup import search_sampler


def toy_args(**changes):
    given = {"alignment_every_n_layers": 2, "anchor_eval_steps": 4, "num_validation_sequences": 8, **changes}
    given = {
        "sampler": "gradual",
        "alignment": "anchor",
        "per_device_train_batch_size": 8,
        "alignment_warmup_steps": 0,
        "use_cpu": True,
        **given,
    }
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
        (
            0.1,
            {
                "alignment": "anchor",
                "alignment_warmup_steps": 0,
                "alignment_every_n_layers": 2,
                "anchor_challenger": "block",
            },
        ),
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


def test_a_challenger_of_one_block_is_often_the_anchor():
    config = toy_config(0.0, candidate_operators=[["FFN", "CONV3"], ["FFN", "CONV3", "CONV5"], ["FFN"]])
    args = toy_args(anchor_challenger="block", alignment_every_n_layers=1, anchor_eval_steps=1)
    # 8 sequences for the first anchor; then for challengers, and for anchors that are another child.
    expected = 8 * (1 + 99 + 99 * (1 / 2 + 2 / 3 + 0) / 3)
    assert supernet_passes(config, args, 100, num_train_sequences=64).validated == pytest.approx([expected] * 4)


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
    with pytest.raises(ValueError, match="no epochs after which to pick the anchor; set anchor_rank_steps"):
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
