"""Objectives against formulas written out with torch and numpy, one item after another."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, kl_div, mse_loss
from toy_compress import CLASSES, save_source, toy_bench
from toy_sources import edit_json
from transformers.modeling_outputs import BaseModelOutput

from training.compression.sentences import collate
from training.compression.source import Pooling, load_source
from training.compression.teacher_objectives import (
    TARGET,
    MaskedLMObjective,
    SentenceObjective,
    SequenceObjective,
    SpanObjective,
    TokenObjective,
    objective_of,
)
from training.compression.workbench import drop_supernet
from training.supernet.evaluation import Evaluator, evaluate_child


IDS = torch.tensor([[2, 7, 8, 9, 3], [2, 7, 3, 0, 0]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
BATCH = {"input_ids": IDS, "attention_mask": MASK}


def drawn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def sums_by_hand(objective, own, target, batch) -> tuple[float, float]:
    return objective.losses(own, target, batch).sum().item(), objective.scores(own, target, batch).sum().item()


# ---- Sentences ----


def test_sentences_are_compared_by_their_cosine():
    objective = SentenceObjective(Pooling("mean", normalize=True))
    own, other = drawn(5, 8, seed=0), drawn(5, 8, seed=1)
    losses = objective.losses(own, {"outputs": other}, {})
    for row, loss in enumerate(losses.tolist()):
        first, second = own[row].double().numpy(), other[row].double().numpy()
        assert loss == pytest.approx(1 - first @ second / np.linalg.norm(first) / np.linalg.norm(second), abs=1e-6)


def test_the_second_score_of_sentences_is_the_correlation_of_their_cosines_to_the_others():
    objective = SentenceObjective(Pooling("mean", normalize=True))
    own, other = drawn(6, 8, seed=0), drawn(6, 8, seed=1)
    scores = objective.scores(own, {"outputs": other}, {})
    sides = [rows.double().numpy() / np.linalg.norm(rows.numpy(), axis=1, keepdims=True) for rows in (own, other)]
    for row, score in enumerate(scores.tolist()):
        others = [place for place in range(6) if place != row]
        cosines = [side[others] @ side[row] for side in sides]
        assert score == pytest.approx(np.corrcoef(cosines)[0, 1], abs=1e-5)
    assert objective.scores(own[:2], {"outputs": other[:2]}, {}).tolist() == [0, 0]


@pytest.mark.parametrize("mode", ["mean", "cls"])
def test_embeddings_are_read_without_padding(mode):
    objective = SentenceObjective(Pooling(mode, normalize=False))
    states = drawn(2, 5, 4, seed=0)
    read = objective.read(BaseModelOutput(last_hidden_state=states), BATCH)
    expected = [states[0].mean(dim=0), states[1, :3].mean(dim=0)] if mode == "mean" else [states[0, 0], states[1, 0]]
    torch.testing.assert_close(read, torch.stack(expected))


# ---- Sequences and tokens ----


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_classes_are_compared_by_kl(temperature):
    objective = SequenceObjective("single_label_classification", temperature)
    own, other = drawn(4, 3, seed=0), drawn(4, 3, seed=1)
    other[0] = own[0]
    expected = kl_div(
        (own / temperature).log_softmax(-1), (other / temperature).log_softmax(-1), log_target=True, reduction="none"
    ).sum(-1)
    target = {"outputs": other}
    torch.testing.assert_close(objective.losses(own, target, {}), temperature**2 * expected)
    assert objective.losses(own, target, {})[0].abs() < 1e-6
    agrees = [float(own[row].argmax() == other[row].argmax()) for row in range(4)]
    assert objective.scores(own, target, {}).tolist() == agrees


def test_numbers_are_compared_by_their_squared_error():
    objective = SequenceObjective("regression")
    own, other = drawn(4, 2, seed=0), drawn(4, 2, seed=1)
    losses = objective.losses(own, {"outputs": other}, {})
    assert losses.tolist() == pytest.approx([mse_loss(own[row], other[row]).item() for row in range(4)])
    scores = objective.scores(own, {"outputs": other}, {})
    assert scores.tolist() == pytest.approx([-(own[row] - other[row]).abs().mean().item() for row in range(4)])


def test_several_labels_are_each_a_distribution_of_two():
    objective = SequenceObjective("multi_label_classification")
    own, other = drawn(4, 3, seed=0), drawn(4, 3, seed=1)
    losses = objective.losses(own, {"outputs": other}, {})

    def two(logits):
        return torch.stack([logits.sigmoid(), (-logits).sigmoid()], dim=-1).log()

    expected = kl_div(two(own), two(other), log_target=True, reduction="none").sum(-1).mean(-1)
    torch.testing.assert_close(losses, expected)
    expected = ((own > 0) == (other > 0)).float().mean(-1)
    torch.testing.assert_close(objective.scores(own, {"outputs": other}, {}), expected)


def test_tokens_are_items_but_for_padding():
    objective = TokenObjective(2.0)
    logits = drawn(2, 5, 3, seed=0)
    own, other = drawn(8, 3, seed=1), drawn(8, 3, seed=2)
    assert objective.counts(BATCH).tolist() == objective.record_lengths(BATCH).tolist() == [5, 3]
    assert objective.num_items(BATCH) == 8
    read = objective.read(SimpleNamespace(logits=logits), BATCH)
    assert torch.equal(read, torch.cat([logits[0], logits[1, :3]]))
    expected = kl_div((own / 2).log_softmax(-1), (other / 2).log_softmax(-1), log_target=True, reduction="none")
    torch.testing.assert_close(objective.losses(own, {"outputs": other}, BATCH), 4 * expected.sum(-1))


# ---- Spans ----


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_spans_are_two_distributions_over_the_tokens_of_a_sequence(temperature):
    objective = SpanObjective(temperature)
    outputs = SimpleNamespace(start_logits=drawn(2, 5, seed=0), end_logits=drawn(2, 5, seed=1))
    own = objective.read(outputs, BATCH).requires_grad_()
    other = drawn(8, 2, seed=2)
    losses = objective.losses(own, {"outputs": other}, BATCH)
    assert objective.num_items(BATCH) == len(losses) == 2
    assert objective.record_lengths(BATCH).tolist() == [5, 3]
    expected, agrees = [], []
    for row, rows in enumerate((slice(0, 5), slice(5, 8))):
        sides = [(outputs.start_logits[row, : rows.stop - rows.start], other[rows, 0])]
        sides += [(outputs.end_logits[row, : rows.stop - rows.start], other[rows, 1])]
        of_sides = [
            kl_div(
                (one / temperature).log_softmax(-1),
                (two / temperature).log_softmax(-1),
                log_target=True,
                reduction="sum",
            )
            for one, two in sides
        ]
        expected.append(temperature**2 * sum(of_sides) / 2)
        agrees.append(sum(float(one.argmax() == two.argmax()) for one, two in sides) / 2)
    torch.testing.assert_close(losses, torch.stack(expected))
    assert objective.scores(own, {"outputs": other}, BATCH).tolist() == agrees
    losses.sum().backward()
    assert own.grad is not None
    assert own.grad.isfinite().all()


# ---- Masked LMs ----


def by_hand(own: np.ndarray, other: np.ndarray, top_k: int) -> tuple[float, float]:
    """KL of the teacher's likeliest tokens and all others together, and whether both have the same likeliest one."""
    p, q = (np.exp(logits) / np.exp(logits).sum() for logits in (other, own))
    kept = np.argsort(-p)[:top_k]
    events = [(p[token], q[token]) for token in kept]
    events.append((1 - p[kept].sum(), 1 - q[kept].sum()))
    return sum(one * np.log(one / two) for one, two in events), float(kept[0] == q.argmax())


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory):
    return load_source(str(save_source(tmp_path_factory.mktemp("lm") / "source", "BertForMaskedLM")))


@pytest.mark.parametrize("top_k", [1, 3, 500])
def test_masked_tokens_are_compared_by_the_kl_of_the_likeliest(masked_lm, top_k):
    objective = MaskedLMObjective(masked_lm.tokenizer, 0.15, top_k, seed=0)
    own, other = 2 * drawn(4, 12, seed=0), 2 * drawn(4, 12, seed=1)
    target = objective.unpack(objective.pack(objective.target(other)))
    assert target["tokens"].shape == (4, min(top_k, 11))
    losses, scores = objective.losses(own, target, {}), objective.scores(own, target, {})
    for row in range(4):
        loss, score = by_hand(own[row].double().numpy(), other[row].double().numpy(), min(top_k, 11))
        assert losses[row].item() == pytest.approx(loss, abs=1e-5)
        assert scores[row] == score
    # With all tokens kept it is the whole KL, whose gradient is that of the soft cross-entropy.
    if top_k == 500:
        expected = (
            cross_entropy(own, other.softmax(-1), reduction="none")
            - torch.distributions.Categorical(logits=other).entropy()
        )
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5)


def rows_of(masked_lm, number: int = 60) -> list[dict[str, list[int]]]:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 20, size=number)
    return [{"input_ids": [2, *rng.integers(5, 90, size=length).tolist(), 3]} for length in lengths]


def test_masks_follow_from_the_sequence(masked_lm):
    objective = MaskedLMObjective(masked_lm.tokenizer, 0.15, 8, seed=0)
    rows = rows_of(masked_lm)
    masked = objective.mask(collate(rows, 0))
    for row, example in enumerate(rows):
        alone = objective.mask(collate([example], 0))
        length = len(example["input_ids"])
        for name in ("input_ids", "labels"):
            assert torch.equal(masked[name][row, :length], alone[name][0])
    other = MaskedLMObjective(masked_lm.tokenizer, 0.15, 8, seed=1).mask(collate(rows, 0))
    assert not torch.equal(other["labels"], masked["labels"])


def test_masked_are_a_share_of_the_tokens_and_one_at_least(masked_lm):
    objective = MaskedLMObjective(masked_lm.tokenizer, 0.3, 8, seed=0)
    rows = rows_of(masked_lm)
    batch = collate(rows, 0)
    before = batch["input_ids"].clone()
    masked = objective.mask(batch)
    assert torch.equal(batch["input_ids"], before)
    for row, example in enumerate(rows):
        places = (masked["labels"][row] != -100).nonzero().flatten()
        num_words = len(example["input_ids"]) - 2
        assert len(places) == objective.counts(masked)[row] == max(1, round(0.3 * num_words))
        # Neither [CLS] nor [SEP] nor padding.
        assert ((places >= 1) & (places <= num_words)).all()
        assert torch.equal(masked["labels"][row, places], before[row, places])
        assert (masked["input_ids"][row, places] == masked_lm.tokenizer.mask_token_id).all()
        others = masked["labels"][row] == -100
        assert torch.equal(masked["input_ids"][row, others], before[row, others])


def test_a_sequence_of_special_tokens_has_nothing_masked(masked_lm):
    objective = MaskedLMObjective(masked_lm.tokenizer, 0.15, 8, seed=0)
    unknown = masked_lm.tokenizer.unk_token_id
    masked = objective.mask(collate([{"input_ids": [2, unknown, 3]}, {"input_ids": [2, 9, 3]}], 0))
    assert objective.counts(masked).tolist() == [0, 1]
    logits = drawn(1, 12, seed=0)
    target = objective.target(logits)
    assert objective.losses(logits, target, masked).abs() < 1e-6
    assert objective.target(logits[:0])["tokens"].shape == (0, 8)


# ---- Of all kinds ----


@pytest.fixture(scope="module", params=CLASSES)
def bench(request, tmp_path_factory):
    bench = toy_bench(tmp_path_factory.mktemp(request.param), CLASSES[request.param], num_sentences=100)
    bench.judged_outputs.fill(bench.validation)
    return bench


def test_the_head_on_the_states_is_the_forward_pass(bench):
    for batch in bench.judged_batches():
        states = bench.teacher.base_model(
            input_ids=batch["input_ids"], attention_mask=batch.get("attention_mask")
        ).last_hidden_state
        whole = bench.teacher(**{name: value for name, value in batch.items() if name != TARGET})
        of_head = bench.objective.read(bench.objective.head(bench.teacher, states, batch), batch)
        torch.testing.assert_close(of_head, bench.objective.read(whole, batch))


def test_the_checkpoint_itself_has_the_best_loss_and_score(bench):
    loss, score = evaluate_child(bench.teacher, bench.judged_batches(), judge=bench.objective)
    assert loss == pytest.approx(0, abs=1e-6)
    assert score == pytest.approx(1, abs=1e-6)


def test_children_that_share_layers_are_judged_as_each_on_its_own(bench):
    supernet, batches = drop_supernet(bench), bench.judged_batches()
    names = bench.teacher.config.chain
    children = [names, ("SKIP", *names[1:]), (*names[:3], "SKIP"), (names[0], "SKIP", names[2], "SKIP")]
    for found in Evaluator(supernet, batches, judge=bench.objective)(children):
        sums, number = torch.zeros(2), 0
        for batch in batches:
            given = {name: value for name, value in batch.items() if name != TARGET}
            own = bench.objective.read(supernet(**given, architecture=found.architecture), batch)
            sums += torch.tensor(sums_by_hand(bench.objective, own, batch[TARGET], batch))
            number += bench.objective.num_items(batch)
        assert [found.val_loss, found.val_accuracy] == pytest.approx((sums / number).tolist(), abs=1e-5)


def test_records_depend_on_what_the_objective_describes(masked_lm):
    described = [
        objective_of(masked_lm, **changes).describe()
        for changes in ({}, {"seed": 1}, {"mlm_probability": 0.3}, {"top_k": 8})
    ]
    assert all(one != other for place, one in enumerate(described) for other in described[:place])
    assert SentenceObjective(Pooling("mean", True)).describe() != SentenceObjective(Pooling("cls", True)).describe()
    # Outputs are kept as they are before the temperature.
    assert TokenObjective(1.0).describe() == TokenObjective(2.0).describe()


def test_an_objective_is_of_the_checkpoints_kind(tmp_path):
    kinds = {
        "BertModel": SentenceObjective,
        "BertForMaskedLM": MaskedLMObjective,
        "BertForSequenceClassification": SequenceObjective,
        "BertForTokenClassification": TokenObjective,
        "BertForQuestionAnswering": SpanObjective,
    }
    for name, kind in kinds.items():
        assert type(objective_of(load_source(str(save_source(tmp_path / name, name))))) is kind


@pytest.mark.parametrize(
    ("changes", "problem_type"),
    [
        ({}, "single_label_classification"),
        ({"id2label": {0: "score"}, "label2id": {"score": 0}}, "regression"),
        ({"problem_type": "multi_label_classification"}, "multi_label_classification"),
    ],
)
def test_what_a_classifier_predicts_follows_from_its_configuration(tmp_path, changes, problem_type):
    folder = save_source(tmp_path / "source", "BertForSequenceClassification", **changes)
    edit_json(folder / "config.json", **{"problem_type": changes.get("problem_type")})
    objective = objective_of(load_source(str(folder)))
    assert isinstance(objective, SequenceObjective)
    assert objective.problem_type == problem_type
