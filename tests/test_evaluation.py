"""Validation of children against transformers' own loss."""

import pytest
import torch

from training.evaluation import evaluate_child, rank_children, validation_batches


MIXED = ("MHA4", "CONV3", "FFN", "CONV5")


@pytest.fixture
def batches():
    generator = torch.Generator().manual_seed(0)
    batches = []
    for size in (4, 4, 1):
        ids = torch.randint(5, 100, (size, 12), generator=generator)
        labels = torch.where(torch.rand(size, 12, generator=generator) < 0.3, ids, -100)
        labels[:, 0] = ids[:, 0]
        batches.append({"input_ids": ids, "labels": labels})
    return batches


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


def test_ranking_is_by_loss_and_evaluates_each_child_once(supernet, batches, monkeypatch):
    calls = []
    monkeypatch.setattr(
        "training.evaluation.evaluate_child",
        lambda model, batches, child, accelerator: calls.append(child) or (float(len(calls) == 1), 0.0),
    )
    ranked = rank_children(supernet, batches, [MIXED, ("FFN",) * 4, MIXED])
    assert calls == [MIXED, ("FFN",) * 4]
    assert [child.architecture for child in ranked] == [("FFN",) * 4, MIXED]


def test_nothing_to_predict_is_an_error(supernet, batches):
    for batch in batches:
        batch["labels"][:] = -100
    with pytest.raises(ValueError, match="no token of the validation batches is to be predicted; give more text"):
        evaluate_child(supernet, batches, MIXED)


def test_the_fixed_slice_is_collated_once():
    seen = []

    def collator(examples):
        seen.append(list(examples))
        return {"input_ids": torch.tensor(examples)}

    batches = validation_batches(range(100), collator, batch_size=4, num_sequences=10)
    assert seen == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len(batches) == 3
    assert len(validation_batches(iter(range(5)), collator, batch_size=4)) == 2
    with pytest.raises(ValueError, match="validation set is empty; give more text"):
        validation_batches([], collator, batch_size=4)
