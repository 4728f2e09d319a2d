"""The MAGIC encoder as a Hugging Face model; importing this package registers it with the Auto classes."""

import sys
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

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

from .configuration_magic import (
    MagicConfig,
    OperatorSpec,
    operator_inner_size,
    parse_operator,
    register_operator,
)
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


def _explain_hidden_training() -> None:
    """Makes a failed import from `training` name the file that hides this distribution's package, if there is one.

    A user's script is easily called training.py, and Python looks in the script's folder first.
    """
    try:
        spec = find_spec("training")
    except ValueError:
        # A module without a specification, such as one inserted by a test.
        return
    ours = Path(__file__).resolve().parent.with_name("training")
    if spec is None or spec.origin is None or not ours.is_dir() or Path(spec.origin).resolve().parent == ours:
        return
    hidden_by, show = spec.origin, sys.excepthook

    def explain(kind, error, traceback):
        if isinstance(error, ImportError) and (error.name or "").partition(".")[0] == "training":
            error.add_note(f"{hidden_by} hides the package `training` of magic-nas; rename that file")
        show(kind, error, traceback)

    sys.excepthook = explain


_explain_hidden_training()

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
    "register_operator",
]

if TYPE_CHECKING:
    __version__: str
else:
    # Hidden from type checkers, which would otherwise accept any name as an attribute.
    def __getattr__(name: str) -> str:
        if name == "__version__":
            return version("magic-nas")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
