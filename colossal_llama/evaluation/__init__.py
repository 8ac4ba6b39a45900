"""Evaluation: benchmarks, bits per byte of texts, answers side by side."""
