"""Building blocks of models: thin modules over the kernels and torch."""
