"""Triton kernels, nothing else. The only modules that import triton when loaded; launchers load them on use."""
