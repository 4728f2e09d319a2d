"""Options that several commands of `magic-nas` share, and how flags and `--set` become changes of a recipe."""

import logging
import os
from collections.abc import Collection
from dataclasses import fields
from pathlib import Path
from typing import Annotated, Any

import typer


OutputDir = Annotated[Path, typer.Option("--output-dir", "-o", help="Folder of the run; a stopped run goes on there.")]
Recipe = Annotated[
    str | None, typer.Option("--config", "-c", help="A recipe: a name or a YAML file. Flags win over it.")
]
Child = Annotated[str | None, typer.Option(help="A child: MHA4,FFN,... or (MHA4,FFN)*3.")]
Preset = Annotated[str | None, typer.Option(help="Sizes and operators: a preset, a JSON file or a model folder.")]
Text = Annotated[
    str | None,
    typer.Option(help="A text file, a folder of them or a `datasets` name; left out, docstrings of packages."),
]
TokenizerName = Annotated[
    str | None, typer.Option("--tokenizer", help="A tokenizer's name or folder; left out, one is trained on the text.")
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps.")]
BatchSize = Annotated[int | None, typer.Option(help="Sequences per device and step.")]
LearningRate = Annotated[float | None, typer.Option(help="Peak learning rate.")]
Seed = Annotated[int | None, typer.Option(help="Seed of weights, data order, masks and children.")]
Assignments = Annotated[
    list[str] | None,
    typer.Option("--set", help="Any other key of a recipe: data.vocab_size=4096, warmup_steps=100, ..."),
]
Threads = Annotated[int | None, typer.Option("--num-threads", help="CPU threads of torch.")]
MaxParams = Annotated[float | None, typer.Option(help="Most parameters, embeddings included: 8e6.")]
MinParams = Annotated[float | None, typer.Option(help="Fewest parameters.")]
MaxFlops = Annotated[float | None, typer.Option(help="Most FLOPs of a forward pass over a sequence.")]
MinFlops = Annotated[float | None, typer.Option(help="Fewest FLOPs.")]
MaxLatency = Annotated[float | None, typer.Option(help="Most milliseconds by --latency-table.")]
MaxActivations = Annotated[float | None, typer.Option(help="Most MiB that training keeps of one sequence.")]
Latencies = Annotated[str | None, typer.Option(help="A file that `magic-nas benchmark` wrote.")]


def split_names(names: list[str] | None) -> list[str] | None:
    """Returns names that were given one by one or with commas between them."""
    return [part.strip() for name in names for part in name.split(",")] if names else None


def text_of(path: Path | None) -> str | None:
    """Returns a path as a recipe holds it."""
    return None if path is None else str(path)


def training_flags(
    max_steps: int | None, batch_size: int | None, learning_rate: float | None, seed: int | None
) -> dict[str, Any]:
    """Returns the flags of a training as the training arguments that they set."""
    return {
        "max_steps": max_steps,
        "per_device_train_batch_size": batch_size,
        "learning_rate": learning_rate,
        "seed": seed,
    }


def own_keys(settings: type, beyond: type | None = None) -> set[str]:
    """Returns the keys of a recipe for `settings`, or those of them that `beyond` has not."""
    return {item.name for item in fields(settings)} - (own_keys(beyond) if beyond else set())


def merge(
    changes: dict[str, Any],
    assignments: list[str] | None,
    of_the_recipe: Collection[str],
    sections: tuple[str, ...] = ("data", "training_arguments"),
) -> dict[str, Any]:
    """Returns `changes` with the `--set` assignments in their sections and without what was not given.

    A key without a section belongs to the last of `sections`, but for those `of_the_recipe` itself.
    """
    for section in sections:
        changes[section] = {key: value for key, value in changes[section].items() if value is not None}
    if not assignments:
        return changes
    import yaml

    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment!r} has no value; write KEY=VALUE")
        section, _, name = key.rpartition(".")
        if section not in ("", *sections):
            raise ValueError(f"--set {assignment!r} names no section of a recipe; write data.KEY=VALUE or KEY=VALUE")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ValueError(f"--set {assignment!r}: {text!r} is not a value that YAML reads; quote it") from None
        if not section and name in of_the_recipe:
            changes[name] = value
        else:
            changes[section or sections[-1]][name] = value
    return changes


def start(num_threads: int | None = None) -> None:
    """Sets up what every long command wants: messages on the screen, threads, quiet libraries."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    logging.getLogger("training").setLevel(logging.INFO)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    if num_threads is not None:
        if num_threads < 1:
            raise ValueError(f"--num-threads is {num_threads}; it must be at least 1")
        import torch

        torch.set_num_threads(num_threads)
