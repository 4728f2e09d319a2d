"""Training objectives as functions of tensors."""

from collections.abc import Sequence

import torch
from torch import Tensor


def alignment_loss(
    child_states: Sequence[Tensor], target_states: Sequence[Tensor], attention_mask: Tensor | None = None
) -> Tensor:
    """Returns the sum over aligned layers of the MSE between child and target hidden states, Eq. (1).

    Args:
        child_states: one (batch, seq_len, hidden) tensor for each aligned layer, with gradients.
        target_states: the anchor's states (section 4) or the average states of several children (3.2), with the same
            shapes. The paper does not say whether gradients flow into the target; here they do not, and the caller
            passes detached tensors.
        attention_mask: (batch, seq_len), 1 = token, 0 = padding; padding is excluded from the mean.

    Returns:
        Scalar; mean over tokens and features of this micro-batch, summed over layers.

    Raises:
        ValueError: no layer is aligned, or the numbers of layers differ.
    """
    if not child_states or len(child_states) != len(target_states):
        raise ValueError(
            f"there are {len(child_states)} layers of the child but {len(target_states)} of the target; give one pair "
            f"of hidden states for each aligned layer, and at least one"
        )
    losses = [
        _masked_mse(child, target, attention_mask) for child, target in zip(child_states, target_states, strict=True)
    ]
    return torch.stack(losses).sum()


def _masked_mse(child: Tensor, target: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.nn.functional.mse_loss(child, target)
    tokens = attention_mask.bool()
    return torch.nn.functional.mse_loss(child[tokens], target[tokens])


def average_states(states_of_children: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Returns the mean of several children's hidden states, layer by layer: the target of section 3.2.

    Args:
        states_of_children: for each child, one (batch, seq_len, hidden) tensor for each aligned layer.
    """
    return [torch.stack(layer).mean(dim=0) for layer in zip(*states_of_children, strict=True)]


@torch.no_grad()
def sample_tokens(logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Returns a draw from softmax(logits) for each row: the generator's token at a masked position (5.1, ELECTRA).

    The draw is argmax(logits + Gumbel noise), at temperature 1. No gradient flows through it.

    Args:
        logits: (..., vocab_size), of any precision.
        generator: a generator on the device of the logits; `None` for torch's global one.

    Returns:
        (...) token ids.
    """
    # In place, because with a large vocabulary this is the largest tensor of a step. Uniform numbers are multiples of
    # 2**-24; using the middle of their intervals near 0, where floats are dense, keeps the probability of rare tokens.
    uniform = torch.rand(logits.shape, generator=generator, device=logits.device).add_(2**-25)
    noise = uniform.neg_().log1p_().neg_().log_().neg_()
    return noise.add_(logits).argmax(dim=-1)


@torch.no_grad()
def corrupt_tokens(input_ids: Tensor, labels: Tensor, sampled: Tensor) -> tuple[Tensor, Tensor]:
    """Returns the discriminator's input and which of its tokens were replaced (5.1, ELECTRA).

    A token counts as replaced if it differs from the original, not if it was masked: where the generator guesses the
    original token, nothing is replaced.

    Args:
        input_ids: (batch, seq_len), masked.
        labels: (batch, seq_len), the original token at masked positions, -100 elsewhere. Masked positions include
            those whose token masking left unchanged or replaced by a random one.
        sampled: (number of masked positions,) in reading order, see `sample_tokens`.

    Returns:
        The original sequence with the sampled tokens at the masked positions, (batch, seq_len), and a bool tensor of
        the same shape that is true where the two differ.
    """
    masked = labels != -100
    original = torch.where(masked, labels, input_ids)
    corrupted = original.masked_scatter(masked, sampled)
    return corrupted, corrupted != original


def replaced_token_losses(logits: Tensor, replaced: Tensor, counted: Tensor) -> Tensor:
    """Returns the discriminator's binary cross-entropy at each token (5.1, ELECTRA), 0 at tokens that do not count.

    Args:
        logits: (batch, seq_len), positive for tokens predicted as replaced; with gradients.
        replaced: (batch, seq_len) bool, the correct answers, see `corrupt_tokens`.
        counted: (batch, seq_len) bool, false at padding.

    Returns:
        (batch, seq_len), float32. ELECTRA's loss is the sum over the tokens that count, divided by their number.
    """
    logits = logits.float()
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, replaced.to(logits.dtype), reduction="none")
    return losses.masked_fill(~counted, 0.0)


# ---- Distillation (5.4) ----


@torch.no_grad()
def teacher_distribution(
    logits: Tensor, temperature: float = 1.0, top_k: int | None = None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Returns softmax(logits / temperature) as the logarithms of its `top_k` largest probabilities and of the rest.

    The rest is one number per row, so the result is a proper distribution over top_k + 1 events.

    Args:
        logits: (rows, classes), from the teacher.
        temperature: above 0.
        top_k: the number of classes to keep; `None` or all classes keeps them in their original order.

    Returns:
        Log-probabilities (rows, top_k), float32; their classes (rows, top_k), `None` if all are kept; and the
        log-probability of all other classes together, (rows,), `None` if there are none.
    """
    log_probs = (logits.float() / temperature).log_softmax(dim=-1)
    if top_k is None or top_k >= logits.shape[-1]:
        return log_probs, None, None
    kept, classes = log_probs.topk(top_k, dim=-1)
    rest = log_probs.scatter(-1, classes, float("-inf")).logsumexp(dim=-1)
    return kept, classes, rest


def distillation_losses(
    student_logits: Tensor,
    teacher_log_probs: Tensor,
    temperature: float = 1.0,
    classes: Tensor | None = None,
    teacher_log_rest: Tensor | None = None,
) -> Tensor:
    """Returns temperature^2 * KL(teacher || student) for each row, both softened by the temperature (5.4).

    The paper follows NAS-BERT: only the distribution of the prediction layer is distilled. KL and soft cross-entropy
    have the same gradient, but KL is 0 if the student matches the teacher. The factor keeps the size of the gradient
    independent of the temperature.

    With only the teacher's top-k classes, it is the KL over k + 1 events, the last being "any other class". It is
    never above the full KL; the difference is the teacher's mass on the other classes times the KL of the two
    distributions within them.

    Args:
        student_logits: (rows, classes), not softened; with gradients.
        teacher_log_probs: (rows, k), returned by `teacher_distribution` at the same temperature, like the next two.
        classes: (rows, k), the classes of `teacher_log_probs`; `None` if it has all classes in order.
        teacher_log_rest: (rows,), the log-probability of the rest; `None` if `classes` is.

    Returns:
        (rows,), float32, in nats, at least 0 up to rounding.
    """
    scaled = student_logits.float() / temperature
    log_probs = scaled.log_softmax(dim=-1)
    if classes is not None:
        log_probs = log_probs.gather(-1, classes)
    losses = _expected_log_ratio(teacher_log_probs, log_probs).sum(dim=-1)
    if classes is not None and teacher_log_rest is not None:
        others = scaled.scatter(-1, classes, float("-inf")).logsumexp(dim=-1)
        losses = losses + _expected_log_ratio(teacher_log_rest, others - scaled.logsumexp(dim=-1))
    return losses * temperature**2


def _expected_log_ratio(teacher_log_probs: Tensor, log_probs: Tensor) -> Tensor:
    # An event with probability 0 under the teacher contributes nothing, whatever the student predicts.
    probs = teacher_log_probs.exp()
    return torch.where(probs > 0, probs * (teacher_log_probs - log_probs), 0.0)


def multi_label_distillation_losses(
    student_logits: Tensor, teacher_logits: Tensor, temperature: float = 1.0
) -> Tensor:
    """Returns temperature^2 times the binary cross-entropy to the teacher's probabilities, minus its minimum (5.4).

    The minimum is the entropy of the teacher's probabilities. Subtracting it gives the KL for independent labels,
    which is 0 if the student matches the teacher; the gradient is that of the cross-entropy.

    Args:
        student_logits: (rows, labels); carries gradients.
        teacher_logits: (rows, labels).
        temperature: above 0.

    Returns:
        (rows,), float32, the mean over the labels.
    """
    own, target = student_logits.float() / temperature, teacher_logits.float() / temperature
    cross_entropy = torch.nn.functional.binary_cross_entropy_with_logits
    losses = cross_entropy(own, target.sigmoid(), reduction="none")
    smallest = cross_entropy(target, target.sigmoid(), reduction="none")
    return (losses - smallest).mean(dim=-1) * temperature**2
