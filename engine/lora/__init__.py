"""Low-rank adapters: reading them, holding several at once, and adding them to a model's projections."""
