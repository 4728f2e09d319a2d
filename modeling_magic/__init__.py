"""The MAGIC encoder as a Hugging Face model; importing this package registers it with the Auto classes."""

from transformers import AutoConfig, AutoModel, AutoModelForMaskedLM

from .configuration_magic import MagicConfig, OperatorSpec, operator_inner_size, parse_operator
from .modeling_magic import MagicForMaskedLM, MagicModel, MagicPreTrainedModel


AutoConfig.register("magic", MagicConfig, exist_ok=True)
AutoModel.register(MagicConfig, MagicModel, exist_ok=True)
AutoModelForMaskedLM.register(MagicConfig, MagicForMaskedLM, exist_ok=True)

__all__ = [
    "MagicConfig",
    "MagicForMaskedLM",
    "MagicModel",
    "MagicPreTrainedModel",
    "OperatorSpec",
    "operator_inner_size",
    "parse_operator",
]
