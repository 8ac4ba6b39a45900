"""Fused kernels, and their use in a model."""
