"""Children taken from a finished super-net, and weights that are damaged."""

import json
import shutil

import pytest
from toy_runs import shared_search
from transformers import AutoModelForMaskedLM

from training.supernet.loading import export_child


@pytest.fixture(scope="module")
def search_run():
    return shared_search()


def test_export_of_the_found_child_and_of_another(search_run, tmp_path):
    folder, result = search_run
    export_child(folder, tmp_path / "found")
    manifest = json.loads((tmp_path / "found" / "search.json").read_text())
    assert manifest["architecture"] == result["architecture"]
    assert manifest["search"]["val_loss"] == result["val_loss"]
    export_child(folder, tmp_path / "other", "FFN,FFN,FFN,FFN")
    assert AutoModelForMaskedLM.from_pretrained(tmp_path / "other").config.candidate_operators == [["FFN"]] * 4
    with pytest.raises(ValueError, match="layer 0 has no operator 'CONV7'; candidates: MHA4, FFN, CONV3"):
        export_child(folder, tmp_path / "none", "CONV7,FFN,FFN,FFN")
    with pytest.raises(ValueError, match=r"there is no folder .*nowhere; give the folder of a super-net run"):
        export_child(tmp_path / "nowhere", tmp_path / "none")


def test_damaged_weights_are_named(search_run, tmp_path):
    folder, _ = search_run
    shutil.copytree(folder, tmp_path / "copy")
    weights = tmp_path / "copy" / "supernet" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"the super-net .* cannot be loaded: SafetensorError"):
        export_child(tmp_path / "copy", tmp_path / "out")
