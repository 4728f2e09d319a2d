"""Tests stand where the rooms of `training` are: a module has a file of tests, and a file tests a module.

The tests of training/ROOM/MODULE.py are in tests/ROOM/test_MODULE.py, or in tests/ROOM/test_ROOM_MODULE.py: so they
must be where two rooms have a module of that name, since pytest knows files of tests by their last name alone. The
tests of training/MODULE.py are in tests/test_MODULE.py.
"""

from collections import Counter
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
TESTS = Path(__file__).resolve().parent
# Modules whose tests stand in another file, and in which.
ELSEWHERE = {
    "distillation/trainers": "distillation/test_distillation.py",
    "retraining/rtd_model": "retraining/test_rtd.py",
    "supernet/anchors": "supernet/test_trainer.py",
    "supernet/arguments": "supernet/test_trainer.py",
    "supernet/blocks": "supernet/test_blockwise.py",
    "supernet/runners": "supernet/test_evaluation.py",
    "supernet/search_trainer": "supernet/test_trainer.py",
    "supernet/setup": "supernet/test_trainer.py",
    "supernet/supernet_options": "supernet/test_trainer.py",
}
# Files in a room that are no module's, and why.
OTHERS = {
    "distillation/test_distillation.py": "objectives and both trainers",
}

MODULES = sorted(
    str(path.relative_to(ROOT / "training").with_suffix(""))
    for path in (ROOT / "training").rglob("*.py")
    if path.name != "__init__.py"
)
FILES = sorted(str(path.relative_to(TESTS)) for path in TESTS.rglob("test_*.py"))
ROOMS = sorted({name.split("/")[0] for name in MODULES if "/" in name})
OF_ROOMS = [name for name in FILES if name.split("/")[0] in ROOMS]


def files_of(module: str, modules: list[str]) -> list[str]:
    """The files that the tests of a module may be in, the one to write first."""
    room, _, name = module.rpartition("/")
    if not room:
        return [f"test_{name}.py"]
    own = f"{room}/test_{room}_{name}.py"
    alone = Counter(Path(other).name for other in modules)[name] == 1
    return [f"{room}/test_{name}.py", own] if alone else [own]


def is_missing(module: str, modules: list[str], files: list[str]) -> bool:
    return not set(files_of(module, modules)) & set(files)


def is_of_none(file: str, modules: list[str]) -> bool:
    """Whether a file is no module's."""
    room = file.split("/")[0]
    return file not in {
        name for module in modules if module.split("/")[0] == room for name in files_of(module, modules)
    }


def test_every_module_has_its_file_of_tests():
    missing = [
        f"training/{module}.py has no tests; write tests/{files_of(module, MODULES)[0]}"
        for module in MODULES
        if module not in ELSEWHERE and is_missing(module, MODULES, FILES)
    ]
    assert not missing, "\n".join(missing)


def test_every_file_of_a_room_is_a_modules():
    wrong = [
        f"tests/{file} is no module's; call it tests/ROOM/test_MODULE.py, or tests/ROOM/test_ROOM_MODULE.py where "
        f"several rooms have a module of that name"
        for file in OF_ROOMS
        if file not in OTHERS and is_of_none(file, MODULES)
    ]
    assert not wrong, "\n".join(wrong)


def test_exceptions_are_needed():
    """What has its place by now is no exception any more."""
    assert [module for module in ELSEWHERE if not is_missing(module, MODULES, FILES)] == []
    assert [file for file in OTHERS if not is_of_none(file, MODULES)] == []
    assert set(ELSEWHERE) <= set(MODULES)
    assert {*ELSEWHERE.values(), *OTHERS} <= set(FILES)


def test_last_names_are_unique():
    twice = [name for name, count in Counter(Path(file).name for file in FILES).items() if count > 1]
    assert not twice, f"pytest takes files of tests of one name for one: {', '.join(twice)}"


def test_rooms_have_no_other_folders():
    """But that of modeling_magic, and what runs on an accelerator."""
    folders = {path.name for path in TESTS.iterdir() if path.is_dir() and any(path.glob("test_*.py"))}
    assert folders - {"gpu", "model"} == set(ROOMS)


def test_the_rule_on_made_up_rooms():
    modules = ["files", "data/text", "data/settings", "hub/settings", "search/run"]
    assert files_of("files", modules) == ["test_files.py"]
    assert files_of("data/text", modules) == ["data/test_text.py", "data/test_data_text.py"]
    assert files_of("hub/settings", modules) == ["hub/test_hub_settings.py"]
    assert files_of("search/run", modules) == ["search/test_run.py", "search/test_search_run.py"]
    files = ["test_files.py", "data/test_data_text.py", "hub/test_settings.py"]
    assert [module for module in modules if is_missing(module, modules, files)] == [
        "data/settings",
        "hub/settings",
        "search/run",
    ]
    assert not is_of_none("data/test_text.py", modules)
    assert is_of_none("hub/test_text.py", modules)
    assert is_of_none("hub/test_settings.py", modules)
