"""Training a super-net (3 to 5.1), and evaluating the children in it."""
