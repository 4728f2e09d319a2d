"""Sweeps of fine-tuning: going on, what starts from MNLI, checks before training, the files."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import toy_config
from toy_finetune import SIZES, save_toy_model, toy_tokenizer, write_glue
from transformers import BertConfig, BertForSequenceClassification, pipeline

from modeling_magic import MagicForMaskedLM
from training.finetuning import finetune_run
from training.finetuning.finetune import load_for_task
from training.finetuning.finetune_run import run_finetuning
from training.finetuning.settings import FinetuneSettings
from training.finetuning.tasks import glue_task
from training.hub.export import export_model
from training.hub.model_folders import public_name
from training.hub.publish import check_export
from training.hub.verify import verify_export
from training.runs.recipes import load_recipe


# ---- Sweeps ----


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("sweep")
    return save_toy_model("magic", folder / "model"), write_glue(folder / "glue", num_train=24, num_dev=16)


@pytest.fixture
def settings(folders) -> FinetuneSettings:
    return FinetuneSettings(
        model=str(folders[0]),
        glue_folder=str(folders[1]),
        tasks=("rte", "mnli"),
        learning_rates=(1e-3, 1e-2),
        batch_sizes=(8,),
        seeds=(1,),
        num_epochs=1,
        max_length=40,
        training_arguments={"disable_tqdm": True, "use_cpu": True},
    )


class Stopped(BaseException):
    pass


@pytest.fixture
def trained(monkeypatch) -> list[tuple[str, float, int]]:
    """What is trained from here on: task, learning rate and seed; `limit` of the list stops the sweep."""
    seen: list[tuple[str, float, int]] = []
    original = finetune_run.finetune

    def watched(model, data, task, args, *rest, **kwargs):
        seen.append((task.name, args.learning_rate, args.seed))
        return original(model, data, task, args, *rest, **kwargs)

    monkeypatch.setattr(finetune_run, "finetune", watched)
    return seen


def without_seconds(folder: Path) -> tuple:
    runs = json.loads((folder / "runs.json").read_text(encoding="utf-8"))
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    for run in runs:
        del run["seconds"]
    return sorted(runs, key=lambda run: run["key"]), result, (folder / "table.csv").read_text(encoding="utf-8")


def test_a_sweep_ends_in_a_table_and_a_second_call_trains_nothing(tmp_path, settings, trained):
    result = run_finetuning(settings, tmp_path / "run")
    # MNLI first, since RTE starts from it.
    assert [task for task, _, _ in trained] == ["mnli", "mnli", "rte", "rte"]
    assert list(result["columns"]) == ["MNLI-24-m", "MNLI-24-mm", "RTE-24", "AVG"]
    assert result["complete"]
    for row in result["tasks"]:
        split = next(iter(row["metrics"]))
        runs = [run for run in json.loads((tmp_path / "run/runs.json").read_text()) if run["task"] == row["task"]]
        assert row["metrics"][split]["score"]["median"] == max(run["score"] for run in runs)
    assert not list((tmp_path / "run").glob("*/run-*"))
    submitted = sorted(path.name for path in (tmp_path / "run" / "submission").iterdir())
    assert submitted == ["RTE.tsv"]
    assert len((tmp_path / "run/submission/RTE.tsv").read_text().splitlines()) == 11
    before = without_seconds(tmp_path / "run")
    trained.clear()
    assert run_finetuning(settings, tmp_path / "run") == result
    assert trained == []
    assert without_seconds(tmp_path / "run") == before

    # A model that has gone is trained once more.
    shutil.rmtree(tmp_path / "run" / "rte" / "model")
    assert run_finetuning(settings, tmp_path / "run") == result
    assert [task for task, _, _ in trained] == ["rte"]
    for task in ("mnli", "rte"):
        facts = json.loads((tmp_path / "run" / task / "model" / "finetune.json").read_text())
        runs = [run for run in json.loads((tmp_path / "run/runs.json").read_text()) if run["task"] == task]
        assert facts["key"] == max(runs, key=lambda run: (run["score"], run["key"]))["key"]

    # What is added is trained, and no more.
    trained.clear()
    run_finetuning(replace(settings, tasks=("mnli",), learning_rates=(1e-3,), seeds=(1, 2)), tmp_path / "run")
    assert trained == [("mnli", 1e-3, 2)]


def test_a_sweep_killed_between_two_rows_goes_on_to_the_same_table(tmp_path, settings, trained, monkeypatch):
    run_finetuning(settings, tmp_path / "whole")
    watched = finetune_run.finetune
    trained.clear()

    def stopping(*args, **kwargs):
        if len(trained) == 3:
            raise Stopped
        return watched(*args, **kwargs)

    with monkeypatch.context() as stop:
        stop.setattr(finetune_run, "finetune", stopping)
        with pytest.raises(Stopped):
            run_finetuning(settings, tmp_path / "stopped")
    done = json.loads((tmp_path / "stopped" / "runs.json").read_text())
    assert len(done) == 3
    # The row of MNLI is written, that of RTE is not.
    table = (tmp_path / "stopped" / "table.csv").read_text(encoding="utf-8")
    assert "MNLI-24-m" in table
    assert "RTE" not in table
    assert not json.loads((tmp_path / "stopped" / "result.json").read_text())["complete"]
    run_finetuning(settings, tmp_path / "stopped")
    assert len(trained) == 4
    assert without_seconds(tmp_path / "stopped") == without_seconds(tmp_path / "whole")


def test_tasks_start_from_the_mnli_model_and_from_a_given_one(tmp_path, settings, monkeypatch, folders):
    sources = {}
    original = finetune_run.load_for_task

    def watched(source, task, seed):
        sources[task.name] = str(source)
        return original(source, task, seed)

    monkeypatch.setattr(finetune_run, "load_for_task", watched)
    short = replace(settings, learning_rates=(1e-3,), max_steps=1)
    run_finetuning(replace(short, tasks=("mnli", "rte")), tmp_path / "run")
    own_mnli = str(tmp_path / "run" / "mnli" / "model")
    assert sources == {"mnli": str(folders[0]), "rte": own_mnli}
    run_finetuning(replace(short, tasks=("stsb",), mnli_model=str(tmp_path / "run")), tmp_path / "other")
    assert sources["stsb"] == own_mnli
    run_finetuning(replace(short, tasks=("rte",)), tmp_path / "alone")
    assert sources["rte"] == str(folders[0])


def test_pairs_for_a_model_of_one_token_type_end_in_an_export(tmp_path):
    """The folder is what every command takes: the card has the scores, the code and the tokenizer lie beside it."""
    torch.manual_seed(0)
    child = MagicForMaskedLM(toy_config(**SIZES, candidate_operators=[["MHA4"], ["FFN"]], type_vocab_size=1))
    manifest = {"converted_from": "ada/roberta", "license": "mit"}
    source = export_model(child, toy_tokenizer(), tmp_path / "source", manifest)
    # A checkpoint whose tokenizer has types that the model does not know.
    toy_tokenizer().save_pretrained(source)
    path = tmp_path / "mine.tsv"
    rows = [("fine a", "b", "yes"), ("dull b c", "d", "no"), ("great d", "e", "yes"), ("awful", "f", "no")] * 4
    lines = ["\t".join(row) for row in [("first", "second", "label"), *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    settings = FinetuneSettings(
        model=str(source),
        train_file=str(path),
        validation_file=str(path),
        text_columns=("first", "second"),
        learning_rates=(1e-3,),
        batch_sizes=(8,),
        seeds=(1,),
        num_epochs=1,
        max_length=40,
        training_arguments={"disable_tqdm": True, "use_cpu": True},
    )
    result = run_finetuning(settings, tmp_path / "run")
    folder = tmp_path / "run" / "mine" / "model"
    check_export(folder)
    assert not verify_export(folder).differing
    assert str(tmp_path) not in "".join(file.read_text() for file in folder.glob("*.json"))
    manifest = json.loads((folder / "search.json").read_text())
    assert (manifest["converted_from"], manifest["license"]) == ("ada/roberta", "mit")
    assert manifest["finetuning"]["start"] == public_name(source)
    score, other = manifest["scores"]
    assert other["metric"] == "macro_f1"
    assert (score["data"], score["metric"], score["rows"]) == ("mine", "accuracy", len(rows))
    assert score["value"] == result["tasks"][0]["metrics"]["validation"]["accuracy"]["median"]
    card = (folder / "README.md").read_text()
    assert f"| mine | validation | {len(rows)} | accuracy | {score['value']:.4f} |" in card
    classify = pipeline("text-classification", model=str(folder))
    assert classify({"text": "fine " * 60, "text_pair": "dull"}, truncation=True)["label"] in ("yes", "no")


def test_own_files_and_a_teacher_from_another_run(tmp_path, settings, trained, caplog):
    path = tmp_path / "mine.tsv"
    rows = [("fine a", "yes"), ("dull b c", "no"), ("great d", "yes"), ("awful", "no")] * 4
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in rows), encoding="utf-8")
    own = replace(settings, tasks=(), train_file=str(path), validation_file=str(path), learning_rates=(1e-3,))
    run_finetuning(own, tmp_path / "teacher")
    result = run_finetuning(replace(own, teacher=str(tmp_path / "teacher")), tmp_path / "student")
    assert list(result["columns"]) == ["mine: accuracy", "mine: macro_f1"]
    assert len(trained) == 2
    # The run of another command stands for the model in it, which it names once.
    taught = tmp_path / "teacher" / "mine" / "model"
    shutil.copytree(taught, tmp_path / "compressed" / "model")
    (tmp_path / "compressed" / "run.json").write_text("{}", encoding="utf-8")
    with caplog.at_level("INFO"):
        run_finetuning(replace(own, teacher=str(tmp_path / "compressed")), tmp_path / "other")
    assert caplog.text.count(f"model: {tmp_path / 'compressed' / 'model'}") == 1
    manifest = json.loads((tmp_path / "other" / "mine" / "model" / "search.json").read_text(encoding="utf-8"))
    assert manifest["finetuning"]["teacher"] == public_name(taught)
    with pytest.raises(ValueError, match="outputs but STS-B has 1"):
        run_finetuning(
            replace(settings, tasks=("stsb",), teacher=str(tmp_path / "teacher/mine/model")), tmp_path / "wrong"
        )


OWN_ROWS = [("fine a", "yes"), ("dull b c", "no"), ("great d", "yes"), ("awful e", "no")] * 4


def write_own(path: Path, rows, header="text,label") -> str:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n", encoding="utf-8")
    return str(path)


def test_a_test_file_is_scored_with_labels_and_predicted_without(tmp_path, settings, trained, monkeypatch, caplog):
    distinct = [(f"{text} {'abcdefgh'[number % 8]}", label) for number, (text, label) in enumerate(OWN_ROWS)]
    own = replace(
        settings,
        tasks=(),
        learning_rates=(1e-3,),
        train_file=write_own(tmp_path / "mine.csv", distinct),
        test_file=write_own(tmp_path / "test.csv", OWN_ROWS),
        metric_for_best_model="macro_f1",
        validation_fraction=0.4,
    )
    with caplog.at_level("INFO"):
        result = run_finetuning(own, tmp_path / "run")
    assert "split off by a hash" in caplog.text
    assert "kind: single_label_classification, 2 classes: no, yes" in caplog.text
    assert list(result["columns"]) == ["mine: macro_f1", "mine: accuracy"]
    (row,) = result["tasks"]
    assert row["shown"] == "macro_f1"
    assert row["metrics"]["validation"]["score"] == row["metrics"]["validation"]["macro_f1"]
    lines = [json.loads(line) for line in (tmp_path / "run" / row["test"]["predictions"]).read_text().splitlines()]
    assert [line["idx"] for line in lines] == list(range(len(OWN_ROWS)))
    right = [line["prediction"] == label for line, (_, label) in zip(lines, OWN_ROWS, strict=True)]
    assert row["test"]["metrics"]["accuracy"] == sum(right) / len(right)
    assert row["test"]["num_rows"] == len(OWN_ROWS)
    text = (tmp_path / "run" / "table.md").read_text(encoding="utf-8")
    assert "GLUE" not in text
    assert "MNLI" not in text
    assert "are chosen by macro_f1" in text
    assert "| macro_f1 | accuracy | test rows |" in text

    # What was predicted once is not predicted again.
    with monkeypatch.context() as patched:
        patched.setattr(finetune_run, "predict", None)
        assert run_finetuning(own, tmp_path / "run") == result
    bare = write_own(tmp_path / "bare.csv", [(text,) for text, _ in OWN_ROWS], "text")
    (row,) = run_finetuning(replace(own, test_file=bare), tmp_path / "bare")["tasks"]
    assert row["test"]["metrics"] is None
    assert len((tmp_path / "bare" / row["test"]["predictions"]).read_text().splitlines()) == len(OWN_ROWS)
    assert "16 rows without labels; predictions in" in (tmp_path / "bare" / "table.md").read_text(encoding="utf-8")


def test_the_tags_of_a_test_file_without_labels_are_predicted(tmp_path, settings):
    train = tmp_path / "mine.conll"
    train.write_text("fine B-X\na O\n\ndull O\n\n" * 4, encoding="utf-8")
    test = tmp_path / "test.conll"
    test.write_text("great\na\nb\n\nc\n", encoding="utf-8")
    own = replace(settings, tasks=(), learning_rates=(1e-3,), train_file=str(train), validation_file=str(train))
    (row,) = run_finetuning(replace(own, test_file=str(test)), tmp_path / "run")["tasks"]
    lines = [json.loads(line) for line in (tmp_path / "run" / row["test"]["predictions"]).read_text().splitlines()]
    assert [len(line["prediction"]) for line in lines] == [3, 1]
    assert {tag for line in lines for tag in line["prediction"]} <= {"B-X", "O"}


def test_a_length_that_nobody_gave_follows_the_model(tmp_path, settings, trained, folders, caplog):
    own = replace(
        settings,
        tasks=(),
        learning_rates=(1e-3,),
        train_file=write_own(tmp_path / "mine.csv", OWN_ROWS),
        validation_file=write_own(tmp_path / "dev.csv", OWN_ROWS),
        max_steps=1,
        max_length=None,
    )
    with caplog.at_level("INFO"):
        run_finetuning(own, tmp_path / "run")
    assert "max_length: 40 tokens" in caplog.text
    short = BertForSequenceClassification(
        BertConfig(**{**SIZES, "max_position_embeddings": 20}, num_hidden_layers=1, num_attention_heads=4)
    )
    short.config.id2label = {0: "no", 1: "yes"}
    short.save_pretrained(tmp_path / "short")
    toy_tokenizer().save_pretrained(tmp_path / "short")
    with caplog.at_level("INFO"):
        run_finetuning(replace(own, teacher=str(tmp_path / "short")), tmp_path / "taught")
    assert "max_length: 20 tokens" in caplog.text


def test_of_a_lost_model_the_best_is_trained_again_until_one_stands(tmp_path, settings, trained, monkeypatch):
    """A device that does not repeat its bits may score the best one lower the second time."""
    short = replace(settings, tasks=("rte",), learning_rates=(1e-3,), seeds=(1, 2), max_steps=1)
    run_finetuning(short, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "rte" / "model")
    again, watched = [], finetune_run.finetune

    def worse(*args, **kwargs):
        result = watched(*args, **kwargs)
        again.append(result.score)
        return replace(result, score=result.score - 1) if len(again) == 1 else result

    monkeypatch.setattr(finetune_run, "finetune", worse)
    run_finetuning(short, tmp_path / "run")
    best = max(json.loads((tmp_path / "run" / "runs.json").read_text()), key=lambda run: run["score"])
    facts = json.loads((tmp_path / "run" / "rte" / "model" / "finetune.json").read_text())
    assert facts["key"] == best["key"]
    assert len(again) == 2


def test_a_teacher_that_does_not_fit_is_named_before_training(tmp_path, settings, trained, folders):
    rte = glue_task("rte")
    task = replace(rte, labels=rte.labels[::-1])
    model = load_for_task(str(folders[0]), task, 0)
    model.save_pretrained(tmp_path / "swapped")
    toy_tokenizer().save_pretrained(tmp_path / "swapped")
    with pytest.raises(ValueError, match="does not fit RTE: label 0 is 'not_entailment' in the teacher"):
        run_finetuning(replace(settings, tasks=("rte",), teacher=str(tmp_path / "swapped")), tmp_path / "run")
    short = BertForSequenceClassification(
        BertConfig(**{**SIZES, "max_position_embeddings": 20}, num_hidden_layers=1, num_attention_heads=4)
    )
    short.save_pretrained(tmp_path / "short")
    toy_tokenizer().save_pretrained(tmp_path / "short")
    with pytest.raises(ValueError, match=r"max_length is 40 but the teacher .*short' has 20 positions"):
        run_finetuning(replace(settings, tasks=("rte",), teacher=str(tmp_path / "short")), tmp_path / "run")
    assert not trained


@pytest.mark.parametrize("metric", ["accuracy", "loss"])
def test_a_task_of_glue_is_judged_by_a_metric_of_it(tmp_path, settings, trained, metric):
    short = replace(settings, tasks=("rte",), metric_for_best_model=metric, early_stopping_patience=1, num_epochs=3)
    result = run_finetuning(short, tmp_path / "run")
    (row,) = result["tasks"]
    assert list(result["columns"]) == ["RTE-24", "AVG"]
    assert row["metric_for_best_model"] == metric
    of_best = row["metrics"]["validation"][metric]["median"]
    assert row["metrics"]["validation"]["score"]["median"] == pytest.approx(-of_best if metric == "loss" else of_best)
    runs = json.loads((tmp_path / "run" / "runs.json").read_text())
    chosen = (min if metric == "loss" else max)(run["metrics"]["validation"][metric] for run in runs)
    assert of_best == chosen
    assert (tmp_path / "run" / "submission" / "RTE.tsv").is_file()
    assert f"are chosen by {metric}." in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")


def test_own_files_are_judged_by_the_loss(tmp_path, settings, trained):
    path = write_own(tmp_path / "mine.csv", OWN_ROWS)
    own = replace(settings, tasks=(), train_file=path, validation_file=path, test_file=path)
    result = run_finetuning(replace(own, metric_for_best_model="loss"), tmp_path / "run")
    (row,) = result["tasks"]
    assert list(result["columns"]) == ["mine: accuracy", "mine: macro_f1"]
    assert set(row["test"]["metrics"]) == {"accuracy", "macro_f1"}
    assert "of mine are chosen by loss." in (tmp_path / "run" / "table.md").read_text(encoding="utf-8")


def test_class_weights_are_told_before_training_and_recorded(tmp_path, settings, trained, caplog):
    rows = [*OWN_ROWS, ("great a", "yes"), ("great b", "yes"), ("great c", "yes"), ("great d", "yes")]
    path = write_own(tmp_path / "mine.csv", rows)
    own = replace(settings, tasks=(), train_file=path, validation_file=path, learning_rates=(1e-3,))
    with caplog.at_level("INFO"):
        result = run_finetuning(replace(own, class_weights="balanced"), tmp_path / "run")
    assert "class weights of mine, in the training loss only: no 1.25, yes 0.8333" in caplog.text
    (row,) = result["tasks"]
    assert row["class_weights"] == {"no": 1.25, "yes": pytest.approx(20 / 24)}
    assert "Class weights of mine in the training loss: no 1.25" in (tmp_path / "run" / "table.md").read_text()
    manifest = json.loads((tmp_path / "run" / "mine" / "model" / "search.json").read_text())
    assert manifest["finetuning"]["class_weights"] == row["class_weights"]
    # Other weights train another model.
    plain = run_finetuning(own, tmp_path / "plain")["tasks"][0]
    assert "class_weights" not in plain
    assert plain["metrics"]["validation"]["loss"] != row["metrics"]["validation"]["loss"]
    trained.clear()
    with pytest.raises(ValueError, match="names 'maybe', but the classes of mine are no, yes"):
        run_finetuning(replace(own, class_weights={"maybe": 2}), tmp_path / "wrong")
    with pytest.raises(ValueError, match="STS-B is a task of regression"):
        run_finetuning(replace(settings, tasks=("stsb",), class_weights="balanced"), tmp_path / "wrong")
    assert not trained
    assert not (tmp_path / "wrong").exists()


# ---- Checks before training ----


REFUSED = {
    "task": ({"tasks": ("ret",)}, "did you mean 'rte'"),
    "nothing": ({"tasks": ()}, "nothing to fine-tune on"),
    "half": ({"tasks": (), "validation_file": "a.csv"}, "or a train_file"),
    "test of GLUE": ({"test_file": "a.csv"}, "give only one of the two"),
    "metric of GLUE": ({"metric_for_best_model": "f1"}, "is 'f1'; for RTE choose among accuracy, loss"),
    "threshold": ({"early_stopping_threshold": 0.1}, "set early_stopping_patience, or remove early_stopping"),
    "patience": ({"early_stopping_patience": 0}, "early_stopping_patience is 0; it must be at least 1"),
    "both": ({"train_file": "a.csv", "validation_file": "b.csv"}, "give only one of the two"),
    "model": ({"model": ""}, "no model is given"),
    "no model": ({"model": "nowhere"}, "nowhere"),
    "rates": ({"learning_rates": (0.0,)}, "learning_rates is"),
    "rates as text": ({"learning_rates": ("much",)}, r"learning_rates\[0\] is 'much'"),
    "sizes": ({"batch_sizes": (16.5,)}, r"batch_sizes\[0\] is 16.5"),
    "seeds": ({"seeds": (1, 1)}, "each once"),
    "epochs": ({"num_epochs": 0}, "num_epochs is 0"),
    "warm-up": ({"warmup_fraction": 1.0}, "warmup_fraction is 1.0"),
    "weight": ({"distillation_weight": 2.0}, "distillation_weight is 2.0"),
    "own argument": ({"training_arguments": {"learning_rate": 1.0}}, "give learning_rates instead"),
    "best": ({"training_arguments": {"save_strategy": "no"}}, "every epoch is scored on dev and the best is kept"),
    "accumulation": ({"training_arguments": {"gradient_accumulation_steps": 3}}, "choose a divisor"),
    "unknown argument": ({"training_arguments": {"optim": "sdg"}}, "sdg"),
    "tracker": ({"training_arguments": {"report_to": "none_such"}, "model": "nowhere"}, "report_to is 'none_such'"),
    "positions": ({"max_length": 41}, "max_length is 41"),
    "folder": ({"glue_folder": "nowhere"}, "there is no folder nowhere"),
    "teacher": ({"teacher": "nowhere"}, "nowhere"),
    "mnli run": ({"tasks": ("rte",), "mnli_model": "nowhere"}, "nowhere"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_wrong_is_named_before_anything_is_trained_or_written(name, tmp_path, settings, trained):
    changes, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        run_finetuning(replace(settings, **changes), tmp_path / "run")
    assert not trained
    assert not (tmp_path / "run").exists()


def test_a_damaged_card_of_the_model_is_named_before_training(tmp_path, settings, trained):
    model = shutil.copytree(settings.model, tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match=r"the front matter of .* cannot be read"):
        run_finetuning(replace(settings, model=str(model)), tmp_path / "run")
    assert not trained


def test_a_wrong_label_of_the_last_task_is_named_before_the_first_is_trained(tmp_path, settings, trained, folders):
    broken = tmp_path / "glue"
    shutil.copytree(folders[1], broken)
    with open(broken / "RTE" / "dev.tsv", "a", encoding="utf-8") as file:
        file.write("a\tb\tperhaps\n")
    with pytest.raises(ValueError, match=r"RTE/dev\.tsv.*perhaps"):
        run_finetuning(replace(settings, glue_folder=str(broken)), tmp_path / "run")
    assert not trained


def test_gradients_are_clipped_unless_a_recipe_says_otherwise(tmp_path, settings):
    def norm_of(settings):
        return finetune_run._arguments(settings, tmp_path, None, 1e-4, 8, 1).max_grad_norm

    assert norm_of(settings) == 1.0
    assert norm_of(replace(settings, training_arguments={"max_grad_norm": 0.5})) == 0.5
    # RoBERTa's published commands do not clip.
    assert load_recipe("paper-glue")["training_arguments"]["max_grad_norm"] == 0.0


def test_another_recipe_is_refused_in_the_folder(tmp_path, settings):
    short = replace(settings, tasks=("rte",), learning_rates=(1e-3,), max_steps=1)
    run_finetuning(short, tmp_path / "run")
    with pytest.raises(ValueError, match="max_steps is 1 there, 2 here"):
        run_finetuning(replace(short, max_steps=2), tmp_path / "run")
    # A sweep that was stopped within its first task has records only.
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ValueError, match="max_steps is 1 there, 2 here"):
        run_finetuning(replace(short, max_steps=2), tmp_path / "run")


def test_rows_come_in_random_order_unless_they_are_grouped(tmp_path):
    for given, strategy in (({}, "random"), ({"group_by_length": True}, "group_by_length")):
        settings = FinetuneSettings(model="encoder", tasks=("mrpc",), **given)
        args = finetune_run._arguments(settings, tmp_path, None, 1e-4, 16, 1)
        assert args.train_sampling_strategy == strategy


def test_the_optimizer_is_robertas_for_glue_and_that_of_transformers_for_own_files(tmp_path):
    found = []
    for given in ({"tasks": ("mrpc",)}, {"train_file": "mine.tsv"}):
        settings = FinetuneSettings(model="encoder", **given)
        args = finetune_run._arguments(settings, tmp_path, None, 1e-4, 16, 1)
        found.append((args.adam_beta2, args.adam_epsilon, args.max_grad_norm))
    assert found == [(0.98, 1e-6, 1.0), (0.999, 1e-8, 1.0)]
