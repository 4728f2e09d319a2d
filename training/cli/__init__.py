"""The command `magic-nas`."""

from .main import main


__all__ = ["main"]
