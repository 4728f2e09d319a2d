"""The first steps of a compression: what they make, that they are made once, and what models share."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from toy_compress import CLASSES, Kill, at_call, toy_bench, toy_settings
from transformers import TrainingArguments

from modeling_magic import MagicForMaskedLM
from training.compression import workbench
from training.compression.members import members_of, trained_children
from training.compression.spaces import checkpoint_space
from training.compression.teacher_objectives import TARGET
from training.compression.teacher_trainers import CheckpointTrainer
from training.compression.workbench import (
    SUPERNET_FOLDER,
    VISITS_NAME,
    calibrated_errors,
    drop_supernet,
    has_bf16_units,
    load_model,
    new_accelerator,
    run_precision,
    share_embeddings,
    start_supernet,
    supernet_config,
    train_supernet,
    training_arguments,
)
from training.internals import forget_accelerator


@pytest.fixture(autouse=True, scope="module")
def _another_precision():
    """The accelerator of a process decides its precision until it is forgotten."""
    yield
    forget_accelerator()


@pytest.fixture(scope="module", params=CLASSES)
def bench(request, tmp_path_factory):
    return toy_bench(tmp_path_factory.mktemp(request.param), CLASSES[request.param], num_sentences=100)


@pytest.fixture
def sentences(tmp_path):
    return toy_bench(tmp_path, num_sentences=100)


def inputs_of(bench, number: int = 6) -> dict[str, torch.Tensor]:
    (batch,) = bench.text_batches(bench.validation, number)
    return batch


def states_of(model, inputs, **given) -> torch.Tensor:
    with torch.no_grad():
        return model.base_model(**inputs, **given).last_hidden_state


def stop() -> None:
    raise Kill


# ---- Precision ----


@pytest.mark.parametrize(
    ("known", "expected"),
    [({}, False), ({"avx512_f": True}, False), ({"amx_bf16": True}, True), ({"avx512_bf16": True}, True)],
)
def test_the_processor_is_asked_for_bf16(monkeypatch, known, expected):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert has_bf16_units(torch.device("cpu")) is expected


def test_a_torch_that_cannot_be_asked_has_none(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert has_bf16_units(torch.device("cpu")) is False


def test_a_run_keeps_the_precision_that_it_began_with(tmp_path, monkeypatch):
    settings = toy_settings(tmp_path, precision="auto")
    monkeypatch.setattr(workbench, "has_bf16_units", lambda _: True)
    assert run_precision(tmp_path, settings) == "bf16"
    # On another machine.
    monkeypatch.setattr(workbench, "has_bf16_units", lambda _: False)
    assert run_precision(tmp_path, settings) == "bf16"
    (tmp_path / "other").mkdir()
    assert run_precision(tmp_path / "other", settings) == "no"
    (tmp_path / "asked").mkdir()
    assert run_precision(tmp_path / "asked", toy_settings(tmp_path, precision="bf16")) == "bf16"


def test_an_accelerator_has_the_precision_that_is_asked_for():
    for precision in ("bf16", "no", "bf16"):
        assert new_accelerator(precision).mixed_precision == precision


# ---- Models ----


def test_the_super_net_has_the_checkpoints_sizes_and_no_dropout(bench):
    config = bench.teacher.config
    assert config.hidden_dropout_prob > 0
    supernet = supernet_config(config, bench.space)
    assert supernet.candidate_operators == bench.space.to_json()
    assert supernet.hidden_dropout_prob == supernet.attention_probs_dropout_prob == supernet.classifier_dropout == 0
    changed = {"candidate_operators", "num_hidden_layers", "hidden_dropout_prob", "attention_probs_dropout_prob"}
    for name, value in config.to_dict().items():
        if name not in {*changed, "classifier_dropout", "transformers_version"}:
            assert supernet.to_dict()[name] == value, name


def test_operators_that_do_not_fit_are_refused(bench):
    space = checkpoint_space(bench.teacher.config, ("CONV5",))
    wrong = type(space)(((*space.candidates[0], "MHA5"), *space.candidates[1:]))
    with pytest.raises(ValueError, match="layer 0: MHA5 has 5 heads, which do not divide its inner size 32"):
        supernet_config(bench.teacher.config, wrong)


def test_the_super_net_of_the_drops_is_the_checkpoint(bench):
    model, inputs, chain = drop_supernet(bench), inputs_of(bench), bench.teacher.config.chain
    assert torch.equal(states_of(model, inputs, architecture=chain), states_of(bench.teacher, inputs))
    for name, tensor in bench.teacher.state_dict().items():
        assert model.state_dict()[name].data_ptr() == tensor.data_ptr(), name
    # A drop by hand: the layers above move down.
    dropped = bench.teacher.base_model.encoder.layer[2:]
    states = bench.teacher.base_model.embeddings(inputs["input_ids"])
    masks = bench.teacher.base_model.attention_masks(states, inputs.get("attention_mask"))
    for layer, name in zip(dropped, chain[2:], strict=True):
        states = layer(states, *masks, operator=name)
    torch.testing.assert_close(states_of(model, inputs, architecture=("SKIP", "SKIP", *chain[2:])), states)


def test_embeddings_are_shared_and_nothing_else(bench, tmp_path):
    bench.teacher.save_pretrained(tmp_path)
    model = load_model(bench, tmp_path)
    shared = {
        name: parameter.data_ptr() == model.get_parameter(name).data_ptr()
        for name, parameter in bench.teacher.named_parameters()
    }
    assert {name for name, is_shared in shared.items() if is_shared} == {
        name for name in shared if "embeddings." in name
    }
    assert not any(p.requires_grad for p in model.base_model.embeddings.parameters())
    if isinstance(model, MagicForMaskedLM):
        assert model.lm_head.decoder.weight is model.base_model.embeddings.word_embeddings.weight
        assert model.config.sparse_prediction
    inputs = inputs_of(bench)
    with torch.no_grad():
        assert torch.equal(model(**inputs)[0], bench.teacher(**inputs)[0])
    model.train()
    assert not any(module.training for module in bench.teacher.modules())


def test_a_projection_of_embeddings_is_shared_as_well(tmp_path):
    bench = toy_bench(tmp_path, "ElectraForTokenClassification", num_sentences=100)
    assert bench.teacher.config.embedding_size == 16
    bench.teacher.save_pretrained(tmp_path / "copy")
    model = type(bench.teacher).from_pretrained(tmp_path / "copy")
    share_embeddings(model, bench.teacher)
    own, other = (one.base_model.embeddings.projection.weight for one in (model, bench.teacher))
    assert own is other


# ---- Trainings ----


def test_trainings_have_no_decay_and_keep_one_checkpoint(sentences, tmp_path):
    args = training_arguments(sentences, TrainingArguments, tmp_path, 7, 0.5, progress=False, seed=9)
    assert (args.max_steps, args.learning_rate, args.weight_decay, args.seed) == (7, 0.5, 0, 9)
    assert (args.bf16, args.use_cpu, args.save_total_limit) == (False, True, 1)
    assert args.per_device_train_batch_size == sentences.settings.batch_size


def test_the_start_has_the_checkpoints_operators_and_is_made_once(bench, monkeypatch):
    model, inputs = start_supernet(bench, progress=False), inputs_of(bench)
    chain = bench.teacher.config.chain
    torch.testing.assert_close(states_of(model, inputs, architecture=chain), states_of(bench.teacher, inputs))
    assert not model.training
    errors = calibrated_errors(bench)
    assert [list(layer) for layer in errors] == bench.space.to_json()
    assert all(layer[name] == pytest.approx(0, abs=1e-6) for layer, name in zip(errors, chain, strict=True))
    assert all(layer[name] > 1e-5 for layer, own in zip(errors, chain, strict=True) for name in layer if name != own)
    monkeypatch.setattr(workbench, "_make_start", lambda *_: pytest.fail("made again"))
    again = start_supernet(bench, progress=False)
    for (name, one), (_, two) in zip(model.state_dict().items(), again.state_dict().items(), strict=True):
        assert torch.equal(one, two), name


def test_a_start_that_is_not_whole_is_made_again(sentences, monkeypatch):
    with monkeypatch.context() as stopping:
        stopping.setattr(workbench, "write_json", at_call(1, workbench.write_json, stop))
        with pytest.raises(Kill):
            start_supernet(sentences, progress=False)
    assert not (sentences.folder / "start").exists()
    assert start_supernet(sentences, progress=False).config.is_supernet


def within_of(bench) -> list[Any]:
    members = members_of(bench.settings, bench.teacher.config, bench.space, None)
    return trained_children(members, bench.space)


@pytest.mark.parametrize("changes", [{}, {"sampler": "gradual"}, {"sampler": "uniform", "alignment": "checkpoint"}])
def test_a_super_net_is_trained_once(tmp_path, monkeypatch, changes):
    bench = toy_bench(tmp_path, num_sentences=100, **changes, alignment_every_n_layers=2)
    bench.run_teacher(progress=False)
    model = train_supernet(bench, within_of(bench), progress=False)
    folder = bench.folder / SUPERNET_FOLDER
    visits = json.loads((folder / VISITS_NAME).read_text())
    steps = bench.settings.supernet_steps
    assert [sum(layer.values()) for layer in visits] == [steps] * 4
    assert sorted(path.name for path in folder.iterdir()) == ["model", "visits.json"]
    start = start_supernet(bench, progress=False)
    for layer, operators in enumerate(visits):
        for name, times in operators.items():
            pair = (one.base_model.encoder.layer[layer].operators[name].state_dict() for one in (model, start))
            same = all(torch.equal(one, two) for one, two in zip(*(side.values() for side in pair), strict=True))
            # A first step has the learning rate 0.
            assert same or times
            assert not same or times < 2 or name == "SKIP"
    monkeypatch.setattr(CheckpointTrainer, "train", lambda *_, **__: pytest.fail("trained again"))
    again = train_supernet(bench, within_of(bench), progress=False)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize("number", [1, 2])
def test_a_super_net_that_was_trained_to_its_end_but_not_put_on_record(sentences, tmp_path, monkeypatch, number):
    """Stopped before its model is written, and before the record."""
    sentences.run_teacher(progress=False)
    whole = toy_bench(tmp_path, num_sentences=100)
    whole.folder = tmp_path / "whole"
    whole.folder.mkdir()
    expected = train_supernet(whole, within_of(whole), progress=False)
    start_supernet(sentences, progress=False)
    name = "written_at_once" if number == 1 else "write_json"
    with monkeypatch.context() as stopping:
        stopping.setattr(workbench, name, at_call(1, getattr(workbench, name), stop))
        with pytest.raises(Kill):
            train_supernet(sentences, within_of(sentences), progress=False)
    monkeypatch.setattr(CheckpointTrainer, "training_step", lambda *_, **__: pytest.fail("a step was made"))
    model = train_supernet(sentences, within_of(sentences), progress=False)
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), expected.parameters(), strict=True))
    visits = [(one.folder / SUPERNET_FOLDER / VISITS_NAME).read_text() for one in (sentences, whole)]
    assert visits[0] == visits[1]


# ---- The workbench ----


def test_held_out_rows_are_judged_in_float32(tmp_path):
    bench = toy_bench(tmp_path, num_sentences=100, precision="bf16")
    bench.run_teacher(progress=False)
    batches = bench.judged_batches(20)
    assert sum(map(bench.objective.num_items, batches)) == 20
    with torch.no_grad():
        for batch in batches:
            given = {name: tensor for name, tensor in batch.items() if name != TARGET}
            own = bench.objective.read(bench.teacher(**given), batch)
            torch.testing.assert_close(batch[TARGET]["outputs"], own, rtol=0, atol=1e-6)


def test_lengths_end_where_the_model_does(tmp_path):
    bench = toy_bench(tmp_path, "RobertaForSequenceClassification", num_sentences=100, latency_length=64)
    assert bench.latency_length == bench.teacher.config.max_sequence_length == 62


def test_work_of_the_main_process_is_done_there_alone(sentences, tmp_path):
    assert sentences.on_main(lambda: 7) == 7
    assert sentences.is_file(Path(__file__))
    assert not sentences.is_file(tmp_path / "no")
    sentences.accelerator = SimpleNamespace(is_main_process=False, num_processes=1)
    assert sentences.on_main(lambda: 7) is None
