"""Weight, adapter and generation configuration files of a model directory."""
