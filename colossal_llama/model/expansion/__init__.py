"""Rows for new tokens: planned, initialised, written."""
