"""Search from a checkpoint: a smaller encoder that does what the checkpoint does, found and distilled in minutes."""
