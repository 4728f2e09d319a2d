"""Labels beside the text: rows, batches, and the loss against transformers' own."""

import functools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from toy_compress import toy_bench, toy_settings
from toy_hub import SENTENCES
from toy_sources import LABELS
from transformers import AutoTokenizer, TrainingArguments

from training.compression import compress_run
from training.compression.compress_run import compress, open_bench
from training.compression.distill import distill
from training.compression.labelled import read_labelled, with_labelled
from training.compression.predictor import Predictor, forward_of
from training.compression.sentences import LABEL
from training.compression.source import load_source
from training.compression.teacher_objectives import TARGET, SequenceObjective
from training.compression.teacher_trainers import ChildTrainer
from training.compression.workbench import train_supernet
from training.internals import forget_accelerator


CLASSIFIER = "BertForSequenceClassification"
PROBLEMS = ["single_label_classification", "regression", "multi_label_classification"]


@pytest.fixture(autouse=True, scope="module")
def _another_precision():
    yield
    forget_accelerator()


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def labelled_settings(folder: Path, rows: list[dict[str, Any]], class_name: str = CLASSIFIER, **changes: Any):
    return replace(toy_settings(folder, class_name, **changes), labels=write_rows(folder / "labels.jsonl", rows))


# ---- Rows ----


def test_rows_are_tokenised_with_their_pairs_and_labels(tmp_path):
    rows = [
        {"text": text, "text_pair": "no one", "label": label}
        for text, label in zip(SENTENCES[:3], ("perhaps", "no", "yes"), strict=True)
    ]
    settings = labelled_settings(tmp_path, rows)
    found = read_labelled(settings, load_source(settings.checkpoint))
    tokenizer = AutoTokenizer.from_pretrained(settings.checkpoint)
    expected = {}
    for row, label in zip(rows, (2.0, 0.0, 1.0), strict=True):
        encoded = tokenizer(row["text"], row["text_pair"])
        expected[tuple(encoded["input_ids"])] = (encoded["token_type_ids"], [label])
    assert {tuple(row["input_ids"]): (row["token_type_ids"], row[LABEL]) for row in found} == expected
    assert all(row["length"] == len(row["input_ids"]) for row in found)


def test_no_more_rows_are_taken_than_sentences(tmp_path):
    rows = [{"text": f"{text} {number}", "label": "no"} for number, text in enumerate(SENTENCES * 40)]
    settings = labelled_settings(tmp_path, rows, num_sentences=100)
    source = load_source(settings.checkpoint)
    found = read_labelled(settings, source)
    assert len(found) == 100 < len(rows)
    assert found[:] == read_labelled(settings, source)[:]
    assert found[:] != read_labelled(replace(settings, seed=1), source)[:]


def test_text_has_an_empty_label_and_held_out_rows_are_left_out(tmp_path):
    bench = toy_bench(tmp_path, CLASSIFIER)
    tokenizer = bench.source.tokenizer
    texts = {
        name: tokenizer.decode(rows[0]["input_ids"], skip_special_tokens=True)
        for name, rows in (("held out", bench.validation), ("read", bench.train))
    }
    rows = [{"text": text, "label": "yes"} for text in (*texts.values(), "this one is new")]
    settings = labelled_settings(tmp_path, rows)
    labelled = read_labelled(settings, bench.source)
    found = with_labelled(bench.train, labelled, bench.validation)
    own = {tuple(row["input_ids"]): row[LABEL] for row in found}
    assert len(own) == len(found) == len(bench.train) + 1
    assert {ids for ids, label in own.items() if label} == {
        tuple(tokenizer(text)["input_ids"]) for text in (texts["read"], "this one is new")
    }
    assert tuple(bench.validation[0]["input_ids"]) not in own
    assert with_labelled(bench.train, None, bench.validation) is bench.train


@pytest.mark.parametrize("class_name", ["BertModel", "BertForTokenClassification", "BertForMaskedLM"])
def test_other_kinds_of_checkpoint_are_refused(tmp_path, class_name):
    settings = labelled_settings(tmp_path, [{"text": "one", "label": "no"}], class_name)
    with pytest.raises(ValueError, match=r"the kind of the checkpoint is \w+; .* remove --labels"):
        compress(settings, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_label_that_the_checkpoint_does_not_know_is_refused_before_any_work(tmp_path):
    settings = labelled_settings(tmp_path, [{"text": "one", "label": "no"}, {"text": "two", "label": "never"}])
    with pytest.raises(ValueError, match=r"labels\.jsonl.*never"):
        compress(settings, tmp_path / "out", progress=False)


def test_a_run_and_a_task_of_a_cluster_have_the_labelled_rows(tmp_path, monkeypatch):
    settings = labelled_settings(tmp_path, [{"text": "this one is new", "label": "yes"}])
    with pytest.MonkeyPatch.context() as stopping:
        stopping.setattr(compress_run, "_compress", lambda run, bench, *_: {"bench": bench})
        bench = compress(settings, tmp_path / "out", progress=False)["bench"]
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "cache"))
    for each in (bench, open_bench(settings, tmp_path / "out")):
        assert [row[LABEL] for row in each.train if row[LABEL]] == [[1.0]]
        assert len(each.train) == len(each.sentences.train) + 1


def test_the_super_net_is_trained_on_labelled_rows_without_their_labels(tmp_path):
    bench = toy_bench(tmp_path, CLASSIFIER, num_sentences=100)
    rows = [{"text": f"{text} twice", "text_pair": "no one", "label": "perhaps"} for text in SENTENCES]
    bench.labelled = read_labelled(labelled_settings(tmp_path, rows), bench.source)
    bench.run_teacher(progress=False)
    assert train_supernet(bench, [], progress=False).config.num_labels == 3
    visits = json.loads((tmp_path / "run" / "supernet" / "visits.json").read_text())
    assert [sum(layer.values()) for layer in visits] == [bench.settings.supernet_steps] * 4


def test_models_are_given_no_labels(tmp_path, monkeypatch):
    bench = toy_bench(tmp_path, CLASSIFIER, num_sentences=100)
    bench.labelled = read_labelled(
        labelled_settings(tmp_path, [{"text": f"{text} twice", "label": "no"} for text in SENTENCES]), bench.source
    )
    bench.run_teacher(progress=False)
    given: set[str] = set()
    forward = type(bench.teacher).forward

    @functools.wraps(forward)
    def noted(self, *args, **kwargs):
        given.update(kwargs)
        return forward(self, *args, **kwargs)

    monkeypatch.setattr(type(bench.teacher), "forward", noted)
    distill(bench, bench.teacher.config.chain, 8, tmp_path / "child", progress=False)
    assert "input_ids" in given
    assert LABEL not in given
    assert not any(LABEL in batch for batch in bench.text_batches(bench.train, len(bench.train)))


# ---- The loss ----


@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_loss_is_that_of_transformers(problem):
    num_labels = 1 if problem == "regression" else 3
    sizes: Any = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = transformers.BertConfig(
        vocab_size=20, num_labels=num_labels, problem_type=problem, hidden_dropout_prob=0.0, **sizes
    )
    model = transformers.BertForSequenceClassification(config).eval()
    input_ids = torch.arange(12).view(3, 4)
    labels = {
        "regression": torch.tensor([[0.5], [-2.0], [3.0]]),
        "single_label_classification": torch.tensor([[2.0], [0.0], [1.0]]),
        "multi_label_classification": torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 1]]),
    }[problem]
    of_transformers = labels[:, 0].long() if problem == "single_label_classification" else labels
    expected = model(input_ids, labels=of_transformers.squeeze(-1))
    own = expected.logits.repeat_interleave(2, dim=0)
    # Every other row has no label.
    known = torch.full((6, labels.shape[1]), math.nan)
    known[::2] = labels
    losses = SequenceObjective(problem).label_losses(own, known)
    torch.testing.assert_close(losses[::2].mean(), expected.loss)
    assert losses[1::2].tolist() == [0, 0, 0]
    losses.sum().backward()


def test_a_step_adds_the_weighted_loss_of_the_labelled_rows(tmp_path):
    rows = [{"text": f"{text} twice", "label": "perhaps"} for text in SENTENCES[:6]]
    bench = toy_bench(tmp_path, CLASSIFIER, num_sentences=100)
    bench.labelled = read_labelled(labelled_settings(tmp_path, rows), bench.source)
    bench.run_teacher(progress=False)
    trainers = {
        weight: ChildTrainer(
            model=bench.teacher,
            args=TrainingArguments(str(tmp_path / "trainer"), report_to="none", use_cpu=True, label_names=[]),
            objective=bench.objective,
            labels_weight=weight,
            train_dataset=bench.train,
            data_collator=bench.train_outputs.collate,
        )
        for weight in (0.0, 2.0)
    }
    examples = [*bench.train.select(range(5)), *bench.train.select(range(len(bench.train) - 3, len(bench.train)))]
    batch = bench.train_outputs.collate(examples)
    is_labelled = ~batch[LABEL][:, 0].isnan()
    assert 3 <= is_labelled.sum() < 8
    bench.teacher.eval()
    losses = {weight: trainer.compute_loss(bench.teacher, batch) for weight, trainer in trainers.items()}
    logits = batch[TARGET]["outputs"][is_labelled]
    added = 2 * torch.nn.functional.cross_entropy(logits, torch.full((len(logits),), 2), reduction="sum") / 8
    torch.testing.assert_close(losses[2.0] - losses[0.0], added, rtol=1e-4, atol=1e-5)
    assert losses[0.0].item() == pytest.approx(0, abs=1e-5)


def test_a_child_learns_the_labels(tmp_path):
    bench = toy_bench(tmp_path, CLASSIFIER, num_sentences=100)
    ask = Predictor(bench.source, forward_of(bench.teacher)).classify
    texts = [f"{text} twice" for text in SENTENCES]
    least = LABELS[int(ask(texts).mean(axis=0).argmin())]
    settings = labelled_settings(tmp_path, [{"text": text, "label": least} for text in texts], num_sentences=100)
    bench.labelled = read_labelled(settings, bench.source)
    bench.run_teacher(progress=False)
    shares = []
    for weight in (0.0, 20.0):
        bench.settings = replace(bench.settings, labels_weight=weight, learning_rate=5e-3)
        child = distill(bench, bench.teacher.config.chain, 30, tmp_path / f"{weight}", progress=False).eval()
        found = Predictor(bench.source, forward_of(child)).classify(texts).argmax(axis=1)
        shares.append(sum(LABELS[number] == least for number in found) / len(texts))
    assert shares[0] < 0.5
    assert shares[1] == 1
