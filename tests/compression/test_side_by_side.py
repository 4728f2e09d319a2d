"""Models timed side by side: what is called on what, ratios by round, and what is refused."""

import json
import os
import statistics

import pytest
import torch
from torch import nn
from toy import toy_config
from toy_timing import FakeTime, fake_clock

from modeling_magic import MagicForSequenceClassification, MagicModel
from training.compression.side_by_side import MeasuredModels, Ratio, measure_models
from training.hub.onnx_export import OnnxModel, export_onnx
from training.space.settings import LatencySettings
from training.space.timing import Bench, Conditions, Timing


@pytest.fixture
def fake_time(monkeypatch) -> FakeTime:
    return fake_clock(monkeypatch)


def batch_of(*lengths: int, width: int = 0) -> dict[str, torch.Tensor]:
    """Sequences of these lengths, padded to the longest or to `width`."""
    places = torch.arange(width or max(lengths))
    mask = (places < torch.tensor(lengths).unsqueeze(1)).long()
    return {"input_ids": (5 + places % 90) * mask, "attention_mask": mask}


BATCHES = [batch_of(8, 3), batch_of(5, 6)]


def child(layers: int = 2, **changes) -> MagicModel:
    return MagicModel(toy_config(candidate_operators=[["FFN"]] * layers, **changes)).eval()


def measure(models, batches=BATCHES, **given) -> MeasuredModels:
    return measure_models(models, batches, **{"rounds": 3, "progress": False, **given})


class Takes:
    """A model that takes so many milliseconds a batch, and keeps what it was called with."""

    def __init__(self, clock: FakeTime, *milliseconds: float):
        self.clock, self.milliseconds = clock, milliseconds
        self.calls: list[dict[str, torch.Tensor]] = []

    def __call__(self, **batch: torch.Tensor) -> None:
        # The first calls find out how long one takes, and each block of three ends in the one that counts.
        self.clock.now += self.milliseconds[len(self.calls) // (3 * len(BATCHES)) % len(self.milliseconds)]
        self.calls.append(batch)


# ---- What is measured ----


def test_times_are_those_of_a_batch_and_ratios_those_to_the_first(fake_time):
    measured = measure({"teacher": Takes(fake_time, 12), "fast": Takes(fake_time, 3), "slow": Takes(fake_time, 18)})
    assert {name: timing.median_ms for name, timing in measured.padded.items()} == pytest.approx(
        {"teacher": 12, "fast": 3, "slow": 18}
    )
    ratios = measured.ratios["padded"]
    assert {name: ratio.median for name, ratio in ratios.items()} == pytest.approx(
        {"teacher": 1, "fast": 0.25, "slow": 1.5}
    )
    assert all(ratio.low == pytest.approx(ratio.high) for ratio in ratios.values())
    assert measured.unpadded == {}
    assert measured.ratios["unpadded"] == {}
    assert measured.warnings == ()


def test_ratios_are_taken_within_a_round(fake_time):
    """Times that rise and fall together keep their ratio, however far they spread."""
    slowness = [1.0, 1.0, 3.0, 2.0, 5.0, 1.5, 4.0]
    teacher, student = (Takes(fake_time, *(unit * slow for slow in slowness)) for unit in (10, 4))
    measured = measure({"teacher": teacher, "student": student}, rounds=6)
    own = measured.padded["student"]
    assert own.median_ms == pytest.approx(4 * statistics.median(slowness[1:]))
    assert own.high_ms > 1.5 * own.low_ms
    ratio = measured.ratios["padded"]["student"]
    assert (ratio.low, ratio.median, ratio.high) == pytest.approx((0.4, 0.4, 0.4))


def test_every_model_sees_the_same_batches_in_every_round(fake_time):
    models = {name: Takes(fake_time, 6) for name in ("teacher", "student")}
    measure(models, rounds=4)
    for model in models.values():
        # Three passes to find out how long one takes, and three in each round.
        assert len(model.calls) == len(BATCHES) * 3 * (1 + 4)
        for number, call in enumerate(model.calls):
            assert call.keys() == {"input_ids", "attention_mask"}
            assert torch.equal(call["input_ids"], BATCHES[number % len(BATCHES)]["input_ids"])


def test_the_order_of_the_models_changes_from_round_to_round(fake_time):
    order = []

    def model(name):
        def call(**_):
            order.append(name)
            fake_time.now += 6

        return call

    measure({name: model(name) for name in "abc"}, BATCHES[:1], rounds=10)
    blocks = order[9::3]
    rounds = ["".join(blocks[start : start + 3]) for start in range(0, len(blocks), 3)]
    assert len(rounds) == 10
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 1


def test_padding_that_a_whole_batch_has_is_cut_off(fake_time):
    model = Takes(fake_time, 6)
    wide = batch_of(8, 3, width=20) | {"token_type_ids": torch.zeros(2, 20), "labels": torch.tensor([0, 1])}
    measure({"one": model}, [wide, BATCHES[1]])
    assert {name: tuple(value.shape) for name, value in model.calls[0].items()} == {
        "input_ids": (2, 8),
        "attention_mask": (2, 8),
        "token_type_ids": (2, 8),
        "labels": (2,),
    }
    assert model.calls[0]["attention_mask"].sum() == 11


@pytest.mark.parametrize("unpad_inputs", [False, True])
def test_magic_models_are_measured_with_and_without_padding(fake_time, monkeypatch, unpad_inputs):
    forward = MagicModel.forward

    def forward_of_padding(self, **batch):
        fake_time.now += 0 if self.config.unpad_inputs else 10
        return forward(self, **batch)

    monkeypatch.setattr(MagicModel, "forward", forward_of_padding)
    model = child(unpad_inputs=unpad_inputs)
    measured = measure({"magic": model, "other": Takes(fake_time, 6)})
    # The embeddings and two layers take 3 and twice 7.
    assert {name: timing.median_ms for name, timing in measured.padded.items()} == pytest.approx(
        {"magic": 27, "other": 6}
    )
    assert {name: timing.median_ms for name, timing in measured.unpadded.items()} == pytest.approx({"magic": 17})
    assert measured.ratios["unpadded"] == {"magic": Ratio(1.0, 1.0, 1.0)}
    assert model.config.unpad_inputs is unpad_inputs


def test_the_switch_is_put_back_when_a_model_fails(monkeypatch):
    def fail(self, **_):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(MagicModel, "forward", fail)
    model = child(unpad_inputs=True)
    with pytest.raises(RuntimeError, match="out of memory"):
        measure({"magic": model})
    assert model.config.unpad_inputs is True


def test_where_the_teacher_cannot_leave_padding_out_there_is_no_ratio_without(fake_time):
    measured = measure({"teacher": Takes(fake_time, 6), "student": child()})
    assert list(measured.unpadded) == ["student"]
    assert measured.ratios["unpadded"] == {}
    assert list(measured.ratios["padded"]) == ["teacher", "student"]


def test_the_machine_is_judged_as_it_is_for_operators(fake_time):
    fake_time.core_share = 0.5
    measured = measure({"one": Takes(fake_time, 6)}, num_threads=2)
    assert measured.conditions.core_share == pytest.approx(0.5)
    assert (measured.conditions.num_threads, measured.conditions.num_cores) == (2, os.cpu_count())
    assert any("had a core for 50% of the time" in warning for warning in measured.warnings)


def test_threads_are_those_that_are_asked_for_and_are_left_as_they_were():
    seen, before = set(), torch.get_num_threads()
    measure({"one": lambda **_: seen.add(torch.get_num_threads())}, num_threads=2, rounds=2)
    assert seen == {2}
    assert torch.get_num_threads() == before


def test_twice_the_layers_take_about_twice_the_time():
    """With real clocks, on layers that are most of the time."""
    sizes = {"hidden_size": 128, "intermediate_size": 512}
    models = {"deep": child(8, **sizes), "half": child(4, **sizes)}
    measured = measure(models, [batch_of(60, 50, 40, 60)], rounds=15)
    for mode in ("padded", "unpadded"):
        ratio = measured.ratios[mode]["half"]
        # Wide: other tests run beside this one.
        assert 0.25 < ratio.median < 0.85, (mode, ratio, measured.warnings)
        assert ratio.low <= ratio.median <= ratio.high


@pytest.mark.slow
def test_an_onnx_file_is_measured_beside_the_torch_model(tmp_path):
    pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model = MagicForSequenceClassification(toy_config(candidate_operators=[["MHA4"], ["CONV3"]])).eval()
    model.save_pretrained(tmp_path)
    session = OnnxModel(export_onnx(tmp_path, tmp_path / "onnx"))
    measured = measure({"torch": model, "onnx": session}, rounds=2)
    assert list(measured.padded) == ["torch", "onnx"]
    assert list(measured.unpadded) == ["torch"]
    with pytest.raises(
        ValueError, match=r"model 'onnx' runs on 1 threads but num_threads is 2; make it with OnnxModel"
    ):
        measure({"torch": model, "onnx": session}, num_threads=2)


# ---- What is told ----


def test_figures_are_written_as_json_with_their_warnings():
    bench = Bench(LatencySettings(seq_len=8, min_run_time=0.001), toy_config())
    bench.run({"one": lambda: lambda: None}, 1, progress=False)
    noisy = {**bench.conditions().__dict__, "load_average": 99.0, "num_cores": 2}
    measured = MeasuredModels(
        padded={"teacher": Timing(2.0, 1.0, 3.0)},
        unpadded={},
        ratios={"padded": {"teacher": Ratio(1.0, 1.0, 1.0)}, "unpadded": {}},
        conditions=Conditions(**noisy),
    )
    read = json.loads(json.dumps(measured.to_json()))
    assert read["padded"] == {"teacher": {"median_ms": 2.0, "low_ms": 1.0, "high_ms": 3.0}}
    assert read["unpadded"] == {}
    assert read["ratios"] == {"padded": {"teacher": {"median": 1.0, "low": 1.0, "high": 1.0}}, "unpadded": {}}
    assert read["conditions"]["load_average"] == 99
    assert any("the load average was 99.0" in warning for warning in read["warnings"])


def test_a_ratio_reads_with_its_interval():
    assert str(Ratio(0.51234, 0.5, 0.525)) == "0.512 (0.500 to 0.525)"


# ---- What is refused ----


@pytest.mark.parametrize(
    ("models", "batches", "given", "message"),
    [
        ({}, BATCHES, {}, "there is no model to measure"),
        ({"one": print}, [], {}, "there is no batch to measure the models on"),
        ({"one": print}, [{"input_ids": torch.ones(1, 2)}], {}, "has input_ids; give it an attention_mask"),
        ({"one": print}, BATCHES, {"rounds": 1}, "rounds is 1; it must be at least 2"),
        ({"one": print}, BATCHES, {"num_threads": 0}, "num_threads is 0"),
        ({"one": nn.Linear(2, 2)}, BATCHES, {}, r"model 'one' is in training mode; call its eval\(\) first"),
        (
            {"one": print, "half": nn.Linear(2, 2).half().eval()},
            BATCHES,
            {},
            r"model 'half' has weights in torch.float16; call its float\(\) first",
        ),
    ],
)
def test_what_cannot_be_compared_is_refused(models, batches, given, message):
    with pytest.raises(ValueError, match=message):
        measure(models, batches, **given)
