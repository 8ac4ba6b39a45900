"""Campaigns: many seeded trials of one kind of fault, and how each ended."""
