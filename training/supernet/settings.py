"""Settings of a super-net's training."""

from dataclasses import dataclass, replace
from typing import Any

from ..data.settings import DataSettings
from ..options import Argument, Settings, default_of, option, options_of
from ..runs.settings import (
    FEWEST_STEPS,
    PRETRAINING_FLAGS,
    SUPERNET_EPOCHS,
    mlm_probability_option,
    training_arguments_option,
)
from ..space.settings import BudgetSettings
from .supernet_options import SupernetOptions


def _supernet_flags() -> dict[str, Argument]:
    """Returns the training arguments of a super-net that have flags."""
    hints = SupernetOptions.__annotations__ | BudgetSettings.__annotations__
    own = {
        item.name: Argument(hints[item.name], default_of(item), facts)
        for item, facts in options_of(SupernetOptions)
        if facts.flag is not None
    }
    length = f"those of {SUPERNET_EPOCHS} epochs, at least {FEWEST_STEPS}"
    return PRETRAINING_FLAGS | {"max_steps": replace(PRETRAINING_FLAGS["max_steps"], default=length)} | own


@dataclass(frozen=True)
class PretrainSettings(Settings):
    """Settings of a super-net run; the keys of a recipe for `magic-nas pretrain`."""

    command = "pretrain"

    preset: str = option(
        "magic-tiny",
        flag="--preset",
        help="Sizes and candidate operators of the super-net: a preset, a JSON file or a model folder.",
    )
    init_from: str | None = option(
        None,
        flag="--init-from",
        help="A BERT, RoBERTa, ELECTRA or MAGIC checkpoint (a folder, a run that holds one model, or a name on the "
        "Hub): operators that the super-net shares with it start from its weights. Default: random weights.",
    )
    mlm_probability: float = mlm_probability_option()
    data: DataSettings = option(default_factory=DataSettings, help="The training text.")
    training_arguments: dict[str, Any] = training_arguments_option(
        _supernet_flags(), "Training arguments for super-nets and those of transformers."
    )

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the training arguments of super-nets."""
        from .arguments import MagicTrainingArguments

        return MagicTrainingArguments


@dataclass(frozen=True)
class BlockwiseSettings(PretrainSettings):
    """Settings of a block-wise super-net run; the keys of a recipe for `magic-nas pretrain --blockwise`."""

    command = "pretrain --blockwise"

    teacher: str = option(
        "",
        flag="--blockwise",
        help="Train block by block to imitate this teacher (NAS-BERT's baseline): an encoder of any class with its "
        "tokenizer, given as a folder, a run that holds one model, or a name on the Hub. Text is tokenized with the "
        "teacher's tokenizer unless `data.tokenizer` is given.",
    )
    num_blocks: int = option(
        4,
        flag="--num-blocks",
        at_least=1,
        help="Number of blocks that super-net and teacher are cut into; 4 in NAS-BERT.",
    )
    num_ranked: int = option(10, at_least=1, help="How many of the best children within the budget the result lists.")
