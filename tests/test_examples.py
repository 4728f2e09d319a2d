"""The examples run as they stand, on a few rows, on an exported child and on transformers' own BERT alike."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_cli import write_compression
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
)

from training.data.tokenizing import train_tokenizer
from training.hub.export import export_model


EXAMPLES = Path(__file__).parent.parent / "examples"
WORDS = ["good", "bad", "film", "the", "is", "a", "very", "plot"]


@pytest.fixture
def tokenizer():
    return train_tokenizer([" ".join(WORDS)] * 20, vocab_size=80)


@pytest.fixture(params=["child", pytest.param("bert", marks=pytest.mark.slow)])
def encoder(request, supernet, tokenizer, tmp_path):
    """A folder with a model, and whether it needs the code that lies in it."""
    folder = tmp_path / "encoder"
    torch.manual_seed(0)
    if request.param == "child":
        child = supernet.extract_child(("MHA4", "CONV3", "FFN", "CONV5"))
        child.resize_token_embeddings(len(tokenizer))
        export_model(child, tokenizer, folder, {})
        return folder, True
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        pad_token_id=tokenizer.pad_token_id,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder, False


def run(name, tmp_path, folder, trust, *options, timeout=120):
    """Runs an example in a process of its own, outside of the checkout."""
    command = [sys.executable, EXAMPLES / name, "--model", folder, "--output-dir", tmp_path / "out", *options]
    command += ["--trust-remote-code"] if trust else []
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, command)), cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_text_classification(encoder, tmp_path):
    folder, trust = encoder
    for name in ("train", "dev"):
        with (tmp_path / f"{name}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sentence1", "label"])
            writer.writerows([[f"the film is {'good' if row % 2 else 'bad'}", row % 2] for row in range(16)])
    options = ["--train-file", tmp_path / "train.csv", "--validation-file", tmp_path / "dev.csv", "--epochs", "20"]
    printed = run("text_classification.py", tmp_path, folder, trust, *options, "--learning-rate", "1e-2")
    assert "eval_accuracy': 1.0" in printed
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    inputs = AutoTokenizer.from_pretrained(tmp_path / "out")(
        ["the film is bad", "the film is good"], return_tensors="pt"
    )
    assert model.eval()(**inputs).logits.argmax(-1).tolist() == [0, 1]


@pytest.mark.slow
def test_compress_encoder(tmp_path):
    write_compression(tmp_path)
    options = ["--text", tmp_path / "text", "--max-params", "0.9x", "--short"]
    printed = run("compress_encoder.py", tmp_path, tmp_path / "minilm", False, *options, timeout=300)
    assert "| **params-0.9x: found** |" in printed
    assert "| params-0.9x: found, int8 |" in printed
    cosines = [float(line.split()[0]) for line in printed.splitlines()[-3:]]
    assert min(cosines) > 0.9
    assert AutoModel.from_pretrained(tmp_path / "out" / "model").num_parameters() > 0


def test_question_answering(encoder, tmp_path):
    folder, trust = encoder
    context = "the plot is a very bad plot is the film"
    rows = [
        {"question": f"is the film {word}", "context": context, "answer": "bad", "answer_start": context.index("bad")}
        for word in ("good", "bad", "a", "very")
    ]
    (tmp_path / "train.json").write_text("\n".join(map(json.dumps, rows)))
    options = ["--train-file", tmp_path / "train.json", "--epochs", "60", "--max-length", "24", "--stride", "4"]
    run("question_answering.py", tmp_path, folder, trust, *options, "--learning-rate", "1e-2")
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "out").eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    inputs = tokenizer("is the film good", context, return_tensors="pt")
    outputs = model(**inputs)
    start, end = outputs.start_logits.argmax(), outputs.end_logits.argmax()
    assert tokenizer.decode(inputs.input_ids[0, start : end + 1]) == "bad"
