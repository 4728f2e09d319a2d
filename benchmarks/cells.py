"""Times a training step of a super-net of cells against its child alone, and the evaluation of many children.

    python benchmarks/cells.py [--channels 8] [--image-size 32] [--steps 40] [--children 1000] [--images 1000]
        [--output FILE.md]

The images are noise, which takes as long as real ones. A step is the forward pass, the backward pass and SGD, as in
the super-net's trainer. It is timed in turn with a step of the extracted child of the same draw. The evaluation uses
`Evaluator` with shared bottom layers.
"""

import random
from functools import partial
from typing import Any

import torch
import transformers
from interleaved import HEADER, ratios, row, seconds
from tables import parser_of, publish
from torch import Tensor, nn

from training import Evaluator
from training.cells.cell_model import CellConfig, CellSupernet
from training.cells.cell_runner import CellRunner
from training.cells.cell_space import cell_space


def batch_of(number: int, size: int) -> dict[str, Tensor]:
    """Returns images and labels."""
    images = torch.randn(number, 3, size, size).contiguous(memory_format=torch.channels_last)
    return {"images": images, "labels": torch.randint(10, (number,))}


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


def main() -> None:
    """Measures and prints."""
    parser = parser_of(__doc__)
    parser.add_argument("--channels", type=int, default=8)
    parser.add_argument("--image-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=40, help="Number of pairs of steps, each with another child.")
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
        found += ratios(partial(whole.step, architecture=child), alone.step, pairs=1, warmup=1)
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
            row("a step of the super-net / a step of its child alone", found, "at most 1.1"),
            "",
            f"{options.children:,} children on {options.images:,} images: {took / 60:.1f} minutes.",
        ],
        options.output,
    )


if __name__ == "__main__":
    main()
