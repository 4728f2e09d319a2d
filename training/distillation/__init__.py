"""Teachers, and training with a teacher (5.4)."""
