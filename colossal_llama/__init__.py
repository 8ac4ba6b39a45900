"""Give a LLaMA model a new language or domain: the library behind the scripts at the project's root."""

__version__ = "0.1.0"
