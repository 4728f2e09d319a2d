"""Replaced-token detection: the pair of models, the loss, its scaling, resumption, evaluation, other model classes."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch.nn.functional import binary_cross_entropy_with_logits
from toy_rtd import (
    CHAIN,
    PLAIN,
    RESUMABLE,
    padded_data,
    rtd_trainer,
    stack,
    topic_data,
    toy_arguments,
    toy_child,
    toy_pair,
)
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertConfig,
    BertForMaskedLM,
    BertForTokenClassification,
    ElectraConfig,
    ElectraForMaskedLM,
    ElectraForPreTraining,
    Trainer,
    TrainerCallback,
)

from modeling_magic import MagicConfig, MagicForMaskedLM, MagicForPreTraining
from training.data.tokenizing import train_tokenizer
from training.hub.presets import load_preset
from training.resuming import last_complete_checkpoint
from training.retraining.rtd import ReplacedTokenTrainer, export_pair, rtd_training_flops
from training.retraining.rtd_model import ReplacedTokenConfig, ReplacedTokenModel, detection_metrics, generator_config
from training.space.costs import training_flops


TOY = Path(__file__).resolve().parents[1] / "toy_rtd.py"
OPERATORS = ["MHA1", "MHA8", "MHA3x300", "MHA8x512", "FFN", "FFNx7", "CONV5", "CONV3x33"]
METRICS = tuple(detection_metrics([0] * 7))
SIZES: dict[str, Any] = {"vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
SIZES |= {"intermediate_size": 64, "max_position_embeddings": 64, "pad_token_id": 0}


def same_weights(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


# ---- The generator's size ----


def test_generator_of_the_base_model_is_electras():
    """256 of 768, four heads of 12, 1024 of 3072, embeddings of 768: google/electra-base-generator."""
    config = load_preset("electra-base")
    generator = generator_config(config)
    assert (generator.hidden_size, generator.intermediate_size, generator.embedding_size) == (256, 1024, 768)
    assert generator.candidate_operators == [["MHA4"], ["FFN"]] * 12
    of_transformers = generator_config(ElectraConfig(hidden_size=768, embedding_size=768, num_attention_heads=12))
    assert (of_transformers.hidden_size, of_transformers.num_attention_heads) == (256, 4)
    assert of_transformers.embedding_size == 768
    small = generator_config(ElectraConfig(), 1 / 4)
    assert (small.hidden_size, small.num_attention_heads, small.embedding_size) == (64, 1, 128)


def test_explicit_inner_sizes_are_scaled():
    operators = ["MHA6x1536", "FFNx3200", "CONV3x1536", "CONV5", "MHA8"]
    config = MagicConfig(candidate_operators=[[name] for name in operators], embedding_size=128)
    generator = generator_config(config, 1 / 4)
    scaled = [layer[0] for layer in generator.candidate_operators]
    assert scaled == ["MHA2x384", "FFNx800", "CONV3x384", "CONV5", "MHA2"]
    assert (generator.hidden_size, generator.embedding_size) == (192, 128)
    assert config.candidate_operators[0] == ["MHA6x1536"]


def test_the_generators_chain_may_be_given():
    generator = generator_config(toy_child(), 1 / 4, ("MHA2", "FFN"))
    assert generator.candidate_operators == [["MHA2"], ["FFN"]]
    assert (generator.num_hidden_layers, generator.hidden_size, generator.embedding_size) == (2, 8, 32)
    same = generator_config(toy_child(), 1)
    assert (same.hidden_size, same.embedding_size) == (32, None)
    assert same.candidate_operators == toy_child().candidate_operators


@settings(max_examples=60)
@given(
    hidden=st.sampled_from([96, 128, 312, 512, 768]),
    operators=st.lists(st.sampled_from(OPERATORS), min_size=1),
    fraction=st.floats(0.02, 1),
)
def test_every_scaled_chain_is_a_model(hidden, operators, fraction):
    """Heads divide inner sizes, or the configuration would refuse itself; nothing grows but by rounding."""
    config = MagicConfig(candidate_operators=[[name] for name in operators], hidden_size=hidden)
    generator = generator_config(config, fraction)
    assert generator.num_hidden_layers == len(operators)
    assert 8 <= generator.hidden_size <= hidden
    assert abs(generator.hidden_size - hidden * fraction) <= 8
    assert (generator.embedding_size or generator.hidden_size) == hidden


@pytest.mark.parametrize(
    ("config", "arguments", "message"),
    [
        (toy_child(), (0,), "fraction is 0; it must be above 0 and at most 1"),
        (toy_child(), (1.5,), "fraction is 1.5; it must be above 0 and at most 1"),
        (toy_child(), (0.25, ("MHA3", "FFN")), "MHA3 has 3 heads, which do not divide its inner size 8"),
        (MagicConfig(candidate_operators=[["FFN", "CONV3"]]), (), "is a super-net; use the configuration of a child"),
        (BertConfig(**SIZES), (), "BertConfig has no embedding_size, .* configure the generator manually"),
        (
            ElectraConfig(**SIZES),
            (0.5, ("FFN",)),
            "only MAGIC models have an architecture; ElectraConfig does not",
        ),
    ],
)
def test_generators_that_cannot_be_are_refused(config, arguments, message):
    with pytest.raises(ValueError, match=message):
        generator_config(config, *arguments)


# ---- One model of two ----


def shared(model: Any) -> dict[str, list[torch.nn.Parameter]]:
    parts = [part.magic.embeddings for part in (model.generator, model.discriminator)]
    names = [f"{name}.weight" for name in ("word_embeddings", "position_embeddings", "token_type_embeddings")]
    return {name: [part.get_parameter(name) for part in parts] for name in (*names, "LayerNorm.weight")}


def test_shared_embeddings_are_one_tensor_after_save_and_load(tmp_path):
    model = toy_pair()
    model.save_pretrained(tmp_path)
    loaded = ReplacedTokenModel.from_pretrained(tmp_path)
    for pair in (model, loaded):
        assert all(own is other for own, other in shared(pair).values())
        assert pair.generator.lm_head.decoder.weight is pair.discriminator.magic.embeddings.word_embeddings.weight
        assert pair.generator.magic.embeddings.projection.out_features == 16
    assert len(list(model.parameters())) == len(load_file(tmp_path / "model.safetensors"))
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_shared_embeddings_begin_as_the_discriminators_and_all_else_stays():
    config = toy_child()
    generator, discriminator = MagicForMaskedLM(generator_config(config, 0.5)), MagicForPreTraining(config)
    before = [copy.deepcopy(part.state_dict()) for part in (generator, discriminator)]
    state = torch.get_rng_state()
    ReplacedTokenModel(generator=generator, discriminator=discriminator)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in discriminator.state_dict().items())
    changed = {name for name, tensor in generator.state_dict().items() if not torch.equal(tensor, before[0][name])}
    tables = {f"magic.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    assert changed == tables | {"lm_head.decoder.weight"}


def test_untied_models_share_nothing(tmp_path):
    toy_pair(tie_embeddings=False).save_pretrained(tmp_path)
    model = ReplacedTokenModel.from_pretrained(tmp_path)
    assert not any(own is other for own, other in shared(model).values())
    assert model.generator.lm_head.decoder.weight is model.generator.magic.embeddings.word_embeddings.weight


def test_projections_are_not_shared_even_where_they_are_alike():
    config = toy_child(embedding_size=16)
    model = toy_pair(config, fraction=1.0)
    assert all(own is other for own, other in shared(model).values())
    parts: Any = (model.generator, model.discriminator)
    own, other = (part.magic.embeddings.projection.weight for part in parts)
    assert own.shape == other.shape == (32, 16)
    assert own is not other


def test_embeddings_of_other_shapes():
    """Fewer positions stay the generator's own; other words or another width are refused."""
    config = toy_child()
    short = generator_config(toy_child(max_position_embeddings=32), 0.5)
    model = ReplacedTokenModel(generator=MagicForMaskedLM(short), discriminator=MagicForPreTraining(config))
    tied = {name: own is other for name, (own, other) in shared(model).items()}
    assert tied.pop("position_embeddings.weight") is False
    assert all(tied.values())
    for other in (toy_child(vocab_size=90), toy_child(hidden_size=16)):
        with pytest.raises(
            ValueError, match=r"word embeddings are \d+ x \d+ but the discriminator's are 100 x 32, so they"
        ):
            ReplacedTokenModel(generator=MagicForMaskedLM(other), discriminator=MagicForPreTraining(config))
    with pytest.raises(ValueError, match="give a generator and a discriminator"):
        ReplacedTokenModel(generator=MagicForMaskedLM(short))
    with pytest.raises(ValueError, match="has no generator and discriminator"):
        ReplacedTokenModel(ReplacedTokenConfig())


def test_forward_by_hand():
    """A generator that always says 31: labels, both losses and every count, against the models' own losses."""
    model = toy_pair(toy_child(0.0)).eval()
    with torch.no_grad():
        model.generator.lm_head.bias[31] = 1e4
    original = torch.tensor([[1, 31, 12, 13, 2, 0], [1, 21, 31, 31, 23, 2]])
    masked = torch.tensor([[0, 1, 0, 1, 0, 0], [0, 1, 1, 0, 1, 0]]).bool()
    mask = torch.tensor([[1, 1, 1, 1, 1, 0], [1, 1, 1, 1, 1, 1]])
    labels = original.masked_fill(~masked, -100)
    inputs = {"input_ids": original.masked_fill(masked, 4), "attention_mask": mask}
    output = model(**inputs, labels=labels)
    assert output.corrupted_ids.tolist() == [[1, 31, 12, 31, 2, 0], [1, 31, 31, 31, 31, 2]]
    assert output.replaced.int().tolist() == [[0, 0, 0, 1, 0, 0], [0, 1, 0, 0, 1, 0]]
    loss_rtd = model.discriminator(output.corrupted_ids, attention_mask=mask, labels=output.replaced.long()).loss
    torch.testing.assert_close(output.loss_rtd, loss_rtd)
    torch.testing.assert_close(output.loss_mlm, model.generator(**inputs, labels=labels).loss)
    claimed = (output.logits > 0) & mask.bool()
    found = (claimed & output.replaced).sum(dim=1).tolist()
    right = ((claimed == output.replaced) & mask.bool()).sum(dim=1).tolist()
    rows = zip([2, 3], [1, 1], [5, 6], [1, 2], claimed.sum(dim=1).tolist(), found, right, strict=True)
    assert output.row_counts.tolist() == [list(row) for row in rows]
    sums = output.row_losses.sum(dim=0)
    torch.testing.assert_close(sums, torch.stack([output.loss_mlm * 5, output.loss_rtd * 11]).detach())
    whole = model(**inputs, labels=labels, num_items_in_batch=torch.tensor([10, 44]))
    torch.testing.assert_close(whole.loss_mlm, output.loss_mlm / 2)
    torch.testing.assert_close(whole.loss_rtd, output.loss_rtd / 4)
    with pytest.raises(ValueError, match="needs masked inputs with labels"):
        model(**inputs)


def test_draws_follow_from_the_seeds_of_the_sequences():
    model, batch = toy_pair(toy_child(0.0)).eval(), stack(padded_data(6))
    drawn = model(**batch, sampling_seeds=[1, 2, 3, 4, 5, 6]).corrupted_ids
    order = [3, 0, 5]
    part = model(**{name: tensor[order] for name, tensor in batch.items()}, sampling_seeds=[4, 1, 6]).corrupted_ids
    assert torch.equal(part, drawn[order])
    assert not torch.equal(model(**batch, sampling_seeds=[7, 8, 9, 10, 11, 12]).corrupted_ids, drawn)


def test_the_head_runs_on_masked_positions_only():
    model, batch, shapes = toy_pair(), stack(padded_data(8)), []
    model.generator.lm_head.register_forward_pre_hook(lambda module, args: shapes.append(args[0].shape[:-1].numel()))
    model(**batch)
    assert shapes == [(batch["labels"] != -100).sum()]
    assert model.generator(batch["input_ids"]).logits.shape == (8, 12, 100)


def test_batches_without_a_masked_token_have_no_mlm_loss():
    model, batch = toy_pair(), stack(padded_data(4))
    output = model(**{**batch, "labels": torch.full_like(batch["labels"], -100)}, sampling_seeds=range(4))
    assert output.loss_mlm == 0
    assert output.loss_rtd > 0
    assert not output.replaced.any()


@pytest.mark.parametrize("tied", [False, True])
def test_no_gradient_flows_through_the_sampling(tied):
    model = toy_pair(tie_embeddings=tied)
    output = model(**stack(padded_data(8)))
    output.loss_rtd.backward()
    reached = {name for name, parameter in model.generator.named_parameters() if parameter.grad is not None}
    embeddings = {f"magic.embeddings.{name}" for name in ("LayerNorm.weight", "LayerNorm.bias")}
    embeddings |= {f"magic.embeddings.{name}_embeddings.weight" for name in ("word", "position", "token_type")}
    assert reached == (embeddings if tied else set())
    assert all(parameter.grad is not None for parameter in model.discriminator.parameters())


def test_the_mlm_loss_reaches_the_generator_only():
    model = toy_pair(tie_embeddings=False)
    model(**stack(padded_data(8))).loss_mlm.backward()
    assert all(parameter.grad is not None for parameter in model.generator.parameters())
    assert all(parameter.grad is None for parameter in model.discriminator.parameters())


# ---- Metrics ----


def test_metrics_by_hand():
    metrics = detection_metrics([20, 5, 100, 15, 12, 9, 91])
    assert metrics["generator_accuracy"] == 0.25
    assert metrics["replaced_share"] == 0.15
    assert metrics["discriminator_accuracy"] == 0.91
    assert metrics["discriminator_precision"] == 0.75
    assert metrics["discriminator_recall"] == 0.6
    assert set(detection_metrics([0] * 7).values()) == {0.0}


# ---- Training ----


def test_logs_are_the_losses_and_metrics_of_the_steps(tmp_path):
    """Nine steps of two micro-batches, a log each three: all from the discriminator's logits on the real tokens."""
    trainer = rtd_trainer(tmp_path, rtd_weight=3.0, max_steps=9, logging_steps=3, gradient_accumulation_steps=2)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []

    def record(module, args, inputs, output):
        tokens = inputs["attention_mask"].bool()
        seen.append((output.logits.detach()[tokens], output.replaced[tokens]))

    trainer.model.register_forward_hook(record, with_kwargs=True)
    trainer.train()
    steps = [[torch.cat(parts) for parts in zip(*seen[start : start + 2], strict=True)] for start in range(0, 18, 2)]
    losses = [binary_cross_entropy_with_logits(logits, replaced.float()).item() for logits, replaced in steps]
    entries = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert len(entries) == 3
    for entry, start in zip(entries, (0, 3, 6), strict=True):
        assert entry["loss"] == pytest.approx(entry["loss_mlm"] + 3 * entry["loss_rtd"], rel=1e-5)
        assert entry["loss_rtd"] == pytest.approx(sum(losses[start : start + 3]) / 3, rel=1e-5)
        logits, replaced = (torch.cat(parts) for parts in zip(*steps[start : start + 3], strict=True))
        claimed = logits > 0
        assert entry["replaced_share"] == pytest.approx(replaced.float().mean().item())
        assert entry["discriminator_accuracy"] == pytest.approx((claimed == replaced).float().mean().item())
        assert entry["discriminator_recall"] == pytest.approx(claimed[replaced].float().mean().item())
        precision = replaced[claimed].float().mean().item() if claimed.any() else 0.0
        assert entry["discriminator_precision"] == pytest.approx(precision)


def test_every_step_draws_anew(tmp_path):
    """The same sequence in every step, and a learning rate of zero."""
    model, seen = toy_pair(toy_child(0.0)), []
    model.register_forward_hook(lambda module, args, output: seen.append(output.corrupted_ids))
    arguments = {"max_steps": 3, "learning_rate": 0.0, "per_device_train_batch_size": 1}
    trainer = rtd_trainer(tmp_path, model, padded_data(1), gradient_accumulation_steps=2, **arguments)
    trainer.train_dataset = padded_data(1) * 6
    trainer.train()
    assert len({tuple(ids.flatten().tolist()) for ids in seen}) == len(seen) == 6


@pytest.mark.parametrize("max_grad_norm", [0.0, 1.0])
def test_a_generator_trained_alone_equals_the_masked_lm_trainer(tmp_path, max_grad_norm):
    """Same weights, data, order and dropout, the discriminator's loss at weight 0: the same curve, step for step."""
    config = toy_child(0.0)
    of_generator = generator_config(config, 0.5)
    of_generator.hidden_dropout_prob = of_generator.attention_probs_dropout_prob = 0.1
    model = ReplacedTokenModel(generator=MagicForMaskedLM(of_generator), discriminator=MagicForPreTraining(config))
    alone = copy.deepcopy(model.generator)
    alone.config.sparse_prediction = True
    arguments = {"max_steps": 12, "logging_steps": 1, "max_grad_norm": max_grad_norm, "weight_decay": 0.1}
    arguments |= {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}
    trainer = rtd_trainer(tmp_path, model, rtd_weight=0.0, **arguments)
    trainer.train()
    plain = Trainer(alone, toy_arguments(tmp_path, **arguments), train_dataset=padded_data(), data_collator=stack)
    plain.train()
    curves = [
        [entry[name] for entry in run.state.log_history if "loss" in entry]
        for run, name in ((trainer, "loss_mlm"), (plain, "loss"))
    ]
    assert len(curves[0]) == 12
    # Clipping adds the norms of the discriminator's gradients, which are zero, in another order.
    assert curves[0] == (curves[1] if max_grad_norm == 0 else pytest.approx(curves[1], rel=1e-6))
    for own, other in zip(model.generator.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=0 if max_grad_norm == 0 else 1e-6)


def test_runs_of_one_times_eight_and_eight_times_one_are_equal(tmp_path):
    """Sequences of unlike length and numbers of masked tokens, in one batch or one by one: the same draws and step."""
    arguments = {"max_steps": 6, "optim": "sgd", "logging_steps": 2, "learning_rate": 0.01}
    runs = []
    for size in (8, 1):
        batch = {"per_device_train_batch_size": size, "gradient_accumulation_steps": 8 // size}
        runs.append(rtd_trainer(tmp_path, toy_pair(toy_child(0.0)), **batch, **arguments))
        runs[-1].train()
    for one, other in zip(runs[0].model.parameters(), runs[1].model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)
    for first, second in zip(runs[0].state.log_history[:-1], runs[1].state.log_history[:-1], strict=True):
        for name in ("loss_mlm", "loss_rtd"):
            assert first[name] == pytest.approx(second[name], rel=1e-5)
        assert all(first[name] == second[name] for name in METRICS)


def test_the_discriminator_beats_the_majority_on_held_out_text(tmp_path):
    config = toy_child(0.0, vocab_size=25, initializer_range=0.2)
    arguments = {"max_steps": 60, "learning_rate": 5e-3, "per_device_train_batch_size": 64, "warmup_steps": 10}
    trainer = rtd_trainer(tmp_path, toy_pair(config, seed=1), topic_data(2000, seed=1), **arguments)
    trainer.train()
    measured = trainer.evaluate(topic_data(300, seed=2))
    assert 0.1 < measured["eval_replaced_share"] < 0.25
    assert measured["eval_discriminator_accuracy"] > 1 - measured["eval_replaced_share"] + 0.04
    assert measured["eval_discriminator_precision"] > 0.8
    assert measured["eval_generator_accuracy"] > 0.1


def test_the_shared_embeddings_stay_one_tensor_in_training(tmp_path):
    trainer = rtd_trainer(tmp_path)
    before = trainer.model.discriminator.magic.embeddings.word_embeddings.weight.detach().clone()
    trainer.train()
    assert all(own is other for own, other in shared(trainer.model).values())
    assert not torch.equal(trainer.model.generator.lm_head.decoder.weight, before)


@pytest.mark.parametrize("kind", ["electra", "bert"])
def test_models_of_transformers_train_and_resume(tmp_path, kind):
    if kind == "electra":
        config = ElectraConfig(**SIZES, embedding_size=16)
        torch.manual_seed(0)
        model = ReplacedTokenModel(
            generator=ElectraForMaskedLM(generator_config(config, 0.5)), discriminator=ElectraForPreTraining(config)
        )
    else:
        config = BertConfig(**SIZES, num_labels=1)
        torch.manual_seed(0)
        model = ReplacedTokenModel(generator=BertForMaskedLM(config), discriminator=BertForTokenClassification(config))
    fresh = copy.deepcopy(model)
    arguments = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1}
    trainer = rtd_trainer(tmp_path, model, **arguments)
    trainer.train()
    assert trainer.state.total_flos > 0
    words = model.discriminator.get_input_embeddings().weight
    assert model.generator.get_output_embeddings().weight is words
    resumed = rtd_trainer(tmp_path, fresh, **arguments)
    resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert same_weights(model, fresh)
    loaded = ReplacedTokenModel.from_pretrained(tmp_path / "checkpoint-4")
    assert type(loaded.discriminator) is type(model.discriminator)
    assert same_weights(model, loaded)
    model.discriminator.save_pretrained(tmp_path / "discriminator")
    again = type(model.discriminator).from_pretrained(tmp_path / "discriminator")
    assert all(
        torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.discriminator.state_dict().items()
    )


class StopAt(TrainerCallback):
    """Interrupts a run after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def test_resumed_run_equals_one_never_stopped(tmp_path):
    """Stopped within an epoch, between checkpoints and logs, and resumed with torch's generator in another state."""
    whole = rtd_trainer(tmp_path / "whole", **RESUMABLE)
    whole.train()
    stopped = rtd_trainer(tmp_path / "stopped", callbacks=[StopAt(13)], **RESUMABLE)
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    torch.manual_seed(9)
    checkpoint = last_complete_checkpoint(tmp_path / "stopped")
    assert checkpoint.endswith("checkpoint-10")
    resumed = rtd_trainer(tmp_path / "stopped", toy_pair(seed=5), **RESUMABLE)
    resumed.train(resume_from_checkpoint=checkpoint)
    assert same_weights(whole.model, resumed.model)
    first, second = whole.optimizer.state_dict()["state"], resumed.optimizer.state_dict()["state"]
    assert all(torch.equal(state[key], second[index][key]) for index, state in first.items() for key in state)
    logged, again = (
        [entry for entry in run.state.log_history if entry["step"] > 12 and "loss" in entry]
        for run in (whole, resumed)
    )
    assert logged == again
    assert logged[-1]["step"] == 15
    assert whole.evaluate()["eval_loss"] == resumed.evaluate()["eval_loss"]


def test_seeds_decide_the_draws(tmp_path):
    arguments = {"data_seed": 0, "max_steps": 1, "logging_steps": 1}
    runs = [rtd_trainer(tmp_path, toy_pair(toy_child(0.0)), seed=seed, **arguments) for seed in (0, 0, 1)]
    for run in runs:
        run.train()
    losses = [run.state.log_history[0]["loss_rtd"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


@pytest.mark.slow
def test_two_processes_are_one(tmp_path):
    """Four sequences on each against eight on one: weights, logs, and an evaluation of 19 sequences."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    done = subprocess.run([*command, str(TOY), str(tmp_path)], capture_output=True, timeout=300)
    assert done.returncode == 0, done.stderr.decode()[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    alone = rtd_trainer(tmp_path / "alone", toy_pair(toy_child(0.0)), **PLAIN)
    alone.train()
    for expected, own, other in zip(alone.model.parameters(), first["weights"], second["weights"], strict=True):
        assert torch.equal(own, other)
        torch.testing.assert_close(own, expected.detach(), rtol=0, atol=1e-6)
    names = ("loss_mlm", "loss_rtd", *METRICS)
    logged = [entry for entry in alone.state.log_history if "loss" in entry]
    for entry, other in zip(logged, (entry for entry in first["log_history"] if "loss" in entry), strict=True):
        assert {name: other[name] for name in names} == pytest.approx({name: entry[name] for name in names}, rel=1e-5)
    measured = alone.evaluate()
    assert first["metrics"]["eval_loss"] == second["metrics"]["eval_loss"]
    for name in names:
        assert first["metrics"][f"eval_{name}"] == pytest.approx(measured[f"eval_{name}"], rel=1e-5)


def test_evaluation_is_fixed(tmp_path):
    """Neither the seed nor the size of the batches changes what is drawn on the held-out text."""
    trainers = [
        rtd_trainer(tmp_path, seed=seed, per_device_eval_batch_size=size) for seed, size in ((0, 8), (1, 8), (0, 5))
    ]
    measured = [trainer.evaluate() for trainer in (*trainers, trainers[0])]
    for other in measured[1:]:
        for name in ("loss", "loss_mlm", "loss_rtd", *METRICS):
            assert other[f"eval_{name}"] == pytest.approx(measured[0][f"eval_{name}"], rel=1e-6)
    model, batch = trainers[0].model.eval(), stack(padded_data()[:19])
    assert measured[0]["eval_loss_mlm"] == pytest.approx(model(**batch).loss_mlm.item(), rel=1e-5)
    weighted = measured[0]["eval_loss_mlm"] + 50 * measured[0]["eval_loss_rtd"]
    assert measured[0]["eval_loss"] == pytest.approx(weighted, rel=1e-6)
    assert 0 < measured[0]["eval_replaced_share"] < 0.5


def test_evaluating_in_training_changes_nothing(tmp_path):
    evaluation = {"eval_strategy": "steps", "eval_steps": 2}
    runs = [rtd_trainer(tmp_path, toy_pair(toy_child(0.0)), max_steps=6, **extra) for extra in ({}, evaluation)]
    for run in runs:
        run.train()
    assert same_weights(runs[0].model, runs[1].model)
    assert len([entry for entry in runs[1].state.log_history if "eval_discriminator_recall" in entry]) == 3


def test_a_seeded_forward_pass_draws_nothing_from_the_global_generator():
    model, batch = toy_pair(toy_child(0.0)), stack(padded_data(4))
    before = torch.get_rng_state()
    model(**batch, sampling_seeds=range(4))
    assert torch.equal(torch.get_rng_state(), before)
    model(**batch)
    assert not torch.equal(torch.get_rng_state(), before)


def test_mixed_precision_and_activation_checkpointing(tmp_path):
    trainer = rtd_trainer(tmp_path, bf16=True, use_cpu=True, max_steps=3, logging_steps=1)
    trainer.train()
    losses = [entry["loss_rtd"] for entry in trainer.state.log_history if "loss_rtd" in entry]
    assert np.isfinite(losses).all()
    gradients = []
    for checkpointing in (False, True):
        model = toy_pair(toy_child(0.0))
        if checkpointing:
            model.activation_checkpointing_enable()
        output = model.train()(**stack(padded_data(8)), sampling_seeds=range(8))
        (output.loss_mlm + 50 * output.loss_rtd).backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for own, other in zip(*gradients, strict=True):
        torch.testing.assert_close(own, other, rtol=0, atol=1e-6)


def test_flops_are_those_of_both_models():
    config = toy_child()
    generator = generator_config(config, 0.5)
    chains = [[layer[0] for layer in part.candidate_operators] for part in (generator, config)]
    expected = training_flops(generator, chains[0], 12, 120, 0.2, "mlm")
    expected += training_flops(config, chains[1], 12, 120, head="rtd")
    assert rtd_training_flops(config, generator, 12, 120, 0.2) == expected


def test_the_trainer_counts_the_flops_of_both(tmp_path):
    trainer = rtd_trainer(tmp_path, max_steps=2)
    trainer.train()
    configs = (trainer.model.discriminator.config, trainer.model.generator.config)
    assert trainer.state.total_flos == 2 * rtd_training_flops(*configs, 12, 8 * 12)


def test_export_of_both(tmp_path):
    tokenizer = train_tokenizer(["the quick brown fox jumps over the lazy dog"] * 20, vocab_size=100)
    model = toy_pair(toy_child(vocab_size=len(tokenizer)))
    export_pair(model, tokenizer, tmp_path / "model", tmp_path / "generator", {}, {})
    discriminator = AutoModelForPreTraining.from_pretrained(tmp_path / "model")
    generator = AutoModelForMaskedLM.from_pretrained(tmp_path / "generator")
    assert isinstance(discriminator, MagicForPreTraining)
    assert isinstance(generator, MagicForMaskedLM)
    for loaded, own in ((discriminator, model.discriminator), (generator, model.generator)):
        assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in own.state_dict().items())
        assert loaded.num_parameters() == own.num_parameters()
    assert discriminator.config.candidate_operators == [[name] for name in CHAIN]
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something other than an exported model"):
        export_pair(model, tokenizer, tmp_path / "new", tmp_path / "notes", {}, {})
    assert not (tmp_path / "new").exists()
    config = ElectraConfig(**SIZES)
    model = ReplacedTokenModel(generator=ElectraForMaskedLM(config), discriminator=ElectraForPreTraining(config))
    with pytest.raises(
        ValueError, match="ElectraForPreTraining is not a MAGIC model; save it with its own save_pretrained"
    ):
        export_pair(model, tokenizer, tmp_path / "new", tmp_path / "newer", {}, {})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rtd_weight": -1}, "rtd_weight is -1; it must not be negative"),
        ({"label_smoothing_factor": 0.1}, "label smoothing is not defined for two losses"),
    ],
)
def test_wrong_arguments_name_the_remedy(tmp_path, arguments, message):
    with pytest.raises(ValueError, match=message):
        rtd_trainer(tmp_path, **arguments)


def test_batches_without_labels_are_refused(tmp_path):
    rows = [{"input_ids": row["input_ids"]} for row in padded_data()]
    trainer = ReplacedTokenTrainer(toy_pair(), toy_arguments(tmp_path), train_dataset=rows, data_collator=stack)
    with pytest.raises(ValueError, match="the batches have no labels; pass a data_collator that masks"):
        trainer.train()
