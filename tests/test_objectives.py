"""Eq. (1) and the functions of replaced-token detection by hand."""

import math

import pytest
import torch

from training.objectives import alignment_loss, average_states, corrupt_tokens, replaced_token_losses, sample_tokens


def test_alignment_loss_by_hand():
    child = [torch.tensor([[[1.0, 2.0], [3.0, 4.0]]]), torch.tensor([[[0.0, 0.0], [0.0, 0.0]]])]
    target = [torch.tensor([[[1.0, 0.0], [0.0, 4.0]]]), torch.tensor([[[2.0, 0.0], [0.0, 0.0]]])]
    # First layer: (0 + 4 + 9 + 0) / 4, second: (4 + 0 + 0 + 0) / 4.
    assert alignment_loss(child, target).item() == pytest.approx(13 / 4 + 1)
    # The second token is padding: (0 + 4) / 2 and (4 + 0) / 2.
    mask = torch.tensor([[1, 0]])
    assert alignment_loss(child, target, mask).item() == pytest.approx(2 + 2)


def test_padding_content_plays_no_part():
    child, target = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    expected = alignment_loss([child], [target], mask)
    child[mask == 0] = 1e9
    torch.testing.assert_close(alignment_loss([child], [target], mask), expected)


def test_gradient_reaches_the_child_only():
    child, target = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4)
    alignment_loss([child], [target]).backward()
    torch.testing.assert_close(child.grad, 2 * (child.detach() - target) / child.numel())


def test_average_of_children():
    first, second = [torch.zeros(1, 2, 2), torch.ones(1, 2, 2)], [torch.ones(1, 2, 2), torch.full((1, 2, 2), 3.0)]
    average = average_states([first, second])
    assert torch.equal(average[0], torch.full((1, 2, 2), 0.5))
    assert torch.equal(average[1], torch.full((1, 2, 2), 2.0))


@pytest.mark.parametrize(("child", "target"), [([], []), ([torch.zeros(1)], [])])
def test_unpaired_layers_are_refused(child, target):
    with pytest.raises(ValueError, match="one pair of hidden states for each aligned layer"):
        alignment_loss(child, target)


# ---- Replaced-token detection ----


def test_draws_follow_the_softmax():
    """A chi-square test over 40,000 draws of nine tokens, one of them all but impossible."""
    logits = torch.tensor([2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.25, -30.0])
    num_draws = 40_000
    generator = torch.Generator().manual_seed(0)
    counts = sample_tokens(logits.expand(num_draws, 9), generator).bincount(minlength=9)
    expected = logits.double().softmax(0) * num_draws
    assert counts[8] == 0
    statistic = ((counts - expected) ** 2 / expected)[:8].sum().item()
    # The upper 1% of chi-square with seven degrees of freedom; temperatures 0.95 and 1.05 give 50 and more.
    assert statistic < 18.5


def test_draws_are_the_generators_alone():
    logits = torch.randn(50, 20, requires_grad=True)
    before = torch.get_rng_state()
    draws = [sample_tokens(logits, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    torch.manual_seed(3)
    first = sample_tokens(logits.bfloat16())
    torch.manual_seed(3)
    assert torch.equal(sample_tokens(logits.bfloat16()), first)
    assert sample_tokens(torch.zeros(0, 20)).shape == (0,)


def test_replacements_by_hand():
    """Five masked tokens: a mask replaced, a mask guessed right, a random token guessed right, one left as it was."""
    mask = 4
    input_ids = torch.tensor([[1, mask, 12, mask, 14], [1, 33, 22, mask, 0]])
    labels = torch.tensor([[-100, 11, -100, 13, -100], [-100, 21, 22, 23, -100]])
    sampled = torch.tensor([50, 13, 21, 51, 52])
    corrupted, replaced = corrupt_tokens(input_ids, labels, sampled)
    assert corrupted.tolist() == [[1, 50, 12, 13, 14], [1, 21, 51, 52, 0]]
    assert replaced.tolist() == [[False, True, False, False, False], [False, False, True, True, False]]
    assert input_ids[0, 1] == mask


def test_replaced_token_losses_by_hand():
    logits = torch.tensor([[0.0, 2.0, float("nan")], [-1.0, 3.0, 1.0]], dtype=torch.float64, requires_grad=True)
    replaced = torch.tensor([[True, False, False], [False, True, False]])
    counted = torch.tensor([[True, True, False], [True, True, True]])
    losses = replaced_token_losses(logits, replaced, counted)
    expected = [math.log(2), math.log1p(math.exp(2)), 0, math.log1p(math.exp(-1)), math.log1p(math.exp(-3))]
    expected.append(math.log1p(math.exp(1)))
    assert losses.dtype == torch.float32
    assert losses.flatten().tolist() == pytest.approx(expected, rel=1e-6)


def test_no_gradient_through_a_draw():
    logits = torch.randn(5, 20, requires_grad=True)
    sampled = sample_tokens(logits)
    labels = torch.full((1, 5), 3)
    corrupted, replaced = corrupt_tokens(labels, labels, sampled)
    assert not any(tensor.requires_grad for tensor in (sampled, corrupted, replaced))
