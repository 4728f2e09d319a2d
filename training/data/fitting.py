"""Checks and adapts how a tokenizer fits a model: embedding rows for its ids, positions, and token types."""

from copy import deepcopy

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_magic import MagicConfig


_TOKEN_TYPES = "token_type_ids"


def num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns the number of embedding rows that a tokenizer needs: its largest id + 1.

    If its ids have gaps, this is more than its number of tokens.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def max_sequence_length(config: PreTrainedConfig) -> int | None:
    """Returns the longest input of a model in tokens, `None` for any; RoBERTa's positions begin after its pad id."""
    if isinstance(config, MagicConfig):
        return config.max_sequence_length
    positions = config.to_dict().get("max_position_embeddings")
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return None if positions is None else positions - unused


def most_positions(*configs: PreTrainedConfig) -> int | None:
    """Returns the longest input in tokens that all models accept, `None` for any."""
    return min((most for config in configs if (most := max_sequence_length(config)) is not None), default=None)


def knows_token_types(config: PreTrainedConfig) -> bool:
    """Returns whether a model distinguishes two texts by token types; assumed if its configuration does not say."""
    return config.to_dict().get("type_vocab_size", 2) > 1


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer whose output the model can always process, even after saving and loading.

    The copy's `model_max_length` is at most the model's number of positions. If the model has only one token type, the
    copy returns token types only on request.

    Args:
        tokenizer: the tokenizer; it is not changed.
        config: the configuration of the model.
    """
    fitted, longest = deepcopy(tokenizer), max_sequence_length(config)
    if longest is not None:
        fitted.model_max_length = min(fitted.model_max_length, longest)
    if not knows_token_types(config) and _TOKEN_TYPES in fitted.model_input_names:
        fitted.model_input_names = [name for name in fitted.model_input_names if name != _TOKEN_TYPES]
        # Only attributes that the tokenizer was created with are saved.
        fitted.init_kwargs["model_input_names"] = fitted.model_input_names
    return fitted
