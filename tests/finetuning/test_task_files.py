"""Files that a task is read from: what they say is kept, and what is wrong with them is named by file and line."""

import csv
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.finetuning.settings import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TOKENS
from training.finetuning.task_files import label_names, label_of, read_table


def write(path, text, encoding="utf-8"):
    path.write_bytes(text.encode(encoding))
    return path


def cells(table):
    return [dict(row.cells) for row in table.rows]


# ---- Reading ----


@pytest.mark.parametrize("ending", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\N{ZERO WIDTH NO-BREAK SPACE}"])
@pytest.mark.parametrize("last", [True, False])
def test_line_ends_and_byte_order_marks_change_nothing(tmp_path, ending, mark, last):
    lines = ["sentence\tlabel", "a b\t1", "c\t0"]
    text = mark + ending.join(lines) + (ending if last else "")
    assert cells(read_table(write(tmp_path / "a.tsv", text))) == [
        {"sentence": "a b", "label": "1"},
        {"sentence": "c", "label": "0"},
    ]
    text = text.replace("\t", ",")
    assert cells(read_table(write(tmp_path / "a.csv", text)))[0] == {"sentence": "a b", "label": "1"}


def test_a_quotation_mark_in_tsv_is_a_character(tmp_path):
    path = write(tmp_path / "a.tsv", 'sentence\tlabel\n"He said\t1\nno "quotes" here\t0\n')
    assert [row["sentence"] for row in cells(read_table(path))] == ['"He said', 'no "quotes" here']


def test_csv_may_break_lines_in_quotes_and_rows_are_named_by_their_first_line(tmp_path):
    path = write(tmp_path / "a.csv", 'sentence,label\n"one\ntwo, three",1\n"four ""x""",0\n')
    table = read_table(path)
    assert [row["sentence"] for row in cells(table)] == ["one\ntwo, three", 'four "x"']
    assert [row.where for row in table.rows] == [f"{path}, line 2", f"{path}, line 4"]


def test_unusual_separators_of_lines_stay_in_the_text(tmp_path):
    text = "a\N{LINE SEPARATOR}b\N{NEXT LINE}c\x0bd"
    path = write(tmp_path / "a.tsv", f"sentence\tlabel\n{text}\t1\n")
    assert cells(read_table(path)) == [{"sentence": text, "label": "1"}]


rows_of_text = st.lists(
    st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r"), max_size=8).map("x".__add__),
        min_size=2,
        max_size=2,
    ),
    min_size=1,
    max_size=6,
)


@given(rows_of_text)
def test_csv_and_json_lines_come_back_as_they_were_written(tmp_path_factory, rows: Sequence[Sequence[str]]):
    folder = tmp_path_factory.mktemp("files")
    with (folder / "a.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([["one", "two"], *rows])
    lines = [json.dumps({"one": one, "two": two}, ensure_ascii=False) for one, two in rows]
    write(folder / "a.jsonl", "\n".join(lines))
    expected = [{"one": one, "two": two} for one, two in rows]
    assert cells(read_table(folder / "a.csv")) == expected
    assert cells(read_table(folder / "a.jsonl")) == expected


def test_what_pandas_writes_for_a_missing_label_is_none(tmp_path):
    table = read_table(write(tmp_path / "a.jsonl", '{"t": "a", "label": 1.0}\n{"t": "b", "label": NaN}\n'))
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: column 'label' is empty; every row needs a label"):
        label_names(table, "label", SINGLE_LABEL)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.tsv", "", "empty"),
        ("a.csv", "", "empty"),
        ("a.jsonl", "", "holds no rows"),
        ("a.tsv", "\nsentence\tlabel\n", "empty"),
        ("a.tsv", "sentence\tlabel\n", "holds no rows"),
        ("a.csv", "sentence,label\n", "holds no rows"),
        ("a.tsv", "x\ty\tx\n1\t2\t3\n", "line 1: column 'x' is named more than once"),
        ("a.csv", "x,x\n1,2\n", "line 1: column 'x' is named more than once"),
        ("a.tsv", "x\ty\na\t1\n\nb\t2\n", "line 3: empty row"),
        ("a.tsv", "x\ty\na\t1\n \t \nb\t2\n", "line 3: empty row"),
        ("a.csv", "x,y\na,1\n\nb,2\n", "line 3: empty row"),
        ("a.jsonl", '{"x": 1}\n\n{"x": 2}\n', "line 2: empty row"),
        ("a.tsv", "x\ty\na\t1\nb\n", r"line 3: 1 columns, but the header has 2 \(x, y\)"),
        ("a.csv", 'x,y\n"a\nb",1\nb,2,3\n', "line 4: 3 columns"),
        ("a.csv", 'x,y\na,1\n"b,2\n', "line 3: not CSV"),
        ("a.jsonl", '{"x": 1}\n{"x": \n', "line 2: not JSON"),
        ("a.json", '[{"x": 1}]\n', "line 1: list instead of an object"),
        ("a.csv", "text;label\nfine;yes\n", "line 1: columns are separated by ';'; save the file with commas"),
        ("A.CSV", "text;label\nfine;yes\n", "line 1: columns are separated by ';'"),
        ("a.jsonl", '{"x": 1}\n{"x": ' + "1" * 5000 + "}\n", "line 2: .*digits.*; correct the number"),
        ("a.jsonl", '{"x": 1}\n{"y": 1}\n', "line 2: keys differ from those of line 1 in 'x', 'y'"),
    ],
)
def test_a_broken_file_is_named_with_its_line(tmp_path, name, text, message):
    path = write(tmp_path / name, text)
    with pytest.raises(ValueError, match=message) as error:
        read_table(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl"])
def test_latin1_is_named_with_its_line_and_a_remedy(tmp_path, suffix):
    path = write(tmp_path / f"a{suffix}", "x,y\nplain,1\ncafé,2\n", "latin-1")
    with pytest.raises(ValueError, match=r"line 3: not UTF-8 .*byte 0xe9.*iconv -f latin1") as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_a_missing_file_and_an_unknown_kind_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"no file .*none\.tsv"):
        read_table(tmp_path / "none.tsv")
    for name in ("a.TSV", "a.Jsonl", "a.CONLL"):
        text = '{"x": "a"}\n' if name == "a.Jsonl" else "x\ty\na\tb\n"
        assert read_table(write(tmp_path / name, text)).rows
    with pytest.raises(ValueError, match=r"known suffixes: \.csv, \.tsv, \.json, \.jsonl, \.conll, \.bio"):
        read_table(write(tmp_path / "a.xlsx", "x"))


def table_of(tmp_path, rows):
    return read_table(write(tmp_path / "train.jsonl", "\n".join(json.dumps(row) for row in rows)))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", "x,y\na,1\n\n"),
        ("a.csv", "x,y\na,1\n,\n ,\n"),
        ("a.tsv", "x\ty\na\t1\n\n \t \n"),
        ("a.jsonl", '{"x": "a", "y": "1"}\n\n \n'),
    ],
)
def test_empty_rows_at_the_end_are_no_rows(tmp_path, name, text):
    assert cells(read_table(write(tmp_path / name, text))) == [{"x": "a", "y": "1"}]


def test_a_cell_may_be_longer_than_the_limit_of_the_csv_module(tmp_path):
    long = "word " * 30_000
    path = write(tmp_path / "a.csv", f"x,y\n{long},1\n")
    csv.field_size_limit(131_072)
    assert cells(read_table(path)) == [{"x": long, "y": "1"}]


@pytest.mark.parametrize(
    ("cell", "found"),
    [
        ("\\ud83d", True),
        ("\\uDE00 a", True),
        ("\\ud83d\\ud83d\\ude00", True),
        ("\\ud83d\\ude00", False),
        ("\\\\ud83d", False),
    ],
)
def test_half_a_character_is_named_with_its_line(tmp_path, cell, found):
    path = write(tmp_path / "a.jsonl", f'{{"x": "a"}}\n{{"x": "{cell}"}}\n')
    if not found:
        assert len(read_table(path).rows) == 2
        return
    with pytest.raises(ValueError, match=r"a\.jsonl, line 2: \\u\w{4} is half of a character"):
        read_table(path)


@pytest.mark.parametrize(
    ("text", "is_quoted"),
    [
        ('x\ty\n"he said ""no"""\t1\nplain\t2\n', True),
        ('"x"\t"y"\n"a"\t"1"\n', True),
        ('x\ty\n"he said ""no"""\t1\na "plain" one\t2\n', False),
        ('x\ty\n"a quoted title"\t1\n', False),
        ('x\ty\n"open\t1\n', False),
    ],
)
def test_a_tsv_is_quoted_where_all_of_it_is(tmp_path, text, is_quoted):
    table = read_table(write(tmp_path / "a.tsv", text))
    assert table.is_quoted == is_quoted
    first = cells(table)[0]["x"]
    assert first in (('he said "no"', "a") if is_quoted else ('"he said ""no"""', '"a quoted title"', '"open'))


def test_a_broken_conll_file_is_named_with_its_line(tmp_path):
    with pytest.raises(ValueError, match=r"a\.conll, line 4: 1 columns, .* the first word has 2"):
        read_table(write(tmp_path / "a.conll", "a O\nb O\n\nc\n"))
    with pytest.raises(ValueError, match="holds no rows"):
        read_table(write(tmp_path / "b.conll", "\n\n"))
    spaced = read_table(write(tmp_path / "c.bio", "New York\tB-X\nis\tO\n"))
    assert cells(spaced) == [{"tokens": ["New York", "is"], "label": ["B-X", "O"]}]


# ---- Labels ----


@pytest.mark.parametrize(
    ("problem_type", "labels", "names", "parsed"),
    [
        (SINGLE_LABEL, ["b", " a ", "b"], ("a", "b"), [1, 0, 1]),
        (SINGLE_LABEL, [10, 9, 2], ("2", "9", "10"), [2, 1, 0]),
        (SINGLE_LABEL, [True, False], ("false", "true"), [1, 0]),
        (REGRESSION, ["1", 2.5], (), [1.0, 2.5]),
        (MULTI_LABEL, ["b|a", "", "b"], ("a", "b"), [[1, 1], [0, 0], [0, 1]]),
        (MULTI_LABEL, [["b", "a"], [], None], ("a", "b"), [[1, 1], [0, 0], [0, 0]]),
        (TOKENS, ["O B-X", ["O"]], ("B-X", "O"), [[1, 0], [1]]),
    ],
)
def test_labels_are_numbered_and_read(tmp_path, problem_type, labels, names, parsed):
    table = table_of(tmp_path, [{"text": "x", "label": label} for label in labels])
    assert label_names(table, "label", problem_type) == names
    ids = {name: number for number, name in enumerate(names)}
    assert [label_of(row, "label", problem_type, ids) for row in table.rows] == parsed


@pytest.mark.parametrize(
    ("problem_type", "label", "message"),
    [
        (SINGLE_LABEL, "c", "unknown label 'c'; known labels: a, b; correct the row or remove it"),
        (SINGLE_LABEL, "", "'label' is empty"),
        (SINGLE_LABEL, None, "'label' is empty"),
        (SINGLE_LABEL, ["a"], "one name or number"),
        (REGRESSION, "high", "'high'; regression needs a finite number"),
        (REGRESSION, "", "regression needs a finite number"),
        (REGRESSION, "nan", "regression needs a finite number"),
        (REGRESSION, 1e999, "regression needs a finite number"),
        (REGRESSION, "1e999", "regression needs a finite number"),
        (REGRESSION, True, "regression needs a finite number"),
        (MULTI_LABEL, "a|c", "unknown label 'c'"),
        (MULTI_LABEL, "a||b", "in which one label is empty"),
        (TOKENS, "a c", "unknown label 'c'"),
        (TOKENS, "", "at least one word"),
        (TOKENS, ["a", ""], "no empty words"),
    ],
)
def test_a_wrong_label_is_named_with_its_line(tmp_path, problem_type, label, message):
    table = table_of(tmp_path, [{"text": "x", "label": "a"}, {"text": "x", "label": label}])
    with pytest.raises(ValueError, match=message) as error:
        label_of(table.rows[1], "label", problem_type, {"a": 0, "b": 1})
    assert f"{tmp_path / 'train.jsonl'}, line 2" in str(error.value)


@pytest.mark.parametrize(("problem_type", "label"), [(SINGLE_LABEL, "a"), (TOKENS, "O O"), (MULTI_LABEL, "")])
def test_labels_without_a_difference_teach_nothing(tmp_path, problem_type, label):
    table = table_of(tmp_path, [{"text": "x y", "label": label}] * 3)
    with pytest.raises(ValueError, match="nothing to learn"):
        label_names(table, "label", problem_type)
