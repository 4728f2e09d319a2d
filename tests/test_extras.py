"""What each extra installs is enough for its rooms, and what lacks is named with the extra that has it."""

import configparser
import re
import subprocess
import sys
from pathlib import Path

import pytest

from training.extras import missing_extra


ROOT = Path(__file__).resolve().parent.parent
MODULES = {"scikit-learn": "sklearn", "pyyaml": "yaml", "pillow": "PIL"}
# The rooms that each extra is for; without one, an encoder is loaded, fine-tuned by `Trainer` and pushed, and spaces
# are described.
BASE = ("hub.export", "hub.publish", "hub.convert", "space.describe", "space.limits", "supernet.loading", "cli.main")
ROOMS = {
    "": BASE,
    "finetune": (*BASE, "finetuning", "distillation"),
    "analysis": (*BASE, "analysis", "supernet", "drawing", "hub.figures"),
    "search": (
        *BASE,
        "analysis",
        "compression",
        "finetuning",
        "retraining",
        "search",
        "supernet",
        "cli.demo_from_scratch",
    ),
    "images": ("cells",),
}
# What only an extra of its own installs, and is loaded when it is asked for.
ON_DEMAND = {"ray", "onnx", "onnxruntime", "onnxscript", "sentence_transformers", "tensorboard"}

IMPORTING = """
import importlib, sys
from pathlib import Path
# Neither found nor imported.
sys.modules |= dict.fromkeys({blocked})
import modeling_magic, training
root = Path(training.__file__).parent
for room in {rooms}:
    folder = root / room.replace(".", "/")
    names = [f"{{room}}.{{path.stem}}" for path in sorted(folder.glob("*.py"))] if folder.is_dir() else [room]
    for name in names:
        importlib.import_module(f"training.{{name.removesuffix('.__init__')}}")
"""


def modules_of(requirements: str) -> set[str]:
    names = {line.split(">")[0].split("=")[0].strip().lower() for line in requirements.split("\n") if line.strip()}
    return {MODULES.get(name, name.replace("-", "_")) for name in names}


def extras() -> dict[str, set[str]]:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return {name: modules_of(text) for name, text in config["options.extras_require"].items()}


def importing(blocked: set[str], rooms: tuple[str, ...]) -> subprocess.CompletedProcess:
    code = IMPORTING.format(blocked=blocked, rooms=rooms)
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


@pytest.mark.slow
@pytest.mark.parametrize("extra", ROOMS)
def test_an_extra_is_enough_for_its_rooms(extra):
    declared = extras()
    own = declared.get(extra, set())
    # matplotlib brings Pillow.
    blocked = declared["all"] - own - ({"PIL"} if "matplotlib" in own else set())
    assert blocked >= ON_DEMAND
    done = importing(blocked, ROOMS[extra])
    assert not done.returncode, done.stderr[-2000:]


@pytest.mark.slow
def test_an_extra_is_not_more_than_its_rooms_need():
    # Each of these packages is loaded by a room of the extra.
    for extra, room, module in (("finetune", "finetuning.metrics", "scipy"), ("analysis", "analysis", "matplotlib")):
        assert module in extras()[extra]
        done = importing({module}, (room,))
        assert re.search(rf"ModuleNotFoundError: .*\b{module}\b", done.stderr)


def lacking(name: str, file: str) -> ModuleNotFoundError:
    """The error of an import that a file makes."""
    code = compile(f"raise ModuleNotFoundError('No module named {name}', name={name!r})", file, "exec")
    with pytest.raises(ModuleNotFoundError) as found:
        exec(code)
    return found.value


@pytest.mark.parametrize(
    ("module", "room", "extra"),
    [
        ("datasets", "supernet", "search"),
        ("datasets.features", "finetuning", "finetune"),
        ("sklearn.metrics", "finetuning", "finetune"),
        ("scipy", "analysis", "analysis"),
        ("matplotlib", "hub", "figures"),
        # Not in the extra of the room.
        ("pymoo", "analysis", "search"),
        ("ray", "compression", "ray"),
        ("PIL", "cells", "images"),
        ("datasets", "cells", "images"),
    ],
)
def test_what_lacks_is_named_with_its_extra(module, room, extra):
    line = missing_extra(lacking(module, str(ROOT / "training" / room / "some.py")))
    name = module.partition(".")[0]
    assert line == f"{name} is not installed; install the requirements with: pip install 'magic-nas[{extra}]'"


@pytest.mark.parametrize("name", ["no_such_package", "training", "torch"])
def test_other_errors_are_none_of_an_extra(name):
    assert missing_extra(lacking(name, "elsewhere.py")) is None
    assert missing_extra(ImportError("cannot import name 'x' from 'scipy'")) is None


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("import training; training.prepare_data", marks=pytest.mark.slow),
        "from training.cli import main; main()",
    ],
)
def test_one_line_names_the_extra(code):
    blocking = IMPORTING.format(blocked={"datasets"}, rooms=())
    arguments = [sys.executable, "-c", blocking + code, "pretrain", "-c", "demo-pretrain", "-o", "unused"]
    done = subprocess.run(arguments, capture_output=True, text=True, cwd=ROOT)
    last = done.stderr.strip().split("\n")[-1]
    assert last.endswith("datasets is not installed; install the requirements with: pip install 'magic-nas[search]'")
