"""The first distillation scripts by their old names: each prints the `quiet train` it is, and runs it."""
