"""Settings of the analyses."""

from dataclasses import dataclass
from typing import Any

from ..data.settings import DataSettings
from ..options import MOST_SEED, Settings, option
from ..runs.settings import PRETRAINING_FLAGS, mlm_probability_option, training_arguments_option, validation_option
from ..supernet.settings import PretrainSettings


MICRO_BENCHMARK = "micro-benchmark"
# A ranking of fewer children says nothing.
MIN_CHILDREN = 5
ALIGNMENTS = ("none", "anchor", "average")
SEQUENCES = ("train", "validation")


@dataclass(frozen=True)
class InterferenceSettings(Settings):
    """Settings of an interference analysis: the keys of a recipe for `magic-nas analyze interference`."""

    command = "analyze interference"

    supernet: str = option("", help="A finished super-net run, one of its saved states, or the folder of a super-net.")
    shared_layer: int = option(
        0, flag="--shared-layer", at_least=0, help="The layer of the shared operator o_g, counted from 0."
    )
    operator: str | None = option(
        None,
        flag="--operator",
        help="The shared operator o_g. Default: each repeat draws one of the layer's operators, as in Fig. 2.",
    )
    first_differing_layer: int | None = option(
        None,
        at_least=0,
        help="The layer in which children differ when they differ in only one. Default: the layer above o_g.",
    )
    max_differing_layers: int | None = option(
        None,
        flag="--max-differing-layers",
        at_least=1,
        help="The largest m of the curve. Default: all layers with a choice of operators.",
    )
    alignment: str = option(
        "none",
        flag="--alignment",
        choices=ALIGNMENTS,
        help="The loss: none (the prediction loss alone), or Eq. (2) with an anchor or with the average of several "
        "random children (3.2).",
    )
    anchor: str | None = option(None, help="The anchor's operators. Default: the anchor of the super-net's run.")
    alignment_weight: float = option(0.5, at_least=0, help="Lambda of Eq. (2).")
    alignment_every_n_layers: int = option(4, at_least=1, help="Layers n, 2n, 3n, ... are aligned, counted from 1.")
    num_average_children: int = option(
        4, at_least=1, unit="children", help="Number of children whose states are averaged."
    )
    num_repeats: int = option(
        10,
        flag="--num-repeats",
        at_least=1,
        help="Number of repeats. Each draws an operator, children and a batch; intervals are computed over repeats.",
    )
    num_sequences: int = option(64, at_least=1, unit="sequences", help="Sequences in a batch.")
    micro_batch_size: int = option(16, at_least=1, unit="sequences", help="Sequences computed at a time.")
    sequences: str = option("train", choices=SEQUENCES, help="The split that batches are drawn from.")
    mlm_probability: float = mlm_probability_option()
    seed: int = option(0, flag="--seed", help="Seed of operators, children, batches and masks.")
    full_space: bool = option(
        False, help="Draw from all operators of a super-net, including those that shrinking has deleted."
    )
    device: str = option("cpu", help="A torch device, such as cpu or cuda:0.")
    data: DataSettings = option(
        default_factory=DataSettings, help="The text. Default: the text of the super-net's run."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.anchor is not None and self.alignment != "anchor":
            raise ValueError(f"an anchor is given but alignment is {self.alignment!r}; set alignment to anchor")


@dataclass(frozen=True)
class StandaloneSettings(Settings):
    """Settings for training children one by one: the keys of a recipe for `magic-nas analyze standalone`."""

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
        "named, none are drawn, and a folder that holds uniform children is rejected.",
    )
    num_children: int = option(
        0,
        flag="--num-children",
        at_least=0,
        unit="children",
        help="Number of distinct children to draw uniformly; 0 takes the whole space.",
    )
    sample_seed: int = option(0, help="Seed for drawing uniform children.")
    seeds: tuple[int, ...] = option(
        (0,),
        flag="--seed",
        at_least=0,
        at_most=MOST_SEED,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the weights, the order of the data and the masks. Every child is trained once with each seed.",
    )
    mlm_probability: float = mlm_probability_option()
    num_validation_sequences: int = validation_option()
    data: DataSettings = option(default_factory=DataSettings, help="The text.")
    training_arguments: dict[str, Any] = training_arguments_option(
        {name: argument for name, argument in PRETRAINING_FLAGS.items() if name != "seed"},
        "Training arguments of transformers, the same for every child.",
    )


def _truth_option(default: str | None) -> Any:
    return option(
        default,
        flag="--truth",
        help="The truth: a folder of `magic-nas analyze standalone`, a CSV or JSON file, or micro-benchmark for the "
        "package's own table.",
    )


@dataclass(frozen=True)
class JudgingSettings(Settings):
    """Settings for comparing super-nets with children trained alone, shared by rankings and sweeps."""

    truth: str | None = _truth_option(None)
    accept_other_text: bool = option(
        False,
        flag="--accept-other-text",
        help="Accept a truth whose children were trained on another text or with another tokenizer, such as "
        "micro-benchmark if its text is not available. Differences in the children's order that are due to the text "
        "then count as errors of the ranking, and losses cannot be compared.",
    )
    metric: str = option("val_loss", help="The metric of the truth: val_loss, val_accuracy or a column of the file.")
    lower_is_better: bool | None = option(
        None, help="Whether lower values of a file's metric are better. Default: derived from its name."
    )
    num_children: int | None = option(
        None,
        flag="--num-children",
        at_least=MIN_CHILDREN,
        unit="children",
        help="Number of uniformly drawn children to compare. Default: all children of the truth, or 60 if children "
        "are trained here.",
    )
    sample_seed: int = option(0, help="Seed for drawing uniform children.")
    top_k: tuple[int, ...] = option(
        (1, 5, 10), at_least=1, help="Sizes k of the top sets for which overlap and regret are reported."
    )
    num_resamples: int = option(2000, at_least=1, help="Number of bootstrap resamples.")
    num_validation_sequences: int = validation_option()
    batch_size: int = option(16, at_least=1, unit="sequences", help="Sequences in a validation batch.")


@dataclass(frozen=True)
class RankingSettings(JudgingSettings):
    """Settings for comparing super-nets with a truth: the keys of a recipe for `magic-nas analyze ranking`.

    Without a `truth`, children are trained here: `num_children` of them, or 60 by default.
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
        at_most=MOST_SEED,
        is_filled=True,
        is_distinct=True,
        help="Seeds with which each child is trained, if children are trained here.",
    )
    mlm_probability: float = mlm_probability_option()
    data: DataSettings = option(
        default_factory=DataSettings, help="The text. Default: the text of the first super-net's run."
    )
    training_arguments: dict[str, Any] = training_arguments_option(
        help="Training arguments of transformers for children that are trained here."
    )


@dataclass(frozen=True)
class SweepSettings(JudgingSettings):
    """Settings of a sweep: the keys of a recipe for `magic-nas analyze sweep`.

    A sweep trains super-nets and compares them with a truth. The recipe also takes the keys of one for
    `magic-nas pretrain`, which apply to all super-nets. No children are trained alone.
    """

    command = "analyze sweep"

    pretrain: PretrainSettings = option(
        default_factory=PretrainSettings, is_inline=True, help="The settings that all super-nets share."
    )
    parameter: str = option(
        "num_substitutions",
        flag="--parameter",
        help="The training argument to sweep: num_substitutions (Fig. 4a), anchor_top_percent (Fig. 4b), "
        "alignment_weight, alignment_every_n_layers, ...",
    )
    values: tuple[Any, ...] = option((), flag="--value", is_distinct=True, help="Values of that argument.")
    references: dict[str, dict[str, Any]] = option(
        default_factory=dict,
        help="Other methods to show next to the curve, by name, each with the training arguments that it changes: "
        "{SPOS: {sampler: uniform, alignment: none}}.",
    )
    seeds: tuple[int, ...] = option(
        (0, 1, 2),
        flag="--seed",
        at_least=0,
        at_most=MOST_SEED,
        is_filled=True,
        is_distinct=True,
        help="Seeds of the super-nets. Each value and reference has one super-net per seed.",
    )
    equal_compute: bool = option(
        False,
        help="Give all super-nets the compute that the first value's take for `max_steps` steps. A method with "
        "alignment then trains for fewer steps.",
    )
    truth: str | None = _truth_option(MICRO_BENCHMARK)
