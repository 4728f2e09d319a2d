"""The search space: its children, how they are drawn, what they cost, and which of them are within a budget."""
