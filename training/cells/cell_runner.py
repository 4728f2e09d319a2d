"""Passes images through the children of a super-net of cells, and computes their scores."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..space.search_space import Architecture
from ..supernet.runners import Batch, ChildRunner
from .cell_model import Cell, CellSupernet


Nodes = list[Tensor | None]


class CellRunner(ChildRunner):
    """Runs children edge by edge in the first cell, where children with equal first edges share nodes, then the rest.

    Cells above the first have different inputs in every child. A child is judged by its cross-entropy and accuracy.
    """

    model: CellSupernet

    def num_items(self, batch: Batch) -> int:
        """Returns the number of images."""
        return len(batch["labels"])

    def prepare(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Returns H_0, which all children share, and the labels."""
        device = self.model.device
        return self.model.stem(batch["images"].to(device)), batch["labels"].to(device)

    def embed(self, prepared: tuple[Tensor, Tensor]) -> Nodes:
        """Returns the nodes of the first cell before any edge."""
        return [prepared[0], None, None, None]

    def run_layer(self, prepared: tuple[Tensor, Tensor], states: Nodes, layer: int, operator: str) -> Nodes:
        """Returns the nodes of the first cell after one more edge."""
        return self._first_cell.run_edge(states, layer, operator)

    def sums(self, prepared: tuple[Tensor, Tensor], states: Nodes, child: Architecture) -> Tensor:
        """Returns the summed cross-entropy and the number of correctly classified images."""
        output = self._first_cell.output(states)
        for number, cell in enumerate(self.model.cells[1:], 1):
            output = cell(self.model.below_cell(output, number), child)
        logits, labels = self.model.classify(output).float(), prepared[1]
        loss = torch.nn.functional.cross_entropy(logits, labels, reduction="sum")
        return torch.stack([loss, (logits.argmax(dim=-1) == labels).sum().float()])

    def state_bytes(self, batches: Sequence[Batch]) -> int:
        """Returns the bytes of four nodes of the first cell."""
        pixels = sum(batch["images"][:, 0].numel() for batch in batches)
        return 4 * pixels * self.model.config.channels * torch.float32.itemsize

    @property
    def _first_cell(self) -> Cell:
        cell = self.model.cells[0]
        assert isinstance(cell, Cell)
        return cell
