"""Settings for training one child."""

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
    """Settings of the training of one child; the keys of a recipe for `magic-nas retrain`."""

    command = "retrain"

    preset: str = option(
        "magic-tiny",
        flag="--preset",
        help="Sizes of the model: a preset, a JSON file or a model folder. Its operators are replaced by those of "
        "the architecture.",
    )
    architecture: str = option(
        "", flag="--architecture", help="Child to train, one operator per layer: MHA4,FFN,... or (MHA4,FFN)*3."
    )
    inherit: str | None = option(
        None, help="Folder of a super-net to initialize the child from. Default: random weights."
    )
    mlm_probability: float = mlm_probability_option()
    num_validation_sequences: int = validation_option()
    data: DataSettings = option(default_factory=DataSettings, help="Text to train on.")
    training_arguments: dict[str, Any] = training_arguments_option(PRETRAINING_FLAGS)


# ELECTRA's width of the generator relative to the discriminator, and its weight of the discriminator's loss.
GENERATOR_FRACTION = 1 / 3
RTD_WEIGHT = 50.0


@dataclass(frozen=True)
class RtdSettings(RetrainSettings):
    """Settings of replaced-token detection for one child; a recipe for `magic-nas retrain --objective rtd`."""

    command = "retrain --objective rtd"

    generator_fraction: float = option(
        GENERATOR_FRACTION, above=0, at_most=1, help="Width of the generator as a fraction of the discriminator's."
    )
    generator_architecture: str = option(
        "", help="Operators of the generator, in its own sizes. Default: those of the discriminator, scaled."
    )
    rtd_weight: float = option(
        RTD_WEIGHT, at_least=0, help="Weight of the discriminator's loss; the generator's has weight 1."
    )


@dataclass(frozen=True)
class DistillSettings(RetrainSettings):
    """Settings of distilling one child in pre-training; a recipe for `magic-nas retrain --teacher`."""

    command = "retrain --teacher"

    teacher: str = option(
        "",
        flag="--teacher",
        help="Masked LM to distil from, of any class, with its tokenizer, given as a folder, a run that holds one "
        "model, or a name on the Hub. The text is tokenized with its tokenizer unless `data.tokenizer` is given.",
    )
    distillation_weight: float = distillation_weight_option()
    temperature: float = temperature_option()
    teacher_top_k: int | None = option(
        None,
        at_least=1,
        help="Number of the teacher's most likely tokens to keep. All others are merged into one, which loses what "
        "the teacher predicts about them: most of its prediction if it is unsure. Default: keep all.",
    )
    cache_teacher: bool = option(
        False,
        help="Cache the teacher's outputs on disk, under $MAGIC_CACHE or ~/.cache/magic-nas, for other runs with the "
        "same text, seed and batch size. A masked token takes 2 bytes per token of the vocabulary, or 4 or 6 bytes "
        "for each of the `teacher_top_k`.",
    )
