"""Attention over packed rows with document masking."""
