"""The reference of options says what the fields say."""

from dataclasses import fields

import pytest
from transformers import TrainingArguments

from training.cli.reference import ALL_SETTINGS, COLUMNS, options_page
from training.options import options_of
from training.runs.settings import TRAINING_FLAGS
from training.supernet.supernet_options import SupernetOptions


def rows(page: str) -> list[list[str]]:
    lines = [line for line in page.splitlines() if line.startswith("| `")]
    return [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines]


@pytest.mark.parametrize("kind", ALL_SETTINGS, ids=lambda kind: kind.command)
def test_a_command_shows_every_field(kind):
    page = options_page(kind.command)
    keys = {row[0].strip("`") for row in rows(page)}
    for item, facts in options_of(kind):
        shown = {key for key in keys if key == item.name or key.startswith(f"{item.name}.")}
        assert shown or facts.is_inline or item.name == "training_arguments", item.name
    assert all(len(row) == len(COLUMNS) for row in rows(page))


def test_a_row_tells_type_unit_default_bounds_and_flag():
    found = {row[0]: row for row in rows(options_page("pretrain"))}
    assert found["`data.block_size`"][1:3] == ["int (tokens)", ""]
    assert "Default: 128, or " in found["`data.block_size`"][3]
    assert "Must be at least 8." in found["`data.block_size`"][3]
    assert found["`training_arguments.sampler`"][2] == "uniform"
    assert "One of" not in found["`training_arguments.sampler`"][3], "the text names all choices"
    assert "One of train, validation." in options_page("analyze interference")
    assert found["`preset`"][3].endswith("`--preset`")


def test_words_that_begin_a_command_show_its_family():
    assert options_page("retrain").count("## magic-nas retrain") == 3
    assert options_page("retrain --objective rtd").count("## magic-nas retrain") == 1
    assert options_page("analyze").count("## magic-nas analyze") == 5
    with pytest.raises(ValueError, match="`magic-nas describe` takes no recipe; choose one of: compress, pretrain, "):
        options_page("describe")


def test_the_whole_page_describes_what_commands_share_once():
    page = options_page()
    keys = [row[0] for row in rows(page)]
    assert keys.count("`data.block_size`") == 1
    assert keys.count("`budget.max_params`") == 1
    for item, _ in options_of(SupernetOptions):
        assert keys.count(f"`training_arguments.{item.name}`") == 1
    for kind in ALL_SETTINGS:
        assert f"## magic-nas {kind.command}\n" in page


def test_defaults_of_transformers_are_told_as_they_are():
    defaults = {item.name: item.default for item in fields(TrainingArguments)}
    for name, argument in TRAINING_FLAGS.items():
        if name != "max_steps":
            assert argument.default == defaults[name]
    assert defaults["max_steps"] == -1
