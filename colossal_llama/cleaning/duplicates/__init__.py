"""Duplicates across documents: equal texts, repeated paragraphs, and near duplicates."""
