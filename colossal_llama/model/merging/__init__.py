"""Merging of models: weights added and subtracted, rows matched by token."""
