"""Attention by document over packed rows."""
