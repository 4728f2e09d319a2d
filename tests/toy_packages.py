"""An installed distribution made of the files that a test gives it."""

from collections.abc import Callable
from pathlib import Path

import pytest


def installer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Returns what installs a distribution `prosaic`: its files by name, its version."""
    site = tmp_path / "site"
    monkeypatch.setenv("MAGIC_CACHE", str(tmp_path / "magic"))
    monkeypatch.syspath_prepend(str(site))

    def install(files, version="1.0"):
        info = site / "prosaic.dist-info"
        info.mkdir(parents=True, exist_ok=True)
        for name, content in files.items():
            path = site / "prosaic" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: prosaic\nVersion: {version}\n")
        # Not in order, and with a file that was deleted since.
        names = [*sorted(files, reverse=True), "deleted.py"]
        (info / "RECORD").write_text("".join(f"prosaic/{name},,\n" for name in names) + "../../bin/prosaic.py,,\n")

    return install
