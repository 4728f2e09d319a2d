"""How a tokenizer fits a model: ids that have rows, lengths that have positions, token types that are known."""

from copy import deepcopy

from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from modeling_magic import MagicConfig


_TOKEN_TYPES = "token_type_ids"


def num_rows(tokenizer: PreTrainedTokenizerBase) -> int:
    """Returns how many rows of embeddings a tokenizer needs: its largest id + 1.

    Where its ids have gaps, these are more than it has tokens.
    """
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def max_sequence_length(config: PreTrainedConfig) -> int | None:
    """Returns how many tokens a model takes, `None` for any; RoBERTa's positions begin after its pad token's."""
    if isinstance(config, MagicConfig):
        return config.max_sequence_length
    positions = config.to_dict().get("max_position_embeddings")
    unused = config.pad_token_id + 1 if "roberta" in config.model_type else 0
    return None if positions is None else positions - unused


def most_positions(*configs: PreTrainedConfig) -> int | None:
    """Returns how many tokens all of some models take, `None` for any."""
    return min((most for config in configs if (most := max_sequence_length(config)) is not None), default=None)


def knows_token_types(config: PreTrainedConfig) -> bool:
    """Returns whether a model tells two texts apart by token types; one whose configuration is silent may."""
    return config.to_dict().get("type_vocab_size", 2) > 1


def fit_tokenizer(tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig) -> PreTrainedTokenizerBase:
    """Returns a copy of a tokenizer that gives a model nothing that it does not know, also once saved and loaded.

    The copy's `model_max_length` is at most the number of the model's positions, and it returns no token types, unless
    it is asked to, where the model has one only.

    Args:
        tokenizer: is left as it is.
        config: the model's.
    """
    fitted, longest = deepcopy(tokenizer), max_sequence_length(config)
    if longest is not None:
        fitted.model_max_length = min(fitted.model_max_length, longest)
    if not knows_token_types(config) and _TOKEN_TYPES in fitted.model_input_names:
        fitted.model_input_names = [name for name in fitted.model_input_names if name != _TOKEN_TYPES]
        # Of such attributes those are saved that the tokenizer was made with.
        fitted.init_kwargs["model_input_names"] = fitted.model_input_names
    return fitted
