"""The cell-styled space of supplement D, NAS-Bench-201, for whose children accuracies are published."""
