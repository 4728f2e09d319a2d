"""GLUE, files of one's own and SQuAD (5.1)."""
