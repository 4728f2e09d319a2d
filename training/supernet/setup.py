"""What training arguments ask of a super-net: its sampler, the budget of its children, and whether both fit it."""

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


def search_sampler(space: SearchSpace, config: MagicConfig, args: MagicTrainingArguments) -> UniformSampler:
    """Returns the sampler of a run over `space`, at its start.

    Raises:
        ValueError: there is no such sampler, or it changes more operators than a child has.
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
    """Returns a sampler with the k that `num_substitutions_from` begins with, if that is given.

    Raises:
        ValueError: it is more than a child has layers.
    """
    if args.num_substitutions_from is not None and isinstance(sampler, GradualSampler):
        sampler.change(args.num_substitutions_from)
    return sampler


def check_search(config: MagicConfig, args: MagicTrainingArguments, vocabulary: bool = True) -> None:
    """Raises an error where a super-net of `config` cannot be trained with `args`, before anything is built.

    Args:
        config: the super-net's.
        args: the run's.
        vocabulary: whether `config` has the vocabulary of the text already; without it costs are not known, and of
            the budget only the latency table is looked at.

    Raises:
        InfeasibleBudgetError: no child is within the budget.
        ValueError: the model is no super-net, or the sampler, the alignment or the latency table does not fit it.
    """
    if not config.is_supernet:
        raise ValueError("the model has one operator in each layer; a super-net needs a layer with a choice")
    space = SearchSpace.from_config(config.candidate_operators)
    search_sampler(space, config, args)
    if args.alignment != "none" and args.alignment_every_n_layers > space.num_layers:
        raise ValueError(
            f"alignment_every_n_layers is {args.alignment_every_n_layers} but the super-net has {space.num_layers} "
            f"layers, so that none would be aligned; take at most {space.num_layers}"
        )
    if vocabulary:
        BudgetedSpace(space, budget_of(config, args)).check()
    elif args.latency_table is not None:
        LatencyTable.load(args.latency_table).check(config, vocabulary=False)


def fit_to_text(config: MagicConfig, data: PreparedData) -> MagicConfig:
    """Returns the configuration with the tokenizer's vocabulary and pad token.

    Raises:
        ValueError: the blocks are longer than the model's positions.
    """
    if data.block_size > config.max_sequence_length:
        raise ValueError(
            f"block_size is {data.block_size} but the model has {config.max_sequence_length} positions; take a "
            f"smaller block_size or a preset with more positions"
        )
    config.vocab_size = num_rows(data.tokenizer)
    config.pad_token_id = data.tokenizer.pad_token_id
    return config
