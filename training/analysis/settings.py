"""What an analysis is asked to do."""

from dataclasses import dataclass
from typing import Any

from ..data.settings import DataSettings
from ..options import Settings, option
from ..runs.settings import PRETRAINING_FLAGS, mlm_probability_option, training_arguments_option, validation_option
from ..supernet.settings import PretrainSettings


MICRO_BENCHMARK = "micro-benchmark"
# Fewer say nothing about a ranking.
MIN_CHILDREN = 5
ALIGNMENTS = ("none", "anchor", "average")
SEQUENCES = ("train", "validation")


@dataclass(frozen=True)
class InterferenceSettings(Settings):
    """What an interference analysis does; the keys of a recipe for `magic-nas analyze interference`."""

    command = "analyze interference"

    supernet: str = option("", help="A finished super-net run, one of its checkpoints, or the folder of a super-net.")
    shared_layer: int = option(
        0, flag="--shared-layer", at_least=0, help="The layer of the shared operator o_g, counted from 0."
    )
    operator: str | None = option(
        None,
        flag="--operator",
        help="The shared operator o_g. Default: one of the layer's operators is drawn in each repeat, as in Fig. 2.",
    )
    first_differing_layer: int | None = option(
        None, at_least=0, help="The layer in which children differ when only one does. Default: the one above o_g."
    )
    max_differing_layers: int | None = option(
        None,
        flag="--max-differing-layers",
        at_least=1,
        help="The largest m of the curve. Default: as many as there are.",
    )
    alignment: str = option(
        "none",
        flag="--alignment",
        choices=ALIGNMENTS,
        help="The loss: none (the prediction loss), or Eq. (2) with an anchor or with the average of several random "
        "children (3.2).",
    )
    anchor: str | None = option(None, help="The anchor's operators. Default: the anchor of the super-net's run.")
    alignment_weight: float = option(0.5, at_least=0, help="Lambda of Eq. (2).")
    alignment_every_n_layers: int = option(4, at_least=1, help="Layers n, 2n, 3n, ... are aligned, counted from 1.")
    num_average_children: int = option(4, at_least=1, unit="children", help="Children whose states are averaged.")
    num_repeats: int = option(
        10,
        flag="--num-repeats",
        at_least=1,
        help="Draws of operator, children and batch; the intervals are over them.",
    )
    num_sequences: int = option(64, at_least=1, unit="sequences", help="Size of a batch.")
    micro_batch_size: int = option(16, at_least=1, unit="sequences", help="Sequences computed at a time.")
    sequences: str = option("train", choices=SEQUENCES, help="Where the batches are drawn from.")
    mlm_probability: float = mlm_probability_option()
    seed: int = option(0, flag="--seed", help="Seed of operators, children, batches and masks.")
    full_space: bool = option(
        False, help="Draw from all operators of a super-net, those that shrinking has deleted included."
    )
    device: str = option("cpu", help="The device as torch names it.")
    data: DataSettings = option(default_factory=DataSettings, help="The text. Default: that of the super-net's run.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor is not None and self.alignment != "anchor":
            raise ValueError(f"an anchor is given but alignment is {self.alignment!r}; set alignment to anchor")


@dataclass(frozen=True)
class StandaloneSettings(Settings):
    """Which children are trained one by one, and how; the keys of a recipe for `magic-nas analyze standalone`."""

    command = "analyze standalone"

    preset: str = option(
        "magic-tiny",
        flag="--preset",
        help="Sizes and candidate operators of the space: a preset, a JSON file or a model folder.",
    )
    architectures: tuple[str, ...] = option(
        (),
        flag="--architecture",
        help="Named children, such as a search's winner or a pattern to compare it with: (MHA4,FFN)*2. If any are "
        "named, none are drawn, and a folder of uniform children is refused.",
    )
    num_children: int = option(
        0,
        flag="--num-children",
        at_least=0,
        unit="children",
        help="Uniform children without repeats; 0 takes all of the space.",
    )
    sample_seed: int = option(0, help="Seed of the draw of uniform children.")
    seeds: tuple[int, ...] = option(
        (0,),
        flag="--seed",
        at_least=0,
        is_filled=True,
        is_distinct=True,
        help="Seeds of weights, order of the data and masks; every child is trained once with each.",
    )
    mlm_probability: float = mlm_probability_option()
    num_validation_sequences: int = validation_option()
    data: DataSettings = option(default_factory=DataSettings, help="The text.")
    training_arguments: dict[str, Any] = training_arguments_option(
        {name: argument for name, argument in PRETRAINING_FLAGS.items() if name != "seed"},
        "Training arguments of transformers, for every child.",
    )


def _truth_option(default: str | None) -> Any:
    return option(
        default,
        flag="--truth",
        help="A folder of `magic-nas analyze standalone`, a CSV or JSON file, or micro-benchmark, the package's own "
        "table.",
    )


@dataclass(frozen=True)
class JudgingSettings(Settings):
    """How super-nets are compared with children trained alone; rankings and sweeps add to it."""

    truth: str | None = _truth_option(None)
    accept_other_text: bool = option(
        False,
        flag="--accept-other-text",
        help="Take a truth whose children were trained on another text or with another tokenizer, such as "
        "micro-benchmark where its text is not at hand. What the text changes in the children's order then counts as "
        "an error of the ranking, and losses cannot be compared.",
    )
    metric: str = option(
        "val_loss", help="What children are compared by: val_loss, val_accuracy or a column of the file."
    )
    lower_is_better: bool | None = option(
        None, help="Whether lower values of a file's metric are better. Default: it follows from the name."
    )
    num_children: int | None = option(
        None,
        flag="--num-children",
        at_least=MIN_CHILDREN,
        unit="children",
        help="Uniform children to compare. Default: all of the truth, or 60 where children are trained here.",
    )
    sample_seed: int = option(0, help="Seed of the draw of uniform children.")
    top_k: tuple[int, ...] = option(
        (1, 5, 10), at_least=1, help="Sizes k of the top sets for which overlap and regret are reported."
    )
    num_resamples: int = option(2000, at_least=1, help="Number of bootstrap resamples.")
    num_validation_sequences: int = validation_option()
    batch_size: int = option(16, at_least=1, unit="sequences", help="Size of a validation batch.")


@dataclass(frozen=True)
class RankingSettings(JudgingSettings):
    """Which super-nets are compared with which truth; the keys of a recipe for `magic-nas analyze ranking`.

    Where `truth` is not given, children are trained here, `num_children` of them or 60.
    """

    command = "analyze ranking"

    supernets: tuple[str, ...] = option(
        (),
        flag="--supernet",
        splits=True,
        help="Finished super-net runs, or folders of super-nets.",
    )
    seeds: tuple[int, ...] = option(
        (0,),
        at_least=0,
        is_filled=True,
        is_distinct=True,
        help="Seeds with which each child is trained, where that is done here.",
    )
    mlm_probability: float = mlm_probability_option()
    data: DataSettings = option(
        default_factory=DataSettings, help="The text. Default: that of the first super-net's run."
    )
    training_arguments: dict[str, Any] = training_arguments_option(
        help="Training arguments of transformers for children that are trained here."
    )


@dataclass(frozen=True)
class SweepSettings(JudgingSettings):
    """Which super-nets are trained and compared with which truth; the keys of a recipe for `magic-nas analyze sweep`.

    Such a recipe has the keys of one for `magic-nas pretrain` too, which all super-nets share. Children are not
    trained here.
    """

    command = "analyze sweep"

    pretrain: PretrainSettings = option(
        default_factory=PretrainSettings, is_inline=True, help="What all super-nets have in common."
    )
    parameter: str = option(
        "num_substitutions",
        flag="--parameter",
        help="The training argument that is swept: num_substitutions (Fig. 4a), anchor_top_percent (Fig. 4b), "
        "alignment_weight, alignment_every_n_layers, ...",
    )
    values: tuple[Any, ...] = option((), flag="--value", is_distinct=True, help="Values of that argument.")
    references: dict[str, dict[str, Any]] = option(
        default_factory=dict,
        help="Other methods to show beside the curve, by name, each with the training arguments that it changes: "
        "{SPOS: {sampler: uniform, alignment: none}}.",
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2),
        flag="--seed",
        at_least=0,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the super-nets of each value and reference.",
    )
    equal_compute: bool = option(
        False,
        help="Give all super-nets the compute of the first value's, whose steps are `max_steps`, so that alignment is "
        "paid for with steps.",
    )
    truth: str | None = _truth_option(MICRO_BENCHMARK)
