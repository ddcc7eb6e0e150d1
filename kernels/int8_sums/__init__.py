"""A part of the depth of a linear layer of 8-bit integers: sums that are not yet scaled.

    q[t, k] = x[t, k] / row_scales[t], rounded to whole numbers;   row_scales[t] = tops[t] / 127,   1 where that is 0
    sums[t, n] = sum_k q[t, k] w[n, k]

over the inputs that are here, where tops[t] is the largest magnitude of the whole row, which may be elsewhere. Whole
numbers within 2^24 are exact in fp32: the sums of all parts, added up and then scaled by row_scales and the weight's
scales, are to the last bit what `kernels.int8_linear` makes of the whole. For CPUs; no selection by device.
"""
