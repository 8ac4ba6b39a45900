"""Patches of ColossalAI 0.5.0: symptom, cause and remedy of each.

tests/engine/test_patches.py has a test of each, which fails when it is no longer needed.
"""
