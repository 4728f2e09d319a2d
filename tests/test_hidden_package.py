"""A file of a user's that is called training.py hides the package; whoever meets that is told so in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parent.parent
FROM_TRAINING = "from modeling_magic import MagicConfig\nfrom training import load_preset\n"


def run(*command: str | Path, cwd: Path | None = None, **variables: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *command], capture_output=True, text=True, env=environment, cwd=cwd)


@pytest.mark.slow
def test_a_script_beside_a_training_file_is_told_what_hides_the_package(tmp_path):
    (tmp_path / "training.py").write_text("epochs = 3\n")
    (tmp_path / "script.py").write_text(FROM_TRAINING)
    done = run(tmp_path / "script.py")
    assert done.returncode == 1
    assert done.stderr.strip().splitlines()[-1] == (
        f"{tmp_path / 'training.py'} hides the package `training` of magic-nas; rename that file"
    )


def test_a_script_called_training_is_told_so(tmp_path):
    (tmp_path / "training.py").write_text(FROM_TRAINING)
    done = run(tmp_path / "training.py")
    assert done.returncode == 1
    assert "hides the package `training` of magic-nas" in done.stderr.strip().splitlines()[-1]


@pytest.mark.slow
def test_other_errors_and_a_users_own_names_are_left_alone(tmp_path):
    (tmp_path / "training.py").write_text("epochs = 3\n")
    (tmp_path / "own.py").write_text(
        "import modeling_magic\nfrom training import epochs\nprint(epochs)\nimport nowhere\n"
    )
    done = run(tmp_path / "own.py")
    assert done.stdout == "3\n"
    assert done.stderr.strip().splitlines()[-1] == "ModuleNotFoundError: No module named 'nowhere'"


def test_the_command_names_what_hides_the_package_and_runs_none_of_it(tmp_path):
    (tmp_path / "training.py").write_text("print('ran')\n")
    call = "from magic_nas import main; main()"
    done = run("-c", call, cwd=tmp_path, PYTHONPATH=os.pathsep.join([str(tmp_path), str(ROOT)]))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(f"magic-nas: error: {tmp_path / 'training.py'} is found in place of the package")
    assert len(done.stderr.strip().splitlines()) == 1
    (tmp_path / "training.py").unlink()
    (tmp_path / "training").mkdir()
    done = run("-c", call, cwd=tmp_path, PYTHONPATH=str(ROOT))
    # A folder without __init__.py hides nothing.
    assert "is found in place" not in done.stderr
    (tmp_path / "linked").symlink_to(ROOT)
    version = "import sys; sys.argv[1:] = ['--version']; " + call
    assert run("-c", version, cwd=tmp_path, PYTHONPATH=str(tmp_path / "linked")).stdout.startswith("magic-nas ")
    assert "Usage: " in run("-c", "import sys; sys.argv[1:] = ['--help']; " + call).stdout
