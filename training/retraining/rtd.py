"""Replaced-token detection, the pre-training of ELECTRA (5.1), for MAGIC and for transformers' own classes.

A generator, a small masked LM, fills the masked positions with draws from its predictions; the discriminator tells for
every token whether it was replaced. `ReplacedTokenModel` holds both, `ReplacedTokenTrainer` is a `Trainer` of them.
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

    It is a `Trainer`: the collator masks, as for a masked LM (`MaskingCollator`, `DataCollatorForLanguageModeling`).
    Either loss is divided by the number of its tokens in the whole accumulated batch of all processes. The draws of a
    sequence follow from `args.seed`, the step and its place in that batch: neither the number of processes, nor how
    the batch is cut into micro-batches, nor a resumption changes them, and the global generator is left alone. Those
    of evaluation follow from its place in the data set, with any seed.

    Logged are `loss_mlm`, `loss_rtd` and what `detection_metrics` returns, over the steps since the last log;
    `evaluate` returns the same with its prefix, and as eval_loss the weighted sum.
    """

    logged_losses = ("loss_mlm", "loss_rtd")

    model: ReplacedTokenModel

    def __init__(
        self, model: ReplacedTokenModel, args: TrainingArguments, rtd_weight: float = RTD_WEIGHT, **kwargs: Any
    ):
        """Takes what `Trainer` takes but `model_init` and `compute_metrics`.

        Args:
            model: generator and discriminator.
            args: any training arguments.
            rtd_weight: of the discriminator's loss beside the generator's.
            **kwargs: see `Trainer`.

        Raises:
            ValueError: the weight is negative, or the arguments ask for something that does not work with two losses.
        """
        if rtd_weight < 0:
            raise ValueError(f"rtd_weight is {rtd_weight}; it must not be negative")
        if args.label_smoothing_factor:
            raise ValueError("label smoothing has no meaning for two losses; leave label_smoothing_factor at 0")
        if args.n_gpu > 1:
            raise ValueError(
                f"this process has {args.n_gpu} GPUs, each of which would sample alike; start one process a GPU with "
                f"torchrun, or set CUDA_VISIBLE_DEVICES to one of them"
            )
        super().__init__(model=model, args=args, **kwargs)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise ValueError(
                "FSDP and DeepSpeed cut models into parts on their own, but generator and discriminator share "
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
        """Returns the micro-batches of a step, and the numbers of masked tokens and of tokens in all of them."""
        self._num_micro_batches = 0
        return super().get_batch_samples(epoch_iterator, num_batches, device)

    def count_items(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns how many masked tokens a micro-batch holds, and how many tokens that are not padding, (2,).

        Raises:
            ValueError: the batch has no labels.
        """
        if "labels" not in batch:
            raise ValueError("the batches have no labels; pass a data_collator that masks, such as MaskingCollator")
        mask = batch.get("attention_mask")
        num_masked = (batch["labels"] != -100).sum()
        return torch.stack([num_masked, torch.ones_like(batch["labels"]).sum() if mask is None else mask.bool().sum()])

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """Returns MLM + `rtd_weight` x RTD of a micro-batch, as its share of the loss of the whole batch."""
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
        """Returns the place of this rank's next sequence, where batches go to the ranks in turn."""
        return (num_batches * self.accelerator.num_processes + self.accelerator.process_index) * batch_size

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Returns the training FLOPs of both models; of models other than MAGIC's, what `Trainer` estimates."""
        generator, discriminator = self.model.generator.config, self.model.discriminator.config
        if not isinstance(generator, MagicConfig) or not isinstance(discriminator, MagicConfig):
            return super().floating_point_ops(inputs)
        batch_size, seq_len = inputs["input_ids"].shape
        return rtd_training_flops(discriminator, generator, seq_len, batch_size * seq_len)

    # ---- Logging ----

    def figures_since_log(self) -> dict[str, float]:
        """Returns both losses and the metrics of the steps since the last log."""
        losses = super().figures_since_log()
        return {**losses, **detection_metrics(self.sum_since_log("counts").tolist())}

    # ---- Evaluation ----

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        """Returns, in the place of logits, the losses and counts of each sequence of a batch."""
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
        # Gathered sequence by sequence: those that fill up the last batch of several processes are not counted twice.
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

    Equal numbers of this and of `costs.training_flops` are equal compute for the two objectives.

    Args:
        discriminator: a child's configuration.
        generator: a child's configuration.
        seq_len: number of tokens of a sequence.
        num_tokens: of all training steps together, masked ones included.
        masked_fraction: part of the tokens that the generator predicts.
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
    """Writes two model folders (see `export_model`), each with the shared embeddings, which Auto classes load.

    Args:
        model: of MAGIC; models of other classes are saved with their own `save_pretrained`.
        tokenizer: the one they were trained with.
        discriminator_dir: for `AutoModelForPreTraining` and, with a new head, every other Auto class.
        generator_dir: for `AutoModelForMaskedLM`.
        manifest: where the discriminator comes from.
        generator_manifest: where the generator comes from.

    Raises:
        ValueError: the models are not MAGIC's, or a folder holds something else.
    """
    pairs = []
    for part, folder, facts in (
        (model.discriminator, discriminator_dir, manifest),
        (model.generator, generator_dir, generator_manifest),
    ):
        if not isinstance(part, MagicPreTrainedModel):
            raise ValueError(f"{type(part).__name__} is not MAGIC's; save it with its own save_pretrained")
        check_export_folder(Path(folder))
        pairs.append((part, folder, facts))
    for part, folder, facts in pairs:
        export_model(part, tokenizer, folder, facts)
