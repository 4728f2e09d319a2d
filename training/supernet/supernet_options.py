"""The paper's hyper-parameters as options; `MagicTrainingArguments` are these and those of transformers."""

from dataclasses import dataclass

from ..options import option
from ..space.settings import BudgetSettings


SAMPLERS = ("gradual", "uniform", "fair", "sandwich")
ALIGNMENTS = ("none", "anchor", "top_percent", "average")
CHALLENGERS = ("child", "block")
SHRINK_SAMPLINGS = ("fair", "nested", "chain")


@dataclass
class SupernetOptions(BudgetSettings):
    """What the paper adds to training arguments; the defaults are the paper's where it has any.

    The budget is that of the child to be found. `MagicTrainingArguments` are these and those of transformers; they
    stand apart so that the command line can show them without loading transformers.
    """

    sampler: str = option(
        "gradual",
        flag="--sampler",
        choices=SAMPLERS,
        help="How children are drawn: gradual (MAGIC-T), uniform (SPOS), fair (FairNAS) or sandwich.",
    )
    num_substitutions: int = option(1, help="Operators that the gradual sampler changes at each step, k of section 4.")
    num_substitutions_from: int | None = option(
        None,
        at_least=1,
        help="Begin with so many changed operators a step and go to num_substitutions, linearly over the training; "
        "an option beyond the paper. Default: k stays as it is.",
    )
    alignment: str = option(
        "anchor",
        flag="--alignment",
        choices=ALIGNMENTS,
        help="What hidden states are pulled towards: anchor (MAGIC-A: the best child so far), top_percent (5.2: an "
        "anchor from the top p%), average (3.2: the mean of C random children) or none.",
    )
    alignment_weight: float = option(0.5, at_least=0, help="Lambda of Eq. (2).")
    alignment_weight_end: float | None = option(
        None,
        at_least=0,
        help="Lambda at the end of the training, reached linearly from alignment_weight; an option beyond the paper. "
        "Default: lambda stays as it is.",
    )
    alignment_every_n_layers: int = option(4, at_least=1, help="Layers n, 2n, 3n, ... are aligned, counted from 1.")
    alignment_warmup_epochs: float = option(
        3.0, at_least=0, unit="epochs", help="Training on the prediction loss alone before alignment begins."
    )
    alignment_warmup_steps: int | None = option(
        None, at_least=0, unit="steps", help="The same in optimizer steps; it wins over alignment_warmup_epochs."
    )
    alignment_batch_fraction: float = option(
        1.0,
        above=0,
        at_most=1,
        help="Share of a batch's sequences that are aligned; below 1 is an option beyond the paper.",
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
        help="What the anchor is compared with: child (section 4) or block, the anchor with one block of the current "
        "child, each block in its turn; a block ends with an aligned layer. block is an option beyond the paper.",
    )
    anchor_top_percent: float = option(
        30.0,
        at_least=0,
        at_most=100,
        unit="%",
        help="With alignment top_percent, the rank p of the anchor (5.2).",
    )
    anchor_hysteresis_percent: float = option(
        10.0,
        at_least=0,
        at_most=100,
        unit="%",
        help="The anchor stays while it ranks within p +- r percent; this is r (5.2).",
    )
    anchor_pool_size: int = option(
        10_000, at_least=1, unit="children", help="Children ranked for the anchor of alignment top_percent (5.2)."
    )
    anchor_rank_steps: int | None = option(
        None,
        at_least=1,
        unit="steps",
        help="Steps between two rankings for the anchor. Default: an epoch, as in the paper (5.2).",
    )
    num_average_children: int = option(
        4, at_least=1, unit="children", help="Children whose states are averaged for alignment average, C of 3.2."
    )
    num_validation_sequences: int = option(
        256,
        at_least=1,
        unit="sequences",
        help="Size of the fixed slice of held-out text that children are validated on.",
    )
    shrink: bool = option(
        False,
        flag="--shrink/--no-shrink",
        help="Delete unpromising operators in training until one child is left (5.1).",
    )
    shrink_operators_per_round: int = option(
        5, at_least=1, unit="operators", help="Operators that a round deletes, over all layers."
    )
    shrink_every_n_steps: int | None = option(
        None, at_least=1, unit="steps", help="Optimizer steps between rounds. Default: a round ends each epoch."
    )
    shrink_num_children: int = option(
        100, at_least=1, unit="children", help="Children validated in a round to score the operators."
    )
    shrink_sampling: str = option(
        "fair",
        choices=SHRINK_SAMPLINGS,
        help="How the children of a round are drawn: fair, nested or chain. The latter two share more layers and take "
        "about half the time to validate, with noisier scores.",
    )
    num_best_candidates: int = option(
        100,
        at_least=1,
        unit="children",
        help="Children validated at the end of training, the best of which is the child that the run has found; "
        "fewer where shrinking leaves fewer.",
    )
    num_probe_children: int = option(
        4,
        at_least=0,
        unit="children",
        help="Fixed uniform children whose validation loss is followed until shrinking removes them.",
    )
    probe_every_n_steps: int | None = option(
        None,
        at_least=1,
        unit="steps",
        help="Steps between validations of the probe children. Default: about ten validations in the whole run.",
    )
    interference_every_n_steps: int = option(
        0,
        at_least=0,
        unit="steps",
        help="Every n steps, log the cosine between the gradients of this step's child and the last one's on the "
        "operators that both share (section 3); 0 never does.",
    )
