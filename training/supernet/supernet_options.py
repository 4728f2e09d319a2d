"""The paper's hyper-parameters as options; `MagicTrainingArguments` adds them to those of transformers."""

from dataclasses import dataclass

from ..options import option
from ..space.settings import BudgetSettings


SAMPLERS = ("uniform", "gradual", "fair", "sandwich")
ALIGNMENTS = ("none", "anchor", "top_percent", "average")
CHALLENGERS = ("child", "block")
SHRINK_SAMPLINGS = ("fair", "nested", "chain")


@dataclass
class SupernetOptions(BudgetSettings):
    """Training arguments that the paper adds; their defaults are the paper's if it gives any.

    The exceptions are `sampler` and `alignment`: by default a super-net is trained as in SPOS, which costs least and
    has ranked children as well as MAGIC-T and MAGIC-A in every space measured so far.

    The budget applies to the child to be found. `MagicTrainingArguments` combines these options with those of
    transformers; they are defined separately so that the command line can show them without loading transformers.
    """

    sampler: str = option(
        "uniform",
        flag="--sampler",
        choices=SAMPLERS,
        help="How children are drawn: uniform (SPOS), gradual (MAGIC-T), fair (FairNAS) or sandwich.",
    )
    num_substitutions: int = option(1, help="Operators that the gradual sampler changes per step, k in section 4.")
    num_substitutions_from: int | None = option(
        None,
        at_least=1,
        help="Initial number of operators changed per step; it moves linearly to num_substitutions over the "
        "training. Not in the paper. Default: k is constant.",
    )
    alignment: str = option(
        "none",
        flag="--alignment",
        choices=ALIGNMENTS,
        help="Target of the alignment loss: none, anchor (MAGIC-A: the best child so far), top_percent (5.2: an "
        "anchor from the top p%) or average (3.2: the mean of C random children).",
    )
    alignment_weight: float = option(0.5, at_least=0, help="Weight of the alignment loss, lambda in Eq. (2).")
    alignment_weight_end: float | None = option(
        None,
        at_least=0,
        help="Lambda at the end of training, reached linearly from alignment_weight. Not in the paper. Default: "
        "lambda is constant.",
    )
    alignment_every_n_layers: int = option(4, at_least=1, help="Align layers n, 2n, 3n, ..., counted from 1.")
    alignment_warmup_epochs: float = option(
        3.0,
        at_least=0,
        unit="epochs",
        help="Length of the warm start: training on the prediction loss alone before alignment begins.",
    )
    alignment_warmup_steps: int | None = option(
        None, at_least=0, unit="steps", help="The warm start in optimizer steps; overrides alignment_warmup_epochs."
    )
    alignment_batch_fraction: float = option(
        1.0,
        above=0,
        at_most=1,
        help="Share of a batch's sequences that are aligned; the paper aligns all of them.",
    )
    anchor_eval_steps: int = option(
        100,
        at_least=1,
        unit="steps",
        help="Steps between comparisons of the current child with the anchor (section 4).",
    )
    anchor_challenger: str = option(
        "child",
        choices=CHALLENGERS,
        help="What the anchor is compared with: child (section 4), or block: the anchor with one block taken from the "
        "current child, cycling through the blocks; each block ends at an aligned layer. block is not in the paper.",
    )
    anchor_top_percent: float = option(
        30.0,
        at_least=0,
        at_most=100,
        unit="%",
        help="With alignment=top_percent: the rank p of the anchor (5.2).",
    )
    anchor_hysteresis_percent: float = option(
        10.0,
        at_least=0,
        at_most=100,
        unit="%",
        help="The anchor is kept while its rank is within p +- r percent; this is r (5.2).",
    )
    anchor_pool_size: int = option(
        10_000,
        at_least=1,
        unit="children",
        help="With alignment=top_percent: children ranked to pick the anchor (5.2).",
    )
    anchor_rank_steps: int | None = option(
        None,
        at_least=1,
        unit="steps",
        help="With alignment=top_percent: steps between rankings. Default: one epoch, as in the paper (5.2).",
    )
    num_average_children: int = option(
        4,
        at_least=1,
        unit="children",
        help="With alignment=average: children whose hidden states are averaged, C in 3.2.",
    )
    num_validation_sequences: int = option(
        256,
        at_least=1,
        unit="sequences",
        help="Size of the fixed slice of held-out text on which children are validated.",
    )
    shrink: bool = option(
        False,
        flag="--shrink/--no-shrink",
        help="Delete unpromising operators during training until one child is left (5.1).",
    )
    shrink_operators_per_round: int = option(
        5, at_least=1, unit="operators", help="Operators deleted per round, over all layers."
    )
    shrink_every_n_steps: int | None = option(
        None,
        at_least=1,
        unit="steps",
        help="Optimizer steps between rounds. Default: one round at the end of each epoch.",
    )
    shrink_num_children: int = option(
        100, at_least=1, unit="children", help="Children validated per round to score the operators."
    )
    shrink_sampling: str = option(
        "fair",
        choices=SHRINK_SAMPLINGS,
        help="How the children of a round are drawn: fair, nested or chain. The last two share more layers and take "
        "about half the time to validate, but give noisier scores.",
    )
    num_best_candidates: int = option(
        100,
        at_least=1,
        unit="children",
        help="Children validated at the end of training; the best of them is the child that the run finds. Fewer if "
        "shrinking leaves fewer.",
    )
    num_probe_children: int = option(
        4,
        at_least=0,
        unit="children",
        help="Number of fixed, uniformly drawn children whose validation loss is tracked until shrinking removes "
        "them.",
    )
    probe_every_n_steps: int | None = option(
        None,
        at_least=1,
        unit="steps",
        help="Steps between validations of the probe children. Default: about ten validations over the run.",
    )
    interference_every_n_steps: int = option(
        0,
        at_least=0,
        unit="steps",
        help="Every n steps, log the cosine between the gradients of this step's child and the previous one on the "
        "operators they share (section 3). 0 disables it.",
    )
