"""Paths of input as users give them on a command line."""

from colossal_llama.utils.cli import existing_directories

input_paths = existing_directories
"""Argparse `type=` of paths of input, separated by commas."""
