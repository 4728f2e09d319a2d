"""What a comparison of ways to train super-nets refuses, and the settings of each super-net."""

import pytest

from training.analysis.sweep_plan import check_plan, check_way, supernet_settings
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.settings import PretrainSettings


@pytest.mark.parametrize(
    ("plan", "shared", "message"),
    [
        ({"a b": {}, "a  b": {}}, {}, "'a b' and 'a  b' would have the same folder; rename one"),
        (
            {"a": {}, "b": {"seed": 1}},
            {},
            "b sets the seed, but all super-nets have the same seeds",
        ),
        ({"a": {}}, {"seed": 1}, "training_arguments sets the seed, but seeds gives those of the super-nets"),
    ],
)
def test_a_plan_has_a_folder_for_each_way_and_its_own_seeds(plan, shared, message):
    with pytest.raises(ValueError, match=message):
        check_plan(plan, shared)


def test_a_plan_of_different_ways_is_accepted():
    check_plan({"a": {"sampler": "fair"}, "b": {}}, {"max_steps": 3})


@pytest.mark.parametrize(
    ("change", "equal_compute", "message"),
    [
        ({"shrink": True}, False, "b shrinks its super-nets"),
        ({"num_train_epochs": 3}, True, "equal_compute sets the steps of b; give max_steps once"),
        ({"max_steps": 3}, True, "equal_compute sets the steps of b"),
        ({"num_substitutions": 2}, False, "num_substitutions has no effect"),
        ({"shrink_num_children": 9}, False, "shrink_num_children has no effect without shrink; omit it"),
    ],
)
def test_a_way_that_cannot_be_compared_is_refused(tmp_path, change, equal_compute, message):
    args = MagicTrainingArguments(str(tmp_path), **{"sampler": "uniform", **change})
    with pytest.raises(ValueError, match=message):
        check_way("b", change, args, equal_compute)


def test_steps_of_ones_own_are_fine_without_equal_compute(tmp_path):
    check_way("b", {"max_steps": 3}, MagicTrainingArguments(str(tmp_path), max_steps=3), equal_compute=False)


def test_the_settings_of_a_super_net_are_the_shared_ones_with_its_changes():
    shared = PretrainSettings(preset="magic-mini", training_arguments={"max_steps": 5, "sampler": "fair"})
    own = supernet_settings(shared, {"sampler": "gradual"}, 7)
    assert (type(own), own.preset, own.data) == (PretrainSettings, "magic-mini", shared.data)
    assert own.training_arguments == {"max_steps": 5, "sampler": "gradual", "seed": 7}
    assert shared.training_arguments == {"max_steps": 5, "sampler": "fair"}
