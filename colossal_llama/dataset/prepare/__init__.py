"""Preparation: from raw files to bucketed parts on disk."""
