"""What the training of a super-net refuses, in Python as in a recipe, and that its arguments are options."""

from dataclasses import fields

import pytest
from transformers import HfArgumentParser

from training.options import option_of
from training.supernet.arguments import MagicTrainingArguments
from training.supernet.settings import BlockwiseSettings, PretrainSettings
from training.supernet.supernet_options import SupernetOptions


@pytest.mark.parametrize(
    ("kind", "values", "message"),
    [
        (PretrainSettings, {"preset": None}, "preset is None; it must be text"),
        (PretrainSettings, {"mlm_probability": 0}, "mlm_probability is 0; it must be between 0 and 1"),
        (PretrainSettings, {"training_arguments": {"aligment": "none"}}, "did you mean 'alignment'"),
        (PretrainSettings, {"training_arguments": {"shrink": "yes"}}, "shrink is 'yes'; it must be true or false"),
        (BlockwiseSettings, {"num_blocks": 0}, "num_blocks is 0; it must be at least 1"),
        (BlockwiseSettings, {"num_ranked": 0}, "num_ranked is 0; it must be at least 1"),
    ],
)
def test_what_is_refused(kind, values, message):
    with pytest.raises(ValueError, match=message):
        kind(**values)


def test_the_parser_of_transformers_takes_the_arguments(tmp_path):
    parser = HfArgumentParser(MagicTrainingArguments)
    given = ["--output_dir", str(tmp_path), "--sampler", "uniform", "--max_params", "5", "--report_to", "none"]
    (args,) = parser.parse_args_into_dataclasses(given)
    assert (args.sampler, args.max_params) == ("uniform", 5)


def test_training_arguments_are_the_options_and_those_of_transformers(tmp_path):
    own = {item.name for item in fields(MagicTrainingArguments) if option_of(item) is not None}
    assert own == {item.name for item in fields(SupernetOptions)}
    # The first field is still the folder, which is given by its place.
    args = MagicTrainingArguments(str(tmp_path), max_params=8e6, report_to="none")
    assert args.output_dir == str(tmp_path)
    assert (type(args.max_params), args.max_params) == (int, 8_000_000)
    assert args.ddp_find_unused_parameters is True
    assert MagicTrainingArguments(str(tmp_path), ddp_find_unused_parameters=False).ddp_find_unused_parameters is False
