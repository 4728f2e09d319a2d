"""The command `magic-nas`, in a module whose name no file of a user's is likely to have."""

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Runs the command line; where another `training` hides the package, one line names it."""
    # Not imported: another's code would run.
    spec = find_spec("training")
    # A folder without __init__.py has no origin of its own.
    found = "nothing" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "nothing")
    if Path(found).resolve().parent != Path(__file__).resolve().with_name("training"):
        sys.exit(
            f"magic-nas: error: {found} is found in place of the package `training` of magic-nas; rename it, or take "
            f"its folder out of PYTHONPATH"
        )
    try:
        from training.cli import main as run

        run()
    except KeyboardInterrupt:
        # Before or after the command itself, which says how to go on.
        sys.stderr.write("magic-nas: stopped by Ctrl-C\n")
        sys.exit(130)
