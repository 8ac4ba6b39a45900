"""Export of finished models: a complete directory for other programs, GGUF, and a model card."""
