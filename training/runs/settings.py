"""Options that several runs share."""

from dataclasses import replace
from typing import Any

from ..options import Argument, Option, option


# Training arguments of transformers that have flags; their defaults are those of transformers where a recipe has none.
TRAINING_FLAGS = {
    "max_steps": Argument(int, "as many as the epochs take", Option(flag="--max-steps", help="Optimizer steps.")),
    "per_device_train_batch_size": Argument(
        int, 8, Option(flag="--batch-size", unit="sequences", help="Micro-batch of each device.")
    ),
    "learning_rate": Argument(float, 5e-5, Option(flag="--learning-rate", help="Peak learning rate.")),
    "seed": Argument(int, 42, Option(flag="--seed", help="Seed of weights, data order, masks and children.")),
}
# Of a training on masked tokens whose length nobody names. The alignment of a super-net begins after three epochs.
EPOCHS, SUPERNET_EPOCHS, FEWEST_STEPS = 3, 9, 1000

# Of what trains on text with masked tokens: see `runs.training.pretraining_arguments`.
PRETRAINING_FLAGS = TRAINING_FLAGS | {
    "max_steps": replace(TRAINING_FLAGS["max_steps"], default=f"those of {EPOCHS} epochs, at least {FEWEST_STEPS}"),
    "learning_rate": Argument(
        float,
        "5e-4 * 768 / hidden_size, at most 2e-3",
        Option(
            flag="--learning-rate",
            help="Peak learning rate. Without one a tenth of the steps warm up, `weight_decay` is 0.01 and "
            "`adam_beta2` 0.98, unless they are given.",
        ),
    ),
}


def training_arguments_option(flags: dict[str, Argument] | None = None, help: str = "") -> Any:
    """Returns the field `training_arguments` of a class of settings.

    Args:
        flags: those that have flags, by name.
        help: what is special about them.
    """
    text = help or "Training arguments of transformers."
    return option(default_factory=dict, help=text, arguments=flags or {})


def mlm_probability_option() -> Any:
    """Returns the field `mlm_probability`."""
    return option(0.15, above=0, below=1, help="Share of the tokens that are masked.")


def validation_option(default: int = 256) -> Any:
    """Returns the field `num_validation_sequences`."""
    return option(
        default,
        at_least=1,
        unit="sequences",
        help="Held-out sequences that models are validated on, the same for all.",
    )
