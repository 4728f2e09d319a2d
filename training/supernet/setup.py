"""Setup of a super-net from its training arguments: the sampler, the budget, and checks that both fit."""

from collections.abc import Iterable

from modeling_magic import MagicConfig

from ..data.fitting import num_rows
from ..data.text import PreparedData
from ..space.budgets import BudgetedSpace
from ..space.costs import operator_parameters
from ..space.latency import LatencyTable
from ..space.limits import budget_of
from ..space.samplers import GradualSampler, UniformSampler, make_sampler
from ..space.search_space import SearchSpace
from .arguments import MagicTrainingArguments
from .supernet_options import ALIGNMENTS


# Alignments that the arguments of a single kind belong to.
_ALIGNMENTS = {
    "anchor_eval_steps": ("anchor",),
    "anchor_challenger": ("anchor",),
    "anchor_top_percent": ("top_percent",),
    "anchor_hysteresis_percent": ("top_percent",),
    "anchor_pool_size": ("top_percent",),
    "anchor_rank_steps": ("top_percent",),
    "num_average_children": ("average",),
}


def search_sampler(space: SearchSpace, config: MagicConfig, args: MagicTrainingArguments) -> UniformSampler:
    """Returns the sampler of a run over `space`, in its initial state.

    Raises:
        ValueError: the sampler is unknown, or it changes more operators than a child has.
    """
    sampler = make_sampler(
        args.sampler,
        space,
        seed=args.seed,
        num_substitutions=args.num_substitutions,
        cost=lambda operator: operator_parameters(operator, config),
    )
    return begin_schedule(sampler, args)


def begin_schedule(sampler: UniformSampler, args: MagicTrainingArguments) -> UniformSampler:
    """Returns the sampler, set to the initial k of `num_substitutions_from` if that is given.

    Raises:
        ValueError: the initial k exceeds the number of layers of a child.
    """
    if args.num_substitutions_from is not None and isinstance(sampler, GradualSampler):
        sampler.change(args.num_substitutions_from)
    return sampler


def check_search(config: MagicConfig, args: MagicTrainingArguments, vocabulary: bool = True) -> None:
    """Raises an error, before anything is built, if a super-net with `config` cannot be trained with `args`.

    Args:
        config: configuration of the super-net.
        args: arguments of the run.
        vocabulary: whether `config` already has the vocabulary of the text. Without it costs are unknown, so only
            the latency table of the budget is checked.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
        ValueError: the model is not a super-net, or the sampler, the alignment or the latency table does not fit it.
    """
    if not config.is_supernet:
        raise ValueError(
            "the model has one operator in every layer; a super-net needs a layer with several candidates"
        )
    space = SearchSpace.from_config(config.candidate_operators)
    search_sampler(space, config, args)
    if args.alignment != "none" and args.alignment_every_n_layers > space.num_layers:
        raise ValueError(
            f"alignment_every_n_layers is {args.alignment_every_n_layers} but the super-net has {space.num_layers} "
            f"layers, so no layer would be aligned; use at most {space.num_layers}"
        )
    if vocabulary:
        BudgetedSpace(space, budget_of(config, args)).check()
    elif args.latency_table is not None:
        LatencyTable.load(args.latency_table).check(config, vocabulary=False)


def fit_to_text(config: MagicConfig, data: PreparedData) -> MagicConfig:
    """Returns the configuration with the tokenizer's vocabulary and pad token.

    Raises:
        ValueError: the blocks of text are longer than the model's number of positions.
    """
    if data.block_size > config.max_sequence_length:
        raise ValueError(
            f"block_size is {data.block_size} but the model has {config.max_sequence_length} positions; use a "
            f"smaller block_size or a preset with more positions"
        )
    config.vocab_size = num_rows(data.tokenizer)
    config.pad_token_id = data.tokenizer.pad_token_id
    return config


def check_effects(names: Iterable[str], args: MagicTrainingArguments) -> None:
    """Raises a ValueError if one of these arguments belongs to a part of the method that `args` do not use."""
    for name in names:
        if name.startswith("shrink_") and not args.shrink:
            raise ValueError(f"{name} has no effect without shrink; omit it")
        if name.startswith("num_substitutions") and args.sampler != "gradual":
            raise ValueError(f"{name} has no effect on the sampler {args.sampler!r}; set sampler to gradual")
        targets = _ALIGNMENTS.get(name, ALIGNMENTS[1:] if name.startswith("alignment_") else None)
        if targets is not None and args.alignment not in targets:
            raise ValueError(
                f"{name} has no effect with alignment {args.alignment!r}; set alignment to {' or '.join(targets)}"
            )
