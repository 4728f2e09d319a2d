"""What the analysis of cells is asked to do."""

from dataclasses import dataclass
from typing import Any

from ..analysis.settings import MIN_CHILDREN
from ..options import Settings, option
from ..runs.settings import training_arguments_option
from .cell_space import OPERATORS


# The ways to train a super-net that are compared with one another; the first is the reference.
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
    """What one super-net of cells is and how it is trained; part of the settings of `magic-nas analyze cells`."""

    command = "analyze cells"

    images: str = option(
        "", flag="--images", help="A folder with train*.parquet, or a data set on the Hub such as uoft-cs/cifar10."
    )
    image_size: int | None = option(
        None,
        flag="--image-size",
        at_least=8,
        unit="pixels",
        help="Size of a side that images are brought to. Default: their own.",
    )
    num_validation_images: int = option(
        1000, at_least=1, unit="images", help="Training images that are held out, on which children are validated."
    )
    channels: int = option(8, flag="--channels", at_least=1, help="Channels of the first stage; the benchmark has 16.")
    cells_per_stage: int = option(
        1, flag="--cells-per-stage", at_least=1, help="Cells of each of the three stages; the benchmark has 5."
    )
    operators: tuple[str, ...] = option(
        OPERATORS,
        is_distinct=True,
        help="Operators of every edge; without `none` the space is of the 4,096 cells that have all edges.",
    )
    num_curve_points: int = option(
        5, at_least=0, help="How often during training the ranking is compared with the truth, the end included."
    )
    num_curve_children: int = option(
        200, at_least=MIN_CHILDREN, unit="children", help="Uniform children that the curve is measured on."
    )
    training_arguments: dict[str, Any] = training_arguments_option(
        help="Training arguments of super-nets and of transformers. Defaults of cells: 50 epochs of batches of 128, "
        "SGD from 0.1 down a cosine, weight decay 0.0005, clipping at 5."
    )

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the training arguments of super-nets."""
        from ..supernet.arguments import MagicTrainingArguments

        return MagicTrainingArguments


@dataclass(frozen=True)
class CellSweepSettings(Settings):
    """Which super-nets of cells are compared with which table; the keys of a recipe for `magic-nas analyze cells`."""

    command = "analyze cells"

    supernet: CellSettings = option(
        default_factory=CellSettings, is_inline=True, help="What all super-nets have in common."
    )
    table: str = option("", flag="--table", help="The published accuracies, a CSV file with the cells as `arch`.")
    metric: str = option("c10_test_200ep", flag="--metric", help="The column of accuracies.")
    num_children: int = option(
        1000,
        flag="--num-children",
        # The better half of them is ranked as well.
        at_least=2 * MIN_CHILDREN,
        unit="children",
        help="Uniform children to rank.",
    )
    sample_seed: int = option(0, help="Seed of the draw of these children.")
    methods: dict[str, dict[str, Any]] = option(
        default_factory=lambda: dict(METHODS),
        help="Ways to train the super-net, by name, each with the training arguments that it changes; all are "
        "compared with the first. Default: SPOS, FairNAS, MAGIC-T with k from 1 to all, MAGIC-A and MAGIC-AT.",
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2, 3, 4),
        flag="--seed",
        at_least=0,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the super-nets of each method.",
    )
    equal_compute: bool = option(
        True,
        help="Give all super-nets the compute of the first method's, so that alignment is paid for with steps. It is "
        "counted in passes of a mean child; an anchor of many convolutions costs more.",
    )
    num_repeats: int = option(
        10, at_least=0, help="Draws of children and batch that interference is measured on; 0 measures none."
    )
    num_resamples: int = option(2000, at_least=1, help="Number of bootstrap resamples.")

    @classmethod
    def arguments_class(cls) -> type:
        """Returns the training arguments of super-nets."""
        return CellSettings.arguments_class()
