"""Fine-tuning on GLUE, a user's own files and SQuAD (5.1)."""
