"""ELECTRA's generator and discriminator as one model (5.1), with MAGIC or transformers' own classes."""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForTokenClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput

from modeling_magic import MagicConfig
from modeling_magic.configuration_magic import operator_inner_size, parse_operator

from ..objectives import corrupt_tokens, replaced_token_losses, sample_tokens
from .settings import GENERATOR_FRACTION


_SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")


# ---- The generator's size ----


def generator_config(
    config: PreTrainedConfig, fraction: float = GENERATOR_FRACTION, architecture: Sequence[str] | None = None
) -> Any:
    """Returns the configuration of a generator whose width is a fraction of the discriminator's (5.1, ELECTRA).

    Hidden size, intermediate size and heads are scaled; the number of layers is not. The embeddings are as wide as the
    discriminator's, so both models share them, and the generator projects them to its hidden size. If the scaled
    hidden size is not a whole number, it is rounded to the nearest multiple of 8.

    Args:
        config: the configuration of the discriminator: a MAGIC child or another model with an `embedding_size`, such
            as ELECTRA.
        fraction: above 0 and at most 1; ELECTRA uses 1/3 for its base model and 1/4 for the small and the large one.
        architecture: the generator's operators, in its own sizes, such as the BERT pattern `("MHA4", "FFN") * 12`; by
            default those of the discriminator with scaled heads and inner sizes.

    Raises:
        ValueError: the fraction is out of bounds, the discriminator is a super-net, its class has no
            `embedding_size`, or the operators of `architecture` do not fit the generator's hidden size.
    """
    if not 0 < fraction <= 1:
        raise ValueError(f"the generator's fraction is {fraction}; it must be above 0 and at most 1, such as 1/3")
    values = config.to_dict()
    if "embedding_size" not in values:
        raise ValueError(
            f"{type(config).__name__} has no embedding_size, so a narrower generator cannot share its embeddings; "
            f"configure the generator manually, with the discriminator's hidden size"
        )
    hidden_size = _scaled_hidden_size(config.hidden_size, fraction)
    values["hidden_size"] = hidden_size
    values["intermediate_size"] = max(1, round(config.intermediate_size * fraction))
    values["embedding_size"] = config.embedding_size or config.hidden_size
    if isinstance(config, MagicConfig):
        if config.is_supernet:
            raise ValueError("the discriminator is a super-net; use the configuration of a child: child_config")
        chain = architecture or [
            _scaled_operator(layer[0], config, hidden_size, fraction) for layer in config.candidate_operators
        ]
        values["candidate_operators"] = [[operator] for operator in chain]
        values["num_hidden_layers"] = len(chain)
        # With equal widths, there is nothing to project.
        values["embedding_size"] = None if values["embedding_size"] == hidden_size else values["embedding_size"]
    elif architecture is not None:
        raise ValueError(f"only MAGIC models have an architecture; {type(config).__name__} does not, so omit it")
    else:
        values["num_attention_heads"] = _scaled_heads(config.num_attention_heads, hidden_size, fraction)
    return type(config).from_dict(values)


def _scaled_hidden_size(hidden_size: int, fraction: float) -> int:
    # With floats, 1/3 times 768 is 256 only by luck of rounding.
    scaled = hidden_size * Fraction(fraction).limit_denominator(1000)
    return int(scaled) if scaled.denominator == 1 else max(8, 8 * round(scaled / 8))


def _scaled_heads(num_heads: int, inner_size: int, fraction: float) -> int:
    """Returns the largest number of heads that divides `inner_size` and is at most the scaled one."""
    heads = max(1, round(num_heads * fraction))
    return next(number for number in range(min(heads, inner_size), 0, -1) if inner_size % number == 0)


def _scaled_operator(name: str, config: MagicConfig, hidden_size: int, fraction: float) -> str:
    spec = parse_operator(name)
    if spec.inner_size is None:
        heads = _scaled_heads(spec.size, hidden_size, fraction) if spec.kind == "MHA" else spec.size
        return f"{spec.kind}{heads or ''}"
    inner_size = max(1, round(operator_inner_size(spec, config) * fraction))
    if spec.kind != "MHA":
        return f"{spec.kind}{spec.size or ''}x{inner_size}"
    heads = max(1, round(spec.size * fraction))
    # The nearest size that the heads allow.
    return f"MHA{heads}x{heads * max(1, round(inner_size / heads))}"


# ---- The two models as one ----


class ReplacedTokenConfig(PreTrainedConfig):
    """Configuration of a `ReplacedTokenModel`.

    Attributes:
        generator_config: the configuration of the generator as a mapping, with its model_type.
        discriminator_config: the configuration of the discriminator, likewise.
        tie_word_embeddings: whether they share their embeddings.
        pad_token_id: the discriminator's id, like the other two.
    """

    model_type = "replaced_token"

    # If named just "generator", transformers would treat the mapping as the configuration of the text model.
    generator_config: dict[str, Any] | None = None
    discriminator_config: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None


@dataclass
class ReplacedTokenOutput(ModelOutput):
    """The output of a `ReplacedTokenModel`.

    Attributes:
        loss_mlm: cross-entropy of the generator, summed over the masked tokens and divided by their number.
        loss_rtd: binary cross-entropy of the discriminator, summed over the tokens that are not padding and divided by
            their number.
        logits: (batch, seq_len), from the discriminator, positive for tokens predicted as replaced.
        corrupted_ids: (batch, seq_len), the input of the discriminator.
        replaced: (batch, seq_len) bool, true for tokens that differ from the original.
        row_losses: (batch, 2), the two losses summed over the tokens of each sequence, detached.
        row_counts: (batch, 7), counts of each sequence for `detection_metrics`.
    """

    loss_mlm: Tensor | None = None
    loss_rtd: Tensor | None = None
    logits: Tensor | None = None
    corrupted_ids: Tensor | None = None
    replaced: Tensor | None = None
    row_losses: Tensor | None = None
    row_counts: Tensor | None = None


class ReplacedTokenModel(PreTrainedModel):
    """ELECTRA's generator and discriminator, with a single tensor for each shared embedding (5.1).

    All tables in the embeddings (words, positions, token types) and their norm are shared if their names and shapes
    are the same in both models; a projection to the hidden size is never shared. They start from the discriminator's
    values and are trained by both losses.

    The generator is a masked LM whose head treats each position separately: `MagicForMaskedLM` or the classes of
    transformers for ELECTRA, BERT, RoBERTa, DistilBERT, ALBERT and similar models. The discriminator gives one logit
    per token: `MagicForPreTraining`, `ElectraForPreTraining`, or a `...ForTokenClassification` with `num_labels=1` for
    families without such a class. Both use the same tokens.

    Example:
    ```python
    >>> config = load_preset("magic-tiny").child_config(("MHA4", "FFN", "CONV3", "MHA4", "FFN", "CONV5"))
    >>> generator = MagicForMaskedLM(generator_config(config, fraction=1 / 4))
    >>> model = ReplacedTokenModel(generator=generator, discriminator=MagicForPreTraining(config))
    >>> args = TrainingArguments("run", max_steps=1000)
    >>> trainer = ReplacedTokenTrainer(model, args, train_dataset=data.train, data_collator=MaskingCollator(tokenizer))
    >>> trainer.train()
    >>> trainer.model.discriminator.save_pretrained("encoder")
    ```
    """

    config: ReplacedTokenConfig
    config_class = ReplacedTokenConfig
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    # The losses are divided by the numbers of two kinds of tokens, which `ReplacedTokenTrainer` counts.
    accepts_loss_kwargs = False

    def __init__(
        self,
        config: ReplacedTokenConfig | None = None,
        generator: PreTrainedModel | None = None,
        discriminator: PreTrainedModel | None = None,
        tie_embeddings: bool = True,
    ):
        """Takes two models, or the configuration of both, as passed by `from_pretrained`.

        Raises:
            ValueError: the vocabularies differ, or the embeddings to share differ in width.
        """
        if config is None:
            if generator is None or discriminator is None:
                raise ValueError("give a generator and a discriminator, or a ReplacedTokenConfig")
            values = _described(discriminator)
            tokens: dict[str, Any] = {name: values.get(name) for name in _SPECIAL_TOKENS}
            config = ReplacedTokenConfig(
                generator_config=_described(generator),
                discriminator_config=values,
                tie_word_embeddings=tie_embeddings,
                **tokens,
            )
        super().__init__(config)
        # The generator comes first, so that the order of the parameters is that of a masked LM trained alone.
        self.generator = generator or AutoModelForMaskedLM.from_config(_read_config(config.generator_config))
        self.discriminator = discriminator or _build_discriminator(config.discriminator_config)
        if config.tie_word_embeddings:
            self._tied_weights_keys = self._shared_embeddings()
            self._take_embeddings()
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Returns the word embeddings, which both models share."""
        return self.discriminator.get_input_embeddings()

    def _shared_embeddings(self) -> dict[str, str]:
        """Returns the names of the shared tensors in the discriminator, mapped to those in the generator."""
        own, other = _embedding_parameters(self.generator), _embedding_parameters(self.discriminator)
        words = [_word_table(model).shape for model in (self.generator, self.discriminator)]
        if words[0] != words[1]:
            shapes = [" x ".join(map(str, shape)) for shape in words]
            raise ValueError(
                f"the generator's word embeddings are {shapes[0]} but the discriminator's are {shapes[1]}, so they "
                f"cannot be shared; give both the same vocabulary and the generator the embedding_size "
                f"{words[1][1]} (generator_config does), or pass tie_embeddings=False"
            )
        return {
            f"discriminator.{name}": f"generator.{own[key][0]}"
            for key, (name, parameter) in other.items()
            if key in own and own[key][1].shape == parameter.shape
        }

    @torch.no_grad()
    def _take_embeddings(self) -> None:
        for name, source in (self._tied_weights_keys or {}).items():
            self.get_parameter(source).copy_(self.get_parameter(name))

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        num_items_in_batch: Tensor | None = None,
        sampling_seeds: Sequence[int] | None = None,
    ) -> ReplacedTokenOutput:
        """Fills the masked positions with the generator's draws and lets the discriminator detect them.

        Args:
            input_ids: (batch, seq_len), masked.
            attention_mask: (batch, seq_len), 1 = token, 0 = padding; by default, no position is padding.
            token_type_ids: (batch, seq_len), for both models.
            labels: (batch, seq_len), the original token at masked positions, -100 elsewhere.
            num_items_in_batch: (2,), the numbers of masked tokens and of tokens that divide the summed losses; by
                default those of this batch.
            sampling_seeds: a seed per sequence that determines its draws; by default, draws use torch's global
                generator.
        """
        if labels is None:
            raise ValueError("replaced-token detection needs masked inputs with labels, as made by MaskingCollator")
        optional = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
        inputs = {name: tensor for name, tensor in optional.items() if tensor is not None}
        masked = labels != -100
        counted = torch.ones_like(masked) if attention_mask is None else attention_mask.bool()
        generator_logits = self._generator_logits(input_ids, masked, inputs)
        targets = labels[masked]
        log_probs = generator_logits.log_softmax(dim=-1)
        sampled = _sample_by_row(generator_logits, masked, sampling_seeds)
        corrupted, replaced = corrupt_tokens(input_ids, labels, sampled)
        logits = self.discriminator(corrupted, **inputs, return_dict=True).logits
        # Classes for token classification return the one logit in a separate dimension.
        logits = logits.squeeze(-1) if logits.dim() == 3 else logits
        losses_rtd = replaced_token_losses(logits, replaced, counted)
        if num_items_in_batch is None:
            num_items_in_batch = torch.stack([masked.sum(), counted.sum()])
        num_masked, num_tokens = num_items_in_batch.clamp(min=1).unbind()
        with torch.no_grad():
            guessed = generator_logits.argmax(dim=-1) == targets
            losses_mlm = _spread(-log_probs.gather(1, targets.unsqueeze(1)).squeeze(1), masked)
            row_losses = torch.stack([losses_mlm.sum(dim=1), losses_rtd.sum(dim=1)], dim=1)
            row_counts = _count(masked, _spread(guessed, masked), counted, replaced, logits > 0)
        return ReplacedTokenOutput(
            loss_mlm=nn.functional.nll_loss(log_probs, targets, reduction="sum") / num_masked,
            loss_rtd=losses_rtd.sum() / num_tokens,
            logits=logits,
            corrupted_ids=corrupted,
            replaced=replaced,
            row_losses=row_losses,
            row_counts=row_counts,
        )

    def _generator_logits(self, input_ids: Tensor, masked: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Returns the generator's predictions at the masked positions only, (number of them, vocab_size), float32.

        The head is not run on the other positions, because a hook removes them from the output of the encoder.
        """

        def keep_masked(module: nn.Module, args: Any, output: Any) -> Any:
            output.last_hidden_state = output.last_hidden_state[masked].unsqueeze(0)
            return output

        hook = self.generator.base_model.register_forward_hook(keep_masked)
        try:
            return self.generator(input_ids, **inputs, return_dict=True).logits.squeeze(0).float()
        finally:
            hook.remove()


def _described(model: PreTrainedModel) -> dict[str, Any]:
    return {**model.config.to_dict(), "architectures": [type(model).__name__]}


def _read_config(values: dict[str, Any] | None) -> PreTrainedConfig:
    if not values:
        raise ValueError("the configuration has no generator and discriminator; build it from two models")
    return CONFIG_MAPPING[values["model_type"]].from_dict(values)


def _build_discriminator(values: dict[str, Any] | None) -> PreTrainedModel:
    config = _read_config(values)
    of_tokens = any(name.endswith("ForTokenClassification") for name in config.architectures or [])
    return (AutoModelForTokenClassification if of_tokens else AutoModelForPreTraining).from_config(config)


def _word_table(model: PreTrainedModel) -> Tensor:
    table = model.get_input_embeddings().weight
    assert isinstance(table, Tensor)
    return table


def _embedding_parameters(model: PreTrainedModel) -> dict[str, tuple[str, nn.Parameter]]:
    """Returns the parameters that can be shared, by name within the embeddings, with their names in the model.

    The embeddings are the module that contains the word embeddings; its projections, linear maps, are excluded.
    """
    words = model.get_input_embeddings()
    prefix = next(name for name, module in model.named_modules() if module is words).rpartition(".")[0]
    holder = model.get_submodule(prefix)
    linear = [f"{name}." for name, module in holder.named_modules() if isinstance(module, nn.Linear)]
    return {
        name: (f"{prefix}.{name}", parameter)
        for name, parameter in holder.named_parameters()
        if not name.startswith(tuple(linear))
    }


def _sample_by_row(logits: Tensor, masked: Tensor, seeds: Sequence[int] | None) -> Tensor:
    if seeds is None:
        return sample_tokens(logits)
    generator = torch.Generator(device=logits.device)
    rows = logits.detach().split(masked.sum(dim=1).tolist())
    return torch.cat([sample_tokens(row, generator.manual_seed(seed)) for row, seed in zip(rows, seeds, strict=True)])


def _spread(values: Tensor, masked: Tensor) -> Tensor:
    """Returns the values at the masked positions, (batch, seq_len), and 0 elsewhere."""
    return torch.zeros(masked.shape, dtype=values.dtype, device=values.device).masked_scatter(masked, values)


# ---- Metrics ----


def _count(masked: Tensor, guessed: Tensor, counted: Tensor, replaced: Tensor, claimed: Tensor) -> Tensor:
    replaced, claimed = replaced & counted, claimed & counted
    right = (replaced == claimed) & counted
    return torch.stack([masked, guessed, counted, replaced, claimed, replaced & claimed, right], dim=-1).sum(dim=1)


def detection_metrics(counts: Sequence[int]) -> dict[str, float]:
    """Returns the metrics to log; 0 if there is nothing to divide by.

    Args:
        counts: the numbers of masked tokens, of masked tokens that the generator predicted correctly, of tokens, of
            replaced tokens, of tokens predicted as replaced, of those that were replaced, and of tokens that the
            discriminator classified correctly.

    Returns:
        generator_accuracy (of its most likely tokens at the masked positions), replaced_share (of all tokens),
        discriminator_accuracy (of all tokens), and discriminator_precision and discriminator_recall (of replaced
        tokens). Always predicting "original" gives the accuracy 1 - replaced_share.
    """
    masked, guessed, tokens, replaced, claimed, found, right = counts
    return {
        "generator_accuracy": guessed / max(masked, 1),
        "replaced_share": replaced / max(tokens, 1),
        "discriminator_accuracy": right / max(tokens, 1),
        "discriminator_precision": found / max(claimed, 1),
        "discriminator_recall": found / max(replaced, 1),
    }
