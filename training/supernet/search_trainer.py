"""The search during training with `Trainer`: sampling (MAGIC-T), alignment (MAGIC-A), the anchor, and shrinking.

`SearchTrainer` does not depend on the kind of layers in a super-net; subclasses implement the methods that do.
"""

import logging
import math
import random
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import TrainOutput

from ..files import write_json
from ..internals import model_collator, num_micro_batches
from ..losses import AccumulatedLossTrainer
from ..objectives import alignment_loss, average_states
from ..progress import PostfixProgressCallback
from ..runs.checkpoints import NAS_STATE_NAME, load_finished, read_nas_state
from ..space.budgets import Budget, BudgetedSpace, is_feasible
from ..space.samplers import GradualSampler, UniformSampler
from ..space.search_space import Architecture, SearchSpace
from ..tables import counted
from .alignment_plan import AlignmentPlan
from .anchors import Anchor, anchor_of_top_percent
from .arguments import MagicTrainingArguments
from .evaluation import evaluate_child, rank_children, validation_batches
from .gradient_watch import GradientWatch
from .health import LOOK_EVERY, SupernetHealth
from .journal import RankedChild
from .runners import ChildRunner
from .shrinking import ShrinkRound, deletions_short, operator_scores, sample_children, shrink, shrink_schedule


logger = logging.getLogger(__name__)


class _SearchCallback(TrainerCallback):
    """Calls the trainer's search during the training loop. All its actions follow from `state.global_step`."""

    def __init__(self, trainer: "SearchTrainer"):
        self._trainer = trainer

    def on_train_begin(self, args, state, control, train_dataloader=None, **kwargs):
        self._trainer._plan_run(state.max_steps, train_dataloader)

    def on_step_begin(self, args, state, control, **kwargs):
        self._trainer._draw_child()

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        self._trainer._record_gradients()

    def on_step_end(self, args, state, control, **kwargs):
        self._trainer._after_step(state.global_step)


class SearchTrainer(AccumulatedLossTrainer, ABC):
    """Trains a super-net, one child per step, with the paper's methods to mitigate interference.

    All random choices of the search come from its own generators, seeded by `args.seed` alone: all ranks draw the same
    children, and a resumed run draws the children that it would have drawn without the stop.

    A subclass defines a kind of super-net: its space, costs and sampler, its states and those of an anchor, the
    weights of its operators, and how children are validated. The model takes the child of a step as `architecture`,
    and the indices of the states to return as `hidden_states` in `output_hidden_states`; index 0 is the states below
    the first layer.

    Attributes:
        space: the search space that shrinking has left.
        budget: limits on the cost of the child to be found; children outside it are trained as well.
        architecture: the child of the current step.
        anchor: the child that others are aligned to, with `alignment="anchor"` the best one seen; `None` before the
            first comparison.
        health: visits and gradient norms of each operator, distances between children, losses of probe children.
        anchor_history: one entry for each change of the anchor.
        shrink_history: one entry for each round, with the deleted operators and the score of every operator.
    """

    logged_losses: Sequence[str] = ("loss_pred", "loss_align")
    # A micro-batch without a token to predict has no mean loss and is ignored.
    drops_nan = True
    divides_in_double = True

    args: MagicTrainingArguments
    model: Any

    def __init__(self, model: Any, args: MagicTrainingArguments, **kwargs):
        """Takes the arguments of `Trainer` except `model_init`; `eval_dataset` is needed to validate children.

        Raises:
            InfeasibleBudgetError: no child is within the budget.
            ValueError: the model is not a super-net, the sampler or the alignment does not fit its layers, there is no
                validation data for the anchor or for shrinking, or FSDP or DeepSpeed is enabled.
        """
        self.check_search(model, args)
        if kwargs.get("eval_dataset") is None and (args.shrink or args.alignment in ("anchor", "top_percent")):
            raise ValueError(
                "the anchor and shrinking validate children; pass eval_dataset, or set alignment='none' and "
                "shrink=False"
            )
        self.full_space = SearchSpace.from_config(model.config.candidate_operators)
        self.budget = self.search_budget(model, args)
        super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed gather weights for whole forward passes, but alignment and validation run parts "
                "of the model on their own; train on one device, or on several with DDP"
            )
        self._resumed: dict[str, Any] | None = None
        self._begin_search()
        self._schedule: list[ShrinkRound] = []
        self._epoch_steps: int | None = None
        # The number of steps per epoch, and with it the warm start, is known only when training begins.
        plan = AlignmentPlan.of(args, self.num_states, epoch_steps=0)
        self._alignment_plan = replace(plan, warmup_steps=0)
        self._probe_every = 1
        self._validation: list[dict[str, Tensor]] | None = None
        self.add_callback(_SearchCallback(self))
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(
                PostfixProgressCallback(["loss_pred", "loss_align", "anchor_accuracy", "num_operators", "eval_loss"])
            )

    # ---- Methods that define a kind of super-net ----

    @abstractmethod
    def check_search(self, model: Any, args: MagicTrainingArguments) -> None:
        """Raises an error, before anything is built, if the model cannot be trained with `args`."""

    def search_budget(self, model: Any, args: MagicTrainingArguments) -> Budget:
        """Returns the budget of the child to be found; by default nothing is limited."""
        return Budget(())

    @abstractmethod
    def search_sampler(self, space: SearchSpace) -> UniformSampler:
        """Returns the sampler of the run over the remaining space, in its initial state."""

    @property
    @abstractmethod
    def num_states(self) -> int:
        """The number of hidden states above H_0 of a child, which Eq. (1) may align."""

    @abstractmethod
    def operator_weights(self, architecture: Architecture) -> list[list[nn.Parameter]]:
        """Returns the parameters of a child's operator in each layer; an empty list if it has no weights."""

    def operator_kind(self, operator: str) -> str:
        """Returns the name under which figures of an operator's kind are logged."""
        return operator

    @abstractmethod
    def child_runner(self) -> ChildRunner:
        """Returns the runner that passes validation batches through children and measures them."""

    @abstractmethod
    def child_states(
        self, inputs: dict[str, Any], child: Architecture, aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the states of an alignment target, without gradients, one tensor for each index in `aligned`.

        Args:
            inputs: tensors of the micro-batch, or of the part of it that is aligned.
            child: the child whose states are returned.
            aligned: indices n of the H_n, ascending.
            shared: index up to which states are already known.
            bottom: the states with index `shared`; `None` if none are known.
        """

    def num_shared_states(self) -> int:
        """Returns the index up to which the step's child and its anchor have the same states, 0 if unknown."""
        return 0

    # ---- Before training ----

    def _begin_search(self) -> None:
        """Puts the search into its state before the first step."""
        self._set_space(self.full_space)
        self._average_rng = random.Random(f"average-{self.args.seed}")
        self._average_children: list[Architecture] = []
        self.architecture: Architecture = ()
        self.anchor: Anchor | None = None
        probe_rng = random.Random(f"probe-{self.args.seed}")
        probes = [self.full_space.sample(probe_rng) for _ in range(self.args.num_probe_children)]
        self.health = SupernetHealth(self.full_space, probes, self.operator_kind)
        self._gradient_watch = GradientWatch(self.args.interference_every_n_steps, self.operator_kind)
        self.anchor_history: list[dict[str, Any]] = []
        self.shrink_history: list[dict[str, Any]] = []

    @property
    def visits(self) -> list[dict[str, int]]:
        """For each layer, how often each operator was trained."""
        return self.health.visits

    def _set_space(self, space: SearchSpace) -> None:
        self.space = space
        self.sampler = self.search_sampler(space)

    def _plan_run(self, max_steps: int, train_dataloader: Any) -> None:
        """Turns epochs into optimizer steps and computes the shrinking schedule, before the first step."""
        # Training may start over: with auto_find_batch_size, or in a second call of train.
        if self._resumed is None:
            self._begin_search()
        else:
            self.load_nas_state(self._resumed)
        try:
            self._epoch_steps = math.ceil(len(train_dataloader) / self.args.gradient_accumulation_steps)
        except TypeError:
            self._epoch_steps = None
        self._alignment_plan = AlignmentPlan.of(self.args, self.num_states, self._epoch_steps)
        for warning in self._alignment_plan.warnings(max_steps):
            logger.warning(warning)
        self._probe_every = self.args.probe_every_n_steps or math.ceil(max_steps / 10)
        self._schedule = self.plan_shrinking(max_steps) if self.args.shrink else []
        done = [entry["step"] for entry in self.shrink_history]
        if done != [entry.step for entry in self._schedule if entry.step <= self.state.global_step]:
            raise ValueError(
                f"the checkpoint was shrunk after the steps {done}, which does not match the schedule of these "
                f"arguments; resume with the shrink_... arguments that it was made with"
            )
        if not self.args.shrink:
            return
        if (short := deletions_short(self.full_space, self._schedule)) == 0:
            logger.info(
                f"shrinking: {len(self._schedule)} rounds, one child is left after step {self._schedule[-1].step}"
            )
        else:
            logger.warning(
                f"shrinking will not end with one child: {max_steps} steps allow {len(self._schedule)} rounds, which "
                f"leave {short} operators too many; train longer, or set shrink_every_n_steps lower or "
                f"shrink_operators_per_round higher"
            )

    def plan_shrinking(self, max_steps: int) -> list[ShrinkRound]:
        """Returns the rounds of a run of `max_steps` steps (see `shrink_schedule`).

        Raises:
            ValueError: rounds are at the ends of epochs, but the data set is streamed and has no epochs.
        """
        round_every = self.args.shrink_every_n_steps or self._epoch_steps
        if round_every is None:
            raise ValueError("a streamed data set has no epochs; set shrink_every_n_steps")
        return shrink_schedule(self.full_space, max_steps, round_every, self.args.shrink_operators_per_round)

    # ---- One step ----

    def _draw_child(self) -> None:
        """Draws alpha_t, once per optimizer step, and the children whose states are averaged, if any."""
        self._schedule_substitutions()
        previous, self.architecture = self.architecture, self.sampler.next()
        self._gradient_watch.begin_step(self.architecture)
        self._num_changes += self.health.add_child(self.architecture, previous, self.space)
        if self.args.alignment == "average":
            self._average_children = [
                self.space.sample(self._average_rng) for _ in range(self.args.num_average_children)
            ]

    def _schedule_substitutions(self) -> None:
        first = self.args.num_substitutions_from
        if first is not None and isinstance(self.sampler, GradualSampler):
            self.sampler.change(round(self._at_this_step(first, self.args.num_substitutions)))

    def _at_this_step(self, first: float, last: float) -> float:
        """Returns a value that moves linearly from `first` at the first step of the training to `last` at the last."""
        share = self.state.global_step / max(self.state.max_steps - 1, 1)
        return first + (last - first) * min(share, 1.0)

    def alignment_weight(self) -> float:
        """Returns lambda of Eq. (2) at this step."""
        last = self.args.alignment_weight_end
        return self.args.alignment_weight if last is None else self._at_this_step(self.args.alignment_weight, last)

    def _aligned_layers(self) -> list[int]:
        """Returns the indices n of the H_n that Eq. (1) sums over in this step; empty during the warm start."""
        step = self.state.global_step + 1
        if not self._alignment_plan.aligns(step, has_anchor=self.anchor is not None):
            return []
        return list(self._alignment_plan.aligned_layers)

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns L_pred + lambda L_align, Eq. (2), in training; in evaluation L_pred of one child.

        That child is the anchor, or the last trained child if there is no anchor.
        """
        if not model.training:
            inputs = {**inputs, "architecture": self._evaluated_child()}
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        aligned = self._aligned_layers()
        shared = self.num_shared_states() if aligned else 0
        aligned = [layer for layer in aligned if layer > shared]
        inputs = {**inputs, "architecture": self.architecture}
        kept = {"output_hidden_states": [shared, *aligned] if shared else aligned} if aligned else {}
        loss, outputs = self.prediction_loss(model, {**inputs, **kept}, num_items_in_batch)
        self.add_to_log("loss_pred", loss)
        if aligned:
            loss_align = self._alignment_loss(inputs, outputs.hidden_states, aligned, shared)
            # A mean over the micro-batches of the step; L_pred is already a mean over the step's masked tokens.
            loss_align = loss_align / num_micro_batches(self)
            self.add_to_log("loss_align", loss_align)
            loss = loss + self.alignment_weight() * loss_align
        return (loss, outputs) if return_outputs else loss

    def prediction_loss(self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any) -> tuple[Tensor, Any]:
        """Returns L_pred of Eq. (2) as a micro-batch's share of the step, here the model's own loss, and the outputs.

        Args:
            model: the model as the step runs it.
            inputs: inputs of the forward pass: the batch, the child, and which hidden states to keep.
            num_items_in_batch: the number of items that the loss of the whole accumulated batch is a mean over.
        """
        loss, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)
        return loss, outputs

    def _evaluated_child(self) -> Architecture:
        if self.anchor is not None:
            return self.anchor.architecture
        return self.architecture or self.space.sample(random.Random(0))

    def _target_children(self) -> list[Architecture]:
        """Returns the children whose mean hidden states are the target: several (3.2), or the anchor (section 4)."""
        if self.args.alignment == "average":
            return self._average_children
        assert self.anchor is not None
        return [self.anchor.architecture]

    def _alignment_loss(
        self, inputs: dict[str, Any], child_states: Sequence[Tensor], aligned: list[int], shared: int
    ) -> Tensor:
        inputs = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        rows = math.ceil(self.args.alignment_batch_fraction * len(next(iter(inputs.values()))))
        inputs = {name: value[:rows] for name, value in inputs.items()}
        bottom = child_states[shared][:rows].detach() if shared else None
        with self.accelerator.autocast():
            targets = self.alignment_targets(inputs, aligned, shared, bottom)
        compared = [self.comparable_states(child_states[layer][:rows]) for layer in aligned]
        targets = [self.comparable_states(target) for target in targets]
        return alignment_loss(compared, targets, inputs.get("attention_mask"))

    def comparable_states(self, states: Tensor) -> Tensor:
        """Returns states of a layer as Eq. (1) compares them: unchanged, since layer norm puts them on one scale."""
        return states

    def alignment_targets(
        self, inputs: dict[str, Any], aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the target states of Eq. (1), one tensor for each aligned layer.

        Args:
            inputs: tensors of the micro-batch, or of the part of it that is aligned.
            aligned: indices n of the H_n.
            shared: index up to which child and target have the same states.
            bottom: the states with index `shared`, `None` if there are none.
        """
        targets = [self.child_states(inputs, child, aligned, shared, bottom) for child in self._target_children()]
        return targets[0] if len(targets) == 1 else average_states(targets)

    def _record_gradients(self) -> None:
        """Passes this step's gradients (unscaled, averaged over the processes, clipped) to the health figures."""
        weights = self.operator_weights(self.architecture)
        step = self.state.global_step + 1
        self.health.add_gradients(step, self.architecture, weights, self.total_grad_norm, self.args.max_grad_norm)
        self._gradient_watch.add_gradients(step, self.architecture, weights)

    # ---- After a step: anchor, shrinking and health ----

    def _after_step(self, step: int) -> None:
        anchor_is_due = self._alignment_plan.anchor_is_due(step, has_anchor=self.anchor is not None)
        if anchor_is_due and self.args.alignment == "anchor":
            self._challenge_anchor(step)
        if any(round_.step == step for round_ in self._schedule):
            self._shrink_round(step)
        if anchor_is_due and self.args.alignment == "top_percent":
            self._rank_for_anchor(step)
        if step % LOOK_EVERY == 0 or step == self.state.max_steps:
            self.health.look(step, self.space)
        # Children cannot be validated on a dict of several evaluation sets.
        if step % self._probe_every == 0 and not isinstance(self.eval_dataset, (dict, NoneType)):
            self.health.add_probes(step, self._rank(self.health.probes_in(self.space)))

    @property
    def validation_batches(self) -> list[dict[str, Tensor]]:
        """The fixed slice of `eval_dataset` on which children are validated, collated once."""
        if self._validation is None:
            size, number = self.args.per_device_eval_batch_size, self.args.num_validation_sequences
            # A collator that masks with torch's global generator gives a resumed run the same masks.
            with torch.random.fork_rng(devices=[]):
                # Not torch.manual_seed, which seeds the generators of all devices.
                torch.default_generator.manual_seed(self.args.seed)
                self._validation = validation_batches(self.eval_dataset, model_collator(self), size, number)
        return self._validation

    def _validate(self, architecture: Architecture) -> RankedChild:
        batches, runner = self.validation_batches, self.child_runner()
        scores = evaluate_child(self.model, batches, architecture, self.accelerator, runner=runner)
        return RankedChild(architecture, *scores)

    def _rank(self, architectures: list[Architecture]) -> list[RankedChild]:
        batches, runner = self.validation_batches, self.child_runner()
        return rank_children(self.model, batches, architectures, self.accelerator, runner=runner)

    def _challenge_anchor(self, step: int) -> None:
        """Compares Val(alpha_t) with Val(anchor), both with the weights of this step (section 4)."""
        previous = self.anchor
        standing = None if previous is None else previous.architecture
        challenger = self._validate(self._alignment_plan.challenger(step, self.architecture, standing))
        if previous is not None and previous.architecture != challenger.architecture:
            previous = replace(previous, val_accuracy=self._validate(previous.architecture).val_accuracy)
            self._set_anchor(previous.challenge(challenger.architecture, challenger.val_accuracy), step)
        else:
            self._set_anchor(Anchor(challenger.architecture, challenger.val_accuracy), step)

    def _rank_for_anchor(self, step: int) -> None:
        """Ranks a pool of uniform children and picks the anchor at the top p% (5.2)."""
        pool = self._pool(self.args.anchor_pool_size, random.Random(f"pool-{self.args.seed}-{step}"))
        previous = self.anchor.architecture if self.anchor and self.anchor.architecture in self.space else None
        ranked = self._rank([*pool, previous] if previous else pool)
        percent, hysteresis = self.args.anchor_top_percent, self.args.anchor_hysteresis_percent
        self._set_anchor(anchor_of_top_percent(ranked, previous, percent, hysteresis), step)

    def _pool(self, num_children: int, rng: random.Random) -> list[Architecture]:
        """Returns `num_children` uniform children, or all children if there are no more."""
        if self.space.size <= num_children:
            return list(self.space.children())
        return [self.space.sample(rng) for _ in range(num_children)]

    def _set_anchor(self, anchor: Anchor, step: int) -> None:
        if self.anchor is None or anchor.architecture != self.anchor.architecture:
            self.anchor_history.append({"step": step, **asdict(anchor)})
        self.anchor = anchor

    def _shrink_round(self, step: int) -> None:
        """Scores each operator by the mean loss of the validated children that hold it and deletes the worst (5.1)."""
        num_deletions = next(round_.num_deletions for round_ in self._schedule if round_.step == step)
        seed, wanted = 1_000_003 * self.args.seed + step, self.args.shrink_num_children
        # A child drawn twice counts once.
        ranked = self._rank(sample_children(self.space, wanted, seed, self.args.shrink_sampling))
        scores = operator_scores(self.space, ((child.architecture, child.val_loss) for child in ranked))
        is_reachable = partial(is_feasible, budget=self.budget) if self.budget.limits else None
        space, deleted = shrink(self.space, scores, num_deletions, is_reachable)
        self.space = space
        self.sampler.restrict(space)
        self.shrink_history.append(
            {
                "step": step,
                "deleted": [list(operator) for operator in deleted],
                "scores": [[layer, operator, score] for (layer, operator), score in scores.items()],
                "space": space.to_json(),
                "num_children": len(ranked),
            }
        )
        if self.anchor is not None and self.anchor.architecture not in space:
            self._replace_anchor(self.anchor, ranked, step)
        logger.info(
            f"step {step}: {counted(space.num_operators, 'operator')} left, deleted "
            + ", ".join(f"{operator} in layer {layer}" for layer, operator in deleted)
        )

    def _replace_anchor(self, deleted: Anchor, ranked: list[RankedChild], step: int) -> None:
        """Replaces an anchor that lost an operator by the best validated child that is left."""
        survivors = [child for child in ranked if child.architecture in self.space]
        if not survivors:
            kept = zip(deleted.architecture, self.space.candidates, strict=True)
            survivors = [self._validate(tuple(name if name in layer else layer[0] for name, layer in kept))]
        best = max(survivors, key=lambda child: child.val_accuracy)
        self._set_anchor(Anchor(best.architecture, best.val_accuracy), step)

    def best_child(self) -> RankedChild:
        """Returns the child that the run has found: the only one left, or the best of a sample and the anchor.

        The sample has `num_best_candidates` children within the budget. They are validated on the fixed slice with the
        current weights, and the child with the lowest validation loss wins.
        """
        candidates = self._pool_within(self.args.num_best_candidates, random.Random(f"best-{self.args.seed}"))
        anchor = None if self.anchor is None else self.anchor.architecture
        if anchor is not None and anchor in self.space and self.budget.allows(anchor):
            candidates.append(anchor)
        return self._rank(candidates)[0]

    def _pool_within(self, num_children: int, rng: random.Random) -> list[Architecture]:
        """Returns `num_children` uniform children within the budget, or all of them if there are no more."""
        if not self.budget.limits:
            return self._pool(num_children, rng)
        within = BudgetedSpace(self.space, self.budget)
        if within.size > num_children:
            return [within.sample(rng) for _ in range(num_children)]
        # Each child is missed with probability exp(-25); the space around them may be too large to enumerate.
        return [within.sample(rng) for _ in range(25 * within.size)]

    # ---- Logging ----

    def figures_since_log(self) -> dict[str, float]:
        """Returns the losses of Eq. (2), the mean distance between children, and figures of search and health."""
        figures = super().figures_since_log()
        figures["num_changed_layers"] = self._num_changes / self.num_steps_since_log
        figures["num_operators"] = self.space.num_operators
        if self.anchor is not None:
            figures["anchor_accuracy"] = self.anchor.val_accuracy
            figures["num_anchors"] = len(self.anchor_history)
        figures |= self.health.scalars(self.space)
        figures |= self._gradient_watch.scalars()
        return figures

    def forget_logged(self) -> None:
        """Resets all sums."""
        super().forget_logged()
        self._num_changes = 0

    def log_window(self) -> dict[str, Any]:
        """Returns the sums since the last log, as JSON."""
        return {**super().log_window(), "num_changes": self._num_changes, "norms": self.health.norms_since_log()}

    def load_log_window(self, window: dict[str, Any] | None) -> None:
        """Restores what `log_window` returned; `None` resets all sums."""
        super().load_log_window(window)
        if window is not None:
            self._num_changes = window["num_changes"]
            self.health.load_norms_since_log(window["norms"])

    # ---- Checkpoints ----

    def nas_state(self) -> dict[str, Any]:
        """Returns the state that the search needs to continue with the same children, as JSON."""
        return {
            "candidate_operators": self.full_space.to_json(),
            "space": self.space.to_json(),
            "sampler": self.sampler.state_dict(),
            "average_rng": self._average_rng.getstate(),
            "architecture": list(self.architecture),
            "anchor": asdict(self.anchor) if self.anchor else None,
            "anchor_history": list(self.anchor_history),
            "shrink_history": list(self.shrink_history),
            "health": self.health.to_json(),
        }

    def load_nas_state(self, state: dict[str, Any]) -> None:
        """Restores what `nas_state` returned.

        Raises:
            InfeasibleBudgetError: shrinking under another budget has left no child within this one.
            ValueError: the state belongs to another version, search space or sampler.
        """
        if missing := sorted(self.nas_state().keys() - state.keys()):
            raise ValueError(
                f"the checkpoint is from another version of this package: it lacks {', '.join(missing)}; choose "
                f"another output folder and train from the start"
            )
        if state["candidate_operators"] != self.full_space.to_json():
            other = SearchSpace.from_json(state["candidate_operators"])
            raise ValueError(
                f"the checkpoint belongs to another search space ({other.num_layers} layers, {other.size:.3g} "
                f"children; this super-net has {self.full_space.num_layers} layers, {self.full_space.size:.3g} "
                f"children); resume with the configuration it was made with, or choose another output folder"
            )
        space = SearchSpace.from_json(state["space"])
        BudgetedSpace(space, self.budget).check()
        self._set_space(space)
        self.sampler.load_state_dict(state["sampler"])
        version, internal, gauss = state["average_rng"]
        self._average_rng.setstate((version, tuple(internal), gauss))
        self.architecture = tuple(state["architecture"])
        anchor = state["anchor"]
        self.anchor = Anchor(tuple(anchor["architecture"]), anchor["val_accuracy"]) if anchor else None
        # A training that starts over reads the state again.
        self.anchor_history = list(state["anchor_history"])
        self.shrink_history = list(state["shrink_history"])
        self._average_children = []
        self.health = SupernetHealth.from_json(self.full_space, state["health"], self.operator_kind)
        self._gradient_watch = GradientWatch(self.args.interference_every_n_steps, self.operator_kind)

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains like `Trainer.train`; resuming also restores the search from the last complete checkpoint.

        Raises:
            ValueError: there is no complete checkpoint to resume from, or it belongs to another search.
        """
        checkpoint = self.checkpoint_to_resume(resume_from_checkpoint)
        self._resumed = None if checkpoint is None else read_nas_state(checkpoint)
        if checkpoint is not None and self._resumed is not None:
            self.load_nas_state(self._resumed)
            if load_finished(self, checkpoint):
                return TrainOutput(self.state.global_step, 0.0, {})
        return super().train(checkpoint, trial, ignore_keys_for_eval)

    def begin_checkpoint(self, folder: Path) -> None:
        """Writes the state of the search to the next checkpoint, before `Trainer` writes everything else."""
        write_json(folder / NAS_STATE_NAME, self.nas_state())
