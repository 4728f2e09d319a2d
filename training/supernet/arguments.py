"""The paper's hyper-parameters as training arguments."""

from dataclasses import dataclass, field

from transformers import TrainingArguments

from .supernet_options import SupernetOptions


@dataclass
class MagicTrainingArguments(SupernetOptions, TrainingArguments):
    """`TrainingArguments` and what the paper adds to them, which `SupernetOptions` describes."""

    # Logits of masked positions only differ in number from batch to batch, so that they cannot be gathered.
    prediction_loss_only: bool = field(
        default=True,
        metadata={"help": "Evaluation returns the loss only, since there are logits of masked tokens only."},
    )

    def __post_init__(self):
        TrainingArguments.__post_init__(self)
        if self.ddp_find_unused_parameters is None:
            # A step uses one operator of each layer, the others have no gradient.
            self.ddp_find_unused_parameters = True
        super().__post_init__()
        if self.alignment_batch_fraction * self.per_device_train_batch_size < 1:
            raise ValueError(
                f"alignment_batch_fraction {self.alignment_batch_fraction} of a batch of "
                f"{self.per_device_train_batch_size} is less than a sequence; take a larger fraction or batch"
            )
        if self.num_substitutions_from is not None and self.sampler != "gradual":
            raise ValueError(
                f"num_substitutions_from is {self.num_substitutions_from}, but the sampler {self.sampler!r} changes "
                f"no fixed number of operators; take sampler='gradual', or leave it out"
            )
        if self.alignment_weight_end is not None and self.alignment == "none":
            raise ValueError(
                f"alignment_weight_end is {self.alignment_weight_end}, but nothing is aligned; leave it out, or set "
                f"alignment"
            )
        if self.anchor_challenger == "block" and self.alignment != "anchor":
            raise ValueError(
                f"anchor_challenger is 'block', but alignment is {self.alignment!r}, under which nothing challenges "
                f"an anchor; set alignment='anchor', or leave it out"
            )
        if self.latency_table is not None and self.max_latency_ms is None and self.min_latency_ms is None:
            raise ValueError(
                f"latency_table is {self.latency_table} but no latency is limited; give max_latency_ms, or leave the "
                f"table out"
            )
