"""What a compression is asked to do."""

from dataclasses import dataclass

from ..options import Settings, option


KINDS = ("sentence", "masked_lm", "sequence", "token", "span")
PRECISIONS = ("auto", "no", "bf16")
SEARCHERS = ("supernet", "additive")
SAMPLERS = ("budget", "uniform", "gradual")
ALIGNMENTS = ("none", "teacher")
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
    "a share of the checkpoint's, such as 0.4x, or a number. Several values, with commas between them, give a family "
    "of models."
)


@dataclass(frozen=True)
class CompressSettings(Settings):
    """What a compression does; the keys of a recipe for `magic-nas compress`."""

    command = "compress"

    checkpoint: str = option(
        "",
        help="The encoder to compress: a folder or a name on the Hub. A sentence-transformers folder, or a BERT, "
        "RoBERTa, ELECTRA or MAGIC model with or without a head.",
    )
    kind: str | None = option(
        None,
        flag="--kind",
        choices=KINDS,
        help="What the checkpoint is used as. Default: what its folder says.",
    )
    text: tuple[str, ...] = option(
        (),
        flag="--text",
        splits=True,
        help="Unlabelled text like that which the encoder will see: files, folders or names of data sets, with commas "
        "between them. Plain text has a sentence, a paragraph or a document a line.",
    )
    text_column: str = option("text", help="Column of data files and data sets that holds the text.")
    labels: str | None = option(
        None,
        flag="--labels",
        is_path=True,
        help="Labelled rows that a classifier or regression model is trained on beside the text: a file as "
        "`--eval labels=FILE` takes it.",
    )
    labels_weight: float = option(
        1.0,
        at_least=0,
        help="Weight of the loss of a labelled row against its label, beside that against the teacher.",
    )
    num_sentences: int = option(
        50_000, flag="--num-sentences", at_least=100, unit="sentences", help="Sentences to train on at most."
    )
    num_validation_sentences: int = option(
        1000, at_least=10, unit="sentences", help="Held-out sentences that models are judged by in the end."
    )
    max_latency: tuple[str | float, ...] = option(
        (), flag="--max-latency", splits=True, help=f"Largest latency of the encoder on this machine: {_BUDGET}"
    )
    max_params: tuple[str | float, ...] = option(
        (), flag="--max-params", splits=True, help=f"Most parameters of the encoder, embeddings included: {_BUDGET}"
    )
    max_flops: tuple[str | float, ...] = option(
        (), flag="--max-flops", splits=True, help=f"Most FLOPs of `latency_length` tokens: {_BUDGET}"
    )
    latency_length: int = option(
        64, at_least=2, unit="tokens", help="Length of the sequences that latency and FLOPs are of."
    )
    latency_batch_size: int = option(
        16, at_least=1, unit="sequences", help="Sequences in a call whose latency is limited."
    )
    num_threads: int = option(
        1, flag="--num-threads", at_least=1, help="CPU threads of torch, in training and in all measurements."
    )
    convolutions: tuple[str, ...] = option(
        (), splits=True, help="Operators such as CONV5 that attention layers offer as well."
    )
    importance: str = option(
        "output",
        choices=IMPORTANCES,
        help="What heads and neurons are chosen by: output (activation on text times the norm of what they add) or "
        "norm (weights alone).",
    )
    output_maps: str = option(
        "least_squares",
        choices=OUTPUTS,
        help="Output maps of narrower operators: fitted to the teacher's by least_squares, or copy.",
    )
    calibration_steps: int = option(
        100, at_least=0, unit="steps", help="Steps in which each new operator alone learns from the teacher's states."
    )
    calibration_learning_rate: float = option(1e-3, above=0, help="Peak learning rate of calibration.")
    searcher: str = option(
        "supernet",
        choices=SEARCHERS,
        help="How children are judged: by a supernet's shared weights, or by the additive error of calibrated "
        "operators, whose best child is found exactly and trains no super-net.",
    )
    supernet_steps: int = option(
        400, flag="--supernet-steps", at_least=1, unit="steps", help="Steps of the super-net."
    )
    supernet_learning_rate: float = option(1e-3, above=0, help="Peak learning rate of the super-net.")
    sampler: str = option(
        "budget",
        choices=SAMPLERS,
        help="How the super-net's children are drawn: of the budgets' sizes (budget), uniform (SPOS) or gradual "
        "(MAGIC-T).",
    )
    alignment: str = option(
        "none",
        choices=ALIGNMENTS,
        help="What the hidden states of the super-net's children are pulled towards: the teacher's (MAGIC-A with the "
        "teacher as the anchor) or none.",
    )
    alignment_weight: float = option(0.5, at_least=0, help="Lambda of Eq. (2), with an alignment.")
    alignment_every_n_layers: int = option(4, at_least=1, help="Layers n, 2n, 3n, ... are aligned.")
    num_evaluations: int = option(
        100, at_least=1, unit="children", help="Children that are judged for each budget, beside those to begin with."
    )
    num_search_sentences: int = option(
        256, at_least=10, unit="sentences", help="Held-out sentences that children are judged on in the search."
    )
    score_weight: float = option(
        0.0,
        at_least=0,
        help="Weight of the second score, beside the loss, by which a winner is chosen: loss - weight * score.",
    )
    steps: int = option(800, flag="--steps", at_least=1, unit="steps", help="Steps of a winner's distillation.")
    equal_steps: bool = option(
        False,
        flag="--equal-steps/--no-equal-steps",
        help="Distil the best drops for as many steps as the winner as well. Without it, as with it, all controls are "
        "given the compute that the winner and its search have cost.",
    )
    controls: tuple[str, ...] = option(
        CONTROLS,
        choices=CONTROLS,
        is_distinct=True,
        help="Controls that are distilled beside the best drops of blocks and of layers, which always are. Fewer of "
        "them take less time.",
    )
    learning_rate: float = option(1e-3, flag="--learning-rate", above=0, help="Peak learning rate of distillation.")
    batch_size: int = option(64, flag="--batch-size", at_least=1, unit="sentences", help="Batch of every training.")
    states_weight: float = option(
        0.0,
        at_least=0,
        help="Weight of the distance of a winner's last hidden states to the teacher's, beside the loss of its kind; "
        "above 0 the teacher is run in every step.",
    )
    temperature: float = option(1.0, above=0, help="Temperature of distributions over classes.")
    mlm_probability: float = option(
        0.15, above=0, below=1, help="Share of the tokens that are masked, of a masked LM."
    )
    teacher_top_k: int = option(64, at_least=1, help="Likeliest tokens kept of a masked LM's distribution.")
    precision: str = option(
        "auto",
        choices=PRECISIONS,
        help="Precision of training: bf16, no (float32), or auto: bf16 where the processor has units for it.",
    )
    eval: tuple[str, ...] = option(
        (),
        flag="--eval",
        help="A task that teacher, winners and controls are scored on in the end, as NAME=FILE, such as "
        "stsb=dev.tsv, or docstrings: of 1,000 docstrings of the installed packages the body is found by the first "
        "sentence. Nothing is trained on it or chosen by it.",
    )
    seed: int = option(0, flag="--seed", at_least=0, help="Seed of the text, the children, the order and the masks.")

    def __post_init__(self) -> None:
        super().__post_init__()
        # YAML reads 5000000 as a number.
        for name in LIMITS:
            object.__setattr__(self, name, tuple(map(_as_text, getattr(self, name))))


def _as_text(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.15g}"
