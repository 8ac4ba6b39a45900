"""Tests: one package for each room of colossal_llama, integration/, gpu/, and support/ with what
they share.
"""
