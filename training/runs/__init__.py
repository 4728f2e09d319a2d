"""Folders of runs: their settings, their progress and their results."""
