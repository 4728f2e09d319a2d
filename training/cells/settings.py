"""Settings of the analysis of cells."""

from dataclasses import dataclass
from typing import Any

from ..analysis.settings import MIN_CHILDREN
from ..options import MOST_SEED, Settings, option
from ..runs.settings import training_arguments_option
from .cell_space import OPERATORS


# The methods of training a super-net that are compared; the first is the reference.
METHODS: dict[str, dict[str, Any]] = {
    "SPOS": {"sampler": "uniform", "alignment": "none"},
    "FairNAS": {"sampler": "fair", "alignment": "none"},
    "MAGIC-T, k = 1": {"sampler": "gradual", "num_substitutions": 1, "alignment": "none"},
    "MAGIC-T, k = 2": {"sampler": "gradual", "num_substitutions": 2, "alignment": "none"},
    "MAGIC-T, k = 3": {"sampler": "gradual", "num_substitutions": 3, "alignment": "none"},
    "MAGIC-T, k = 6": {"sampler": "gradual", "num_substitutions": 6, "alignment": "none"},
    "MAGIC-A": {"sampler": "uniform", "alignment": "anchor"},
    "MAGIC-AT, k = 1": {"sampler": "gradual", "num_substitutions": 1, "alignment": "anchor"},
}


@dataclass(frozen=True)
class CellSettings(Settings):
    """Settings of one super-net of cells and its training; part of the settings of `magic-nas analyze cells`."""

    command = "analyze cells"

    images: str = option(
        "", flag="--images", help="Folder with train*.parquet, or a data set on the Hub such as uoft-cs/cifar10."
    )
    image_size: int | None = option(
        None,
        flag="--image-size",
        at_least=8,
        unit="pixels",
        help="Side length to reduce images to. Default: no reduction.",
    )
    num_validation_images: int = option(
        1000, at_least=1, unit="images", help="Number of training images held out to validate children on."
    )
    channels: int = option(8, flag="--channels", at_least=1, help="Channels of the first stage; 16 in the benchmark.")
    cells_per_stage: int = option(
        1, flag="--cells-per-stage", at_least=1, help="Cells in each of the three stages; 5 in the benchmark."
    )
    operators: tuple[str, ...] = option(
        OPERATORS,
        is_distinct=True,
        help="Operators of every edge; without `none`, the space consists of the 4,096 cells that have all edges.",
    )
    num_curve_points: int = option(
        5, at_least=0, help="How often the ranking is compared with the truth during training, including the end."
    )
    num_curve_children: int = option(
        200, at_least=MIN_CHILDREN, unit="children", help="Number of uniform children to measure the curve on."
    )
    training_arguments: dict[str, Any] = training_arguments_option(
        help="Training arguments of super-nets and of transformers. Defaults for cells: 50 epochs with batches of "
        "128, SGD with a cosine schedule from 0.1 after a warm-up over 5%, weight decay 0.0005, clipping at 5."
    )

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the training arguments of super-nets."""
        from ..supernet.arguments import MagicTrainingArguments

        return MagicTrainingArguments


@dataclass(frozen=True)
class CellSweepSettings(Settings):
    """Settings of the comparison of super-nets of cells; the keys of a recipe for `magic-nas analyze cells`."""

    command = "analyze cells"

    supernet: CellSettings = option(
        default_factory=CellSettings, is_inline=True, help="Settings shared by all super-nets."
    )
    table: str = option("", flag="--table", help="CSV file with the published accuracies and the cells as `arch`.")
    metric: str = option("c10_test_200ep", flag="--metric", help="Column of accuracies.")
    num_children: int = option(
        1000,
        flag="--num-children",
        # The better half of the children is ranked as well.
        at_least=2 * MIN_CHILDREN,
        unit="children",
        help="Number of uniform children to rank.",
    )
    sample_seed: int = option(0, help="Seed for drawing these children.")
    methods: dict[str, dict[str, Any]] = option(
        default_factory=lambda: dict(METHODS),
        help="Methods of training the super-net, by name, each with the training arguments that it changes; "
        "all are compared with the first. Default: SPOS, FairNAS, MAGIC-T with k = 1, 2, 3 and 6 (all edges), "
        "MAGIC-A and MAGIC-AT.",
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2, 3, 4),
        flag="--seed",
        at_least=0,
        at_most=MOST_SEED,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the super-nets of each method.",
    )
    equal_compute: bool = option(
        True,
        help="Give all super-nets the same compute as the first method, so that methods with alignment take fewer "
        "steps. Compute is counted in passes of a mean child; an anchor with many convolutions costs more.",
    )
    num_repeats: int = option(
        10, at_least=0, help="Number of draws of children and a batch to measure interference on; 0 to skip it."
    )
    num_resamples: int = option(2000, at_least=1, help="Number of bootstrap resamples.")

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the training arguments of super-nets."""
        return CellSettings.arguments_class()
