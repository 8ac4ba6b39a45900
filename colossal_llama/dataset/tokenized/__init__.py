"""Data sets that other programs tokenized and saved with `datasets`."""
