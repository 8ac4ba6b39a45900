"""Scans of the data sets that other programs tokenized: one process of each host reads them."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch.distributed as dist

from colossal_llama.dataset.part_paths import FoundParts, find_parts, is_part
from colossal_llama.dataset.tokenized.part import scan_data_set
from colossal_llama.dataset.tokenized.scan import Scan
from colossal_llama.training.distributed import consensus
from colossal_llama.training.distributed.long_work import work_while_others_wait
from colossal_llama.utils.console import log_rank_zero
from colossal_llama.utils.distributed_env import speaks_for_host
from colossal_llama.utils.errors import UserError


def find_parts_on_all_ranks(given: Mapping[str, Sequence[Path]], may_repeat: bool) -> dict[str, FoundParts]:
    """Finds the parts of each option on all ranks; a collective.

    Args:
        given: paths by the option that names them.
        may_repeat: True where a part may be given twice.

    Raises:
        CollectiveError: a path holds no data on some host.
    """
    found = {}
    with consensus.raise_on_all_ranks():
        for option, paths in given.items():
            found[option] = find_parts(paths, option, may_repeat)
    return found


def scan_on_all_hosts(found: Mapping[str, FoundParts]) -> dict[Path, Scan]:
    """Reads the data sets that other programs tokenized, in one process of each host; a collective.

    Args:
        found: parts by the option that names them.

    Returns:
        A scan of each: that of this host's process, and on the other ranks that of rank 0.

    Raises:
        CollectiveError: one is damaged, or has rows that cannot be used.
    """
    to_read = [(option, path) for option, parts in found.items() for path in parts.paths if not is_part(path)]
    scans: dict[Path, Scan] = {}

    def read() -> None:
        """Reads them all, and reports the problems of all."""
        problems = []
        for option, path in to_read:
            if (size_gb := _size_gb(path)) >= 1:
                log_rank_zero(f"reading {path} ({size_gb:.0f} GB) to check and to fingerprint it …")
            try:
                scans[path] = scan_data_set(path)
            except UserError as error:
                problems += [f"{option}: {problem}" for problem in error.problems]
        if problems:
            raise UserError(problems)

    work_while_others_wait(read if to_read and speaks_for_host() else None)
    everyone = [scans]
    dist.broadcast_object_list(everyone, src=0)
    return scans or everyone[0]


def _size_gb(path: Path) -> float:
    return sum(file.stat().st_size for file in path.glob("*.arrow")) / 1e9
