"""The vocabulary: expanding a tokenizer, learning pieces, comparing tokenizers."""
