"""PyTorch MAGIC model: a chain of attention, feed-forward and convolution operators, as a super-net or as one child.

This file is exported next to the weights; it needs only the files that it imports and transformers.
"""

import re
from collections.abc import Callable, Sequence
from os import PathLike
from typing import Any, Self

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask
from transformers import PreTrainedConfig
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPooling,
    MaskedLMOutput,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutput,
    TokenClassifierOutput,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_magic import SKIP, MagicConfig, operator_inner_size, own_operator, parse_operator
from .heads_magic import (
    MagicClassificationHead,
    MagicDiscriminatorHead,
    MagicLMHead,
    MagicPooler,
    check_classes,
    classifier_dropout,
    mean_loss,
)
from .kernels_magic import DepthwiseConv1d, MagicDropout, Packing, dropout, on_plain_cpu


# The class that each Auto class loads, for folders that contain this code.
AUTO_MAP = {
    "AutoConfig": "configuration_magic.MagicConfig",
    "AutoModel": "modeling_magic.MagicModel",
    "AutoModelForMaskedLM": "modeling_magic.MagicForMaskedLM",
    "AutoModelForMultipleChoice": "modeling_magic.MagicForMultipleChoice",
    "AutoModelForPreTraining": "modeling_magic.MagicForPreTraining",
    "AutoModelForQuestionAnswering": "modeling_magic.MagicForQuestionAnswering",
    "AutoModelForSequenceClassification": "modeling_magic.MagicForSequenceClassification",
    "AutoModelForTokenClassification": "modeling_magic.MagicForTokenClassification",
}
_POOLER_IN_HEAD = {r"^(?:magic\.)?pooler\.dense\.": "classifier.dense."}
_LAYER_NUMBER = re.compile(r"(?<=encoder\.layer\.)[0-9]+")


class MagicEmbeddings(nn.Module):
    """H_0: the normed sum of word, token type and position embeddings, as in BERT."""

    def __init__(self, config: MagicConfig):
        super().__init__()
        self.config = config
        width = config.embedding_size or config.hidden_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        # If padding has a position of its own, its embedding is not trained, as in RoBERTa.
        no_position = config.pad_token_id if config.padding_aware_positions else None
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width, padding_idx=no_position)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.LayerNorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = MagicDropout(config.hidden_dropout_prob)
        self.projection = nn.Linear(width, config.hidden_size) if width != config.hidden_size else None

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Returns H_0, (batch, seq_len, hidden), the input of the first layer.

        Position ids default to those that the configuration defines, and token types to 0.
        """
        if inputs_embeds is None:
            inputs_embeds = self.word_embeddings(input_ids)
        # Ids that are equal for the whole batch are looked up once and broadcast: the backward pass is then a sum over
        # the batch instead of a scatter of all tokens.
        if token_type_ids is None:
            token_type_ids = torch.zeros(1, 1, dtype=torch.long, device=inputs_embeds.device)
        elif on_plain_cpu(inputs_embeds) and token_type_ids.numel():
            self._check_token_types(token_type_ids)
        if position_ids is None:
            position_ids = self._positions(input_ids, inputs_embeds)
        embeddings = inputs_embeds + self.token_type_embeddings(token_type_ids)
        embeddings = self.dropout(self.LayerNorm(embeddings + self.position_embeddings(position_ids)))
        return embeddings if self.projection is None else self.projection(embeddings)

    def _check_token_types(self, token_type_ids: torch.Tensor) -> None:
        largest, num_types = int(token_type_ids.max()), self.config.type_vocab_size
        if largest >= num_types:
            raise ValueError(
                f"token_type_ids go up to {largest} but the model has {num_types} token types; omit them, for example "
                f"with tokenizer(..., return_token_type_ids=False)"
            )

    def _positions(self, input_ids: torch.Tensor | None, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """Returns position ids, (1, seq_len), or (batch, seq_len) if they depend on padding."""
        seq_len, longest = inputs_embeds.shape[1], self.config.max_sequence_length
        if not torch.compiler.is_compiling() and seq_len > longest:
            raise ValueError(
                f"the sequence has {seq_len} tokens but the model has {longest} positions; truncate it, for example "
                f"with tokenizer(..., truncation=True, max_length={longest})"
            )
        first = self.config.first_position
        if not self.config.padding_aware_positions or input_ids is None:
            return torch.arange(first, first + seq_len, device=inputs_embeds.device).unsqueeze(0)
        pad = first - 1
        is_token = input_ids.ne(pad).long()
        return is_token.cumsum(dim=1) * is_token + pad


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scaled dot-product attention in plain PyTorch.

    Args:
        module: the attention operator; its `training` flag controls the dropout.
        query: (batch, heads, seq_len, head_size), like key and value.
        attention_mask: (batch, 1, seq_len or 1, seq_len), a float to add to the scores or a bool that is true for
            visible tokens.
        dropout: the probability of dropping an attention weight.

    Returns:
        The context, (batch, seq_len, heads, head_size), and the attention weights.
    """
    scores = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None and attention_mask.dtype == torch.bool:
        scores = scores.masked_fill(~attention_mask, torch.finfo(scores.dtype).min)
    elif attention_mask is not None:
        scores = scores + attention_mask
    weights = _dropout(nn.functional.softmax(scores, dim=-1), dropout, module.training)
    return torch.matmul(weights, value).transpose(1, 2).contiguous(), weights


# transformers passes the probability to every attention function under the name `dropout`.
_dropout = dropout


class MagicAttention(nn.Module):
    """MHA: multi-head self-attention, followed by the residual sum and its norm, as in BERT (5.1)."""

    def __init__(self, config: MagicConfig, num_heads: int, inner_size: int):
        super().__init__()
        self.config = config
        self.head_size = inner_size // num_heads
        self.scaling = self.head_size**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False
        self.query = nn.Linear(config.hidden_size, inner_size)
        self.key = nn.Linear(config.hidden_size, inner_size)
        self.value = nn.Linear(config.hidden_size, inner_size)
        self.dense = nn.Linear(inner_size, config.hidden_size)
        self.dropout = MagicDropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def _attention_function(self, hidden_states: torch.Tensor) -> Callable:
        # With dropout on the attention weights, sdpa on a CPU has only its slow path, which also draws masks slowly.
        drops = self.training and self.attention_dropout
        if drops and self.config._attn_implementation == "sdpa" and on_plain_cpu(hidden_states):
            return eager_attention_forward
        return ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, eager_attention_forward)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Returns the normed output (batch, seq_len, hidden) and the attention weights if the function returns any."""
        output, weights = self._attend(hidden_states, attention_mask, packing, **kwargs)
        output = self.dense(output)
        return self.LayerNorm(self.dropout(output) + hidden_states), weights

    def _attend(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None, packing: Packing | None, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        # A separate method, so that queries, keys and values are freed before the output projection: on a CPU, their
        # memory is then reused while it is still in the cache.
        batch_and_length = hidden_states.shape[:-1]
        heads = (*batch_and_length, -1, self.head_size)
        query = self.query(hidden_states).view(heads).transpose(1, 2)
        key = self.key(hidden_states).view(heads).transpose(1, 2)
        value = self.value(hidden_states).view(heads).transpose(1, 2)
        arguments = {"dropout": self.attention_dropout if self.training else 0.0, "scaling": self.scaling, **kwargs}
        attend = self._attention_function(hidden_states)
        if packing is None:
            context, weights = attend(self, query, key, value, attention_mask, **arguments)
        else:
            sequences = zip(*(states.split(packing.lengths, dim=2) for states in (query, key, value)), strict=True)
            contexts = [attend(self, *sequence, None, **arguments)[0] for sequence in sequences]
            context, weights = torch.cat(contexts, dim=1), None
        return context.reshape(*batch_and_length, -1).contiguous(), weights


class MagicFeedForward(nn.Module):
    """FFN: hidden -> inner, activation, inner -> hidden, then the residual sum and its norm, as in BERT (5.1)."""

    def __init__(self, config: MagicConfig, inner_size: int):
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, inner_size)
        self.activation = ACT2FN[config.hidden_act]
        self.dense = nn.Linear(inner_size, config.hidden_size)
        self.dropout = MagicDropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, None]:
        """Returns the normed output (batch, seq_len, hidden) and no attention weights."""
        output = self.dense(self.activation(self.intermediate(hidden_states)))
        return self.LayerNorm(self.dropout(output) + hidden_states), None


class MagicConvolution(nn.Module):
    """CONV: depth-wise separable convolution, followed by the residual sum and its norm (5.1).

    The paper does not specify the order; here it is point-wise hidden -> inner, activation, depth-wise over
    `kernel_size` tokens, point-wise inner -> hidden. Padding is read as zero, so the number of pad tokens never
    changes the output at a real token.
    """

    def __init__(self, config: MagicConfig, kernel_size: int, inner_size: int):
        super().__init__()
        self.intermediate = nn.Linear(config.hidden_size, inner_size)
        self.activation = ACT2FN[config.hidden_act]
        self.depthwise = DepthwiseConv1d(inner_size, kernel_size)
        self.dense = nn.Linear(inner_size, config.hidden_size)
        self.dropout = MagicDropout(config.hidden_dropout_prob)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, None]:
        """Returns the normed output (batch, seq_len, hidden) and no attention weights."""
        inner = self.activation(self.intermediate(hidden_states))
        if padding_mask is not None:
            inner = inner * padding_mask.to(inner.dtype)
        inner = self.depthwise(inner, packing)
        return self.LayerNorm(self.dropout(self.dense(inner)) + hidden_states), None


class MagicSkip(nn.Module):
    """SKIP: the identity, without a residual sum or norm."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, None]:
        """Returns its input (batch, seq_len, hidden) and no attention weights."""
        return hidden_states, None


def _build_operator(config: MagicConfig, name: str) -> nn.Module:
    spec = parse_operator(name)
    inner_size = operator_inner_size(spec, config)
    if (own := own_operator(spec.kind)) is not None:
        return own(config, spec.size, inner_size)
    if spec.kind == "MHA":
        return MagicAttention(config, spec.size, inner_size)
    if spec.kind == "FFN":
        return MagicFeedForward(config, inner_size)
    if spec.kind == "CONV":
        return MagicConvolution(config, spec.size, inner_size)
    return MagicSkip()


class MagicLayer(GradientCheckpointingLayer):
    """One layer of the chain, with its candidate operators; a forward pass runs one of them."""

    def __init__(self, config: MagicConfig, candidates: Sequence[str]):
        super().__init__()
        self.operators = nn.ModuleDict({name: _build_operator(config, name) for name in candidates})

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        operator: str = "",
        packing: Packing | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Returns H_n, the output of `operator` on H_(n-1); both (batch, seq_len, hidden)."""
        return self.operators[operator](hidden_states, attention_mask, padding_mask, packing, **kwargs)[0]


class MagicEncoder(nn.Module):
    """The chain of N layers."""

    def __init__(self, config: MagicConfig):
        super().__init__()
        self.layer = nn.ModuleList(MagicLayer(config, candidates) for candidates in config.candidate_operators)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None,
        padding_mask: torch.Tensor | None,
        architecture: Sequence[str],
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Returns H_N of the child `architecture` from H_0; both (batch, seq_len, hidden)."""
        for layer, operator in zip(self.layer, architecture, strict=True):
            hidden_states = layer(hidden_states, attention_mask, padding_mask, operator=operator, **kwargs)
        return hidden_states


class MagicPreTrainedModel(PreTrainedModel):
    """Base class of all MAGIC models: initialisation, selection of a child, and its extraction."""

    config: MagicConfig
    base_model_prefix = "magic"
    # It makes transformers save this code next to the weights.
    _auto_class: str | None = None  # type: ignore[assignment]
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _no_split_modules = ["MagicEmbeddings", "MagicLayer"]
    _can_record_outputs = {"hidden_states": MagicLayer, "attentions": MagicAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, DepthwiseConv1d):
            # A filter has only as many inputs as taps; `initializer_range`, for wide layers, would nearly mute it.
            init.normal_(module.weight, mean=0.0, std=module.kernel_size[0] ** -0.5)
        elif isinstance(module, MagicLMHead):
            init.zeros_(module.bias)

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | PathLike | None, *model_args: Any, **kwargs: Any
    ) -> Self:
        """Loads like `PreTrainedModel.from_pretrained`, and keeps a checkpoint's pooler as BERT's classes do.

        A head whose first layer is the pooler starts from the checkpoint's pooler, and a `MagicModel` gets its pooler
        back from such a head.
        """
        config: Any = kwargs.get("config")
        if not isinstance(config, PreTrainedConfig):
            try:
                config = MagicConfig.from_pretrained(config or pretrained_model_name_or_path, **kwargs)  # type: ignore[arg-type]
            except OSError:
                # The folder of an adapter, or nothing loadable; transformers handles both cases.
                return super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        renamed = cls._pooler_names(config)
        kwargs["key_mapping"] = {**renamed, **(kwargs.get("key_mapping") or {})} or None
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        # Otherwise, renamed weights would be saved under the names they were loaded from.
        model._weight_conversions = [
            conversion
            for conversion in getattr(model, "_weight_conversions", None) or ()
            if not renamed.keys() & set(conversion.source_patterns)
        ]
        return loaded

    @classmethod
    def _pooler_names(cls, config: MagicConfig) -> dict[str, str]:
        """Returns patterns for the names of a checkpoint's pooler, mapped to the names in this class."""
        return {}

    def save_pretrained(self, save_directory: str | PathLike, *args: Any, **kwargs: Any) -> None:
        """Saves like `PreTrainedModel.save_pretrained`, with this code next to the weights.

        Every Auto class can then load the folder without the package, with `trust_remote_code=True`.
        """
        before = getattr(self.config, "auto_map", None)
        self.config.auto_map = dict(AUTO_MAP)
        try:
            super().save_pretrained(save_directory, *args, **kwargs)
        finally:
            if before is None:
                del self.config.auto_map
            else:
                self.config.auto_map = before

    def resolve_architecture(self, architecture: Sequence[str] | None) -> Sequence[str]:
        """Returns the child to run: `architecture` after a check, or the only child if no layer offers a choice.

        Raises:
            ValueError: the model is a super-net and no architecture is given, its length is wrong, or a layer does not
                offer its operator.
        """
        candidates = self.config.candidate_operators
        if architecture is None:
            if self.config.is_supernet:
                raise ValueError(
                    f"this model is a super-net of {len(candidates)} layers; choose the child to run with "
                    f"architecture=(one operator name per layer), or extract one with extract_child"
                )
            return [layer[0] for layer in candidates]
        if len(architecture) != len(candidates):
            raise ValueError(
                f"the architecture has {len(architecture)} operators but the model has {len(candidates)} layers; "
                f"give one operator name per layer"
            )
        for index, (operator, layer) in enumerate(zip(architecture, candidates, strict=True)):
            if operator not in layer:
                raise ValueError(f"layer {index} has no operator {operator!r}; candidates: {', '.join(layer)}")
        return architecture

    def extract_child(self, architecture: Sequence[str]) -> Self:
        """Returns the child `architecture` as a separate model of the same class, with copies of its tensors.

        Skipped layers are removed, and the layers above them move down.

        Raises:
            ValueError: see `resolve_architecture`; or every layer is skipped.
        """
        architecture = self.resolve_architecture(architecture)
        config = self.config.child_config(architecture)
        layers = [index for index, operator in enumerate(architecture) if operator != SKIP]

        def own_name(name: str) -> str:
            return _LAYER_NUMBER.sub(lambda number: str(layers[int(number[0])]), name, count=1)

        if isinstance(self, MagicModel):
            config.add_pooling_layer = self.pooler is not None
        # On the meta device, so that the random generator is not used for weights that are replaced anyway.
        with torch.device("meta"):
            child = type(self)(config)
        own = self.state_dict()
        if any(tensor.is_meta for tensor in own.values()):
            raise ValueError("the model's weights are offloaded; load it without offloading to extract a child")
        child.load_state_dict({name: own[own_name(name)].detach().clone() for name in child.state_dict()}, assign=True)
        child.tie_weights()
        return child.train(self.training)


class MagicModel(MagicPreTrainedModel):
    """The bare MAGIC encoder or super-net, which returns the hidden states of one child."""

    _auto_class = "AutoModel"

    def __init__(self, config: MagicConfig, add_pooling_layer: bool | None = None):
        """Builds the model; `add_pooling_layer` overrides the configuration."""
        super().__init__(config)
        self.embeddings = MagicEmbeddings(config)
        self.encoder = MagicEncoder(config)
        add_pooling_layer = config.add_pooling_layer if add_pooling_layer is None else add_pooling_layer
        self.pooler = MagicPooler(config) if add_pooling_layer else None
        self.post_init()

    @classmethod
    def _pooler_names(cls, config: MagicConfig) -> dict[str, str]:
        return {r"^classifier\.dense\.": "pooler.dense."} if config.pooler_classifies else {}

    def get_input_embeddings(self) -> nn.Embedding:
        """Returns the word embeddings."""
        return self.embeddings.word_embeddings

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replaces the word embeddings."""
        self.embeddings.word_embeddings = value  # type: ignore[assignment]

    def attention_masks(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None
    ) -> tuple[torch.Tensor | BlockMask | None, torch.Tensor | None]:
        """Returns the two masks for all layers, from the user's mask (batch, seq_len), 1 = token, 0 = padding.

        The first has the form that the attention function in use needs. The second, (batch, seq_len, 1), is multiplied
        with the input of convolutions.
        """
        for_attention = create_bidirectional_mask(
            config=self.config, inputs_embeds=hidden_states, attention_mask=attention_mask
        )
        if attention_mask is None:
            return for_attention, None
        if attention_mask.dim() != 2:
            if any(parse_operator(name).kind == "CONV" for layer in self.config.candidate_operators for name in layer):
                raise ValueError(
                    f"the attention_mask has {attention_mask.dim()} dimensions; CONV operators need the "
                    f"two-dimensional one, (batch, seq_len)"
                )
            return for_attention, None
        return for_attention, attention_mask.unsqueeze(-1).to(hidden_states.device)

    def _packing(self, attention_mask: torch.Tensor | None, kwargs: dict) -> Packing | None:
        if not self.config.unpad_inputs or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return None
        recorded = ("output_hidden_states", "output_attentions")
        if any(kwargs.get(name, getattr(self.config, name, False)) for name in recorded):
            return None
        return None if attention_mask is None or attention_mask.dim() != 2 else Packing.of(attention_mask)

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Runs one child.

        Args:
            input_ids: (batch, seq_len) token ids; or give `inputs_embeds`, (batch, seq_len, embedding_size or hidden).
            attention_mask: (batch, seq_len), 1 = token, 0 = padding.
            token_type_ids: (batch, seq_len), 0 by default.
            position_ids: (batch, seq_len); by default they are counted as the configuration defines it.
            architecture: the child to run, one operator name per layer; optional if there is only one child.
            **kwargs: `output_hidden_states` (true, or the indices n of the H_n to keep), `output_attentions`.

        Returns:
            last_hidden_state (batch, seq_len, hidden), pooler_output (batch, hidden) if there is a pooler, and on
            request hidden_states (H_0 to H_N) and attentions (one for each MHA of the child).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        architecture = self.resolve_architecture(architecture)
        hidden_states = self.embeddings(input_ids, token_type_ids, position_ids, inputs_embeds)
        packing = self._packing(attention_mask, kwargs)
        if packing is None:
            masks = self.attention_masks(hidden_states, attention_mask)
            hidden_states = self.encoder(hidden_states, *masks, architecture, **kwargs)
        else:
            packed = packing.pack(hidden_states)
            hidden_states = packing.unpack(self.encoder(packed, None, None, architecture, packing=packing, **kwargs))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states,
            pooler_output=None if self.pooler is None else self.pooler(hidden_states),
        )


class MagicForMaskedLM(MagicPreTrainedModel):
    """MAGIC encoder or super-net with BERT's masked-LM head."""

    _auto_class = "AutoModelForMaskedLM"

    _tied_weights_keys = {
        "lm_head.decoder.weight": "magic.embeddings.word_embeddings.weight",
        "lm_head.decoder.bias": "lm_head.bias",
    }

    def __init__(self, config: MagicConfig):
        """Builds the model, without a pooler."""
        super().__init__(config)
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.lm_head = MagicLMHead(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Linear:
        """Returns the decoder."""
        return self.lm_head.decoder

    def set_output_embeddings(self, new_embeddings: nn.Linear) -> None:
        """Replaces the decoder and its bias."""
        self.lm_head.decoder = new_embeddings
        self.lm_head.bias = new_embeddings.bias

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MaskedLMOutput:
        """Predicts masked tokens with one child; see `MagicModel.forward` for the other arguments.

        Args:
            labels: (batch, seq_len), the token to predict, -100 = not predicted.
            **kwargs: also `num_items_in_batch`, a divisor for the summed loss in place of the number of labels.

        Returns:
            loss if labels are given, and logits (batch, seq_len, vocab_size). With `config.sparse_prediction` and
            labels, the logits cover only the labelled positions, (number of them, vocab_size), in reading order.
        """
        outputs = self.magic(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        hidden_states = outputs.last_hidden_state
        if self.config.sparse_prediction and labels is not None:
            labelled = labels != -100
            hidden_states, labels = hidden_states[labelled], labels[labelled]
        logits = self.lm_head(hidden_states)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        return MaskedLMOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MagicForPreTraining(MagicPreTrainedModel):
    """MAGIC encoder with ELECTRA's discriminator on top, which detects replaced tokens."""

    _auto_class = "AutoModelForPreTraining"

    # The loss is a mean over the tokens that are not padding; the Trainer does not count those.
    accepts_loss_kwargs = False

    def __init__(self, config: MagicConfig):
        """Builds the model, without a pooler."""
        super().__init__(config)
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.discriminator = MagicDiscriminatorHead(config)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Distinguishes replaced tokens from original ones; see `MagicModel.forward` for the other arguments.

        Args:
            labels: (batch, seq_len), 1 = replaced, 0 = original, -100 = ignored, like padding.

        Returns:
            loss if labels are given, the mean binary cross-entropy; logits (batch, seq_len), positive = replaced.
        """
        outputs = self.magic(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        logits = self.discriminator(outputs.last_hidden_state)
        loss = None
        if labels is not None:
            counted = labels != -100
            if attention_mask is not None:
                counted = counted & attention_mask.bool()
            loss = nn.functional.binary_cross_entropy_with_logits(logits[counted], labels[counted].to(logits.dtype))
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MagicForSequenceClassification(MagicPreTrainedModel):
    """MAGIC encoder that predicts a class, several classes or numbers for sequences (see `config.problem_type`)."""

    _auto_class = "AutoModelForSequenceClassification"

    def __init__(self, config: MagicConfig):
        """Builds the model for `config.num_labels` outputs."""
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.classifier = MagicClassificationHead(config, self.num_labels, config.classifier_input_dropout)
        self.post_init()

    @classmethod
    def _pooler_names(cls, config: MagicConfig) -> dict[str, str]:
        return _POOLER_IN_HEAD if config.pooler_classifies else {}

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutput:
        """Classifies sequences; see `MagicModel.forward` for the other arguments.

        Args:
            labels: (batch,) classes; (batch,) or (batch, num_labels) numbers for regression; or (batch, num_labels) of
                0 and 1 for several classes at once. If `config.problem_type` is not set, it is derived from the
                labels, as everywhere in transformers.
            **kwargs: also `num_items_in_batch`, the number of labels in the whole accumulated batch.

        Returns:
            loss if labels are given, and logits (batch, num_labels).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.magic(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.last_hidden_state)
        loss = None if labels is None else self._loss(logits, labels.to(logits.device), num_items_in_batch)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        if self.config.problem_type is None:
            if logits.shape[-1] == 1:
                self.config.problem_type = "regression"
            elif labels.dtype in (torch.long, torch.int):
                self.config.problem_type = "single_label_classification"
            else:
                self.config.problem_type = "multi_label_classification"
        if self.config.problem_type == "single_label_classification":
            check_classes(labels, logits.shape[-1])
            return self.loss_function(
                labels=labels, pooled_logits=logits, config=self.config, num_items_in_batch=num_items_in_batch
            )
        labels = labels.to(logits.dtype).view_as(logits)
        if self.config.problem_type == "regression":
            return mean_loss(nn.functional.mse_loss(logits, labels, reduction="none"), num_items_in_batch)
        losses = nn.functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
        return mean_loss(losses, num_items_in_batch)


class MagicForTokenClassification(MagicPreTrainedModel):
    """MAGIC encoder that classifies every token."""

    _auto_class = "AutoModelForTokenClassification"

    def __init__(self, config: MagicConfig):
        """Builds the model for `config.num_labels` classes."""
        super().__init__(config)
        self.num_labels: int = config.num_labels or 2
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.dropout = classifier_dropout(config)
        self.classifier = nn.Linear(config.hidden_size, self.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """Classifies tokens; see `MagicModel.forward` for the other arguments.

        Args:
            labels: (batch, seq_len) classes, -100 = ignored.
            **kwargs: also `num_items_in_batch`, the number of labels in the whole accumulated batch.

        Returns:
            loss if labels are given, and logits (batch, seq_len, num_labels).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        outputs = self.magic(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            check_classes(labels, logits.shape[-1])
            loss = self.loss_function(logits, labels, self.config, num_items_in_batch=num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class MagicForQuestionAnswering(MagicPreTrainedModel):
    """MAGIC encoder that extracts the span of an answer."""

    _auto_class = "AutoModelForQuestionAnswering"

    def __init__(self, config: MagicConfig):
        """Builds the model."""
        super().__init__(config)
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.qa_outputs = nn.Linear(config.hidden_size, 2)
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.Tensor | None = None,
        end_positions: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """Predicts the start and end of an answer; see `MagicModel.forward` for the other arguments.

        Args:
            start_positions: (batch,) index of the answer's first token; beyond the sequence = ignored.
            end_positions: (batch,) index of the answer's last token.

        Returns:
            loss if both positions are given, the mean of the two cross-entropies; start_logits and end_logits, each
            (batch, seq_len).
        """
        outputs = self.magic(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        start_logits, end_logits = self.qa_outputs(outputs.last_hidden_state).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class MagicForMultipleChoice(MagicPreTrainedModel):
    """MAGIC encoder that chooses among several sequences."""

    _auto_class = "AutoModelForMultipleChoice"

    def __init__(self, config: MagicConfig):
        """Builds the model."""
        super().__init__(config)
        self.magic = MagicModel(config, add_pooling_layer=False)
        self.classifier = MagicClassificationHead(config, 1)
        self.post_init()

    @classmethod
    def _pooler_names(cls, config: MagicConfig) -> dict[str, str]:
        # Also for RoBERTa, where this is the only class with a pooler.
        return _POOLER_IN_HEAD if config.add_pooling_layer else {}

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.LongTensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        architecture: Sequence[str] | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """Scores choices; inputs as for `MagicModel.forward`, with a dimension num_choices after the batch dimension.

        Args:
            labels: (batch,) index of the correct choice, -100 = ignored.
            **kwargs: also `num_items_in_batch`, the number of labels in the whole accumulated batch.

        Returns:
            loss if labels are given, and logits (batch, num_choices).
        """
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None:
            raise ValueError("give exactly one of input_ids and inputs_embeds")
        num_choices = given.shape[1]
        flat = [
            None if value is None else value.flatten(0, 1)
            for value in (input_ids, attention_mask, token_type_ids, position_ids, inputs_embeds)
        ]
        outputs = self.magic(
            flat[0],
            attention_mask=flat[1],
            token_type_ids=flat[2],
            position_ids=flat[3],
            inputs_embeds=flat[4],
            architecture=architecture,
            return_dict=True,
            **kwargs,
        )
        logits = self.classifier(outputs.last_hidden_state).view(-1, num_choices)
        loss = None
        if labels is not None:
            check_classes(labels, num_choices)
            losses = nn.functional.cross_entropy(logits, labels, reduction="none")
            # An ignored question has no part in the mean.
            loss = mean_loss(losses[labels != -100], num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = [
    "MagicForMaskedLM",
    "MagicForMultipleChoice",
    "MagicForPreTraining",
    "MagicForQuestionAnswering",
    "MagicForSequenceClassification",
    "MagicForTokenClassification",
    "MagicModel",
    "MagicPreTrainedModel",
]
