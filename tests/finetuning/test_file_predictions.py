"""Files that a fine-tuned classifier predicts and is scored on: its own, those of transformers, and wrong input."""

import csv
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from toy_finetune import SIZES, save_toy_model, toy_tokenizer, write_glue
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    pipeline,
)

from modeling_magic import MagicForMaskedLM
from training import EvaluateSettings, PredictSettings, evaluate_file, predict_file
from training.finetuning import file_predictions
from training.finetuning.file_predictions import scores_table
from training.finetuning.finetune_run import run_finetuning
from training.finetuning.settings import FinetuneSettings
from training.finetuning.task_files import read_table
from training.hub.model_folders import export_folder


ROWS = [("fine a", "yes"), ("dull b c", "no"), ("great d", "yes"), ("awful e f g h", "no"), ("b c poor", "no")]


def write_rows(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    if path.suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def cells_of(path: Path) -> list[dict[str, Any]]:
    return [dict(row.cells) for row in read_table(path).rows]


def settings_of(model: Path, **changes: Any) -> FinetuneSettings:
    given: dict[str, Any] = {
        "model": str(model),
        "learning_rates": (5e-3,),
        "batch_sizes": (8,),
        "seeds": (1,),
        "num_epochs": 1,
        "max_length": 12,
        "training_arguments": {"disable_tqdm": True, "use_cpu": True},
    }
    return FinetuneSettings(**{**given, **changes})


@pytest.fixture(scope="module")
def encoder(tmp_path_factory) -> Path:
    return save_toy_model("magic", tmp_path_factory.mktemp("encoder"))


KINDS: dict[str, list[dict[str, Any]]] = {
    "single_label_classification": [
        {"number": str(i), "text": text, "label": label} for i, (text, label) in enumerate(ROWS)
    ],
    "regression": [{"text": text, "label": len(text) / 4} for text, _ in ROWS],
    "multi_label_classification": [{"text": text, "label": ["x", label]} for text, label in ROWS],
    "token_classification": [
        {"text": text.split(), "label": ["B-X", *["O"] * (len(text.split()) - 1)]} for text, _ in ROWS
    ],
}


@pytest.fixture(scope="module")
def finetuned(tmp_path_factory, encoder) -> dict[str, tuple[Path, Path, dict[str, Any]]]:
    """For each kind of task the model of a sweep, the file that it was scored on, and what the sweep says of it."""
    found = {}
    for kind, rows in KINDS.items():
        folder = tmp_path_factory.mktemp(kind)
        path = write_rows(folder / "mine.jsonl", [row for row in rows for _ in range(3)])
        settings = settings_of(
            encoder, train_file=str(path), validation_file=str(path), test_file=str(path), problem_type=kind
        )
        (task,) = run_finetuning(settings, folder / "run")["tasks"]
        found[kind] = folder / "run" / "mine" / "model", path, task
    return found


# ---- The models of a fine-tuning ----


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_is_scored_and_predicted_as_the_sweep_did(kind, tmp_path, finetuned):
    model, path, task = finetuned[kind]
    # The folder of the sweep stands for the only model in it.
    result = evaluate_file(model.parent.parent, path)
    expected = {name: value for name, value in task["test"]["metrics"].items() if name != "score"}
    assert {name: result["metrics"][name] for name in expected} == expected
    assert (result["rows"], result["problem_type"], result["max_length"]) == (len(ROWS) * 3, kind, 12)
    written = predict_file(model, path, tmp_path / "out" / "predicted.jsonl")
    found = [json.loads(line) for line in written.read_text(encoding="utf-8").splitlines()]
    lines = (model.parent / "test_predictions.jsonl").read_text().splitlines()
    assert [row["prediction"] for row in found] == [json.loads(line)["prediction"] for line in lines]
    assert [{name: row[name] for name in source} for row, source in zip(found, cells_of(path), strict=True)] == (
        cells_of(path)
    )
    assert ("probability" in found[0]) == (kind in ("single_label_classification", "multi_label_classification"))
    assert not list((tmp_path / "out").glob(".*"))


def test_an_export_of_an_export_and_a_glue_task_are_scored_as_the_sweep_did(tmp_path, encoder, finetuned):
    glue = write_glue(tmp_path / "glue", num_train=24, num_dev=16, titles=("CoLA", "STS-B", "RTE"))
    settings = settings_of(encoder, tasks=("cola", "stsb", "rte"), glue_folder=str(glue))
    result = run_finetuning(settings, tmp_path / "run")
    for row, title in zip(result["tasks"], ("CoLA", "STS-B", "RTE"), strict=False):
        title = {"cola": "CoLA", "stsb": "STS-B", "rte": "RTE"}[row["task"]]
        exported = export_folder(tmp_path / "run" / row["task"] / "model", tmp_path / "exported" / title)
        found = evaluate_file(exported, glue / title / "dev.tsv")
        for name, summary in row["metrics"]["validation"].items():
            if name not in ("score", "loss"):
                assert found["metrics"][name] == pytest.approx(summary["median"], abs=1e-6), (title, name)
        assert found["text_columns"] == (["sentence"] if title == "CoLA" else ["sentence1", "sentence2"])
        assert found["max_length"] == 12


def test_rows_are_predicted_part_by_part_in_their_order(tmp_path, finetuned, monkeypatch):
    model, path, _ = finetuned["single_label_classification"]
    whole = cells_of(predict_file(model, path, tmp_path / "whole.csv"))
    monkeypatch.setattr(file_predictions, "_ROWS_AT_ONCE", 4)
    parts = cells_of(predict_file(model, path, tmp_path / "parts.csv", PredictSettings(batch_size=2)))
    assert [row["number"] for row in parts] == [row["number"] for row in cells_of(path)]
    for one, other in zip(whole, parts, strict=True):
        assert one["prediction"] == other["prediction"]
        assert float(one["probability"]) == pytest.approx(float(other["probability"]), abs=1e-5)
    assert (
        evaluate_file(model, path)["metrics"] == evaluate_file(model, path, EvaluateSettings(batch_size=1))["metrics"]
    )


def test_what_a_csv_holds_is_read_again(tmp_path, finetuned):
    for kind in ("multi_label_classification", "token_classification"):
        model, path, _ = finetuned[kind]
        written = predict_file(model, path, tmp_path / f"{kind}.csv")
        lines = [json.loads(line) for line in predict_file(model, path, tmp_path / "a.jsonl").read_text().splitlines()]
        separator = "|" if kind == "multi_label_classification" else " "
        for row, line in zip(cells_of(written), lines, strict=True):
            assert row["prediction"] == separator.join(line["prediction"])
            assert json.loads(str(row["label"])) == line["label"]
            assert len(line["prediction"]) == len(line.get("probability", line["prediction"]))


def test_of_several_labels_the_probability_is_that_of_each(tmp_path, finetuned):
    model, path, _ = finetuned["multi_label_classification"]
    lines = [json.loads(line) for line in predict_file(model, path, tmp_path / "a.jsonl").read_text().splitlines()]
    assert any(line["prediction"] for line in lines)
    assert all(0.5 < value <= 1 for line in lines for value in line["probability"])


def test_a_file_without_labels_and_with_other_columns_is_predicted(tmp_path, finetuned):
    model, _, _ = finetuned["single_label_classification"]
    rows = [{"text": text, "comment": "some words that are no text to predict"} for text, _ in ROWS]
    path = write_rows(tmp_path / "bare.csv", rows)
    predicted = cells_of(predict_file(model, path, tmp_path / "out.csv"))
    assert [row["comment"] for row in predicted] == [row["comment"] for row in rows]
    # Of a file with other names the columns are inferred, or named.
    other = write_rows(tmp_path / "other.csv", [{"words": text, "size": str(len(text))} for text, _ in ROWS])
    again = cells_of(predict_file(model, other, tmp_path / "again.csv"))
    assert [row["prediction"] for row in again] == [row["prediction"] for row in predicted]
    path = write_rows(tmp_path / "two.csv", [{"one": text, "other": text} for text, _ in ROWS])
    with pytest.raises(
        ValueError, match=r"fine-tuned on 1 column of text \(text\), but .*two.csv has one, other; name"
    ):
        predict_file(model, path, tmp_path / "no.csv")
    named = predict_file(model, path, tmp_path / "named.csv", PredictSettings(text_columns=("one",)))
    assert [row["prediction"] for row in cells_of(named)] == [row["prediction"] for row in predicted]


# ---- Models of transformers ----


def save_bert(folder: Path, kind: type = BertForSequenceClassification, **changes: Any) -> Path:
    torch.manual_seed(0)
    config = BertConfig(**SIZES, num_hidden_layers=1, num_attention_heads=4, **changes)
    kind(config).save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder


def test_a_classifier_of_transformers_is_predicted_as_by_its_pipeline(tmp_path):
    model = save_bert(tmp_path / "bert", id2label={0: "no", 1: "yes", 2: "perhaps"})
    path = write_rows(tmp_path / "mine.csv", [{"text": text, "label": label} for text, label in ROWS])
    predicted = cells_of(predict_file(model, path, tmp_path / "out.csv"))
    expected = pipeline("text-classification", model=str(model), device="cpu")([text for text, _ in ROWS])
    assert [row["prediction"] for row in predicted] == [one["label"] for one in expected]
    for row, one in zip(predicted, expected, strict=True):
        assert float(row["probability"]) == pytest.approx(one["score"], abs=1e-5)
    result = evaluate_file(model, path)
    right = [row["prediction"] == label for row, (_, label) in zip(predicted, ROWS, strict=True)]
    assert result["metrics"]["accuracy"] == sum(right) / len(right)
    assert result["max_length"] == 40
    assert {name: found["rows"] for name, found in result["classes"].items()} == {"no": 3, "yes": 2, "perhaps": 0}
    assert "| yes |" in scores_table(result)
    # By their numbers too.
    numbers = [{"text": text, "label": int(label == "yes")} for text, label in ROWS]
    assert evaluate_file(model, write_rows(tmp_path / "numbers.csv", numbers))["metrics"] == result["metrics"]


def test_the_tags_of_a_classifier_of_transformers(tmp_path, caplog):
    model = save_bert(tmp_path / "bert", BertForTokenClassification, id2label={0: "O", 1: "B-X"})
    path = tmp_path / "mine.conll"
    path.write_text("fine B-X\na O\n\ndull O\n\n", encoding="utf-8")
    predicted = cells_of(predict_file(model, path, tmp_path / "out.jsonl"))
    assert [len(row["prediction"]) for row in predicted] == [2, 1]
    assert {tag for row in predicted for tag in row["prediction"]} <= {"O", "B-X"}
    assert set(evaluate_file(model, path)["metrics"]) == {"entity_f1", "token_accuracy"}
    with caplog.at_level("WARNING"):
        short = predict_file(model, path, tmp_path / "short.jsonl", PredictSettings(max_length=3))
    assert [len(row["prediction"]) for row in cells_of(short)] == [1, 1]
    assert "1 row of mine.conll: words beyond 3 tokens get no tag" in caplog.text


def test_several_labels_that_the_configuration_does_not_tell_of_are_asked_for(tmp_path):
    model = save_bert(tmp_path / "bert", id2label={0: "x", 1: "y", 2: "z"})
    path = write_rows(tmp_path / "mine.jsonl", [{"text": "fine", "label": "x|y"}, {"text": "dull", "label": ""}])
    with pytest.raises(ValueError, match=r"unknown label 'x\|y'"):
        evaluate_file(model, path)
    several = EvaluateSettings(problem_type="multi_label_classification")
    assert set(evaluate_file(model, path, several)["metrics"]) == {"micro_f1", "macro_f1"}


def test_a_tokenizer_that_pads_on_the_left_changes_no_prediction(tmp_path, finetuned, caplog):
    tagger = save_bert(tmp_path / "bert", BertForTokenClassification, id2label={0: "O", 1: "B-X", 2: "I-X"})
    for kind, model in (("token_classification", tagger), ("single_label_classification", None)):
        folder, path, _ = finetuned[kind]
        model = model or shutil.copytree(folder, tmp_path / kind)
        expected = cells_of(predict_file(model, path, tmp_path / "right.jsonl"))
        config = json.loads((model / "tokenizer_config.json").read_text())
        (model / "tokenizer_config.json").write_text(json.dumps(config | {"padding_side": "left"}))
        with caplog.at_level("INFO"):
            found = cells_of(predict_file(model, path, tmp_path / "left.jsonl"))
        assert f"padding: on the right, though the tokenizer of '{model}' pads on the left" in caplog.text
        assert [row["prediction"] for row in found] == [row["prediction"] for row in expected]
        if kind == "single_label_classification":
            assert [row["probability"] for row in found] == [row["probability"] for row in expected]


def test_a_record_without_a_length_is_none(tmp_path, finetuned):
    folder, path, _ = finetuned["regression"]
    model = shutil.copytree(folder, tmp_path / "model")
    facts = json.loads((model / "finetune.json").read_text())
    del facts["max_length"]
    (model / "finetune.json").write_text(json.dumps(facts))
    assert evaluate_file(model, path)["max_length"] == 40


# ---- Refused ----


REFUSED: dict[str, tuple[type, dict[str, Any], str]] = {
    "answers": (BertForQuestionAnswering, {}, "answers questions; .* magic-nas squad --model"),
    "no head": (BertForMaskedLM, {}, r"is not a classifier \(BertForMaskedLM\); fine-tune it first"),
    "regression": (BertForSequenceClassification, {"problem_type": "regression"}, "with 2 outputs, supports single"),
    "numbers": (
        BertForSequenceClassification,
        {"id2label": {1: "a", 2: "b"}},
        "numbers the classes 1, 2; ",
    ),
    "names": (BertForSequenceClassification, {"id2label": {0: "a", 1: "a"}}, "two classes with the same name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_models_that_predict_no_classes_are_refused(name, tmp_path):
    kind, changes, message = REFUSED[name]
    model = save_bert(tmp_path / "bert", kind, **changes)
    path = write_rows(tmp_path / "mine.csv", [{"text": text, "label": label} for text, label in ROWS])
    for act in (lambda: evaluate_file(model, path), lambda: predict_file(model, path, tmp_path / "out.csv")):
        with pytest.raises(ValueError, match=message):
            act()
    assert not (tmp_path / "out.csv").exists()


def test_models_that_are_not_there_or_not_trained_are_refused(tmp_path, tiny_config):
    path = write_rows(tmp_path / "mine.csv", [{"text": text, "label": label} for text, label in ROWS])
    with pytest.raises(ValueError, match="nowhere' cannot be loaded"):
        evaluate_file(tmp_path / "nowhere", path)
    MagicForMaskedLM(tiny_config()).save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="super-net; export one of its children"):
        evaluate_file(tmp_path / "supernet", path)
    bert = save_bert(tmp_path / "bert")
    config = json.loads((bert / "config.json").read_text())
    encoder = BertForSequenceClassification.from_pretrained(bert)
    weights = {key: value for key, value in encoder.state_dict().items() if not key.startswith("classifier")}
    encoder.save_pretrained(tmp_path / "headless", state_dict=weights)
    assert config["architectures"] == ["BertForSequenceClassification"]
    toy_tokenizer().save_pretrained(tmp_path / "headless")
    with pytest.raises(ValueError, match=r"no trained weights for classifier\.bias"):
        evaluate_file(tmp_path / "headless", path)


def test_files_that_cannot_be_are_refused_and_nothing_is_written(tmp_path, finetuned):
    model, _, _ = finetuned["single_label_classification"]
    path = write_rows(tmp_path / "mine.csv", [{"text": text, "label": label} for text, label in ROWS])
    wrong = write_rows(tmp_path / "wrong.csv", [{"text": "a", "label": "yes"}, {"text": "b", "label": "maybe"}])
    empty = write_rows(tmp_path / "empty.csv", [{"n": "1", "text": "fine a"}, {"n": "2", "text": " "}])
    again = write_rows(tmp_path / "again.csv", [{"text": "fine a", "prediction": "yes"}])
    with pytest.raises(ValueError, match=r"wrong\.csv, line 3: unknown label 'maybe'; known labels: no, yes"):
        evaluate_file(model, wrong)
    with pytest.raises(ValueError, match="no column 'label'"):
        evaluate_file(model, empty)
    for file, output, message in (
        (empty, "out.csv", r"empty\.csv, line 3: column 'text' is empty"),
        (again, "out.csv", "has a column 'prediction', which is the name of a column of the output"),
        (path, "out.parquet", r"give a file that ends in \.csv or \.jsonl"),
        (path, "mine.csv", "is also the input"),
    ):
        with pytest.raises(ValueError, match=message):
            predict_file(model, file, tmp_path / output)
    assert not (tmp_path / "out.csv").exists()
    with pytest.raises(ValueError, match="max_length is 41"):
        evaluate_file(model, path, EvaluateSettings(max_length=41))


def test_a_prediction_that_fails_leaves_the_file_before_it(tmp_path, finetuned, monkeypatch):
    model, path, _ = finetuned["single_label_classification"]
    output = tmp_path / "out.csv"
    before = predict_file(model, path, output).read_text()
    monkeypatch.setattr(file_predictions, "_ROWS_AT_ONCE", 4)
    original, calls = file_predictions.predict, []

    def failing(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(file_predictions, "predict", failing)
    with pytest.raises(KeyboardInterrupt):
        predict_file(model, path, output)
    assert output.read_text() == before
    assert [item.name for item in tmp_path.iterdir()] == ["out.csv"]
