"""The data: records, conversations, tokenization, splicing, buckets, and the loader that training reads."""
