"""Times inference against transformers' BertModel and ONNX Runtime, interleaved on one thread.

    python benchmarks/inference.py [--pairs 9] [--output benchmarks/results/NAME.md] [--shape 6x384 12x768]

A BERT-pattern child is timed against BertModel with sdpa on one and on 32 sequences of equal length, and on a ragged
batch of 32 sentences with `unpad_inputs=True`, whose outputs must equal those of the padded run to 1e-5. A CONV-rich
child of the same depth is timed as well. ONNX Runtime is included if it is installed (the extra `onnx`).
"""

import argparse
import os
import platform
import sys
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from interleaved import HEADER, ratios, row
from transformers import BertConfig, BertModel

from modeling_magic import MagicConfig, MagicModel
from training.hub.onnx_export import export_onnx


Batch = dict[str, torch.Tensor]

# Lengths of 32 English sentences in wordpieces: mean 29, longest 75.
LENGTHS = [75, 61, 55, 48, 44, 41, 39, 37, 35, 33, 32, 31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16]
LENGTHS += [15, 13, 11, 9, 7]


def full_batch(size: int, seq_len: int) -> Batch:
    """Returns sequences without padding."""
    return {"input_ids": torch.randint(5, 30522, (size, seq_len), generator=torch.Generator().manual_seed(0))}


def ragged_batch() -> Batch:
    """Returns the 32 sentences, padded to the longest."""
    mask = (torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]).long()
    return {"input_ids": full_batch(*mask.shape)["input_ids"] * mask, "attention_mask": mask}


def onnx_session(model: MagicModel, folder: str) -> Any:
    """Returns an ONNX Runtime session of the model on one thread, `None` if it is not installed."""
    try:
        import onnxruntime
    except ImportError:
        return None
    model.save_pretrained(folder)
    path = str(export_onnx(folder, Path(folder) / "onnx"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path, options)


@torch.no_grad()
def compare(num_blocks: int, hidden: int, pairs: int) -> list[str]:
    """Runs all comparisons at one shape and returns their rows."""
    heads, name = hidden // (32 if hidden == 384 else 64), f"{num_blocks} x {hidden}"
    sizes: dict[str, Any] = {"hidden_size": hidden, "intermediate_size": 4 * hidden, "max_position_embeddings": 128}
    config = BertConfig(**sizes, num_hidden_layers=num_blocks, num_attention_heads=heads)
    config._attn_implementation = "sdpa"
    bert, again = (BertModel(config, add_pooling_layer=False).eval() for _ in range(2))
    child = MagicModel(MagicConfig(**sizes, candidate_operators=[[f"MHA{heads}"], ["FFN"]] * num_blocks)).eval()
    operators = [[f"MHA{heads}"], ["FFN"], ["CONV3"], ["FFN"], ["CONV5"], ["CONV3"]]
    mixed = MagicModel(MagicConfig(**sizes, candidate_operators=operators * (num_blocks // 3))).eval()
    ragged = ragged_batch()
    rows = []
    for what, batch in (("1 x 128", full_batch(1, 128)), ("32 x 128", full_batch(32, 128))):
        # Two models of one class differ only in where their weights are in memory: this is the noise.
        values = ratios(partial(bert, **batch), partial(again, **batch), pairs)
        rows.append(row(f"{name}, {what}: BertModel / another BertModel", values, "noise"))
        values = ratios(partial(bert, **batch), partial(child, **batch), pairs)
        rows.append(row(f"{name}, {what}: BertModel / BERT-pattern child", values, ">= 1.0"))
        values = ratios(partial(bert, **batch), partial(mixed, **batch), pairs)
        rows.append(row(f"{name}, {what}: BertModel / CONV-rich child", values, ""))
    real = ragged["attention_mask"].bool()
    expected = child(**ragged).last_hidden_state[real]
    for model in (child, mixed):
        model.config.unpad_inputs = True
    difference = (child(**ragged).last_hidden_state[real] - expected).abs().max().item()
    assert difference < 1e-5, difference
    values = ratios(lambda: bert(**ragged), lambda: child(**ragged), pairs)
    rows.append(row(f"{name}, ragged 32: BertModel / BERT-pattern child, unpadded", values, ">= 2.2"))
    values = ratios(lambda: bert(**ragged), lambda: mixed(**ragged), pairs)
    rows.append(row(f"{name}, ragged 32: BertModel / CONV-rich child, unpadded", values, ""))
    with TemporaryDirectory() as folder:
        child.config.unpad_inputs = False
        session = onnx_session(child, folder)
        child.config.unpad_inputs = True
        if session is not None:
            inputs = {name: value.numpy() for name, value in ragged.items()}
            inputs["token_type_ids"] = 0 * inputs["input_ids"]
            values = ratios(lambda: session.run(None, inputs), lambda: child(**ragged), pairs)
            rows.append(row(f"{name}, ragged 32: ONNX Runtime / BERT-pattern child, unpadded", values, "> 1"))
    return rows


def keep_freed_memory() -> None:
    """Restarts the process with an allocator that keeps freed memory, which affects both sides of a comparison.

    Otherwise, glibc returns large blocks to the system and faults them in again, in an order that depends on what else
    is in memory. Two equal models then differ by several percent.
    """
    variables = {"MALLOC_MMAP_THRESHOLD_": str(2**31 - 1), "MALLOC_TRIM_THRESHOLD_": str(2**32)}
    if not variables.keys() <= os.environ.keys():
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **variables})


def main() -> None:
    """Runs the comparisons at the chosen shapes."""
    keep_freed_memory()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=9)
    parser.add_argument(
        "--shape", nargs="+", default=["6x384", "12x768"], help="Shapes to time, as BLOCKSxHIDDEN_SIZE."
    )
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Inference",
        "",
        f"`python benchmarks/inference.py --pairs {arguments.pairs} --shape {' '.join(arguments.shape)}`",
        "",
        f"One thread of {platform.machine()}, torch {torch.__version__}, transformers {transformers.__version__}, "
        f"float32, glibc's malloc set to keep freed memory. Time of the reference / time of ours, over interleaved "
        f"pairs. Above 1, ours is faster.",
        "",
        HEADER,
    ]
    print("\n".join(lines))
    for shape in arguments.shape:
        num_blocks, hidden = shape.split("x")
        rows = compare(int(num_blocks), int(hidden), arguments.pairs)
        lines += rows
        print("\n".join(rows), flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
