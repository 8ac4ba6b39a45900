"""Memory of a training step: estimate, and what is recomputed to fit."""
