"""What an encoder may cost, and what latency is measured on."""

from dataclasses import dataclass

from ..options import Settings, option
from ..tables import counted


@dataclass
class BudgetSettings(Settings):
    """What an encoder may cost; the keys of `budget` in a recipe. A limit that is not given does not bind.

    It is the base of the training arguments of super-nets too, and so cannot be frozen as other settings are.
    """

    max_params: int | None = option(
        None,
        flag="--max-params",
        above=0,
        help="Largest number of parameters, embeddings and masked-LM head included.",
    )
    min_params: int | None = option(None, flag="--min-params", above=0, help="Smallest number of parameters.")
    max_flops: float | None = option(
        None,
        flag="--max-flops",
        above=0,
        help="Most FLOPs of a forward pass over `sequence_length` tokens, counted as ELECTRA does, with the masked-LM "
        "head over every position.",
    )
    min_flops: float | None = option(None, flag="--min-flops", above=0, help="Fewest FLOPs, counted the same way.")
    max_latency_ms: float | None = option(
        None,
        flag="--max-latency-ms",
        above=0,
        unit="ms",
        help="Largest latency that `latency_table` predicts, for the batch and the length it was measured with.",
    )
    min_latency_ms: float | None = option(
        None, flag="--min-latency-ms", above=0, unit="ms", help="Smallest latency that `latency_table` predicts."
    )
    max_activation_mb: float | None = option(
        None,
        flag="--max-activation-mb",
        above=0,
        unit="MiB",
        help="Most activation memory that training one sequence of `sequence_length` tokens takes.",
    )
    latency_table: str | None = option(
        None,
        flag="--latency-table",
        is_path=True,
        help="A file that `magic-nas benchmark` wrote on the target device.",
    )
    accept_noisy_latency: bool = option(
        False,
        flag="--accept-noisy-latency",
        help="Take a `latency_table` whose measurement was disturbed or whose predictions are off, as its own "
        "warnings say.",
    )
    sequence_length: int | None = option(
        None,
        flag="--sequence-length",
        at_least=1,
        unit="tokens",
        help="Length for which FLOPs and activations are counted. Default: 128 or the model's longest, whichever is "
        "shorter.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for cost in ("params", "flops", "latency_ms"):
            lowest, highest = getattr(self, f"min_{cost}"), getattr(self, f"max_{cost}")
            if lowest is not None and highest is not None and lowest > highest:
                raise ValueError(f"min_{cost} is {lowest}, above max_{cost}, {highest}; swap them")
        if self.latency_table is None and (self.max_latency_ms is not None or self.min_latency_ms is not None):
            raise ValueError(
                "a latency is limited but no latency_table is given; measure one on this device with "
                "`magic-nas benchmark`, then give it with --latency-table FILE"
            )


HEADS = ("none", "mlm", "rtd")
DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class LatencySettings(Settings):
    """What latency is measured on, and how; the flags of `magic-nas benchmark`."""

    command = "benchmark"

    device: str = option("cpu", flag="--device", help="The device as torch names it: cpu, cuda, cuda:1, mps.")
    dtype: str = option("float32", flag="--dtype", choices=DTYPES, help="Type of weights and activations.")
    num_threads: int = option(1, flag="--num-threads", at_least=1, help="CPU threads of torch.")
    batch_size: int = option(1, flag="--batch-size", at_least=1, unit="sequences", help="Sequences in a call.")
    seq_len: int = option(
        128,
        flag="--sequence-length",
        at_least=1,
        unit="tokens",
        help="Length of each sequence, without padding; at most the model's longest.",
    )
    head: str = option(
        "none",
        flag="--head",
        choices=HEADS,
        help="The head on top of the encoder: none (MagicModel), mlm (MagicForMaskedLM, over every position) or rtd "
        "(MagicForPreTraining).",
    )
    min_run_time: float = option(
        0.15,
        above=0,
        unit="s",
        help="Minimum total measuring time of the slowest child over all rounds; there are at least five rounds.",
    )
    seed: int = option(0, help="Seed of weights, tokens, children and the order of the blocks.")

    def __str__(self) -> str:
        return (
            f"{self.batch_size} x {self.seq_len} tokens without padding, head {self.head}, {self.dtype}, "
            f"{self.device}, {counted(self.num_threads, 'CPU thread')}"
        )
