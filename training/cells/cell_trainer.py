"""`SearchTrainer` for super-nets of cells, whose layers are edges and whose states are the outputs of cells."""

from dataclasses import fields
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..space.samplers import UniformSampler, make_sampler
from ..space.search_space import Architecture, SearchSpace
from ..space.settings import BudgetSettings
from ..supernet.arguments import MagicTrainingArguments
from ..supernet.search_trainer import SearchTrainer
from ..supernet.setup import begin_schedule
from .cell_model import CellConfig, CellSupernet, count_cell_flops
from .cell_runner import CellRunner
from .cell_space import CONV1, CONV3, running_edges


# The cost of an operator relative to a 1 x 1 convolution, for the sandwich rule.
_WEIGHTS = {CONV1: 1, CONV3: 9}


class CellTrainer(SearchTrainer):
    """Trains a `CellSupernet` on images; Eq. (1) aligns the outputs of cells."""

    model: CellSupernet

    # ---- Properties of cells ----

    def check_search(self, model: Any, args: MagicTrainingArguments) -> None:
        """Raises a ValueError if the model is not a super-net or an argument is not supported for cells."""
        check_cells(model.config, args)

    def search_sampler(self, space: SearchSpace) -> UniformSampler:
        """Returns the sampler of the run over the remaining space, in its initial state."""
        return cell_sampler(space, self.args)

    @property
    def num_states(self) -> int:
        """The number of states, one per cell."""
        return self.model.config.num_cells

    def operator_weights(self, architecture: Architecture) -> list[list[nn.Parameter]]:
        """Returns the parameters of the operator of each edge, over all cells.

        An edge that is not on a path to the output has none, because its operator correctly has no gradient.
        """
        cells: Any = self.model.cells
        return [
            [parameter for cell in cells for parameter in cell.edges[edge][operator].parameters()] if runs else []
            for edge, (operator, runs) in enumerate(zip(architecture, running_edges(architecture), strict=True))
        ]

    def child_runner(self) -> CellRunner:
        """Returns the runner that passes images through the cells."""
        return CellRunner(self.model)

    def child_states(
        self, inputs: dict[str, Any], child: Architecture, aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the outputs of a child's aligned cells; different children share none of them."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with torch.no_grad():
            return list(model.states(inputs["images"], child, aligned))

    def comparable_states(self, states: Tensor) -> Tensor:
        """Returns the output of a cell, normalised over the batch to mean 0 and variance 1 in each channel.

        A cell ends in a sum, not in a norm, so its scale depends on its operators. Without normalisation, this scale
        would determine the weight of Eq. (1).
        """
        return nn.functional.batch_norm(states, None, None, training=True)

    def num_shared_states(self) -> int:
        """Returns the number of cells if the child of the step is its own anchor, otherwise 0."""
        is_anchor = self.args.alignment != "average" and self._target_children() == [self.architecture]
        return self.num_states if is_anchor else 0

    # ---- Training ----

    def count_items(self, batch: Any) -> Tensor:
        """Returns the number of images in a micro-batch."""
        return torch.tensor(len(batch["labels"]))

    def prediction_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Tensor, Any]:
        """Returns the cross-entropy of a micro-batch as its share of the step, and the outputs."""
        outputs = model(**inputs)
        return self.share(outputs.loss * len(inputs["labels"]), num_items_in_batch), outputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the FLOPs of the forward and backward pass of this step's child, without alignment."""
        number, _, size, _ = inputs["images"].shape
        return 3 * number * count_cell_flops(cast(CellConfig, self.model.config), self.architecture, size)


def cell_sampler(space: SearchSpace, args: MagicTrainingArguments) -> UniformSampler:
    """Returns the sampler of a run over `space`; the sandwich rule uses the numbers of weights as costs."""
    cost = {operator: float(_WEIGHTS.get(operator, 0)) for operator in space.operator_names}
    sampler = make_sampler(args.sampler, space, args.seed, args.num_substitutions, cost.__getitem__)
    return begin_schedule(sampler, args)


def check_cells(config: Any, args: MagicTrainingArguments) -> None:
    """Raises an error if a super-net of cells cannot be trained with `args`, before anything is built.

    Raises:
        ValueError: the model is not a super-net, or sampler, alignment or budget do not fit cells.
    """
    if not config.is_supernet:
        raise ValueError("each edge has only one operator; a super-net needs an edge with several")
    cell_sampler(SearchSpace.from_config(config.candidate_operators), args)
    if args.alignment != "none" and args.alignment_every_n_layers > config.num_cells:
        raise ValueError(
            f"alignment_every_n_layers is {args.alignment_every_n_layers} but there are {config.num_cells} cells, so "
            f"none would be aligned; choose at most {config.num_cells}"
        )
    if args.alignment_batch_fraction != 1:
        raise ValueError(
            f"alignment_batch_fraction is {args.alignment_batch_fraction}, but a part of a batch has other batch-norm "
            f"statistics than the whole; leave it at 1"
        )
    if args.anchor_challenger != "child":
        raise ValueError(
            f"anchor_challenger is {args.anchor_challenger!r}, but the cells of a child are identical and have no "
            f"blocks; omit it"
        )
    for item in fields(BudgetSettings):
        if (value := getattr(args, item.name)) != item.default:
            raise ValueError(f"{item.name} is {value}, but budgets are not supported for cells; omit it")
