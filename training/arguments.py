"""The paper's hyper-parameters as training arguments."""

import math
from dataclasses import dataclass, field

from transformers import TrainingArguments


ALIGNMENTS = ("none", "anchor", "top_percent", "average")
SHRINK_SAMPLINGS = ("fair", "nested", "chain")
BUDGET_ARGUMENTS = ("max_params", "min_params", "max_flops", "min_flops", "max_latency_ms", "latency_table")


@dataclass
class MagicTrainingArguments(TrainingArguments):
    """`TrainingArguments` and what the paper adds to them; the defaults of these are the paper's where it has any."""

    sampler: str = field(
        default="gradual",
        metadata={"help": "How children are drawn: gradual (MAGIC-T), uniform (SPOS), fair (FairNAS) or sandwich."},
    )
    num_substitutions: int = field(
        default=1, metadata={"help": "Operators that the gradual sampler changes at each step, k of section 4."}
    )
    alignment: str = field(
        default="anchor",
        metadata={
            "help": "What hidden states are pulled towards: anchor (MAGIC-A: the best child so far), top_percent "
            "(5.2: an anchor from the top p%), average (3.2: the mean of C random children) or none."
        },
    )
    alignment_weight: float = field(default=0.5, metadata={"help": "Lambda of Eq. (2)."})
    alignment_every_n_layers: int = field(
        default=4, metadata={"help": "Layers n, 2n, 3n, ... are aligned, counted from 1."}
    )
    alignment_warmup_epochs: float = field(
        default=3.0, metadata={"help": "Epochs of prediction loss alone before alignment begins."}
    )
    alignment_warmup_steps: int | None = field(
        default=None, metadata={"help": "The same in optimizer steps; wins over alignment_warmup_epochs."}
    )
    alignment_batch_fraction: float = field(
        default=1.0,
        metadata={"help": "Share of a batch's sequences that are aligned; below 1 is an option beyond the paper."},
    )
    anchor_eval_steps: int = field(
        default=100, metadata={"help": "Steps between comparisons of the current child with the anchor (section 4)."}
    )
    anchor_top_percent: float = field(
        default=30.0, metadata={"help": "p: with alignment top_percent, the rank of the anchor in percent (5.2)."}
    )
    anchor_hysteresis_percent: float = field(
        default=10.0, metadata={"help": "r: the anchor stays while it ranks within p +- r percent (5.2)."}
    )
    anchor_pool_size: int = field(
        default=10_000, metadata={"help": "Children ranked for the anchor of alignment top_percent (5.2)."}
    )
    anchor_rank_steps: int | None = field(
        default=None, metadata={"help": "Steps between such rankings; left out, an epoch as in the paper (5.2)."}
    )
    num_average_children: int = field(
        default=4, metadata={"help": "C: children whose states are averaged for alignment average (3.2)."}
    )
    num_validation_sequences: int = field(
        default=256, metadata={"help": "Held-out sequences of the fixed slice that children are validated on."}
    )
    shrink: bool = field(
        default=False, metadata={"help": "Delete unpromising operators in training until one child is left (5.1)."}
    )
    shrink_operators_per_round: int = field(
        default=5, metadata={"help": "Operators that a round deletes, over all layers."}
    )
    shrink_every_n_steps: int | None = field(
        default=None, metadata={"help": "Optimizer steps between rounds; left out, a round ends each epoch."}
    )
    shrink_num_children: int = field(
        default=100, metadata={"help": "Children validated in a round to score the operators."}
    )
    shrink_sampling: str = field(
        default="fair",
        metadata={
            "help": "How these children are drawn: fair, nested or chain; the latter two share more layers and take "
            "about half the time to validate, with noisier scores."
        },
    )
    max_params: int | None = field(
        default=None,
        metadata={"help": "Most parameters of the child to be found, embeddings and masked-LM head included."},
    )
    min_params: int | None = field(default=None, metadata={"help": "Fewest parameters of the child to be found."})
    max_flops: float | None = field(
        default=None,
        metadata={
            "help": "Most FLOPs of the child to be found, by ELECTRA's counting with the masked-LM head over every "
            "position, for 128 tokens or the model's longest sequence, whichever is shorter."
        },
    )
    min_flops: float | None = field(default=None, metadata={"help": "Fewest FLOPs of the child to be found."})
    max_latency_ms: float | None = field(
        default=None, metadata={"help": "Longest time of the child to be found, in milliseconds by latency_table."}
    )
    latency_table: str | None = field(
        default=None, metadata={"help": "A file that `magic-nas benchmark` wrote on the device that counts."}
    )
    num_probe_children: int = field(
        default=4,
        metadata={"help": "Fixed uniform children whose validation loss is followed until shrinking removes them."},
    )
    probe_every_n_steps: int | None = field(
        default=None,
        metadata={"help": "Steps between validations of the probe children; left out, about ten in the whole run."},
    )
    interference_every_n_steps: int = field(
        default=0,
        metadata={
            "help": "Every n steps, log the cosine between the gradients of this step's child and the last one's on "
            "the operators that both share (section 3); 0 for none."
        },
    )
    # Logits of masked positions only differ in number from batch to batch, so that they cannot be gathered.
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluation returns the loss only, since there are logits of masked tokens only."},
    )

    def __post_init__(self):
        super().__post_init__()
        if self.ddp_find_unused_parameters is None:
            # A step uses one operator of each layer, the others have no gradient.
            self.ddp_find_unused_parameters = True
        if self.alignment not in ALIGNMENTS:
            raise ValueError(f"alignment is {self.alignment!r}; choose one of: {', '.join(ALIGNMENTS)}")
        for name in (
            "alignment_every_n_layers",
            "anchor_eval_steps",
            "anchor_pool_size",
            "num_average_children",
            "num_validation_sequences",
            "shrink_operators_per_round",
            "shrink_num_children",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.shrink_sampling not in SHRINK_SAMPLINGS:
            raise ValueError(
                f"shrink_sampling is {self.shrink_sampling!r}; choose one of: {', '.join(SHRINK_SAMPLINGS)}"
            )
        for name in ("anchor_rank_steps", "shrink_every_n_steps", "probe_every_n_steps"):
            if (value := getattr(self, name)) is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in (
            "alignment_warmup_epochs",
            "alignment_warmup_steps",
            "num_probe_children",
            "interference_every_n_steps",
        ):
            if (value := getattr(self, name)) is not None and value < 0:
                raise ValueError(f"{name} is {value}; it must not be negative")
        if self.alignment_weight < 0:
            raise ValueError(f"alignment_weight is {self.alignment_weight}; it must not be negative")
        if not 0 < self.alignment_batch_fraction <= 1:
            raise ValueError(
                f"alignment_batch_fraction is {self.alignment_batch_fraction}; it must be above 0 and at most 1"
            )
        if self.alignment_batch_fraction * self.per_device_train_batch_size < 1:
            raise ValueError(
                f"alignment_batch_fraction {self.alignment_batch_fraction} of a batch of "
                f"{self.per_device_train_batch_size} is less than a sequence; take a larger fraction or batch"
            )
        for name in ("anchor_top_percent", "anchor_hysteresis_percent"):
            if not 0 <= getattr(self, name) <= 100:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 100")
        self._check_budget()

    def _check_budget(self):
        for name in BUDGET_ARGUMENTS:
            value = getattr(self, name)
            if name != "latency_table" and value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} is {value}; it must be a number above 0, or left out")
        for cost in ("params", "flops"):
            lowest, highest = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"min_{cost} is {lowest}, above max_{cost}, {highest}; swap them")
        if (self.max_latency_ms is None) != (self.latency_table is None):
            raise ValueError(
                f"max_latency_ms is {self.max_latency_ms} and latency_table is {self.latency_table}; give both, or "
                f"neither"
            )
