"""The super-net of cells: a stem, three stages of cells with residual blocks between them, and a classifier (D).

The numbers of channels and of cells per stage are options; the benchmark's own children have 16 and five. Each edge of
each cell has one operator of every kind. Batch norm uses the statistics of the batch, also in evaluation, because
those of one child would be wrong for all others. On edges, it has no weights, because any operators that follow would
train them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import compress
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils import ModelOutput

from ..space.search_space import Architecture, SearchSpace
from .cell_space import CONV1, CONV3, EDGES, NONE, POOL, SKIP, cell_space, reached_edges


NUM_STAGES = 3


class CellConfig(PreTrainedConfig):
    """Sizes of a super-net of cells, or of one child, which has one operator on each edge.

    Args:
        channels: the channels of the first stage; each of the two others has twice as many as the previous one.
        cells_per_stage: the number of cells in a stage, all with the same operators.
        num_classes: the number of classes of the images.
        candidate_operators: the names of the operators of each edge, in the order of `EDGES`.
    """

    model_type = "magic_cells"

    def __init__(
        self,
        channels: int = 16,
        cells_per_stage: int = 5,
        num_classes: int = 10,
        candidate_operators: Sequence[Sequence[str]] | None = None,
        **kwargs: Any,
    ):
        sizes = {"channels": channels, "cells_per_stage": cells_per_stage, "num_classes": num_classes}
        for name, value in sizes.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        self.channels, self.cells_per_stage, self.num_classes = channels, cells_per_stage, num_classes
        layers = cell_space().candidates if candidate_operators is None else candidate_operators
        self.candidate_operators = [list(layer) for layer in layers]
        if len(self.candidate_operators) != len(EDGES):
            raise ValueError(f"candidate_operators has {len(layers)} edges; a cell has {len(EDGES)}")
        for operators in self.candidate_operators:
            cell_space(operators)
        super().__init__(**kwargs)

    @property
    def is_supernet(self) -> bool:
        """Whether some edge has several operators."""
        return any(len(operators) > 1 for operators in self.candidate_operators)

    @property
    def num_cells(self) -> int:
        """The number of cells in all stages."""
        return NUM_STAGES * self.cells_per_stage


class ReluConvNorm(nn.Sequential):
    """ReLU, a convolution that keeps or halves the size of the image, and batch norm with the batch's statistics."""

    def __init__(self, channels_in: int, channels: int, size: int, stride: int = 1, affine: bool = True):
        super().__init__(
            nn.ReLU(),
            nn.Conv2d(channels_in, channels, size, stride=stride, padding=size // 2, bias=False),
            nn.BatchNorm2d(channels, affine=affine, track_running_stats=False),
        )


class Zero(nn.Module):
    """The absence of an edge."""

    def forward(self, states: Tensor) -> Tensor:
        """Returns zeros."""
        return torch.zeros_like(states)


def make_operator(name: str, channels: int) -> nn.Module:
    """Returns a new operator for an edge, with random weights."""
    if name in (CONV1, CONV3):
        return ReluConvNorm(channels, channels, 3 if name == CONV3 else 1, affine=False)
    if name == POOL:
        return nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=False)
    return {NONE: Zero, SKIP: nn.Identity}[name]()


class Cell(nn.Module):
    """A cell with the candidate operators of each edge."""

    def __init__(self, candidates: Sequence[Sequence[str]], channels: int):
        super().__init__()
        self.edges = nn.ModuleList(
            nn.ModuleDict({name: make_operator(name, channels) for name in operators}) for operators in candidates
        )

    def run_edge(self, nodes: Sequence[Tensor | None], edge: int, operator: str) -> list[Tensor | None]:
        """Returns the sums of all nodes after one more edge; `None` is a node without an incoming edge so far."""
        source, target = EDGES[edge]
        # Edges without an operator add nothing, so nothing is run for them.
        if operator == NONE or nodes[source] is None:
            return list(nodes)
        output, before = self.edges[edge].get_submodule(operator)(nodes[source]), nodes[target]
        return [*nodes[:target], output if before is None else before + output, *nodes[target + 1 :]]

    def forward(self, states: Tensor, child: Sequence[str]) -> Tensor:
        """Returns the output of a child's cell, (batch, channels, height, width), like its input."""
        nodes: list[Tensor | None] = [states, None, None, None]
        for edge, operator in enumerate(child):
            nodes = self.run_edge(nodes, edge, operator)
        return self.output(nodes)

    @staticmethod
    def output(nodes: Sequence[Tensor | None]) -> Tensor:
        """Returns the last node; zeros if it has no incoming edge."""
        assert nodes[0] is not None
        return torch.zeros_like(nodes[0]) if nodes[-1] is None else nodes[-1]


class ResidualBlock(nn.Module):
    """Halves the size of the image and doubles the channels, like the benchmark's blocks between stages."""

    def __init__(self, channels: int):
        super().__init__()
        self.first = ReluConvNorm(channels, 2 * channels, 3, stride=2)
        self.second = ReluConvNorm(2 * channels, 2 * channels, 3)
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(channels, 2 * channels, 1, bias=False))

    def forward(self, states: Tensor) -> Tensor:
        """Returns (batch, 2 x channels, height / 2, width / 2)."""
        return self.shortcut(states) + self.second(self.first(states))


@dataclass
class CellOutput(ModelOutput):
    """The output of a super-net for a batch.

    Attributes:
        loss: the mean cross-entropy if labels are given.
        logits: (batch, classes).
        hidden_states: H_0 to H_N; `None` for those not requested.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    hidden_states: tuple[Tensor | None, ...] | None = None


class CellSupernet(PreTrainedModel):
    """An image classifier that contains all children of a space of cells, or one of them.

    H_0 is the output of the stem and H_n the output of cell n, counted over all stages: (batch, channels, height,
    width).
    """

    config_class = CellConfig
    base_model_prefix = "cells"
    main_input_name = "images"
    # Read by Trainer: the loss of this class is always a mean.
    accepts_loss_kwargs = False

    def __init__(self, config: CellConfig):
        super().__init__(config)
        widths = [config.channels * 2**stage for stage in range(NUM_STAGES)]
        self.stem = nn.Sequential(
            nn.Conv2d(3, widths[0], 3, padding=1, bias=False), nn.BatchNorm2d(widths[0], track_running_stats=False)
        )
        self.cells = nn.ModuleList(
            Cell(config.candidate_operators, width) for width in widths for _ in range(config.cells_per_stage)
        )
        self.reductions = nn.ModuleList(ResidualBlock(width) for width in widths[:-1])
        self.norm = nn.BatchNorm2d(widths[-1], track_running_stats=False)
        self.classifier = nn.Linear(widths[-1], config.num_classes)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        """Keeps the weights as initialised by torch."""

    @property
    def space(self) -> SearchSpace:
        """The space of the children."""
        return SearchSpace.from_config(self.config.candidate_operators)

    def resolve_architecture(self, architecture: Sequence[str] | None) -> Architecture:
        """Returns the child to run; `None` stands for the only child.

        Raises:
            ValueError: no child is given but there are several, or it is not in the space.
        """
        if architecture is None:
            if self.config.is_supernet:
                raise ValueError("the model is a super-net; give the child to run, one operator per edge")
            return tuple(operators[0] for operators in self.config.candidate_operators)
        self.space.check(architecture)
        return tuple(architecture)

    def below_cell(self, states: Tensor, cell: int) -> Tensor:
        """Returns the input of cell n + 1 from H_n, n being `cell`: unchanged, or reduced if a stage begins."""
        stage, within = divmod(cell, self.config.cells_per_stage)
        return self.reductions[stage - 1](states) if stage and not within else states

    def classify(self, states: Tensor) -> Tensor:
        """Returns the logits of H_N."""
        return self.classifier(torch.relu(self.norm(states)).mean(dim=(2, 3)))

    def forward(
        self,
        images: Tensor,
        labels: Tensor | None = None,
        architecture: Sequence[str] | None = None,
        output_hidden_states: Sequence[int] = (),
    ) -> CellOutput:
        """Runs one child.

        Args:
            images: (batch, 3, height, width), normalised.
            labels: (batch,).
            architecture: the child; optional if there is only one.
            output_hidden_states: the indices n of the H_n to return, ascending.
        """
        *kept, last = self.states(images, architecture, [*output_hidden_states, self.config.num_cells])
        by_index = dict(zip(output_hidden_states, kept, strict=True))
        logits = self.classify(last)
        return CellOutput(
            loss=None if labels is None else nn.functional.cross_entropy(logits, labels),
            logits=logits,
            hidden_states=tuple(map(by_index.get, range(self.config.num_cells + 1))) if by_index else None,
        )

    def states(self, images: Tensor, architecture: Sequence[str] | None, indices: Sequence[int]) -> tuple[Tensor, ...]:
        """Returns the H_n for ascending indices n; cells above the last one are not run.

        Args:
            images: (batch, 3, height, width), normalised.
            architecture: the child; optional if there is only one.
            indices: the indices n, from 0.
        """
        child = self.resolve_architecture(architecture)
        states = [self.stem(images)]
        for number in range(indices[-1]):
            states.append(self.cells[number](self.below_cell(states[-1], number), child))
        return tuple(states[index] for index in indices)

    def extract_child(self, architecture: Sequence[str]) -> "CellSupernet":
        """Returns a child as a separate model, with its weights from this one.

        Raises:
            ValueError: the child is not in the space.
        """
        child = self.resolve_architecture(architecture)
        config = CellConfig(
            self.config.channels,
            self.config.cells_per_stage,
            self.config.num_classes,
            [[operator] for operator in child],
        )
        model = CellSupernet(config)
        own = self.state_dict()
        model.load_state_dict({name: own[name] for name in model.state_dict()})
        model.train(self.training)
        return model.to(self.device)  # type: ignore[arg-type]


def count_cell_parameters(config: CellConfig, child: Sequence[str]) -> int:
    """Returns the number of parameters of a child of these sizes, a baseline for rankings."""
    sizes = (config.channels, config.cells_per_stage, config.num_classes)
    rest = _parameters_of_copies(*sizes, NONE)
    return rest + sum(_parameters_of_copies(*sizes, operator) - rest for operator in child) // len(EDGES)


@cache
def _parameters_of_copies(channels: int, cells_per_stage: int, num_classes: int, operator: str) -> int:
    """Returns the number of parameters of the child with the same operator on all edges."""
    config = CellConfig(channels, cells_per_stage, num_classes, [[operator]] * len(EDGES))
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in CellSupernet(config).parameters())


def count_cell_flops(config: CellConfig, child: Sequence[str], image_size: int = 32) -> int:
    """Returns the FLOPs of a child's convolutions and classifier for an image; a multiply-add counts as 2."""
    size, channels, total = image_size, config.channels, 2 * 27 * config.channels * image_size**2
    for stage in range(NUM_STAGES):
        if stage:
            size, channels = size // 2, 2 * channels
            # Two convolutions of 3 x 3, from half the channels and from all, and the shortcut of 1 x 1.
            total += 2 * size**2 * channels * (9 * channels // 2 + 9 * channels + channels // 2)
        weights = sum(compress(({CONV1: 1, CONV3: 9}.get(operator, 0) for operator in child), reached_edges(child)))
        total += 2 * config.cells_per_stage * weights * channels**2 * size**2
    return total + 2 * channels * config.num_classes
