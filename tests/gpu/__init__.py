"""The GPU path without a GPU."""
