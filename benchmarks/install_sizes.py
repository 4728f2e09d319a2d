"""Adds up what each extra of the package takes on disk, with all dependencies, from the packages installed here.

    python benchmarks/install_sizes.py [--output FILE.md]

The environment must hold all extras, as the one that `make test` creates does. Nothing is installed or downloaded. A
size is that of the files in a package's record, which include the modules that pip compiles, in whole blocks of the
disk.
"""

import platform
from collections.abc import Iterable, Iterator
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from tables import parser_of, publish


PACKAGE = "magic-nas"
# Packages for the work on this package alone.
NOT_FOR_USERS = {"dev", "docs", "test"}


def requirements(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    """Yields the requirements of an installed package with some of its extras, as they hold on this machine."""
    for line in distribution(name).requires or []:
        requirement = Requirement(line)
        environments = [{"extra": extra} for extra in ("", *extras)]
        if requirement.marker is None or any(map(requirement.marker.evaluate, environments)):
            yield requirement


def dependencies(extras: Iterable[str]) -> set[str]:
    """Returns the names of the package with some of its extras and of all packages that it needs."""
    found: set[tuple[str, frozenset[str]]] = set()
    waiting = [(PACKAGE, frozenset(extras))]
    while waiting:
        if (one := waiting.pop()) not in found:
            found.add(one)
            waiting += [(canonicalize_name(need.name), frozenset(need.extras)) for need in requirements(*one)]
    return {name for name, _ in found}


def size_on_disk(name: str) -> int:
    """Returns the bytes that all files of an installed package take on disk, in whole blocks."""
    paths = [Path(file.locate()) for file in distribution(name).files or []]
    return sum(512 * path.stat().st_blocks for path in paths if path.is_file())


def main() -> None:
    """Prints the table."""
    args = parser_of(__doc__).parse_args()
    declared = distribution(PACKAGE).metadata.get_all("Provides-Extra") or []
    extras = [name for name in declared if name not in NOT_FOR_USERS]
    base = dependencies([])
    sizes = {name: size_on_disk(name) for name in dependencies(extras)}
    rows = []
    for label, names in [(PACKAGE, base), *((f"{PACKAGE}[{extra}]", dependencies([extra])) for extra in extras)]:
        largest = sorted(names - base if names > base else names, key=lambda name: -sizes[name])[:3]
        shown = ", ".join(f"{name} {sizes[name] / 1e6:,.0f}" for name in largest)
        rows.append(f"| `{label}` | {len(names)} | {sum(sizes[name] for name in names) / 1e6:,.0f} | {shown} |")
    publish(
        [
            "# Sizes of an installation",
            "",
            "Megabytes on disk with all dependencies; the largest are those that an extra adds. Python "
            f"{platform.python_version()}, torch {distribution('torch').version}, {platform.system()} "
            f"{platform.machine()}.",
            "",
            "| installed | packages | MB | largest |",
            "| --- | ---: | ---: | --- |",
            *rows,
        ],
        args.output,
    )


if __name__ == "__main__":
    main()
