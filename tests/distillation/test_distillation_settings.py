"""Weight and temperature are checked alike in every run that distils."""

import pytest

from training.finetuning.settings import FinetuneSettings, SquadSettings
from training.retraining.settings import DistillSettings


@pytest.mark.parametrize("kind", [DistillSettings, FinetuneSettings, SquadSettings])
@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5; it must be from 0 to 1"),
        ({"distillation_weight": -0.1}, "distillation_weight is -0.1; it must be from 0 to 1"),
        ({"temperature": 0}, "temperature is 0; it must be above 0"),
        ({"temperature": float("inf")}, "temperature is inf; it must be above 0"),
    ],
)
def test_what_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)
    assert (kind().distillation_weight, kind().temperature) == (0.5, 1.0)
