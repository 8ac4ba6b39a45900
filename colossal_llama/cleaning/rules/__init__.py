"""Rules about one document: its length, characters, words, lines and repetitions."""
