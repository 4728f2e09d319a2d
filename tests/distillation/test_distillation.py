"""Distillation: the losses against torch's own, the two trainers, gradient accumulation, and the cache in training."""

import copy
import math
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_teacher import DISTILBERT, SIZES
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, kl_div, mse_loss
from toy import collate, toy_data
from toy_rtd import padded_data, stack, toy_arguments, toy_child
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
    Trainer,
)

from modeling_magic import (
    MagicForMaskedLM,
    MagicForQuestionAnswering,
    MagicForSequenceClassification,
    MagicForTokenClassification,
)
from training.distillation.trainers import DistillationTrainer, MaskedLMDistillationTrainer, check_distillation
from training.objectives import distillation_losses, multi_label_distillation_losses, teacher_distribution


# No adaptive step sizes: what two processes compute differs from one by the order of sums only.
PLAIN: dict[str, Any] = {"max_steps": 4, "optim": "sgd", "gradient_accumulation_steps": 2, "learning_rate": 0.02}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def logits(rows=6, classes=11, seed=0, scale=2.0) -> torch.Tensor:
    return scale * torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def full_losses(student, teacher, temperature, top_k=None) -> torch.Tensor:
    log_probs, classes, rest = teacher_distribution(teacher, temperature, top_k)
    return distillation_losses(student, log_probs, temperature, classes, rest)


# ---- The losses ----


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_loss_is_torchs_kl_of_the_softened_distributions(temperature):
    student, teacher = logits(seed=1), logits(seed=2)
    own = (student / temperature).log_softmax(-1)
    target = (teacher / temperature).softmax(-1)
    expected = temperature**2 * kl_div(own, target, reduction="none").sum(-1)
    assert torch.allclose(full_losses(student, teacher, temperature).double(), expected, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_the_gradient_is_the_difference_of_the_distributions(temperature):
    """d/dz T^2 KL = T (softmax(z / T) - softmax(t / T))."""
    student, teacher = logits(seed=1).requires_grad_(), logits(seed=2)
    full_losses(student, teacher, temperature).sum().backward()
    difference = (student / temperature).softmax(-1) - (teacher / temperature).softmax(-1)
    assert student.grad is not None
    assert torch.allclose(student.grad, temperature * difference, atol=1e-5)


@pytest.mark.parametrize("top_k", [None, 1, 4])
def test_loss_and_gradient_vanish_where_the_student_is_the_teacher(top_k):
    teacher = logits(seed=3)
    student = (teacher + 7.0).clone().requires_grad_()
    losses = full_losses(student, teacher, 2.0, top_k)
    losses.sum().backward()
    assert student.grad is not None
    assert losses.abs().max() < 1e-5
    assert student.grad.abs().max() < 1e-5


@given(seed=st.integers(0, 1000), top_k=st.integers(1, 10), temperature=st.sampled_from([0.7, 1.0, 3.0]))
def test_top_k_falls_short_by_what_is_lost_within_the_rest(seed, top_k, temperature):
    """KL = KL of k + 1 events + (mass of the rest) * KL within the rest: the error that the text states."""
    student, teacher = logits(seed=seed), logits(seed=seed + 5000)
    truncated = full_losses(student, teacher, temperature, top_k).double()
    others = teacher.topk(11 - top_k, largest=False).indices
    target, own = ((values / temperature).log_softmax(-1).gather(-1, others) for values in (teacher, student))
    mass = target.exp().sum(-1)
    within = kl_div(own.log_softmax(-1), target.softmax(-1), reduction="none").sum(-1)
    full = full_losses(student, teacher, temperature).double()
    assert torch.allclose(full, truncated + temperature**2 * mass * within, atol=1e-4)
    assert (truncated <= full + 1e-5).all()
    assert (truncated >= -1e-5).all()


@pytest.mark.parametrize("top_k", [1, 3, 10, 11, 50])
def test_what_is_kept_of_the_teacher_sums_to_one(top_k):
    teacher = logits(seed=4)
    log_probs, classes, rest = teacher_distribution(teacher, 2.0, top_k)
    total = log_probs.exp().sum(-1)
    if top_k >= 11:
        assert classes is None
        assert rest is None
    else:
        assert classes is not None
        assert rest is not None
        assert torch.equal(classes, teacher.topk(top_k).indices)
        total = total + rest.exp()
    assert torch.allclose(total, torch.ones_like(total), atol=1e-6)


def test_what_the_teacher_rules_out_costs_nothing_and_leaves_no_nan():
    teacher = logits(2, 4)
    teacher[0, 1] = -math.inf
    student = logits(2, 4, seed=5)
    student[0, 1] = torch.finfo(torch.float64).min
    student.requires_grad_()
    losses = full_losses(student, teacher, 1.0)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert student.grad is not None
    assert student.grad.isfinite().all()
    kept = [0, 2, 3]
    assert torch.allclose(losses[0], full_losses(student[:1, kept], teacher[:1, kept], 1.0)[0])


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_several_labels_are_distilled_by_binary_cross_entropy(temperature):
    student, teacher = logits(seed=6).requires_grad_(), logits(seed=7)
    losses = multi_label_distillation_losses(student, teacher, temperature)
    target = (teacher / temperature).sigmoid()
    cross = binary_cross_entropy_with_logits(student / temperature, target, reduction="none")
    entropy = -(target * target.log() + (1 - target) * (1 - target).log())
    assert torch.allclose(losses.double(), temperature**2 * (cross - entropy).mean(-1), atol=1e-5)
    (own,) = torch.autograd.grad(losses.sum(), student, retain_graph=True)
    (plain,) = torch.autograd.grad(temperature**2 * cross.mean(-1).sum(), student)
    assert torch.allclose(own, plain, atol=1e-6)
    assert multi_label_distillation_losses(teacher, teacher, temperature).abs().max() < 1e-6


# ---- Pre-training ----


TEACHERS = {
    "magic": lambda: MagicForMaskedLM(toy_child(hidden_size=48)),
    "bert": lambda: BertForMaskedLM(BertConfig(**SIZES)),
    "roberta": lambda: RobertaForMaskedLM(RobertaConfig(**SIZES)),
    "distilbert": lambda: DistilBertForMaskedLM(DISTILBERT),
}


def masked_lm_teacher(name="bert", seed=5, sharpness=8.0):
    """One that knows what it says: random weights alone would say the same of everything."""
    torch.manual_seed(seed)
    teacher = TEACHERS[name]()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.mul_(sharpness ** (parameter.dim() - 1 > 0))
    return teacher


def student(kind="magic", dropout=0.0, seed=0):
    torch.manual_seed(seed)
    if kind == "magic":
        return MagicForMaskedLM(toy_child(dropout))
    return BertForMaskedLM(BertConfig(**SIZES, **NO_DROPOUT))


class CountedForwards:
    """How often a model is run, and on how many sequences."""

    def __init__(self, model):
        self.calls = self.sequences = 0
        model.register_forward_pre_hook(self._count, with_kwargs=True)

    def _count(self, module, args, kwargs):
        self.calls += 1
        self.sequences += len(kwargs["input_ids"])


def masked_lm_trainer(tmp_path, model=None, teacher=None, data=None, trainer=None, distill=None, **arguments):
    settings = {"max_steps": 6, "logging_steps": 2, **arguments}
    kind = trainer or MaskedLMDistillationTrainer
    given = {} if kind is Trainer else {"teacher": teacher or masked_lm_teacher(), **(distill or {})}
    data = data or padded_data()
    collator = stack if "attention_mask" in data[0] else collate
    model = model or student()
    return kind(model, toy_arguments(tmp_path, **settings), train_dataset=data, data_collator=collator, **given)


def weights(trainer) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def trained(trainer) -> torch.Tensor:
    torch.manual_seed(11)
    trainer.train()
    return weights(trainer)


def batch_of(trainer) -> dict[str, torch.Tensor]:
    return trainer._prepare_inputs(trainer.data_collator([trainer.train_dataset[index] for index in range(8)]))


@pytest.mark.parametrize("kind", ["magic", "bert"])
@pytest.mark.parametrize("name", TEACHERS)
def test_the_loss_of_a_batch_is_the_mixture_by_hand(tmp_path, kind, name):
    teacher = masked_lm_teacher(name).eval()
    distill = {"distillation_weight": 0.3, "temperature": 2.0}
    trainer = masked_lm_trainer(tmp_path, student(kind), teacher, distill=distill)
    inputs = batch_of(trainer)
    masked = inputs["labels"] != -100
    loss = trainer.compute_loss(trainer.model.train(), inputs)
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    own, target = (model(**read).logits[masked] for model in (trainer.model, teacher))
    labels_loss = cross_entropy(own, inputs["labels"][masked])
    teacher_loss = 4.0 * kl_div((own / 2).log_softmax(-1), (target / 2).softmax(-1), reduction="batchmean")
    assert teacher_loss > 0.1
    assert loss.item() == pytest.approx((0.7 * labels_loss + 0.3 * teacher_loss).item(), rel=1e-5)


def test_a_student_that_is_the_teacher_gets_no_gradient(tmp_path):
    model = student()
    trainer = masked_lm_trainer(tmp_path, model, copy.deepcopy(model), distill={"distillation_weight": 1.0})
    loss = trainer.compute_loss(trainer.model.train(), batch_of(trainer))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(p.grad.abs().max() for p in trainer.model.parameters() if p.grad is not None) < 1e-6


@pytest.mark.parametrize("arguments", [{}, {"gradient_accumulation_steps": 2}])
def test_weight_0_is_the_plain_trainer_step_for_step_and_runs_no_teacher(tmp_path, arguments):
    teacher = masked_lm_teacher()
    count = CountedForwards(teacher)
    arguments |= {"logging_steps": 1, "max_steps": 5}
    distilled = masked_lm_trainer(
        tmp_path, student(dropout=0.1), teacher, distill={"distillation_weight": 0.0}, **arguments
    )
    plain_model = student(dropout=0.1)
    plain_model.config.sparse_prediction = True
    plain = masked_lm_trainer(tmp_path, plain_model, trainer=Trainer, **arguments)
    assert torch.equal(trained(distilled), trained(plain))
    histories = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (distilled, plain)]
    assert histories[0] == histories[1]
    assert count.calls == 0


def test_weight_1_learns_from_the_teacher_alone(tmp_path):
    """Which tokens were masked, not which ones they were: other labels change nothing."""
    distill = {"distillation_weight": 1.0}
    data = padded_data()
    wrong = [{**row, "labels": torch.where(row["labels"] != -100, 17, -100)} for row in data]
    first = masked_lm_trainer(tmp_path, data=data, distill=distill)
    second = masked_lm_trainer(tmp_path, data=wrong, distill=distill)
    assert torch.equal(trained(first), trained(second))
    log = first.state.log_history[0]
    assert log["loss_labels"] == 0
    assert log["loss"] == pytest.approx(log["loss_teacher"], abs=1e-3)
    mixed = masked_lm_trainer(tmp_path, data=wrong, distill={"distillation_weight": 0.5})
    assert not torch.equal(trained(mixed), weights(second))


@pytest.mark.parametrize("kind", ["magic", "bert"])
@pytest.mark.parametrize("name", ["magic", "bert"])
def test_one_batch_of_eight_is_eight_of_one(tmp_path, kind, name):
    """Masked tokens are not spread evenly over the sequences, so a mean of means would differ."""
    arguments = {"optim": "sgd", "learning_rate": 0.05, "max_steps": 2, "logging_steps": 1, "max_grad_norm": 0.0}
    found = []
    for batch_size, steps in ((8, 1), (1, 8)):
        trainer = masked_lm_trainer(
            tmp_path,
            student(kind),
            masked_lm_teacher(name),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            **arguments,
        )
        found.append((trained(trainer), trainer.state.log_history[0]))
    assert (found[0][0] - found[1][0]).abs().max() < 2e-6
    for name in ("loss", "loss_labels", "loss_teacher", "grad_norm"):
        assert found[0][1][name] == pytest.approx(found[1][1][name], rel=1e-3)


def test_the_teacher_is_run_without_dropout_gradient_or_change(tmp_path):
    teacher = masked_lm_teacher().train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    trained(masked_lm_trainer(tmp_path, teacher=teacher))
    assert not teacher.training
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_a_student_learns_what_the_teacher_says(tmp_path):
    trainer = masked_lm_trainer(
        tmp_path, distill={"distillation_weight": 1.0}, max_steps=60, learning_rate=3e-3, logging_steps=10
    )
    trained(trainer)
    losses = [row["loss_teacher"] for row in trainer.state.log_history if "loss_teacher" in row]
    assert losses[-1] < 0.7 * losses[0]


def test_evaluation_is_the_labels_loss_alone(tmp_path):
    teacher = masked_lm_teacher()
    count = CountedForwards(teacher)
    trainer = masked_lm_trainer(tmp_path, teacher=teacher, prediction_loss_only=True)
    plain = masked_lm_trainer(tmp_path, trainer=Trainer, prediction_loss_only=True)
    data = padded_data()[:8]
    assert trainer.evaluate(data)["eval_loss"] == plain.evaluate(data)["eval_loss"]
    assert count.calls == 0


def distributed(folder: Path) -> None:
    """One of the processes under torchrun; without dropout and adaptive steps, sums differ in their order only."""
    trainer = masked_lm_trainer(folder, per_device_train_batch_size=4, use_cpu=True, ddp_backend="gloo", **PLAIN)
    trainer.train()
    state = {"weights": weights(trainer), "log": trainer.state.log_history[0]}
    torch.save(state, folder / f"rank{trainer.args.process_index}.pt")


@pytest.mark.slow
def test_two_processes_are_one_of_twice_the_batch(tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", __file__]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(str(Path(__file__).parents[up]) for up in (2, 1))}
    run = subprocess.run([*command, str(tmp_path)], capture_output=True, text=True, env=environment, timeout=120)
    assert run.returncode == 0, run.stderr
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    alone = masked_lm_trainer(tmp_path, per_device_train_batch_size=8, **PLAIN)
    alone.train()
    assert torch.equal(first["weights"], second["weights"])
    assert (first["weights"] - weights(alone)).abs().max() < 2e-6
    for name in ("loss_labels", "loss_teacher", "grad_norm"):
        assert first["log"][name] == pytest.approx(alone.state.log_history[0][name], rel=1e-3)


# ---- The cache in pre-training ----


def cached(tmp_path, teacher=None, name="cache", arguments=None, **distill):
    return masked_lm_trainer(
        tmp_path,
        student(dropout=0.1),
        teacher or masked_lm_teacher(),
        distill={"teacher_cache": tmp_path / name, **distill},
        **(arguments or {}),
    )


@pytest.mark.parametrize("top_k", [None, 5])
def test_a_second_run_is_the_same_and_runs_no_teacher(tmp_path, top_k):
    teacher = masked_lm_teacher()
    count = CountedForwards(teacher)
    first = cached(tmp_path, teacher, teacher_top_k=top_k)
    after_first = trained(first)
    assert (count.calls, count.sequences) == (6, 48)
    assert (first.num_teacher_sequences, first.num_cached_sequences) == (48, 0)
    second = cached(tmp_path, teacher, teacher_top_k=top_k)
    assert torch.equal(trained(second), after_first)
    assert count.calls == 6
    assert (second.num_teacher_sequences, second.num_cached_sequences) == (0, 48)
    # Another student of the same batches finds them too.
    other = masked_lm_trainer(
        tmp_path, student("bert"), teacher, distill={"teacher_cache": tmp_path / "cache", "teacher_top_k": top_k}
    )
    trained(other)
    assert count.calls == 6


def test_a_longer_run_asks_for_what_is_new_and_another_seed_for_all(tmp_path):
    teacher = masked_lm_teacher()
    count = CountedForwards(teacher)
    trained(cached(tmp_path, teacher, arguments={"max_steps": 4}))
    assert count.sequences == 32
    trained(cached(tmp_path, teacher, arguments={"max_steps": 7}))
    assert count.sequences == 56
    # The masks of these rows are fixed: a second epoch, and other batches, hold the same 64 sequences.
    trained(cached(tmp_path, teacher, arguments={"max_steps": 16, "seed": 3}))
    assert count.sequences == 64


@pytest.mark.parametrize(
    "change",
    [{"teacher_top_k": 6}, {"temperature": 2.0}, {"teacher": "other"}, {"arguments": {"bf16": True, "use_cpu": True}}],
)
def test_other_settings_or_weights_are_asked_anew(tmp_path, change):
    trained(cached(tmp_path, teacher_top_k=5))
    teacher = masked_lm_teacher(seed=6 if change.get("teacher") else 5)
    count = CountedForwards(teacher)
    trained(cached(tmp_path, **{"teacher_top_k": 5, **change, "teacher": teacher}))
    assert count.calls == 6


def test_all_tokens_from_the_cache_are_the_live_teacher_and_few_fall_short_as_stated(tmp_path):
    found = {}
    for top_k in (None, 100, 20, 3):
        for cache in (None, tmp_path / "cache"):
            distill = {"distillation_weight": 1.0, "teacher_top_k": top_k, "teacher_cache": cache}
            trainer = masked_lm_trainer(tmp_path, distill=distill)
            found[top_k, cache is not None] = trainer.compute_loss(trainer.model.train(), batch_of(trainer)).item()
    for top_k in (None, 100, 20, 3):
        assert found[top_k, True] == pytest.approx(found[top_k, False], abs=1e-3)
    assert found[100, True] == found[None, True]
    assert found[3, False] < found[20, False] < found[None, False]


def test_half_precision_moves_the_gradient_little(tmp_path):
    gradients = []
    for cache in (None, tmp_path / "cache"):
        trainer = masked_lm_trainer(tmp_path, distill={"distillation_weight": 1.0, "teacher_cache": cache})
        trainer.compute_loss(trainer.model.train(), batch_of(trainer)).backward()
        found = [p.grad.flatten() for p in trainer.model.parameters() if p.grad is not None]
        gradients.append(torch.cat(found))
    assert 0 < (gradients[0] - gradients[1]).norm() < 1e-3 * gradients[0].norm()


@pytest.mark.parametrize("vocab_size", [300, 2**16, 2**16 + 1, 250_000])
def test_the_cache_has_room_for_the_last_token_of_any_vocabulary(tmp_path, vocab_size):
    trainer = masked_lm_trainer(tmp_path)
    trainer.teacher.config.vocab_size = vocab_size
    rows = {
        "log_probs": torch.tensor([[0.5, 0.25]]).log(),
        "classes": torch.tensor([[vocab_size - 1, vocab_size // 2]]),
        "log_rest": torch.tensor([0.25]).log(),
    }
    found = trainer._unpack(trainer._pack(rows))
    assert torch.equal(found["classes"], rows["classes"])
    assert torch.allclose(found["log_probs"], rows["log_probs"], atol=1e-3)
    assert torch.allclose(found["log_rest"], rows["log_rest"], atol=1e-3)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("killed", [False, True])
def test_a_stopped_run_leaves_a_usable_part(tmp_path, monkeypatch, killed):
    """What an exception leaves is all; what a kill leaves is what the last checkpoint found."""
    teacher = masked_lm_teacher()
    count = CountedForwards(teacher)
    trainer = cached(tmp_path, teacher, arguments={"save_strategy": "steps", "save_steps": 2})
    step = trainer.training_step

    def stop(*args, **kwargs):
        if trainer.state.global_step == 3:
            if killed:
                monkeypatch.setattr("training.distillation.teacher.TeacherCache.flush", lambda self: None)
            raise Stopped
        return step(*args, **kwargs)

    monkeypatch.setattr(trainer, "training_step", stop)
    with pytest.raises(Stopped):
        trained(trainer)
    monkeypatch.undo()
    assert count.sequences == 24
    again = cached(tmp_path, teacher)
    after = trained(again)
    assert again.num_cached_sequences == (16 if killed else 24)
    monkeypatch.undo()
    assert torch.equal(after, trained(cached(tmp_path, teacher, name="empty")))


# ---- Fine-tuning ----


def sequences(number=48, seed=1) -> list[dict[str, Any]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(number):
        length = int(torch.randint(4, 13, (1,), generator=generator))
        rows.append({"input_ids": torch.randint(5, 100, (length,), generator=generator).tolist()})
    return rows


def labelled(task: str) -> list[dict[str, Any]]:
    rows = sequences()
    for row in rows:
        ids = row["input_ids"]
        row |= {
            "classes": {"labels": ids[0] % 3},
            "number": {"labels": ids[1] / 50},
            "several": {"labels": [float(ids[place] % 2) for place in range(3)]},
            # Every third token is no first piece of a word; some sequences have one label, some four.
            "tokens": {"labels": [-100 if place % 3 else ids[place] % 3 for place in range(len(ids))]},
            "span": {"start_positions": ids[0] % 4, "end_positions": 3},
        }[task]
    return rows


def pad(rows: list[dict[str, Any]], length: int = 0) -> dict[str, torch.Tensor]:
    """As DataCollatorWithPadding: no longer than the longest of the batch."""
    longest = length or max(len(row["input_ids"]) for row in rows)
    lists = {
        "input_ids": [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows],
        "attention_mask": [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in rows],
    }
    for name in ("labels", "start_positions", "end_positions"):
        if name in rows[0]:
            values = [row[name] for row in rows]
            if isinstance(values[0], list) and len(values[0]) == len(rows[0]["input_ids"]):
                values = [value + [-100] * (longest - len(value)) for value in values]
            lists[name] = values
    return {name: torch.tensor(values) for name, values in lists.items()}


TASKS: dict[str, Any] = {
    "classes": (MagicForSequenceClassification, BertForSequenceClassification, {"num_labels": 3}),
    "number": (MagicForSequenceClassification, BertForSequenceClassification, {"num_labels": 1}),
    "several": (
        MagicForSequenceClassification,
        BertForSequenceClassification,
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "tokens": (MagicForTokenClassification, BertForTokenClassification, {"num_labels": 3}),
    "span": (MagicForQuestionAnswering, BertForQuestionAnswering, {}),
}
ALL_TASKS = pytest.mark.parametrize("task", TASKS)


def task_model(task, kind="magic", seed=0, sharpness=1.0, dropout=0.0):
    magic, bert, changes = TASKS[task]
    torch.manual_seed(seed)
    drops = {name: dropout for name in NO_DROPOUT}
    model = magic(toy_child(dropout, **changes)) if kind == "magic" else bert(BertConfig(**SIZES, **drops, **changes))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(sharpness ** (parameter.dim() - 1 > 0))
    return model


def task_trainer(
    tmp_path, task, model=None, teacher=None, data=None, trainer: Any = DistillationTrainer, distill=None, **arguments
):
    given: dict[str, Any] = {} if trainer is Trainer else {**(distill or {})}
    if trainer is not Trainer:
        given["teacher"] = teacher or task_model(task, "bert", 5, 8.0)
    settings = {"max_steps": 3, "logging_steps": 1, **arguments}
    return trainer(
        model or task_model(task),
        toy_arguments(tmp_path, **settings),
        train_dataset=data or labelled(task),
        data_collator=pad,
        **given,
    )


def teacher_loss_by_hand(task, own, target, inputs, temperature) -> torch.Tensor:
    def kl(student, teacher):
        softened = [(values / temperature).log_softmax(-1) for values in (student, teacher)]
        return temperature**2 * kl_div(softened[0], softened[1], log_target=True, reduction="sum")

    if task == "number":
        return mse_loss(own.logits, target.logits)
    if task == "several":
        return multi_label_distillation_losses(own.logits, target.logits, temperature).mean()
    if task == "classes":
        return kl(own.logits, target.logits) / len(own.logits)
    if task == "tokens":
        judged = inputs["labels"] != -100
        return kl(own.logits[judged], target.logits[judged]) / judged.sum()
    lengths = inputs["attention_mask"].sum(1).tolist()
    rows = [
        kl(own[name][row, :length], target[name][row, :length]) / 2
        for row, length in enumerate(lengths)
        for name in ("start_logits", "end_logits")
    ]
    return torch.stack(rows).sum() / len(lengths)


@ALL_TASKS
@pytest.mark.parametrize("kind", ["magic", "bert"])
def test_the_loss_of_a_task_is_the_mixture_by_hand(tmp_path, task, kind):
    teacher = task_model(task, "bert", 5, 8.0).eval()
    model = task_model(task, kind, sharpness=2.0)
    distill = {"distillation_weight": 0.3, "temperature": 2.0}
    trainer = task_trainer(tmp_path, task, model, teacher, distill=distill)
    inputs = batch_of(trainer)
    loss = trainer.compute_loss(model.train(), inputs)
    own = model(**inputs)
    read = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    of_teacher = teacher_loss_by_hand(task, own, teacher(**read), inputs, 2.0)
    assert of_teacher > 0.01
    assert loss.item() == pytest.approx((0.7 * own.loss + 0.3 * of_teacher).item(), rel=1e-4)


@ALL_TASKS
def test_a_student_that_is_the_teacher_gets_no_gradient_from_it(tmp_path, task):
    model = task_model(task, sharpness=2.0)
    trainer = task_trainer(tmp_path, task, model, copy.deepcopy(model), distill={"distillation_weight": 1.0})
    loss = trainer.compute_loss(model.train(), batch_of(trainer))
    loss.backward()
    assert abs(loss.item()) < 1e-6
    assert max(p.grad.abs().max() for p in model.parameters() if p.grad is not None) < 1e-5


@ALL_TASKS
def test_weight_0_is_the_plain_trainer_of_the_task(tmp_path, task):
    teacher = task_model(task, "bert", 5)
    count = CountedForwards(teacher)
    distilled = task_trainer(
        tmp_path, task, task_model(task, dropout=0.1), teacher, distill={"distillation_weight": 0.0}
    )
    plain = task_trainer(tmp_path, task, task_model(task, dropout=0.1), trainer=Trainer)
    assert torch.allclose(trained(distilled), trained(plain), atol=1e-6)
    losses = [[row["loss"] for row in trainer.state.log_history if "loss" in row] for trainer in (distilled, plain)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert count.calls == 0


@ALL_TASKS
def test_weight_1_needs_no_labels(tmp_path, task):
    distill = {"distillation_weight": 1.0}
    data = labelled(task)
    unlabelled = [{"input_ids": row["input_ids"]} for row in data]
    trainer = task_trainer(tmp_path, task, data=unlabelled, distill=distill)
    after = trained(trainer)
    assert not torch.equal(after, torch.cat([p.detach().flatten() for p in task_model(task).parameters()]))
    if task != "tokens":
        # There labels say which tokens count.
        assert torch.equal(after, trained(task_trainer(tmp_path, task, data=data, distill=distill)))
    with pytest.raises(ValueError, match=r"the batches have no .*; label the data, or set distillation_weight=1"):
        trained(task_trainer(tmp_path, task, data=unlabelled, distill={"distillation_weight": 0.5}))


@ALL_TASKS
@pytest.mark.parametrize("kind", ["magic", "bert"])
def test_accumulation_of_a_task_equals_the_batch(tmp_path, task, kind):
    arguments = {"optim": "sgd", "learning_rate": 0.02, "max_steps": 2, "max_grad_norm": 0.0}
    found = []
    for batch_size, steps in ((8, 1), (1, 8)):
        trainer = task_trainer(
            tmp_path,
            task,
            task_model(task, kind),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
            **arguments,
        )
        # The labels' loss of a span is over padding, too, in all of transformers.
        trainer.data_collator = partial(pad, length=13)
        found.append((trained(trainer), trainer.state.log_history[0]))
    assert (found[0][0] - found[1][0]).abs().max() < 5e-6
    for name in ("loss", "loss_labels", "loss_teacher"):
        assert found[0][1][name] == pytest.approx(found[1][1][name], rel=1e-3, abs=1e-5)


@ALL_TASKS
def test_the_teacher_sees_each_example_once_in_all_epochs_and_runs(tmp_path, task):
    """Each epoch pads an example to another length; the second run is the first one bit for bit."""
    teacher = task_model(task, "bert", 5, 8.0)
    count = CountedForwards(teacher)
    found = []
    for _ in range(2):
        trainer = task_trainer(
            tmp_path, task, teacher=teacher, max_steps=8, distill={"teacher_cache": tmp_path / "cache"}
        )
        found.append(trained(trainer))
    assert count.sequences == 48
    assert (trainer.num_teacher_sequences, trainer.num_cached_sequences) == (0, 8 * 8)
    live = trained(task_trainer(tmp_path, task, teacher=teacher, max_steps=8))
    assert torch.equal(found[0], found[1])
    assert torch.allclose(found[0], live, atol=1e-4)


def test_a_micro_batch_without_a_labelled_token_counts_for_nothing(tmp_path):
    data = labelled("tokens")[:8]
    data[2]["labels"] = [-100] * len(data[2]["labels"])
    found = []
    for batch_size, steps in ((8, 1), (1, 8)):
        trainer = task_trainer(
            tmp_path,
            "tokens",
            data=data,
            max_steps=1,
            optim="sgd",
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=steps,
        )
        found.append(trained(trainer))
    assert found[0].isfinite().all()
    assert (found[0] - found[1]).abs().max() < 1e-6


def test_metrics_are_those_of_the_plain_trainer(tmp_path):
    data = labelled("classes")[:12]
    trainers = [task_trainer(tmp_path, "classes", trainer=kind) for kind in (DistillationTrainer, Trainer)]
    for trainer in trainers:
        trainer.compute_metrics = lambda prediction: {"correct": int((prediction.predictions.argmax(1) == 1).sum())}
    first, second = (trainer.evaluate(data) for trainer in trainers)
    assert first["eval_loss"] == second["eval_loss"]
    assert first["eval_correct"] == second["eval_correct"]


# ---- Refusals ----


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ((-0.1, 1.0), "distillation_weight is -0.1; it must be from 0 to 1"),
        ((1.1, 1.0), "distillation_weight is 1.1; it must be from 0 to 1"),
        ((math.nan, 1.0), "distillation_weight is nan"),
        ((0.5, 0.0), "temperature is 0.0; it must be a number above 0"),
        ((0.5, math.inf), "temperature is inf"),
        ((0.5, 1.0, 0), "teacher_top_k is 0; it must be at least 1"),
    ],
)
def test_values_out_of_bounds_are_named(values, message):
    with pytest.raises(ValueError, match=message):
        check_distillation(*values)


def test_what_does_not_work_with_two_losses_is_refused(tmp_path):
    with pytest.raises(ValueError, match="do not set label_smoothing_factor"):
        masked_lm_trainer(tmp_path, label_smoothing_factor=0.1)
    with pytest.raises(ValueError, match="compute_loss_func would replace the distillation loss"):
        masked_lm_trainer(tmp_path, distill={"compute_loss_func": lambda *_: None})
    with pytest.raises(ValueError, match="a masked LM is distilled in pre-training"):
        masked_lm_trainer(tmp_path, trainer=DistillationTrainer)
    with pytest.raises(ValueError, match="vocab_size is 96 in the teacher and 100 in the student"):
        masked_lm_trainer(tmp_path, teacher=BertForMaskedLM(BertConfig(**{**SIZES, "vocab_size": 96})))
    unmasked = masked_lm_trainer(tmp_path, data=[{"input_ids": torch.arange(12)}] * 8)
    unmasked.data_collator = lambda rows: {"input_ids": torch.stack([row["input_ids"] for row in rows])}
    with pytest.raises(ValueError, match="the batches have no labels; pass a data_collator that masks"):
        unmasked.train()


def test_toy_data_without_padding_trains(tmp_path):
    trainer = masked_lm_trainer(tmp_path, data=toy_data(16), max_steps=2)
    trained(trainer)
    assert math.isfinite(trainer.state.log_history[0]["loss_teacher"])


if __name__ == "__main__":
    torch.set_num_threads(1)
    distributed(Path(sys.argv[1]))
    # Without this, a process may abort at its exit.
    torch.distributed.destroy_process_group()
