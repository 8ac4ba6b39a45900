"""Tests of the export of models."""
