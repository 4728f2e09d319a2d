"""Teachers, and training with them (5.4)."""
