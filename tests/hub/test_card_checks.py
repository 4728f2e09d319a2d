"""Numbers of a card against those of its folder."""

import shutil

import pytest
from toy_hub import MIXED
from toy_verify import edit, edit_record, untouched_export, verdicts, without_contents

from modeling_magic import MagicForMaskedLM
from training.hub.card_checks import (
    card_numbers,
    check_card,
    further_row,
    metadata_results,
    missing_row,
    section,
    table_rows,
)
from training.hub.publish import _card_for
from training.hub.verified_folder import DIFFERS, NOT_RECORDED, OK, VerifiedFolder


@pytest.fixture(scope="module")
def exported(tiny_config, tmp_path_factory):
    return untouched_export(tmp_path_factory.mktemp("cards") / "model", tiny_config())


@pytest.fixture
def folder(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "model")


LINES = "card: lines with numbers"


def wrong(folder) -> list[str]:
    """What differs, but for the check of all lines, which notes every change that another check names."""
    return [one.what for one in check_card(VerifiedFolder(folder)) if one.verdict == DIFFERS and one.what != LINES]


# ---- Reading ----


def test_numbers_of_a_card_are_read_back(exported):
    config = VerifiedFolder(exported).child
    numbers = card_numbers((exported / "README.md").read_text())
    assert numbers == (MagicForMaskedLM(config).num_parameters(), "3.36e+06", MIXED, (4, 32))
    assert card_numbers("# A card\n") == (None, None, None, None)
    assert card_numbers("| parameters | 22,713,216, the checkpoint 1 |").num_parameters == 22713216


def test_rows_are_told_by_their_numbers_in_order():
    table = "| what | value |\n| --- | ---: |\n| seed | 3 |\n| rows | 1,000 of 2e+08 |\n| name | none |\n"
    assert table_rows(table, with_words=False) == [("3",), ("1,000", "2e+08")]
    assert table_rows(table) == [("seed", "3"), ("rows", "1,000 of 2e+08")]
    assert missing_row(table, table) is None
    other = table.replace("| rows", "| own | 7 |\n| lines")
    assert missing_row(table, other, with_words=False) is None
    assert missing_row(table, other) == ("rows", "1,000 of 2e+08")
    assert further_row(table, other, with_words=False) == ("7",)
    assert further_row(table, table) is None
    assert missing_row(table, table.replace("1,000", "1,001"), with_words=False) == ("1,000", "2e+08")
    swapped = "| seed | 1,000 of 2e+08 |\n| rows | 3 |\n"
    assert missing_row(table, swapped, with_words=False) == ("1,000", "2e+08")


def test_sections_end_where_the_next_begins():
    text = "# Title\n\n## One\n\na\n### in it\nb\n\n## Two\nc\n"
    assert section(text, "One") == "\n\na\n### in it\nb\n\n"
    assert section(text, "Three") is None


def test_a_front_matter_that_is_none_is_an_error():
    assert metadata_results("# A card\n") == []
    with pytest.raises(ValueError, match="its front matter cannot be read"):
        metadata_results("---\na: [1\n---\n")


# ---- Checks ----


def test_an_untouched_card_is_as_recorded(exported):
    found = verdicts(check_card(VerifiedFolder(exported)))
    assert set(found.values()) == {OK}
    assert set(found) == {
        "card: parameters",
        "card: FLOPs",
        "card: architecture",
        "card: sizes",
        "card: Origin",
        "card: Training",
        "card: Results",
        "card: results of its metadata",
        "card: license of its metadata",
        "card: language of its metadata",
        LINES,
    }


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("| parameters | 19,", "| parameters | 9,", "card: parameters"),
        ("| parameters | 19,", "| weights | 19,", "card: parameters"),
        ("| 3.36e+06 |", "| 3.36e+05 |", "card: FLOPs"),
        ("MHA4,CONV3,FFN,CONV5", "MHA4,CONV3,FFN,CONV3", "card: architecture"),
        ("hidden size 32", "hidden size 64", "card: sizes"),
        ("4 layers, 256 children", "9 layers, 256 children", "card: Origin"),
        ("## Origin", "## Source", "card: Origin"),
        ("| steps | 800 |", "| steps | 80 |", "card: Training"),
        ("| 5.125 +- 0.125 |", "| 4.125 +- 0.125 |", "card: Results"),
        ("| 23.0 +- 2.0% |", "| 93.0 +- 2.0% |", "card: Results"),
        ("value: 5.25", "value: 4.25", "card: results of its metadata"),
        ("type: accuracy\n      value: 0.21", "type: accuracy\n      value: 0.91", "card: results of its metadata"),
        ("model-index:", "model-index: [", "card: results of its metadata"),
        ("type: text\n", "type: text\n      split: test\n", "card: results of its metadata"),
        ("license: mit", "license: apache-2.0", "card: license of its metadata"),
        ("language: en", "language: de", "card: language of its metadata"),
    ],
)
def test_an_edited_number_is_named_and_nothing_else(folder, old, new, what):
    edit(folder / "README.md", old, new)
    assert wrong(folder) == [what]
    # Of an export of an earlier release, too; its card may be divided otherwise.
    without_contents(folder)
    assert wrong(folder) == ([] if old.startswith("##") else [what])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("the longest input has 64", "the longest input has 512"),
        ("one multiply-add is 2", "one multiply-add is 1"),
        ("| steps | 800 |", "| steps | 80 |"),
        ("4 layers, 256 children", "many children"),
    ],
)
def test_a_number_that_no_other_check_knows_is_named_too(folder, old, new):
    edit(folder / "README.md", old, new)
    (found,) = (one for one in check_card(VerifiedFolder(folder)) if one.what == LINES)
    assert found.verdict == DIFFERS
    assert found.found.startswith("1 missing or changed")
    assert ("; also: " in found.found) == any(map(str.isdigit, new))
    # An export of an earlier release has no record of them.
    without_contents(folder)
    assert LINES not in verdicts(check_card(VerifiedFolder(folder)))


def test_a_sentence_with_a_number_that_the_export_has_not_written_is_told(folder):
    edit(folder / "README.md", "## Limits", "It scores 84.2 on GLUE.\n\n## Limits")
    (found,) = (one for one in check_card(VerifiedFolder(folder)) if one.what == LINES)
    assert (found.verdict, found.found) == (NOT_RECORDED, "1 more line: It scores 84.2 on GLUE.")


def test_a_card_that_is_missing_or_no_text_is_named(folder):
    (folder / "README.md").write_bytes(b"\xff\xfe")
    assert wrong(folder) == ["card: README.md"]
    (folder / "README.md").unlink()
    assert wrong(folder) == ["card: README.md"]
    without_contents(folder)
    assert not list(check_card(VerifiedFolder(folder)))


def test_what_a_push_writes_into_a_card_changes_no_number(folder):
    (folder / "README.md").write_bytes(_card_for(folder / "README.md", "ada/a-name-with-7"))
    assert set(verdicts(check_card(VerifiedFolder(folder))).values()) == {OK}


def test_text_and_rows_of_the_owner_are_no_difference(folder):
    edit(
        folder / "README.md",
        "## Results\n",
        "## Results\n\nMeasured on 3 machines.\n\n| own | 77 |\n| --- | --- |\n| a | 78 |\n",
    )
    edit(folder / "README.md", "## Limits", "## Thanks\n\nTo 5 people.\n\n## Limits")
    assert not wrong(folder)


def test_a_card_of_the_owner_has_to_say_nothing_and_says_nothing_false(folder):
    (folder / "README.md").write_text("# My model\n\nIt is good.\n")
    found = verdicts(check_card(VerifiedFolder(folder)))
    assert set(found.values()) == {NOT_RECORDED}
    (folder / "README.md").write_text("# My model\n\n| parameters | 5 |\n")
    assert wrong(folder) == ["card: parameters"]


def test_another_phrase_does_not_make_a_false_number_of_the_owners_true(folder):
    """Of a card that no longer mentions search.json, too, whatever it has must be true."""
    edit(folder / "README.md", "`search.json` beside the weights", "`search.json` next to the weights")
    assert not wrong(folder)
    edit(folder / "README.md", "| 5.125 +- 0.125 |", "| 4.125 +- 0.125 |")
    edit(folder / "README.md", "value: 5.25", "value: 4.25")
    assert wrong(folder) == ["card: Results", "card: results of its metadata"]


@pytest.mark.parametrize(
    ("old", "new", "what"),
    [
        ("## Results\n", "## Results\n\n| a | b |\n| --- | --- |\n| test | 0.99 |\n", "card: Results"),
        ("model-index:", "base_model: google-bert/bert-base\nmodel-index:", "card: base_model of its metadata"),
        ("model-index:", "datasets: [glue]\nmodel-index:", "card: datasets of its metadata"),
    ],
)
def test_what_the_owner_adds_is_named(folder, old, new, what):
    edit(folder / "README.md", old, new)
    found = verdicts(check_card(VerifiedFolder(folder)))
    assert found[what] == NOT_RECORDED
    assert not wrong(folder)


def test_a_second_value_of_a_result_is_no_addition(folder):
    """Whichever of the two comes first."""
    text = (folder / "README.md").read_text()
    start = text.index("    - type: accuracy")
    end = text.index("\n", text.index("value:", start)) + 1
    entry = text[start:end]
    assert "value: 0.21" in entry
    false = entry.replace("0.21", "0.99")
    for both in (false + entry, entry + false):
        (folder / "README.md").write_text(text.replace(entry, both))
        assert wrong(folder) == ["card: results of its metadata"]


def test_the_name_of_a_row_belongs_to_its_number(folder):
    edit(folder / "README.md", "| steps | 800 |", "| epochs | 800 |")
    assert wrong(folder) == ["card: Training"]
    # Another version of this package may use other words.
    edit_record(folder, lambda record: record["contents"].update(written_by="magic-nas 0.0.1"))
    assert not wrong(folder)


def test_results_that_the_record_has_not_are_told(folder):
    # A row of another architecture has no result of these weights.
    edit_record(folder, lambda record: record["results"][0].update(architecture=["FFN"]))
    found = {one.what: one for one in check_card(VerifiedFolder(folder))}
    metadata = found["card: results of its metadata"]
    assert (metadata.verdict, metadata.note) == (NOT_RECORDED, "search.json does not have all of them")


@pytest.mark.parametrize(
    "change",
    [
        {"results": [{}]},
        {"results": 3},
        {"training": {"corpus": 3}},
        {"search": {"candidate_operators": 4}},
        {"flops": "x"},
        {"architecture": None},
        {"scores": [{"data": 1}]},
    ],
)
def test_a_damaged_record_is_a_finding(folder, change):
    edit_record(folder, lambda record: record.update(change))
    assert "card: tables" in wrong(folder)


def test_a_section_that_is_not_of_its_making_hides_no_table(folder):
    edit(folder / "README.md", "## Results", "## Compared with the checkpoint\n\n## Results")
    edit(folder / "README.md", "| steps | 800 |", "| steps | 80 |")
    assert wrong(folder) == ["card: Training"]
