"""Data sets: records, chat formats, tokenization, splicing, and the loader of training."""
