"""A whole gated feed-forward block of 8-bit integers, after a norm where it has one.

Computes `kernels.gated_mlp` with both products as in `kernels.int8_linear`. There is no selection by device.
"""
