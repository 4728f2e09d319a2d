"""The table of published accuracies."""

import pytest

from training.cells.published import load_published


FIRST = "|none~0|+|none~0|none~1|+|none~0|none~1|none~2|"
SECOND = FIRST.replace("none~2", "nor_conv_3x3~2")


def test_a_table_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"index,arch,accuracy\n0,{FIRST},10.5\n1,{SECOND},20\n")
    truth = load_published(path, "accuracy")
    assert truth.means == {("none",) * 6: 10.5, (*["none"] * 5, "nor_conv_3x3"): 20.0}
    assert (truth.metric, truth.is_loss) == ("accuracy", False)


def test_a_loss_is_better_if_lower(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"arch,val_loss\n{FIRST},2.5\n{SECOND},0.5\n")
    truth = load_published(path, "val_loss")
    assert truth.means == {("none",) * 6: -2.5, (*["none"] * 5, "nor_conv_3x3"): -0.5}
    assert truth.is_loss


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("cell,accuracy\n", "has no column 'arch'; its columns are cell, accuracy"),
        ("", "has no column 'arch'; its columns are none"),
        ("arch,score\n", "has no column 'accuracy'; its columns are arch, score"),
        ("arch,accuracy\n", "has no row"),
        (f"arch,accuracy\n{FIRST},10\n{SECOND.replace('nor_', '')},1\n", "line 3: .* has the operator 'conv_3x3'"),
        (f"arch,accuracy\n{FIRST},\n", "line 2: accuracy is ''; it must be a number"),
        (f"arch,accuracy\n{FIRST},best\n", "line 2: accuracy is 'best'; it must be a number"),
        (f"arch,accuracy\n{FIRST},1\n{FIRST},2\n", "line 3: the cell .* occurs twice"),
        (
            f'arch,accuracy\n"{FIRST},1\n',
            "table.csv is not a CSV table .*; look for a quotation mark that is not closed",
        ),
        (
            f"arch,accuracy\n{FIRST},0\n{SECOND},1\n",
            "the column 'accuracy' of .* only numbers the rows; give a column",
        ),
        (f"arch,accuracy\n{FIRST}\n", "line 2: accuracy is None; it must be a number"),
    ],
)
def test_what_is_no_such_table_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "table.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_published(path, "accuracy")
    assert "\n" not in str(error.value)


def test_a_table_of_a_spreadsheet_is_read(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text(f"arch,accuracy\n{FIRST},10\n", encoding="utf-8-sig")
    assert load_published(path, "accuracy").means == {("none",) * 6: 10.0}
    path.write_bytes("arch,Genauigkeit für\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"table.csv is not UTF-8 text"):
        load_published(path, "accuracy")


def test_a_missing_table_is_named(tmp_path):
    with pytest.raises(ValueError, match="none is not a file; give the table"):
        load_published(tmp_path / "none", "accuracy")
