"""Inference: prompts, generation, a chat on the terminal, files of prompts."""
