"""The command `magic-nas`, in a module whose name no file of a user's is likely to have."""

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Runs the command line; where another `training` hides the package, one line names it."""
    # Not imported: another's code would run.
    spec = find_spec("training")
    if spec is None or spec.origin is None or Path(spec.origin).parent != Path(__file__).resolve().parent / "training":
        found = spec.origin if spec is not None else "nothing"
        sys.exit(
            f"magic-nas: error: {found} is found in place of the package `training` of magic-nas; rename it, or take "
            f"its folder out of PYTHONPATH"
        )
    from training.cli import main as run

    run()
