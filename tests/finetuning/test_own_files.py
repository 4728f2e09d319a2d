"""Users' own files: what is inferred of them, what is asked for, the part for validation."""

import json

import pytest

from training.finetuning.own_files import load_files


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def write_lines(path, rows):
    return write(path, "\n".join(map(json.dumps, rows)))


def test_pairs_in_csv(tmp_path):
    rows = "id,question,answer,verdict\n{0}1,how,so,yes\n{0}2,why,because,no\n"
    paths = [write(tmp_path / f"{name}.csv", rows.format(name[0])) for name in ("faq", "dev", "test")]
    task, data, _ = load_files(*paths, label_column="verdict")
    assert (task.name, task.text_columns, task.labels) == ("faq", ("question", "answer"), ("no", "yes"))
    assert (task.problem_type, task.metrics) == ("single_label_classification", ("accuracy", "macro_f1"))
    assert data["train"][:] == {
        "question": ["how", "why"],
        "answer": ["so", "because"],
        "label": [1, 0],
        "idx": [0, 1],
    }
    assert set(data) == {"train", "validation", "test"}


def test_regression_in_tsv(tmp_path):
    paths = [write(tmp_path / f"{name}.tsv", "text\tlabel\na\t1.5\nb\t2\n") for name in ("train", "dev")]
    task, data, _ = load_files(*paths)
    assert (task.problem_type, task.labels, task.metrics) == ("regression", (), ("pearson", "spearmanr"))
    assert data["validation"]["label"][:] == [1.5, 2.0]
    whole = [write(tmp_path / f"whole_{name}.tsv", "text\tlabel\na\t1\nb\t2\n") for name in ("train", "dev")]
    assert load_files(*whole)[0].labels == ("1", "2")
    assert load_files(*whole, problem_type="regression")[1]["train"]["label"][:] == [1.0, 2.0]


def test_several_labels_in_json_lines(tmp_path):
    lines = [{"text": "a", "label": ["spam", "rude"]}, {"text": "b", "label": []}, {"text": "c", "label": ["rude"]}]
    paths = [write(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, lines))) for name in ("train", "dev")]
    task, data, _ = load_files(*paths)
    assert (task.problem_type, task.labels) == ("multi_label_classification", ("rude", "spam"))
    assert task.metrics == ("micro_f1", "macro_f1")
    assert data["train"]["label"][:] == [[1, 1], [0, 0], [1, 0]]


def test_tags_in_json_lines_and_in_csv(tmp_path):
    lines = [
        {"words": ["Ann", "left"], "tags": ["B-PER", "O"]},
        {"words": ["so", "did", "I"], "tags": ["O", "O", "O"]},
    ]
    json_paths = [write(tmp_path / f"{name}.jsonl", "\n".join(map(json.dumps, lines))) for name in ("train", "dev")]
    text = "words,tags\nAnn left,B-PER O\nso did I,O O O\n"
    csv_paths = [write(tmp_path / f"{name}.csv", text) for name in ("train", "dev")]
    task, data, _ = load_files(*json_paths, label_column="tags")
    assert (task.problem_type, task.labels, task.metrics) == (
        "token_classification",
        ("B-PER", "O"),
        ("entity_f1", "token_accuracy"),
    )
    assert data["train"]["label"][:] == [[0, 1], [1, 1, 1]]
    of_csv, csv_data, _ = load_files(*csv_paths, label_column="tags")
    assert of_csv == task
    assert csv_data["validation"][:] == data["validation"][:]
    parts_of_speech = [write(tmp_path / f"pos_{name}.csv", "w,label\na dog,DET NOUN\n") for name in ("train", "dev")]
    assert load_files(*parts_of_speech, problem_type="token_classification")[0].metrics == ("token_accuracy",)


def test_a_test_file_without_labels_has_none(tmp_path):
    paths = [write(tmp_path / f"{name}.tsv", "text\tlabel\na\tx\nb\ty\n") for name in ("train", "dev")]
    _, data, _ = load_files(*paths, write(tmp_path / "test.tsv", "text\nc\n"))
    assert data["test"][:] == {"text": ["c"], "idx": [0]}


@pytest.mark.parametrize(
    ("train", "dev", "options", "message"),
    [
        ("t,label\na,x\nb,y\n", "t,label\na,z\n", {}, "dev.csv, line 2: unknown label 'z'; known labels: x, y"),
        (
            "t,label\na,0.5\nb,1\nc,low\n",
            "t,label\na,1\n",
            {},
            "train.csv, line 4: .*regression needs a finite number",
        ),
        ("t,label\na,0.5\n", "t,label\na,1\nb,inf\n", {}, "dev.csv, line 3: .*regression needs a finite number"),
        ("t,label\na b,O O\nc d,O B-X\n", "t,label\na b,O\n", {}, "dev.csv, line 2: 2 words but 1 tags"),
        (
            "t,label\na,x\nb,y\n",
            "t,label\na,x\n",
            {"metric_for_best_model": "f1"},
            "'f1'; .* choose among accuracy, macro_f1",
        ),
        (
            "t,label\na,1\nb,2\n",
            "t,label\na,1\n",
            {"class_names": ["x", "y"]},
            "line 3: class 2, but there are 2, numbered from 0",
        ),
        ("t,label\na,1\nb,2\n", "t,label\na,1\n", {"class_names": ["x", "x"]}, "a name occurs twice"),
        ("t,label\na,0.5\n", "t,label\na,1\n", {"class_names": ["x"]}, "regression has no classes"),
        ("t,label\na,1 0\nb,0 1\n", "t,label\na,1 0 1\n", {}, "dev.csv, line 2: .*'1 0 1', but .* has 2 zeros and"),
        (
            "t,label\na b,O X\nc d,O\n",
            "t,label\na b,O O\n",
            {"problem_type": "token_classification"},
            "train.csv, line 3",
        ),
        ("t,label\na,x\n,y\n", "t,label\na,x\n", {}, "train.csv, line 3: column 't' is empty"),
        ("t,label\na,x\nb,\n", "t,label\na,x\n", {}, "train.csv, line 3: column 'label' is empty"),
        ("t,label\na,x\nb,y\n", "text,label\na,x\n", {}, "dev.csv, line 1: no column 't' among text, label"),
        ("t,label\na,x\nb,y\n", "t\na\n", {}, "dev.csv, line 1: no column 'label'"),
        ("t,lebel\na,x\n", "t,lebel\na,x\n", {}, "train.csv, line 1: no column 'label' .*did you mean 'lebel'"),
        (
            "t,u,v,label\na,b,c,x\n",
            "t,label\na,x\n",
            {},
            "train.csv: name with text_columns .* one or two of .*t, u, v",
        ),
        ("t,label\na,x\nb,x\n", "t,label\na,x\n", {}, "no label but 'x'; there is nothing to learn"),
        ("t,label\na,x\n", "t,label\na,x\n", {"text_columns": ["label"]}, "must not be the label"),
        ("t,label\na,x\n", "t,label\na,x\n", {"text_columns": ["tt"]}, "no column 'tt' .*did you mean 't'"),
        ("t,label\na,x\n", "t,label\na,x\n", {"problem_type": "regresion"}, "did you mean 'regression'"),
        ("t,u,label\na,b,x\n", "t,u,label\na,b,x\n", {"problem_type": "token_classification"}, "one column of words"),
        (
            """tokens,tags\n['a'],[0]\n['b'],[1]\n""",
            """tokens,tags\n['a'],[0]\n[b],[1]\n""",
            {"problem_type": "token_classification"},
            r"dev.csv, line 3: column 'tokens' holds '\[b\]', which is not a list",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_named(tmp_path, train, dev, options, message):
    paths = write(tmp_path / "train.csv", train), write(tmp_path / "dev.csv", dev)
    with pytest.raises(ValueError, match=message):
        load_files(*paths, **options)


# ---- Labels ----


def test_vectors_are_several_labels_a_row(tmp_path):
    rows = [{"text": "one two", "label": [1, 0, 1]}, {"text": "three", "label": [0.0, 1.0, 0.0]}]
    path = write_lines(tmp_path / "train.jsonl", rows)
    task, data, notes = load_files(path, path)
    assert (task.problem_type, task.labels) == ("multi_label_classification", ("LABEL_0", "LABEL_1", "LABEL_2"))
    assert data["train"]["label"][:] == [[1, 0, 1], [0, 1, 0]]
    assert "kind: multi_label_classification, 3 classes: LABEL_0, LABEL_1, LABEL_2" in notes
    assert load_files(path, path, class_names=["a", "b", "c"]).task.labels == ("a", "b", "c")


def test_vectors_that_pandas_printed_are_lists(tmp_path):
    path = write(tmp_path / "train.csv", 'text,label\none two,"[1, 0]"\nthree,"[0, 1]"\n')
    task, data, _ = load_files(path, path)
    assert task.problem_type == "multi_label_classification"
    assert data["train"]["label"][:] == [[1, 0], [0, 1]]


def test_numbers_of_classes_stay_as_they_are(tmp_path):
    # As floats, the first two are one.
    numbers = ["91723000119105001", "91723000119105002", "007", "07", "-1"]
    path = write(tmp_path / "train.csv", "text,label\n" + "".join(f"a b {number},{number}\n" for number in numbers))
    task, data, _ = load_files(path, path)
    assert task.labels == ("-1", "007", "07", "91723000119105001", "91723000119105002")
    assert data["train"]["label"][:] == [3, 4, 1, 2, 0]


def test_whole_numbers_with_a_point_are_classes(tmp_path):
    train = write(tmp_path / "train.csv", "text,label\na b,0.0\nc d,1.0\n")
    dev = write(tmp_path / "dev.csv", "text,label\na b,1\n")
    task, data, _ = load_files(train, dev)
    assert (task.problem_type, task.labels) == ("single_label_classification", ("0", "1"))
    assert data["validation"]["label"][:] == [1]
    named = load_files(train, dev, class_names=["bad", "good"])
    assert named.task.labels == ("bad", "good")
    assert named.data["validation"]["label"][:] == [1]


@pytest.mark.parametrize("names", [None, ["O", "B-X", "I-X", "B-Y"]])
def test_tags_may_be_numbers_with_names_or_without(tmp_path, names):
    rows = [{"id": "0", "tokens": ["a", "b"], "ner_tags": [0, 3]}, {"id": "1", "tokens": ["c"], "ner_tags": [0]}]
    path = write_lines(tmp_path / "train.jsonl", rows)
    task, data, _ = load_files(path, path, class_names=names)
    assert task.problem_type == "token_classification"
    assert task.labels == (("0", "3") if names is None else ("O", "B-X", "I-X", "B-Y"))
    assert task.best_metric == ("token_accuracy" if names is None else "entity_f1")
    assert data["train"]["label"][:] == ([[0, 1], [0]] if names is None else [[0, 3], [0]])


def test_conll_files_are_tags(tmp_path):
    train = write(tmp_path / "train.conll", "-DOCSTART- X O\n\nAnn NN B-PER\nleft VB O\n\n\nwe PR O\n")
    dev = write(tmp_path / "dev.bio", "Ann NN B-PER\n")
    test = write(tmp_path / "test.conll", "Bob\nleft\n")
    task, data, notes = load_files(train, dev, test)
    assert (task.text_columns, task.labels) == (("tokens",), ("B-PER", "O"))
    assert data["train"]["tokens"][:] == [["Ann", "left"], ["we"]]
    assert data["train"]["label"][:] == [[0, 1], [1]]
    assert data["test"]["tokens"][:] == [["Bob", "left"]]
    assert "not read: column_2 (other text)" in notes


# ---- In words ----


def test_all_that_is_inferred_is_said(tmp_path):
    text = ",text,label,score\n0,a fine film,pos,0.1\n1,a dull film,neg,0.5\n"
    train = write(tmp_path / "train.csv", text)
    quoted = write(tmp_path / "dev.tsv", 'text\tlabel\n"a ""fine"" film"\tpos\n')
    test = write(tmp_path / "test.csv", "text\nso it goes\n")
    _, data, notes = load_files(train, quoted, test)
    assert data["validation"]["text"][:] == ['a "fine" film']
    assert notes == (
        "text: text; label: label",
        "not read: the column without a name (the row numbers of pandas)",
        "not read: score (numbers)",
        "kind: single_label_classification, 2 classes: neg, pos",
        f"train: 2 rows of {train}",
        f"validation: 1 row of {quoted}; read as quoted like CSV",
        f"test: 1 row of {test}, without labels: predicted, not scored",
        "metrics: accuracy, macro_f1; the best epoch is the one with the best accuracy",
    )
    assert load_files(train, quoted, metric_for_best_model="macro_f1").task.score_metrics == ("macro_f1",)


# ---- A part for validation ----


def test_a_part_for_validation_depends_on_the_texts_alone(tmp_path):
    rows = [f"sentence number {number},{'xy'[number % 2]}" for number in range(200)]
    # The same text twice.
    rows += rows[:50]
    path = write(tmp_path / "train.csv", "\n".join(["text,label", *rows]))
    _, data, notes = load_files(path)
    sides = [set(data[split]["text"][:]) for split in ("train", "validation")]
    assert not sides[0] & sides[1]
    assert len(data["train"]) + len(data["validation"]) == 250
    assert 10 <= len(data["validation"]) <= 45
    assert f"validation: {len(data['validation'])} rows of {path}, split off by a hash" in " ".join(notes)
    # Rows that come before move none.
    longer = write(tmp_path / "longer.csv", "\n".join(["text,label", "one more,x", *rows]))
    assert set(load_files(longer).data["validation"]["text"][:]) - {"one more"} == sides[1]
    assert len(load_files(path, validation_fraction=0.5).data["validation"]) > 90


def test_a_small_file_has_one_row_for_validation_and_one_text_is_too_few(tmp_path):
    path = write(tmp_path / "train.csv", "text,label\na,x\nb,y\nc,x\n")
    assert len(load_files(path, validation_fraction=1e-6).data["validation"]) == 1
    path = write(tmp_path / "same.csv", "text,label\na b,x\na b,y\n")
    with pytest.raises(ValueError, match=r"too few different texts .*give a validation_file"):
        load_files(path, text_columns=["text"])
