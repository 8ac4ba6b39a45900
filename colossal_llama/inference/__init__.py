"""Running a model: prompts, a chat on the terminal, a file of prompts. Sees dataset, model and tokenizer."""
