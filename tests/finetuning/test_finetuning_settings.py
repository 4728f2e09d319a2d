"""What a fine-tuning refuses before anything is read."""

import pytest

from training.finetuning.finetune import best_epoch_arguments
from training.finetuning.settings import (
    BEST_EPOCH_ARGUMENTS,
    SCORE_ARGUMENTS,
    SWEPT_ARGUMENTS,
    FinetuneSettings,
    SquadSettings,
)
from training.finetuning.tasks import GLUE


@pytest.mark.parametrize("name", [*SWEPT_ARGUMENTS, *BEST_EPOCH_ARGUMENTS, *SCORE_ARGUMENTS])
def test_arguments_that_a_sweep_sets_itself_are_refused(name):
    values = {"learning_rate": 1e-3, "weight_decay": 0.1, "metric_for_best_model": "loss"}
    values |= {"load_best_model_at_end": True, "greater_is_better": True, "train_sampling_strategy": "random"}
    values |= {"eval_strategy": "epoch", "save_strategy": "epoch", "prediction_loss_only": True, "label_names": ["x"]}
    with pytest.raises(ValueError, match=f"training_arguments has {name}, which a fine-tuning sweep sets itself"):
        FinetuneSettings(training_arguments={name: values.get(name, 3)})


def test_options_without_an_effect_are_named():
    own = FinetuneSettings(train_file="a.csv", temperature=2.0, mnli_model="m", text_columns=("t",), submission=False)
    assert own.warnings() == [
        "temperature has no effect without a teacher",
        "mnli_model has no effect on your own files, only on GLUE",
        "submission has no effect on your own files, only on GLUE",
    ]
    of_glue = FinetuneSettings(tasks=("rte",), teacher="t", temperature=2.0, label_column="x", glue_folder="g")
    assert of_glue.warnings() == ["label_column has no effect on tasks of GLUE, only on your own files"]
    assert not FinetuneSettings().warnings()
    files = FinetuneSettings(train_file="a.csv", validation_file="b.csv", validation_fraction=0.5)
    assert files.warnings() == ["validation_fraction has no effect with a validation_file"]
    given = {"temperature": 5.0, "training_arguments": {"learning_rate": 1.0, "max_steps": 7, "seed": 3}}
    scored = SquadSettings(model="m", validation_file="dev.json", **given)
    assert scored.warnings() == [
        "temperature has no effect without a teacher",
        "learning_rate has no effect without a train_file",
        "max_steps has no effect without a train_file",
    ]
    assert not SquadSettings(model="m", train_file="t.json", teacher="t", **given).warnings()


def test_the_arguments_of_the_best_epoch_are_those_that_it_sets():
    assert set(BEST_EPOCH_ARGUMENTS) == set(best_epoch_arguments(GLUE["cola"]))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"problem_type": "ranking"}, "problem_type is 'ranking'; choose one of: single_label_classification"),
        ({"num_epochs": 0}, "num_epochs is 0; it must be above 0"),
        ({"warmup_fraction": 1}, "warmup_fraction is 1; it must be from 0 to below 1"),
        ({"learning_rates": [0.0]}, "learning_rates is 0.0; it must be above 0"),
        ({"learning_rates": [1e-5, 1e-5]}, "name each once"),
        ({"batch_sizes": [16, 10], "training_arguments": {"gradient_accumulation_steps": 4}}, "a batch of 10 rows"),
    ],
)
def test_what_a_sweep_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        FinetuneSettings(**values)


def test_lone_values_are_lists_of_one():
    settings = FinetuneSettings(tasks="rte", learning_rates=1e-5, batch_sizes=16, seeds=3, text_columns="text")
    assert (settings.tasks, settings.learning_rates, settings.batch_sizes) == (("rte",), (1e-5,), (16,))
    assert (settings.seeds, settings.text_columns) == ((3,), ("text",))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"null_threshold": 0.5}, "null_threshold is for questions without an answer; set version_2"),
        ({"validation_file": "a", "teacher": "b"}, "a teacher is given without a train_file"),
        ({"n_best": 0}, "n_best is 0; it must be at least 1"),
        ({"early_stopping_patience": 1}, "early_stopping_patience is given without a train_file"),
        ({"early_stopping_threshold": 1.0}, "set early_stopping_patience, or remove early_stopping"),
    ],
)
def test_what_squad_refuses(values, message):
    with pytest.raises(ValueError, match=message):
        SquadSettings(**values)


def test_a_threshold_goes_with_questions_without_an_answer():
    assert SquadSettings(null_threshold=-2, version_2=True).null_threshold == -2.0
