"""Quantized weights: what a checkpoint or an option asks for, and how a model's linear layers come to have them."""
