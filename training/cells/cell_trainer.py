"""The search around super-nets of cells: `SearchTrainer` whose layers are edges and whose states are of cells."""

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


# What an operator costs beside a convolution of 1 x 1, for the sandwich rule.
_WEIGHTS = {CONV1: 1, CONV3: 9}


class CellTrainer(SearchTrainer):
    """Trains a `CellSupernet`; Eq. (1) aligns the outputs of cells, and batches of images are what is accumulated."""

    model: CellSupernet

    # ---- What cells are ----

    def check_search(self, model: Any, args: MagicTrainingArguments) -> None:
        """Raises a ValueError where the model is no super-net or the arguments ask for what cells do not have."""
        check_cells(model.config, args)

    def search_sampler(self, space: SearchSpace) -> UniformSampler:
        """Returns the sampler of the run over what is left of the space, at its start."""
        return cell_sampler(space, self.args)

    @property
    def num_states(self) -> int:
        """A cell has one."""
        return self.model.config.num_cells

    def operator_weights(self, architecture: Architecture) -> list[list[nn.Parameter]]:
        """Returns the parameters of the operator of each edge, in all cells together.

        An edge that leads nowhere has none: its operator has no gradient, which is no fault.
        """
        cells: Any = self.model.cells
        return [
            [parameter for cell in cells for parameter in cell.edges[edge][operator].parameters()] if runs else []
            for edge, (operator, runs) in enumerate(zip(architecture, running_edges(architecture), strict=True))
        ]

    def child_runner(self) -> CellRunner:
        """Returns how images pass through the cells."""
        return CellRunner(self.model)

    def child_states(
        self, inputs: dict[str, Any], child: Architecture, aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the outputs of a child's aligned cells; no two children have any of them in common."""
        model = self.accelerator.unwrap_model(self.model_wrapped)
        with torch.no_grad():
            return list(model.states(inputs["images"], child, aligned))

    def comparable_states(self, states: Tensor) -> Tensor:
        """Returns the output of a cell with a mean of 0 and a variance of 1 in each channel, over the batch.

        A cell ends in a sum, so that its scale is that of its operators; unlike that of layer norm it would set how
        much Eq. (1) weighs.
        """
        return nn.functional.batch_norm(states, None, None, training=True)

    def num_shared_states(self) -> int:
        """Returns all cells where the child of the step is its own anchor, else 0."""
        is_anchor = self.args.alignment != "average" and self._target_children() == [self.architecture]
        return self.num_states if is_anchor else 0

    # ---- Training ----

    def count_items(self, batch: Any) -> Tensor:
        """Returns the number of images of a micro-batch."""
        return torch.tensor(len(batch["labels"]))

    def prediction_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Tensor, Any]:
        """Returns the cross-entropy of a micro-batch as its share of the step, and the outputs."""
        outputs = model(**inputs)
        return self.share(outputs.loss * len(inputs["labels"]), num_items_in_batch), outputs

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the FLOPs of this step's child alone, forwards and backwards."""
        number, _, size, _ = inputs["images"].shape
        return 3 * number * count_cell_flops(cast(CellConfig, self.model.config), self.architecture, size)


def cell_sampler(space: SearchSpace, args: MagicTrainingArguments) -> UniformSampler:
    """Returns the sampler of a run over `space`; the sandwich rule goes by the weights of the operators."""
    cost = {operator: float(_WEIGHTS.get(operator, 0)) for operator in space.operator_names}
    sampler = make_sampler(args.sampler, space, args.seed, args.num_substitutions, cost.__getitem__)
    return begin_schedule(sampler, args)


def check_cells(config: Any, args: MagicTrainingArguments) -> None:
    """Raises an error where a super-net of cells cannot be trained with `args`, before anything is built.

    Raises:
        ValueError: the model is no super-net, or sampler, alignment or budget do not fit cells.
    """
    if not config.is_supernet:
        raise ValueError("each edge has one operator; a super-net needs an edge with a choice")
    cell_sampler(SearchSpace.from_config(config.candidate_operators), args)
    if args.alignment != "none" and args.alignment_every_n_layers > config.num_cells:
        raise ValueError(
            f"alignment_every_n_layers is {args.alignment_every_n_layers} but there are {config.num_cells} cells, so "
            f"that none would be aligned; take at most {config.num_cells}"
        )
    if args.alignment_batch_fraction != 1:
        raise ValueError(
            f"alignment_batch_fraction is {args.alignment_batch_fraction}, but a part of a batch has other statistics "
            f"than the child's; leave it at 1"
        )
    if args.anchor_challenger != "child":
        raise ValueError(
            f"anchor_challenger is {args.anchor_challenger!r}, but the cells of a child are alike and have no blocks; "
            f"leave it out"
        )
    for item in fields(BudgetSettings):
        if (value := getattr(args, item.name)) != item.default:
            raise ValueError(f"{item.name} is {value}, but a budget of cells is not supported; leave it out")
