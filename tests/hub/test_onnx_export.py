"""Export to ONNX: what it holds, and what it refuses. Other shapes are those of `test_works_with`."""

import json
import sys

import numpy
import pytest
import torch
from toy import toy_config

from modeling_magic import MagicForSequenceClassification, MagicModel
from training.hub.onnx_export import export_onnx


CHAIN = [["MHA4"], ["CONV3"]]


def saved(kind, folder, **changes) -> str:
    torch.manual_seed(0)
    kind(toy_config(candidate_operators=CHAIN, **changes)).save_pretrained(folder)
    return str(folder)


def test_the_class_that_was_saved_is_exported(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    folder = saved(MagicForSequenceClassification, tmp_path / "model", num_labels=3, unpad_inputs=True)
    path = export_onnx(folder, tmp_path / "out" / "onnx")
    assert path == tmp_path / "out" / "onnx" / "model.onnx"
    assert sorted(item.name for item in path.parent.iterdir()) == ["config.json", "model.onnx"]
    assert len(json.loads((path.parent / "config.json").read_text())["id2label"]) == 3
    session = onnxruntime.InferenceSession(str(path))
    assert [one.name for one in session.get_inputs()] == ["input_ids", "attention_mask", "token_type_ids"]
    assert [one.name for one in session.get_outputs()] == ["logits"]
    ids = torch.arange(5, 26).view(3, 7)
    mask = (torch.arange(7) < torch.tensor([[7], [4], [1]])).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    (logits,) = session.run(None, {name: tensor.numpy() for name, tensor in inputs.items()})
    expected = MagicForSequenceClassification.from_pretrained(folder)(**inputs).logits.detach()
    numpy.testing.assert_allclose(logits, expected, rtol=0, atol=1e-4)


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
