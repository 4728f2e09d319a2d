"""Eq. (1) by hand."""

import pytest
import torch

from training.objectives import alignment_loss, average_states


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
