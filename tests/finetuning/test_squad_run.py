"""The run of SQuAD in its folder: trained, scored, stopped, continued, taught; of MAGIC's and of BERT's class."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from toy import toy_config
from toy_squad import content_of, write
from transformers import (
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
)

from modeling_magic import MagicForMaskedLM, MagicForQuestionAnswering
from training.data.tokenizing import train_tokenizer
from training.finetuning import squad_run
from training.finetuning.settings import SquadSettings
from training.finetuning.squad_data import load_squad, make_windows, split_by_article
from training.finetuning.squad_metrics import squad_v1_metrics, squad_v2_metrics
from training.finetuning.squad_run import SquadTrainer, load_span_model, run_squad, squad_table
from training.hub.export import export_model
from training.hub.verify import verify_export


COLOURS = ["red", "blue", "green", "black", "white", "brown"]
THINGS = ["fox", "house", "river", "tree", "stone", "bird", "car", "door"]
WORDS = [*COLOURS, *THINGS, *"the of here stands and colour what is thing which a b c".split()]


def paragraph(number: int, answerable: bool) -> tuple[str, str, list[dict[str, Any]]]:
    """A context of filler with one colour in it; without an answer it has none."""
    generator = torch.Generator().manual_seed(number)
    picks = torch.randint(0, 1000, (24,), generator=generator).tolist()
    filler = [THINGS[pick % len(THINGS)] for pick in picks]
    colour, place = COLOURS[picks[0] % len(COLOURS)], 4 + picks[1] % 16
    if answerable:
        filler[place] = colour
    context = f"{number} " + " ".join(filler)
    answers = [{"text": colour, "answer_start": context.index(colour)}] if answerable else []
    asked = {"id": f"q{number}", "question": "what is the colour", "answers": answers, "is_impossible": not answerable}
    return f"article {number // 4}", context, [asked]


def questions(first: int, number: int, unanswerable: bool = False) -> dict[str, Any]:
    return content_of(*[paragraph(i, not (unanswerable and i % 3 == 0)) for i in range(first, first + number)])


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("squad")
    parts = {"train": (0, 96, False), "dev": (96, 30, False), "train2": (0, 96, True), "dev2": (96, 30, True)}
    return {name: str(write(folder / f"{name}.json", questions(*part))) for name, part in parts.items()}


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer([" ".join(WORDS), "0 1 2 3 4 5 6 7 8 9"] * 5, vocab_size=120, model_max_length=64)


def save_bert(folder: Path, tokenizer: PreTrainedTokenizerBase, kind: type = BertForMaskedLM, **changes: Any) -> str:
    config: dict[str, Any] = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 64,
    }
    config |= {"max_position_embeddings": 64, "vocab_size": len(tokenizer), **changes}
    torch.manual_seed(0)
    kind(BertConfig(**config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def models(tmp_path_factory, tokenizer) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("models")
    torch.manual_seed(0)
    config = toy_config(0.0, vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id)
    child = MagicForMaskedLM(config).extract_child(("CONV3", "FFN", "MHA4", "FFN"))
    manifest = {"search": {"candidate_operators": config.candidate_operators, "val_loss": 1.0, "seed": 5}}
    export_model(child, tokenizer, folder / "child", manifest)
    return {"child": str(folder / "child"), "bert": save_bert(folder / "bert", tokenizer)}


def run_settings(model: str, files: dict[str, str], version_2: bool = False, **changes: Any) -> SquadSettings:
    part = "2" if version_2 else ""
    arguments: dict[str, Any] = {
        "max_steps": 48,
        "per_device_train_batch_size": 16,
        "learning_rate": 5e-3,
        "save_steps": 32,
        "logging_steps": 12,
        "disable_tqdm": True,
    }
    fields: dict[str, Any] = {
        "model": model,
        "train_file": files[f"train{part}"],
        "validation_file": files[f"dev{part}"],
        "version_2": version_2,
        "max_seq_length": 24,
        "doc_stride": 8,
        "n_best": 5,
        "training_arguments": arguments | changes.pop("training_arguments", {}),
    }
    return SquadSettings(**{**fields, **changes})


@pytest.fixture(scope="module")
def finished(models, files, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "child"
    return folder, run_squad(run_settings(models["child"], files), folder)


def test_lengths_that_nobody_gave_follow_the_model(models, files, tmp_path, caplog):
    settings = run_settings(models["child"], files, max_seq_length=None, doc_stride=None)
    short = replace(settings, training_arguments={"max_steps": 1, "disable_tqdm": True})
    with caplog.at_level("INFO"):
        run_squad(short, tmp_path / "run")
    assert "max_seq_length: 64 tokens" in caplog.text
    asked = json.loads((tmp_path / "run" / "run.json").read_text())["settings"]
    assert asked["max_seq_length"] is None


def test_a_run_ends_with_a_model_that_answers(finished, files):
    folder, result = finished
    references = load_squad(files["dev"]).references
    predictions = json.loads((folder / "predictions.json").read_text())
    assert squad_v1_metrics(predictions, references) == result["metrics"]
    assert result["f1"] == result["metrics"]["f1"] > 80
    assert result["exact_match"] == result["metrics"]["exact_match"]
    assert result["null_threshold"] is None
    best = {
        name: items[0]["text"] for name, items in json.loads((folder / "nbest_predictions.json").read_text()).items()
    }
    assert best == predictions
    assert not (folder / "null_odds.json").exists()
    assert json.loads((folder / "result.json").read_text()) == result
    assert (result["steps"], result["train"]["questions"], result["validation"]["questions"]) == (48, 96, 30)
    assert result["train"]["windows"] > 96
    model = AutoModelForQuestionAnswering.from_pretrained(folder / "model")
    assert isinstance(model, MagicForQuestionAnswering)
    assert result["num_parameters"] == model.num_parameters()
    assert "| 30 of dev.json |" in squad_table({"child": result})


def test_the_export_tells_where_it_is_from(finished):
    folder, result = finished
    assert not verify_export(folder).differing
    manifest = json.loads((folder / "model" / "search.json").read_text())
    assert manifest["squad"] == result["metrics"]
    assert manifest["search"]["seed"] == 5
    assert manifest["architecture"] == ["CONV3", "FFN", "MHA4", "FFN"]
    assert manifest["training"]["corpus"]["sha256"]["train"] == result["train"]["sha256"]
    card = (folder / "model" / "README.md").read_text()
    assert "pipeline_tag: question-answering" in card
    assert "answers as spans (SQuAD 1.1)" in card
    assert f"{result['exact_match']:.1f}%" in card


def test_a_finished_run_is_not_run_again_and_its_folder_is_its_own(finished, models, files, monkeypatch):
    folder, result = finished
    monkeypatch.setattr("training.finetuning.squad_run.load_squad", lambda *_: pytest.fail("read the questions again"))
    settings = run_settings(models["child"], files)
    assert run_squad(settings, folder) == result
    with pytest.raises(ValueError, match=r"another run .doc_stride is 8 there, 4 here"):
        run_squad(replace(settings, doc_stride=4), folder)


def test_a_stopped_run_goes_on_with_the_same_bits(finished, models, files, tmp_path, monkeypatch):
    folder, whole = finished
    monkeypatch.setattr("training.finetuning.squad_run._export", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_squad(run_settings(models["child"], files), tmp_path)
    monkeypatch.undo()
    # As if the process had died between the checkpoints 32 and 48.
    (tmp_path / "checkpoint-48" / "trainer_state.json").unlink()
    resumed = run_squad(run_settings(models["child"], files), tmp_path)
    assert resumed["metrics"] == whole["metrics"]
    assert resumed["val_loss"] == whole["val_loss"]
    first, second = (
        AutoModelForQuestionAnswering.from_pretrained(path / "model").state_dict() for path in (folder, tmp_path)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("strategy", ["random", "group_by_length"])
def test_without_a_training_file_a_model_is_scored_alone(finished, files, tmp_path, strategy):
    """However training would order its batches: the predictions belong to their questions."""
    folder, result = finished
    arguments = {"train_sampling_strategy": strategy, "per_device_eval_batch_size": 7}
    settings = run_settings(str(folder / "model"), files, train_file=None, training_arguments=arguments)
    scored = run_squad(settings, tmp_path / "run")
    assert scored["metrics"] == result["metrics"]
    assert scored["val_loss"] == pytest.approx(result["val_loss"], abs=1e-5)
    assert (scored["steps"], scored["train"]) == (0, None)
    assert (tmp_path / "run" / "predictions.json").read_bytes() == (folder / "predictions.json").read_bytes()
    assert not (tmp_path / "run" / "model").exists()


def test_version_2_with_berts_class(models, files, tmp_path):
    result = run_squad(run_settings(models["bert"], files, version_2=True), tmp_path)
    metrics, references = result["metrics"], load_squad(files["dev2"], version_2=True).references
    predictions, odds = (json.loads((tmp_path / f"{name}.json").read_text()) for name in ("predictions", "null_odds"))
    scored = squad_v2_metrics(predictions, references)
    assert {name: metrics[name] for name in scored} == scored
    assert (metrics["HasAns_total"], metrics["NoAns_total"]) == (20, 10)
    assert metrics["f1"] == metrics["best_f1"] >= 100 / 3
    assert result["null_threshold"] == metrics["best_f1_thresh"]
    assert all((odds[name] > result["null_threshold"]) == (text == "") for name, text in predictions.items())
    model = AutoModelForQuestionAnswering.from_pretrained(tmp_path / "model")
    assert type(model).__name__ == "BertForQuestionAnswering"
    assert len(AutoTokenizer.from_pretrained(tmp_path / "model")) == model.config.vocab_size
    # Another threshold, of one's own.
    settings = run_settings(str(tmp_path / "model"), files, version_2=True, train_file=None, null_threshold=1e9)
    answered = run_squad(settings, tmp_path / "answered")
    assert answered["metrics"]["NoAns_f1"] == 0.0
    assert answered["metrics"]["best_f1"] == metrics["best_f1"]
    assert all(json.loads((tmp_path / "answered" / "predictions.json").read_text()).values())
    assert "" in predictions.values()


def test_a_split_file_shows_in_the_result(models, files, tmp_path):
    train, test = split_by_article(files["dev"], tmp_path / "parts", test_fraction=0.25)
    arguments = {"max_steps": 1}
    settings = run_settings(
        models["bert"], files, train_file=str(train), validation_file=str(test), training_arguments=arguments
    )
    result = run_squad(settings, tmp_path / "run")
    assert result["train"]["split_by_article"]["part"] == "train"
    assert result["validation"]["split_by_article"]["source"] == "dev.json"
    assert result["corpus"]["split_by_article"]["of_articles"] == 8


def test_the_measures_are_there_while_training(models, files, tmp_path):
    arguments = {"max_steps": 4, "eval_strategy": "steps", "eval_steps": 2, "save_steps": 2}
    arguments |= {"load_best_model_at_end": True, "metric_for_best_model": "f1"}
    result = run_squad(run_settings(models["child"], files, training_arguments=arguments), tmp_path)
    logged = [entry["eval_f1"] for entry in result["log_history"] if "eval_f1" in entry]
    assert len(logged) == 2
    assert result["f1"] == max(logged)


# ---- Distillation ----


def test_a_teacher_is_learnt_from(finished, models, files, tmp_path):
    # A run stands for the model in it.
    teacher = finished[0]
    settings = run_settings(models["bert"], files, teacher=str(teacher), distillation_weight=1.0, temperature=2.0)
    settings = replace(settings, teacher_cache=str(tmp_path / "cache"))
    result = run_squad(settings, tmp_path / "run")
    losses = [entry["loss_teacher"] for entry in result["log_history"] if "loss_teacher" in entry]
    assert losses[-1] < losses[0]
    assert result["objective"] == f"answers as spans (SQuAD 1.1), distilled from {teacher.name}"
    assert any((tmp_path / "cache").iterdir())


def test_a_teacher_of_other_words_is_refused(models, files, tmp_path):
    other = train_tokenizer([" ".join(WORDS[:9])] * 3, vocab_size=90, model_max_length=64)
    settings = run_settings(models["bert"], files, teacher=save_bert(tmp_path / "teacher", other))
    with pytest.raises(ValueError, match="has a different vocabulary"):
        run_squad(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


# ---- The trainer ----


@pytest.mark.parametrize("name", ["child", "bert"])
def test_accumulated_batches_equal_whole_ones(models, files, tokenizer, tmp_path, name):
    """With a last batch of two windows beside one of four, and one of two alone."""
    windows = make_windows(load_squad(files["train"]), tokenizer, max_seq_length=24, doc_stride=8, cache_dir=tmp_path)
    rows = windows.rows.select(range(14))
    trained: list[PreTrainedModel] = []
    for batch_size, accumulation in ((8, 1), (4, 2)):
        torch.manual_seed(0)
        model = load_span_model(models[name])
        arguments: dict[str, Any] = {"num_train_epochs": 2, "optim": "sgd", "learning_rate": 0.5, "report_to": "none"}
        arguments |= {
            "max_grad_norm": 0.0,
            "disable_tqdm": True,
            "save_strategy": "no",
            "dataloader_pin_memory": False,
        }
        arguments |= {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        # No dropout: batches of other sizes draw other masks.
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
        model.config.attention_probs_dropout_prob = 0.0
        trainer = SquadTrainer(
            model,
            TrainingArguments(str(tmp_path / "run"), **arguments),
            train_dataset=rows.select_columns(["input_ids", "token_type_ids", "start_positions", "end_positions"]),
            data_collator=DataCollatorWithPadding(tokenizer),
        )
        trainer.train()
        trained.append(model)
    differences = [
        (one - other).abs().max().item() for one, other in zip(*(m.parameters() for m in trained), strict=True)
    ]
    assert max(differences) < 1e-5


def test_the_recipe_is_robertas(models, files, tmp_path, monkeypatch):
    """But for the learning rate; what a run sets itself wins."""
    given: list[TrainingArguments] = []

    def stop(model, teacher, tokenizer, args, *_):
        given.append(args)
        raise KeyboardInterrupt

    monkeypatch.setattr("training.finetuning.squad_run._make_trainer", stop)
    settings = replace(run_settings(models["bert"], files), training_arguments={"adam_beta2": 0.9})
    with pytest.raises(KeyboardInterrupt):
        run_squad(settings, tmp_path)
    recipe = {"learning_rate": 3e-5, "num_train_epochs": 2, "per_device_train_batch_size": 48, "weight_decay": 0.01}
    recipe |= {"warmup_steps": 0.06, "adam_epsilon": 1e-6, "adam_beta2": 0.9, "gradient_accumulation_steps": 1}
    assert {name: getattr(given[0], name) for name in recipe} == recipe
    assert given[0].lr_scheduler_type == "linear"


# ---- What cannot work ----


def test_a_head_of_another_number_of_labels_is_no_obstacle(files, tokenizer, tmp_path):
    folder = save_bert(tmp_path / "classifier", tokenizer, BertForSequenceClassification, num_labels=3)
    result = run_squad(run_settings(folder, files, training_arguments={"max_steps": 1}), tmp_path / "run")
    assert result["steps"] == 1


def test_a_model_of_one_token_type_is_given_none(files, tokenizer, tmp_path):
    folder = save_bert(tmp_path / "model", tokenizer, type_vocab_size=1)
    result = run_squad(run_settings(folder, files, training_arguments={"max_steps": 1}), tmp_path / "run")
    assert result["steps"] == 1


def test_a_half_precision_checkpoint_is_trained_in_float32(tokenizer, tmp_path):
    folder = save_bert(tmp_path, tokenizer)
    AutoModelForQuestionAnswering.from_pretrained(folder).half().save_pretrained(folder)
    assert {parameter.dtype for parameter in load_span_model(folder).parameters()} == {torch.float32}


def test_a_teacher_of_fewer_positions_is_refused_before_training(models, files, tokenizer, tmp_path):
    short = save_bert(tmp_path / "short", tokenizer, BertForQuestionAnswering, max_position_embeddings=16)
    with pytest.raises(ValueError, match=r"max_seq_length is \d+ but the teacher .*short' has 16 positions"):
        run_squad(run_settings(models["bert"], files, teacher=short), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_windows_are_no_longer_than_the_teacher_in_a_run_accepts(models, files, tokenizer, tmp_path, caplog):
    save_bert(tmp_path / "taught" / "model", tokenizer, BertForQuestionAnswering, max_position_embeddings=32)
    (tmp_path / "taught" / "run.json").write_text("{}", encoding="utf-8")
    settings = run_settings(models["bert"], files, teacher=str(tmp_path / "taught"), max_seq_length=None)
    settings = replace(settings, doc_stride=None, training_arguments={"max_steps": 1})
    with caplog.at_level("INFO"):
        run_squad(settings, tmp_path / "run")
    assert "max_seq_length: 32 tokens" in caplog.text
    assert [record.message for record in caplog.records].count(f"model: {tmp_path / 'taught' / 'model'}") == 1


def test_weights_that_are_missing_are_named(models, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"has no trained span head \(qa_outputs"):
        load_span_model(models["child"], trained=True)
    folder = save_bert(tmp_path / "model", tokenizer)
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    write(tmp_path / "model" / "config.json", {**config, "num_hidden_layers": 3})
    with pytest.raises(ValueError, match=r"lacks 16 weights of the encoder, such as bert\.encoder\.layer\.2"):
        load_span_model(folder)
    (tmp_path / "model" / "model.safetensors").write_bytes(b"short")
    with pytest.raises(ValueError, match="cannot be loaded: SafetensorError"):
        load_span_model(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": ""}, "no model is given"),
        ({"model": "no/such-model"}, "the model 'no/such-model' cannot be loaded"),
        ({"train_file": None, "validation_file": None}, "no file is given"),
        (
            {"validation_file": None},
            "is given without a validation_file; give one, or split the file by article with magic-nas squad-split",
        ),
        ({"train_file": None, "teacher": "x"}, "a teacher is given without a train_file"),
        ({"null_threshold": 0.5}, "null_threshold is for questions without an answer; set version_2"),
        ({"n_best": 0}, "n_best is 0; it must be at least 1"),
        ({"max_answer_length": 0}, "max_answer_length is 0; it must be at least 1"),
        ({"distillation_weight": 1.5}, "distillation_weight is 1.5; it must be from 0 to 1"),
        ({"max_seq_length": 65}, "max_seq_length is 65 but .* has 64 positions"),
        ({"doc_stride": 21}, "doc_stride 21 leaves no room for a question"),
        (
            {"training_arguments": {"learning_rat": 1}},
            "'learning_rat' in training_arguments; did you mean",
        ),
    ],
)
def test_wrong_settings_are_named_before_anything_is_read(tmp_path, models, files, change, message, monkeypatch):
    monkeypatch.setattr("training.finetuning.squad_run.load_squad", lambda *_: pytest.fail("read the questions"))
    with pytest.raises(ValueError, match=message):
        run_squad(replace(run_settings(models["child"], files), **change), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_models_that_cannot_serve_are_named(tmp_path, files, tokenizer):
    MagicForMaskedLM(toy_config(vocab_size=len(tokenizer))).save_pretrained(tmp_path / "supernet")
    tokenizer.save_pretrained(tmp_path / "supernet")
    with pytest.raises(ValueError, match="is a super-net; export one of its children"):
        run_squad(run_settings(str(tmp_path / "supernet"), files), tmp_path / "run")
    folder = save_bert(tmp_path / "model", tokenizer, vocab_size=len(tokenizer) - 1)
    with pytest.raises(ValueError, match=rf"has embeddings for {len(tokenizer) - 1} tokens but its tokenizer has"):
        run_squad(run_settings(folder, files), tmp_path / "run")


def test_questions_are_checked_before_the_folder_is_made(models, files, tmp_path):
    wrong = json.loads(Path(files["dev"]).read_text())
    wrong["data"][0]["paragraphs"][0]["qas"][0]["answers"][0]["text"] = "purple"
    settings = run_settings(models["bert"], files, validation_file=str(write(tmp_path / "wrong.json", wrong)))
    with pytest.raises(ValueError, match=r"wrong.json: article 'article 24', question 'q96': answer 'purple'"):
        run_squad(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_card_of_the_model_is_named_before_the_folder_is_made(models, files, tmp_path):
    model = shutil.copytree(models["child"], tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    with pytest.raises(ValueError, match=r"the front matter of .* cannot be read"):
        run_squad(run_settings(str(model), files), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_damaged_card_that_is_not_needed_stops_nothing(models, files, tmp_path, monkeypatch):
    model = shutil.copytree(models["bert"], tmp_path / "model")
    (model / "README.md").write_text("---\nlicense: [mit\n---\n")
    monkeypatch.setattr(squad_run, "open_run", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        run_squad(run_settings(str(model), files), tmp_path / "run")


def test_a_model_that_a_killed_run_left_is_replaced(tmp_path, models, files):
    """Killed between model and result, and without a checkpoint, a run leaves its folder to another."""
    short = {"max_steps": 1, "warmup_steps": 0, "save_strategy": "no", "disable_tqdm": True}
    folder, weights = tmp_path / "run", []
    for learning_rate in (1e-3, 5e-2):
        settings = run_settings(models["bert"], files)
        run_squad(replace(settings, training_arguments={**short, "learning_rate": learning_rate}), folder)
        weights.append((folder / "model" / "model.safetensors").read_bytes())
        (folder / "result.json").unlink()
    assert weights[0] != weights[1]


# ---- Early stopping ----


@pytest.mark.parametrize("version_2", [False, True])
def test_a_run_ends_when_its_patience_does_with_the_best_model(tmp_path, models, files, version_2):
    # Steps too small to change an answer: the first epoch stays the best.
    arguments = {"max_steps": -1, "num_train_epochs": 5, "learning_rate": 1e-12, "save_steps": 500}
    settings = run_settings(models["child"], files, version_2, early_stopping_patience=2, training_arguments=arguments)
    result = run_squad(settings, tmp_path / "run")
    f1s = [entry["eval_f1"] for entry in result["log_history"] if "eval_f1" in entry]
    assert len(f1s) == 3
    assert result["f1"] == pytest.approx(f1s[0])
    # A run that lost its result after its end trains no more.
    (tmp_path / "run" / "result.json").unlink()
    again = run_squad(settings, tmp_path / "run")
    assert (again["steps"], again["f1"]) == (result["steps"], result["f1"])


@pytest.mark.parametrize(
    ("version_2", "arguments", "message"),
    [
        (False, {"metric_for_best_model": "exact"}, "is 'exact'; choose among exact_match, f1"),
        (True, {"metric_for_best_model": "exact_match"}, "is 'exact_match'; choose among exact, f1"),
        (True, {"load_best_model_at_end": False}, "load_best_model_at_end is false; remove one"),
    ],
)
def test_a_best_model_that_cannot_be_chosen_is_refused(tmp_path, models, files, version_2, arguments, message):
    settings = run_settings(models["child"], files, version_2, early_stopping_patience=1, training_arguments=arguments)
    with pytest.raises(ValueError, match=message):
        run_squad(settings, tmp_path / "run")
