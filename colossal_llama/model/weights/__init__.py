"""Weight files of a model directory."""
