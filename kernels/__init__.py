"""Compute kernels, one folder an operation. Only the version stands here: others probe this name."""

__version__ = "0.1.0"
