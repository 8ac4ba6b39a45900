"""What ranks must know of each other."""
