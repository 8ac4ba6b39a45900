"""Library and commands that give a LLaMA model a new language or domain."""

__version__ = "0.1.0"
