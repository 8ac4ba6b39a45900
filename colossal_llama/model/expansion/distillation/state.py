"""State of a distillation at its target, so that a killed one goes on where it was."""

from pathlib import Path
from typing import Any

import torch

from colossal_llama.utils.atomic_io import atomic_file
from colossal_llama.utils.errors import UserError


def state_path(target: Path) -> Path:
    """Path of the state of the distillation that makes `target`.

    It is next to a new directory, which appears when it is complete, and in one that exists.
    """
    target = target.resolve()
    return target / ".distillation" if target.is_dir() else target.with_name(f".{target.name}.distillation")


def write_state(path: Path, settings: dict[str, Any], state: dict[str, Any]) -> None:
    """Writes a state of tensors and numbers, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_file(path) as file:
        torch.save({"settings": settings, **state}, file)


def read_state(path: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """Reads the state of a distillation with these settings; None where there is none.

    Raises:
        UserError: it is damaged, or that of other settings.
    """
    if not path.exists():
        return None
    advice = f"remove {path} to begin anew"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        former = state["settings"]
    except Exception as error:  # torch raises many kinds on a file that is damaged, or not its own
        raise UserError(f"the state of an interrupted distillation cannot be read: {error}; {advice}") from error
    changed = [name for name in {**former, **settings} if former.get(name) != settings.get(name)]
    if changed:
        values = ", ".join(f"{name} was {former.get(name)}, is {settings.get(name)}" for name in changed)
        raise UserError(
            f"an interrupted distillation for this target had other arguments or inputs: {values}. Give the same to go "
            f"on with it, or {advice}"
        )
    return state
