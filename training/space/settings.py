"""Settings of budgets and of latency measurements."""

from dataclasses import dataclass

from ..options import Settings, option
from ..tables import counted


@dataclass
class BudgetSettings(Settings):
    """Limits on the cost of an encoder: the keys of `budget` in a recipe. Costs without a limit are not restricted.

    This is also the base class of the training arguments of super-nets, so unlike other settings it cannot be frozen.
    """

    max_params: int | None = option(
        None,
        flag="--max-params",
        above=0,
        help="Largest number of parameters, including embeddings and masked-LM head.",
    )
    min_params: int | None = option(None, flag="--min-params", above=0, help="Smallest number of parameters.")
    max_flops: float | None = option(
        None,
        flag="--max-flops",
        above=0,
        help="Largest number of FLOPs of a forward pass over `sequence_length` tokens, counted as in ELECTRA, with "
        "the masked-LM head over every position.",
    )
    min_flops: float | None = option(
        None, flag="--min-flops", above=0, help="Smallest number of FLOPs, counted as for `max_flops`."
    )
    max_latency_ms: float | None = option(
        None,
        flag="--max-latency-ms",
        above=0,
        unit="ms",
        help="Largest latency predicted by `latency_table`, for the batch size and length it was measured with.",
    )
    min_latency_ms: float | None = option(
        None, flag="--min-latency-ms", above=0, unit="ms", help="Smallest latency predicted by `latency_table`."
    )
    max_activation_mb: float | None = option(
        None,
        flag="--max-activation-mb",
        above=0,
        unit="MiB",
        help="Largest activation memory for training on one sequence of `sequence_length` tokens.",
    )
    latency_table: str | None = option(
        None,
        flag="--latency-table",
        is_path=True,
        help="Latency table that `magic-nas benchmark` wrote on the target device.",
    )
    accept_noisy_latency: bool = option(
        False,
        flag="--accept-noisy-latency",
        help="Accept a `latency_table` with warnings: its measurement was disturbed, or its predictions are off.",
    )
    sequence_length: int | None = option(
        None,
        flag="--sequence-length",
        at_least=1,
        unit="tokens",
        help="Sequence length for counting FLOPs and activation memory. Default: 128 or the model's maximum, "
        "whichever is smaller.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for cost in ("params", "flops", "latency_ms"):
            lowest, highest = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"min_{cost} is {lowest}, above max_{cost}, {highest}; swap them")
        if self.latency_table is None and (self.max_latency_ms is not None or self.min_latency_ms is not None):
            raise ValueError(
                "latency is limited but no latency_table is given; measure one on this device with "
                "`magic-nas benchmark`, then pass it with --latency-table FILE"
            )


HEADS = ("none", "mlm", "rtd")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LatencySettings(Settings):
    """The device, the workload and the method of a latency measurement; the flags of `magic-nas benchmark`."""

    command = "benchmark"

    device: str = option("cpu", flag="--device", help="Device, by its torch name: cpu, cuda, cuda:1 or mps.")
    dtype: str = option("float32", flag="--dtype", choices=DTYPES, help="Data type of weights and activations.")
    num_threads: int = option(1, flag="--num-threads", at_least=1, help="Number of CPU threads that torch uses.")
    batch_size: int = option(
        1, flag="--batch-size", at_least=1, unit="sequences", help="Number of sequences per call."
    )
    seq_len: int = option(
        128,
        flag="--sequence-length",
        at_least=1,
        unit="tokens",
        help="Length of each sequence, without padding; at most the model's maximum.",
    )
    head: str = option(
        "none",
        flag="--head",
        choices=HEADS,
        help="Head on top of the encoder: none (MagicModel), mlm (MagicForMaskedLM, over every position) or rtd "
        "(MagicForPreTraining).",
    )
    min_run_time: float = option(
        0.15,
        above=0,
        unit="s",
        help="Minimum total time to measure the slowest child, over all rounds; there are at least five rounds.",
    )
    seed: int = option(0, help="Seed for weights, tokens, children and the order of the timed blocks.")

    def __str__(self) -> str:
        return (
            f"{self.batch_size} x {self.seq_len} tokens without padding, head {self.head}, {self.dtype}, "
            f"{self.device}, {counted(self.num_threads, 'CPU thread')}"
        )
