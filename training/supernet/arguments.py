"""The paper's hyper-parameters as training arguments."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .supernet_options import SupernetOptions


@dataclass
class MagicTrainingArguments(SupernetOptions, TrainingArguments):
    """`TrainingArguments` with the options of the paper, which `SupernetOptions` describes."""

    # Logits exist for masked positions only; their number differs from batch to batch, so they cannot be gathered.
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluation returns only the loss, because logits exist for masked tokens only."},
    )

    def __post_init__(self):
        TrainingArguments.__post_init__(self)
        if self.ddp_find_unused_parameters is None:
            # A step uses one operator per layer; the others have no gradient.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        if self.alignment_batch_fraction * self.per_device_train_batch_size < 1:
            raise ValueError(
                f"alignment_batch_fraction {self.alignment_batch_fraction} of a batch of "
                f"{self.per_device_train_batch_size} is less than one sequence; use a larger fraction or batch"
            )
        if self.num_substitutions_from is not None and self.sampler != "gradual":
            raise ValueError(
                f"num_substitutions_from is {self.num_substitutions_from}, but the sampler {self.sampler!r} does not "
                f"change a fixed number of operators; set sampler='gradual', or remove num_substitutions_from"
            )
        if self.alignment_weight_end is not None and self.alignment == "none":
            raise ValueError(
                f"alignment_weight_end is {self.alignment_weight_end}, but nothing is aligned; remove it, or set "
                f"alignment"
            )
        if self.anchor_challenger == "block" and self.alignment != "anchor":
            raise ValueError(
                f"anchor_challenger is 'block', but with alignment {self.alignment!r} no anchor is challenged; set "
                f"alignment='anchor', or remove anchor_challenger"
            )
        if self.latency_table is not None and self.max_latency_ms is None and self.min_latency_ms is None:
            raise ValueError(
                f"latency_table is {self.latency_table} but latency is not limited; set max_latency_ms, or remove "
                f"latency_table"
            )
