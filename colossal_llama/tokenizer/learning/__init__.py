"""Learning new pieces of a BPE vocabulary from a corpus."""
