"""The settings of the analysis of cells."""

from dataclasses import asdict

import pytest

from training.cells.settings import METHODS, CellSettings, CellSweepSettings
from training.runs.recipes import settings_from


def test_a_recipe_is_flat():
    settings = settings_from(CellSweepSettings, {"images": "folder", "table": "t.csv", "channels": 16, "seeds": [3]})
    assert settings.supernet == CellSettings(images="folder", channels=16)
    assert settings.methods == METHODS
    assert asdict(settings)["seeds"] == (3,)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"channels": 0}, "channels is 0; it must be at least 1"),
        ({"image_size": 2}, "image_size is 2; it must be at least 8"),
        ({"training_arguments": {"samplr": "uniform"}}, "samplr"),
        ({"seeds": []}, "seeds"),
    ],
)
def test_bad_values_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        settings_from(CellSweepSettings, given)
