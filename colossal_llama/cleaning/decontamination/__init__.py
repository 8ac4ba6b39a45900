"""Decontamination: documents must not hold the questions of benchmarks."""
