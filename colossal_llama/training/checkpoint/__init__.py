"""Checkpoints: state, way to disk and way back."""
