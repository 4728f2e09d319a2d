"""Validation of children against transformers' own loss, and of many children against one after another."""

import gc
import itertools
import math
import multiprocessing
import os
import random
import signal
import socket
import time
import weakref
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from toy import toy_config
from tqdm.auto import tqdm

from modeling_magic import MagicForMaskedLM, MagicModel
from training.space.search_space import Architecture, SearchSpace
from training.supernet.evaluation import (
    Evaluator,
    SharedBottoms,
    count_layer_evaluations,
    evaluate_child,
    journal_key,
    rank_children,
    shared_layers,
    validation_batches,
)
from training.supernet.journal import Journal, RankedChild
from training.supernet.runners import ChainRunner


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")
SPACE = SearchSpace((("MHA4", "FFN", "CONV3", "CONV5"),) * 4)
fork = multiprocessing.get_context("fork")


def make_batches(sizes=(4, 4, 1), padded: bool = False) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in sizes:
        ids = torch.randint(5, 100, (size, 12), generator=generator)
        labels = torch.where(torch.rand(size, 12, generator=generator) < 0.3, ids, -100)
        labels[:, 0] = ids[:, 0]
        batch = {"input_ids": ids, "labels": labels}
        if padded:
            lengths = torch.randint(3, 13, (size, 1), generator=generator)
            batch["attention_mask"] = (torch.arange(12) < lengths).long()
            batch["labels"] = labels.masked_fill(batch["attention_mask"] == 0, -100)
            batch["token_type_ids"] = (torch.arange(12) > 5).long().expand(size, 12)
        batches.append(batch)
    return batches


def make_supernet(**changes) -> MagicForMaskedLM:
    torch.manual_seed(0)
    return MagicForMaskedLM(toy_config(**changes)).eval()


def sampled(num_children: int, seed: int = 0) -> list[Architecture]:
    rng = random.Random(seed)
    return list(dict.fromkeys(SPACE.sample(rng) for _ in range(num_children)))


def num_prefixes(architectures) -> int:
    return len({tuple(child[:depth]) for child in architectures for depth in range(1, len(child) + 1)})


@pytest.fixture
def batches():
    return make_batches()


@pytest.fixture(autouse=True)
def _another_precision():
    """The first accelerator of a process, such as a trainer's, decides its precision until it is reset."""
    AcceleratorState._reset_state(True)
    yield
    AcceleratorState._reset_state(True)


# ---- One child ----


def test_equals_the_models_own_loss_over_all_tokens(supernet, batches):
    supernet.train()
    loss, accuracy = evaluate_child(supernet, batches, MIXED)
    assert supernet.training
    supernet.eval()
    losses, correct, tokens = 0.0, 0, 0
    for batch in batches:
        output = supernet(**batch, architecture=MIXED)
        labelled = batch["labels"] != -100
        losses += output.loss.item() * labelled.sum().item()
        correct += (output.logits.argmax(-1) == batch["labels"])[labelled].sum().item()
        tokens += labelled.sum().item()
    assert loss == pytest.approx(losses / tokens, rel=1e-6)
    assert accuracy == pytest.approx(correct / tokens)


def test_a_child_alone_scores_as_inside(supernet, batches):
    inside = evaluate_child(supernet, batches, MIXED)
    assert evaluate_child(supernet.extract_child(MIXED), batches) == inside


def test_nothing_to_predict_is_an_error(supernet, batches):
    for batch in batches:
        batch["labels"][:] = -100
    for validate in (lambda *arguments: evaluate_child(*arguments, MIXED), Evaluator):
        with pytest.raises(ValueError, match="the validation batches have no token to predict; provide more text"):
            validate(supernet, batches)


def test_the_fixed_slice_is_collated_once():
    seen = []

    def collator(examples):
        seen.append(list(examples))
        return {"input_ids": torch.tensor(examples)}

    batches = validation_batches(range(100), collator, batch_size=4, num_sequences=10)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3
    assert len(validation_batches(iter(range(5)), collator, batch_size=4)) == 2
    with pytest.raises(ValueError, match="validation set is empty; provide more text"):
        validation_batches([], collator, batch_size=4)


# ---- Many children against one after another ----

SUPERNETS = {
    "plain": make_supernet(),
    "unpadded": make_supernet(unpad_inputs=True),
    "eager": make_supernet(attn_implementation="eager"),
}
STATE_BYTES = 32 * 4


@settings(max_examples=30)
@given(
    children=st.lists(st.tuples(*(st.sampled_from(layer) for layer in SPACE.candidates)), max_size=12),
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=3),
    padded=st.booleans(),
    name=st.sampled_from(sorted(SUPERNETS)),
    kept_depths=st.integers(0, 4),
)
def test_equals_the_plain_loop(children, sizes, padded, name, kept_depths):
    supernet, batches = SUPERNETS[name], make_batches(sizes, padded)
    evaluate = Evaluator(supernet, batches, max_kept_bytes=kept_depths * sum(sizes) * 12 * STATE_BYTES)
    ranked = evaluate([list(child) for child in children])
    assert [child.architecture for child in ranked] == list(dict.fromkeys(children))
    for child in ranked:
        loss, accuracy = evaluate_child(supernet, batches, child.architecture)
        assert child.val_loss == pytest.approx(loss, rel=1e-6)
        assert child.val_accuracy == accuracy
        num_tokens = sum(int((batch["labels"] != -100).sum()) for batch in batches)
        assert sum(child.batch_losses) / num_tokens == pytest.approx(loss, rel=1e-6)
        for batch, batch_loss in zip(batches, child.batch_losses, strict=True):
            if (labelled := int((batch["labels"] != -100).sum())) > 0:
                alone = evaluate_child(supernet, [batch], child.architecture)[0]
                assert batch_loss / labelled == pytest.approx(alone, rel=1e-6)
    # Four layers have four depths to branch off at, the embeddings with them.
    if kept_depths == 4:
        assert evaluate.num_layer_evaluations == num_prefixes(children)
    elif kept_depths == 0:
        assert evaluate.num_layer_evaluations == 4 * len(ranked)
    assert num_prefixes(children) <= evaluate.num_layer_evaluations <= 4 * len(ranked)


children_and_depths = st.tuples(
    st.tuples(*(st.sampled_from(layer[:2]) for layer in SPACE.candidates)), st.sets(st.integers(0, 3)).map(sorted)
)


@settings(max_examples=30)
@given(st.lists(children_and_depths, max_size=12))
def test_shared_bottoms_are_right_in_any_order_with_any_depths_kept(runs):
    # Children that others evaluate are left out of the order that the depths were chosen for.
    supernet, batches = SUPERNETS["plain"], make_batches((2, 1))
    with torch.no_grad():
        bottoms = SharedBottoms(ChainRunner(supernet), batches, max_kept_bytes=2**20)
        for child, depths in runs:
            sums, num_layers = bottoms.run(child, depths)
            assert 0 <= num_layers <= 4
            for batch, (loss, _) in zip(batches, sums, strict=True):
                labelled = int((batch["labels"] != -100).sum())
                assert loss / labelled == pytest.approx(evaluate_child(supernet, [batch], child)[0], rel=1e-6)


def test_real_tokens_only_where_the_model_does_so():
    supernet, batches = SUPERNETS["unpadded"], make_batches((4,), padded=True)
    shapes = []
    handle = supernet.magic.encoder.layer[0].register_forward_pre_hook(
        lambda _, inputs: shapes.append(inputs[0].shape)
    )
    Evaluator(supernet, batches)([MIXED])
    handle.remove()
    assert shapes == [(1, int(batches[0]["attention_mask"].sum()), 32)]


class FirstTokens:
    """Judges children by their first tokens: the squared distance to what is wanted, and how many are above 0."""

    def num_items(self, batch):
        return len(batch["input_ids"])

    def prepare(self, batch):
        return batch["wanted"]["states"]

    def sums(self, model, states, prepared):
        first = states[:, 0]
        return torch.stack([(first - prepared).square().sum(), (first > 0).all(dim=1).float().sum()])


def judged_batches() -> list[dict[str, Any]]:
    """Batches with tensors in a mapping within them, and without labels."""
    generator = torch.Generator().manual_seed(5)
    batches: list[dict[str, Any]] = make_batches((4, 3), padded=True)
    for batch in batches:
        del batch["labels"]
        batch["wanted"] = {"states": torch.randn(len(batch["input_ids"]), 32, generator=generator)}
    return batches


@pytest.mark.parametrize("kind", [MagicForMaskedLM, MagicModel])
@pytest.mark.parametrize("unpad_inputs", [False, True])
def test_another_judge_sees_the_states_of_each_child(kind, unpad_inputs):
    torch.manual_seed(0)
    supernet, batches = kind(toy_config(unpad_inputs=unpad_inputs)).eval(), judged_batches()
    children = sampled(8)
    ranked = Evaluator(supernet, batches, judge=FirstTokens())(children)
    for child in ranked:
        sums, number = torch.zeros(2), 0
        for batch in batches:
            inputs = {name: batch[name] for name in ("input_ids", "token_type_ids", "attention_mask")}
            with torch.no_grad():
                states = supernet.base_model(**inputs, architecture=child.architecture).last_hidden_state
            wanted = batch["wanted"]["states"]
            sums[0] += ((states[:, 0] - wanted) ** 2).sum()
            sums[1] += sum(bool((row > 0).all()) for row in states[:, 0])
            number += len(wanted)
        assert [child.val_loss, child.val_accuracy] == pytest.approx((sums / number).tolist(), rel=1e-5)
        alone = evaluate_child(supernet, batches, child.architecture, judge=FirstTokens())
        assert [child.val_loss, child.val_accuracy] == pytest.approx(alone, rel=1e-5)
    best = rank_children(supernet, batches, children, judge=FirstTokens())[0]
    assert best == min(ranked, key=lambda child: child.val_loss)


def test_a_journal_is_of_all_tensors_of_a_batch(supernet):
    batches = judged_batches()
    key = journal_key(supernet, batches)
    assert journal_key(supernet, judged_batches()) == key
    batches[1]["wanted"]["states"][0, 0] += 1
    assert {name for name, value in journal_key(supernet, batches).items() if value != key[name]} == {"data"}


@given(st.lists(st.tuples(*(st.sampled_from("abc") for _ in range(5)))))
def test_layer_evaluations_are_the_distinct_prefixes(architectures):
    assert count_layer_evaluations(architectures) == num_prefixes(architectures)


def test_shared_layers_are_counted_from_the_bottom():
    assert shared_layers("abcd", "abxd") == 2
    assert shared_layers("abcd", "xbcd") == 0
    assert shared_layers("abcd", "abcd") == 4
    assert shared_layers("", "abcd") == 0


def count_calls(supernet) -> dict[tuple[int, str], int]:
    """Counts how often each operator is called from here on."""
    calls: dict[tuple[int, str], int] = {}
    for index, layer in enumerate(supernet.magic.encoder.layer):
        for name, operator in layer.operators.items():
            operator.register_forward_hook(
                lambda *_, key=(index, name): calls.update({key: calls.get(key, 0) + 1}), always_call=True
            )
    return calls


def test_operators_run_once_for_each_prefix_and_batch_and_never_again(supernet, batches):
    calls = count_calls(supernet)
    evaluate = Evaluator(supernet, batches)
    assert not calls
    children = list(SPACE.children())
    random.Random(0).shuffle(children)
    first = evaluate(children[:100] + children[:50])
    assert sum(calls.values()) == num_prefixes(children[:100]) * len(batches)
    assert evaluate.num_layer_evaluations == num_prefixes(children[:100])
    assert evaluate.num_evaluated == 100
    calls.clear()
    assert evaluate(children[50:100]) == first[50:]
    assert not calls
    evaluate(children)
    assert evaluate.num_evaluated == 256
    assert sum(calls.values()) == num_prefixes(children[100:]) * len(batches)


@pytest.mark.parametrize("kept_depths", [0, 2, 4])
def test_memory_is_flat_in_the_number_of_children(supernet, batches, kept_depths):
    alive: list[weakref.ref] = []
    peak = 0

    def watch(module, inputs, output):
        nonlocal peak, alive
        alive = [reference for reference in alive if reference() is not None]
        alive.append(weakref.ref(output))
        peak = max(peak, len({id(reference()) for reference in alive}))

    for module in (supernet.magic.embeddings, *supernet.magic.encoder.layer):
        module.register_forward_hook(watch)
    num_tokens = sum(batch["labels"].numel() for batch in batches)
    evaluate = Evaluator(supernet, batches, max_kept_bytes=kept_depths * num_tokens * STATE_BYTES)
    evaluate(itertools.islice(SPACE.children(), 100))
    # Two more: what a layer takes and what it returns; and one that is about to be freed.
    assert peak <= kept_depths * len(batches) + 3
    assert peak >= kept_depths * len(batches)
    # Nothing is kept between two calls.
    assert not any(reference() is not None for reference in alive)


def test_ranking_is_by_loss_and_a_diverged_child_comes_last(supernet, batches):
    with torch.no_grad():
        supernet.magic.encoder.layer[1].operators["CONV5"].dense.bias.fill_(math.nan)
        supernet.magic.encoder.layer[2].operators["MHA4"].dense.bias.fill_(math.inf)
    children = sampled(60)
    supernet.train()
    ranked = rank_children(supernet, batches, [*children, *children[:10]])
    assert supernet.training
    assert {child.architecture for child in ranked} == set(children)
    assert len(ranked) == len(children)
    losses = [child.val_loss for child in ranked]
    finite = [loss for loss in losses if not math.isnan(loss)]
    assert losses[: len(finite)] == sorted(finite)
    diverged = [child for child in children if child[1] == "CONV5" or child[2] == "MHA4"]
    assert len(losses) - len(finite) == len(diverged) > 0
    assert {child.architecture for child in ranked[len(finite) :]} == set(diverged)


def test_children_of_another_space_are_refused_before_any_is_run(supernet, batches):
    evaluate = Evaluator(supernet, batches)
    for wrong, message in (((*MIXED[:3], "CONV7"), "layer 3 has no operator 'CONV7'"), (MIXED[:3], "3 operators")):
        with pytest.raises(ValueError, match=message):
            evaluate([MIXED, wrong])
    assert evaluate.num_evaluated == 0


def test_weights_that_have_changed_are_noticed(supernet, batches):
    evaluate = Evaluator(supernet, batches)
    evaluate([MIXED])
    with torch.no_grad():
        supernet.lm_head.dense.weight.mul_(1.0)
    with pytest.raises(ValueError, match="weights have changed or moved since the evaluator was made; make another"):
        evaluate([MIXED])


def test_an_evaluation_that_was_interrupted_leaves_nothing_half_done(supernet, batches):
    children = sampled(30)
    expected = rank_children(supernet, batches, children)
    evaluate = Evaluator(supernet, batches)
    calls = []

    def interrupt(*arguments):
        calls.append(arguments)
        if len(calls) == 50:
            raise KeyboardInterrupt

    # The head runs once for each batch of a child.
    hook = supernet.lm_head.register_forward_hook(interrupt)
    supernet.train()
    with pytest.raises(KeyboardInterrupt):
        evaluate(children)
    hook.remove()
    assert supernet.training
    assert evaluate.num_evaluated == 49 // len(batches)
    assert sorted(evaluate(children), key=lambda child: (child.val_loss, child.architecture)) == expected
    assert evaluate.num_evaluated == len(children)


def test_the_bar_shows_the_best_loss_so_far(supernet, batches, capsys, monkeypatch):
    monkeypatch.setattr("training.bars.can_draw", lambda: True)
    monkeypatch.setattr("training.bars.tqdm", partial(tqdm, mininterval=0))
    ranked = Evaluator(supernet, batches, progress=True)(sampled(5))
    shown = capsys.readouterr().err
    assert f"best_loss={min(child.val_loss for child in ranked):.4f}" in shown
    assert "5/5" in shown
    Evaluator(supernet, batches)(sampled(5))
    assert not capsys.readouterr().err


# ---- The journal ----


def test_what_the_journal_knows_is_not_run_again(supernet, batches, tmp_path):
    path = tmp_path / "run" / "journal.jsonl"
    with torch.no_grad():
        supernet.magic.encoder.layer[0].operators["FFN"].dense.bias.fill_(math.nan)
    children = sampled(40)
    first = Evaluator(supernet, batches, journal=path)
    early = first(children[:25])
    assert [child.architecture for child in Journal(path)] == sorted(children[:25])
    second = Evaluator(supernet, batches, journal=Journal(path, journal_key(supernet, batches)))
    both = second(children)
    assert second.num_evaluated == len(children) - 25
    assert second.num_layer_evaluations == num_prefixes(children[25:])
    assert repr(both[:25]) == repr(early)
    assert repr([child.batch_losses for child in both[:25]]) == repr([child.batch_losses for child in early])
    assert repr(Evaluator(supernet, batches)(children)) == repr(both)


def test_a_journal_of_other_weights_data_space_or_precision_is_refused(supernet, batches, tmp_path):
    path = tmp_path / "journal.jsonl"
    Evaluator(supernet, batches, journal=path)([MIXED])
    Evaluator(supernet.train(), [dict(batch) for batch in batches], journal=path)
    other = make_batches()
    other[2]["labels"][0, 0] += 1
    smaller = make_supernet(candidate_operators=[["MHA4", "FFN"]] * 4)
    with pytest.raises(ValueError, match="belongs to other validation data; give another file"):
        Evaluator(supernet, other, journal=path)
    # The same sequences in other batches have other batch losses.
    with pytest.raises(ValueError, match="belongs to other validation data; give another file"):
        Evaluator(supernet, make_batches((4, 3, 2)), journal=path)
    with pytest.raises(
        ValueError, match="belongs to another super-net's weights and another search space; give another file"
    ):
        Evaluator(smaller, batches, journal=path)
    with pytest.raises(ValueError, match="belongs to another precision; give another file"):
        Evaluator(supernet, batches, Accelerator(cpu=True, mixed_precision="bf16"), journal=path)
    journal = Journal(path, journal_key(supernet, batches))
    with torch.no_grad():
        supernet.magic.encoder.layer[3].operators["CONV5"].dense.bias[5] += 1e-6
    for changed in (path, journal):
        with pytest.raises(ValueError, match="belongs to another super-net's weights; give another file"):
            Evaluator(supernet, batches, journal=changed)


def test_half_precision_is_that_of_the_accelerator(supernet, batches):
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    children = sampled(10)
    ranked = Evaluator(supernet, batches, accelerator)(children)
    for child in ranked:
        assert child.val_loss == evaluate_child(supernet, batches, child.architecture, accelerator)[0]
        assert child.val_loss != evaluate_child(supernet, batches, child.architecture)[0]


# ---- Kills and other processes ----


def evaluate_and_die(path: Path, children, moment: str, num_children: int) -> None:
    """Killed at the beginning of a child, in the middle of it, or in the middle of its line in the journal."""
    supernet, batches = make_supernet(), make_batches()
    moments = {"between": (SharedBottoms, "run"), "inside": (ChainRunner, "sums"), "line": (Journal, "append")}
    owner, name = moments[moment]
    original = getattr(owner, name)
    num_calls = itertools.count()

    def killed(self, *arguments):
        if next(num_calls) == num_children * (len(batches) if moment == "inside" else 1) + (moment == "inside"):
            if moment == "line":
                with open(path, "ab", buffering=0) as file:
                    file.write(b'{"architecture": "MHA4,')
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *arguments)

    setattr(owner, name, killed)
    Evaluator(supernet, batches, journal=path)(children)


@pytest.mark.parametrize(("moment", "num_children"), [("between", 0), ("between", 7), ("inside", 11), ("line", 3)])
def test_a_killed_run_goes_on_and_ends_as_one_never_stopped(supernet, batches, tmp_path, moment, num_children):
    path, children = tmp_path / "journal.jsonl", sampled(20)
    process = fork.Process(target=evaluate_and_die, args=(path, children, moment, num_children))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    evaluate = Evaluator(supernet, batches, journal=path)
    ranked = evaluate(children)
    assert evaluate.num_evaluated == len(children) - num_children
    assert ranked == Evaluator(supernet, batches)(children)
    assert len(Journal(path)) == len(children)


def in_processes(target, num_processes: int = 2) -> list:
    """What `target(index)` returns in each of several processes at once."""
    queue = fork.SimpleQueue()

    def answer(index: int) -> None:
        try:
            queue.put((index, target(index), None))
        except BaseException as error:
            queue.put((index, None, repr(error)))

    processes = [fork.Process(target=answer, args=(index,)) for index in range(num_processes)]
    for process in processes:
        process.start()
    answers = [queue.get() for _ in processes]
    for process in processes:
        process.join(60)
    assert [error for *_, error in answers if error] == []
    return [value for _, value, _ in sorted(answers, key=lambda answer: answer[0])]


def test_two_processes_share_a_journal_and_run_each_child_once_in_all(supernet, batches, tmp_path):
    path, children = tmp_path / "journal.jsonl", list(SPACE.children())[:128]

    def work(index: int) -> tuple[list[RankedChild], int, int]:
        evaluate = Evaluator(supernet, batches, journal=path)
        # In several calls, as a searcher asks.
        ranked = [child for start in range(0, 128, 32) for child in evaluate(children[start : start + 32])]
        return ranked, evaluate.num_evaluated, evaluate.num_layer_evaluations

    (first, num_first, layers_first), (second, num_second, layers_second) = in_processes(work)
    assert first == second == Evaluator(supernet, batches)(children)
    assert num_first + num_second == len(children)
    assert sorted(child.architecture for child in Journal(path)) == sorted(children)
    # They come from both ends: a few paths are run twice, where they begin and where they meet.
    assert layers_first + layers_second <= num_prefixes(children) + 4 * 8


def test_from_the_other_end_where_another_process_is_at_work(supernet, batches, tmp_path, monkeypatch):
    path, children = tmp_path / "journal.jsonl", sorted(sampled(20))
    evaluate = Evaluator(supernet, batches, journal=path)
    other = Journal(path, journal_key(supernet, batches))
    with ExitStack() as claims:
        assert claims.enter_context(other.claim(children[0]))
        monkeypatch.setattr("training.supernet.evaluation.time.sleep", lambda seconds: claims.close())
        evaluate(children)
    assert [child.architecture for child in Journal(path)] == [*reversed(children[1:]), children[0]]


def tensors_alive() -> int:
    gc.collect()
    return sum(type(one) is torch.Tensor for one in gc.get_objects())


def test_a_child_put_on_record_just_before_its_claim_comes_free_is_not_run(supernet, batches, tmp_path, monkeypatch):
    path, children = tmp_path / "journal.jsonl", sorted(sampled(5))
    evaluate = Evaluator(supernet, batches, journal=path)
    other, claim = Journal(path, journal_key(supernet, batches)), Journal.claim

    def claim_late(self, architecture):
        if architecture == children[4]:
            other.append(RankedChild(architecture, 7.0, 0.5))
        return claim(self, architecture)

    monkeypatch.setattr(Journal, "claim", claim_late)
    num_tensors = tensors_alive()
    assert evaluate(children)[4].val_loss == 7.0
    assert evaluate.num_evaluated == len(children) - 1
    # The states that were kept for it are given up with the call.
    assert tensors_alive() == num_tensors


def test_the_child_of_a_process_that_is_killed_is_run_by_the_one_that_waits(supernet, batches, tmp_path):
    path, children = tmp_path / "journal.jsonl", sampled(10)
    queue = fork.SimpleQueue()

    def hold() -> None:
        with Journal(path, journal_key(supernet, batches)).claim(children[4]) as is_granted:
            queue.put(is_granted)
            time.sleep(60)

    holder = fork.Process(target=hold)
    holder.start()
    assert queue.get()
    evaluate = Evaluator(supernet, batches, journal=path)
    naps = []

    def nap(seconds: float) -> None:
        naps.append(evaluate.num_evaluated)
        holder.kill()
        holder.join()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.supernet.evaluation.time.sleep", nap)
        ranked = evaluate(children)
    assert naps == [len(children) - 1]
    assert ranked == Evaluator(supernet, batches)(children)
    assert Journal(path).get(children[4]) == ranked[4]


def free_port() -> str:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def test_two_ranks_are_one(supernet, batches, tmp_path):
    path, children, port = tmp_path / "journal.jsonl", sampled(31), free_port()
    known = Evaluator(supernet, batches, journal=path)(children[:6])

    def work(rank: int) -> tuple[list[RankedChild], list[RankedChild], tuple[float, float], list[int]]:
        AcceleratorState._reset_state(True)
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
        # Unset, accelerate takes as many threads as it finds cores.
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        accelerator = Accelerator(cpu=True)
        plain, kept = (Evaluator(supernet, batches, accelerator, journal) for journal in (None, path))
        ranked = plain(children), kept(children)
        assert plain(children[3:9]) == ranked[0][3:9]
        one = evaluate_child(supernet, batches, children[0], accelerator)
        counts = [count for each in (plain, kept) for count in (each.num_evaluated, each.num_layer_evaluations)]
        torch.distributed.destroy_process_group()
        return *ranked, one, counts

    first, second = in_processes(work)
    assert first == second
    plain, kept, one, (num_plain, plain_layers, num_kept, kept_layers) = first
    assert plain == kept == Evaluator(supernet, batches)(children)
    assert one == pytest.approx((plain[0].val_loss, plain[0].val_accuracy), rel=1e-6)
    # Contiguous pieces of the order: one path at most is run twice.
    assert (num_plain, num_kept) == (len(children), len(children) - len(known))
    assert num_prefixes(children) <= plain_layers <= num_prefixes(children) + 4
    assert num_prefixes(children[6:]) <= kept_layers <= num_prefixes(children[6:]) + 4
    assert set(list(Journal(path))[:6]) == set(known)
    assert len(Journal(path)) == len(children)
