"""Training arguments that have flags are those of transformers."""

from dataclasses import fields

from transformers import TrainingArguments

from training.analysis.settings import StandaloneSettings
from training.options import option_of
from training.runs.settings import TRAINING_FLAGS
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.settings import PretrainSettings


def flags_of_arguments(kind) -> dict[str, str | None]:
    facts = option_of(next(item for item in fields(kind) if item.name == "training_arguments"))
    assert facts is not None
    return {name: argument.facts.flag for name, argument in facts.arguments.items()}


def test_flags_are_of_arguments_that_exist():
    assert set(TRAINING_FLAGS) <= {item.name for item in fields(TrainingArguments)}
    assert set(flags_of_arguments(PretrainSettings)) <= {item.name for item in fields(MagicTrainingArguments)}


def test_a_super_net_has_the_flags_of_its_budget_too():
    flags = flags_of_arguments(PretrainSettings)
    assert flags["max_activation_mb"] == "--max-activation-mb"
    assert flags["max_steps"] == "--max-steps"


def test_seeds_of_children_are_a_setting_of_their_own():
    assert "seed" not in flags_of_arguments(StandaloneSettings)
