"""What the training of one child refuses, and that each kind is a command of its own."""

import pytest
from transformers import TrainingArguments

from training.retraining.settings import DistillSettings, RetrainSettings, RtdSettings


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (RetrainSettings, {"architecture": 3}, "architecture is 3; it must be text"),
        (RetrainSettings, {"num_validation_sequences": 0}, "num_validation_sequences is 0; it must be at least 1"),
        (
            RetrainSettings,
            {"training_arguments": {"sampler": "uniform"}},
            "unknown key 'sampler' in training_arguments",
        ),
        (RtdSettings, {"rtd_weight": -1}, "rtd_weight is -1; it must be at least 0"),
        (RtdSettings, {"generator_fraction": 1.5}, "generator_fraction is 1.5; it must be above 0 and at most 1"),
        (DistillSettings, {"teacher_top_k": 0}, "teacher_top_k is 0; it must be at least 1"),
    ],
)
def test_what_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_each_kind_is_a_command_and_trains_with_transformers_arguments():
    kinds = (RetrainSettings, RtdSettings, DistillSettings)
    assert [kind.command for kind in kinds] == ["retrain", "retrain --objective rtd", "retrain --teacher"]
    assert {kind.arguments_class() for kind in kinds} == {TrainingArguments}
