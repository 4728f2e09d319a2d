"""Settings of a compression."""

from dataclasses import dataclass

from ..options import MOST_SEED, Settings, option


KINDS = ("sentence", "masked_lm", "sequence", "token", "span")
PRECISIONS = ("auto", "no", "bf16")
SEARCHERS = ("supernet", "additive")
SAMPLERS = ("budget", "uniform", "gradual")
ALIGNMENTS = ("none", "checkpoint")
IMPORTANCES = ("output", "norm")
OUTPUTS = ("least_squares", "copy")
CONTROLS = ("evenly_spaced_blocks", "one_width", "random")
# For each option of a budget the cost that it limits, and what names of folders call it.
LIMITS = {
    "max_latency": ("latency_ms", "latency"),
    "max_params": ("num_parameters", "params"),
    "max_flops": ("flops", "flops"),
}
_BUDGET = (
    "a share of the checkpoint's, such as 0.4x, or a number. Several values, separated by commas, give a family "
    "of models."
)


@dataclass(frozen=True)
class CompressSettings(Settings):
    """Settings of a compression; the keys of a recipe for `magic-nas compress`."""

    command = "compress"

    checkpoint: str = option(
        "",
        help="The encoder to compress: a folder or a name on the Hub. It is a sentence-transformers folder, or a "
        "BERT, RoBERTa, ELECTRA or MAGIC model with or without a head.",
    )
    kind: str | None = option(
        None,
        flag="--kind",
        choices=KINDS,
        help="What the checkpoint is used for. Default: read from its folder.",
    )
    text: tuple[str, ...] = option(
        (),
        flag="--text",
        splits=True,
        help="Unlabelled text like the text that the encoder will see: files, folders or names of data sets, "
        "separated by commas. Plain text has one sentence, paragraph or document per line.",
    )
    text_column: str = option("text", help="Text column of data files and data sets.")
    labels: str | None = option(
        None,
        flag="--labels",
        is_path=True,
        help="Labelled rows to train a classifier or regression model on in addition to the text: a file in the "
        "format of `--eval labels=FILE`.",
    )
    labels_weight: float = option(
        1.0,
        at_least=0,
        help="Weight of the loss of a labelled row against its label, relative to the loss against the checkpoint.",
    )
    num_sentences: int = option(
        50_000, flag="--num-sentences", at_least=100, unit="sentences", help="Largest number of training sentences."
    )
    num_validation_sentences: int = option(
        1000, at_least=10, unit="sentences", help="Held-out sentences for the final evaluation."
    )
    max_latency: tuple[str | float, ...] = option(
        (), flag="--max-latency", splits=True, help=f"Largest latency of the encoder on this machine: {_BUDGET}"
    )
    max_params: tuple[str | float, ...] = option(
        (), flag="--max-params", splits=True, help=f"Largest number of parameters, including embeddings: {_BUDGET}"
    )
    max_flops: tuple[str | float, ...] = option(
        (), flag="--max-flops", splits=True, help=f"Largest FLOPs for `latency_length` tokens: {_BUDGET}"
    )
    latency_length: int = option(64, at_least=2, unit="tokens", help="Sequence length for latency and FLOPs.")
    latency_batch_size: int = option(16, at_least=1, unit="sequences", help="Batch size for latency.")
    num_threads: int = option(
        1, flag="--num-threads", at_least=1, help="CPU threads of torch, for training and all measurements."
    )
    convolutions: tuple[str, ...] = option(
        (), splits=True, help="Operators such as CONV5 to add to the candidates of attention layers."
    )
    importance: str = option(
        "output",
        choices=IMPORTANCES,
        help="How heads and neurons are ranked: by output (their activation on text times the norm of what they add) "
        "or by norm (weights alone).",
    )
    output_maps: str = option(
        "least_squares",
        choices=OUTPUTS,
        help="Output maps of narrower operators: fitted to the checkpoint's by least_squares, or copied by copy.",
    )
    calibration_steps: int = option(
        100,
        at_least=0,
        unit="steps",
        help="Steps in which each new operator learns on its own from the checkpoint's states.",
    )
    calibration_learning_rate: float = option(1e-3, above=0, help="Peak learning rate of calibration.")
    searcher: str = option(
        "supernet",
        choices=SEARCHERS,
        help="How children are judged: by a super-net's shared weights, or by the sum of the errors of calibrated "
        "operators (additive), which finds the best child exactly and trains no super-net.",
    )
    supernet_steps: int = option(
        400, flag="--supernet-steps", at_least=1, unit="steps", help="Training steps of the super-net."
    )
    supernet_learning_rate: float = option(1e-3, above=0, help="Peak learning rate of the super-net.")
    sampler: str = option(
        "budget",
        choices=SAMPLERS,
        help="How the super-net's children are drawn: with the sizes of the budgets (budget), uniformly (uniform, "
        "SPOS) or gradually (gradual, MAGIC-T).",
    )
    alignment: str = option(
        "none",
        choices=ALIGNMENTS,
        help="Target of the hidden states of the super-net's children: the checkpoint's (MAGIC-A with the checkpoint "
        "as the anchor), or none.",
    )
    alignment_weight: float = option(0.5, at_least=0, help="Lambda of Eq. (2), if there is an alignment.")
    alignment_every_n_layers: int = option(4, at_least=1, help="Layers n, 2n, 3n, ... are aligned.")
    num_evaluations: int = option(
        100, at_least=1, unit="children", help="Children to judge for each budget, in addition to the initial ones."
    )
    num_search_sentences: int = option(
        256, at_least=10, unit="sentences", help="Held-out sentences for judging children in the search."
    )
    score_weight: float = option(
        0.0,
        at_least=0,
        help="Weight of the second score when a winner is chosen: the smallest loss - weight * score wins.",
    )
    steps: int = option(800, flag="--steps", at_least=1, unit="steps", help="Distillation steps of a winner.")
    equal_steps: bool = option(
        False,
        flag="--equal-steps/--no-equal-steps",
        help="Also distil the best drops for as many steps as the winner. In either case, all controls get the "
        "compute that the winner and its search took.",
    )
    controls: tuple[str, ...] = option(
        CONTROLS,
        choices=CONTROLS,
        is_distinct=True,
        help="Controls to distil in addition to the best drops of blocks and of layers, which are always distilled. "
        "Fewer controls take less time.",
    )
    learning_rate: float = option(1e-3, flag="--learning-rate", above=0, help="Peak learning rate of distillation.")
    batch_size: int = option(64, flag="--batch-size", at_least=1, unit="sentences", help="Batch size of all training.")
    states_weight: float = option(
        0.0,
        at_least=0,
        help="Weight of the distance between the last hidden states of a winner and of the checkpoint, added to the "
        "loss of its kind. Above 0 the checkpoint runs in every step.",
    )
    temperature: float = option(1.0, above=0, help="Temperature of the distributions over classes.")
    mlm_probability: float = option(0.15, above=0, below=1, help="Share of the tokens to mask for a masked LM.")
    top_k: int = option(64, at_least=1, help="Number of most likely tokens to keep of a masked LM's distribution.")
    precision: str = option(
        "auto",
        choices=PRECISIONS,
        help="Precision of training: bf16, no (float32), or auto (bf16 if the processor supports it natively).",
    )
    eval: tuple[str, ...] = option(
        (),
        flag="--eval",
        help="A task on which the checkpoint, the winners and the controls are scored at the end: NAME=FILE, such as "
        "stsb=dev.tsv, or docstrings, which takes 1,000 docstrings of the installed packages and looks up the body of "
        "each by its first sentence. The task is used neither for training nor for choosing.",
    )
    seed: int = option(
        0,
        flag="--seed",
        at_least=0,
        at_most=MOST_SEED,
        help="Seed of the text, the children, the order and the masks.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML reads 5000000 as a number.
        for name in LIMITS:
            object.__setattr__(self, name, tuple(map(_as_text, getattr(self, name))))

    def without_effect(self) -> dict[str, str]:
        """Returns the reason for each option that the other options leave without an effect, by its name."""
        found: dict[str, str] = {}
        if self.alignment == "none":
            found |= dict.fromkeys(("alignment_weight", "alignment_every_n_layers"), "with alignment=none")
        if self.searcher == "additive":
            of_supernet = ("supernet_steps", "supernet_learning_rate", "sampler", "alignment")
            found |= dict.fromkeys(of_supernet, "with searcher=additive, which trains no super-net")
        if self.labels is None:
            found["labels_weight"] = "without labels"
        return found


def _as_text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"
