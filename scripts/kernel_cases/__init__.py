"""The same inputs for every implementation of every kernel: for tests, `scripts/bench kernels`, `scripts/gpu_check`."""
