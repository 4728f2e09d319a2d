"""Children trained one by one: resumable, comparable, and kept apart from those of another recipe."""

import json
from dataclasses import replace

import pytest

from training import standalone
from training.journal import Journal
from training.settings import DataSettings
from training.standalone import (
    StandaloneChild,
    StandaloneSettings,
    journal_path,
    standalone_children,
    train_standalone,
)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    folder = tmp_path_factory.mktemp("standalone")
    sizes = {"hidden_size": 16, "intermediate_size": 32, "max_position_embeddings": 16, "hidden_dropout_prob": 0.0}
    config = {"model_type": "magic", "candidate_operators": [["FFN", "CONV3"]] * 2, "vocab_size": 80, **sizes}
    (folder / "toy.json").write_text(json.dumps(config))
    words = "model layer weight search child anchor token".split()
    documents = ["\n".join(f"the {words[(n + k) % 7]} of the {words[n * k % 7]}" for k in range(8)) for n in range(60)]
    (folder / "a.txt").write_text("\n\n".join(f"{number} {text}" for number, text in enumerate(documents)))
    return StandaloneSettings(
        preset=str(folder / "toy.json"),
        num_validation_sequences=8,
        data=DataSettings(source=str(folder / "a.txt"), vocab_size=80, block_size=16, validation_fraction=0.2),
        training_arguments={"max_steps": 8, "per_device_train_batch_size": 4, "learning_rate": 1e-2},
    )


def test_all_children_or_a_sample_without_repeats(settings):
    assert len(set(standalone_children(settings)[1])) == 4
    few = standalone_children(replace(settings, num_children=3))[1]
    assert len(set(few)) == 3
    assert few == standalone_children(replace(settings, num_children=3))[1]
    assert len({tuple(standalone_children(replace(settings, num_children=2, sample_seed=s))[1]) for s in range(9)}) > 1


def test_a_stopped_table_goes_on_and_trains_no_child_twice(settings, tmp_path, monkeypatch):
    whole = train_standalone(settings, tmp_path / "whole", progress=False)
    assert {child.architecture for child in whole} == set(standalone_children(settings)[1])
    assert all(child.steps == 8 and len(child.losses) == 3 and child.seconds > 0 for child in whole)
    train, trained = standalone._train, []

    def stop_after_two(architecture, *rest):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(architecture)
        return train(architecture, *rest)

    monkeypatch.setattr(standalone, "_train", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        train_standalone(settings, tmp_path / "stopped", progress=False)
    monkeypatch.setattr(standalone, "_train", lambda child, *rest: (trained.append(child), train(child, *rest))[1])
    resumed = train_standalone(settings, tmp_path / "stopped", progress=False)
    assert len(trained) == len(set(trained)) == 4
    assert [child.val_loss for child in resumed] == [child.val_loss for child in whole]
    assert [child.losses for child in resumed] == [child.losses for child in whole]
    assert list(Journal(journal_path(tmp_path / "stopped", 0), child_type=StandaloneChild)) == resumed


def test_training_lowers_the_loss_and_seeds_differ(settings, tmp_path):
    longer = {**settings.training_arguments, "max_steps": 60}
    both = replace(settings, num_children=1, seeds=(0, 1), training_arguments=longer)
    first, second = train_standalone(both, tmp_path, progress=False)
    assert (first.seed, second.seed) == (0, 1)
    assert first.architecture == second.architecture
    assert first.val_loss != second.val_loss
    assert first.val_loss < first.losses[0]


@pytest.mark.parametrize(
    "change", [{"mlm_probability": 0.3}, {"training_arguments": {"max_steps": 9}}, {"num_validation_sequences": 4}]
)
def test_another_recipe_is_refused(settings, tmp_path, change):
    train_standalone(replace(settings, num_children=1), tmp_path, progress=False)
    with pytest.raises(ValueError, match="another recipe"):
        train_standalone(replace(settings, num_children=1, **change), tmp_path, progress=False)
