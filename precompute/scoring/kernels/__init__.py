"""Triton kernels for the arithmetic over the whole vocabulary, for GPUs. What they compute is in `support`."""
