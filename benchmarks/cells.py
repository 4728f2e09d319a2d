"""Times a training step of a super-net of cells against its child alone, and the evaluation of many children.

    python benchmarks/cells.py [--channels 8] [--image-size 32] [--steps 40] [--pairs 4] [--children 1000]
        [--images 1000] [--output FILE.md]

The images are noise, which takes as long as real ones. The first comparison is of bare steps: forward pass, backward
pass, clipping and SGD of the super-net, in turn with those of the extracted child of the same draw, several times for
each child; its ratio is the median of these. The second is of the steps of `CellTrainer` as they come in a run, each
followed by a bare step of its child. The evaluation uses `Evaluator` with shared bottom layers.
"""

import random
import statistics
import time
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from interleaved import HEADER, ratios, row, seconds
from tables import parser_of, publish
from torch import Tensor, nn
from transformers import TrainerCallback, default_data_collator

from training import Evaluator
from training.cells.cell_model import CellConfig, CellSupernet
from training.cells.cell_run import cell_arguments
from training.cells.cell_runner import CellRunner
from training.cells.cell_space import cell_space
from training.cells.cell_trainer import CellTrainer
from training.cells.settings import CellSettings


def batch_of(number: int, size: int) -> dict[str, Tensor]:
    """Returns images and labels."""
    images = torch.randn(number, 3, size, size).contiguous(memory_format=torch.channels_last)
    return {"images": images, "labels": torch.randint(10, (number,))}


def collated(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Returns rows as a batch in the memory format of `ImageCollator`."""
    batch = default_data_collator(rows)
    return batch | {"images": batch["images"].contiguous(memory_format=torch.channels_last)}


class Stepper:
    """Steps of a model with its optimizer."""

    def __init__(self, model: nn.Module, batch: dict[str, Tensor]):
        self._model, self._batch = model, batch
        self._optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True)

    def step(self, **inputs: object) -> None:
        """Runs one training step."""
        self._optimizer.zero_grad()
        self._model(**self._batch, **inputs).loss.backward()
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 5.0)
        self._optimizer.step()


class TimedSteps(TrainerCallback):
    """Times each step of a trainer and a bare step of its child right after it."""

    def __init__(self, batch: dict[str, Tensor], warmup: int = 3):
        self.ratios: list[float] = []
        self.trainer: CellTrainer | None = None
        self._batch, self._warmup, self._start = batch, warmup, 0.0

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Starts the clock; the batch has been loaded."""
        self._start = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Stops the clock and times the child alone."""
        took, trainer = time.perf_counter() - self._start, self.trainer
        assert trainer is not None
        child: Any = trainer.model.extract_child(trainer.architecture)
        alone = Stepper(child.to(memory_format=torch.channels_last), self._batch)
        alone.step()
        own = seconds(alone.step)
        if state.global_step > self._warmup:
            self.ratios.append(took / own)


def trainer_ratios(supernet: CellSupernet, steps: int, batch: dict[str, Tensor]) -> list[float]:
    """Returns the time of each step of `CellTrainer` relative to a bare step of its child."""
    rows = [{name: tensor[place] for name, tensor in batch.items()} for place in range(len(batch["labels"]))]
    clock = TimedSteps(batch)
    with TemporaryDirectory() as folder:
        own = {"max_steps": steps + 3, "per_device_train_batch_size": len(rows), "save_strategy": "no"}
        args = cell_arguments(CellSettings(training_arguments={**own, "num_train_epochs": 1}), folder)
        clock.trainer = CellTrainer(
            model=supernet,
            args=args,
            train_dataset=rows,
            data_collator=collated,
            callbacks=[clock],
            optimizer_cls_and_kwargs=(torch.optim.SGD, {"lr": 1e-3, "momentum": 0.9, "nesterov": True}),
        )
        clock.trainer.train()
    return clock.ratios


def interval_of_median(values: list[float]) -> str:
    """Returns the 95% bootstrap interval of the median."""
    rng = random.Random(0)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(2000))
    return f"{medians[50]:.3f} to {medians[1949]:.3f}"


def main() -> None:
    """Measures and prints."""
    parser = parser_of(__doc__)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="Number of steps, each with another child.")
    parser.add_argument("--pairs", type=int, default=4, help="Number of pairs of bare steps of each child.")
    parser.add_argument("--children", type=int, default=1000)
    parser.add_argument("--images", type=int, default=1000)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    rng, space = random.Random(0), cell_space()
    supernet: Any = CellSupernet(CellConfig(options.channels, 1)).to(memory_format=torch.channels_last)  # type: ignore[call-arg]
    whole, found = Stepper(supernet, batch_of(128, options.image_size)), []
    for _ in range(options.steps):
        child = space.sample(rng)
        alone = Stepper(supernet.extract_child(child).to(memory_format=torch.channels_last), whole._batch)
        own = ratios(partial(whole.step, architecture=child), alone.step, pairs=options.pairs, warmup=1)
        found.append(statistics.median(own))
    in_trainer = trainer_ratios(supernet, options.steps, whole._batch)
    batches = [
        batch_of(min(250, options.images - start), options.image_size) for start in range(0, options.images, 250)
    ]
    evaluate = Evaluator(supernet, batches, runner=CellRunner(supernet))
    took = seconds(lambda: evaluate(space.sample_distinct(options.children, rng)))
    publish(
        [
            f"{options.channels} channels, one cell per stage, {options.image_size} x {options.image_size} pixels, "
            f"batches of 128, one thread, torch {torch.__version__}, transformers {transformers.__version__}.",
            "",
            HEADER,
            row("a bare step of the super-net / one of its child alone", found, "at most 1.1"),
            row("a step of CellTrainer / a bare step of its child alone", in_trainer, "at most 1.1"),
            "",
            "The ratio of a child is the median of its pairs. "
            f"95% intervals of the medians, by bootstrap over children: {interval_of_median(found)} and "
            f"{interval_of_median(in_trainer)}.",
            "",
            f"{options.children:,} children on {options.images:,} images: {took / 60:.1f} minutes.",
        ],
        options.output,
    )


if __name__ == "__main__":
    main()
