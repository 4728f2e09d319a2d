"""The Python of the README and of docs/hub.md runs, and the commands and options of the README exist."""

import re
from dataclasses import fields
from pathlib import Path

import pytest
from transformers import AutoModelForMaskedLM, AutoModelForSequenceClassification

from training.arguments import MagicTrainingArguments
from training.cli import app
from training.data import train_tokenizer
from training.hub import export_model
from training.settings import DataSettings


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SENTENCES = "the anchor aligns the child. a layer holds the operators of the super-net. every step trains one child. "


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def test_python_runs_as_it_stands(tmp_path, monkeypatch):
    """On a small text and for a few steps; the lines are the README's."""
    loading, searching = blocks("python")
    assert len(searching.strip().splitlines()) <= 12
    (tmp_path / "text").mkdir()
    (tmp_path / "text" / "a.txt").write_text("\n\n".join(f"{number} {SENTENCES * 3}" for number in range(300)))
    monkeypatch.chdir(tmp_path)
    for old, new in {
        "vocab_size=4096": "'text', vocab_size=200",
        "max_steps=1600": "max_steps=4, num_validation_sequences=4, report_to='none'",
        '"shrink_every_n_steps": 400': '"shrink_every_n_steps": 1',
        '"alignment_warmup_steps": 200': '"alignment_warmup_steps": 1',
    }.items():
        assert searching.count(old) == 1
        searching = searching.replace(old, new)
    names: dict = {}
    exec(searching, names)
    assert names["trainer"].state.global_step == 4
    (tmp_path / "demo_run").mkdir()
    (tmp_path / "encoder").rename(tmp_path / "demo_run" / "model")
    exec(loading, names)
    assert isinstance(names["model"], AutoModelForMaskedLM._model_mapping[type(names["model"].config)])


def test_python_of_the_hub_page_runs(supernet, tmp_path, monkeypatch):
    tokenizer = train_tokenizer(["it is good", "it is bad", "a sentence", "another one"] * 20, vocab_size=60)
    child = supernet.extract_child(("MHA4", "CONV3", "FFN", "CONV5"))
    child.resize_token_embeddings(len(tokenizer))
    export_model(child, tokenizer, tmp_path / "encoder", {})
    monkeypatch.chdir(tmp_path)
    page = (Path(__file__).parent.parent / "docs" / "hub.md").read_text(encoding="utf-8")
    code = "".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    code = code.replace('TrainingArguments("finetuned",', 'TrainingArguments("finetuned", report_to="none",')
    names: dict = {}
    exec(code, names)
    assert names["states"].shape[:2] == (2, 4)
    assert AutoModelForSequenceClassification.from_pretrained("classifier").config.num_labels == 2


def test_commands_and_options_exist():
    commands = {command.callback.__name__ for command in app.registered_commands}
    used = set(re.findall(r"^magic-nas (\w+)", "\n".join(blocks("bash")), re.MULTILINE))
    assert used
    assert used <= commands
    known = {field.name for kind in (MagicTrainingArguments, DataSettings) for field in fields(kind)}
    for name in re.findall(r"--set (?:data\.)?(\w+)=", README):
        assert name in known | {"KEY"}
    for option in re.findall(r"`--(sampler|alignment|shrink)", README):
        assert option in known


@pytest.mark.parametrize("target", ["demo", "test"])
def test_the_two_commands_are_targets(target):
    makefile = (Path(__file__).parent.parent / "Makefile").read_text(encoding="utf-8")
    assert f"make {target} " in README
    assert re.search(rf"^{target}:", makefile, re.MULTILINE)
