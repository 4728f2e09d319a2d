"""The cell-styled space of supplement D, NAS-Bench-201, whose children's accuracy is published."""
