"""What an analysis refuses before anything is read."""

import pytest

from training.analysis.settings import (
    MICRO_BENCHMARK,
    InterferenceSettings,
    JudgingSettings,
    RankingSettings,
    StandaloneSettings,
    SweepSettings,
)


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (
            InterferenceSettings,
            {"alignment": "top_percent"},
            "alignment is 'top_percent'; choose one of: none, anchor",
        ),
        (InterferenceSettings, {"sequences": "test"}, "sequences is 'test'; choose one of: train, validation"),
        (InterferenceSettings, {"num_repeats": 0}, "num_repeats is 0; it must be at least 1"),
        (
            InterferenceSettings,
            {"anchor": "FFN"},
            "an anchor is given but alignment is 'none'; set alignment to anchor",
        ),
        (InterferenceSettings, {"mlm_probability": 1}, "mlm_probability is 1; it must be between 0 and 1"),
        (StandaloneSettings, {"seeds": []}, "seeds is empty; give at least one"),
        (StandaloneSettings, {"seeds": [0, 0]}, "name each once"),
        (StandaloneSettings, {"num_children": -1}, "num_children is -1; it must be at least 0"),
        (JudgingSettings, {"num_children": 4}, "num_children is 4; it must be at least 5"),
        (JudgingSettings, {"top_k": [1, 0]}, "top_k is 0; it must be at least 1"),
        (RankingSettings, {"supernets": {"a": 1}}, "supernets is .*; it must be a list"),
        (SweepSettings, {"values": [1, 1]}, "name each once"),
        (SweepSettings, {"references": {"SPOS": ["uniform"]}}, "references.SPOS is .*; it must be a mapping"),
        (SweepSettings, {"pretrain": {"preset": 3}}, "preset is 3; it must be text"),
    ],
)
def test_what_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_an_anchor_goes_with_its_alignment():
    assert InterferenceSettings(anchor="FFN", alignment="anchor").anchor == "FFN"


def test_a_sweep_has_the_packages_truth_and_a_ranking_trains_its_own():
    assert SweepSettings().truth == MICRO_BENCHMARK
    assert RankingSettings().truth is None
    # Unlike a judgement's sizes, the values of a sweep may be of any type.
    assert SweepSettings(values=("a", 1, [2])).values == ("a", 1, [2])
