"""Options shared by several runs."""

from dataclasses import replace
from typing import Any

from ..options import Argument, Option, option


# Training arguments of transformers that have flags; the defaults are those of transformers unless a recipe sets them.
TRAINING_FLAGS = {
    "max_steps": Argument(int, "as many as the epochs take", Option(flag="--max-steps", help="Optimizer steps.")),
    "per_device_train_batch_size": Argument(
        int, 8, Option(flag="--batch-size", unit="sequences", help="Size of the micro-batch on each device.")
    ),
    "learning_rate": Argument(float, 5e-5, Option(flag="--learning-rate", help="Peak learning rate.")),
    "seed": Argument(int, 42, Option(flag="--seed", help="Seed of weights, data order, masks and children.")),
}
# Length of a masked-LM training if none is given. The alignment of a super-net begins after three epochs.
EPOCHS, SUPERNET_EPOCHS, FEWEST_STEPS = 3, 9, 1000

# Flags of trainings on text with masked tokens, see `runs.training.pretraining_arguments`.
PRETRAINING_FLAGS = TRAINING_FLAGS | {
    "max_steps": replace(TRAINING_FLAGS["max_steps"], default=f"those of {EPOCHS} epochs, at least {FEWEST_STEPS}"),
    "learning_rate": Argument(
        float,
        "5e-4 * 768 / hidden_size, at most 2e-3",
        Option(
            flag="--learning-rate",
            help="Peak learning rate. If it is not given, the defaults also change: warm-up over a tenth of the "
            "steps, `weight_decay` 0.01 and `adam_beta2` 0.98.",
        ),
    ),
}


def training_arguments_option(flags: dict[str, Argument] | None = None, help: str = "") -> Any:
    """Returns the field `training_arguments` of a class of settings.

    Args:
        flags: the training arguments that have flags, by name.
        help: text to show instead of the default.
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
        help="Number of held-out sequences for validation, the same ones for all models.",
    )


def early_stopping_patience_option(unit: str, help: str) -> Any:
    """Returns the field `early_stopping_patience`, which counts in `unit`."""
    return option(None, flag="--early-stopping-patience", at_least=1, unit=unit, help=help)


def early_stopping_threshold_option(scale: str) -> Any:
    """Returns the field `early_stopping_threshold`; `scale` describes the range of the metrics."""
    text = f"With `early_stopping_patience`: minimum improvement of the metric over the best so far; {scale}."
    return option(0.0, at_least=0, help=text)


def check_early_stopping(patience: int | None, threshold: float) -> None:
    """Raises a ValueError if a threshold is given without a patience."""
    if threshold and patience is None:
        raise ValueError(
            f"early_stopping_threshold is {threshold:g}, but early stopping is off; set early_stopping_patience, or "
            f"remove early_stopping_threshold"
        )
