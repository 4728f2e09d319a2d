"""Interference between cells (section 3): the children's gradients of an operator that they share on one edge."""

import random
from collections.abc import Sequence

import torch
from torch import Tensor

from ..analysis.interference import ChildFamily, Estimate, cosine_matrix, layers_that_differ, mean_off_diagonal
from ..space.search_space import Architecture, SearchSpace
from ..supernet.runners import Batch
from .cell_model import CellSupernet
from .cell_space import CONV3, used_operators


# The edge from the input of the cell to its output, which is used and has a gradient in every child.
SHARED_EDGE = 3


def shared_gradients(
    model: CellSupernet,
    batch: Batch,
    children: Sequence[Architecture],
    operator: str = CONV3,
) -> Tensor:
    """Returns the gradients of the prediction loss on the operator of `SHARED_EDGE` in all cells, one row per child.

    Args:
        model: a super-net.
        batch: the batch, the same for all children.
        children: children with `operator` on that edge.
        operator: o_g, an operator with weights.
    """
    # nn.ModuleList has no type for its elements.
    cells: list[torch.nn.Module] = list(model.cells)
    parameters = [
        parameter for cell in cells for parameter in cell.get_submodule(f"edges.{SHARED_EDGE}.{operator}").parameters()
    ]
    images, labels = (batch[name].to(model.device) for name in ("images", "labels"))
    rows = []
    for child in children:
        gradients = torch.autograd.grad(model(images, labels, child).loss, parameters)
        rows.append(torch.cat([gradient.flatten() for gradient in gradients]))
    return torch.stack(rows)


def interference_curve(
    model: CellSupernet,
    batches: Sequence[Batch],
    space: SearchSpace,
    num_repeats: int,
    seed: int = 0,
) -> dict[int, Estimate]:
    """Returns the mean cosine between children that differ on m edges, for each m, as in Fig. 2 (c).

    Draws in which two of the children differ only on edges that are on no path from the input of the cell to its
    output are repeated: they are the same function, and their cosine is 1 whatever the weights are. Other ways to be
    the same function, such as identities on different nodes, are rare and not recognised.

    Args:
        model: a super-net.
        batches: the batches to draw from.
        space: the space of the children.
        num_repeats: the number of draws of shared operators and a batch.
        seed: the seed of the draws.
    """
    layers = layers_that_differ(space, SHARED_EDGE)
    means: dict[int, list[float]] = {number: [] for number in range(1, len(layers) + 1)}
    for repeat in range(num_repeats):
        rng = random.Random(f"{seed}-{repeat}")
        family = ChildFamily(space, SHARED_EDGE, layers, rng, CONV3)
        while not all(_is_distinct(family.children(number)) for number in means):
            family = ChildFamily(space, SHARED_EDGE, layers, rng, CONV3)
        batch = rng.choice(batches)
        for number, found in means.items():
            gradients = shared_gradients(model, batch, family.children(number))
            found.append(mean_off_diagonal(cosine_matrix(gradients)))
    return {number: Estimate.of(found) for number, found in means.items()}


def _is_distinct(children: Sequence[Architecture]) -> bool:
    """Returns whether the children differ in the operators on paths from the input to the output."""
    return len(set(map(used_operators, children))) == len(children)
