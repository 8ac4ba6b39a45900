"""The device that a model is computed on."""

import torch

from colossal_llama.utils.errors import UserError


def select_device(name: str | None, option: str = "--device") -> torch.device:
    """Returns the named device; without a name `cuda:0`, or the CPU where there is none.

    Args:
        name: `cpu`, `cuda:1` …
        option: under which it was given, for messages.

    Raises:
        UserError: the device cannot be used.
    """
    if name is None:
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        if torch.empty(1, device=device).is_meta:  # ColossalAI lets its numbers be read
            raise RuntimeError("it has no memory")
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"{option} {name} cannot be used here: {str(error).splitlines()[0]}") from error
    return device
