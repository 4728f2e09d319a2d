"""The presets of hub_configs load, know every key, and have the sizes that hub_configs/README.md states.

magic-analysis matches the parameter counts of its operators (3.1 of the paper: "similar parameter sizes"). With hidden
size H and inner size I, weights and biases of the projections and of the layer norm together are

    MHA   4HI + 3I + 3H          query, key, value H -> I, back I -> H
    FFN   2HI +  I + 3H          H -> I -> H
    CONV  2HI + (k + 2)I + 3H    H -> I, kernel k over each of the I channels, I -> H

The FFN of BERT, H = 768 and I = 3072, is the measure. MHA has twice the projections, so half the inner size, 1536,
which 6 and 8 heads divide; CONV has the projections of FFN, so 3072. FFN' is the paper's "slightly larger" FFN: 3200.
"""

import json
import math
import string
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from toy_hub import MIXED, export_child, export_tokenizer
from transformers import BertConfig, BertModel, RobertaConfig, RobertaModel

from modeling_magic import MagicConfig, MagicModel, parse_operator
from training.hub.export import export_model
from training.hub.presets import load_preset, preset_names


ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "hub_configs"

# Children, and parameters of the encoder with every candidate in it, heads left out, the pooler counted where there is
# one.
SIZES = {
    "magic-base": (4**26, 269_822_976),
    "magic-compact": (4**26, 125_356_032),
    "magic-analysis": (6**12, 366_729_216),
    "magic-tiny": (4**6, 2_137_856),
    "magic-mini": (4**8, 3_194_368),
    "magic-micro": (4**4, 405_504),
    "magic-micro8": (4**8, 675_584),
    "bert-base": (1, 109_482_240),
    "roberta-base": (1, 124_645_632),
    "electra-base": (1, 108_891_648),
}
PRESETS = sorted(path.stem for path in FOLDER.glob("*.json"))
every_preset = pytest.mark.parametrize("name", PRESETS)


def load(name: str) -> MagicConfig:
    return MagicConfig.from_pretrained(FOLDER / f"{name}.json")


def build(name: str) -> MagicModel:
    with torch.device("meta"):
        return MagicModel(load(name))


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def operator_size(name: str, config: MagicConfig) -> int:
    """Parameters of an operator by the formulas above."""
    spec = parse_operator(name)
    hidden = config.hidden_size
    inner = spec.inner_size or (config.intermediate_size if spec.kind == "FFN" else hidden)
    if spec.kind == "MHA":
        return 4 * hidden * inner + 3 * inner + 3 * hidden
    per_channel = 1 if spec.kind == "FFN" else spec.size + 2
    return 2 * hidden * inner + per_channel * inner + 3 * hidden


def test_every_preset_has_a_stated_size():
    assert set(SIZES) == set(PRESETS)


@every_preset
def test_has_no_unknown_key(name):
    keys = set(json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8")))
    assert keys <= {field.name for field in fields(MagicConfig)} | {"model_type"}


@every_preset
def test_says_its_model_type(name):
    # A bare file loads whatever its type; as the config.json of a model directory it must say it.
    assert json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))["model_type"] == MagicConfig.model_type


@every_preset
def test_number_of_children(name):
    assert math.prod(len(layer) for layer in load(name).candidate_operators) == SIZES[name][0]


@every_preset
def test_parameter_count(name):
    assert count(build(name)) == SIZES[name][1]


@every_preset
def test_readme_states_the_size(name):
    children, parameters = SIZES[name]
    rows = [line for line in (FOLDER / "README.md").read_text(encoding="utf-8").splitlines() if f"| {name} |" in line]
    assert len(rows) == 1
    assert f"| {children:,} |" in rows[0]
    assert f"| {parameters:,} |" in rows[0]


@every_preset
def test_operators_have_the_size_of_the_formula(name):
    config = load(name)
    for layer, candidates in zip(build(name).encoder.layer, config.candidate_operators, strict=True):
        for operator in candidates:
            assert count(layer.operators[operator]) == operator_size(operator, config)


def test_patterns_have_as_many_parameters_as_their_models():
    with torch.device("meta"):
        bert = BertModel(BertConfig())
        roberta = RobertaModel(RobertaConfig(vocab_size=50265, max_position_embeddings=514, type_vocab_size=1))
    assert count(build("bert-base")) == count(bert)
    assert count(build("roberta-base")) == count(roberta)


def test_main_space_holds_the_bert_pattern():
    space = load("magic-base").candidate_operators
    pattern = [layer[0] for layer in load("bert-base").candidate_operators]
    assert all(operator in candidates for operator, candidates in zip(pattern, space, strict=False))


def test_compact_space_differs_in_width_only():
    base, compact = load("magic-base"), load("magic-compact")
    assert compact.hidden_size == 512
    assert compact.num_hidden_layers == base.num_hidden_layers
    # 12 heads do not divide 512; 8 heads keep their size of 64.
    assert base.hidden_size // 12 == compact.hidden_size // 8
    assert base.intermediate_size / base.hidden_size == compact.intermediate_size / compact.hidden_size
    renamed = [[name.replace("MHA8", "MHA12") for name in layer] for layer in compact.candidate_operators]
    assert renamed == base.candidate_operators


def test_analysis_operators_match_in_size():
    config = load("magic-analysis")
    assert len({tuple(layer) for layer in config.candidate_operators}) == 1
    sizes = {name: operator_size(name, config) for name in config.candidate_operators[0]}
    larger = sizes.pop("FFNx3200")
    assert max(sizes.values()) / min(sizes.values()) < 1.005
    assert larger / sizes["FFN"] == pytest.approx(1.0416, abs=1e-4)


def test_model_card_leaves_no_template_text():
    assert (ROOT / "model_card.md").resolve() == FOLDER / "model_card.md"
    template = string.Template((FOLDER / "model_card.md").read_text(encoding="utf-8"))
    assert template.is_valid()
    values = {name: f"{name}: value" for name in template.get_identifiers()}
    filled = template.substitute(values)
    assert "$" not in filled
    assert all(value in filled for value in values.values())
    assert ModelCard(filled).data.to_dict() == {"metadata": "value"}


@pytest.fixture(scope="module")
def tokenizer():
    return export_tokenizer()


@pytest.fixture
def child(supernet, tokenizer):
    return export_child(supernet, tokenizer)


def test_presets_by_name_by_file_and_by_folder(child, tokenizer, tmp_path):
    assert "magic-base" in preset_names()
    assert load_preset("magic-base").num_hidden_layers == 26
    folder = export_model(child, tokenizer, tmp_path / "model", {})
    assert load_preset(str(folder)).candidate_operators == [[name] for name in MIXED]
    assert load_preset(str(folder / "config.json")).hidden_size == 32


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"model_type": "magic", "hidden_sise": 3}', "unknown keys: hidden_sise; known: .*hidden_size"),
        ('{"model_type": "bert"}', "its model_type is not 'magic'"),
        ('{"hidden_size": 3', "is not JSON"),
        ("[]", "not the configuration of a MAGIC model"),
        ('{"model_type": "magic", "hidden_size": "big"}', "hidden_size"),
        ('{"model_type": "magic", "candidate_operators": [["MHA5"]]}', "5 heads, which do not divide"),
        ('{"model_type": "magic", "transformers_version": "5", "id2label": ["a"]}', "has an invalid value"),
        ('{"model_type": "magic", "transformers_version": "5", "num_labels": "x"}', "has an invalid value"),
        ('{"model_type": "magic", "transformers_version": "5", "dtype": "nope"}', "has an invalid value"),
        (b"\xff\xfe", "is not UTF-8 text"),
    ],
)
def test_wrong_presets_are_refused(tmp_path, text, message):
    path = tmp_path / "preset.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=message) as error:
        load_preset(str(path))
    assert "\n" not in str(error.value)


def test_unknown_presets_are_listed():
    with pytest.raises(ValueError, match=r"unknown preset 'magic-huge'; choose one of bert-base, .*magic-tiny"):
        load_preset("magic-huge")
