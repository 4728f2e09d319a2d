"""The MAGIC encoder as a Hugging Face model; importing this package registers it with the Auto classes."""

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForPreTraining,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_magic import MagicConfig, OperatorSpec, operator_inner_size, parse_operator
from .modeling_magic import (
    MagicForMaskedLM,
    MagicForMultipleChoice,
    MagicForPreTraining,
    MagicForQuestionAnswering,
    MagicForSequenceClassification,
    MagicForTokenClassification,
    MagicModel,
    MagicPreTrainedModel,
)


AutoConfig.register("magic", MagicConfig, exist_ok=True)
AutoModel.register(MagicConfig, MagicModel, exist_ok=True)
AutoModelForMaskedLM.register(MagicConfig, MagicForMaskedLM, exist_ok=True)
AutoModelForMultipleChoice.register(MagicConfig, MagicForMultipleChoice, exist_ok=True)
AutoModelForPreTraining.register(MagicConfig, MagicForPreTraining, exist_ok=True)
AutoModelForQuestionAnswering.register(MagicConfig, MagicForQuestionAnswering, exist_ok=True)
AutoModelForSequenceClassification.register(MagicConfig, MagicForSequenceClassification, exist_ok=True)
AutoModelForTokenClassification.register(MagicConfig, MagicForTokenClassification, exist_ok=True)

__all__ = [
    "MagicConfig",
    "MagicForMaskedLM",
    "MagicForMultipleChoice",
    "MagicForPreTraining",
    "MagicForQuestionAnswering",
    "MagicForSequenceClassification",
    "MagicForTokenClassification",
    "MagicModel",
    "MagicPreTrainedModel",
    "OperatorSpec",
    "operator_inner_size",
    "parse_operator",
]
