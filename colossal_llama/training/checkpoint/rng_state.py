"""States of the random generators in a checkpoint, one file a rank."""

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from colossal_llama.training.checkpoint.state import RANDOM_STATES, rank_file
from colossal_llama.utils.errors import UserError


def random_states() -> dict[str, torch.Tensor]:
    """States of this process's random generators, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(checkpoint: Path, rank: int) -> None:
    """Sets this process's random generators to the states that a rank saved.

    Raises:
        UserError: the rank's file is missing or damaged.
    """
    path = checkpoint / RANDOM_STATES / rank_file(rank)
    try:
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
    except (OSError, SafetensorError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(f"the random states in {path} cannot be read: {error}") from error
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])
