"""Figures of rankings show what they are given."""

from dataclasses import replace

import numpy as np
from toy_scores import measured, normal, scores_of

from training.analysis.ranking import evaluate_ranking, method_tau, truth_noise
from training.analysis.ranking_figures import SweepPoint, draw_methods, draw_ranking, draw_sweep
from training.drawing import render


def test_figures_show_what_they_are_given():
    rng = np.random.default_rng(0)
    truth, scores = map(scores_of, normal(rng, 40, 0.7))
    quality = evaluate_ranking(truth, scores)
    figure = draw_ranking(truth, scores, quality, "MAGIC-T")
    values, ranks = figure.axes
    assert sorted(map(tuple, values.collections[0].get_offsets().tolist())) == sorted(
        (scores[one], truth[one]) for one in truth
    )
    assert set(ranks.collections[0].get_offsets()[:, 0]) == set(range(1, 41))
    best = max(truth, key=truth.__getitem__)
    assert values.collections[2].get_offsets().tolist() == [[scores[best], truth[best]]]
    assert f"{quality.kendall_tau:.3f}" in figure.get_suptitle()
    others = [scores_of(normal(rng, 40, 0.7)[1]) for _ in range(2)]
    tau = method_tau(truth, [scores, *others])
    _, repeats = measured(rng, 0.5, (2,), 40)
    noise = truth_noise(repeats, num_simulations=20)
    (axes,) = draw_methods({"SPOS": tau, "MAGIC-T": method_tau(truth, [scores])}, noise).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SPOS", "MAGIC-T"]
    near, far = (replace(noise, ceiling=tau.mean + step) for step in (0.01, 2.0))
    for ceiling, is_drawn in ((near, True), (far, False)):
        figure = draw_methods({"num_substitutions = 2": tau}, ceiling)
        (axes,) = figure.axes
        assert axes.get_yticklabels()[0].get_text() == "k = 2"
        assert any(list(line.get_xdata()) == [ceiling.ceiling] * 2 for line in axes.lines) == is_drawn
        assert axes.get_xlim()[1] < tau.mean + 1
        (label,) = [text.get_text() for text in figure.legends[0].texts if "ceiling" in text.get_text()]
        assert label.endswith("outside the axis") != is_drawn
        swept = draw_sweep("anchor_top_percent", [SweepPoint(0, tau), SweepPoint(100, tau)], None, ceiling)
        (axes,) = swept.axes
        assert any(set(line.get_ydata()) == {ceiling.ceiling} for line in axes.lines) == is_drawn
        assert axes.get_ylim()[1] < tau.mean + 1
        assert axes.get_xlabel() == "rank of the anchor, top p%"
    swept = draw_sweep("num_substitutions", [SweepPoint(1, tau), SweepPoint(4, tau)], {"SPOS": tau}, noise)
    assert [tick.get_text() for tick in swept.axes[0].get_xticklabels()] == ["1", "4"]
    means = next(line for line in swept.axes[0].lines if len(line.get_xdata()) == 2 and line.get_color() == "#0072b2")
    assert list(means.get_xdata()) == [1, 4]
    assert list(means.get_ydata()) == [tau.mean, tau.mean]
    labels = [text.get_text() for text in swept.legends[0].texts]
    assert "mean over super-nets, 95% interval" in labels
    assert not any("num_substitutions" in label for label in labels)
    many = draw_sweep("num_substitutions", [SweepPoint(1, tau)], {f"method {number}": tau for number in range(9)})
    lines = [line for line in many.axes[0].lines if line.get_label().startswith("method")]
    assert [line.get_label() for line in lines] == [f"method {number}" for number in range(9)]
    named = draw_sweep("sampler", [SweepPoint("uniform", tau), SweepPoint("fair", tau)])
    assert render(named, "png").startswith(b"\x89PNG")
