"""A checkpoint as a chain, the super-net around it, text for it, and costs and losses of its children."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from toy import toy_config
from toy_hub import shaken

from modeling_magic import MagicModel, operator_inner_size, parse_operator
from modeling_magic.warm_start import initialize_from
from training.compression.spaces import checkpoint_space
from training.space.budgets import AdditiveCost, Budget, Limit
from training.space.search_space import Architecture, SearchSpace
from training.supernet.journal import RankedChild


CHAIN = ("MHA4", "FFN") * 2
# A chain that was compressed before, whose layers are not blocks.
UNEVEN = ("MHA2x16", "FFNx24", "FFN")


def toy_teacher(chain: Sequence[str] = CHAIN, **changes: Any) -> MagicModel:
    torch.manual_seed(0)
    return shaken(MagicModel(toy_config(0.0, candidate_operators=[[name] for name in chain], **changes)))


def toy_supernet(teacher: MagicModel, candidates: Sequence[Sequence[str]] | None = None) -> MagicModel:
    """The super-net around a checkpoint, which has its own operators; all others are off their start."""
    space = SearchSpace.from_config(candidates or checkpoint_space(teacher.config, ("CONV3",)).to_json())
    torch.manual_seed(1)
    supernet = shaken(MagicModel(toy_config(0.0, candidate_operators=space.to_json())))
    initialize_from(supernet, teacher)
    return supernet


def toy_batches(*lengths: Sequence[int], seed: int = 0) -> list[dict[str, torch.Tensor]]:
    """A batch for each row of lengths of sequences, padded to the longest; one without padding has no mask."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for of_batch in lengths:
        longest = max(of_batch)
        batch = {"input_ids": torch.randint(5, 100, (len(of_batch), longest), generator=generator)}
        if min(of_batch) < longest:
            batch["attention_mask"] = (torch.arange(longest) < torch.tensor(of_batch).unsqueeze(1)).long()
        batches.append(batch)
    return batches


def real(states: torch.Tensor, batch: dict[str, torch.Tensor]) -> np.ndarray:
    """The rows of (batch, seq_len, width) that are no padding, in float64."""
    rows = [row[: int(length)] for row, length in zip(states, lengths_of(batch), strict=True)]
    return torch.cat(rows).double().numpy()


def lengths_of(batch: dict[str, torch.Tensor]) -> torch.Tensor:
    ids = batch["input_ids"]
    return batch.get("attention_mask", torch.ones_like(ids)).sum(dim=1)


# ---- Budgets and losses ----


def toy_cost(space: SearchSpace, fixed: int = 50, **operators: int) -> AdditiveCost:
    """A cost like parameters, 128 of MHA4 and of FFN, but for what `operators` say; SKIP costs nothing."""
    specs = {name: parse_operator(name) for name in space.operator_names}
    each = {"MHA": 4, "FFN": 2, "CONV": 2, "SKIP": 0}
    costs = {name: each[spec.kind] * operator_inner_size(spec, toy_config()) for name, spec in specs.items()}
    return AdditiveCost("num_parameters", fixed, {**costs, **operators})


def at_most(cost: AdditiveCost, largest: float) -> Budget:
    """What a compression makes of a budget: the child of no layers is below it."""
    smallest = min(filter(None, cost.operators.values()))
    return Budget((Limit(cost, cost.fixed + smallest, largest),))


def children_within(space: SearchSpace, budget: Budget) -> list[Architecture]:
    return [child for child in space.children() if budget.allows(child)]


class Losses:
    """Evaluates children by a function, and keeps which ones were asked for, in order."""

    def __init__(self, loss: Callable[[Architecture], float], score: Callable[[Architecture], float] = lambda _: 0.5):
        self.loss, self.score = loss, score
        self.asked: list[Architecture] = []

    def __call__(self, children: Iterable[Architecture]) -> list[RankedChild]:
        distinct = list(dict.fromkeys(children))
        self.asked += distinct
        return [RankedChild(child, self.loss(child), self.score(child)) for child in distinct]
