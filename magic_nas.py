"""The command `magic-nas`, in a module with a name that a user's own file is unlikely to have."""

import sys
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Runs the command line. If another `training` hides the package, exits with one line that names it."""
    # Found without importing it, as importing another package would run its code.
    spec = find_spec("training")
    # A folder without __init__.py has no origin.
    found = "nothing" if spec is None else spec.origin or next(iter(spec.submodule_search_locations or ()), "nothing")
    if Path(found).resolve().parent != Path(__file__).resolve().with_name("training"):
        sys.exit(
            f"magic-nas: error: {found} is found in place of the package `training` of magic-nas; rename it, or "
            f"remove its folder from PYTHONPATH"
        )
    try:
        from training.cli import main as run

        run()
    except KeyboardInterrupt:
        # Before or after the command itself, which prints its own message on how to resume.
        sys.stderr.write("magic-nas: stopped by Ctrl-C\n")
        sys.exit(130)
