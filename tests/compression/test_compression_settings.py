"""What a compression is asked to do: what is refused before anything is read, and options that others go by."""

import pytest

from training.compression.members import check_budgets
from training.compression.settings import LIMITS, CompressSettings
from training.options import build, default_of, options_of
from training.runs.recipes import load_recipe, settings_from


OPTIONS = {item.name: (item, facts) for item, facts in options_of(CompressSettings)}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "words"}, "kind is 'words'; choose one of: sentence, masked_lm, sequence, token, span"),
        ({"precision": "fp16"}, "precision is 'fp16'; choose one of: auto, no, bf16"),
        ({"searcher": "random"}, "searcher is 'random'; choose one of: supernet, additive"),
        ({"sampler": "spos"}, "sampler is 'spos'; choose one of: budget, uniform, gradual"),
        ({"alignment": "anchor"}, "alignment is 'anchor'; choose one of: none, checkpoint"),
        ({"importance": "size"}, "importance is 'size'; choose one of: output, norm"),
        ({"output_maps": "ridge"}, "output_maps is 'ridge'; choose one of: least_squares, copy"),
        ({"steps": 0}, "steps is 0; it must be at least 1"),
        ({"calibration_steps": -1}, "calibration_steps is -1; it must be at least 0"),
        ({"latency_length": 1}, "latency_length is 1; it must be at least 2"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be above 0"),
        ({"mlm_probability": 1}, "mlm_probability is 1; it must be between 0 and 1"),
        ({"score_weight": -0.1}, "score_weight is -0.1; it must be at least 0"),
        ({"max_latencies": "0.4x"}, "unknown key 'max_latencies' in the recipe; did you mean 'max_latency'?"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as error:
        build(CompressSettings, values, "the recipe")
    assert message in str(error.value)


@pytest.mark.parametrize("name", LIMITS)
def test_several_budgets_are_written_with_commas(name):
    item, facts = OPTIONS[name]
    assert facts.splits
    assert facts.flag == f"--{name.replace('_', '-')}"
    assert default_of(item) == ()
    assert getattr(CompressSettings(**{name: "0.4x"}), name) == ("0.4x",)


def test_a_whole_run_is_described_by_checkpoint_text_and_a_budget():
    settings = CompressSettings(checkpoint="model", text=("sentences.txt",), max_params=("0.5x",))
    check_budgets(settings)
    with pytest.raises(ValueError, match="no budget is given"):
        check_budgets(CompressSettings(checkpoint="model", text=("sentences.txt",)))


def test_budgets_may_be_numbers_as_recipes_have_them():
    settings = build(CompressSettings, {"max_params": 5_000_000, "max_latency": [2.5, "0.4x"], "max_flops": 5e9}, "r")
    assert settings == CompressSettings(max_params="5000000", max_latency=("2.5", "0.4x"), max_flops="5000000000")
    with pytest.raises(ValueError, match=r"max_params\[0\] is True; it must be text or a number"):
        CompressSettings(max_params=True)


def test_options_without_an_effect_are_named():
    given = CompressSettings(alignment_weight=0.1, labels_weight=2.0, searcher="additive", supernet_steps=5)
    assert given.warnings() == [
        "alignment_weight has no effect with alignment=none",
        "supernet_steps has no effect with searcher=additive, which trains no super-net",
        "labels_weight has no effect without labels",
    ]
    assert not CompressSettings(alignment="checkpoint", alignment_weight=0.1, labels="x", labels_weight=2.0).warnings()


@pytest.mark.parametrize("name", ["compress-minilm", "compress-quick", "demo-compress", "demo-compress-short"])
def test_recipes_set_no_option_without_an_effect(name):
    assert not settings_from(CompressSettings, load_recipe(name)).warnings()
