"""The search space: its children, how they are drawn, what they cost and which are within a budget."""
