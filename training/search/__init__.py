"""Search among the children of a trained super-net under a budget."""
