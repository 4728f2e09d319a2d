"""NAS-BERT's block-wise super-net (Xu et al., 2021), the baseline of 5.3 and 5.4, on `Trainer`.

The layers of the super-net and of the teacher are cut into the same number of blocks. Each block is trained on its
own: given the teacher's hidden states at its lower border, it learns to output those at its upper border. Blocks share
no weights and pass no states on, so the loss of a child is the sum of the losses of its blocks' sub-paths: once all
sub-paths are evaluated, C^(N/B) in each of B blocks, all C^N children are ranked.

If the teacher has another width, each block has a linear map from the teacher's states and one back to them. The maps
are trained together with the block, whichever sub-path it runs, and are not part of the super-net or of a child.
Embeddings and the masked-LM head are on no path from border to border, so block-wise training does not change them.
"""

import logging
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel, PreTrainedTokenizerBase

from modeling_magic import MagicConfig, MagicForMaskedLM
from modeling_magic.modeling_magic import MagicModel

from ..bars import progress_bar
from ..data.tokenizing import load_tokenizer
from ..distillation.teacher import check_tokenizers, teacher_inputs
from ..hub.model_folders import model_in
from ..pretrained import pretrained_model
from ..progress import PostfixProgressCallback
from ..space.budgets import is_feasible
from ..space.costs import operator_parameters, training_flops
from ..space.samplers import make_sampler
from ..space.search_space import Architecture, SearchSpace
from ..tables import counted
from .arguments import MagicTrainingArguments
from .blocks import BlockSampler, BlockwiseRanking, block_borders, block_spaces, join_spaces, split_by_borders
from .journal import RankedChild
from .setup import check_search
from .shrinking import Operator, ShrinkRound, operator_scores, sample_children, shrink, shrink_schedule
from .trainer import MagicTrainer


logger = logging.getLogger(__name__)

MAX_PATHS = 100_000
"""Maximum number of sub-paths of a block that are evaluated for a ranking."""


def check_blockwise(
    config: MagicConfig, args: MagicTrainingArguments, num_blocks: int, teacher_config: Any = None
) -> None:
    """Raises a ValueError, before anything is built, if a super-net cannot be trained block by block.

    Args:
        config: configuration of the super-net.
        args: arguments of the run; `num_substitutions` applies to each block.
        num_blocks: B.
        teacher_config: configuration of the teacher; without it the teacher is not checked.
    """
    if args.alignment != "none":
        raise ValueError(f"alignment is {args.alignment!r}, but blocks are aligned to the teacher; set alignment=none")
    if args.n_gpu > 1:
        raise ValueError(
            f"this process has {args.n_gpu} GPUs; start one process per GPU with torchrun, or set "
            f"CUDA_VISIBLE_DEVICES to one of them"
        )
    if args.num_substitutions_from is not None:
        raise ValueError(
            f"num_substitutions_from is {args.num_substitutions_from}, but k is constant in block-wise training; "
            f"remove it"
        )
    space = SearchSpace.from_config(config.candidate_operators)
    spaces = block_spaces(space, block_borders(space.num_layers, num_blocks))
    shortest = min(block.num_layers for block in spaces)
    if args.sampler == "gradual" and args.num_substitutions > shortest:
        raise ValueError(
            f"num_substitutions is {args.num_substitutions} but the shortest of {num_blocks} blocks has {shortest} "
            f"layers; use at most {shortest}, or fewer blocks"
        )
    if not args.shrink:
        _check_paths(spaces)
    if teacher_config is not None and teacher_config.num_hidden_layers < num_blocks:
        raise ValueError(
            f"the teacher has {teacher_config.num_hidden_layers} layers, which cannot be cut into {num_blocks} "
            f"blocks; set num_blocks to at most {teacher_config.num_hidden_layers}, or use a deeper teacher"
        )


def _check_paths(spaces: Sequence[SearchSpace]) -> None:
    largest = max(space.size for space in spaces)
    if largest > MAX_PATHS:
        raise ValueError(
            f"a block has {largest:,} sub-paths, but at most {MAX_PATHS:,} can be evaluated for the ranking; cut the "
            f"super-net into more blocks, or shrink it"
        )


# ---- The teacher ----


def load_teacher_encoder(
    name_or_path: str | Path, tokenizer: PreTrainedTokenizerBase | None = None
) -> PreTrainedModel:
    """Returns the encoder of a trained model of any class, in evaluation mode and with frozen weights.

    Args:
        name_or_path: a folder or a name on the Hub, with its tokenizer, or a run with one such model; heads are
            dropped.
        tokenizer: tokenizer of the super-net, which must split text into the same tokens; `None` skips the check.

    Raises:
        ValueError: the model does not exist, has no trained weights, is a super-net or is not an encoder, or its
            tokenizer differs from the super-net's (see `check_tokenizers`).
    """
    name = model_in(name_or_path)
    if tokenizer is not None:
        check_tokenizers(load_tokenizer(name), tokenizer, name)
    model, info = pretrained_model(AutoModel, name, "the teacher")
    # Masked LMs have no pooler, and none is needed here.
    if missing := sorted(name for name in info["missing_keys"] if "pooler" not in name):
        raise ValueError(f"the teacher {name!r} has no trained weights for {missing[0]}; give a trained encoder")
    if isinstance(model.config, MagicConfig) and model.config.is_supernet:
        raise ValueError(f"the teacher {name!r} is a super-net; export one of its children and give that")
    if model.config.is_encoder_decoder:
        raise ValueError(f"the teacher {name!r} has a decoder; use an encoder, such as BERT or RoBERTa")
    return model.eval().requires_grad_(False)


# ---- The model ----


class BlockwiseModel(nn.Module):
    """The layers of a super-net in blocks, with maps from and to the teacher's width if the widths differ.

    Its parameters are those that block-wise training trains, without the embeddings and the head.

    Args:
        supernet: the super-net, whose layers are trained in place.
        teacher_width: hidden_size of the teacher.
        num_blocks: B.

    Attributes:
        borders: borders of the blocks among the super-net's layers.
        map_in: for each block, the map from the teacher's states to the super-net's width.
        map_out: for each block, the map from its output to the teacher's width.
    """

    def __init__(self, supernet: MagicForMaskedLM, teacher_width: int, num_blocks: int):
        super().__init__()
        # In a tuple, so that its embeddings and its head are not parameters of this module.
        self._whole = (supernet,)
        self.encoder = supernet.magic.encoder
        self.borders = block_borders(len(self.encoder.layer), num_blocks)
        width = supernet.config.hidden_size
        self.map_in = nn.ModuleList(_linear_map(teacher_width, width) for _ in range(num_blocks))
        self.map_out = nn.ModuleList(_linear_map(width, teacher_width) for _ in range(num_blocks))

    @property
    def supernet(self) -> MagicForMaskedLM:
        """The super-net, with embeddings and head."""
        return self._whole[0]

    @property
    def config(self) -> MagicConfig:
        """The super-net's configuration."""
        return self.supernet.config

    @property
    def base_model(self) -> MagicModel:
        """The super-net's encoder with its embeddings."""
        return self.supernet.magic

    def activation_checkpointing_enable(self, **kwargs: Any) -> None:
        """Switches activation checkpointing on in all layers."""
        self.supernet.activation_checkpointing_enable(**kwargs)

    def forward(
        self, border_states: Sequence[Tensor], attention_mask: Tensor | None, architecture: Architecture
    ) -> Tensor:
        """Returns the errors of the blocks of one child, (num_blocks,): sums over tokens of the mean over features.

        Args:
            border_states: the teacher's states at each of the B + 1 borders, (batch, seq_len, teacher width), without
                gradients.
            attention_mask: (batch, seq_len), 1 = token, 0 = padding, which is ignored.
            architecture: the child.
        """
        paths = split_by_borders(architecture, self.borders)
        errors = [
            error
            for block, path in enumerate(paths)
            for error in self.path_errors(block, border_states, attention_mask, [path])
        ]
        return torch.stack(errors)

    def path_errors(
        self,
        block: int,
        border_states: Sequence[Tensor],
        attention_mask: Tensor | None,
        paths: Sequence[Architecture],
    ) -> Iterator[Tensor]:
        """Yields the error of each sub-path of a block, a scalar as in `forward`; shared bottoms are run once.

        Args:
            block: number of the block, from 0.
            border_states: as for `forward`.
            attention_mask: as for `forward`.
            paths: distinct sub-paths, sorted.
        """
        hidden_states = self.map_in[block](border_states[block])
        masks = self.base_model.attention_masks(hidden_states, attention_mask)
        for output in self._outputs(hidden_states, masks, self.borders[block], 0, paths):
            yield block_error(self.map_out[block](output), border_states[block + 1], attention_mask)

    def _outputs(
        self, hidden_states: Tensor, masks: tuple[Any, Any], start: int, depth: int, paths: Sequence[Architecture]
    ) -> Iterator[Tensor]:
        if depth == len(paths[0]):
            yield hidden_states
            return
        for operator, own in groupby(paths, key=lambda path: path[depth]):
            output = self.encoder.layer[start + depth](hidden_states, *masks, operator=operator)
            yield from self._outputs(output, masks, start, depth + 1, list(own))


def _linear_map(source: int, target: int) -> nn.Module:
    return nn.Identity() if source == target else nn.Linear(source, target)


def block_error(output: Tensor, target: Tensor, attention_mask: Tensor | None = None) -> Tensor:
    """Returns the sum over tokens of the mean over features of the squared difference, a float32 scalar.

    Args:
        output: output of a block, (batch, seq_len, width); carries gradients.
        target: the teacher's states, of the same shape.
        attention_mask: (batch, seq_len), 1 = token, 0 = padding, which is ignored.
    """
    errors = (output.float() - target).square().mean(dim=-1)
    return errors.sum() if attention_mask is None else errors[attention_mask.bool()].sum()


# ---- The trainer ----


class BlockwiseTrainer(MagicTrainer):
    """Trains a super-net block by block to imitate a teacher (NAS-BERT), one child per step, and ranks its children.

    A step runs the teacher once and, in each block, a sub-path that the block's own sampler draws: uniformly, or with
    k substitutions in the block (MAGIC-T). The loss is the sum over blocks of the MSE to the teacher's states, a mean
    over features and over the non-padding tokens of the accumulated batch. Blocks share only the learning rate and, if
    gradients are clipped, the norm that `max_grad_norm` limits.

    Shrinking deletes the operators with the highest mean loss over the sub-paths of their own block,
    `shrink_operators_per_round` in each block. NAS-BERT itself deletes whole sub-paths, among those of similar cost.

    Checkpoints, budgets and health are as in `MagicTrainer`. `best_child` validates a sample of the children;
    `ranking` ranks all of them. There is no masked-LM accuracy: it is NaN wherever `MagicTrainer` reports one.

    Example:
    ```python
    >>> trainer = BlockwiseTrainer(
    ...     model=MagicForMaskedLM(supernet_config),
    ...     args=MagicTrainingArguments("run", max_steps=1000, alignment="none"),
    ...     teacher=load_teacher_encoder("google-bert/bert-base-uncased", tokenizer),
    ...     num_blocks=4,
    ...     train_dataset=data.train,
    ...     eval_dataset=data.validation,
    ...     data_collator=MaskingCollator(tokenizer),
    ... )
    >>> trainer.train()
    >>> child = trainer.supernet.extract_child(trainer.ranking().best_children()[0].architecture)
    ```
    """

    # The columns that the collator and the teacher read; the model itself gets the teacher's states.
    input_columns = ("input_ids", "attention_mask", "token_type_ids", "special_tokens_mask", "labels")

    def __init__(
        self,
        model: MagicForMaskedLM,
        args: MagicTrainingArguments,
        teacher: PreTrainedModel,
        num_blocks: int = 4,
        **kwargs: Any,
    ):
        """Takes the arguments of `MagicTrainer` and the teacher; `eval_dataset` is required, to rank blocks on.

        Args:
            model: the super-net, trained in place.
            args: training arguments with `alignment="none"`.
            teacher: an encoder of any class that reads the same tokens, see `load_teacher_encoder`; it is not trained.
            num_blocks: B; 4 in NAS-BERT.

        Raises:
            InfeasibleBudgetError: no child is within the budget.
            ValueError: super-net, teacher and blocks do not fit together (see `check_blockwise`), the teacher's
                vocabulary is smaller than the super-net's, or there is no `eval_dataset`.
        """
        check_search(model.config, args)
        check_blockwise(model.config, args, num_blocks, teacher.config)
        if kwargs.get("eval_dataset") is None:
            raise ValueError("blocks are ranked on held-out text; pass eval_dataset")
        if teacher.config.vocab_size < model.config.vocab_size:
            raise ValueError(
                f"the teacher has {teacher.config.vocab_size} tokens, the super-net {model.config.vocab_size}; use a "
                f"teacher with the same tokenizer"
            )
        self.borders = block_borders(len(model.config.candidate_operators), num_blocks)
        self.teacher_borders = block_borders(teacher.config.num_hidden_layers, num_blocks)
        self.teacher = teacher.eval().requires_grad_(False)
        self.logged_losses = [f"loss_block_{block}" for block in range(num_blocks)]
        blocks = BlockwiseModel(model, teacher.config.hidden_size, num_blocks)
        super().__init__(model=blocks, args=args, **kwargs)  # type: ignore[arg-type]
        # The keys that a batch needs for `evaluate` to compute a loss.
        self.label_names = ["input_ids"]
        if self.pop_callback(PostfixProgressCallback) is not None:
            self.add_callback(PostfixProgressCallback(["loss", "num_operators", "probe_loss_mean", "eval_loss"]))

    @property
    def supernet(self) -> MagicForMaskedLM:
        """The super-net, with its embeddings and head unchanged."""
        return self.blocks.supernet

    @property
    def blocks(self) -> BlockwiseModel:
        """The model that is trained, not wrapped."""
        assert isinstance(self.model, BlockwiseModel)
        return self.model

    def _set_space(self, space: SearchSpace) -> None:
        self.space = space
        self.sampler = BlockSampler(
            [
                make_sampler(
                    self.args.sampler,
                    own,
                    # With a common seed, blocks with the same operators would draw the same sub-paths.
                    seed=random.Random(f"block-{self.args.seed}-{block}").getrandbits(32),
                    num_substitutions=self.args.num_substitutions,
                    cost=lambda operator: operator_parameters(operator, self.model.config),
                )
                for block, own in enumerate(block_spaces(space, self.borders))
            ]
        )

    # ---- One step ----

    def count_items(self, batch: Mapping[str, Any]) -> Tensor:
        """Returns the number of non-padding tokens in a micro-batch."""
        return _num_tokens(batch)

    @torch.no_grad()
    def border_states(self, inputs: Mapping[str, Any]) -> list[Tensor]:
        """Returns the teacher's hidden states at all borders, each (batch, seq_len, teacher width), from one pass."""
        self.teacher.to(self.args.device)
        with self.accelerator.autocast():
            outputs = self.teacher(**teacher_inputs(self.teacher, inputs), output_hidden_states=True, return_dict=True)
        return [outputs.hidden_states[border].float() for border in self.teacher_borders]

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns the sum of the blocks' losses: for this step's child, or in evaluation for the last trained one."""
        training = model.training
        architecture = self.architecture if training else self._evaluated_child()
        errors = model(self.border_states(inputs), inputs.get("attention_mask"), architecture)
        number = num_items_in_batch if training and num_items_in_batch is not None else _num_tokens(inputs)
        number = torch.as_tensor(number, device=errors.device)
        if training:
            losses = self.share(errors, number)
            for name, loss in zip(self.logged_losses, losses, strict=True):
                self.add_to_log(name, loss)
        else:
            losses = errors / number.clamp(min=1)
        loss = losses.sum()
        return (loss, {"loss": loss}) if return_outputs else loss

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the FLOPs of this step's child, without the head, the maps and the teacher."""
        batch_size, seq_len = inputs["input_ids"].shape
        return training_flops(self.model.config, self.architecture, seq_len, batch_size * seq_len, head="none")

    # ---- Validation and ranking ----

    def ranking(self) -> BlockwiseRanking:
        """Returns the ranking of all children that shrinking has left; each block's sub-paths are evaluated once.

        Raises:
            ValueError: a block has more than MAX_PATHS sub-paths.
        """
        spaces = block_spaces(self.space, self.borders)
        _check_paths(spaces)
        losses = self.block_losses([list(space.children()) for space in spaces], progress=True)
        return BlockwiseRanking(self.space, self.borders, losses)

    def block_losses(
        self, paths: Sequence[Sequence[Architecture]], progress: bool = False
    ) -> tuple[dict[Architecture, float], ...]:
        """Returns the loss of sub-paths of each block on the fixed validation slice, without dropout.

        A loss is the mean over tokens and features of the squared difference from the teacher's states; padding is
        ignored. Batches are spread over the ranks; the teacher runs once per batch.

        Args:
            paths: for each block, the sub-paths to evaluate; shared bottoms are run once.
            progress: whether to show a progress bar.
        """
        ordered = [sorted(set(own)) for own in paths]
        sums = [torch.zeros(len(own), dtype=torch.float64) for own in ordered]
        num_tokens = torch.zeros((), dtype=torch.float64)
        accelerator = self.accelerator
        batches = self.validation_batches[accelerator.process_index :: accelerator.num_processes]
        is_shown = progress and accelerator.is_main_process and not self.args.disable_tqdm
        with (
            _evaluating(self.blocks),
            progress_bar(batches, desc="Ranking", unit="batch", disable=not is_shown) as bar,
        ):
            for batch in bar:
                inputs = {name: tensor.to(self.args.device) for name, tensor in batch.items()}
                num_tokens += _num_tokens(inputs).cpu()
                for total, errors in zip(sums, self._errors_of_batch(inputs, ordered), strict=True):
                    total += errors
                best = sum(float(total.min()) for total in sums) / max(float(num_tokens), 1)
                bar.set_postfix(paths=sum(map(len, ordered)), best_loss=f"{best:.4f}")
        if accelerator.num_processes > 1:
            flat = torch.cat([*sums, num_tokens.unsqueeze(0)]).to(accelerator.device)
            *sums, last = accelerator.reduce(flat, reduction="sum").cpu().split([*map(len, ordered), 1])
            num_tokens = last[0]
        means = [(total / num_tokens).tolist() for total in sums]
        return tuple(dict(zip(own, mean, strict=True)) for own, mean in zip(ordered, means, strict=True))

    def _errors_of_batch(self, inputs: dict[str, Tensor], paths: Sequence[Sequence[Architecture]]) -> Iterator[Tensor]:
        states, mask = self.border_states(inputs), inputs.get("attention_mask")
        for block, own in enumerate(paths):
            with self.accelerator.autocast():
                errors = list(self.blocks.path_errors(block, states, mask, own))
            yield torch.stack(errors).cpu().double()

    def _rank(self, architectures: list[Architecture]) -> list[RankedChild]:
        children = list(dict.fromkeys(architectures))
        if not children:
            return []
        paths = zip(*(split_by_borders(child, self.borders) for child in children), strict=True)
        losses = self.block_losses([list(own) for own in paths])
        ranked = []
        for child in children:
            parts = zip(losses, split_by_borders(child, self.borders), strict=True)
            ranked.append(RankedChild(child, sum(own[path] for own, path in parts), math.nan))
        return sorted(ranked, key=lambda child: (math.isnan(child.val_loss), child.val_loss, child.architecture))

    # ---- Shrinking ----

    def _block_schedules(self, max_steps: int) -> list[dict[int, int]]:
        """Returns, for each block, how many operators are deleted after which step."""
        round_every = self.args.shrink_every_n_steps or self._epoch_steps
        if round_every is None:
            raise ValueError("a streamed data set has no epochs; set shrink_every_n_steps")
        per_round = self.args.shrink_operators_per_round
        spaces = block_spaces(self.full_space, self.borders)
        return [dict(shrink_schedule(space, max_steps, round_every, per_round)) for space in spaces]

    def plan_shrinking(self, max_steps: int) -> list[ShrinkRound]:
        """Returns the rounds of a run of `max_steps` steps, each with the deletions of all blocks together.

        Raises:
            ValueError: rounds are at the ends of epochs, but the data set is streamed and has no epochs.
        """
        schedules = self._block_schedules(max_steps)
        steps = sorted({step for schedule in schedules for step in schedule})
        return [ShrinkRound(step, sum(schedule.get(step, 0) for schedule in schedules)) for step in steps]

    def _shrink_round(self, step: int) -> None:
        """Scores each block's operators by the mean loss of the sub-paths that hold them and deletes the worst."""
        spaces = block_spaces(self.space, self.borders)
        paths = [self._sampled_paths(space, block, step) for block, space in enumerate(spaces)]
        losses = self.block_losses(paths)
        deleted: list[Operator] = []
        scored: list[list[Any]] = []
        for block, schedule in enumerate(self._block_schedules(self.state.max_steps)):
            first = self.borders[block]
            scores = operator_scores(spaces[block], losses[block].items())
            allowed = partial(self._is_reachable, spaces, block) if self.budget.limits else None
            spaces[block], gone = shrink(spaces[block], scores, schedule.get(step, 0), allowed)
            deleted += [(first + layer, operator) for layer, operator in gone]
            scored += [[first + layer, operator, score] for (layer, operator), score in scores.items()]
        self.space = join_spaces(spaces)
        self.sampler.restrict(self.space)
        self.shrink_history.append(
            {
                "step": step,
                "deleted": [list(operator) for operator in deleted],
                "scores": scored,
                "space": self.space.to_json(),
                "num_children": max(map(len, paths)),
            }
        )
        logger.info(f"step {step}: {counted(self.space.num_operators, 'operator')} left")

    def _sampled_paths(self, space: SearchSpace, block: int, step: int) -> list[Architecture]:
        if space.size <= self.args.shrink_num_children:
            return list(space.children())
        seed = random.Random(f"paths-{self.args.seed}-{step}-{block}").getrandbits(32)
        return sample_children(space, self.args.shrink_num_children, seed, self.args.shrink_sampling)

    def _is_reachable(self, spaces: Sequence[SearchSpace], block: int, space: SearchSpace) -> bool:
        return is_feasible(join_spaces([*spaces[:block], space, *spaces[block + 1 :]]), self.budget)


def _num_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Returns the number of non-padding tokens in a batch."""
    mask = inputs.get("attention_mask")
    return torch.tensor(inputs["input_ids"].numel()) if mask is None else mask.sum()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Disables gradients and dropout; restores the model's mode afterwards."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
