"""Patches to ColossalAI: symptom, cause and remedy of each, and a test that tells when it may go."""
