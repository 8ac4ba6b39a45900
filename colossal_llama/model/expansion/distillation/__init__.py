"""Distillation of the source model into the rows of new tokens."""
