"""Times training steps and inference on a GPU in bf16 against transformers' BertForMaskedLM, and writes a table.

    python benchmarks/gpu.py [--output FOLDER_OR_FILE] [--layers 12] [--hidden-size 768] [--shapes 32x512 64x128]
        [--vocab-size 30522] [--pairs 20] [--device cuda] [--check]

Every comparison runs its two sides in turn after a warm-up, and the side that goes first alternates. Each is timed
between two events in the device's stream, or by the wall clock on a CPU. Training runs under autocast with float32
weights, inference with bf16 weights. If the output is a folder, the file is named gpu_CARD_DATE.md. `--check` only
reports whether there is a GPU.
"""

import argparse
import datetime
import random
import re
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from xml.etree import ElementTree

import torch
import transformers
from interleaved import Step, seconds
from tables import parser_of
from torch import nn
from transformers import BertConfig, BertForMaskedLM
from transformers.utils import is_flash_attn_2_available

from modeling_magic import MagicConfig, MagicForMaskedLM
from modeling_magic.conversion import convert_to_magic
from training import MagicTrainer, MagicTrainingArguments
from training.space.timing import device_name
from training.supernet.anchors import Anchor


HEADER = (
    "| comparison | batch | reference, ms | ours, ms | ratio | quartiles | reference, MiB | ours, MiB |\n"
    "| --- | --- | ---: | ---: | ---: | --- | ---: | ---: |"
)
FLASH = "flash_attention_2"
_WARMUP = 3
_MASKED = 0.15


@dataclass(frozen=True)
class Sizes:
    """The sizes and the device of the measurements.

    Attributes:
        device: the device to measure on.
        layers: number of layers of BERT. A chain has two operators for each.
        hidden_size: the hidden size.
        vocab_size: the size of the vocabulary.
        batches: (sequences, tokens) of each batch.
        pairs: number of measurements for each side of a comparison.
    """

    device: torch.device
    layers: int
    hidden_size: int
    vocab_size: int
    batches: tuple[tuple[int, int], ...]
    pairs: int

    @property
    def heads(self) -> int:
        """The number of heads, with 64 dimensions each as in BERT."""
        return max(1, self.hidden_size // 64)

    @property
    def shared(self) -> dict[str, Any]:
        """The values that the configurations of both classes share."""
        longest = max(length for _, length in self.batches)
        return {
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": 4 * self.hidden_size,
            "max_position_embeddings": longest,
        }

    def inputs(self, batch: tuple[int, int]) -> dict[str, torch.Tensor]:
        """Returns random sequences without padding, with 15% of the tokens to predict."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(5, self.vocab_size, batch, generator=generator)
        labels = torch.where(torch.rand(batch, generator=generator) < _MASKED, ids, -100)
        return {"input_ids": ids.to(self.device), "labels": labels.to(self.device)}


# ---- Timing ----


def milliseconds(step: Step, device: torch.device) -> float:
    """Returns the time of one call, until the device has finished it."""
    if device.type != "cuda":
        return 1e3 * seconds(step)
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    step()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)


def peak_mib(step: Step, device: torch.device) -> float | None:
    """Returns the memory of one call beyond what was allocated before it, `None` if the device does not report it."""
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def compare(
    what: str, batch: tuple[int, int], reference: Step, ours: Step, sizes: Sizes, inverse: bool = False
) -> str:
    """Returns a row with medians and the ratio over pairs: reference / ours or, with `inverse`, ours / reference."""
    for _ in range(_WARMUP):
        reference()
        ours()
    sides: dict[str, list[float]] = {"reference": [], "ours": []}
    steps = {"reference": reference, "ours": ours}
    for pair in range(sizes.pairs):
        for side in sorted(steps, reverse=pair % 2 == 0):
            sides[side].append(milliseconds(steps[side], sizes.device))
    ratios = [one / other for one, other in zip(sides["reference"], sides["ours"], strict=True)]
    if inverse:
        ratios = [1 / ratio for ratio in ratios]
    low, middle, high = statistics.quantiles(ratios, n=4)
    peaks = [peak_mib(step, sizes.device) for step in steps.values()]
    memory = ["-" if peak is None else f"{peak:,.0f}" for peak in peaks]
    times = [f"{statistics.median(sides[side]):.2f}" for side in steps]
    cells = (what, "{} x {}".format(*batch), *times, f"{middle:.3f}", f"{low:.3f} to {high:.3f}", *memory)
    return f"| {' | '.join(cells)} |"


def row_of(make: Callable[[], str], what: str, batch: tuple[int, int]) -> str:
    """Returns the row of a comparison, or one that says that the device has too little memory for it."""
    try:
        return make()
    except torch.OutOfMemoryError:
        return f"| {what} | {batch[0]} x {batch[1]} | out of memory | | | | | |"
    finally:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()


# ---- What is compared ----


def training_step(model: nn.Module, inputs: dict[str, Any]) -> Step:
    """Returns a step: forward and backward under autocast, then fused AdamW, the Trainer's default."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    device = next(model.parameters()).device.type
    model.train()

    def step() -> None:
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = model(**inputs).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def inference(model: nn.Module, inputs: dict[str, Any]) -> Step:
    """Returns a forward pass to the logits of all tokens."""
    model.eval()

    @torch.inference_mode()
    def step() -> None:
        model(inputs["input_ids"])

    return step


def bert_and_ours(sizes: Sizes, attention: str, dtype: torch.dtype) -> tuple[nn.Module, MagicForMaskedLM]:
    """Returns BERT's own class with random weights, and our class with the same weights."""
    torch.manual_seed(0)
    config = BertConfig(**sizes.shared, num_hidden_layers=sizes.layers, num_attention_heads=sizes.heads)
    bert = BertForMaskedLM(config).eval()
    ours: Any = convert_to_magic(bert).model.eval()
    models = [model.to(sizes.device, dtype) for model in (bert, ours)]
    for model in models:
        model.set_attn_implementation(attention)
    return models[0], models[1]


def check_the_same(bert: nn.Module, ours: nn.Module, inputs: dict[str, Any]) -> None:
    """Exits if the two do not compute the same, apart from a few roundings to 8 bits."""
    ids = {"input_ids": inputs["input_ids"][:2]}
    device = ids["input_ids"].device.type
    with torch.inference_mode(), torch.autocast(device, dtype=torch.bfloat16):
        expected, actual = (model(**ids).logits.float() for model in (bert, ours))
    error = ((actual - expected).norm() / expected.norm()).item()
    if error > 8 * 2**-8:
        sys.exit(f"the logits of the converted BERT are off by {error:.1%}, so its times are meaningless")


def against_bert(sizes: Sizes) -> Iterator[str]:
    """Yields rows of ours against BertForMaskedLM, with the same weights and the same attention function."""
    for attention in ("sdpa", FLASH):
        if attention == FLASH and not is_flash_attn_2_available():
            yield f"| {attention}: not run (it needs a GPU and the package flash_attn) | | | | | | | |"
            continue
        for batch in sizes.batches:
            inputs = sizes.inputs(batch)

            def infer(attention=attention, batch=batch, inputs=inputs) -> str:
                bert, ours = bert_and_ours(sizes, attention, torch.bfloat16)
                check_the_same(bert, ours, inputs)
                what = f"inference: BertForMaskedLM / ours, {attention}"
                return compare(what, batch, inference(bert, inputs), inference(ours, inputs), sizes)

            def train(sparse: bool, what: str, attention=attention, batch=batch, inputs=inputs) -> str:
                bert, ours = bert_and_ours(sizes, attention, torch.float32)
                ours.config.sparse_prediction = sparse
                return compare(what, batch, training_step(bert, inputs), training_step(ours, inputs), sizes)

            yield row_of(infer, f"inference, {attention}", batch)
            for sparse, head in ((False, "head on all tokens"), (True, "ours: head on masked tokens")):
                what = f"training step: BertForMaskedLM / ours, {attention}, {head}"
                yield row_of(partial(train, sparse, what), what, batch)


def supernet_of(sizes: Sizes) -> MagicForMaskedLM:
    """Returns a super-net with as many layers as the chain of BERT and four operators per layer."""
    torch.manual_seed(0)
    candidates = [[f"MHA{sizes.heads}", "FFN", "CONV3", "CONV5"]] * (2 * sizes.layers)
    config = MagicConfig(**sizes.shared, candidate_operators=candidates, sparse_prediction=True)
    return MagicForMaskedLM(config).to(sizes.device)  # type: ignore[arg-type]


def children_of(sizes: Sizes) -> tuple[list[str], list[str]]:
    """Returns two children with equal shares of all four operators, the first in a regular order."""
    kinds = [f"MHA{sizes.heads}", "FFN", "CONV3", "CONV5"]
    first = [kinds[layer % 4] for layer in range(2 * sizes.layers)]
    second = random.Random(0).sample(first, len(first))
    return first, second


def child_in_supernet(sizes: Sizes) -> Iterator[str]:
    """Yields rows of a training step of a child inside the super-net against one of the same child alone."""
    what = "training step: child in the super-net / the child alone"
    for batch in sizes.batches:
        inputs = sizes.inputs(batch)

        def make(batch=batch, inputs=inputs) -> str:
            supernet, (child, _) = supernet_of(sizes), children_of(sizes)
            alone = supernet.extract_child(child)
            inside = training_step(supernet, {**inputs, "architecture": child})
            return compare(what, batch, training_step(alone, inputs), inside, sizes, inverse=True)

        yield row_of(make, what, batch)


def magic_a(sizes: Sizes) -> Iterator[str]:
    """Yields rows of a step of MAGIC-A, aligned to an anchor, against one of SPOS, as run by the trainer."""
    what = "training step: MAGIC-A / SPOS"
    for batch in sizes.batches:

        def make(batch=batch) -> str:
            with TemporaryDirectory() as folder:
                spos, aligned = search_steps(sizes, batch, folder)
                return compare(what, batch, spos, aligned, sizes, inverse=True)

        yield row_of(make, what, batch)


def search_steps(sizes: Sizes, batch: tuple[int, int], folder: str) -> tuple[Step, Step]:
    """Returns steps of one trainer, without an anchor and with one."""
    on_cpu = sizes.device.type == "cpu"
    args = MagicTrainingArguments(
        folder, alignment="anchor", bf16=True, use_cpu=on_cpu, report_to="none", dataloader_pin_memory=False
    )
    trainer = MagicTrainer(model=supernet_of(sizes), args=args, train_dataset=[0], eval_dataset=[0])
    optimizer: Any = trainer.create_optimizer()
    # As `train` does before its loop: preparing the model puts autocast around its forward pass.
    trainer.model_wrapped = trainer.accelerator.prepare(trainer.model)
    trainer.current_gradient_accumulation_steps = 1
    inputs = sizes.inputs(batch)
    num_items = (inputs["labels"] != -100).sum()
    trainer.architecture, anchor = map(tuple, children_of(sizes))

    def step(anchor: Anchor | None) -> None:
        trainer.anchor = anchor
        trainer.training_step(trainer.model_wrapped, inputs, num_items)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return partial(step, None), partial(step, Anchor(anchor, 0.0))


# ---- The page ----


def driver() -> str:
    """Returns the version of NVIDIA's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0].strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def conditions(sizes: Sizes) -> list[str]:
    """Returns the head of the page: the conditions of the measurement."""
    where = device_name(sizes.device)
    if sizes.device.type == "cuda":
        gib = torch.cuda.get_device_properties(sizes.device).total_memory / 2**30
        cudnn = torch.backends.cudnn.version()
        where += f" ({gib:.0f} GiB), driver {driver()}, CUDA {torch.version.cuda}, cuDNN {cudnn}"
    return [
        "# On a GPU",
        "",
        f"`python benchmarks/gpu.py {' '.join(sys.argv[1:])}`".replace(" `", "`"),
        "",
        f"{where}; torch {torch.__version__}, transformers {transformers.__version__}; {datetime.date.today()}.",
        f"{sizes.layers} x {sizes.hidden_size}, {sizes.vocab_size:,} tokens, bf16: autocast with float32 weights in "
        f"training, bf16 weights in inference. Dropout 0.1, fused AdamW.",
        f"Medians of {sizes.pairs} interleaved pairs; the ratio and its quartiles are over pairs. Memory is the peak "
        f"of one call beyond weights and optimizer.",
        "",
        HEADER,
    ]


def results_of_tests(path: Path) -> list[str]:
    """Returns lines on the tests marked `gpu`, from pytest's JUnit report: how many passed, and why others did not."""
    cases = list(ElementTree.parse(path).iter("testcase"))
    failed = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [skip.get("message", "") for case in cases if (skip := case.find("skipped")) is not None]
    passed = len(cases) - len(failed) - len(skipped)
    reasons = [f"{number} skipped: {reason}" for reason, number in sorted(Counter(skipped).items())]
    names = [f"failed: {case.get('name')}" for case in failed]
    return ["", f"Tests marked `gpu`: {passed} passed, {len(failed)} failed, {len(skipped)} skipped.", ""] + [
        f"- {line}" for line in (*names, *reasons)
    ]


def device_or_exit(name: str) -> torch.device:
    """Returns the device, or exits with one line of advice if it is not available."""
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        built = "finds no CUDA device" if torch.version.cuda else "is a build without CUDA; install the one from PyPI"
        sys.exit(f"no GPU: torch {torch.__version__} {built}")
    return device


def page_of(output: Path, device: torch.device) -> Path:
    """Returns the file to write: `output` itself or, if that is a folder, a file in it named after card and date."""
    if not output.is_dir():
        return output
    card = re.sub(r"[^a-z0-9]+", "-", device_name(device).lower().removeprefix("nvidia ")).strip("-")
    return output / f"gpu_{card}_{datetime.date.today()}.md"


def batch_size_and_length(text: str) -> tuple[int, int]:
    """Parses a shape such as 32x512 into two numbers."""
    size, _, length = text.partition("x")
    try:
        return int(size), int(length)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not SEQUENCESxTOKENS, such as 32x512") from None


def main() -> None:
    """Measures and prints row by row."""
    parser = parser_of(__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument(
        "--layers", type=int, default=12, help="Number of layers of BERT. A chain has two operators for each."
    )
    parser.add_argument("--hidden-size", type=int, default=768)
    parser.add_argument("--vocab-size", type=int, default=30522)
    parser.add_argument("--shapes", type=batch_size_and_length, nargs="+", default=[(32, 512), (64, 128)])
    parser.add_argument("--pairs", type=int, default=20)
    parser.add_argument("--check", action="store_true", help="Report whether there is such a device, and exit.")
    parser.add_argument("--tests", type=Path, help="JUnit report of the tests marked gpu, for the page.")
    options = parser.parse_args()
    device = device_or_exit(options.device)
    if options.check:
        return
    if device.type == "cpu":
        torch.set_num_threads(1)
    given = options.layers, options.hidden_size, options.vocab_size, tuple(options.shapes), options.pairs
    sizes = Sizes(device, *given)
    lines = conditions(sizes)
    print("\n".join(lines), flush=True)
    for comparison in (against_bert, child_in_supernet, magic_a):
        for row in comparison(sizes):
            print(row, flush=True)
            lines.append(row)
    if options.tests:
        lines += results_of_tests(options.tests)
    if options.output:
        page_of(options.output, device).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
