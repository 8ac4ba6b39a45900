"""The label that stands for "no target", in data and in losses."""

IGNORED_LABEL = -100
"""Leaves a position out of the loss: the default `ignore_index` of PyTorch's cross-entropy."""
