"""Checkpoints: state, saving, discovery and restoring."""
