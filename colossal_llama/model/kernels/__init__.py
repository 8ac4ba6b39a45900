"""Fused kernels, and their place in a model."""
