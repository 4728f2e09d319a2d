"""Search and training of MAGIC encoders: spaces, samplers, costs, trainer, search and the command line."""
