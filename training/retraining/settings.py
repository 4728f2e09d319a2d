"""What the training of one child is asked to do."""

from dataclasses import dataclass
from typing import Any

from ..data.settings import DataSettings
from ..distillation.settings import distillation_weight_option, temperature_option
from ..options import Settings, option
from ..runs.settings import (
    PRETRAINING_FLAGS,
    mlm_probability_option,
    training_arguments_option,
    validation_option,
)


@dataclass(frozen=True)
class RetrainSettings(Settings):
    """What the training of one child does; the keys of a recipe for `magic-nas retrain`."""

    command = "retrain"

    preset: str = option(
        "magic-tiny",
        flag="--preset",
        help="Sizes of the model: a preset, a JSON file or a model folder. Its operators are replaced by the "
        "architecture's.",
    )
    architecture: str = option(
        "", flag="--architecture", help="The child, one operator a layer: MHA4,FFN,... or (MHA4,FFN)*3."
    )
    inherit: str | None = option(
        None, help="Folder of a super-net whose weights the child starts from. Default: random weights."
    )
    mlm_probability: float = mlm_probability_option()
    num_validation_sequences: int = validation_option()
    data: DataSettings = option(default_factory=DataSettings, help="The text.")
    training_arguments: dict[str, Any] = training_arguments_option(PRETRAINING_FLAGS)


# The generator's width beside the discriminator's, and the weight of the discriminator's loss, in ELECTRA.
GENERATOR_FRACTION = 1 / 3
RTD_WEIGHT = 50.0


@dataclass(frozen=True)
class RtdSettings(RetrainSettings):
    """What replaced-token detection of one child does; a recipe for `magic-nas retrain --objective rtd`."""

    command = "retrain --objective rtd"

    generator_fraction: float = option(
        GENERATOR_FRACTION, above=0, at_most=1, help="Width of the generator as a share of the discriminator's."
    )
    generator_architecture: str = option(
        "", help="The generator's operators in its own sizes. Default: the discriminator's, scaled."
    )
    rtd_weight: float = option(
        RTD_WEIGHT, at_least=0, help="Weight of the discriminator's loss; the generator's has weight 1."
    )


@dataclass(frozen=True)
class DistillSettings(RetrainSettings):
    """What the distillation of one child in pre-training does; a recipe for `magic-nas retrain --teacher`."""

    command = "retrain --teacher"

    teacher: str = option(
        "",
        flag="--teacher",
        help="Distil from this masked LM of any class with its tokenizer: a run of `magic-nas retrain`, a folder or a "
        "name on the Hub. The text is tokenized with its tokenizer unless `data.tokenizer` is given.",
    )
    distillation_weight: float = distillation_weight_option()
    temperature: float = temperature_option()
    teacher_top_k: int | None = option(
        None,
        at_least=1,
        help="Number of the teacher's likeliest tokens that are kept; all others are merged into one, and what the "
        "teacher says about them is lost, which is most of it where the teacher is unsure. Default: all are kept.",
    )
    cache_teacher: bool = option(
        False,
        help="Keep the teacher's outputs on disk, under $MAGIC_CACHE or ~/.cache/magic-nas, for other runs with the "
        "same text, seed and batch size. A masked token takes 2 bytes for each token of the vocabulary, or 4 or 6 for "
        "each of the `teacher_top_k`.",
    )
