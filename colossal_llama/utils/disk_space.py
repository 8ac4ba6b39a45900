"""Free space on a disk, asked before something large is written."""

import shutil
from pathlib import Path

from colossal_llama.utils.atomic_io import existing_ancestor
from colossal_llama.utils.errors import UserError


def check_free_space(needed_bytes: int, target: Path, what: str, remedy: str) -> None:
    """Refuses to begin what the disk has no room for.

    Args:
        needed_bytes: to be written.
        target: where; it need not exist yet.
        what: to be written, the beginning of the sentence.
        remedy: instead of making room.

    Raises:
        UserError: the disk has less free space.
    """
    parent = existing_ancestor(target)
    free_bytes = shutil.disk_usage(parent).free
    if free_bytes < needed_bytes:
        raise UserError(
            f"{what} takes {needed_bytes / 1e9:.1f} GB, and {parent} has {free_bytes / 1e9:.1f} GB free: make room or "
            f"{remedy}"
        )
