"""Images of 8 pixels, a table of made-up accuracies and small super-nets of cells."""

import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from training.cells.cell_model import CellConfig, CellSupernet
from training.cells.cell_space import CONV1, CONV3, NONE, cell_space, format_cell
from training.cells.cell_trainer import CellTrainer
from training.cells.images import ImageCollator, ImageData, ImageSet
from training.supernet.arguments import MagicTrainingArguments


def toy_pixels(number: int, size: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Images, (number, size, size, 3), that are redder in class 0 and greener in class 1."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=number)
    pixels = rng.integers(0, 200, (number, size, size, 3))
    for image, label in zip(pixels, labels, strict=True):
        image[..., label] += 50
    return pixels.astype(np.uint8), labels


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def write_images(folder: Path, number: int = 48, size: int = 8) -> Path:
    """Writes train.parquet with PNG images and returns its folder."""
    folder.mkdir(exist_ok=True)
    pixels, labels = toy_pixels(number, size)
    Dataset.from_dict({"image": list(map(png, pixels)), "label": labels.tolist()}).to_parquet(folder / "train.parquet")
    return folder


def write_table(path: Path, number: int = 60) -> Path:
    """Writes the accuracy of some cells, higher with more convolutions."""
    rng = random.Random(1)
    children = cell_space().sample_distinct(number, rng)
    worth = {CONV3: 4.0, CONV1: 2.0, NONE: -3.0}
    rows = [
        f"{format_cell(child)},{80 + sum(worth.get(op, 0.0) for op in child) + rng.random():.3f}" for child in children
    ]
    path.write_text("\n".join(["arch,accuracy", *rows, ""]))
    return path


def toy_images(number: int = 48) -> ImageData:
    pixels, labels = toy_pixels(number)
    images, classes = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)
    train, validation = ImageSet(images[16:], classes[16:], True), ImageSet(images[:16], classes[:16], False)
    return ImageData(train, validation, 2, {"source": "toy"})


def toy_cells(cells_per_stage: int = 1, **changes: Any) -> CellSupernet:
    torch.manual_seed(0)
    return CellSupernet(CellConfig(**{"channels": 4, "cells_per_stage": cells_per_stage, "num_classes": 2, **changes}))


def cell_trainer(output_dir: Path, model: CellSupernet | None = None, **arguments: Any) -> CellTrainer:
    settings = {
        "sampler": "gradual",
        "alignment": "anchor",
        "max_steps": 12,
        "per_device_train_batch_size": 8,
        "logging_steps": 3,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "remove_unused_columns": False,
        "learning_rate": 0.05,
        "alignment_every_n_layers": 1,
        "alignment_warmup_steps": 3,
        "anchor_eval_steps": 4,
        "num_validation_sequences": 8,
        "num_best_candidates": 4,
        "num_probe_children": 2,
        "shrink_num_children": 8,
        **arguments,
    }
    data = toy_images()
    return CellTrainer(
        model=model or toy_cells(),
        args=MagicTrainingArguments(str(output_dir), **settings),
        train_dataset=data.train,
        eval_dataset=data.validation,
        data_collator=ImageCollator(0),
        optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": settings["learning_rate"], "momentum": 0.9}),
    )


def toy_batch(number: int = 6) -> dict[str, torch.Tensor]:
    data = toy_images()
    return ImageCollator(0)([data.validation[index] for index in range(number)])
