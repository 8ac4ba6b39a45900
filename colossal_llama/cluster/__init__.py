"""Checks of several hosts before a run: surveys over ssh, their comparison, an all-reduce."""
