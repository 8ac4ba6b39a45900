"""Preparation of data sets: from raw files to parts on disk."""
