"""transformers' own tests of models and configurations, run on MAGIC children and on a super-net.

The tests are those of the installed version, from its source distribution, which is fetched when this file runs.
"""

import fnmatch
import importlib
import os
import re
import subprocess
import sys
import tarfile
import unittest
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import transformers
from toy import toy_config
from transformers.models.auto import modeling_auto

from modeling_magic import (
    MagicConfig,
    MagicForMaskedLM,
    MagicForMultipleChoice,
    MagicForPreTraining,
    MagicForQuestionAnswering,
    MagicForSequenceClassification,
    MagicForTokenClassification,
    MagicModel,
)


pytestmark = pytest.mark.slow

MODELS: dict[str, list[list[str]]] = {
    "mixed": [["MHA4"], ["CONV3"], ["FFN"]],
    "convolution first": [["CONV5"], ["FFN"], ["MHA4"]],
    "no attention": [["CONV3"], ["FFN"]],
    "super-net": [["MHA4", "FFN", "CONV3"], ["MHA4", "CONV5"], ["FFN", "SKIP"], ["CONV3", "FFN", "MHA2"], ["SKIP"]],
}
# What the super-net is run as.
PATH = ("CONV3", "MHA4", "SKIP", "FFN", "SKIP")

_GPU = "needs an accelerator"
_FLASH = "needs a flash attention package, for an accelerator"
_DEEPSPEED = "needs deepspeed"
_COMPOSITE = "for models made of several, with configurations inside the configuration"
_EXPERTS = "for mixtures of experts"
_ROTARY = "for rotary positions; these are learned ones"
_RENAMES = "for models whose parameters are renamed while loading; these are saved as they are called"
_PRECISION = "for models that keep some modules in float32; these have none"
_PLAN = "for models with a plan for tensor parallelism; these have none"
# Every skip of a common test, by a name or a pattern of names. These tests see for themselves that they do not apply,
# and run where they do.
SKIPS: dict[str, str] = {
    "test_attn_implementation_composite_models": _COMPOSITE,
    "test_can_load_from_already_mapped_keys": _RENAMES,
    "test_can_load_with_device_context_manager": _GPU,
    "test_can_load_with_global_device_set": _GPU,
    "test_can_set_attention_dynamically_composite_model": _COMPOSITE,
    "test_causal_lm_loss_honors_shift_labels": "for decoders",
    "test_cpu_offload": _GPU,
    "test_disk_offload_*": _GPU,
    "test_eager_matches_batched_and_grouped_inference_*": _EXPERTS,
    "test_encoder_decoder_loss_no_double_shift": "for encoder-decoders",
    "test_flash_attn_*": _FLASH,
    "test_flex_attention_with_grads": _GPU,
    "test_internal_model_config_and_subconfig_are_same": _COMPOSITE,
    "test_keep_in_fp32_modules*": _PRECISION,
    "test_kernels_can_load_without_crashing": "needs the kernels package and an accelerator",
    "test_model_parallelism": _GPU,
    "test_model_rope_*": _ROTARY,
    "test_moe_models_record_router_logits": _EXPERTS,
    "test_output_router_logits_from_config": _EXPERTS,
    "test_resize_embeddings_untied_with_deepspeed*": _DEEPSPEED,
    "test_resize_position_vector_embeddings": "the position table cannot be resized, as BERT's cannot",
    "test_resize_tokens_embeddings_with_deepspeed*": _DEEPSPEED,
    "test_reverse_loading_mapping": _RENAMES,
    "test_sdpa_can_compile_dynamic": _GPU,
    "test_sdpa_can_dispatch_composite_models": _COMPOSITE,
    "test_sdpa_can_dispatch_on_flash": _GPU,
    "test_sliding_window_mask": "for attention within a window; here every token sees the whole sequence",
    "test_tied_head_has_a_tp_plan_entry": _PLAN,
    "test_torch_compile_for_training": _GPU,
    "test_tp_plan_matches_params": _PLAN,
    "test_vision_axial_rope": _ROTARY,
}
# Those of one model only. These tests are not run on it.
SKIPS_OF_MODEL: dict[str, dict[str, str]] = {
    "no attention": {
        "test_attention_outputs": "there is none to return",
        "test_eager_matches_sdpa_inference_*": "there is none to compare",
        "test_sdpa_can_dispatch_non_composite_models": "there is none to dispatch",
    },
    "super-net": {
        "test_eager_matches_sdpa_inference_*": "passes input ids only, where a super-net has to be told the child",
        "test_load_with_mismatched_shapes": "ends in a call with input ids only, as above",
    },
}

# By the names in these tables the common tests choose inputs and labels.
TABLES: dict[str, Any] = {
    "MODEL_MAPPING_NAMES": "MagicModel",
    "MODEL_FOR_MASKED_LM_MAPPING_NAMES": "MagicForMaskedLM",
    "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES": "MagicForSequenceClassification",
    # The discriminator's labels have the same form, one for each token.
    "MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES": ("MagicForTokenClassification", "MagicForPreTraining"),
    "MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES": "MagicForQuestionAnswering",
    "MODEL_FOR_MULTIPLE_CHOICE_MAPPING_NAMES": "MagicForMultipleChoice",
}

NO_FILE = 3
# `pip download` would run a source distribution's setup. This takes the file only, from where pip is set up to look.
DOWNLOAD = f"""
import sys
from pip._internal.commands import create_command
from pip._vendor.requests import RequestException
name, version, suffix, target = sys.argv[1:]
command = create_command("download")
options, _ = command.parse_args(["--retries", "1", "--timeout", "30", name])
with command.main_context():
    session = command.get_default_session(options)
    found = command._build_package_finder(options, session).find_all_candidates(name)
    links = [item.link for item in found if str(item.version) == version and item.link.filename.endswith(suffix)]
    try:
        response = session.get(links[0].url_without_fragment)
        response.raise_for_status()
    except (IndexError, RequestException):
        sys.exit({NO_FILE})
    with open(target, "wb") as file:
        file.write(response.content)
"""

# What the tests import and the source distribution lacks.
MISSING = {
    "exporters/test_export.py": "class ExportTesterMixin: pass",
    "generation/test_utils.py": "class GenerationTesterMixin: pass",
    # Fields of every configuration, with other values than the defaults.
    "utils/test_configuration_utils.py": """config_common_kwargs = {
        "dtype": "float16",
        "return_dict": False,
        "output_attentions": True,
        "output_hidden_states": True,
        "chunk_size_feed_forward": 3,
        "architectures": ["MagicModel"],
        "id2label": {0: "no", 1: "yes", 2: "perhaps"},
        "label2id": {"no": 0, "yes": 1, "perhaps": 2},
        "problem_type": "single_label_classification",
    }""",
}


def _download(name: str, version: str, suffix: str, target: Path) -> None:
    command = [sys.executable, "-c", DOWNLOAD, name, version, suffix, str(target)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    if run.returncode == NO_FILE:
        pytest.skip(f"no network: pip cannot reach the {suffix} of {name} {version}")
    assert run.returncode == 0, run.stderr


@pytest.fixture(scope="module")
def common(request, tmp_path_factory) -> Iterator[tuple[Any, Any]]:
    """The modules test_modeling_common and test_configuration_common; our classes are in transformers' tables."""
    pytest.importorskip("pip")
    folder = tmp_path_factory.mktemp("common")
    archive, wheel = folder / "transformers.tar.gz", folder / "parameterized.whl"
    _download("transformers", transformers.__version__, ".tar.gz", archive)
    _download("parameterized", "0.9.0", ".whl", wheel)
    package = folder / "common_tests"
    for name, text in MISSING.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    (package / "__init__.py").touch()
    with tarfile.open(archive) as source:
        for name in ("test_modeling_common.py", "test_configuration_common.py"):
            file = source.extractfile(f"transformers-{transformers.__version__}/tests/{name}")
            assert file is not None
            text = file.read().decode()
            (package / name).write_text(text)
            # `order` comes with one of the decorators.
            for mark in {*re.findall(r"\bmark\.(\w+)", text), "order"}:
                request.config.addinivalue_line("markers", f"{mark}: of transformers' own tests")
    with ExitStack() as stack:
        stack.enter_context(mock.patch.object(sys, "path", [str(folder), str(wheel), *sys.path]))
        # transformers starts pytest anew for tests that it wants in a process of their own, unless this is set.
        stack.enter_context(mock.patch.dict(os.environ, {"_INSIDE_SUB_PROCESS": "1"}))
        for table, names in TABLES.items():
            stack.enter_context(mock.patch.dict(getattr(modeling_auto, table), {"magic": names}))
        modeling = importlib.import_module("common_tests.test_modeling_common")
        yield modeling, importlib.import_module("common_tests.test_configuration_common")
    for name in [name for name in sys.modules if name.partition(".")[0] in ("common_tests", "parameterized")]:
        del sys.modules[name]


class ModelTester:
    """What the common tests ask for a configuration and inputs."""

    batch_size, seq_length, num_choices, hidden_size, num_attention_heads = 13, 7, 4, 32, 4
    is_training = True

    def __init__(self, modeling: Any, operators: list[list[str]]):
        self.modeling, self.operators = modeling, operators
        config = self.get_config()
        self.architecture = PATH if config.is_supernet else None
        run = self.architecture or [layer[0] for layer in operators]
        # The common tests expect so many attentions, and one hidden state more unless told otherwise.
        self.num_hidden_layers = sum(name.startswith("MHA") for name in run)
        self.expected_num_hidden_layers = len(operators) + 1

    def get_config(self) -> MagicConfig:
        return toy_config(candidate_operators=self.operators, hidden_size=self.hidden_size, num_labels=3)

    def prepare_config_and_inputs_for_common(self) -> tuple[MagicConfig, dict[str, Any]]:
        shape = (self.batch_size, self.seq_length)
        inputs: dict[str, Any] = {
            "input_ids": self.modeling.ids_tensor(shape, 100),
            "token_type_ids": self.modeling.ids_tensor(shape, 2),
            "attention_mask": self.modeling.random_attention_mask(shape),
        }
        if self.architecture is not None:
            inputs["architecture"] = self.architecture
        return self.get_config(), inputs


def _case(common: tuple[Any, Any], operators: list[list[str]]) -> type[unittest.TestCase]:
    """Returns the common tests for a model of these operators."""
    modeling, configuration = common
    mixin: Any = modeling.ModelTesterMixin

    class MagicModelTest(mixin, unittest.TestCase):
        all_model_classes = (
            MagicModel,
            MagicForMaskedLM,
            MagicForPreTraining,
            MagicForSequenceClassification,
            MagicForTokenClassification,
            MagicForQuestionAnswering,
            MagicForMultipleChoice,
        )
        has_attentions = any(name.startswith("MHA") for layer in operators for name in layer)
        # Operators beside the path of a super-net have none.
        test_all_params_have_gradient = all(len(layer) == 1 for layer in operators)
        # Without it the test of initialisation takes a file without a year in its head for an old one and is skipped.
        test_can_init_all_missing_weights_before_2023 = True

        def setUp(self):
            torch.manual_seed(0)
            modeling.global_rng.seed(0)
            self.model_tester = ModelTester(modeling, operators)

        def test_config(self):
            configuration.ConfigTester(
                self,
                config_class=MagicConfig,
                candidate_operators=operators,
                hidden_size=32,
            ).run_common_tests()

    return MagicModelTest


def _matching(names: Iterable[str], skips: dict[str, str]) -> set[str]:
    return {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in skips)}


@pytest.mark.parametrize("model", MODELS)
def test_the_common_tests_pass_or_are_explained(common, model):
    case = _case(common, MODELS[model])
    names = unittest.defaultTestLoader.getTestCaseNames(case)
    not_run = _matching(names, SKIPS_OF_MODEL.get(model, {}))
    result = unittest.TestResult()
    unittest.TestSuite(case(name) for name in names if name not in not_run).run(result)
    failures = [f"{test}\n{trace}" for test, trace in [*result.failures, *result.errors]]
    assert not failures, "\n".join(failures)
    # Tests of several classes are skipped class by class, under names with an addition.
    skipped = {test.id().split()[0].rpartition(".")[2] for test, _ in result.skipped}
    assert skipped == _matching(skipped, SKIPS)


def test_every_explanation_is_of_a_test(common):
    names = unittest.defaultTestLoader.getTestCaseNames(_case(common, MODELS["mixed"]))
    patterns = [pattern for skips in (SKIPS, *SKIPS_OF_MODEL.values()) for pattern in skips]
    assert [pattern for pattern in patterns if not _matching(names, {pattern: ""})] == []
