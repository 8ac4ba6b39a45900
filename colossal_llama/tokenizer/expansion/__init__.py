"""Expansion of a BPE vocabulary by given pieces."""
