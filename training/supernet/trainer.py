"""The trainer of the paper's chain-styled super-nets: `SearchTrainer` around a `MagicForMaskedLM`."""

import logging
from typing import Any, cast

from torch import Tensor, nn
from transformers.trainer_utils import TrainOutput

from modeling_magic import MagicModel
from modeling_magic.configuration_magic import parse_operator
from modeling_magic.modeling_magic import MagicPreTrainedModel

from ..space.budgets import Budget
from ..space.costs import training_flops
from ..space.latency import LatencyTable
from ..space.limits import budget_of
from ..space.samplers import UniformSampler
from ..space.search_space import Architecture, SearchSpace
from .anchors import target_states
from .arguments import MagicTrainingArguments
from .runners import ChainRunner, Judge
from .search_trainer import SearchTrainer
from .setup import check_search, search_sampler


logger = logging.getLogger(__name__)


class MagicTrainer(SearchTrainer):
    """Trains a chain-styled super-net, one child per step, with the paper's methods to mitigate interference.

    The attributes are those of `SearchTrainer`.

    Example:
    ```python
    >>> trainer = MagicTrainer(
    ...     model=MagicForMaskedLM(supernet_config),
    ...     args=MagicTrainingArguments("run", max_steps=1000, sampler="gradual", alignment="anchor"),
    ...     train_dataset=data.train,
    ...     eval_dataset=data.validation,
    ...     data_collator=MaskingCollator(data.tokenizer),
    ... )
    >>> trainer.train()
    >>> child = trainer.model.extract_child(trainer.best_child().architecture)
    ```
    """

    model: MagicPreTrainedModel

    def __init__(
        self, model: MagicPreTrainedModel, args: MagicTrainingArguments, judge: Judge | None = None, **kwargs
    ):
        """Takes the arguments of `SearchTrainer`.

        `judge` scores children in validation; the default is masked-LM loss and accuracy.
        """
        self.judge = judge
        super().__init__(model, args, **kwargs)

    # ---- Methods that define a chain ----

    def check_search(self, model: Any, args: MagicTrainingArguments) -> None:
        """Raises an error if the super-net cannot be trained with `args`, see `setup.check_search`."""
        check_search(model.config, args)

    def search_budget(self, model: Any, args: MagicTrainingArguments) -> Budget:
        """Returns the budget given by the arguments, and logs the latency table if there is one."""
        if args.latency_table is not None:
            logger.info(f"{args.latency_table}: {LatencyTable.load(args.latency_table).summary()}")
        return budget_of(model.config, args)

    def search_sampler(self, space: SearchSpace) -> UniformSampler:
        """Returns the sampler of the run over the remaining space, in its initial state."""
        return search_sampler(space, self.model.config, self.args)

    @property
    def num_states(self) -> int:
        """The number of layers: each has one hidden state."""
        return self.full_space.num_layers

    def operator_weights(self, architecture: Architecture) -> list[list[nn.Parameter]]:
        """Returns the parameters of a child's operator in each layer; SKIP has none."""
        path = zip(cast(MagicModel, self.model.base_model).encoder.layer, architecture, strict=True)
        return [list(layer.get_submodule(f"operators.{operator}").parameters()) for layer, operator in path]

    def operator_kind(self, operator: str) -> str:
        """Returns MHA, FFN, CONV or SKIP."""
        return parse_operator(operator).kind

    def child_runner(self) -> ChainRunner:
        """Returns a runner for the layers, with the run's judge."""
        return ChainRunner(self.model, self.judge)

    def child_states(
        self, inputs: dict[str, Any], child: Architecture, aligned: list[int], shared: int, bottom: Tensor | None
    ) -> list[Tensor]:
        """Returns the outputs of a child's aligned layers; those above the last one are not run."""
        encoder = cast(MagicModel, self.accelerator.unwrap_model(self.model_wrapped).base_model)
        return target_states(encoder, inputs, child, aligned, shared, bottom)

    def num_shared_states(self) -> int:
        """Returns the number of layers, from the bottom up, with the same states in child and anchor.

        These layers have the same operators and inputs. Their outputs agree only without dropout, which the anchor
        does not have.
        """
        if not self._alignment_plan.shares_bottoms(self.model.config):
            return 0
        pairs = zip(self.architecture, self._target_children()[0], strict=True)
        return next((layer for layer, (own, other) in enumerate(pairs) if own != other), len(self.architecture))

    # ---- Training ----

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Trains like `SearchTrainer.train`."""
        config, sparse_prediction = self.model.config, self.model.config.sparse_prediction
        # No step needs the logits of tokens that are not masked.
        config.sparse_prediction = True
        try:
            return super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        finally:
            config.sparse_prediction = sparse_prediction

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the FLOPs of this step's child alone, not those of all operators of the super-net."""
        batch_size, seq_len = inputs["input_ids"].shape
        return round(training_flops(self.model.config, self.architecture, seq_len, batch_size * seq_len))
