"""The two trainings of a compression: a super-net around the checkpoint, and one child distilled from it."""

import random
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..internals import TrainerHooks
from ..losses import AccumulatedLossTrainer
from ..objectives import alignment_loss
from ..space.budgets import BudgetedSpace
from ..space.samplers import UniformSampler
from ..space.search_space import Architecture, SearchSpace
from ..supernet.anchors import target_states
from ..supernet.trainer import MagicTrainer
from .teacher_objectives import TARGET, Objective
from .teaching import COLUMNS


def _forward_inputs(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != TARGET}


class _TeacherLoss:
    """The loss of a step: that of the objective, a mean over the items of the whole accumulated batch."""

    objective: Objective
    input_columns = COLUMNS

    def count_items(self, batch: dict[str, Any]) -> Tensor:
        """Returns how many items a micro-batch holds."""
        return torch.tensor(self.objective.num_items(batch))

    def teacher_loss(self, model: Any, inputs: dict[str, Any], num_items: Tensor) -> tuple[Tensor, Any]:
        """Returns a micro-batch's share of the loss, and the outputs of the forward pass."""
        outputs = model(**_forward_inputs(inputs), return_dict=True)
        own = self.objective.read(outputs, inputs)
        losses = self.objective.losses(own, inputs[TARGET], inputs)
        return self.share(losses.sum(), num_items), outputs  # type: ignore[attr-defined]


class BudgetSampler(UniformSampler):
    """Children of the sizes that are looked for, drawn uniformly among those within one of several budgets.

    Uniform children of a wide space are nearly all of a middling size, so that a super-net which is trained on them
    under-rates small ones.

    Args:
        space: the children to draw from.
        seed: of the sampler's own generator.
        within: the children within each budget; a step draws one of these first.
    """

    kind = "budget"

    def __init__(self, space: SearchSpace, seed: int, within: Sequence[BudgetedSpace]) -> None:
        super().__init__(space, seed)
        self._within = list(within)

    def next(self) -> Architecture:
        """The child of the next training step."""
        return self._rng.choice(self._within).sample(self._rng)

    def restrict(self, space: SearchSpace) -> None:
        """Go on in what shrinking has left of the space."""
        super().restrict(space)
        self._within = [within for one in self._within if (within := one.restricted(space)).size]


class CheckpointTrainer(_TeacherLoss, MagicTrainer):
    """`MagicTrainer` around a checkpoint: L_pred is the objective's loss, and the teacher may be the anchor.

    With a teacher whose weights stay as they are, Eq. (1) pulls the hidden states of every child towards the
    teacher's, from the first step on; no child is validated to find an anchor.
    """

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        within: Sequence[BudgetedSpace] = (),
        anchor_teacher: MagicPreTrainedModel | None = None,
        **kwargs: Any,
    ):
        """Takes what `MagicTrainer` takes.

        Args:
            *args: see `MagicTrainer`.
            objective: of the checkpoint.
            within: children of the sizes that are looked for, drawn in place of the sampler's; none leaves them
                to the sampler.
            anchor_teacher: the checkpoint as a chain, whose states children are aligned to; `None` for none.
            **kwargs: see `MagicTrainer`.
        """
        self.objective, self._within, self._anchor_teacher = objective, within, anchor_teacher
        super().__init__(*args, judge=objective, **kwargs)

    def _set_space(self, space: SearchSpace) -> None:
        super()._set_space(space)
        if self._within:
            self.sampler = BudgetSampler(space, self.args.seed, self._within)

    def prediction_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Tensor, Any]:
        """Returns the objective's loss of the step's child."""
        return self.teacher_loss(model, inputs, num_items_in_batch)

    def _aligned_layers(self) -> list[int]:
        if self._anchor_teacher is None:
            return super()._aligned_layers()
        every = self.args.alignment_every_n_layers
        return list(range(every, self.full_space.num_layers + 1, every))

    def _num_shared_layers(self) -> int:
        # The teacher's weights are not the super-net's.
        return super()._num_shared_layers() if self._anchor_teacher is None else 0

    def alignment_targets(
        self, inputs: dict[str, Any], aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the teacher's states where it is the anchor."""
        teacher = self._anchor_teacher
        if teacher is None:
            return super().alignment_targets(inputs, aligned, shared, bottom)
        encoder = teacher.to(self.args.device).base_model
        return target_states(encoder, inputs, teacher.config.chain, aligned)


class ChildTrainer(_TeacherLoss, TrainerHooks, AccumulatedLossTrainer):
    """Distils one child: the objective's loss and, with a weight, the distance of its last states to the teacher's.

    The states are H_N of child and teacher, compared as in Eq. (1).
    """

    logged_losses = ("loss_teacher", "loss_states")

    def __init__(
        self,
        *args: Any,
        objective: Objective,
        teacher: MagicPreTrainedModel | None = None,
        states_weight: float = 0.0,
        **kwargs: Any,
    ):
        """Takes what `Trainer` takes.

        Args:
            *args: see `Trainer`.
            objective: of the checkpoint.
            teacher: the checkpoint as a chain; only looked at with a `states_weight`.
            states_weight: of the distance of the last states; 0 leaves it out, and the teacher is not run.
            **kwargs: see `Trainer`.
        """
        self.objective, self.teacher, self.states_weight = objective, teacher, states_weight
        super().__init__(*args, **kwargs)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns a micro-batch's share of the loss of the step."""
        if num_items_in_batch is None:
            num_items_in_batch = self.count_items(inputs)
        given = {**inputs, "output_hidden_states": True} if self.states_weight else inputs
        loss, outputs = self.teacher_loss(model, given, num_items_in_batch)
        self.add_to_log("loss_teacher", loss)
        if self.states_weight:
            loss_states = self._states_loss(inputs, outputs.hidden_states[-1])
            self.add_to_log("loss_states", loss_states)
            loss = loss + self.states_weight * loss_states
        return (loss, outputs) if return_outputs else loss

    def _states_loss(self, inputs: dict[str, Any], states: Tensor) -> Tensor:
        assert self.teacher is not None
        teacher = self.teacher.to(self.args.device)
        chain = teacher.config.chain
        with self.accelerator.autocast():
            target = target_states(teacher.base_model, inputs, chain, [len(chain)])
        return alignment_loss([states], target, inputs.get("attention_mask"))


def freeze_embeddings(model: MagicPreTrainedModel) -> None:
    """Keeps the embeddings as the checkpoint has them: no gradient is computed for their tables."""
    model.base_model.embeddings.requires_grad_(False)


def seed_of(*parts: Any) -> int:
    """Returns a seed that follows from its parts, whatever the process."""
    return random.Random("-".join(map(str, parts))).getrandbits(31)
