"""Folders of runs: what they were asked to do, where they stand and what came out."""
