"""Both trainings against losses written out, in one process and in two."""

import os
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_compress import CLASSES, Kill, toy_bench
from transformers import TrainerCallback, TrainingArguments

from training.compression import teacher_trainers
from training.compression.members import members_of, trained_children
from training.compression.teacher_objectives import TARGET
from training.compression.teacher_trainers import (
    BudgetSampler,
    CheckpointTrainer,
    ChildTrainer,
    cut_batch,
    freeze_embeddings,
    teacher_states,
    trained_attention,
)
from training.compression.workbench import Workbench, supernet_config
from training.internals import attention_implementation, forget_accelerator
from training.runs.training import finish_training
from training.space.search_space import SearchSpace
from training.supernet.arguments import MagicTrainingArguments


ARGUMENTS: dict[str, Any] = {
    "max_steps": 4,
    "per_device_train_batch_size": 8,
    "learning_rate": 1e-3,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "dataloader_pin_memory": False,
    "label_names": [],
    "use_cpu": True,
}
# No adaptive step sizes: what two processes compute differs from one by the order of sums only.
PLAIN = {"optim": "sgd", "learning_rate": 0.05}
SMALLER = ("MHA4", "SKIP", "MHA4", "FFN")


@pytest.fixture(autouse=True, scope="module")
def _another_precision():
    """The accelerator of a process decides its precision until it is forgotten."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module", params=CLASSES)
def bench(request, tmp_path_factory) -> Workbench:
    return filled(tmp_path_factory.mktemp(request.param), CLASSES[request.param])


@pytest.fixture(scope="module")
def sentences(tmp_path_factory) -> Workbench:
    return filled(tmp_path_factory.mktemp("sentences"))


def filled(folder: Path, class_name: str = "BertModel") -> Workbench:
    bench = toy_bench(folder, class_name, num_sentences=100)
    bench.run_teacher(progress=False)
    return bench


def toy_supernet(bench: Workbench) -> Any:
    """The super-net around the checkpoint, with its weights where it has the same operators."""
    torch.manual_seed(1)
    model = type(bench.teacher)(supernet_config(bench.teacher.config, bench.space))
    model.load_state_dict(bench.teacher.state_dict(), strict=False)
    model.config.sparse_prediction = bench.source.kind == "masked_lm"
    freeze_embeddings(model)
    return model


def child_trainer(bench: Workbench, folder: Path, child: tuple[str, ...] = SMALLER, states_weight=0.0, **given):
    callbacks = given.pop("callbacks", None)
    model = toy_supernet(bench).extract_child(child)
    freeze_embeddings(model)
    return ChildTrainer(
        model=model,
        args=TrainingArguments(str(folder), **{**ARGUMENTS, **given}),
        objective=bench.objective,
        teacher=bench.teacher,
        states_weight=states_weight,
        train_dataset=bench.train,
        data_collator=bench.train_outputs.collate,
        callbacks=callbacks,
    )


def supernet_trainer(bench: Workbench, folder: Path, within=(), aligned: bool = False, **given):
    arguments = {"alignment": "none", "num_probe_children": 0, "alignment_every_n_layers": 2, "alignment_weight": 0.5}
    return CheckpointTrainer(
        toy_supernet(bench),
        MagicTrainingArguments(str(folder), **{**ARGUMENTS, **arguments, **given}),
        objective=bench.objective,
        within=within,
        anchor_teacher=bench.teacher if aligned else None,
        train_dataset=bench.train,
        data_collator=bench.train_outputs.collate,
    )


def logged(trainer, *names: str) -> list[dict[str, float]]:
    return [{name: entry[name] for name in names} for entry in trainer.state.log_history if "loss" in entry]


def weights_of(model) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def padded_batch(bench: Workbench, number: int = 8) -> dict[str, Any]:
    lengths = bench.train["length"][:]
    # The longest and the shortest, so that there is padding.
    places = sorted(range(len(lengths)), key=lengths.__getitem__)
    batch = bench.train_outputs.collate(
        bench.train.select([*places[: number // 2], *places[-number // 2 :]]).to_list()
    )
    assert "attention_mask" in batch
    return batch


def real_states(states: torch.Tensor, batch: dict[str, Any]) -> torch.Tensor:
    return torch.cat([row[: int(mask.sum())] for row, mask in zip(states, batch["attention_mask"], strict=True)])


# ---- A child ----


def test_a_child_that_is_the_checkpoint_has_nothing_to_learn(bench, tmp_path):
    trainer = child_trainer(bench, tmp_path, bench.teacher.config.chain, states_weight=1.0, **PLAIN, max_steps=2)
    before = weights_of(trainer.model)
    trainer.train()
    for entry in logged(trainer, "loss_checkpoint", "loss_states"):
        assert entry["loss_checkpoint"] == pytest.approx(0, abs=1e-6)
        assert entry["loss_states"] == pytest.approx(0, abs=1e-6)
    for one, two in zip(before, weights_of(trainer.model), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-4)


def test_the_loss_is_the_mean_over_the_items_and_over_the_tokens(bench, tmp_path):
    trainer = child_trainer(bench, tmp_path, states_weight=0.5)
    batch = padded_batch(bench)
    trainer.model.eval()
    given = {name: tensor for name, tensor in batch.items() if name != TARGET}
    outputs = trainer.model(**given, output_hidden_states=True, return_dict=True)
    expected = bench.objective.losses(bench.objective.read(outputs, batch), batch[TARGET], batch).mean()
    target = bench.teacher(**given, output_hidden_states=True, return_dict=True).hidden_states[-1]
    own, other = (real_states(states, batch) for states in (outputs.hidden_states[-1], target))
    expected = expected + 0.5 * torch.nn.functional.mse_loss(own, other)
    loss, outputs = trainer.compute_loss(trainer.model, batch, return_outputs=True)
    torch.testing.assert_close(loss, expected)
    assert trainer.count_items(batch).tolist() == [
        bench.objective.num_items(batch),
        int(given["attention_mask"].sum()),
    ]


def test_a_child_learns_and_its_embeddings_stay(bench, tmp_path):
    trainer = child_trainer(bench, tmp_path, max_steps=25, learning_rate=3e-3)
    embeddings = {name: tensor.clone() for name, tensor in bench.teacher.base_model.embeddings.state_dict().items()}
    trainer.train()
    losses = [entry["loss_checkpoint"] for entry in logged(trainer, "loss_checkpoint")]
    assert sum(losses[-5:]) < 0.7 * sum(losses[:5])
    for name, tensor in trainer.model.base_model.embeddings.state_dict().items():
        assert torch.equal(tensor, embeddings[name])


@pytest.mark.parametrize("states_weight", [0.0, 1.0])
def test_it_does_not_matter_how_a_batch_is_cut(bench, tmp_path, states_weight):
    trainers = [
        child_trainer(bench, tmp_path, states_weight=states_weight, **PLAIN, **cut)
        for cut in (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        )
    ]
    for trainer in trainers:
        trainer.train()
    names = ("loss", "loss_checkpoint", "loss_states", "grad_norm")
    for one, two in zip(*(logged(trainer, *names) for trainer in trainers), strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    for one, two in zip(*(weights_of(trainer.model) for trainer in trainers), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_long_batches_are_run_in_pieces_and_come_to_the_same(bench, tmp_path, monkeypatch):
    # A batch of 16 has at least three tokens a row: several pieces.
    of_pieces, widths = [], []
    for most_tokens in (4096, 40):
        monkeypatch.setattr(teacher_trainers, "_MOST_TOKENS", most_tokens)
        trainer = child_trainer(bench, tmp_path, states_weight=1.0, per_device_train_batch_size=16, **PLAIN)
        compute_loss = trainer.compute_loss
        trainer.compute_loss = lambda model, inputs, *args, own=compute_loss, **kwargs: (
            widths.append(inputs["input_ids"].numel()) or own(model, inputs, *args, **kwargs)
        )
        trainer.train()
        names = ("loss", "loss_checkpoint", "loss_states", "grad_norm")
        of_pieces.append((logged(trainer, *names), weights_of(trainer.model), len(widths)))
    (logs, weights, num_whole), (cut_logs, cut_weights, num_all) = of_pieces
    assert num_whole == ARGUMENTS["max_steps"]
    assert num_all - num_whole > 2 * num_whole
    assert max(widths[num_whole:]) <= 40
    for one, two in zip(logs, cut_logs, strict=True):
        assert one == pytest.approx(two, rel=1e-4, abs=1e-6)
    for one, two in zip(weights, cut_weights, strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


def test_pieces_are_whole_sequences_with_their_outputs(bench):
    batch = padded_batch(bench)
    lengths = bench.objective.record_lengths(batch)
    width = batch["input_ids"].shape[1]
    assert cut_batch(batch, lengths, 8 * width) == [batch]
    pieces = cut_batch(batch, lengths, 3 * width)
    assert [len(piece["input_ids"]) for piece in pieces] == [2, 3, 3]
    # Of one sequence even if it is longer.
    assert len(cut_batch(batch, lengths, 1)) == 8
    for name in (name for name in batch if name != TARGET):
        assert torch.equal(torch.cat([piece[name] for piece in pieces]), batch[name])
    for piece in pieces:
        own = bench.objective.record_lengths(piece)
        assert all(len(rows) == own.sum() for rows in piece[TARGET].values())
    for name, rows in batch[TARGET].items():
        assert torch.equal(torch.cat([piece[TARGET][name] for piece in pieces]), rows)


@pytest.mark.skipif(sys.platform != "linux", reason="the memory of a process is read from /proc")
def test_freed_memory_is_given_back():
    def used() -> int:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) // 1024

    # Freed, but below what is not: the heap cannot shrink by itself. What stays is too large for holes that are there.
    kept = [torch.ones(25_000 if number % 2 else 15_000) for number in range(10_000)]
    del kept[1::2]
    before = used()
    teacher_trainers.give_back_memory()
    assert before - used() > 200
    assert len(kept) == 5000


def test_a_training_gives_memory_back_now_and_then(sentences, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(teacher_trainers, "give_back_memory", lambda: asked.append(1))
    child_trainer(sentences, tmp_path, max_steps=25).train()
    assert len(asked) == 2


class StopAt(TrainerCallback):
    """Stops the process after a step, as far as a test can be stopped."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise Kill


@pytest.mark.parametrize("stop", [1, 9, 14])
def test_a_training_that_was_stopped_ends_with_the_same_weights(sentences, tmp_path, stop):
    # Twelve steps are an epoch.
    given = {"max_steps": 15, "save_strategy": "steps", "save_steps": 4}
    whole = child_trainer(sentences, tmp_path / "whole", **given)
    finish_training(whole)
    with pytest.raises(Kill):
        finish_training(child_trainer(sentences, tmp_path / "parts", callbacks=[StopAt(stop)], **given))
    # What was drawn in between is nothing to it.
    torch.rand(stop)
    parts = child_trainer(sentences, tmp_path / "parts", **given)
    finish_training(parts)
    assert all(
        torch.equal(one, two) for one, two in zip(weights_of(whole.model), weights_of(parts.model), strict=True)
    )


# ---- The super-net ----


def test_the_supernets_loss_is_that_of_the_child_and_the_distance_to_the_teacher(bench, tmp_path):
    trainer = supernet_trainer(bench, tmp_path, aligned=True)
    batch = padded_batch(bench)
    trainer.current_gradient_accumulation_steps = 1
    child = trainer.architecture = ("MHA2x16", "SKIP", "MHA4", "FFNx24")
    loss = trainer.compute_loss(trainer.model, batch, num_items_in_batch=trainer.count_items(batch))
    given = {name: tensor for name, tensor in batch.items() if name != TARGET}
    own = trainer.model(**given, architecture=child, output_hidden_states=True, return_dict=True)
    expected = bench.objective.losses(bench.objective.read(own, batch), batch[TARGET], batch).mean()
    states = bench.teacher(**given, output_hidden_states=True, return_dict=True).hidden_states
    for layer in (2, 4):
        pair = [real_states(side[layer], batch) for side in (own.hidden_states, states)]
        expected = expected + 0.5 * torch.nn.functional.mse_loss(*pair)
    torch.testing.assert_close(loss, expected)


def test_the_teacher_stays_in_evaluation_mode(bench, tmp_path):
    # A head's own dropout, and that of the encoder.
    assert bench.teacher.config.hidden_dropout_prob > 0
    supernet_trainer(bench, tmp_path, aligned=True, max_steps=1).train()
    child_trainer(bench, tmp_path, states_weight=1.0, max_steps=1).train()
    assert not any(module.training for module in bench.teacher.modules())
    batch = padded_batch(bench)
    for one, two in zip(*(teacher_states(bench.teacher, batch, [1, 3]) for _ in range(2)), strict=True):
        assert torch.equal(one, two)
        assert not one.requires_grad


def test_aligned_batches_are_not_cut(bench, tmp_path):
    assert supernet_trainer(bench, tmp_path).can_be_cut
    assert not supernet_trainer(bench, tmp_path, aligned=True).can_be_cut


@pytest.mark.parametrize("sampler", ["gradual", "uniform"])
def test_a_supernet_learns(bench, tmp_path, sampler):
    """Uniform children of so small a space include the one that has SKIP in every layer and nothing to learn."""
    trainer = supernet_trainer(bench, tmp_path, max_steps=30, learning_rate=3e-3, sampler=sampler)
    child = ("MHA2x16", "FFN", "MHA2x16", "FFN")

    def loss() -> float:
        with torch.no_grad():
            batch = padded_batch(bench, 60)
            given = {name: tensor for name, tensor in batch.items() if name != TARGET}
            own = bench.objective.read(trainer.model(**given, architecture=child, return_dict=True), batch)
            return bench.objective.losses(own, batch[TARGET], batch).mean().item()

    before = loss()
    trainer.train()
    assert loss() < 0.8 * before
    assert [sum(layer.values()) for layer in trainer.visits] == [30] * 4


def test_it_does_not_matter_how_a_batch_of_the_supernet_is_cut(bench, tmp_path):
    trainers = [
        supernet_trainer(bench, tmp_path, **PLAIN, **cut)
        for cut in (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4},
        )
    ]
    for trainer in trainers:
        trainer.train()
    for one, two in zip(*(weights_of(trainer.model) for trainer in trainers), strict=True):
        torch.testing.assert_close(one, two, rtol=0, atol=1e-6)


# ---- Children of the budgets' sizes ----


def budgets_of(bench: Workbench) -> list:
    config = bench.teacher.config
    members = members_of(bench.settings, config, bench.space, None)
    return trained_children(members, bench.space)


def test_drawn_children_are_within_one_of_the_budgets(tmp_path):
    bench = toy_bench(tmp_path, num_sentences=100, max_flops=("0.6x", "0.3x"))
    within = budgets_of(bench)
    sampler = BudgetSampler(bench.space, 0, within)
    children = [sampler.next() for _ in range(200)]
    for budget in within:
        assert 70 <= sum(child in budget for child in children) <= 130
    assert all(any(child in budget for budget in within) for child in children)
    # It goes on where it was.
    state = sampler.state_dict()
    following = [sampler.next() for _ in range(20)]
    again = BudgetSampler(bench.space, 7, within)
    again.load_state_dict(state)
    assert [again.next() for _ in range(20)] == following


def test_a_smaller_space_is_drawn_from_alone(tmp_path):
    bench = toy_bench(tmp_path, num_sentences=100)
    within = budgets_of(bench)
    smaller = SearchSpace((("MHA2x16", "SKIP"), *bench.space.candidates[1:]))
    restricted, made = BudgetSampler(bench.space, 0, within), BudgetSampler(smaller, 0, within)
    restricted.restrict(smaller)
    for sampler in (restricted, made):
        children = [sampler.next() for _ in range(50)]
        assert all(child in smaller and child in within[0] for child in children)
    # Where no child is within the budget, all are drawn from.
    largest = SearchSpace(tuple((layer[0],) for layer in bench.space.candidates))
    restricted = BudgetSampler(bench.space, 0, within)
    restricted.restrict(largest)
    assert restricted.next() == bench.teacher.config.chain


def test_the_trainer_draws_from_the_budgets_and_goes_on(tmp_path):
    bench = filled(tmp_path)
    within = budgets_of(bench)
    given = {"max_steps": 8, "save_strategy": "steps", "save_steps": 3}
    whole = supernet_trainer(bench, tmp_path / "whole", within, **given)
    whole.train()
    parts = supernet_trainer(bench, tmp_path / "parts", within, **given)
    parts.add_callback(StopAt(5))
    with pytest.raises(Kill):
        parts.train()
    parts = supernet_trainer(bench, tmp_path / "parts", within, **given)
    parts.train(resume_from_checkpoint=True)
    assert parts.architecture in within[0]
    assert parts.visits == whole.visits
    assert all(
        torch.equal(one, two) for one, two in zip(weights_of(whole.model), weights_of(parts.model), strict=True)
    )


def test_all_of_the_embeddings_are_frozen(bench):
    model = toy_supernet(bench)
    model.requires_grad_(True)
    freeze_embeddings(model)
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert not any("embeddings" in name for name in trained)
    assert any("encoder" in name for name in trained)


# ---- Attention ----


@pytest.mark.parametrize(
    ("in_bf16", "lengths", "expected"), [(True, (5, 65), ["eager", "sdpa"]), (False, (5,), ["sdpa"])]
)
def test_attention_of_short_sequences_is_written_out_where_that_is_faster(
    sentences, tmp_path, in_bf16, lengths, expected
):
    assert [trained_attention(length, torch.device("cpu"), in_bf16) for length in lengths] == expected
    assert trained_attention(5, torch.device("cuda"), True) == "sdpa"
    trainer = child_trainer(sentences, tmp_path, bf16=in_bf16, max_steps=1)
    before = attention_implementation(sentences.teacher.config)
    trainer.train()
    assert attention_implementation(trainer.model.config) == expected[0]
    assert attention_implementation(sentences.teacher.config) == before == "sdpa"


# ---- Two processes ----


def train_as_one_of_two(folder: Path) -> None:
    bench = filled(folder)
    given: dict[str, Any] = {**PLAIN, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    given |= {"ddp_backend": "gloo"}
    child = child_trainer(bench, folder / "child", states_weight=1.0, **given)
    supernet = supernet_trainer(bench, folder / "supernet", budgets_of(bench), **given)
    found = {}
    for name, trainer in (("child", child), ("supernet", supernet)):
        trainer.train()
        found[name] = (trainer.state.log_history, weights_of(trainer.model))
    torch.save(found, folder / f"{os.environ['RANK']}.pt")


@pytest.mark.slow
def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    bench = filled(tmp_path)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    tests = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tests.parent), str(tests)])}
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=300)
    assert run.returncode == 0, run.stderr
    given: dict[str, Any] = {**PLAIN, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    alone = {
        "child": child_trainer(bench, tmp_path / "alone", states_weight=1.0, **given),
        "supernet": supernet_trainer(bench, tmp_path / "alone", budgets_of(bench), **given),
    }
    names = {
        "child": ("loss", "loss_checkpoint", "loss_states", "grad_norm"),
        "supernet": ("loss", "loss_pred", "grad_norm"),
    }
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=False) for rank in range(2))
    for name, trainer in alone.items():
        trainer.train()
        (log, weights), (_, others) = first[name], second[name]
        assert all(torch.equal(one, two) for one, two in zip(weights, others, strict=True))
        for one, two in zip(weights, weights_of(trainer.model), strict=True):
            torch.testing.assert_close(one, two, rtol=0, atol=1e-6)
        for one, two in zip(logged(trainer, *names[name]), [entry for entry in log if "loss" in entry], strict=True):
            assert {key: two[key] for key in names[name]} == pytest.approx(one, rel=1e-4, abs=1e-6)


if __name__ == "__main__":
    torch.set_num_threads(1)
    random.seed(0)
    train_as_one_of_two(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
