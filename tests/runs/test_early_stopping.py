"""Early stopping beside that of transformers: several evaluation sets, and trainings that were stopped in between."""

import logging
from typing import Any

import pytest
from transformers import EarlyStoppingCallback, TrainingArguments
from transformers.trainer_callback import TrainerControl, TrainerState

from training.runs.early_stopping import EarlyStopping, has_stopped_early


@pytest.fixture
def args(tmp_path) -> TrainingArguments:
    given: dict[str, Any] = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True}
    return TrainingArguments(str(tmp_path), report_to="none", metric_for_best_model="first_score", **given)


def end_of(callback, args: TrainingArguments, scores: list[float], state: TrainerState | None = None) -> int | None:
    """The place of the score after which a callback ends training; each is told as `Trainer` tells it."""
    state = state or TrainerState()
    control = TrainerControl()
    callback.on_train_begin(args, state, control)
    for place, score in enumerate(scores):
        state.global_step += 1
        callback.on_evaluate(args, state, control, {"eval_first_score": score})
        state.best_metric = score if state.best_metric is None else max(score, state.best_metric)
        if control.should_training_stop:
            return place
    return None


SCORES = [
    [0.1, 0.2, 0.2, 0.15, 0.3],
    [0.5, 0.505, 0.511, 0.512, 0.6],
    [0.1, 0.2, 0.3, 0.4, 0.5],
    [0.9, 0.1, 0.8, 0.85, 0.95],
]


@pytest.mark.parametrize("scores", SCORES)
@pytest.mark.parametrize(("patience", "threshold"), [(1, 0.0), (2, 0.0), (2, 0.02), (3, 0.1)])
def test_it_ends_where_that_of_transformers_does(args, scores, patience, threshold):
    args.greater_is_better = True
    ends = [end_of(kind(patience, threshold), args, scores) for kind in (EarlyStopping, EarlyStoppingCallback)]
    assert ends[0] == ends[1]


def test_another_evaluation_set_is_not_counted_and_nothing_is_said_of_it(args, caplog):
    callback, state, control = EarlyStopping(1), TrainerState(best_metric=1.0), TrainerControl()
    logging.getLogger("transformers").addHandler(caplog.handler)
    try:
        callback.on_evaluate(args, state, control, {"eval_second_score": 0.0})
        assert not control.should_training_stop
        callback.on_evaluate(args, state, control, {"eval_first_score": 0.0})
    finally:
        logging.getLogger("transformers").removeHandler(caplog.handler)
    assert control.should_training_stop
    assert not caplog.records


@pytest.mark.parametrize("scores", SCORES)
def test_a_resumed_training_ends_where_one_that_was_not_stopped_does(args, scores):
    args.greater_is_better = True
    end = end_of(EarlyStopping(2), args, scores)
    for cut in range(1, len(scores)):
        callback, state = EarlyStopping(2), TrainerState()
        first = end_of(callback, args, scores[:cut], state)
        # What `Trainer` writes to a checkpoint, and what a new process reads.
        state.stateful_callbacks["EarlyStopping"] = callback.state()
        assert has_stopped_early(state) == (first is not None)
        if first is None:
            rest = end_of(EarlyStopping(2), args, scores[cut:], state)
            assert end == (None if rest is None else cut + rest)


def test_a_second_training_of_one_callback_begins_anew(args):
    callback = EarlyStopping(2)
    assert end_of(callback, args, [0.5, 0.4, 0.4]) == 2
    assert end_of(callback, args, [0.5, 0.4]) is None
    assert not has_stopped_early(TrainerState())
