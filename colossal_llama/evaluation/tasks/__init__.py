"""Benchmarks: their files, read into subjects of questions."""
