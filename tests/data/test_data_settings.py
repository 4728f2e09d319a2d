"""What the text of a run may be."""

from dataclasses import fields
from inspect import signature

import pytest

from training.data.settings import DataSettings
from training.data.text import prepare_data


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"block_size": 4}, "block_size is 4; it must be at least 8"),
        ({"validation_fraction": 0}, "validation_fraction is 0; it must be between 0 and 1"),
        ({"validation_fraction": 1.0}, "validation_fraction is 1.0; it must be between 0 and 1"),
        ({"max_documents": 0}, "max_documents is 0; it must be at least 1"),
        ({"streaming": "yes"}, "streaming is 'yes'; it must be true or false"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        DataSettings(**values)


def test_every_setting_is_an_argument_of_the_same_default():
    """`load_data` hands them on by name."""
    arguments = signature(prepare_data).parameters
    for item in fields(DataSettings):
        assert arguments[item.name].default == item.default
