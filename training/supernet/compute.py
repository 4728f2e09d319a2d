"""The expected cost of training a super-net, and the number of steps at which two trainings cost the same."""

import math
from collections.abc import Callable
from typing import NamedTuple

from modeling_magic import MagicConfig

from ..space.costs import operator_flops, training_flops
from ..space.search_space import SearchSpace
from .alignment_plan import AlignmentPlan
from .arguments import MagicTrainingArguments
from .setup import search_sampler


# ---- Compute ----


class SupernetPasses(NamedTuple):
    """Expected number of sequences that pass the embeddings (first) and each layer (bottom up) over a whole training.

    Attributes:
        trained: forward and backward passes of the children that are trained.
        targets: forward passes of the children whose hidden states are the targets of alignment.
        validated: forward passes of the children that are compared with the anchor or ranked to pick it.
    """

    trained: list[float]
    targets: list[float]
    validated: list[float]


def supernet_passes(
    config: MagicConfig,
    args: MagicTrainingArguments,
    num_steps: int,
    num_train_sequences: int | None = None,
    num_validation_sequences: int | None = None,
) -> SupernetPasses:
    """Returns the passes of a super-net's training, with alignment as in `MagicTrainer` and without shrinking.

    - A step trains B sequences, B = batch size x accumulated batches, through all N layers.
    - From step A on, a step also runs the targets, forward only and without the head: each of T children on
      B x `alignment_batch_fraction` sequences, up to the last aligned layer. A is the warm start W or, if later, the
      step of the first anchor: `anchor_eval_steps` with W = 0, the first ranking with `top_percent`. T is C for
      `average`, else 1.
    - Without dropout, the bottom layers that the anchor shares with the child are not run again. With c_1, c_2, ...
      operators per layer, layer n is run unless all of the first n layers agree: with probability
      1 - 1 / (c_1 ... c_n) for a uniform child, whatever the anchor. The embeddings are run whenever layer 1 is.
    - Every `anchor_eval_steps`, and at W if there is no anchor yet, the child of the step and the anchor (another
      child with probability 1 - 1 / size) are validated. With `top_percent`, a pool of uniform children is ranked
      every `anchor_rank_steps`, or at the end of each epoch. At a depth with M possible bottoms, n children have
      M (1 - (1 - 1 / M)^n) distinct ones, or all M if the pool is the whole space; each is run once. A challenger
      that takes one block from the child is the anchor itself if the two agree in that block.

    Validations that all methods have in common are not counted: probe children, and the choice of the best child at
    the end.

    Args:
        config: configuration of the super-net.
        args: arguments of the run; `max_steps` is ignored.
        num_steps: optimizer steps.
        num_train_sequences: needed if the warm start or the anchor is scheduled in epochs.
        num_validation_sequences: number of validation sequences in the text, if fewer than the run asks for.

    Raises:
        ValueError: the schedule needs epochs, but `num_train_sequences` is not given.
    """
    choices = [len(layer) for layer in config.candidate_operators]
    bottoms = [math.prod(choices[:depth]) for depth in range(len(choices) + 1)]
    step_sequences = args.train_batch_size * args.gradient_accumulation_steps
    trained = [float(num_steps * step_sequences)] * len(bottoms)
    targets, validated = [0.0] * len(bottoms), [0.0] * len(bottoms)
    if args.alignment == "none":
        return SupernetPasses(trained, targets, validated)
    epoch = None
    if num_train_sequences is not None:
        epoch = steps_per_epoch(args, num_train_sequences)
    plan = AlignmentPlan.of(args, len(choices), epoch)
    num_looks = plan.num_anchor_looks(num_steps)
    num_sequences = min(args.num_validation_sequences, num_validation_sequences or args.num_validation_sequences)
    if args.alignment == "anchor":
        others = [1 - 1 / math.prod(choices[layer] for layer in block) for block in plan.blocks]
        num_children = max(0.0, num_looks + (num_looks - 1) * sum(others) / len(others))
        validated = [num_children * num_sequences] * len(bottoms)
    elif args.alignment == "top_percent":
        pool = args.anchor_pool_size
        is_whole = bottoms[-1] <= pool
        runs = [width if is_whole else -width * math.expm1(pool * math.log1p(-1 / width)) for width in bottoms[1:]]
        # Embeddings once for the attention mask and once for the children.
        validated = [num_looks * num_sequences * number for number in (2, *runs)]
    rows = math.ceil(args.alignment_batch_fraction * args.train_batch_size) * args.gradient_accumulation_steps
    rows *= args.num_average_children if args.alignment == "average" else 1
    aligned = plan.num_aligned_steps(num_steps) * rows
    shares = plan.shares_bottoms(config)
    for depth in range(max(plan.aligned_layers, default=0) + 1):
        targets[depth] = aligned * (1 - 1 / bottoms[max(depth, 1)] if shares else 1)
    return SupernetPasses(trained, targets, validated)


def steps_per_epoch(args: MagicTrainingArguments, num_train: int) -> int:
    """Returns the number of optimizer steps in which one process sees `num_train` sequences or images once."""
    return math.ceil(math.ceil(num_train / args.train_batch_size) / args.gradient_accumulation_steps)


def supernet_flops(
    config: MagicConfig,
    args: MagicTrainingArguments,
    num_steps: int,
    seq_len: int,
    masked_fraction: float = 0.15,
    num_train_sequences: int | None = None,
    num_validation_sequences: int | None = None,
) -> float:
    """Returns the expected FLOPs ("electra") of training a super-net, including alignment and its anchor.

    This is the sum over embeddings and layers of `SupernetPasses`, each at the mean cost of its operators: a trained
    sequence counts as three forward passes, as in `costs.training_flops`, a target or validated one as one. The head,
    on masked positions only, is added for trained and validated sequences. The mean cost of a layer is over its
    operators, since all samplers except the sandwich draw them equally often; for the sandwich it is over its rounds.
    The anchor's operators are assumed to cost the same. The alignment loss itself and its part of the backward pass,
    a few operations per element, are not counted.

    Args:
        config: configuration of the super-net, with the vocabulary of the text.
        args: arguments of the run.
        num_steps: optimizer steps.
        seq_len: tokens per sequence.
        masked_fraction: fraction of the tokens that the head predicts.
        num_train_sequences: see `supernet_passes`.
        num_validation_sequences: see `supernet_passes`.
    """
    passes = supernet_passes(config, args, num_steps, num_train_sequences, num_validation_sequences)
    embeddings = training_flops(config, (), seq_len, seq_len, 0) / 3
    head = training_flops(config, (), seq_len, 1000 * seq_len, masked_fraction) / 3000 - embeddings
    costs = [embeddings, *_mean_operator_flops(config, args, seq_len)]
    flops = 0.0
    for weight, own in ((3, passes.trained), (1, passes.targets), (1, passes.validated)):
        flops += weight * math.fsum(number * cost for number, cost in zip(own, costs, strict=True))
    return flops + head * (3 * passes.trained[-1] + passes.validated[-1])


def _mean_operator_flops(config: MagicConfig, args: MagicTrainingArguments, seq_len: int) -> list[float]:
    """Returns the mean FLOPs of one sequence's forward pass through each layer, over the children that are drawn."""
    layers = [[operator_flops(name, config, seq_len) for name in layer] for layer in config.candidate_operators]
    means = [math.fsum(layer) / len(layer) for layer in layers]
    if args.sampler != "sandwich":
        return means
    sampler = search_sampler(SearchSpace.from_config(config.candidate_operators), config, args)
    largest, smallest = sampler.next(), sampler.next()
    extremes = [
        [operator_flops(name, config, seq_len) for name in pair] for pair in zip(largest, smallest, strict=True)
    ]
    return [(sum(pair) + 2 * mean) / 4 for pair, mean in zip(extremes, means, strict=True)]


def steps_of_equal_compute(flops: float, flops_of_steps: Callable[[int], float]) -> int:
    """Returns the number of steps, at least 1, whose cost is nearest to `flops`.

    Args:
        flops: cost of another super-net's training.
        flops_of_steps: returns the cost of a number of steps and increases with it; see `supernet_flops`.
    """
    high = 1
    while flops_of_steps(high) < flops:
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if flops_of_steps(middle) < flops else (low, middle)
    return low if low and flops - flops_of_steps(low) <= flops_of_steps(high) - flops else high
