"""A linear layer of 8-bit integers, after a norm where it has one, on packed weights.

Computes scheme `int8` of `kernels.quantized_linear`, whose reference it is tested against, behind the norm of
`kernels.linear`. There is no selection by device: elsewhere than on a CPU, that operation serves.
"""
