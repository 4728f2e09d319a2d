"""Replaced-token detection, the pre-training of ELECTRA (5.1), for MAGIC and transformers' own classes.

A generator, a small masked LM, fills the masked positions with draws from its predictions. The discriminator predicts
for every token whether it was replaced. `ReplacedTokenModel` contains both, and `ReplacedTokenTrainer` trains them.
"""

from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainingArguments
from transformers.trainer_callback import PrinterCallback, ProgressCallback
from transformers.trainer_utils import EvalLoopOutput

from modeling_magic import MagicConfig, MagicPreTrainedModel

from ..hub.export import check_export_folder, export_model
from ..losses import AccumulatedLossTrainer
from ..progress import PostfixProgressCallback
from ..space.costs import training_flops
from ..space.search_space import Architecture
from .rtd_model import ReplacedTokenModel, detection_metrics
from .settings import RTD_WEIGHT


class ReplacedTokenTrainer(AccumulatedLossTrainer):
    """Trains a `ReplacedTokenModel` with ELECTRA's loss, MLM + `rtd_weight` x RTD (5.1).

    It is a `Trainer` whose collator masks, as for a masked LM (`MaskingCollator`, `DataCollatorForLanguageModeling`).
    Each loss is divided by the number of its tokens in the whole accumulated batch of all processes. The draws of a
    sequence depend only on `args.seed`, the step and the sequence's position in that batch, but not on the number of
    processes, the split into micro-batches, resuming or the global generator. In evaluation, they depend only on its
    position in the data set, not on the seed.

    It logs `loss_mlm`, `loss_rtd` and the `detection_metrics` over the steps since the last log. `evaluate` returns
    the same with its prefix, and the weighted sum as eval_loss.
    """

    logged_losses = ("loss_mlm", "loss_rtd")

    model: ReplacedTokenModel

    def __init__(
        self, model: ReplacedTokenModel, args: TrainingArguments, rtd_weight: float = RTD_WEIGHT, **kwargs: Any
    ):
        """Takes the arguments of `Trainer` except `model_init` and `compute_metrics`.

        Args:
            model: the generator and the discriminator.
            args: any training arguments.
            rtd_weight: the weight of the discriminator's loss; the generator's has weight 1.
            **kwargs: see `Trainer`.

        Raises:
            ValueError: the weight is negative, or an argument is not supported with two losses.
        """
        if rtd_weight < 0:
            raise ValueError(f"rtd_weight is {rtd_weight}; it must not be negative")
        if args.label_smoothing_factor:
            raise ValueError("label smoothing is not defined for two losses; leave label_smoothing_factor at 0")
        if args.n_gpu > 1:
            raise ValueError(
                f"this process has {args.n_gpu} GPUs, which would all draw the same samples; start one process per "
                f"GPU with torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed split models into parts on their own, but generator and discriminator share "
                "embeddings; train on one device, or on several with DDP"
            )
        self.rtd_weight = rtd_weight
        self._num_micro_batches = 0
        self._num_evaluated_batches = 0
        self.pop_callback(PrinterCallback)
        if self.pop_callback(ProgressCallback) is not None:
            self.add_callback(PostfixProgressCallback(["loss_mlm", "loss_rtd", "discriminator_recall", "eval_loss"]))

    # ---- One step ----

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        """Returns the micro-batches of a step and the total numbers of masked tokens and of tokens in them."""
        self._num_micro_batches = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def count_items(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns the numbers of masked tokens and of tokens that are not padding in a micro-batch, (2,).

        Raises:
            ValueError: the batch has no labels.
        """
        if "labels" not in batch:
            raise ValueError("the batches have no labels; pass a data_collator that masks, such as MaskingCollator")
        mask = batch.get("attention_mask")
        num_masked = (batch["labels"] != -100).sum()
        return torch.stack([num_masked, torch.ones_like(batch["labels"]).sum() if mask is None else mask.bool().sum()])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns MLM + `rtd_weight` x RTD for a micro-batch, as its share of the loss of the whole batch."""
        first = self._first_sequence(self._num_micro_batches, self.args.train_batch_size)
        self._num_micro_batches += 1
        seeds = _sequence_seeds(f"{self.args.seed}-{self.state.global_step}", first, len(inputs["input_ids"]))
        outputs = model(**inputs, num_items_in_batch=num_items_in_batch, sampling_seeds=seeds)
        losses = self.over_processes(torch.stack([outputs.loss_mlm, outputs.loss_rtd]))
        for name, loss in zip(self.logged_losses, losses, strict=True):
            self.add_to_log(name, loss)
        self.add_to_log("counts", outputs.row_counts.sum(dim=0))
        loss = losses[0] + self.rtd_weight * losses[1]
        return (loss, outputs) if return_outputs else loss

    def _first_sequence(self, num_batches: int, batch_size: int) -> int:
        """Returns the position of this rank's next sequence, given that batches go to the ranks in turn."""
        return (num_batches * self.accelerator.num_processes + self.accelerator.process_index) * batch_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the training FLOPs of both models, or the estimate of `Trainer` if they are not MAGIC models."""
        generator, discriminator = self.model.generator.config, self.model.discriminator.config
        if not isinstance(generator, MagicConfig) or not isinstance(discriminator, MagicConfig):
            return super().floating_point_ops(inputs)
        batch_size, seq_len = inputs["input_ids"].shape
        return rtd_training_flops(discriminator, generator, seq_len, batch_size * seq_len)

    # ---- Logging ----

    def figures_since_log(self) -> dict[str, float]:
        """Returns both losses and the metrics over the steps since the last log."""
        losses = super().figures_since_log()
        return {**losses, **detection_metrics(self.sum_since_log("counts").tolist())}

    # ---- Evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns the losses and counts of each sequence of a batch in place of logits."""
        first = self._first_sequence(self._num_evaluated_batches, self.args.eval_batch_size)
        self._num_evaluated_batches += 1
        inputs = send_to_device(inputs, self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            seeds = _sequence_seeds("evaluation", first, len(inputs["input_ids"]))
            outputs = model(**inputs, sampling_seeds=seeds)
        return None, (outputs.row_losses, outputs.row_counts), None

    def evaluation_loop(
        self, dataloader, description, prediction_loss_only=None, ignore_keys=None, metric_key_prefix="eval"
    ) -> EvalLoopOutput:
        """Returns both losses and the metrics over all tokens of the data."""
        self._num_evaluated_batches = 0
        # Gathered per sequence, so that sequences that pad the last batch of several processes are not counted twice.
        output = super().evaluation_loop(dataloader, description, False, ignore_keys, metric_key_prefix)
        gathered: Any = output.predictions
        row_losses, row_counts = gathered
        counts = row_counts.sum(axis=0).tolist()
        sums = row_losses.sum(axis=0, dtype="float64").tolist()
        loss_mlm, loss_rtd = sums[0] / max(counts[0], 1), sums[1] / max(counts[2], 1)
        metrics = {"loss": loss_mlm + self.rtd_weight * loss_rtd, "loss_mlm": loss_mlm, "loss_rtd": loss_rtd}
        metrics |= detection_metrics(counts)
        prefixed = {f"{metric_key_prefix}_{name}": value for name, value in metrics.items()}
        return output._replace(metrics={**(output.metrics or {}), **prefixed})


def _sequence_seeds(key: str, first: int, number: int) -> list[int]:
    digests = [blake2b(f"{key}-{place}".encode(), digest_size=8).digest() for place in range(first, first + number)]
    return [int.from_bytes(digest, "little") for digest in digests]


# ---- Cost and export ----


def rtd_training_flops(
    discriminator: MagicConfig,
    generator: MagicConfig,
    seq_len: int,
    num_tokens: int,
    masked_fraction: float = 0.15,
) -> int:
    """Returns the FLOPs ("electra") of training generator and discriminator on `num_tokens` tokens.

    Equal numbers from this function and `costs.training_flops` mean equal compute for the two objectives.

    Args:
        discriminator: the configuration of a child.
        generator: the configuration of a child.
        seq_len: the number of tokens of a sequence.
        num_tokens: the total over all training steps, including masked tokens.
        masked_fraction: the fraction of tokens that the generator predicts.
    """
    return training_flops(generator, _chain(generator), seq_len, num_tokens, masked_fraction) + training_flops(
        discriminator, _chain(discriminator), seq_len, num_tokens, head="rtd"
    )


def _chain(config: MagicConfig) -> Architecture:
    return tuple(layer[0] for layer in config.candidate_operators)


def export_pair(
    model: ReplacedTokenModel,
    tokenizer: PreTrainedTokenizerBase,
    discriminator_dir: str | Path,
    generator_dir: str | Path,
    manifest: dict[str, Any],
    generator_manifest: dict[str, Any],
) -> None:
    """Writes two model folders (see `export_model`) for the Auto classes, each with the shared embeddings.

    Args:
        model: the pair of MAGIC models; models of other classes have their own `save_pretrained`.
        tokenizer: the tokenizer that they were trained with.
        discriminator_dir: the folder for `AutoModelForPreTraining` and, with a new head, every other Auto class.
        generator_dir: the folder for `AutoModelForMaskedLM`.
        manifest: the origin of the discriminator.
        generator_manifest: the origin of the generator.

    Raises:
        ValueError: the models are not MAGIC models, or a folder contains something else.
    """
    pairs = []
    for part, folder, facts in (
        (model.discriminator, discriminator_dir, manifest),
        (model.generator, generator_dir, generator_manifest),
    ):
        if not isinstance(part, MagicPreTrainedModel):
            raise ValueError(f"{type(part).__name__} is not a MAGIC model; save it with its own save_pretrained")
        check_export_folder(Path(folder))
        pairs.append((part, folder, facts))
    for part, folder, facts in pairs:
        export_model(part, tokenizer, folder, facts)
