"""The small states of a run that a checkpoint holds beside weights and moments: generators and the fp16 loss scale."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from colossal_llama.engine.loss_scale import loss_scaler
from colossal_llama.utils.errors import UserError

_SCALER_NUMBERS = ("_growth_step", "_hysteresis_step")  # missing from ColossalAI's own state_dict


def random_states_file(rank: int) -> str:
    """Name of a rank's file, relative to the checkpoint."""
    return f"random_states/rank-{rank:05d}-00000.safetensors"


def random_states() -> dict[str, torch.Tensor]:
    """The states of this process's generators, uint8."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def restore_random_states(checkpoint: Path, rank: int) -> None:
    """Sets this process's generators as a rank's were.

    Raises:
        UserError: the rank's file is missing or damaged.
    """
    path = checkpoint / random_states_file(rank)
    try:
        states = load_file(path)
        torch.set_rng_state(states["cpu"])
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise UserError(f"the random states in {path} cannot be read: {error}") from error
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


def loss_scale_state(optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
    """The state of the fp16 loss scaler as JSON values; None in other precisions."""
    scaler = loss_scaler(optimizer)
    if scaler is None:
        return None
    if hasattr(scaler, "get_scale"):
        return scaler.state_dict()
    return {"scale": scaler.scale.item(), **{name: getattr(scaler, name) for name in _SCALER_NUMBERS}}


def restore_loss_scale(optimizer: torch.optim.Optimizer, state: dict[str, Any] | None) -> None:
    """Restores what `loss_scale_state` gave, if run and checkpoint both have a scale."""
    scaler = loss_scaler(optimizer)
    if scaler is None or state is None:
        return
    if hasattr(scaler, "get_scale"):
        scaler.load_state_dict(state)
        return
    scaler._scale.fill_(state["scale"])
    for name in _SCALER_NUMBERS:
        setattr(scaler, name, state[name])
