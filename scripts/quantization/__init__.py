"""Writing quantized checkpoints, and saying what that cost."""
