"""Options shared by all kinds of distillation."""

from typing import Any

from ..options import option


def distillation_weight_option() -> Any:
    """Returns the field `distillation_weight`."""
    return option(
        0.5, at_least=0, at_most=1, help="Weight of the teacher's loss; the labels' loss has 1 minus this weight."
    )


def temperature_option() -> Any:
    """Returns the field `temperature`."""
    return option(1.0, above=0, help="Temperature of the teacher's and the student's distributions.")
