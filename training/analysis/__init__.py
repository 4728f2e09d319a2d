"""Effects of weight sharing: interference, and the ranking of children compared with training them alone (3, 5.2)."""
