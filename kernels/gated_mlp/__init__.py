"""A whole gated feed-forward block, after a norm where it has one.

    h[t, :] = norm(x)[t, :] W_gate_up^T + b_gate_up
    y[t, :] = (activation(h[t, :F]) * h[t, F:]) W_down^T + b_down

with the norm of `kernels.linear` and the activations of `kernels.gated_activation`. The contract is that of
`kernels.linear`. There is no selection by device: elsewhere than on a CPU the block is computed in its parts.

Source: GLU variants (arXiv 2002.05202).
"""
