"""What a user's own file asks for: columns by their values, kinds of labels, and what is asked and not guessed."""

import csv
import json

import pytest

from training.finetuning.own_kinds import find_label_column, find_text_columns, infer_problem_type, with_lists
from training.finetuning.settings import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS
from training.finetuning.task_files import read_table


def table_of(tmp_path, rows):
    path = tmp_path / "train.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    return read_table(path)


# ---- Columns ----

SENTENCES = [f"{first} film number {number}" for number in range(12) for first in ("fine", "dull")]


def with_column(tmp_path, name, values):
    return table_of(
        tmp_path,
        [{name: values[number], "text": text, "label": "yn"[number % 2]} for number, text in enumerate(SENTENCES)],
    )


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("", list(range(24)), "the row numbers of pandas"),
        ("Unnamed: 0", [str(number) for number in range(24)], "the row numbers of pandas"),
        ("id", [f"a{number}" for number in range(24)], "row numbers"),
        ("number", [str(number) for number in range(24)], "numbers"),
        ("amount", [number / 3 for number in range(24)], "numbers"),
        ("date", [f"2021-03-{number + 1:02} 10:00" for number in range(24)], "numbers"),
        ("source", ["the web site"] * 24, "one value"),
        ("key", [f"doc_{number}" for number in range(24)], "identifiers"),
        ("empty", [""] * 24, "nothing"),
        ("vector", [[0.5, number] for number in range(24)], "lists of numbers"),
        ("label_text", ["yes", "no"] * 12, "'label' in other words"),
    ],
)
def test_only_columns_of_text_are_text(tmp_path, name, values, what):
    table = with_column(tmp_path, name, values)
    assert find_text_columns(table, None, "label") == (("text",), {name: what})


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("language", ["en", "de", "fr"] * 8),
        ("city", ["New York", "San Francisco", "Paris", "Rome"] * 6),
        ("word", [f"{first}{second}" for first in "abcd" for second in "uvwxyz"]),
    ],
)
def test_what_may_be_text_or_not_is_asked_for(tmp_path, name, values):
    table = with_column(tmp_path, name, values)
    with pytest.raises(ValueError, match=rf"column '{name}' .* may or may not be text; .* with text_columns"):
        find_text_columns(table, None, "label")
    assert find_text_columns(table, [name, "text"], "label")[0] == (name, "text")


def test_pairs_and_single_words_and_scripts_without_spaces_are_text(tmp_path):
    pair = with_column(tmp_path, "question", [f"why so {number % 5} times, they asked" for number in range(24)])
    assert find_text_columns(pair, None, "label")[0] == ("question", "text")
    names = table_of(tmp_path, [{"text": name, "label": name[0]} for name in ("Ivanov", "Tanaka")])
    assert find_text_columns(names, None, "label")[0] == ("text",)
    unspaced = table_of(tmp_path, [{"key": key, "t": f"我喜欢{key}", "label": key} for key in ("a1", "b2")])
    assert find_text_columns(unspaced, None, "label")[0] == ("t",)


def test_a_lone_column_of_text_is_text_even_where_each_class_has_one_sentence(tmp_path):
    table = table_of(tmp_path, [{"text": f"{kind} it is", "label": kind} for kind in ("yes", "no") * 8])
    assert find_text_columns(table, None, "label") == (("text",), {})


def test_a_file_without_text_says_what_its_columns_hold(tmp_path):
    table = table_of(tmp_path, [{"a": 1, "b": "x y", "label": "u"}, {"a": 2, "b": "x y", "label": "v"}])
    with pytest.raises(ValueError, match=r"name with text_columns .*'a' holds numbers; 'b' holds one value"):
        find_text_columns(table, None, "label")


def test_the_label_is_found_by_its_usual_names(tmp_path):
    assert find_label_column(table_of(tmp_path, [{"tokens": ["a"], "ner_tags": [0]}]), None) == "ner_tags"
    assert find_label_column(table_of(tmp_path, [{"t": "a", "label": 0, "score": 1}]), None) == "label"
    with pytest.raises(ValueError, match="tags or ner_tags may be the label; choose one with label_column"):
        find_label_column(table_of(tmp_path, [{"tokens": ["a"], "ner_tags": [0], "tags": [1]}]), None)
    with pytest.raises(ValueError, match=r"no column 'label' .*did you mean 'lebel'.*set another with label_column"):
        find_label_column(table_of(tmp_path, [{"t": "a", "lebel": 0}]), None)


def test_lists_that_pandas_and_numpy_print_into_csv_are_lists(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("""a,b,c\n"['New', 'York']",[1 0 1],[not so]\n"[""it's""]",[0. 1.],[so]\n""", encoding="utf-8")
    first, second = (row.cells for row in with_lists(read_table(path)).rows)
    assert first == {"a": ["New", "York"], "b": [1, 0, 1], "c": "[not so]"}
    assert second == {"a": ["it's"], "b": [0.0, 1.0], "c": "[so]"}


def test_printed_lists_may_hold_escapes_and_be_empty(tmp_path):
    words = [["it's", 'a "b"'], ["a\u200b", "\\"], ["x"]]
    path = tmp_path / "a.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["repr", "json"], *([repr(row), json.dumps(row)] for row in words), ["", "[]"]])
    rows = [row.cells for row in with_lists(read_table(path)).rows]
    assert rows == [{"repr": row, "json": row} for row in (*words, [])]


# ---- Kinds ----


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["yes", "no"], SINGLE_LABEL),
        ([0, 1], SINGLE_LABEL),
        (["0", "1"], SINGLE_LABEL),
        ([0.0, 1.0], SINGLE_LABEL),
        (["0.0", "1.0", "2"], SINGLE_LABEL),
        ([True, False], SINGLE_LABEL),
        (["nan", "inf"], SINGLE_LABEL),
        (["1.5", "none", "some"], SINGLE_LABEL),
        ([0.5, 1], REGRESSION),
        (["0.5", "1", "x"], REGRESSION),
        (["-1e-3", "2"], REGRESSION),
        ([["a"], []], MULTI_LABEL),
        (["a|b", "a"], MULTI_LABEL),
        ([[1, 0, 1], [0, 0, 0]], MULTI_LABEL),
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], MULTI_LABEL),
        ([[True, False, True], [False, False, True]], MULTI_LABEL),
        (["1 0 1", "0 1 0"], MULTI_LABEL),
        (["1,0,1", "0,1,0"], MULTI_LABEL),
        ([[3, 5], [4]], MULTI_LABEL),
        (["O B-X", "O O"], TOKENS),
        (["O B-X", "O O", "O"], TOKENS),
    ],
)
def test_the_kind_is_inferred_from_the_labels(tmp_path, labels, expected):
    table = table_of(tmp_path, [{"text": "two words", "label": label} for label in labels])
    assert infer_problem_type(table, ["text"], "label") == expected


def kind_of(tmp_path, *rows):
    return infer_problem_type(
        table_of(tmp_path, [{"text": text, "label": label} for text, label in rows]), ["text"], "label"
    )


def test_as_many_tags_as_words_in_rows_of_several_lengths_are_tags(tmp_path):
    rows = [("go", "V"), ("a dog", "D N"), ("a big dog", "D A N")]
    assert kind_of(tmp_path, *rows) == TOKENS
    assert kind_of(tmp_path, *((text, label.split()) for text, label in rows)) == TOKENS


def test_names_of_several_words_are_classes(tmp_path):
    rows = [("Ivanov", "Russian"), ("Smith", "English"), ("Li Wei", "Hong Kong")]
    assert kind_of(tmp_path, *rows) == SINGLE_LABEL


@pytest.mark.parametrize(
    ("rows", "kinds"),
    [
        ([("Li Wei", "Hong Kong"), ("Al Jones", "New York")], (TOKENS, SINGLE_LABEL)),
        ([("go", "V"), ("dogs bark", "N V")], (TOKENS, SINGLE_LABEL)),
        ([("a b", [1, 0]), ("c d", [0, 1])], (TOKENS, MULTI_LABEL)),
        ([("a b", "1 0"), ("c d", "0 1")], (TOKENS, MULTI_LABEL)),
        ([("a b c", ["x", "y", "x"]), ("c d e", ["y", "y", "x"])], (TOKENS, MULTI_LABEL)),
        ([("a b c", "D A N")] * 10 + [("a dog", "D N"), ("go", "V"), ("dog", "D N")], (TOKENS, SINGLE_LABEL)),
    ],
)
def test_tags_that_may_be_classes_are_asked_for(tmp_path, rows, kinds):
    with pytest.raises(ValueError, match=f"may hold tags or classes; set problem_type to {kinds[0]} or {kinds[1]}"):
        kind_of(tmp_path, *rows)


def test_lists_of_one_bit_and_of_fractions_and_too_many_values_are_asked_for(tmp_path):
    with pytest.raises(ValueError, match="lists of one 0 or 1"):
        kind_of(tmp_path, ("a b", [1]), ("c d e", [0]))
    with pytest.raises(ValueError, match="lists of fractions"):
        kind_of(tmp_path, ("a b c", [0.2, 0.8]), ("c d e", [0.5, 0.5]))
    numbers = [(text, number) for number, text in enumerate(SENTENCES)]
    with pytest.raises(ValueError, match=f"24 different values in 24 rows.*{SINGLE_LABEL} or {REGRESSION}"):
        kind_of(tmp_path, *numbers)
    assert kind_of(tmp_path, *((text, number % 12) for text, number in numbers)) == SINGLE_LABEL


def test_lists_of_words_are_tokens_and_pairs_are_not(tmp_path):
    table = table_of(tmp_path, [{"text": ["a", "b"], "label": ["O", "O"]}])
    assert infer_problem_type(table, ["text"], "label") == TOKENS
    table = table_of(
        tmp_path, [{"a": "x y", "b": "x", "label": "not same"}, {"a": "x y", "b": "x", "label": "the same"}]
    )
    assert infer_problem_type(table, ["a", "b"], "label") == SINGLE_LABEL
