"""What weight sharing does: interference, and ranking against children trained alone (3, 5.2)."""
