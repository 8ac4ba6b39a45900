"""Learning which pieces to add from a corpus."""
